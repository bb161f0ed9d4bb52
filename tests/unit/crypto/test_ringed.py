"""Keys at work: the one in force makes, and every one of the ring is known again."""

from __future__ import annotations

import pytest

from riskgate_server.crypto.derived import DerivedSecrets
from riskgate_server.crypto.keys import FingerprintKey, MasterKey, MasterKeyMismatch, credential_mark
from riskgate_server.crypto.ringed import FingerprintKeys, MasterKeys, RingTokens
from riskgate_server.crypto.rings import Ring
from riskgate_server.crypto.tokens import SealedTokens
from riskgate_server.engine.ports import KeyRetired, TokenRefused

ADA = ("t", "ada")
FIRST, SECOND, THIRD = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
RING = Ring({10: FIRST, 20: SECOND, 30: THIRD})
NOW = 25.0


def test_content_is_marked_under_the_key_in_force_and_under_every_other() -> None:
    current, others = FingerprintKeys(RING, now=lambda: NOW).of_content(ADA, b"content")

    assert current == FingerprintKey(SECOND).of_content(ADA, b"content")
    assert set(others) == {FingerprintKey(key).of_content(ADA, b"content") for key in (FIRST, THIRD)}
    alone = FingerprintKeys(Ring({10: FIRST})).of_content(ADA, b"content")
    assert alone == (FingerprintKey(FIRST).of_content(ADA, b"content"), ())


def test_a_mark_that_must_last_is_the_same_until_the_oldest_key_leaves() -> None:
    marks = [
        FingerprintKeys(ring, now=lambda: NOW).of_content_for_long(ADA, b"message")
        for ring in (Ring({10: FIRST}), RING, Ring({20: SECOND}))
    ]

    assert marks[0] == marks[1] != marks[2]


def test_values_are_marked_under_the_key_in_force_first() -> None:
    marks = FingerprintKeys(RING, now=lambda: NOW).fingerprints("t", "phone", "1")

    assert marks == tuple(FingerprintKey(key).fingerprint("t", "phone", "1") for key in (SECOND, FIRST, THIRD))


def test_tokens_are_sealed_with_the_key_in_force_and_opened_with_any_of_the_ring() -> None:
    tokens = RingTokens(RING, now=lambda: NOW)

    assert SealedTokens(SECOND).open_token(("page",), tokens.seal(("page",), b"place")) == b"place"
    assert tokens.open_token(("page",), SealedTokens(FIRST).seal(("page",), b"place")) == b"place"
    with pytest.raises(TokenRefused):
        tokens.open_token(("page",), SealedTokens(bytes(32)).seal(("page",), b"place"))


def test_keys_are_wrapped_under_the_newest_or_the_one_that_is_named() -> None:
    masters = MasterKeys(RING)

    for master, wrapped in (
        (MasterKey(THIRD), masters.wrap(ADA, bytes(32))),
        (MasterKey(FIRST), masters.wrap(ADA, bytes(32), MasterKey(FIRST).header)),
    ):
        assert master.unwrap(ADA, wrapped) == masters.unwrap(ADA, wrapped) == bytes(32)
    with pytest.raises(MasterKeyMismatch):
        masters.wrap(ADA, bytes(32), MasterKey(bytes(32)).header)


def test_secrets_are_derived_from_the_key_in_force_and_older_ones_told_again() -> None:
    secrets = DerivedSecrets(RING, now=lambda: NOW)
    before = DerivedSecrets({10: FIRST})

    assert secrets.key_id == 20
    assert secrets.code(10, ADA, "c-1") == before.code(10, ADA, "c-1")
    assert secrets.decoy_time(ADA, before.decoy(ADA, 5_000_000)) == 5_000_000
    with pytest.raises(KeyRetired):
        secrets.code(9, ADA, "c-1")


def test_a_credential_is_marked_the_same_for_ever_and_differently_for_each_tenant() -> None:
    marks = {credential_mark(*of) for of in (("t", "key", "1"), ("u", "key", "1"), ("t", "id", "1"), ("tk", "ey", "1"))}

    assert len(marks) == 4
    assert credential_mark("t", "key", "1") == credential_mark("t", "key", "1")
