"""What only a vault in a database can do wrong: another master key, other servers, copies of what was forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from riskgate_server.crypto.keys import MasterKey, MasterKeyMismatch
from riskgate_server.engine.failures import StoreBusy, StoreInUse
from riskgate_server.engine.storing import NoKey
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.postgres.vault import PostgresVault, create_vault
from riskgate_server.stores.refusals import VaultUnusable
from tests import postgres
from tests.contract.rows import ADA, BO

MASTER = MasterKey(bytes(range(32)))
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


@pytest.fixture
def dsn(dsn: str) -> str:
    """A database with an empty vault."""
    create_vault(dsn, MASTER.wrap)
    return dsn


@pytest.fixture
def vault(dsn: str) -> Iterator[PostgresVault]:
    vault = opened(dsn)
    yield vault
    vault.close()


def opened(dsn: str, master: MasterKey = MASTER, *, read_only: bool = False) -> PostgresVault:
    return PostgresVault(dsn, wrap=master.wrap, unwrap=master.unwrap, read_only=read_only)


def wrapped_of(dsn: str, customer: tuple[str, str]) -> bytes:
    with psycopg.connect(dsn) as connection:
        statement = "SELECT wrapped FROM vault.keys WHERE tenant_id = %s AND customer_id = %s"
        (wrapped,) = connection.execute(statement, customer, binary=True).fetchone() or (b"",)
    return bytes(wrapped)


def table(dsn: str) -> bytes:
    """The table as it lies on the disk."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        statement = "SELECT pg_read_binary_file(pg_relation_filepath('vault.keys'))"
        (content,) = connection.execute(statement, binary=True).fetchone() or (b"",)
    return bytes(content)


def test_an_orphan_of_a_crash_wins_over_the_key_of_a_later_opening(dsn: str) -> None:
    crashed = opened(dsn)
    crashed.create({ADA: KEY})
    crashed.close()

    vault = opened(dsn)

    assert vault.create({ADA: OTHER_KEY, BO: OTHER_KEY}) == {ADA: KEY, BO: OTHER_KEY}
    vault.close()


def test_servers_that_create_one_customers_key_all_get_the_same(dsn: str, vault: PostgresVault) -> None:
    other = opened(dsn)

    assert vault.create({ADA: KEY}) == other.create({ADA: OTHER_KEY}) == {ADA: KEY}

    other.close()


def test_the_vault_of_another_master_key_is_refused(dsn: str) -> None:
    with pytest.raises(MasterKeyMismatch):
        opened(dsn, MasterKey(bytes(32)))


def test_a_database_without_a_vault_is_refused_and_none_is_made(tmp_path: Path) -> None:
    dsn = postgres.database(tmp_path)

    with pytest.raises(VaultUnusable, match="there is no vault in the database"):
        opened(dsn)


def test_a_vault_that_proves_nothing_is_refused(tmp_path: Path) -> None:
    dsn = postgres.database(tmp_path)
    PostgresStore(dsn).close()

    with pytest.raises(VaultUnusable, match="does not prove"):
        opened(dsn)


def test_making_a_vault_again_changes_nothing(dsn: str, vault: PostgresVault) -> None:
    vault.create({ADA: KEY})

    create_vault(dsn, MasterKey(bytes(32)).wrap)

    again = opened(dsn)
    assert again.keys([ADA]) == {ADA: KEY}
    again.close()


def test_a_forgotten_key_leaves_a_row_of_zeros_and_no_copy_in_the_table(dsn: str, vault: PostgresVault) -> None:
    vault.create({ADA: KEY, BO: OTHER_KEY})
    wrapped = wrapped_of(dsn, ADA)
    assert wrapped in table(dsn)

    vault.forget(ADA)

    assert wrapped_of(dsn, ADA) == bytes(len(wrapped))
    assert wrapped not in table(dsn)
    assert wrapped_of(dsn, BO) in table(dsn)
    assert vault.keys([ADA, BO]) == {ADA: NoKey.FORGOTTEN, BO: OTHER_KEY}
    assert vault.count() == 2


def test_a_key_that_a_reader_still_sees_is_not_said_to_be_gone(dsn: str, vault: PostgresVault) -> None:
    vault.create({ADA: KEY})
    wrapped = wrapped_of(dsn, ADA)

    with psycopg.connect(dsn) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")
        with pytest.raises(StoreInUse, match="forget again"):
            vault.forget(ADA)
        assert vault.keys([ADA]) == {ADA: NoKey.FORGOTTEN}
    vault.forget(ADA)

    assert wrapped not in table(dsn)


def test_a_forgotten_customer_gets_no_new_key(vault: PostgresVault) -> None:
    vault.create({ADA: KEY})
    vault.forget(ADA)

    with pytest.raises(ValueError, match="forgotten"):
        vault.create({ADA: OTHER_KEY})


@pytest.mark.parametrize("wrapped", [b"", b"not what was wrapped"], ids=["empty", "altered"])
def test_a_damaged_key_harms_no_other_customer_and_is_not_replaced(dsn: str, wrapped: bytes) -> None:
    first = opened(dsn)
    first.create({ADA: KEY, BO: OTHER_KEY})
    first.close()
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE vault.keys SET wrapped = %s WHERE customer_id = %s", (wrapped, ADA[1]))

    vault = opened(dsn)

    assert vault.keys([ADA, BO]) == {ADA: NoKey.DAMAGED, BO: OTHER_KEY}
    with pytest.raises(ValueError, match="damaged"):
        vault.create({ADA: OTHER_KEY})
    vault.close()


def test_who_only_reads_sees_what_a_server_forgets(dsn: str, vault: PostgresVault) -> None:
    reader = opened(dsn, read_only=True)
    vault.create({ADA: KEY})
    assert reader.keys([ADA]) == {ADA: KEY}

    vault.forget(ADA)

    assert reader.keys([ADA]) == {ADA: NoKey.FORGOTTEN}
    reader.close()


def test_a_vault_whose_connection_was_lost_connects_again(vault: PostgresVault) -> None:
    vault.create({ADA: KEY})
    assert vault._db is not None
    postgres.admin("SELECT pg_terminate_backend(%s, 5000)", vault._db.info.backend_pid)

    with pytest.raises(StoreBusy):
        vault.create({BO: OTHER_KEY})

    assert vault.create({BO: OTHER_KEY}) == {BO: OTHER_KEY}


def test_a_vault_that_was_closed_stays_closed(vault: PostgresVault) -> None:
    vault.close()

    with pytest.raises(RuntimeError):
        vault.keys([ADA])
