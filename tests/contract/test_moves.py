"""A store that moves arrives whole, whatever is killed on the way; and only one of the two is served."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from riskgate_server import copying
from riskgate_server.cli.init import initialise
from riskgate_server.copying import CopyDiffers, copy, give_up_copy
from riskgate_server.crypto.keys import MasterKeyMismatch
from riskgate_server.datadir import DataDirectory, DataDirectoryError
from riskgate_server.engine.failures import StoreInUse
from riskgate_server.engine.rows import BatchRow
from riskgate_server.engine.storing import NoKey
from riskgate_server.opening import (
    OtherPast,
    master_keys,
    open_store,
    verify_directory,
)
from riskgate_server.rotation import Rotation, RotationRefused
from riskgate_server.stores.postgres.moves import PostgresPlace, place_name
from riskgate_server.stores.postgres.schema import VAULT_SCHEMA
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.postgres.vault import PostgresVault
from riskgate_server.stores.refusals import MoveRefused, StoreMoved, VaultUnusable
from riskgate_server.stores.sqlite import moves as sqlite_moves
from riskgate_server.stores.sqlite.moves import SQLitePlace
from riskgate_server.stores.sqlite.vault import SqliteVault
from tests import postgres
from tests.contract.moving import LOST, QUIET, faults_of, files, live, place, rows_in, with_everything
from tests.contract.rows import BO, commit, entry
from tests.contract.sessions import ask


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> DataDirectory:
    root = tmp_path_factory.mktemp("lived") / "data"
    initialise(root, names=(), tenant="acme")
    directory = DataDirectory(root)
    live(directory)
    return directory


@pytest.fixture
def directory(lived_in: DataDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataDirectory:
    """A directory with two customers, copied three rows at a time."""
    monkeypatch.setattr(copying, "ROWS", 3)
    shutil.copytree(lived_in.root, tmp_path / "data")
    return DataDirectory(tmp_path / "data")


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    """A database without a table."""
    return postgres.database(tmp_path)


@pytest.fixture
def another_dsn(tmp_path: Path) -> Iterator[str]:
    yield postgres.database(tmp_path / "another")
    postgres.give_back(tmp_path / "another")


# --- From files into a database, and back. ---


def test_a_store_arrives_whole_and_its_books_are_right(directory: DataDirectory, dsn: str) -> None:
    before = rows_in(directory)

    copied = copy(directory, files(directory), dsn, QUIET)

    assert rows_in(directory, dsn) == before
    assert all(len(before[table]) == number for table, number in copied.rows.items())
    assert faults_of(directory, dsn) == []
    assert copied.lanes == {0: before["batches"][-1][1:2] + before["batches"][-1][-1:]}


def test_rows_of_every_kind_are_copied_as_they_are(directory: DataDirectory, dsn: str) -> None:
    before = rows_in(with_everything(directory))

    copy(directory, files(directory), dsn, QUIET)

    assert [table for table, rows in before.items() if not rows] == []
    assert rows_in(directory, dsn) == before


def test_journal_and_batches_are_equal_byte_for_byte(directory: DataDirectory, dsn: str) -> None:
    """Said by the databases themselves, not by what copies."""
    with closing(sqlite3.connect(directory.store)) as db:
        columns = (
            "tenant_id, customer_id, sequence, position, batch, at_us, tag, request_id, clear, nonce, sealed, hash"
        )
        entries = db.execute(f"SELECT {columns} FROM entries ORDER BY position").fetchall()
        batches = db.execute("SELECT sequence, at_us, first_position, count, root, hash FROM batches").fetchall()

    copy(directory, files(directory), dsn, QUIET)

    assert ask(dsn, f"SELECT {columns} FROM entries WHERE writer = 0 ORDER BY position") == entries
    assert ask(dsn, "SELECT sequence, at_us, first_position, count, root, hash FROM batches ORDER BY 1") == batches


def test_a_server_goes_on_in_the_database_where_the_files_ended(directory: DataDirectory, dsn: str) -> None:
    """Under the heads that were signed before, and with the keys of before: also the one that was forgotten."""
    copy(directory, files(directory), dsn, QUIET)

    live(directory, dsn, again="later")

    assert faults_of(directory, dsn) == []
    with closing(open_store(directory, dsn)) as opened:
        assert opened.vault.keys([LOST]) == {LOST: NoKey.FORGOTTEN}


def test_a_store_comes_back_into_files_and_goes_on_there(directory: DataDirectory, dsn: str) -> None:
    copy(directory, files(directory), dsn, QUIET)
    live(directory, dsn, again="there")
    for path in (directory.store, directory.vault):
        path.rename(path.with_suffix(".old"))
    before = rows_in(directory, dsn)

    copy(directory, dsn, files(directory), QUIET)

    assert rows_in(directory) == before
    live(directory, again="here")
    assert faults_of(directory) == []
    with pytest.raises(StoreMoved, match="was moved to sqlite:"):
        open_store(directory, dsn)


def test_a_store_moves_from_one_database_to_another_with_all_its_lanes(
    directory: DataDirectory, dsn: str, another_dsn: str
) -> None:
    copy(directory, files(directory), dsn, QUIET)
    second = PostgresStore(dsn, 1)
    commit(second, msgspec.structs.replace(entry(99, 1), writer=1), BatchRow(1, 100, 1, 1, b"root", b"hash", 1))
    second.close()
    before = rows_in(directory, dsn)

    copied = copy(directory, dsn, another_dsn, QUIET)

    assert rows_in(directory, another_dsn) == before
    assert copied.lanes[1] == (1, b"hash")
    third = PostgresStore(another_dsn, 1)
    with third.transaction() as tx:
        assert tx.tail() == (BatchRow(1, 100, 1, 1, b"root", b"hash", 1), 1)
    third.close()


def test_a_journal_of_several_writers_does_not_go_into_files_and_leaves_none_behind(
    directory: DataDirectory, dsn: str, tmp_path: Path
) -> None:
    copy(directory, files(directory), dsn, QUIET)
    second = PostgresStore(dsn, 1)
    commit(second, msgspec.structs.replace(entry(99, 1), writer=1), BatchRow(1, 100, 1, 1, b"root", b"hash", 1))
    second.close()
    for path in (directory.store, directory.vault):
        path.unlink()

    with pytest.raises(MoveRefused, match="one lane"):
        copy(directory, dsn, files(directory), QUIET)

    assert (directory.store.exists(), directory.vault.exists()) == (False, False)
    live(directory, dsn, again="later")


def test_a_copy_into_files_that_is_refused_leaves_none_behind_and_takes_no_other_away(
    directory: DataDirectory, dsn: str
) -> None:
    copy(directory, files(directory), dsn, QUIET)
    for path in (directory.store, directory.vault):
        path.rename(f"{path}.old")

    with closing(PostgresStore(dsn, 1)), pytest.raises(StoreInUse):
        copy(directory, dsn, files(directory), QUIET)

    left = {path.name for path in directory.root.iterdir() if ".db" in path.name}
    assert left == {"access.db", "riskgate.db.old", "vault.db.old"}
    copy(directory, dsn, files(directory), QUIET)
    live(directory, again="later")


def test_nothing_in_it_moves_too(dsn: str, tmp_path: Path) -> None:
    initialise(tmp_path / "data", names=(), tenant="acme")
    directory = DataDirectory(tmp_path / "data")

    copied = copy(directory, files(directory), dsn, QUIET)

    assert sum(copied.rows.values()) == 0
    live(directory, dsn)
    assert faults_of(directory, dsn) == []


# --- Which of the two is served. ---


def test_files_that_were_moved_are_served_no_more_and_name_the_new_place(directory: DataDirectory, dsn: str) -> None:
    copy(directory, files(directory), dsn, QUIET)

    with pytest.raises(StoreMoved, match=rf"was moved to {re.escape(place_name(dsn))} on 20\d\d-.*no longer the truth"):
        open_store(directory)


def test_a_place_that_was_moved_away_is_not_taken_for_the_truth_by_who_only_looks(
    directory: DataDirectory, dsn: str
) -> None:
    """The signed heads go on with the other place: what is behind them here is no fault, and no proof either."""
    copy(directory, files(directory), dsn, QUIET)
    live(directory, dsn, again="later")

    with pytest.raises(StoreMoved, match=r"no longer the truth: go on with that one, with --store"):
        verify_directory(directory, QUIET)
    with pytest.raises(RotationRefused, match=r"no longer the truth: go on with that one, with --store"):
        Rotation(directory).list()
    assert {one.kind: one.needed for one in Rotation(directory, dsn).list()}["master"] == "2 customers' keys"

    for path in (directory.store, directory.vault):
        path.rename(path.with_suffix(".old"))
    copy(directory, dsn, files(directory), QUIET)

    with pytest.raises(StoreMoved, match=r"the database was moved to sqlite:.*, without --store"):
        verify_directory(directory, QUIET, dsn)
    assert faults_of(directory) == []


def test_a_store_in_files_is_not_taken_for_an_empty_database(directory: DataDirectory, dsn: str) -> None:
    """Who only names a database is told to move the store there, and not that the journal was lost."""
    told = rf"this directory's store is in files, .*: move it with `riskgate copy --from {files(directory)} --to DSN`"

    with pytest.raises(DataDirectoryError, match=told):
        open_store(directory, dsn)
    with pytest.raises(DataDirectoryError, match=told):
        verify_directory(directory, QUIET, dsn)

    copy(directory, files(directory), dsn, QUIET)
    live(directory, dsn, again="there")


def test_files_that_are_served_again_by_force_after_the_copy_went_on_are_refused(
    directory: DataDirectory, dsn: str
) -> None:
    """Who takes the mark away meets the signed heads."""
    copy(directory, files(directory), dsn, QUIET)
    live(directory, dsn, again="later")
    with place(directory) as there:
        there.set_mark(None)

    with pytest.raises(OtherPast):
        live(directory, again="here")


class Killed(BaseException):
    """Nothing catches it: what runs ends here."""


def dying(monkeypatch: pytest.MonkeyPatch, kind: type[Any], method: str, after: int) -> None:
    """Have a place die at its next call after so many."""
    calls = iter(range(after))
    real = getattr(kind, method)

    def mortal(*given: Any) -> Any:
        if next(calls, None) is None:
            raise Killed(method)
        return real(*given)

    monkeypatch.setattr(kind, method, mortal)


@pytest.fixture
def unfinished(directory: DataDirectory, dsn: str) -> DataDirectory:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, PostgresPlace, "write", 7)
        with pytest.raises(Killed):
            copy(directory, files(directory), dsn, QUIET)
    return directory


def test_neither_end_of_an_unfinished_copy_is_served(unfinished: DataDirectory, dsn: str) -> None:
    with pytest.raises(StoreMoved, match=r"is being copied to postgresql://.* or give the copy up"):
        open_store(unfinished)
    with pytest.raises(StoreMoved, match="the database is an unfinished copy of sqlite:/"):
        open_store(unfinished, dsn)
    assert any("is an unfinished copy" in fault for fault in faults_of(unfinished, dsn))


def test_a_copy_that_was_given_up_leaves_the_source_to_be_served_and_is_never_finished(
    unfinished: DataDirectory, dsn: str
) -> None:
    give_up_copy(unfinished, files(unfinished))

    live(unfinished, again="after all")
    with pytest.raises(MoveRefused, match=r"holds another copy, of sqlite:/.*: nothing was changed"):
        copy(unfinished, files(unfinished), dsn, QUIET)
    with pytest.raises(StoreMoved, match="unfinished copy"):
        open_store(unfinished, dsn)
    live(unfinished, again="and again")


def test_what_is_not_being_copied_cannot_be_given_up(directory: DataDirectory, dsn: str) -> None:
    with pytest.raises(MoveRefused, match="is not being copied"):
        give_up_copy(directory, files(directory))
    copy(directory, files(directory), dsn, QUIET)
    with pytest.raises(MoveRefused, match="was moved to"):
        give_up_copy(directory, files(directory))


def test_a_copy_that_was_begun_to_one_place_is_not_begun_to_another(
    unfinished: DataDirectory, another_dsn: str
) -> None:
    with pytest.raises(MoveRefused, match="is being copied to"):
        copy(unfinished, files(unfinished), another_dsn, QUIET)


def test_a_finished_copy_is_left_alone_and_the_same_command_says_so(directory: DataDirectory, dsn: str) -> None:
    copy(directory, files(directory), dsn, QUIET)
    live(directory, dsn, again="later")
    before = rows_in(directory, dsn)

    again = copy(directory, files(directory), dsn, QUIET)

    assert again.before
    assert rows_in(directory, dsn) == before


def test_a_store_is_never_copied_over_another(directory: DataDirectory, dsn: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    initialise(other, names=(), tenant="acme")
    live(DataDirectory(other), dsn)
    before = rows_in(DataDirectory(other), dsn)

    with pytest.raises(MoveRefused, match="is not empty"):
        copy(directory, files(directory), dsn, QUIET)

    assert rows_in(DataDirectory(other), dsn) == before
    live(DataDirectory(other), dsn, again="later")
    live(directory, again="later")


def test_a_vault_of_another_master_key_is_not_written_to(directory: DataDirectory, dsn: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    initialise(other, names=(), tenant="acme")
    with closing(open_store(DataDirectory(other), dsn)):
        pass

    with pytest.raises(MasterKeyMismatch):
        copy(directory, files(directory), dsn, QUIET)

    live(directory, again="later")


def test_a_database_that_a_server_only_looked_at_is_empty(directory: DataDirectory, dsn: str) -> None:
    aside = directory.store.with_suffix(".aside")
    directory.store.rename(aside)
    with closing(open_store(directory, dsn)) as opened:
        opened.store.remember_ruleset(b"other", "another ruleset", 1)
    aside.rename(directory.store)
    before = rows_in(directory)

    copy(directory, files(directory), dsn, QUIET)

    assert rows_in(directory, dsn) == before


def test_what_is_served_is_neither_copied_nor_copied_to(directory: DataDirectory, dsn: str) -> None:
    with closing(open_store(directory)), pytest.raises(StoreInUse):
        copy(directory, files(directory), dsn, QUIET)
    with closing(PostgresStore(dsn)), pytest.raises(StoreInUse):
        copy(directory, files(directory), dsn, QUIET)

    live(directory, again="later")


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_server_on_another_lane_of_a_database_keeps_the_copy_away(
    directory: DataDirectory, dsn: str, another_dsn: str, which: str
) -> None:
    copy(directory, files(directory), dsn, QUIET)
    served = dsn if which == "source" else another_dsn

    with closing(PostgresStore(served, 3)), pytest.raises(StoreInUse, match="writer 3"):
        copy(directory, dsn, another_dsn, QUIET)

    live(directory, dsn, again="later")
    assert copy(directory, dsn, another_dsn, QUIET).rows["entries"] > 0


def test_an_old_copy_of_the_source_is_not_moved(directory: DataDirectory, dsn: str, tmp_path: Path) -> None:
    shutil.copy(directory.store, tmp_path / "old.db")
    live(directory, again="later")
    shutil.move(tmp_path / "old.db", directory.store)

    with pytest.raises(OtherPast):
        copy(directory, files(directory), dsn, QUIET)


def test_files_whose_records_are_no_good_are_not_moved(directory: DataDirectory, dsn: str) -> None:
    with closing(sqlite3.connect(directory.store, isolation_level=None)) as db:
        db.execute("UPDATE records SET fingerprint = NULL WHERE kind = 0 AND id = 'c1'")

    with pytest.raises(MoveRefused, match="1 records are of no kind, or are not what their kind is"):
        copy(directory, files(directory), dsn, QUIET)

    assert faults_of(directory)[0].startswith("1 records")


def test_a_row_that_a_database_cannot_hold_is_named(directory: DataDirectory, dsn: str) -> None:
    with closing(sqlite3.connect(directory.store, isolation_level=None)) as db:
        db.execute("INSERT INTO rulesets VALUES (x'00', 'a' || char(0), 1)")

    with pytest.raises(MoveRefused, match="a row of rulesets is not one a database can hold"):
        copy(directory, files(directory), dsn, QUIET)


def test_a_vault_that_is_gone_is_not_made_anew_beside_customers(directory: DataDirectory, dsn: str) -> None:
    copy(directory, files(directory), dsn, QUIET)
    directory.vault.unlink()

    with pytest.raises(VaultUnusable, match="is missing"):
        copy(directory, dsn, files(directory), QUIET)

    assert not directory.vault.exists()


def test_what_was_changed_in_the_copy_meanwhile_is_found_and_it_is_not_served(
    unfinished: DataDirectory, dsn: str
) -> None:
    ask(dsn, "UPDATE customers SET profile = profile || '\\x00'")

    with pytest.raises(CopyDiffers, match="customers: 2 in the source, 2 in the copy, not the same"):
        copy(unfinished, files(unfinished), dsn, QUIET)

    with pytest.raises(StoreMoved):
        open_store(unfinished, dsn)


# --- Keys, which a server that is just stopping may still change. ---


def at_the_last_row(happen: Callable[[], None]) -> Callable[[str, int, int], None]:
    """Return a progress at whose end, when every row was copied and compared, something happens once."""
    happened: list[None] = []

    def progress(what: str, done: int, whole: int) -> None:
        if what == "compared" and done == whole and not happened:
            happened.append(None)
            happen()

    return progress


@pytest.mark.parametrize("way", ["into a database", "into another", "into files"])
def test_a_key_that_is_destroyed_or_made_while_a_store_is_copied_is_so_in_the_copy(
    directory: DataDirectory, dsn: str, another_dsn: str, way: str
) -> None:
    """Of those who are erased, one was copied with their key and one was never heard of."""
    source, target = files(directory), dsn
    if way != "into a database":
        copy(directory, source, target, QUIET)
        for path in (directory.store, directory.vault):
            path.rename(path.with_suffix(".old"))
        source, target = dsn, another_dsn if way == "into another" else files(directory)
    there = target if target.startswith("postgresql") else ""
    master = master_keys(directory)
    late, late_and_lost = ("acme", "late"), ("acme", "late and lost")

    def stop_slowly() -> None:
        stopping: SqliteVault | PostgresVault
        if way == "into a database":
            stopping = SqliteVault(directory.vault, wrap=master.wrap, unwrap=master.unwrap)
        else:
            stopping = PostgresVault(dsn, wrap=master.wrap, unwrap=master.unwrap)
        with closing(stopping) as vault:
            vault.create({late: b"\1" * 32, late_and_lost: b"\2" * 32})
            vault.forget(late_and_lost)
            vault.forget(BO)

    copied = copy(directory, source, target, at_the_last_row(stop_slowly))

    assert not copied.before
    with closing(open_store(directory, there)) as opened:
        keys = opened.vault.keys([BO, LOST, late, late_and_lost])
        assert [keys[customer] for customer in (BO, LOST, late_and_lost)] == [NoKey.FORGOTTEN] * 3
        assert keys[late] == b"\1" * 32
    assert copied.rows["keys"] == len(rows_in(directory, there)["keys"]) == 5


def test_a_key_that_is_not_in_the_source_is_found_in_the_copy(unfinished: DataDirectory, dsn: str) -> None:
    ask(dsn, f"INSERT INTO {VAULT_SCHEMA}.keys VALUES ('acme', 'nobody', '\\x01')")

    with pytest.raises(CopyDiffers, match="keys: 3 in the source, 4 in the copy"):
        copy(unfinished, files(unfinished), dsn, QUIET)


# --- Killed on the way. ---


@pytest.mark.parametrize("back", [False, True], ids=["into a database", "into files"])
def test_a_copy_that_is_killed_at_any_call_goes_on_and_differs_in_nothing(
    directory: DataDirectory, dsn: str, monkeypatch: pytest.MonkeyPatch, *, back: bool
) -> None:
    """At every mark and every piece of rows: before it, and between it and what follows."""
    whence, whither = files(directory), dsn
    before = rows_in(with_everything(directory))
    if back:
        copy(directory, whence, whither, QUIET)
        whence, whither = whither, whence
        for path in (directory.store, directory.vault):
            path.unlink()
    here, there = (PostgresPlace, SQLitePlace) if back else (SQLitePlace, PostgresPlace)
    monkeypatch.setattr(copying, "ROWS", 2)
    steps = [(here, "set_mark", 0), (there, "begin", 0), (there, "write", 0)]
    runs = 0

    def run(*steps: tuple[type[Any], str, int]) -> str:
        nonlocal runs
        runs += 1
        with pytest.MonkeyPatch.context() as patch:
            for step in steps:
                dying(patch, *step)
            with pytest.raises(Killed) as killed:
                copy(directory, whence, whither, QUIET)
        return str(killed.value)

    for step in steps:
        assert run(step) == step[1]
    # One piece further each time, until the source is to be retired; and then until the target is to be released.
    while run((there, "write", 1), (here, "set_mark", 0)) != "set_mark":
        pass
    assert run((there, "change_keys", 0)) == "change_keys"
    assert run((there, "finish", 0)) == "finish"
    copied = copy(directory, whence, whither, QUIET)

    assert runs > 20
    assert sum(copied.rows.values()) == sum(map(len, before.values()))
    assert rows_in(directory, whither if whither == dsn else "") == before


def test_a_target_in_files_whose_making_was_killed_is_made(directory: DataDirectory, dsn: str) -> None:
    copy(directory, files(directory), dsn, QUIET)
    for step in ("create_store", "create_vault"):
        for path in (directory.store, directory.vault):
            path.unlink(missing_ok=True)

        def torn(path: Path, *_: Any, **__: Any) -> None:
            path.touch(mode=0o600)
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite_moves, step, torn)
            with pytest.raises(Killed):
                copy(directory, dsn, files(directory), QUIET)

    copy(directory, dsn, files(directory), QUIET)

    live(directory, again="here")
    assert faults_of(directory) == []
