"""What is asked of riskgate.db, and the snapshots that answer on a reading connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Self

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.rows import (
    BatchRow,
    CustomerRow,
    EntryRow,
    IdentityRow,
    Lane,
    MessageRow,
    PaymentRow,
    PurchaseRow,
    RequestRow,
    ScopeKey,
    ScopeRow,
)
from riskgate_server.stores.sqlite.connections import Readers, reading
from riskgate_server.stores.sqlite.schema import Kind

CUSTOMER: Final = "tenant_id, customer_id, sequence, next_lapse_us, state, profile"
PURCHASE: Final = "tenant_id, customer_id, id, lapses_us, owed_since, state"
REQUEST: Final = "tenant_id, customer_id, id, fingerprint, sequence, at_us, state"
OF_CUSTOMER: Final = "tenant_id = ? AND customer_id = ?"
WRITER: Final = 0
"""The only writer of a file: rows need not name it."""
_PURCHASES: Final = f"{OF_CUSTOMER} AND kind IN ({Kind.OPEN_PURCHASE:d}, {Kind.PURCHASE:d})"
OPEN_PURCHASES: Final = f"{OF_CUSTOMER} AND kind = {Kind.OPEN_PURCHASE:d}"
_PAYMENTS: Final = f"{OF_CUSTOMER} AND kind = {Kind.PAYMENT:d}"
BATCH: Final = "sequence, at_us, first_position, count, root, hash"
ENTRY: Final = "tenant_id, customer_id, sequence, position, batch, at_us, tag, request_id, clear, nonce, sealed, hash"
MESSAGE: Final = "tenant_id, customer_id, message_id, due_us, sealed"
_COUNTED: Final = {
    "purchases": (Kind.OPEN_PURCHASE, Kind.PURCHASE),
    "payments": (Kind.PAYMENT,),
    "requests": (Kind.REQUEST,),
}


def customer_row(row: tuple[Any, ...]) -> CustomerRow:
    """Return a customer's state from its columns."""
    return CustomerRow((row[0], row[1]), *row[2:])


def purchase_row(row: tuple[Any, ...]) -> PurchaseRow:
    """Return a purchase from its columns."""
    return PurchaseRow((row[0], row[1]), *row[2:])


def request_row(row: tuple[Any, ...]) -> RequestRow:
    """Return a request from its columns."""
    return RequestRow((row[0], row[1]), *row[2:])


def entry_row(row: tuple[Any, ...]) -> EntryRow:
    """Return a journal entry from its columns."""
    return EntryRow((row[0], row[1]), *row[2:])


def message_row(row: tuple[Any, ...]) -> MessageRow:
    """Return a message from its columns."""
    return MessageRow((row[0], row[1]), *row[2:])


class SQLiteReads:
    """Questions that a transaction and a snapshot both answer."""

    _errors: Callable[[], AbstractContextManager[None]]
    """Says what goes wrong on this kind of connection in the port's words."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def _one(self, sql: str, parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with self._errors():
            found: tuple[Any, ...] | None = self._db.execute(sql, parameters).fetchone()
        return found

    def _all(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(sql, parameters).fetchall()

    def customer(self, key: CustomerKey) -> CustomerRow | None:
        """Return the customer's state."""
        row = self._one(f"SELECT {CUSTOMER} FROM customers WHERE tenant_id = ? AND customer_id = ?", key)
        return customer_row(row) if row else None

    def purchase(self, key: CustomerKey, transaction_id: str) -> PurchaseRow | None:
        """Return one purchase."""
        row = self._one(f"SELECT {PURCHASE} FROM records WHERE {_PURCHASES} AND id = ?", (*key, transaction_id))
        return purchase_row(row) if row else None

    def payment(self, key: CustomerKey, payment_id: str) -> PaymentRow | None:
        """Return one payment."""
        row = self._one(f"SELECT state FROM records WHERE {_PAYMENTS} AND id = ?", (*key, payment_id))
        return PaymentRow(key, payment_id, row[0]) if row else None

    def identity(self, key: CustomerKey) -> IdentityRow | None:
        """Return what the customer can prove themselves with."""
        row = self._one("SELECT state FROM identities WHERE tenant_id = ? AND customer_id = ?", key)
        return IdentityRow(key, row[0]) if row else None

    def scopes(self, keys: Sequence[ScopeKey]) -> Sequence[ScopeRow]:
        """Return those of the scopes that exist."""
        asked = "SELECT state FROM scopes WHERE tenant_id = ? AND kind = ? AND id = ?"
        rows = [(key, self._one(asked, key)) for key in keys]
        return [ScopeRow(key, row[0]) for key, row in rows if row]

    def message(self, key: CustomerKey, message_id: str) -> MessageRow | None:
        """Return one message."""
        row = self._one(f"SELECT {MESSAGE} FROM messages WHERE {OF_CUSTOMER} AND message_id = ?", (*key, message_id))
        return message_row(row) if row else None

    def messages(self, key: CustomerKey) -> Sequence[MessageRow]:
        """Return the customer's messages by id."""
        rows = self._all(f"SELECT {MESSAGE} FROM messages WHERE {OF_CUSTOMER} ORDER BY message_id", key)
        return [message_row(row) for row in rows]

    def lapsed(self, key: CustomerKey, now_us: int) -> Sequence[PurchaseRow]:
        """Return the customer's open holds that lapsed."""
        rows = self._all(
            f"SELECT {PURCHASE} FROM records WHERE {OPEN_PURCHASES} AND lapses_us <= ? ORDER BY lapses_us, id",
            (*key, now_us),
        )
        return [purchase_row(row) for row in rows]

    def entries(self, key: CustomerKey, *, after: int, limit: int) -> Sequence[EntryRow]:
        """Return the customer's entries above `after`."""
        rows = self._all(
            f"SELECT {ENTRY} FROM entries WHERE tenant_id = ? AND customer_id = ? AND sequence > ?"
            " ORDER BY sequence LIMIT ?",
            (*key, after, limit),
        )
        return [entry_row(row) for row in rows]

    def tail(self) -> tuple[BatchRow | None, int]:
        """Return the last batch row and the position of the last entry."""
        row = self._one(f"SELECT {BATCH} FROM batches ORDER BY sequence DESC LIMIT 1", ())
        last = self._one("SELECT max(position) FROM entries", ())
        return BatchRow(*row) if row else None, (last and last[0]) or 0


def _page_of(kind: Kind) -> str:
    return f"SELECT {PURCHASE} FROM records WHERE {OF_CUSTOMER} AND kind = {kind:d} AND id > ? ORDER BY id LIMIT ?"


class SQLiteSnapshot(SQLiteReads):
    """Keeps `engine.storing.Snapshot` on a reading connection: one read transaction from enter to exit."""

    _errors = staticmethod(reading)

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    def __enter__(self) -> Self:
        self._db = self._readers.lend()
        try:
            with reading():
                self._db.execute("BEGIN")
                # A transaction begins to read at its first question, so that is asked at once.
                self._db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def connection(self) -> sqlite3.Connection:
        """What it reads on."""
        return self._db

    def _end(self) -> None:
        try:
            # An error may have ended the transaction by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        finally:
            self._readers.take_back(self._db)

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        """Return customers with a hold that lapsed, earliest first."""
        rows = self._all(
            "SELECT tenant_id, customer_id FROM customers WHERE next_lapse_us > 0 AND next_lapse_us <= ?"
            " ORDER BY next_lapse_us, tenant_id, customer_id LIMIT ?",
            (now_us, limit),
        )
        return [(row[0], row[1]) for row in rows]

    def lanes(self) -> Sequence[Lane]:
        """Return where the one lane ends."""
        return [Lane(WRITER, *self.tail())]

    def writers(self) -> Sequence[int]:
        """Return the number of the one writer."""
        return [WRITER]

    def entries_by_position(
        self, writer: int, *, after: int, limit: int, tenant_id: str = "", tag: int | None = None
    ) -> Sequence[EntryRow]:
        """Return entries above a position, ascending."""
        if writer != WRITER:
            return []
        # Only what is asked for: an index is of no use to a condition that may or may not count.
        given = {"position >": after} | ({"tenant_id =": tenant_id} if tenant_id else {})
        given |= {} if tag is None else {"tag =": tag}
        where = " AND ".join(f"{condition} ?" for condition in given)
        # Named, for SQLite guesses that a place in the journal narrows more than a tenant does.
        by = " INDEXED BY entries_by_tag" if tenant_id and tag is not None else ""
        rows = self._all(
            f"SELECT {ENTRY} FROM entries{by} WHERE {where} ORDER BY position LIMIT ?", (*given.values(), limit)
        )
        return [entry_row(row) for row in rows]

    def entries_before(self, writer: int, *, position: int, limit: int, tenant_id: str, tag: int) -> Sequence[EntryRow]:
        """Return entries below a position, descending."""
        if writer != WRITER:
            return []
        rows = self._all(
            f"SELECT {ENTRY} FROM entries INDEXED BY entries_by_tag WHERE tenant_id = ? AND tag = ? AND position < ?"
            " ORDER BY position DESC LIMIT ?",
            (tenant_id, tag, position, limit),
        )
        return [entry_row(row) for row in rows]

    def changed(self, writer: int, *, after: int, limit: int) -> Sequence[CustomerKey]:
        """Return whose the entries above a position are."""
        rows = self._all(
            "SELECT tenant_id, customer_id FROM entries WHERE position > ? ORDER BY position LIMIT ?",
            (after, limit if writer == WRITER else 0),
        )
        return list(dict.fromkeys((row[0], row[1]) for row in rows))

    def customer_entries_before(self, key: CustomerKey, *, sequence: int, limit: int, tag: int) -> Sequence[EntryRow]:
        """Return a customer's entries below a sequence, descending."""
        rows = self._all(
            f"SELECT {ENTRY} FROM entries WHERE tenant_id = ? AND customer_id = ? AND sequence < ? AND tag = ?"
            " ORDER BY sequence DESC LIMIT ?",
            (*key, sequence, tag, limit),
        )
        return [entry_row(row) for row in rows]

    def marked(self, tag: int) -> Iterator[tuple[CustomerKey, int]]:
        """Yield whose the entries of one tag are, and when each was recorded, tenant by tenant."""
        tenant_id = ""
        # The index leads with the tenant: from one to the next it is a single step.
        while found := self._all("SELECT tenant_id FROM entries WHERE tenant_id > ? ORDER BY 1 LIMIT 1", (tenant_id,)):
            ((tenant_id,),) = found
            asked = "SELECT customer_id, at_us FROM entries INDEXED BY entries_by_tag WHERE tenant_id = ? AND tag = ?"
            for customer_id, at_us in self._all(asked, (tenant_id, tag)):
                yield (tenant_id, customer_id), at_us

    def purchases(self, key: CustomerKey, *, after: str, limit: int, only_open: bool) -> Sequence[PurchaseRow]:
        """Return the customer's purchases by transaction id."""
        asked = (*key, after, limit)
        if only_open:
            rows = self._all(_page_of(Kind.OPEN_PURCHASE), asked)
        else:
            both = f"SELECT * FROM ({_page_of(Kind.OPEN_PURCHASE)}) UNION ALL SELECT * FROM ({_page_of(Kind.PURCHASE)})"
            rows = self._all(f"{both} ORDER BY id LIMIT ?", (*asked, *asked, limit))
        return [purchase_row(row) for row in rows]

    def payments(self, key: CustomerKey) -> Sequence[PaymentRow]:
        """Return the customer's payments by id."""
        rows = self._all(f"SELECT id, state FROM records WHERE {_PAYMENTS} ORDER BY id", key)
        return [PaymentRow(key, *row) for row in rows]

    def messages_due(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """Return messages to be sent, the longest due first."""
        rows = self._all(
            f"SELECT {MESSAGE} FROM messages WHERE due_us <= ?"
            " ORDER BY due_us, tenant_id, customer_id, message_id LIMIT ?",
            (now_us, limit),
        )
        return [message_row(row) for row in rows]

    def all_scopes(self, *, after: ScopeKey, limit: int) -> Sequence[ScopeRow]:
        """Return scopes by key."""
        rows = self._all(
            "SELECT tenant_id, kind, id, state FROM scopes WHERE (tenant_id, kind, id) > (?, ?, ?)"
            " ORDER BY tenant_id, kind, id LIMIT ?",
            (*after, limit),
        )
        return [ScopeRow((row[0], row[1], row[2]), row[3]) for row in rows]

    def customers(self, *, after: CustomerKey, limit: int) -> Sequence[CustomerRow]:
        """Return customers by key."""
        rows = self._all(
            f"SELECT {CUSTOMER} FROM customers WHERE (tenant_id, customer_id) > (?, ?)"
            " ORDER BY tenant_id, customer_id LIMIT ?",
            (*after, limit),
        )
        return [customer_row(row) for row in rows]

    def batches(self, writer: int, *, after: int, limit: int) -> Sequence[BatchRow]:
        """Return batch rows by sequence."""
        rows = self._all(
            f"SELECT {BATCH} FROM batches WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (after, limit if writer == WRITER else 0),
        )
        return [BatchRow(*row) for row in rows]

    def requests(self, key: CustomerKey, *, after: str, limit: int) -> Sequence[RequestRow]:
        """Return the customer's requests by id."""
        rows = self._all(
            f"SELECT {REQUEST} FROM records WHERE {OF_CUSTOMER} AND kind = {Kind.REQUEST:d} AND id > ?"
            " ORDER BY id LIMIT ?",
            (*key, after, limit),
        )
        return [request_row(row) for row in rows]

    def counts(self) -> Mapping[str, int]:
        """Return how many rows there are."""
        counted = {
            name: self._count(f"records WHERE kind IN ({', '.join(map(str, map(int, kinds)))})")
            for name, kinds in _COUNTED.items()
        }
        counted |= {
            table: self._count(table) for table in ("customers", "entries", "batches", "identities", "messages")
        }
        return counted

    def _count(self, rows: str) -> int:
        row = self._one(f"SELECT count(*) FROM {rows}", ())
        return row[0] if row else 0

    def ruleset_source(self, ruleset_hash: bytes) -> str | None:
        """Return the source text of a ruleset."""
        row = self._one("SELECT source FROM rulesets WHERE hash = ?", (ruleset_hash,))
        return row[0] if row else None

    def ruleset_sources(self) -> Mapping[bytes, str]:
        """Return the source texts of all rulesets."""
        return dict(self._all("SELECT hash, source FROM rulesets ORDER BY at_us, hash", ()))
