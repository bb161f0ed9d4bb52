"""What one commit reads and writes, in as few statements as possible."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.rows import (
    NOBODY,
    BatchWrite,
    CustomerRow,
    Locked,
    PurchaseRow,
    RequestRow,
    locked_by_the_only_writer,
)
from riskgate_server.stores.leases import Leases
from riskgate_server.stores.sqlite.connections import writing
from riskgate_server.stores.sqlite.reads import (
    BATCH,
    CUSTOMER,
    ENTRY,
    MESSAGE,
    OF_CUSTOMER,
    OPEN_PURCHASES,
    PURCHASE,
    REQUEST,
    SQLiteReads,
    customer_row,
    purchase_row,
    request_row,
)
from riskgate_server.stores.sqlite.schema import Kind


class SQLiteTransaction(SQLiteReads):
    """Keeps `engine.storing.Transaction` on the writing connection."""

    _errors = staticmethod(writing)

    def __init__(self, db: sqlite3.Connection, leases: Leases) -> None:
        super().__init__(db)
        self._leases = leases
        # Of which kind the purchases were that were asked for, so that a write need not look again.
        self._seen: dict[tuple[CustomerKey, str], Kind | None] = {}

    def lock(
        self,
        keys: Sequence[CustomerKey],
        wait: Collection[CustomerKey] = frozenset(),
        known: Mapping[CustomerKey, int] = NOBODY,
    ) -> Locked:
        """Return those of the customers that exist: the only writer has them all."""
        del wait
        return locked_by_the_only_writer(self.customers(keys), known)

    def customers(self, keys: Sequence[CustomerKey]) -> Sequence[CustomerRow]:
        """Return the states of those of the customers that exist."""
        rows = self._all(
            f"SELECT {CUSTOMER} FROM json_each(?) AS asked CROSS JOIN customers"
            " ON tenant_id = asked.value ->> 0 AND customer_id = asked.value ->> 1",
            (_as_json(keys),),
        )
        return [customer_row(row) for row in rows]

    def found(
        self, requests: Sequence[tuple[CustomerKey, str]], purchases: Sequence[tuple[CustomerKey, str]]
    ) -> tuple[Sequence[RequestRow], Sequence[PurchaseRow]]:
        """Return what those of the request ids that were used came to, and those of the purchases that exist."""
        return self._requests(requests), self._purchases(purchases)

    def _requests(self, ids: Sequence[tuple[CustomerKey, str]]) -> Sequence[RequestRow]:
        rows = self._all(
            f"SELECT {_of('r', REQUEST)} FROM {_ASKED} AND r.kind = {Kind.REQUEST:d} AND r.id = asked.value ->> 2",
            (_as_json([(*key, request_id) for key, request_id in ids]),),
        )
        return [request_row(row) for row in rows]

    def _purchases(self, ids: Sequence[tuple[CustomerKey, str]]) -> Sequence[PurchaseRow]:
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
