"""What `engine.storing.Vault` promises, asked of every vault."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from riskgate_server.engine.storing import NoKey, Vault
from tests.contract.rows import ADA, ADA_ELSEWHERE, BO

KEY, OTHER = bytes(range(32)), bytes(range(32, 64))


def test_an_unknown_customer_has_no_key(vault: Vault) -> None:
    assert vault.keys([ADA, BO]) == {ADA: NoKey.ABSENT, BO: NoKey.ABSENT}
    assert vault.keys([]) == {}


def test_a_key_is_kept_per_customer_and_tenant(vault: Vault) -> None:
    assert vault.create({ADA: KEY, BO: OTHER}) == {ADA: KEY, BO: OTHER}

    assert vault.keys([BO, ADA, ADA_ELSEWHERE]) == {ADA: KEY, BO: OTHER, ADA_ELSEWHERE: NoKey.ABSENT}


def test_an_older_key_wins_over_a_newer_one(vault: Vault) -> None:
    vault.create({ADA: KEY})

    assert vault.create({ADA: OTHER, BO: OTHER}) == {ADA: KEY, BO: OTHER}
    assert vault.keys([ADA]) == {ADA: KEY}


def test_ids_that_differ_only_in_case_have_keys_of_their_own(vault: Vault) -> None:
    vault.create({("acme", "ada"): KEY, ("acme", "Ada"): OTHER})

    assert vault.keys([("acme", "ada"), ("acme", "Ada"), ("Acme", "ada")]) == {
        ("acme", "ada"): KEY,
        ("acme", "Ada"): OTHER,
        ("Acme", "ada"): NoKey.ABSENT,
    }


def test_a_forgotten_key_is_gone_and_the_others_stay(vault: Vault) -> None:
    vault.create({ADA: KEY, BO: OTHER})
    vault.forget(ADA)
    vault.forget(ADA_ELSEWHERE)

    assert vault.keys([ADA, BO, ADA_ELSEWHERE]) == {ADA: NoKey.FORGOTTEN, BO: OTHER, ADA_ELSEWHERE: NoKey.ABSENT}


def test_forgetting_again_is_no_effect(vault: Vault) -> None:
    vault.create({ADA: KEY})
    vault.forget(ADA)
    vault.forget(ADA)

    assert vault.keys([ADA]) == {ADA: NoKey.FORGOTTEN}


def test_a_forgotten_customer_gets_no_new_key(vault: Vault) -> None:
    vault.create({ADA: KEY})
    vault.forget(ADA)

    with pytest.raises(ValueError, match="forgotten"):
        vault.create({ADA: OTHER})
    assert vault.keys([ADA]) == {ADA: NoKey.FORGOTTEN}


def test_many_threads_create_one_customers_key_and_all_get_the_same(vault: Vault) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = list(pool.map(lambda n: vault.create({ADA: bytes([n]) * 32})[ADA], range(64)))

    assert len(set(keys)) == 1
    assert vault.keys([ADA]) == {ADA: keys[0]}
