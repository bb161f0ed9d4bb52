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
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from riskgate_server.datadir import create_empty_private
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.ports import (
    BatchWrite,
    CustomerRow,
    Locked,
    MessageRow,
    PurchaseRow,
    RequestRow,
    StoreBroken,
    StoreBusy,
    StoreFull,
    StoreInUse,
)
from riskgate_server.stores.leases import Leases
from riskgate_server.stores.moves import Mark, decode_mark
from riskgate_server.stores.refusals import SettingsRefused
from riskgate_server.stores.sqlite.connections import Readers, reading, writing
from riskgate_server.stores.sqlite.reads import (
    BATCH,
    CUSTOMER,
    ENTRY,
    MESSAGE,
    OF_CUSTOMER,
    OPEN_PURCHASES,
    PURCHASE,
    REQUEST,
    WRITER,
    SQLiteReads,
    SQLiteSnapshot,
    customer_row,
    purchase_row,
    request_row,
)
from riskgate_server.stores.sqlite.resync import write_log_again
from riskgate_server.stores.sqlite.schema import Kind, differences, migrate, refuse_newer

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
    """Keeps `engine.ports.Store` over one file. `synchronous` is for the test that shows why it must be FULL."""

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
        return _mark(self._db)

    @property
    def move(self) -> Mark | None:
        """The mark of the move it is an end of; None for none."""
        with self.snapshot() as snapshot:
            return _move(snapshot.connection)

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


class SQLiteSnapshots:
    """Reads a file that a live server may be writing; keeps `engine.ports.Snapshots`."""

    def __init__(self, path: Path) -> None:
        """
        Open the file for one snapshot at a time.

        Raises:
            SchemaTooNew: a newer program wrote it.
            ReadFailed: it cannot be read.
        """
        with reading():
            refuse_newer(path)
        self._readers = Readers(path, 1)

    def snapshot(self) -> SQLiteSnapshot:
        """A consistent view of everything committed so far."""
        return SQLiteSnapshot(self._readers)

    def schema_differences(self) -> tuple[list[str], list[str]]:
        """Return how the schema differs from a fresh one: what is missing or altered, and what was added."""
        with self.snapshot() as snapshot, reading():
            return differences(snapshot.connection)

    def misfiled(self) -> int:
        """Return how many records are of no kind, filed under another one, or have a value their kind has not."""
        with self.snapshot() as snapshot:
            return misfiled(snapshot.connection)

    @property
    def mark(self) -> int:
        """The mark the store was made with; 0 for none."""
        with self.snapshot() as snapshot, reading():
            return _mark(snapshot.connection)

    @property
    def move(self) -> Mark | None:
        """The mark of the move it is an end of; None for none."""
        with self.snapshot() as snapshot:
            return _move(snapshot.connection)

    def close(self) -> None:
        """Finish."""
        self._readers.close()


_PURCHASE: Final = "lapses_us IS NOT NULL AND owed_since IS NOT NULL"
_NO_PURCHASE: Final = "lapses_us IS NULL AND owed_since IS NULL"
_REQUEST: Final = "fingerprint IS NOT NULL AND sequence IS NOT NULL AND at_us IS NOT NULL"
_NO_REQUEST: Final = "fingerprint IS NULL AND sequence IS NULL AND at_us IS NULL"
_FILED: Final = (
    f"CASE kind WHEN {Kind.REQUEST:d} THEN {_NO_PURCHASE} AND {_REQUEST}"
    f" WHEN {Kind.PAYMENT:d} THEN {_NO_PURCHASE} AND {_NO_REQUEST}"
    f" WHEN {Kind.OPEN_PURCHASE:d} THEN {_PURCHASE} AND lapses_us > 0 AND {_NO_REQUEST}"
    f" WHEN {Kind.PURCHASE:d} THEN {_PURCHASE} AND lapses_us = 0 AND {_NO_REQUEST} ELSE FALSE END"
)
"""Which values a record of each kind has: a request that seemed to owe something would stop its customer's payments."""


def misfiled(db: sqlite3.Connection) -> int:
    """Return how many records are of no kind, filed under another one, or lack or have a value their kind has not."""
    with reading():
        (number,) = db.execute(f"SELECT count(*) FROM records WHERE NOT ({_FILED})").fetchone()
    return int(number)


def _move(db: sqlite3.Connection) -> Mark | None:
    with reading():
        row = db.execute("SELECT mark FROM moves").fetchone()
    return decode_mark(row[0]) if row else None


def _mark(db: sqlite3.Connection) -> int:
    (mark,) = db.execute("PRAGMA application_id").fetchone()
    return int(mark)


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


class SQLiteTransaction(SQLiteReads):
    """Keeps `engine.ports.Transaction` on the writing connection."""

    _errors = staticmethod(writing)

    def __init__(self, db: sqlite3.Connection, leases: Leases) -> None:
        super().__init__(db)
        self._leases = leases
        # Of which kind the purchases were that were asked for, so that a write need not look again.
        self._seen: dict[tuple[CustomerKey, str], Kind | None] = {}

    def lock(self, keys: Sequence[CustomerKey], wait: Collection[CustomerKey] = frozenset()) -> Locked:
        """Return the sequences of those of the customers that exist: the only writer has them all."""
        del wait
        rows = self._all(
            "SELECT tenant_id, customer_id, sequence FROM json_each(?) AS asked CROSS JOIN customers"
            " ON tenant_id = asked.value ->> 0 AND customer_id = asked.value ->> 1",
            (_as_json(keys),),
        )
        return Locked({(row[0], row[1]): row[2] for row in rows}, frozenset())

    def customers(self, keys: Sequence[CustomerKey]) -> Sequence[CustomerRow]:
        """Return the states of those of the customers that exist."""
        rows = self._all(
            f"SELECT {CUSTOMER} FROM json_each(?) AS asked CROSS JOIN customers"
            " ON tenant_id = asked.value ->> 0 AND customer_id = asked.value ->> 1",
            (_as_json(keys),),
        )
        return [customer_row(row) for row in rows]

    def requests(self, ids: Sequence[tuple[CustomerKey, str]]) -> Sequence[RequestRow]:
        """Return what those of the request ids that were used came to."""
        rows = self._all(
            f"SELECT {_of('r', REQUEST)} FROM {_ASKED} AND r.kind = {Kind.REQUEST:d} AND r.id = asked.value ->> 2",
            (_as_json([(*key, request_id) for key, request_id in ids]),),
        )
        return [request_row(row) for row in rows]

    def purchases(self, ids: Sequence[tuple[CustomerKey, str]]) -> Sequence[PurchaseRow]:
        """Return those of the purchases that exist."""
        rows = self._all(
            f"SELECT {_of('r', PURCHASE)} FROM {_ASKED}"
            f" AND r.kind IN ({Kind.OPEN_PURCHASE:d}, {Kind.PURCHASE:d}) AND r.id = asked.value ->> 2",
            (_as_json([(*key, transaction_id) for key, transaction_id in ids]),),
        )
        found = [purchase_row(row) for row in rows]
        self._seen = dict.fromkeys(ids)
        self._seen.update(
            ((row.key, row.transaction_id), Kind.OPEN_PURCHASE if row.lapses_us else Kind.PURCHASE) for row in found
        )
        return found

    def owed(self, key: CustomerKey) -> Sequence[PurchaseRow]:
        """Return the purchases that owe principal."""
        rows = self._all(
            f"SELECT {PURCHASE} FROM records WHERE {OF_CUSTOMER} AND owed_since > 0 ORDER BY owed_since, id", key
        )
        return [purchase_row(row) for row in rows]

    def next_lapse(self, key: CustomerKey, after_us: int) -> int:
        """Return the earliest lapse above `after_us`."""
        row = self._one(
            f"SELECT min(lapses_us) FROM records WHERE {OPEN_PURCHASES} AND lapses_us > ?", (*key, after_us)
        )
        return (row and row[0]) or 0

    def write(self, batch: BatchWrite) -> None:
        """Add or replace everything in `batch`."""
        with writing():
            self.insert(
                _INTO_CUSTOMERS, [(*r.key, r.sequence, r.next_lapse_us, r.state, r.profile) for r in batch.customers]
            )
            self._write_purchases(batch.purchases)
            self.insert(_INTO_PAYMENTS, [(*r.key, Kind.PAYMENT, r.payment_id, r.state) for r in batch.payments])
            self.insert(
                _INTO_REQUESTS,
                [
                    (*r.key, Kind.REQUEST, r.request_id, r.fingerprint, r.sequence, r.at_us, r.reply)
                    for r in batch.requests
                ],
            )
            self.insert(
                _INTO_ENTRIES,
                [
                    (
                        *e.key, e.sequence, e.position, e.batch, e.at_us, e.tag, e.request_id, e.clear, e.nonce,
                        e.sealed, e.hash,
                    )
                    for e in batch.entries
                ],
            )  # fmt: skip
            if (b := batch.batch) is not None:
                self.insert(_INTO_BATCHES, [(b.sequence, b.at_us, b.first_position, b.count, b.root, b.hash)])
            self.insert(_INTO_IDENTITIES, [(*r.key, r.state) for r in batch.identities])
            self.insert(_INTO_SCOPES, [(*r.scope, r.state) for r in batch.scopes])
            self.insert(_INTO_MESSAGES, [(*r.key, r.message_id, r.due_us, r.sealed) for r in batch.messages])
            self._leases.begin(batch.messages)
            self._leases.end(batch.settled)
            for key, message_id in batch.settled:
                self._db.execute(f"DELETE FROM messages WHERE {OF_CUSTOMER} AND message_id = ?", (*key, message_id))

    def _write_purchases(self, rows: Sequence[PurchaseRow]) -> None:
        """Add or replace purchases. One whose hold opened or ended moves to the other kind."""
        moved = []
        values = []
        for r in rows:
            kind, other = _KIND_AND_OTHER[r.lapses_us > 0]
            if self._seen.get((r.key, r.transaction_id), other) == other:
                moved.append((*r.key, other, r.transaction_id))
            values.append((*r.key, kind, r.transaction_id, r.lapses_us, r.owed_since, r.state))
        if moved:
            self._db.execute(
                "DELETE FROM records WHERE (tenant_id, customer_id, kind, id) IN"
                " (SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?))",
                (_as_json(moved),),
            )
        self.insert(_INTO_PURCHASES, values)
        self._seen.clear()

    def change(self, statement: str, given: tuple[Any, ...] = ()) -> int:
        """Run a statement of the store's own, and return how many rows it changed."""
        with writing():
            return self._db.execute(statement, given).rowcount

    def insert(self, into: Insert, rows: Sequence[tuple[Any, ...]]) -> None:
        """
        Insert rows by as few statements as possible.

        Python lets go of its lock around every statement, and taking it back from a busy event loop costs
        more than the insert: so many rows go in one statement, of few sizes (`_rows_in`), for each is prepared once.
        """
        done = 0
        while done < len(rows):
            size = _rows_in(len(rows) - done)
            chunk = rows[done : done + size]
            self._db.execute(into.statement(size), [value for row in chunk for value in row])
            done += size


_ROWS_MAX: Final = 512


def _rows_in(left: int) -> int:
    """Return how many of the rows that are left go into one statement: all but a rest below 64, below 8, or nothing."""
    for step in (64, 8):
        if left >= step:
            return min(_ROWS_MAX, left // step * step)
    return left


class Insert:
    """An INSERT of any number of rows."""

    def __init__(self, table: str, columns: str, on_conflict: str = "") -> None:
        self._head = f"INSERT INTO {table} ({columns}) VALUES "
        self._row = "(" + ", ".join("?" * len(columns.split(","))) + ")"
        self._tail = on_conflict
        self._statements: dict[int, str] = {}

    def statement(self, rows: int) -> str:
        """Return the statement for `rows` rows."""
        found = self._statements.get(rows)
        if found is None:
            found = self._statements[rows] = self._head + ", ".join([self._row] * rows) + self._tail
        return found


_INTO_CUSTOMERS: Final = Insert(
    "customers",
    CUSTOMER,
    " ON CONFLICT (tenant_id, customer_id) DO UPDATE SET sequence = excluded.sequence,"
    " next_lapse_us = excluded.next_lapse_us, state = excluded.state, profile = excluded.profile",
)
_KIND_AND_OTHER: Final = {
    True: (Kind.OPEN_PURCHASE, Kind.PURCHASE),
    False: (Kind.PURCHASE, Kind.OPEN_PURCHASE),
}
"""By whether a hold is open."""
_INTO_PURCHASES: Final = Insert(
    "records",
    "tenant_id, customer_id, kind, id, lapses_us, owed_since, state",
    " ON CONFLICT (tenant_id, customer_id, kind, id) DO UPDATE SET"
    " lapses_us = excluded.lapses_us, owed_since = excluded.owed_since, state = excluded.state",
)
_INTO_PAYMENTS: Final = Insert(
    "records",
    "tenant_id, customer_id, kind, id, state",
    " ON CONFLICT (tenant_id, customer_id, kind, id) DO UPDATE SET state = excluded.state",
)
_INTO_REQUESTS: Final = Insert("records", "tenant_id, customer_id, kind, id, fingerprint, sequence, at_us, state")
_INTO_ENTRIES: Final = Insert("entries", ENTRY)
_INTO_BATCHES: Final = Insert("batches", BATCH)
_INTO_IDENTITIES: Final = Insert(
    "identities",
    "tenant_id, customer_id, state",
    " ON CONFLICT (tenant_id, customer_id) DO UPDATE SET state = excluded.state",
)
_INTO_SCOPES: Final = Insert(
    "scopes",
    "tenant_id, kind, id, state",
    " ON CONFLICT (tenant_id, kind, id) DO UPDATE SET state = excluded.state",
)
_INTO_MESSAGES: Final = Insert(
    "messages",
    MESSAGE,
    " ON CONFLICT (tenant_id, customer_id, message_id) DO UPDATE SET"
    " due_us = excluded.due_us, sealed = excluded.sealed",
)


_ASKED: Final = (
    "json_each(?) AS asked CROSS JOIN records AS r"
    " ON r.tenant_id = asked.value ->> 0 AND r.customer_id = asked.value ->> 1"
)


def _of(table: str, columns: str) -> str:
    """Name the table of each column, where another has columns of the same name."""
    return ", ".join(f"{table}.{column}" for column in columns.split(", "))


def _as_json(rows: Sequence[tuple[str | int, ...]]) -> str:
    return msgspec.json.encode(rows).decode()
