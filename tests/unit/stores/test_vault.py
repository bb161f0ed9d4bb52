from __future__ import annotations

import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from riskgate_server.crypto.keys import MasterKey, MasterKeyMismatch
from riskgate_server.engine.failures import StoreFull, StoreInUse
from riskgate_server.engine.storing import NoKey
from riskgate_server.stores.refusals import VaultUnusable
from riskgate_server.stores.sqlite import vault as module
from riskgate_server.stores.sqlite.vault import SqliteVault, create_vault

MASTER = MasterKey(bytes(range(32)))
ANN, BOB = ("tenant", "ann"), ("tenant", "bob")
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vault.db"
    create_vault(path, MASTER.wrap)
    return path


@pytest.fixture
def vault(path: Path) -> Iterator[SqliteVault]:
    vault = opened(path)
    yield vault
    vault.close()


def opened(path: Path, master: MasterKey = MASTER, *, read_only: bool = False) -> SqliteVault:
    return SqliteVault(path, wrap=master.wrap, unwrap=master.unwrap, read_only=read_only)


def files(path: Path) -> bytes:
    return b"".join(each.read_bytes() for each in sorted(path.parent.iterdir()) if each.name.startswith(path.name))


def wrapped_of(path: Path, customer: tuple[str, str]) -> bytes:
    connection = sqlite3.connect(path)
    (wrapped,) = connection.execute(
        "SELECT wrapped FROM keys WHERE tenant_id = ? AND customer_id = ?", customer
    ).fetchone()
    connection.close()
    assert isinstance(wrapped, bytes)
    return wrapped


def test_a_key_is_there_at_once_and_after_reopening(path: Path) -> None:
    first = opened(path)
    assert first.create({ANN: KEY}) == {ANN: KEY}
    assert first.keys([ANN, BOB]) == {ANN: KEY, BOB: NoKey.ABSENT}
    first.close()

    second = opened(path)
    assert second.keys([BOB, ANN]) == {ANN: KEY, BOB: NoKey.ABSENT}
    second.close()


def test_an_orphan_of_a_crash_wins_over_the_key_of_a_later_opening(path: Path) -> None:
    """The vault commits before the store: a crash in between leaves a key whose customer does not exist."""
    crashed = opened(path)
    crashed.create({ANN: KEY})
    crashed.close()

    vault = opened(path)
    assert vault.create({ANN: OTHER_KEY, BOB: OTHER_KEY}) == {ANN: KEY, BOB: OTHER_KEY}
    assert vault.keys([ANN]) == {ANN: KEY}
    vault.close()


def test_ids_that_differ_only_in_case_or_in_where_they_join_have_their_own_keys(vault: SqliteVault) -> None:
    keys = {("t", "a"): b"1" * 32, ("t", "A"): b"2" * 32, ("ta", ""): b"3" * 32, ("", "ta"): b"4" * 32}
    vault.create(keys)

    assert vault.keys(list(keys)) == keys


def test_neither_a_key_nor_its_customers_wrapping_is_stored_in_clear(path: Path, vault: SqliteVault) -> None:
    vault.create({ANN: KEY})

    assert KEY not in files(path)


def test_a_forgotten_key_is_gone_at_once_after_reopening_and_for_readers(path: Path, vault: SqliteVault) -> None:
    vault.create({ANN: KEY, BOB: OTHER_KEY})
    reader = opened(path, read_only=True)
    assert reader.keys([ANN]) == {ANN: KEY}
    vault.forget(ANN)
    vault.forget(ANN)
    vault.forget(("tenant", "nobody"))

    assert vault.keys([ANN, BOB]) == {ANN: NoKey.FORGOTTEN, BOB: OTHER_KEY}
    assert reader.keys([ANN, BOB]) == {ANN: NoKey.FORGOTTEN, BOB: OTHER_KEY}
    reader.close()


def test_no_piece_of_a_forgotten_key_is_left_in_any_file(path: Path, vault: SqliteVault) -> None:
    """Keys arrive in random order, so that pages split and rows move, and are forgotten in random order."""
    chance = random.Random(7)
    customers = [("tenant", f"customer-{number}") for number in range(2000)]
    chance.shuffle(customers)
    for start in range(0, len(customers), 50):
        vault.create({customer: chance.randbytes(32) for customer in customers[start : start + 50]})
    forgotten = chance.sample(customers, 60)
    destroyed = {customer: wrapped_of(path, customer) for customer in forgotten}
    kept = wrapped_of(path, next(customer for customer in customers if customer not in destroyed))
    for customer in forgotten:
        vault.forget(customer)

    content = files(path)
    for wrapped in destroyed.values():
        # All but version and id of the master key, which every row shares.
        pieces = [wrapped[start : start + 8] for start in range(5, len(wrapped) - 8)]
        assert not any(piece in content for piece in pieces)
    assert kept in content


def test_the_search_after_forgetting_finds_what_is_there(path: Path, vault: SqliteVault) -> None:
    """Otherwise its silence would mean nothing."""
    vault.create({ANN: KEY})

    assert vault._left_over(wrapped_of(path, ANN))


def test_a_forgetting_that_a_crash_interrupted_is_finished_by_the_next_start(tmp_path: Path, path: Path) -> None:
    before = opened(path)
    before.create({ANN: KEY})
    wrapped = wrapped_of(path, ANN)
    # Committed to the log, and the machine stops before the log is brought in and cut.
    before._write("UPDATE keys SET wrapped = zeroblob(length(wrapped)) WHERE customer_id = ?", [("ann",)])
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for each in (path, Path(f"{path}-wal")):
        shutil.copy(each, crashed / each.name)
    before.close()
    assert wrapped in files(crashed / path.name)

    after = opened(crashed / path.name)
    assert after.keys([ANN]) == {ANN: NoKey.FORGOTTEN}
    assert wrapped[5:] not in files(crashed / path.name)
    after.close()


def test_a_reader_in_the_way_is_said_and_forgetting_again_finishes(
    path: Path, vault: SqliteVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.create({ANN: KEY})
    wrapped = wrapped_of(path, ANN)
    vault._connection.execute("PRAGMA busy_timeout = 10")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM keys").fetchall()

    with pytest.raises(StoreInUse):
        vault.forget(ANN)
    assert vault.keys([ANN]) == {ANN: NoKey.FORGOTTEN}
    reader.execute("ROLLBACK")
    vault.forget(ANN)
    assert wrapped[5:] not in files(path)
    reader.close()


def test_wrapped_keys_exchanged_between_customers_are_refused(path: Path) -> None:
    first = opened(path)
    first.create({ANN: KEY, BOB: OTHER_KEY})
    first.close()
    ann, bob = wrapped_of(path, ANN), wrapped_of(path, BOB)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE keys SET wrapped = ? WHERE customer_id = 'ann'", (bob,))
    connection.execute("UPDATE keys SET wrapped = ? WHERE customer_id = 'bob'", (ann,))
    connection.commit()
    connection.close()

    vault = opened(path)
    assert vault.keys([ANN, BOB]) == {ANN: NoKey.DAMAGED, BOB: NoKey.DAMAGED}
    vault.close()


def test_another_master_key_does_not_open_the_vault(path: Path) -> None:
    with pytest.raises(MasterKeyMismatch):
        opened(path, MasterKey(bytes(32)))


def test_a_missing_vault_is_refused_and_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(VaultUnusable, match="missing"):
        opened(tmp_path / "absent.db")
    assert list(tmp_path.iterdir()) == []


def test_a_vault_of_a_newer_format_is_refused_untouched(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = path.read_bytes()

    with pytest.raises(VaultUnusable, match="format 2"):
        opened(path)
    assert path.read_bytes() == before


def test_the_durability_and_erasure_settings_are_in_force(vault: SqliteVault) -> None:
    in_force = {
        name: vault._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "secure_delete")
    }

    assert in_force == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


def test_the_vaults_files_are_private(path: Path, vault: SqliteVault) -> None:
    vault.create({ANN: KEY})

    assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}


def test_many_threads_that_create_one_customer_agree_on_its_key(vault: SqliteVault) -> None:
    standing: list[bytes] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        standing.append(vault.create({ANN: bytes([number]) * 32})[ANN])

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(standing) == 8
    assert len(set(standing)) == 1


def test_no_room_is_said_and_what_was_there_stays(vault: SqliteVault) -> None:
    vault.create({ANN: KEY})
    (pages,) = vault._connection.execute("PRAGMA page_count").fetchone()
    vault._connection.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StoreFull):
        vault.create({("tenant", f"customer-{number}"): KEY for number in range(1000)})
    assert vault.keys([ANN, ("tenant", "customer-0")]) == {ANN: KEY, ("tenant", "customer-0"): NoKey.ABSENT}


def test_keys_beyond_what_is_kept_in_memory_are_read_again(vault: SqliteVault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_MAX", 2)
    keys = {("tenant", str(number)): bytes([number]) * 32 for number in range(10)}
    vault.create(keys)

    assert vault.keys(list(keys)) == keys
    assert len(vault._cached) == 2


def test_use_after_close_raises(path: Path) -> None:
    vault = opened(path)
    vault.create({ANN: KEY})
    vault.close()

    uses: list[Callable[[], object]] = [lambda: vault.keys([ANN]), lambda: vault.forget(ANN)]
    for use in uses:
        with pytest.raises(Exception, match=r".+"):
            use()
