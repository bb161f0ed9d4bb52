"""
The SQLite store: one file, one connection that writes and checkpoints, a fixed number that read.

`synchronous=FULL` in WAL mode makes a commit durable before it returns. Exactly one connection
writes and checkpoints, because SQLite 3.7.0 to 3.51.2 can lose a commit when two connections reset
the WAL at once (fixed in 3.51.3); readers are opened read-only and never checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from riskgate_server.datadir import create_empty_private
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import StoreBroken, StoreBusy, StoreFull, StoreInUse
from riskgate_server.engine.rows import MessageRow
from riskgate_server.stores.leases import Leases
from riskgate_server.stores.moves import Mark
from riskgate_server.stores.refusals import SettingsRefused
from riskgate_server.stores.sqlite.connections import Readers, writing
from riskgate_server.stores.sqlite.reads import WRITER, SQLiteSnapshot
from riskgate_server.stores.sqlite.resync import write_log_again
from riskgate_server.stores.sqlite.schema import migrate, refuse_newer
from riskgate_server.stores.sqlite.snapshots import mark_of, move_of
from riskgate_server.stores.sqlite.transaction import SQLiteTransaction

log = structlog.get_logger()

CHECKPOINT_PAGES: Final = 16_000
"""
Pages of WAL after which a commit also checkpoints, 64 MiB at the default page size.

The more commits share a checkpoint, the fewer pages are copied twice: against 4,000 pages it took 15 % off the
processor time of a decision; 64,000 took no more.
"""

LOG_KEPT_BYTES: Final = 64 * 1024 * 1024
"""What stays of the write-ahead log when it is begun anew: writing over it costs less than making it grow again."""

LOG_BYTES_MAX: Final = 2 * LOG_KEPT_BYTES
"""
Size of the write-ahead log at which the writer begins it anew by itself.

SQLite does so only in a moment when nobody reads, and readers who always overlap leave none: the log grew without
end. So those who come are kept waiting while those who read finish.
"""

STILL_SECONDS_MAX: Final = 0.5
"""How long a commit waits for those who read, then."""

LOG_AGAIN_SECONDS: Final = 5.0
"""When that is tried again; a program outside, verifying the store, cannot be kept waiting."""

CACHE_KIB: Final = 256 * 1024
"""Page cache of the writing connection: at most 256 MiB, taken as pages are used."""

READERS: Final = 6
"""Connections that read at once, unless whoever opens the store asks for another number."""


def create_store(path: Path, *, mark: int) -> None:
    """Make an empty store. `mark`, 31 bits, is on it and on the vault it belongs to."""
    create_empty_private(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db, writing():
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"application_id={mark}"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        migrate(db)


class SQLiteStore:
    """Keeps `engine.storing.Store` over one file. `synchronous` is for the test that shows why it must be FULL."""

    shared: Final = False
    writer: Final = WRITER

    def __init__(self, path: Path, *, synchronous: str = "FULL", readers: int = READERS) -> None:
        """
        Open the file, with `readers` connections that read.

        Raises:
            StoreInUse: another process serves it.
            SchemaTooNew: a newer program wrote it.
            SettingsRefused: SQLite does not take a setting that durability needs.
            StoreBroken: it cannot be read or written.
        """
        self._leases = Leases()
        self._log = f"{path}-wal"
        self._log_again_at = 0.0
        with ExitStack() as undoing:
            undoing.callback(_lock(path).close)
            with writing():
                refuse_newer(path)
                write_log_again(path)
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
                undoing.callback(self._db.close)
                self._set_up(synchronous)
                self._readers = Readers(path, readers)
                # First of all, so that the writer's close makes the last checkpoint.
                undoing.callback(self._readers.close)
            self._closing = undoing.pop_all()

    def _set_up(self, synchronous: str) -> None:
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
            f"cache_size=-{CACHE_KIB}",
            f"journal_size_limit={LOG_KEPT_BYTES}",
            "temp_store=MEMORY",
        ):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        migrate(self._db)
        self._probe(synchronous)

    def _probe(self, synchronous: str) -> None:
        """Refuse to start unless the settings are in force; a pragma that does not take is silent."""
        found = {name: self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
        wanted = {"journal_mode": "wal", "synchronous": {"FULL": 2, "NORMAL": 1}[synchronous]}
        if found != wanted:
            message = f"SQLite {sqlite3.sqlite_version} runs with {found}, not {wanted}"
            raise SettingsRefused(message)

    @property
    def mark(self) -> int:
        """The mark it was made with; 0 for none."""
        return mark_of(self._db)

    @property
    def move(self) -> Mark | None:
        """The mark of the move it is an end of; None for none."""
        with self.snapshot() as snapshot:
            return move_of(snapshot.connection)

    @contextmanager
    def transaction(self) -> Iterator[SQLiteTransaction]:
        """One atomic unit of work, durable when it ends without an exception."""
        db = self._db
        with writing():
            db.execute("BEGIN IMMEDIATE")
        try:
            yield SQLiteTransaction(db, self._leases)
            with writing():
                db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                _roll_back(db)
            raise
        self._bound_log()

    def _bound_log(self) -> None:
        """Begin the log anew when it is too long. What was committed stands, whatever comes of it."""
        try:
            size = os.stat(self._log).st_size  # noqa: PTH116  at every commit; a Path costs more than the call
        except FileNotFoundError:
            return
        now = time.monotonic()
        if size <= LOG_BYTES_MAX or now < self._log_again_at:
            return
        busy = True
        with self._readers.stillness(STILL_SECONDS_MAX) as still:
            if still:
                busy = self._begin_log_anew()
        if busy:
            self._log_again_at = now + LOG_AGAIN_SECONDS
            log.warning("log stays long", bytes=size)

    def _begin_log_anew(self) -> bool:
        """Bring everything into the main file and cut the log; True if something was in the way."""
        (patience_ms,) = self._db.execute("PRAGMA busy_timeout").fetchone()
        self._db.execute("PRAGMA busy_timeout = 0").fetchall()
        try:
            with writing():
                busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except (StoreBusy, StoreFull):
            return True
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {patience_ms}").fetchall()
        return bool(busy)

    def snapshot(self) -> SQLiteSnapshot:
        """A consistent view, on a read-only connection of its own."""
        return SQLiteSnapshot(self._readers)

    def lease(self, _job: str) -> bool:
        """The only process does every job."""
        # Raises when the store is closed.
        self._db.execute("SELECT 1")
        return True

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        """Return customers with a hold that lapsed, earliest first."""
        with self.snapshot() as snapshot:
            return snapshot.customers_due(now_us, limit)

    def lease_messages(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """Take due messages that nobody has. Only this process writes, so it need not write down what it has."""
        with self.snapshot() as snapshot:
            return self._leases.take(snapshot.messages_due(now_us, limit + len(self._leases)), limit)

    def forget_replies(self, before_us: int, limit: int) -> int:
        """Empty the replies of old requests. Runs on the writing connection: call it from the writer's thread."""
        with writing():
            return self._db.execute(
                "UPDATE records SET state = x'' WHERE (tenant_id, customer_id, kind, id) IN ("
                "SELECT tenant_id, customer_id, kind, id FROM records"
                " WHERE kind = 0 AND state != x'' AND at_us < ? ORDER BY at_us LIMIT ?)",
                (before_us, limit),
            ).rowcount  # fmt: skip

    def remember_ruleset(self, ruleset_hash: bytes, source: str, at_us: int) -> None:
        """Keep the source text of a ruleset."""
        with writing():
            self._db.execute("INSERT OR IGNORE INTO rulesets VALUES (?, ?, ?)", (ruleset_hash, source, at_us))

    def close(self) -> None:
        """Finish."""
        self._closing.close()


def _lock(path: Path) -> Any:
    """Take the file for this process; the kernel lets go when the process ends, however it ends."""
    name = path.with_suffix(path.suffix + ".lock")
    create_empty_private(name)
    lock_file = name.open("a+")
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock_file.seek(0)
        holder = lock_file.read().strip() or "another process"
        lock_file.close()
        message = f"{path} is served by {holder}; one file takes one server"
        raise StoreInUse(message) from None
    lock_file.truncate(0)
    lock_file.write(f"process {os.getpid()}")
    lock_file.flush()
    return lock_file


def _roll_back(db: sqlite3.Connection) -> None:
    """Undo. Where even that fails, nobody knows what is on the disk."""
    try:
        db.execute("ROLLBACK")
    except (sqlite3.Error, MemoryError) as error:
        raise StoreBroken(str(error)) from error
