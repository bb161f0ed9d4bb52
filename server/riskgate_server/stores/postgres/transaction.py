"""One unit of work of one writer: what it locks, asks and writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import psycopg

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import StoreConflict
from riskgate_server.engine.rows import (
    NOBODY,
    BatchRow,
    BatchWrite,
    CustomerRow,
    EntryRow,
    Locked,
    MessageRow,
    PurchaseRow,
    RequestRow,
    ScopeKey,
    ScopeRow,
)
from riskgate_server.engine.storing import MESSAGE_LEASE_SECONDS
from riskgate_server.stores.postgres.arrays import Blobs, Numbers, Texts
from riskgate_server.stores.postgres.reads import (
    BATCH,
    CUSTOMER,
    ENTRY,
    MESSAGE,
    OF_CUSTOMER,
    PURCHASE,
    REQUEST,
    PostgresReads,
    as_customer,
    as_message,
    as_purchase,
    as_request,
)
from riskgate_server.stores.postgres.session import Connection, translated

Columns = tuple[list[Any], ...]
_Sent = tuple[psycopg.Cursor[Any], int]
"""A statement whose answer comes later, and how many rows it is to change."""
_Column = tuple[Callable[[Iterable[Any]], list[Any]], str]

_TEXT: Final[_Column] = (Texts, "text[]")
_INT: Final[_Column] = (Numbers, "bigint[]")
_BYTES: Final[_Column] = (Blobs, "bytea[]")
_TYPES: Final[dict[str, _Column]] = {
    "tenant_id": _TEXT, "customer_id": _TEXT, "transaction_id": _TEXT, "payment_id": _TEXT, "request_id": _TEXT,
    "state": _BYTES, "profile": _BYTES, "fingerprint": _BYTES, "reply": _BYTES,
    "message_id": _TEXT, "id": _BYTES,
    "clear": _BYTES, "nonce": _BYTES, "sealed": _BYTES, "hash": _BYTES,
}  # fmt: skip
"""Every other column is a number."""

LEASE_SECONDS: Final = 15.0
"""How long a writer's number stays its owner's after the last sign of life."""


class Tail(msgspec.Struct):
    """Where a writer's lane ends."""

    batch: BatchRow | None
    position: int


class PostgresTransaction(PostgresReads):
    """Keeps `engine.storing.Transaction`. The writer's own row is locked for as long as it lasts."""

    _errors = staticmethod(translated)

    def __init__(self, db: Connection, writer: int, tail: Tail) -> None:
        super().__init__(db)
        self._writer = writer
        self._tail = tail
        self._locked: set[CustomerKey] = set()
        self.wrote = False
        """Whether the tail has moved."""

    def lock(
        self,
        keys: Sequence[CustomerKey],
        wait: Collection[CustomerKey] = frozenset(),
        known: Mapping[CustomerKey, int] = NOBODY,
    ) -> Locked:
        """
        Lock the existing customers' rows in key order, passing over those that are locked elsewhere.

        Those in `wait` come first: while one of them is waited for, nothing else is held that another could wait for.
        """
        patient = [key for key in keys if key in wait]
        hasty = [key for key in keys if key not in wait]
        rows: list[tuple[Any, ...]] = []
        for sql, some in ((_LOCK, patient), (_LOCK_IF_FREE, hasty)):
            if some:
                at_hand = Numbers(known.get(key, _UNKNOWN) for key in some)
                rows += self._all(sql, (Texts(key[0] for key in some), Texts(key[1] for key in some), at_hand))
        versions: dict[CustomerKey, int] = {(row[0], row[1]): row[2] for row in rows}
        self._locked.update(versions)
        missing = [key for key in keys if key not in versions]
        # Whoever exists and was passed over is held elsewhere, or has begun since.
        held = self._asked(_EXISTING, missing) if missing else []
        return Locked(
            versions,
            elsewhere=frozenset((row[0], row[1]) for row in held),
            forgotten=frozenset((row[0], row[1]) for row in rows if row[-1]),
            changed=[as_customer(row[:-1]) for row in rows if row[_STATE] is not None],
        )

    def _asked(self, sql: str, keys: Sequence[CustomerKey]) -> list[tuple[Any, ...]]:
        return self._all(sql, (Texts(key[0] for key in keys), Texts(key[1] for key in keys)))

    def customers(self, keys: Sequence[CustomerKey]) -> Sequence[CustomerRow]:
        """Return the states of those of the customers that exist."""
        return [as_customer(row) for row in self._asked(_CUSTOMERS, keys)]

    def found(
        self, requests: Sequence[tuple[CustomerKey, str]], purchases: Sequence[tuple[CustomerKey, str]]
    ) -> tuple[Sequence[RequestRow], Sequence[PurchaseRow]]:
        """Return what those of the request ids that were used came to, and those of the purchases that exist."""
        with translated():
            with self._db.pipeline():
                used = self._db.execute(_REQUESTS, _as_columns(requests), binary=True)
                bought = self._db.execute(_PURCHASES, _as_columns(purchases), binary=True)
            return [as_request(row) for row in used], [as_purchase(row) for row in bought]

    def scopes(self, keys: Sequence[ScopeKey]) -> Sequence[ScopeRow]:
        """
        Lock the scopes' rows in key order, and return those that were written before.

        A row that is missing is made, for what does not exist cannot be locked; one that stays empty says nothing.
        """
        ordered = sorted(keys)
        if not ordered:
            return []
        columns = (Texts(k[0] for k in ordered), Numbers(k[1] for k in ordered), Blobs(k[2] for k in ordered))
        with translated():
            self._db.execute(_MAKE_SCOPES, columns)
        return [ScopeRow((r[0], r[1], r[2]), r[3]) for r in self._all(_LOCK_SCOPES, columns) if r[3]]

    def owed(self, key: CustomerKey) -> Sequence[PurchaseRow]:
        """Return the purchases that owe principal."""
        rows = self._all(
            f"SELECT {PURCHASE} FROM purchases WHERE {OF_CUSTOMER} AND owed_since > 0"
            " ORDER BY owed_since, transaction_id",
            key,
        )
        return [as_purchase(row) for row in rows]

    def next_lapse(self, key: CustomerKey, after_us: int) -> int:
        """Return the earliest lapse above `after_us`."""
        row = self._one(
            f"SELECT min(lapses_us) FROM purchases WHERE {OF_CUSTOMER} AND lapses_us > 0 AND lapses_us > $3",
            (*key, after_us),
        )
        return (row and row[0]) or 0

    def tail(self) -> tuple[BatchRow | None, int]:
        """Return the last batch row and the position of the last entry of this writer."""
        return self._tail.batch, self._tail.position

    def write(self, batch: BatchWrite) -> None:
        """
        Add or replace everything in `batch`.

        Customers first, in key order: a new one is nobody's until its row is there, and whatever else belongs to it
        is behind that row. All of it is sent before the first answer is waited for: a database is often far away.
        """
        self._move_tail(batch)
        with translated(), self._db.pipeline():
            sent = [*self._write_customers(batch.customers), *self._write_others(batch)]
            if self.wrote:
                self._write_tail(*self.tail())
        for changed, rows in sent:
            if changed.rowcount != rows:
                raise StoreConflict(f"{rows} rows were to be written, {changed.rowcount} were")

    def _write_others(self, batch: BatchWrite) -> Iterator[_Sent]:
        yield from self._insert(_INTO_PURCHASES, [
            (*r.key, r.transaction_id, r.lapses_us, r.owed_since, r.state) for r in batch.purchases
        ])  # fmt: skip
        yield from self._insert(_INTO_PAYMENTS, [(*r.key, r.payment_id, r.state) for r in batch.payments])
        yield from self._insert(_INTO_REQUESTS, [
            (*r.key, r.request_id, r.fingerprint, r.sequence, r.at_us, r.reply) for r in batch.requests
        ])  # fmt: skip
        yield from self._insert(_INTO_ENTRIES, [
            (
                *e.key, e.sequence, e.position, e.batch, e.at_us, e.tag, e.request_id, e.clear, e.nonce, e.sealed,
                e.hash, e.writer,
            )
            for e in batch.entries
        ])  # fmt: skip
        if (b := batch.batch) is not None:
            self._db.execute(
                f"INSERT INTO batches ({BATCH}) VALUES ($1, $2, $3, $4, $5, $6, $7)",
                (b.sequence, b.at_us, b.first_position, b.count, b.root, b.hash, b.writer),
            )
        yield from self._insert(_INTO_IDENTITIES, [(*r.key, r.state) for r in batch.identities])
        yield from self._insert(_INTO_SCOPES, [(*r.scope, r.state) for r in batch.scopes])
        yield from self._insert(_INTO_MESSAGES, [(*r.key, r.message_id, r.due_us, r.sealed) for r in batch.messages])
        if batch.settled:
            self._db.execute(_SETTLE, _as_columns(batch.settled))

    def _write_tail(self, batch: BatchRow | None, position: int) -> None:
        b = batch or BatchRow(0, 0, 0, 0, b"", b"")
        self._db.execute(
            _MOVE_TAIL,
            (self._writer, LEASE_SECONDS, position, b.sequence, b.at_us, b.first_position, b.count, b.root, b.hash),
        )

    def _move_tail(self, batch: BatchWrite) -> None:
        """Go on where the lane ends: its order is this row's, for positions have no key of their own."""
        rows: list[EntryRow | BatchRow] = [*batch.entries, *([batch.batch] if batch.batch else [])]
        if any(row.writer != self._writer for row in rows):
            raise ValueError(f"a row of another writer than {self._writer}")
        position = self._tail.position
        for entry in batch.entries:
            position += 1
            if entry.position != position:
                raise ValueError(f"position {entry.position} is not {position}")
        last = self._tail.batch
        if batch.batch:
            follows = last.sequence + 1 if last else 1
            if batch.batch.sequence != follows:
                raise ValueError(f"batch {batch.batch.sequence} is not {follows}")
            last = batch.batch
        self._tail = Tail(last, position)
        self.wrote = self.wrote or bool(rows)

    def _write_customers(self, rows: Sequence[CustomerRow]) -> Iterator[_Sent]:
        ordered = sorted(rows, key=lambda row: row.key)
        old = [row for row in ordered if row.key in self._locked]
        new = [row for row in ordered if row.key not in self._locked]
        for statement, some in ((_UPDATE_CUSTOMERS, old), (_INTO_CUSTOMERS, new)):
            yield from self._insert(
                statement, [(*r.key, r.sequence, r.next_lapse_us, r.state, r.profile) for r in some]
            )
        # They are ours from here on, in case the same transaction writes again.
        self._locked.update(row.key for row in new)

    def lease_messages(self, now_us: int, limit: int) -> list[MessageRow]:
        """Take due messages that nobody has, the longest due first."""
        rows = [as_message(row) for row in self._all(_LEASE_MESSAGES, (now_us, limit))]
        return sorted(rows, key=lambda row: (row.due_us, row.key, row.message_id))

    def change(self, statement: str, given: tuple[Any, ...]) -> int:
        """Run a statement of the store's own, and return how many rows it changed."""
        with translated():
            return self._db.execute(statement, given).rowcount

    def _insert(self, statement: Statement, rows: Sequence[tuple[Any, ...]]) -> Iterator[_Sent]:
        if rows:
            columns = [make(values) for make, values in zip(statement.makers, zip(*rows, strict=True), strict=True)]
            yield self._db.execute(statement.text, columns), len(rows)


class Statement:
    """A statement over any number of rows, given as one array per column ($1, $2 …)."""

    def __init__(self, columns: str, text: str) -> None:
        names = columns.split(", ")
        kinds = [_TYPES.get(name, _INT) for name in names]
        self.makers = [make for make, _ in kinds]
        arrays = ", ".join(f"${n}::{kind}" for n, (_, kind) in enumerate(kinds, 1))
        self.text = text.replace("GIVEN", f"unnest({arrays}) AS given ({columns})")


def _as_columns(ids: Sequence[tuple[CustomerKey, str]]) -> tuple[Texts, Texts, Texts]:
    return Texts(key[0] for key, _ in ids), Texts(key[1] for key, _ in ids), Texts(each for _, each in ids)


def _of(table: str, columns: str) -> str:
    return ", ".join(f"{table}.{column}" for column in columns.split(", "))


_CUSTOMERS_ASKED: Final = (
    "unnest($1::text[], $2::text[]) AS asked (tenant_id, customer_id)"
    " JOIN customers AS c ON c.tenant_id = asked.tenant_id AND c.customer_id = asked.customer_id"
)
_IDS_ASKED: Final = "unnest($1::text[], $2::text[], $3::text[]) AS asked (tenant_id, customer_id, id)"
_SAME_CUSTOMER: Final = "t.tenant_id = asked.tenant_id AND t.customer_id = asked.customer_id"

_CUSTOMERS: Final = f"SELECT {_of('c', CUSTOMER)} FROM {_CUSTOMERS_ASKED}"
_EXISTING: Final = f"SELECT c.tenant_id, c.customer_id FROM {_CUSTOMERS_ASKED}"
_UNKNOWN: Final = -1
"""A sequence that no customer has."""
_STATE: Final = CUSTOMER.split(", ").index("state")
_LOCK: Final = (
    "SELECT c.tenant_id, c.customer_id, c.sequence, c.next_lapse_us,"
    " CASE WHEN c.sequence <> asked.known OR c.forgotten THEN c.state END,"
    " CASE WHEN c.sequence <> asked.known OR c.forgotten THEN c.profile END, c.forgotten"
    " FROM unnest($1::text[], $2::text[], $3::bigint[]) AS asked (tenant_id, customer_id, known)"
    " JOIN customers AS c ON c.tenant_id = asked.tenant_id AND c.customer_id = asked.customer_id"
    " ORDER BY c.tenant_id, c.customer_id FOR UPDATE OF c"
)
"""What is at hand already does not come along; what does is what the lock found, however long it waited."""
_LOCK_IF_FREE: Final = f"{_LOCK} SKIP LOCKED"
_REQUESTS: Final = (
    f"SELECT {_of('t', REQUEST)} FROM {_IDS_ASKED} JOIN requests AS t ON {_SAME_CUSTOMER} AND t.request_id = asked.id"
)
_PURCHASES: Final = (
    f"SELECT {_of('t', PURCHASE)} FROM {_IDS_ASKED}"
    f" JOIN purchases AS t ON {_SAME_CUSTOMER} AND t.transaction_id = asked.id"
)


def _into(table: str, columns: str, on_conflict: str = "") -> Statement:
    return Statement(columns, f"INSERT INTO {table} ({columns}) SELECT {columns} FROM GIVEN{on_conflict}")


_UPDATE_CUSTOMERS: Final = Statement(
    CUSTOMER,
    "UPDATE customers AS c SET sequence = given.sequence, next_lapse_us = given.next_lapse_us,"
    " state = given.state, profile = given.profile FROM GIVEN"
    " WHERE c.tenant_id = given.tenant_id AND c.customer_id = given.customer_id",
)
_INTO_CUSTOMERS: Final = _into("customers", CUSTOMER)
_INTO_PURCHASES: Final = _into(
    "purchases",
    PURCHASE,
    " ON CONFLICT (tenant_id, customer_id, transaction_id) DO UPDATE SET"
    " lapses_us = excluded.lapses_us, owed_since = excluded.owed_since, state = excluded.state",
)
_INTO_PAYMENTS: Final = _into(
    "payments",
    "tenant_id, customer_id, payment_id, state",
    " ON CONFLICT (tenant_id, customer_id, payment_id) DO UPDATE SET state = excluded.state",
)
_INTO_REQUESTS: Final = _into("requests", REQUEST)
_INTO_ENTRIES: Final = _into("entries", ENTRY)
_INTO_IDENTITIES: Final = _into(
    "identities",
    "tenant_id, customer_id, state",
    " ON CONFLICT (tenant_id, customer_id) DO UPDATE SET state = excluded.state",
)
_INTO_SCOPES: Final = _into(
    "scopes",
    "tenant_id, kind, id, state",
    " ON CONFLICT (tenant_id, kind, id) DO UPDATE SET state = excluded.state",
)
LIVES_ON: Final = "lease_until = clock_timestamp() + make_interval(secs => $2)"
_MOVE_TAIL: Final = (
    f"UPDATE writers SET {LIVES_ON}, position = $3, sequence = $4, at_us = $5, first_position = $6, count = $7,"
    " root = $8, hash = $9 WHERE writer = $1"
)
_LEASE: Final = f"clock_timestamp() + interval '{MESSAGE_LEASE_SECONDS} seconds'"
_INTO_MESSAGES: Final = Statement(
    MESSAGE,
    f"INSERT INTO messages ({MESSAGE}, leased_until) SELECT {MESSAGE}, {_LEASE} FROM GIVEN"
    " ON CONFLICT (tenant_id, customer_id, message_id) DO UPDATE SET"
    " due_us = excluded.due_us, sealed = excluded.sealed, leased_until = excluded.leased_until",
)
_LEASE_MESSAGES: Final = f"""
UPDATE messages AS m SET leased_until = {_LEASE} FROM (
  SELECT tenant_id, customer_id, message_id FROM messages WHERE due_us <= $1 AND leased_until < clock_timestamp()
  ORDER BY due_us, tenant_id, customer_id, message_id LIMIT $2 FOR UPDATE SKIP LOCKED) AS free
WHERE m.tenant_id = free.tenant_id AND m.customer_id = free.customer_id AND m.message_id = free.message_id
RETURNING {_of("m", MESSAGE)}
"""
"""Whoever is just being settled is passed over."""
_SETTLE: Final = (
    "DELETE FROM messages AS m USING unnest($1::text[], $2::text[], $3::text[]) AS asked (tenant_id, customer_id, id)"
    " WHERE m.tenant_id = asked.tenant_id AND m.customer_id = asked.customer_id AND m.message_id = asked.id"
)
_SCOPES_ASKED: Final = "unnest($1::text[], $2::bigint[], $3::bytea[]) AS asked (tenant_id, kind, id)"
_MAKE_SCOPES: Final = (
    "INSERT INTO scopes (tenant_id, kind, id, state) SELECT tenant_id, kind, id, '' FROM "
    f"{_SCOPES_ASKED} ORDER BY tenant_id, kind, id ON CONFLICT DO NOTHING"
)
_LOCK_SCOPES: Final = (
    f"SELECT s.tenant_id, s.kind, s.id, s.state FROM {_SCOPES_ASKED} JOIN scopes AS s"
    " ON s.tenant_id = asked.tenant_id AND s.kind = asked.kind AND s.id = asked.id"
    " ORDER BY s.tenant_id, s.kind, s.id FOR UPDATE OF s"
)
