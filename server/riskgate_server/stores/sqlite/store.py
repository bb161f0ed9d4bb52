"""
The SQLite store: one file, one connection that writes and checkpoints, any number that read.

`synchronous=FULL` in WAL mode makes a commit durable before it returns. Exactly one connection
writes and checkpoints, because SQLite 3.7.0 to 3.51.2 can lose a commit when two connections reset
the WAL at once (fixed in 3.51.3); readers are opened read-only and never checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.ports import (
    BatchRow,
    BatchWrite,
    CustomerRow,
    EntryRow,
    PaymentRow,
    PurchaseRow,
    RequestRow,
    StoreBroken,
    StoreBusy,
    StoreFull,
    StoreInUse,
)
from riskgate_server.stores.sqlite.resync import write_log_again
from riskgate_server.stores.sqlite.schema import Kind, migrate, refuse_newer

CHECKPOINT_PAGES: Final = 16_000
"""
Pages of WAL after which a commit also checkpoints, 64 MiB at the default page size.

The more commits share a checkpoint, the fewer pages are copied twice: against 4,000 pages it took 15 % off the
processor time of a decision; 64,000 took no more.
"""

CACHE_KIB: Final = 64 * 1024
"""Page cache of the writing connection."""

_OTHERS_IN_THE_WAY: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")
_FAULTS_OF_THE_DISK: Final = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN", "SQLITE_READONLY")


class SettingsRefused(Exception):
    """SQLite does not run with the settings that durability needs."""


class SQLiteStore:
    """Keeps `engine.ports.Store` over one file. `synchronous` is for the test that shows why it must be FULL."""

    def __init__(self, path: Path, *, synchronous: str = "FULL") -> None:
        self._path = path
        self._lock_file = _lock(path)
        self._readers = _Readers(path)
        try:
            with _translated():
                refuse_newer(path)
                write_log_again(path)
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
        except BaseException:
            self._lock_file.close()
            raise
        try:
            with _translated():
                self._set_up(synchronous)
        except BaseException:
            self._db.close()
            self._lock_file.close()
            raise

    def _set_up(self, synchronous: str) -> None:
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
            f"cache_size=-{CACHE_KIB}",
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

    @contextmanager
    def transaction(self) -> Iterator[SQLiteTransaction]:
        """One atomic unit of work, durable when it ends without an exception."""
        db = self._db
        with _translated():
            db.execute("BEGIN IMMEDIATE")
        try:
            yield SQLiteTransaction(db)
            with _translated():
                db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                _roll_back(db)
            raise

    def snapshot(self) -> SQLiteSnapshot:
        """A consistent view, on a read-only connection of its own."""
        return SQLiteSnapshot(self._readers)

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        """Return customers with a hold that lapsed, earliest first."""
        with self.snapshot() as snapshot:
            return snapshot.customers_due(now_us, limit)

    def forget_replies(self, before_us: int, limit: int) -> int:
        """Empty the replies of old requests. Runs on the writing connection: call it from the writer's thread."""
        with _translated():
            return self._db.execute(
                "UPDATE records SET state = x'' WHERE (tenant_id, customer_id, kind, id) IN ("
                "SELECT tenant_id, customer_id, kind, id FROM records"
                " WHERE kind = 0 AND state != x'' AND at_us < ? ORDER BY at_us LIMIT ?)",
                (before_us, limit),
            ).rowcount  # fmt: skip

    def remember_ruleset(self, ruleset_hash: bytes, source: str, at_us: int) -> None:
        """Keep the source text of a ruleset."""
        with _translated():
            self._db.execute("INSERT OR IGNORE INTO rulesets VALUES (?, ?, ?)", (ruleset_hash, source, at_us))

    def close(self) -> None:
        """Finish: readers first, so that the writer's close makes the last checkpoint."""
        self._readers.close()
        self._db.close()
        self._lock_file.close()


class SQLiteSnapshots:
    """Reads a file that a live server may be writing; keeps `engine.ports.Snapshots`."""

    def __init__(self, path: Path) -> None:
        self._readers = _Readers(path)

    def snapshot(self) -> SQLiteSnapshot:
        """A consistent view of everything committed so far."""
        return SQLiteSnapshot(self._readers)

    def close(self) -> None:
        """Finish."""
        self._readers.close()


class _Readers:
    """Connections for reading: as many as there are snapshots open at once. Safe from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    def lend(self) -> sqlite3.Connection:
        if self._closed:
            message = "the store is closed"
            raise RuntimeError(message)
        try:
            return self._idle.pop()
        except IndexError:
            return _connect_to_read(self._path)

    def take_back(self, reader: sqlite3.Connection) -> None:
        if self._closed:
            reader.close()
        else:
            self._idle.append(reader)

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _connect_to_read(path: Path) -> sqlite3.Connection:
    reader = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )
    # A reader must never move the WAL: it is the writer's alone.
    reader.execute("PRAGMA wal_autocheckpoint=0").fetchall()
    reader.execute("PRAGMA query_only=ON").fetchall()
    return reader


def _lock(path: Path) -> Any:
    """Take the file for this process; the kernel lets go when the process ends, however it ends."""
    lock_file = path.with_suffix(path.suffix + ".lock").open("a+")
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
    except sqlite3.Error as error:
        raise StoreBroken(str(error)) from error


@contextmanager
def _translated() -> Iterator[None]:
    """Say SQLite's errors in the port's words; the original stays as the cause."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_FULL"):
            raise StoreFull(str(error)) from error
        if name.startswith(_OTHERS_IN_THE_WAY):
            raise StoreBusy(str(error)) from error
        if name.startswith(_FAULTS_OF_THE_DISK):
            raise StoreBroken(str(error)) from error
        raise


_CUSTOMER = "tenant_id, customer_id, sequence, next_lapse_us, state, profile"
_PURCHASE = "tenant_id, customer_id, id, lapses_us, owed_since, state"
_REQUEST = "tenant_id, customer_id, id, fingerprint, sequence, at_us, state"
_OF_CUSTOMER = "tenant_id = ? AND customer_id = ?"
_PURCHASES = f"{_OF_CUSTOMER} AND kind IN ({Kind.OPEN_PURCHASE:d}, {Kind.PURCHASE:d})"
_OPEN_PURCHASES = f"{_OF_CUSTOMER} AND kind = {Kind.OPEN_PURCHASE:d}"
_PAYMENTS = f"{_OF_CUSTOMER} AND kind = {Kind.PAYMENT:d}"
_BATCH = "sequence, at_us, first_position, count, root, hash"
_ENTRY = "tenant_id, customer_id, sequence, position, batch, at_us, tag, request_id, clear, nonce, sealed, hash"


def _customer(row: tuple[Any, ...]) -> CustomerRow:
    return CustomerRow((row[0], row[1]), *row[2:])


def _purchase(row: tuple[Any, ...]) -> PurchaseRow:
    return PurchaseRow((row[0], row[1]), *row[2:])


def _entry(row: tuple[Any, ...]) -> EntryRow:
    return EntryRow((row[0], row[1]), *row[2:])


class _SQLiteReads:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def _one(self, sql: str, parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with _translated():
            found: tuple[Any, ...] | None = self._db.execute(sql, parameters).fetchone()
        return found

    def _all(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with _translated():
            return self._db.execute(sql, parameters).fetchall()

    def customer(self, key: CustomerKey) -> CustomerRow | None:
        """Return the customer's state."""
        row = self._one(f"SELECT {_CUSTOMER} FROM customers WHERE tenant_id = ? AND customer_id = ?", key)
        return _customer(row) if row else None

    def purchase(self, key: CustomerKey, transaction_id: str) -> PurchaseRow | None:
        """Return one purchase."""
        row = self._one(f"SELECT {_PURCHASE} FROM records WHERE {_PURCHASES} AND id = ?", (*key, transaction_id))
        return _purchase(row) if row else None

    def payment(self, key: CustomerKey, payment_id: str) -> PaymentRow | None:
        """Return one payment."""
        row = self._one(f"SELECT state FROM records WHERE {_PAYMENTS} AND id = ?", (*key, payment_id))
        return PaymentRow(key, payment_id, row[0]) if row else None

    def lapsed(self, key: CustomerKey, now_us: int) -> Sequence[PurchaseRow]:
        """Return the customer's open holds that lapsed."""
        rows = self._all(
            f"SELECT {_PURCHASE} FROM records WHERE {_OPEN_PURCHASES} AND lapses_us <= ? ORDER BY lapses_us, id",
            (*key, now_us),
        )
        return [_purchase(row) for row in rows]

    def entries(self, key: CustomerKey, *, after: int, limit: int) -> Sequence[EntryRow]:
        """Return the customer's entries above `after`."""
        rows = self._all(
            f"SELECT {_ENTRY} FROM entries WHERE tenant_id = ? AND customer_id = ? AND sequence > ?"
            " ORDER BY sequence LIMIT ?",
            (*key, after, limit),
        )
        return [_entry(row) for row in rows]

    def last_batch(self) -> BatchRow | None:
        """Return the last batch row."""
        row = self._one(f"SELECT {_BATCH} FROM batches ORDER BY sequence DESC LIMIT 1", ())
        return BatchRow(*row) if row else None


class SQLiteTransaction(_SQLiteReads):
    """Keeps `engine.ports.Transaction` on the writing connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        super().__init__(db)
        # Of which kind the purchases were that were asked for, so that a write need not look again.
        self._seen: dict[tuple[CustomerKey, str], Kind | None] = {}

    def customers(self, keys: Sequence[CustomerKey]) -> Sequence[CustomerRow]:
        """Return the states of those of the customers that exist."""
        rows = self._all(
            f"SELECT {_CUSTOMER} FROM json_each(?) AS asked CROSS JOIN customers"
            " ON tenant_id = asked.value ->> 0 AND customer_id = asked.value ->> 1",
            (_as_json(keys),),
        )
        return [_customer(row) for row in rows]

    def requests(self, ids: Sequence[tuple[CustomerKey, str]]) -> Sequence[RequestRow]:
        """Return what those of the request ids that were used came to."""
        rows = self._all(
            f"SELECT {_of('r', _REQUEST)} FROM {_ASKED} AND r.kind = {Kind.REQUEST:d} AND r.id = asked.value ->> 2",
            (_as_json([(*key, request_id) for key, request_id in ids]),),
        )
        return [RequestRow((row[0], row[1]), *row[2:]) for row in rows]

    def purchases(self, ids: Sequence[tuple[CustomerKey, str]]) -> Sequence[PurchaseRow]:
        """Return those of the purchases that exist."""
        rows = self._all(
            f"SELECT {_of('r', _PURCHASE)} FROM {_ASKED}"
            f" AND r.kind IN ({Kind.OPEN_PURCHASE:d}, {Kind.PURCHASE:d}) AND r.id = asked.value ->> 2",
            (_as_json([(*key, transaction_id) for key, transaction_id in ids]),),
        )
        found = [_purchase(row) for row in rows]
        self._seen = dict.fromkeys(ids)
        self._seen.update(
            ((row.key, row.transaction_id), Kind.OPEN_PURCHASE if row.lapses_us else Kind.PURCHASE) for row in found
        )
        return found

    def owed(self, key: CustomerKey) -> Sequence[PurchaseRow]:
        """Return the purchases that owe principal."""
        rows = self._all(
            f"SELECT {_PURCHASE} FROM records WHERE {_OF_CUSTOMER} AND owed_since > 0 ORDER BY owed_since, id", key
        )
        return [_purchase(row) for row in rows]

    def next_lapse(self, key: CustomerKey, after_us: int) -> int:
        """Return the earliest lapse above `after_us`."""
        row = self._one(
            f"SELECT min(lapses_us) FROM records WHERE {_OPEN_PURCHASES} AND lapses_us > ?", (*key, after_us)
        )
        return (row and row[0]) or 0

    def tail(self) -> tuple[BatchRow | None, int]:
        """Return the last batch row and the position of the last entry."""
        last = self._one("SELECT max(position) FROM entries", ())
        return self.last_batch(), (last and last[0]) or 0

    def write(self, batch: BatchWrite) -> None:
        """Add or replace everything in `batch`."""
        with _translated():
            self._insert(
                _INTO_CUSTOMERS, [(*r.key, r.sequence, r.next_lapse_us, r.state, r.profile) for r in batch.customers]
            )
            self._write_purchases(batch.purchases)
            self._insert(_INTO_PAYMENTS, [(*r.key, Kind.PAYMENT, r.payment_id, r.state) for r in batch.payments])
            self._insert(
                _INTO_REQUESTS,
                [
                    (*r.key, Kind.REQUEST, r.request_id, r.fingerprint, r.sequence, r.at_us, r.reply)
                    for r in batch.requests
                ],
            )
            self._insert(
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
                self._insert(_INTO_BATCHES, [(b.sequence, b.at_us, b.first_position, b.count, b.root, b.hash)])

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
        self._insert(_INTO_PURCHASES, values)
        self._seen.clear()

    def _insert(self, into: _Insert, rows: Sequence[tuple[Any, ...]]) -> None:
        """
        Insert rows by as few statements as possible.

        Python lets go of its lock around every statement, and taking it back from a busy event loop costs
        more than the insert: so many rows go in one statement, in powers of two to keep the statements few.
        """
        done = 0
        while done < len(rows):
            size = min(_ROWS_MAX, 1 << (len(rows) - done).bit_length() - 1)
            chunk = rows[done : done + size]
            self._db.execute(into.statement(size), [value for row in chunk for value in row])
            done += size


_ROWS_MAX: Final = 256


class _Insert:
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


_INTO_CUSTOMERS: Final = _Insert(
    "customers",
    _CUSTOMER,
    " ON CONFLICT (tenant_id, customer_id) DO UPDATE SET sequence = excluded.sequence,"
    " next_lapse_us = excluded.next_lapse_us, state = excluded.state, profile = excluded.profile",
)
_KIND_AND_OTHER: Final = {
    True: (Kind.OPEN_PURCHASE, Kind.PURCHASE),
    False: (Kind.PURCHASE, Kind.OPEN_PURCHASE),
}
"""By whether a hold is open."""
_INTO_PURCHASES: Final = _Insert(
    "records",
    "tenant_id, customer_id, kind, id, lapses_us, owed_since, state",
    " ON CONFLICT (tenant_id, customer_id, kind, id) DO UPDATE SET"
    " lapses_us = excluded.lapses_us, owed_since = excluded.owed_since, state = excluded.state",
)
_INTO_PAYMENTS: Final = _Insert(
    "records",
    "tenant_id, customer_id, kind, id, state",
    " ON CONFLICT (tenant_id, customer_id, kind, id) DO UPDATE SET state = excluded.state",
)
_INTO_REQUESTS: Final = _Insert("records", "tenant_id, customer_id, kind, id, fingerprint, sequence, at_us, state")
_COUNTED: Final = {"purchases": (Kind.OPEN_PURCHASE, Kind.PURCHASE), "payments": (Kind.PAYMENT,)}
_INTO_ENTRIES: Final = _Insert("entries", _ENTRY)
_INTO_BATCHES: Final = _Insert("batches", _BATCH)


_ASKED: Final = (
    "json_each(?) AS asked CROSS JOIN records AS r"
    " ON r.tenant_id = asked.value ->> 0 AND r.customer_id = asked.value ->> 1"
)


def _page_of(kind: Kind) -> str:
    return f"SELECT {_PURCHASE} FROM records WHERE {_OF_CUSTOMER} AND kind = {kind:d} AND id > ? ORDER BY id LIMIT ?"


def _of(table: str, columns: str) -> str:
    """Name the table of each column, where another has columns of the same name."""
    return ", ".join(f"{table}.{column}" for column in columns.split(", "))


def _as_json(rows: Sequence[tuple[str | int, ...]]) -> str:
    return msgspec.json.encode(rows).decode()


class SQLiteSnapshot(_SQLiteReads):
    """Keeps `engine.ports.Snapshot` on a reading connection: one read transaction from enter to exit."""

    def __init__(self, readers: _Readers) -> None:
        self._readers = readers

    def __enter__(self) -> Self:
        with _translated():
            self._db = self._readers.lend()
            self._db.execute("BEGIN")
            # A transaction begins to read at its first question, so that is asked at once.
            self._db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.execute("ROLLBACK")
        self._readers.take_back(self._db)

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        """Return customers with a hold that lapsed, earliest first."""
        rows = self._all(
            "SELECT tenant_id, customer_id FROM customers WHERE next_lapse_us > 0 AND next_lapse_us <= ?"
            " ORDER BY next_lapse_us, tenant_id, customer_id LIMIT ?",
            (now_us, limit),
        )
        return [(row[0], row[1]) for row in rows]

    def entries_by_position(
        self, *, after: int, limit: int, tenant_id: str = "", tag: int | None = None
    ) -> Sequence[EntryRow]:
        """Return entries above a position, ascending."""
        # Only what is asked for: an index is of no use to a condition that may or may not count.
        given = {"position >": after} | ({"tenant_id =": tenant_id} if tenant_id else {})
        given |= {} if tag is None else {"tag =": tag}
        where = " AND ".join(f"{condition} ?" for condition in given)
        # Named, for SQLite guesses that a place in the journal narrows more than a tenant does.
        by = " INDEXED BY entries_by_tag" if tenant_id and tag is not None else ""
        rows = self._all(
            f"SELECT {_ENTRY} FROM entries{by} WHERE {where} ORDER BY position LIMIT ?", (*given.values(), limit)
        )
        return [_entry(row) for row in rows]

    def entries_before(self, *, position: int, limit: int, tenant_id: str, tag: int) -> Sequence[EntryRow]:
        """Return entries below a position, descending."""
        rows = self._all(
            f"SELECT {_ENTRY} FROM entries INDEXED BY entries_by_tag WHERE tenant_id = ? AND tag = ? AND position < ?"
            " ORDER BY position DESC LIMIT ?",
            (tenant_id, tag, position, limit),
        )
        return [_entry(row) for row in rows]

    def customer_entries_before(self, key: CustomerKey, *, sequence: int, limit: int, tag: int) -> Sequence[EntryRow]:
        """Return a customer's entries below a sequence, descending."""
        rows = self._all(
            f"SELECT {_ENTRY} FROM entries WHERE tenant_id = ? AND customer_id = ? AND sequence < ? AND tag = ?"
            " ORDER BY sequence DESC LIMIT ?",
            (*key, sequence, tag, limit),
        )
        return [_entry(row) for row in rows]

    def purchases(self, key: CustomerKey, *, after: str, limit: int, only_open: bool) -> Sequence[PurchaseRow]:
        """Return the customer's purchases by transaction id."""
        asked = (*key, after, limit)
        if only_open:
            rows = self._all(_page_of(Kind.OPEN_PURCHASE), asked)
        else:
            both = f"SELECT * FROM ({_page_of(Kind.OPEN_PURCHASE)}) UNION ALL SELECT * FROM ({_page_of(Kind.PURCHASE)})"
            rows = self._all(f"{both} ORDER BY id LIMIT ?", (*asked, *asked, limit))
        return [_purchase(row) for row in rows]

    def payments(self, key: CustomerKey) -> Sequence[PaymentRow]:
        """Return the customer's payments by id."""
        rows = self._all(f"SELECT id, state FROM records WHERE {_PAYMENTS} ORDER BY id", key)
        return [PaymentRow(key, *row) for row in rows]

    def customers(self, *, after: CustomerKey, limit: int) -> Sequence[CustomerRow]:
        """Return customers by key."""
        rows = self._all(
            f"SELECT {_CUSTOMER} FROM customers WHERE (tenant_id, customer_id) > (?, ?)"
            " ORDER BY tenant_id, customer_id LIMIT ?",
            (*after, limit),
        )
        return [_customer(row) for row in rows]

    def batches(self, *, after: int, limit: int) -> Sequence[BatchRow]:
        """Return batch rows by sequence."""
        rows = self._all(
            f"SELECT {_BATCH} FROM batches WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (after, limit),
        )
        return [BatchRow(*row) for row in rows]

    def last_position(self) -> int:
        """Return the position of the last entry."""
        row = self._one("SELECT max(position) FROM entries", ())
        return (row and row[0]) or 0

    def counts(self) -> Mapping[str, int]:
        """Return how many rows there are."""
        counted = {
            name: self._count(f"records WHERE kind IN ({', '.join(map(str, map(int, kinds)))})")
            for name, kinds in _COUNTED.items()
        }
        counted |= {table: self._count(table) for table in ("customers", "entries", "batches")}
        return counted

    def _count(self, rows: str) -> int:
        row = self._one(f"SELECT count(*) FROM {rows}", ())
        return row[0] if row else 0

    def ruleset_source(self, ruleset_hash: bytes) -> str | None:
        """Return the source text of a ruleset."""
        row = self._one("SELECT source FROM rulesets WHERE hash = ?", (ruleset_hash,))
        return row[0] if row else None
