"""What only a file can do wrong, brought about by real means: a full file, a damaged one, a second server."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from riskgate_server.engine.failures import ReadFailed, StoreBroken, StoreBusy, StoreFull, StoreInUse
from riskgate_server.engine.replies import DecisionReply, Failed
from riskgate_server.engine.rows import PaymentRow, PurchaseRow, RequestRow
from riskgate_server.stores.refusals import SchemaTooNew, SettingsRefused
from riskgate_server.stores.sqlite import connections
from riskgate_server.stores.sqlite import store as store_module
from riskgate_server.stores.sqlite.schema import SCHEMA_VERSION, migrate
from riskgate_server.stores.sqlite.store import SQLiteStore
from tests.contract.rows import ADA, BO, batch, commit, customer, entry, purchase
from tests.factories import check, make_customer, make_pipeline


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "riskgate.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path)
    yield store
    store.close()


def counted(store: SQLiteStore) -> int:
    with store.snapshot() as snapshot:
        return snapshot.counts()["customers"]


# --- Opening. ---


def test_a_second_server_on_the_same_file_is_refused_by_name(store: SQLiteStore, path: Path) -> None:
    with pytest.raises(StoreInUse, match=rf"riskgate\.db is served by process {os.getpid()}; one file takes one"):
        SQLiteStore(path)


def test_a_second_process_is_refused_and_changes_nothing(store: SQLiteStore, path: Path) -> None:
    commit(store, customer())
    script = (
        "import sys; from pathlib import Path; from riskgate_server.stores.sqlite.store import SQLiteStore;"
        "SQLiteStore(Path(sys.argv[1]))"
    )

    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert f"is served by process {os.getpid()}" in done.stderr
    commit(store, customer(BO))


def test_the_file_is_free_again_when_its_server_closes(store: SQLiteStore, path: Path) -> None:
    store.close()

    SQLiteStore(path).close()


def test_the_file_is_free_again_when_its_server_is_killed(path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from riskgate_server.stores.sqlite.store import SQLiteStore;"
        "SQLiteStore(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)

    SQLiteStore(path).close()


def test_a_failed_opening_leaves_the_file_free(path: Path) -> None:
    path.write_bytes(b"this is no database, and has never been one" * 100)
    with pytest.raises(StoreBroken):
        SQLiteStore(path)
    path.unlink()

    SQLiteStore(path).close()


def test_a_newer_schema_is_refused_and_the_file_left_as_it_is(store: SQLiteStore, path: Path) -> None:
    store._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    store.close()
    before = path.read_bytes()

    with pytest.raises(SchemaTooNew, match=f"schema {SCHEMA_VERSION + 1}; this program knows {SCHEMA_VERSION}"):
        SQLiteStore(path)

    assert path.read_bytes() == before


def test_a_newer_schema_is_left_as_it_is_even_after_a_crash(store: SQLiteStore, path: Path, tmp_path: Path) -> None:
    """What a newer program had not yet brought from its log into the file is not ours to bring there."""
    store._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    crashed = tmp_path / "crashed.db"
    for suffix in ("", "-wal"):
        Path(f"{crashed}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    before = crashed.read_bytes(), Path(f"{crashed}-wal").read_bytes()

    with pytest.raises(SchemaTooNew):
        SQLiteStore(crashed)

    assert (crashed.read_bytes(), Path(f"{crashed}-wal").read_bytes()) == before


def test_the_settings_that_durability_needs_are_in_force(store: SQLiteStore) -> None:
    found = {
        name: store._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "wal_autocheckpoint")
    }

    assert found == {"journal_mode": "wal", "synchronous": 2, "wal_autocheckpoint": 16_000}


def test_where_the_settings_do_not_take_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database in memory cannot have a write-ahead log, and SQLite says so by silence only."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SettingsRefused, match="'journal_mode': 'memory'"):
        SQLiteStore(Path(":memory:"))


def test_those_who_read_cannot_write_nor_move_the_log(store: SQLiteStore) -> None:
    commit(store, customer())
    with store.snapshot() as snapshot:
        reader = snapshot._db
        assert reader.execute("PRAGMA wal_autocheckpoint").fetchone()[0] == 0
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM customers")


def test_snapshots_share_connections_when_they_can(store: SQLiteStore) -> None:
    for _ in range(3):
        with store.snapshot() as snapshot:
            first = snapshot._db
    with store.snapshot() as snapshot:
        assert snapshot._db is first


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open nothing more, as when callers have taken every descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_store_reads_and_writes_on_when_the_process_may_open_nothing_more(path: Path) -> None:
    store = SQLiteStore(path, readers=3)
    with no_more_files(), ExitStack() as lent:
        snapshots = [lent.enter_context(store.snapshot()) for _ in range(3)]
        commit(store, customer(), purchase(), entry(), batch())

        assert [snapshot.counts()["customers"] for snapshot in snapshots] == [0, 0, 0]
    assert counted(store) == 1
    store.close()


def test_who_reads_waits_for_a_connection_and_not_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLiteStore(path, readers=1)
    with ThreadPoolExecutor(1) as other:
        with store.snapshot():
            waiting = other.submit(counted, store)
            monkeypatch.setattr(connections, "LEND_SECONDS_MAX", 0.0)
            with pytest.raises(ReadFailed):
                counted(store)
        assert waiting.result(10) == 0
    store.close()


# --- The log. ---

KIB = 1024


def log_sizes(store: SQLiteStore, path: Path, commits: int) -> list[int]:
    """Commit twenty kilobytes again and again; return how long the log was after each."""
    sizes = []
    for number in range(commits):
        commit(store, customer(("acme", f"c{number}"), state=bytes(20 * KIB)))
        sizes.append(Path(f"{path}-wal").stat().st_size)
    return sizes


@pytest.fixture
def short_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(store_module, "LOG_KEPT_BYTES", 200 * KIB)
    monkeypatch.setattr(store_module, "LOG_BYTES_MAX", 1_000 * KIB)


@pytest.mark.usefixtures("short_log")
def test_the_log_has_a_bound_beside_steady_readers(path: Path) -> None:
    """They overlap, so that there is never a moment when nobody reads."""
    store = SQLiteStore(path, readers=5)
    over = threading.Event()

    def read() -> int:
        done = 0
        while not over.is_set():
            with store.snapshot() as snapshot:
                for _ in range(20):
                    snapshot.customers(after=("", ""), limit=100)
                    done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        sizes = log_sizes(store, path, 100)
        over.set()

    assert all(reader.result() for reader in readers)
    assert max(sizes) < 1_100 * KIB
    assert counted(store) == 100
    store.close()


@pytest.mark.usefixtures("short_log")
def test_a_reader_who_does_not_finish_holds_up_one_commit_and_not_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it an error: the log is long, and what was committed is committed."""
    tries: list[float] = []
    stillness = connections.Readers.stillness

    def counting(self: connections.Readers, seconds: float) -> Any:
        tries.append(seconds)
        return stillness(self, 0.0)

    monkeypatch.setattr(connections.Readers, "stillness", counting)
    store = SQLiteStore(path, readers=2)
    with store.snapshot() as held:
        sizes = log_sizes(store, path, 100)
        assert held.counts()["customers"] == 0

    assert max(sizes) > 1_500 * KIB
    assert tries == [store_module.STILL_SECONDS_MAX]
    assert counted(store) == 100
    store.close()


@pytest.mark.usefixtures("short_log")
def test_a_program_outside_that_reads_does_not_hold_up_commits(path: Path) -> None:
    store = SQLiteStore(path)
    outside = sqlite3.connect(path, isolation_level=None)
    outside.execute("BEGIN")
    outside.execute("SELECT count(*) FROM customers").fetchone()

    began = time.monotonic()
    log_sizes(store, path, 100)
    seconds = time.monotonic() - began
    outside.execute("ROLLBACK")

    # SQLite's own patience is five seconds.
    assert seconds < 4
    assert counted(store) == 100
    outside.close()
    store.close()


# --- No room. ---


def fill(store: SQLiteStore) -> int:
    """Let the file grow no more, and write until it is full; return how many commits it took."""
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + 20}")
    written = 0
    while True:
        try:
            commit(store, customer(("acme", f"c{written}"), state=bytes(5_000)))
        except StoreFull:
            return written
        written += 1


def test_a_full_file_is_said_to_be_full_and_nothing_of_that_commit_stands(store: SQLiteStore) -> None:
    written = fill(store)

    assert 0 < counted(store) == written
    assert store._db.in_transaction is False


def test_a_store_that_has_room_again_goes_on(store: SQLiteStore) -> None:
    written = fill(store)
    store._db.execute("PRAGMA max_page_count = 1000000")

    commit(store, customer(BO), purchase(), entry(), batch())

    assert counted(store) == written + 1


def test_the_engine_answers_a_full_store_and_goes_on_when_there_is_room(store: SQLiteStore) -> None:
    pipeline = make_pipeline(store)
    make_customer(pipeline)
    fill(store)

    full = pipeline.run([check(f"t{n}") for n in range(40)])
    store._db.execute("PRAGMA max_page_count = 1000000")
    again = pipeline.run([check(f"t{n}") for n in range(40)])

    assert {reply.reason for reply in full if isinstance(reply, Failed)} == {"STORE_FULL"}
    assert all(isinstance(reply, DecisionReply) for reply in again)


# --- A broken disk. ---


def test_a_file_that_cannot_grow_breaks_the_store(path: Path) -> None:
    """By the process's own limit, in a process of its own: the commit may or may not have happened."""
    script = """
import resource, sys
from pathlib import Path
from riskgate_server.engine.failures import StoreBroken
from riskgate_server.stores.sqlite.store import SQLiteStore
from tests.contract.rows import commit, customer
store = SQLiteStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for number in range(1_000):
        commit(store, customer(("acme", f"c{number}"), state=bytes(5_000)))
except StoreBroken as error:
    print("broken", type(error.__cause__).__name__, number)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )

    word, cause, number = done.stdout.split()
    assert (word, cause) == ("broken", "OperationalError")
    store = SQLiteStore(path)
    assert counted(store) in (int(number), int(number) + 1)
    store.close()


def damaged(store: SQLiteStore, path: Path) -> SQLiteStore:
    """The same store, with everything but the first page overwritten."""
    commit(store, *(customer(("acme", f"c{n}"), state=bytes(2_000)) for n in range(100)))
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    return SQLiteStore(path)


@pytest.mark.parametrize(("where", "error"), [("transaction", StoreBroken), ("snapshot", ReadFailed)])
def test_a_damaged_file_breaks_who_writes_and_fails_who_reads(
    store: SQLiteStore, path: Path, where: str, error: type[Exception]
) -> None:
    hurt = damaged(store, path)

    with pytest.raises(error) as broken, getattr(hurt, where)() as reads:
        reads.customer(ADA)

    assert isinstance(broken.value.__cause__, sqlite3.DatabaseError)
    hurt.close()


def test_a_damaged_file_fails_the_search_for_lapsed_holds_too(store: SQLiteStore, path: Path) -> None:
    hurt = damaged(store, path)

    with pytest.raises(ReadFailed):
        hurt.customers_due(1, 1)

    hurt.close()


class Failing:
    """A connection on which some statements fail as on a broken disk."""

    def __init__(self, inner: sqlite3.Connection, *statements: str) -> None:
        self._inner = inner
        self._statements = statements

    def execute(self, sql: str, *parameters: Any) -> Any:
        if sql in self._statements:
            error = sqlite3.OperationalError(f"disk I/O error at {sql}")
            error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise error
        return self._inner.execute(sql, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize("statements", [("COMMIT",), ("COMMIT", "ROLLBACK"), ("ROLLBACK",), ("BEGIN IMMEDIATE",)])
def test_a_disk_that_fails_at_any_end_of_a_transaction_breaks_the_store(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, statements: tuple[str, ...]
) -> None:
    """Also when undoing fails after something else did: then nobody knows what is on the disk."""
    monkeypatch.setattr(store, "_db", Failing(store._db, *statements))

    def work() -> None:
        with store.transaction() as tx:
            tx.customer(ADA)
            if statements == ("ROLLBACK",):
                raise ValueError

    with pytest.raises(StoreBroken):
        work()


def test_a_store_that_another_program_locks_is_busy_and_nothing_happened(store: SQLiteStore, path: Path) -> None:
    """Say, somebody's shell: not a fault of the command, which must not be quarantined for it."""
    pipeline = make_pipeline(store)
    make_customer(pipeline)
    store._db.execute("PRAGMA busy_timeout = 0")
    shell = sqlite3.connect(path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreBusy):
        commit(store, customer(BO))
    (busy,) = pipeline.run([check("t1")])
    shell.execute("ROLLBACK")
    (done,) = pipeline.run([check("t1")])

    assert isinstance(busy, Failed)
    assert (busy.family, busy.reason) == ("Conflict", "WRITE_CONFLICT")
    assert isinstance(done, DecisionReply)
    shell.close()


def test_a_file_of_the_first_schema_is_brought_up_to_this_one_with_all_it_holds(path: Path) -> None:
    """An open hold, one that is owed, a request with its reply and one without: each where it is looked for now."""
    old = sqlite3.connect(path, isolation_level=None)
    old.execute("PRAGMA journal_mode=WAL")
    migrate(old, upto=1)
    who = "'acme', 'ada'"
    old.execute(f"INSERT INTO purchases VALUES ({who}, 'open', 7, 0, x'01'), ({who}, 'owed', 0, 3, x'02')")
    old.execute(f"INSERT INTO payments VALUES ({who}, 'p1', x'03')")
    old.execute(f"INSERT INTO requests VALUES ({who}, 'r1', x'aa', 1, 10, x'bb'), ({who}, 'r2', x'ab', 2, 11, x'')")
    old.close()

    store = SQLiteStore(path)

    open_one, owed = PurchaseRow(ADA, "open", 7, 0, b"\1"), PurchaseRow(ADA, "owed", 0, 3, b"\2")
    replied, done = RequestRow(ADA, "r1", b"\xaa", 1, 10, b"\xbb"), RequestRow(ADA, "r2", b"\xab", 2, 11, b"")
    with store.transaction() as tx:
        assert tx.found([], [(ADA, "open"), (ADA, "owed")])[1] == [open_one, owed]
        assert tx.lapsed(ADA, 7) == [open_one]
        assert tx.owed(ADA) == [owed]
        assert tx.payment(ADA, "p1") == PaymentRow(ADA, "p1", b"\3")
        assert tx.found([(ADA, "r1"), (ADA, "r2")], [])[0] == [replied, done]
    assert store.forget_replies(before_us=99, limit=9) == 1
    assert store._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    store.close()
