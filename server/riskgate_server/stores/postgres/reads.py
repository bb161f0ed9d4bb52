"""Questions and their rows: what a transaction and a snapshot ask alike, and what only a snapshot is asked."""

from __future__ import annotations

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
from riskgate_server.stores.postgres.session import Connection, Readers, reading

CUSTOMER: Final = "tenant_id, customer_id, sequence, next_lapse_us, state, profile"
PURCHASE: Final = "tenant_id, customer_id, transaction_id, lapses_us, owed_since, state"
REQUEST: Final = "tenant_id, customer_id, request_id, fingerprint, sequence, at_us, reply"
BATCH: Final = "sequence, at_us, first_position, count, root, hash, writer"
ENTRY: Final = (
    "tenant_id, customer_id, sequence, position, batch, at_us, tag, request_id, clear, nonce, sealed, hash, writer"
)
MESSAGE: Final = "tenant_id, customer_id, message_id, due_us, sealed"
OF_CUSTOMER: Final = "tenant_id = $1 AND customer_id = $2"

_COUNTED: Final = ("customers", "purchases", "payments", "requests", "entries", "batches", "identities", "messages")


def as_customer(row: tuple[Any, ...]) -> CustomerRow:
    """Return a row of CUSTOMER."""
    return CustomerRow((row[0], row[1]), *row[2:])


def as_purchase(row: tuple[Any, ...]) -> PurchaseRow:
    """Return a row of PURCHASE."""
    return PurchaseRow((row[0], row[1]), *row[2:])


def as_request(row: tuple[Any, ...]) -> RequestRow:
    """Return a row of REQUEST."""
    return RequestRow((row[0], row[1]), *row[2:])


def as_message(row: tuple[Any, ...]) -> MessageRow:
    """Return a message from its columns."""
    return MessageRow((row[0], row[1]), *row[2:])


def _as_entry(row: tuple[Any, ...]) -> EntryRow:
    return EntryRow((row[0], row[1]), *row[2:])


class PostgresReads:
    """Asks one connection."""

    _errors: Callable[[], AbstractContextManager[None]]
    """Says what goes wrong on this kind of connection in the port's words."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def _all(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(sql, parameters, binary=True).fetchall()

    def _one(self, sql: str, parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with self._errors():
            return self._db.execute(sql, parameters, binary=True).fetchone()

    def customer(self, key: CustomerKey) -> CustomerRow | None:
        """Return the customer's state."""
        row = self._one(f"SELECT {CUSTOMER} FROM customers WHERE {OF_CUSTOMER}", key)
        return as_customer(row) if row else None

    def purchase(self, key: CustomerKey, transaction_id: str) -> PurchaseRow | None:
        """Return one purchase."""
        row = self._one(
            f"SELECT {PURCHASE} FROM purchases WHERE {OF_CUSTOMER} AND transaction_id = $3", (*key, transaction_id)
        )
        return as_purchase(row) if row else None

    def payment(self, key: CustomerKey, payment_id: str) -> PaymentRow | None:
        """Return one payment."""
        row = self._one(f"SELECT state FROM payments WHERE {OF_CUSTOMER} AND payment_id = $3", (*key, payment_id))
        return PaymentRow(key, payment_id, row[0]) if row else None

    def identity(self, key: CustomerKey) -> IdentityRow | None:
        """Return what the customer can prove themselves with."""
        row = self._one(f"SELECT state FROM identities WHERE {OF_CUSTOMER}", key)
        return IdentityRow(key, row[0]) if row else None

    def message(self, key: CustomerKey, message_id: str) -> MessageRow | None:
        """Return one message."""
        row = self._one(f"SELECT {MESSAGE} FROM messages WHERE {OF_CUSTOMER} AND message_id = $3", (*key, message_id))
        return as_message(row) if row else None

    def messages(self, key: CustomerKey) -> Sequence[MessageRow]:
        """Return the customer's messages by id."""
        rows = self._all(f"SELECT {MESSAGE} FROM messages WHERE {OF_CUSTOMER} ORDER BY message_id", key)
        return [as_message(row) for row in rows]

    def lapsed(self, key: CustomerKey, now_us: int) -> Sequence[PurchaseRow]:
        """Return the customer's open holds that lapsed."""
        rows = self._all(
            f"SELECT {PURCHASE} FROM purchases WHERE {OF_CUSTOMER} AND lapses_us > 0 AND lapses_us <= $3"
            " ORDER BY lapses_us, transaction_id",
            (*key, now_us),
        )
        return [as_purchase(row) for row in rows]

    def entries(self, key: CustomerKey, *, after: int, limit: int) -> Sequence[EntryRow]:
        """Return the customer's entries above `after`."""
        rows = self._all(
            f"SELECT {ENTRY} FROM entries WHERE {OF_CUSTOMER} AND sequence > $3 ORDER BY sequence LIMIT $4",
            (*key, after, limit),
        )
        return [_as_entry(row) for row in rows]


class PostgresSnapshot(PostgresReads):
    """Keeps `engine.storing.Snapshot`: one transaction that sees one moment, from enter to exit."""

    _errors = staticmethod(reading)

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._lent: AbstractContextManager[Connection] | None = None

    def __enter__(self) -> Self:
        self._lent = self._readers.lend()
        super().__init__(self._lent.__enter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lent is not None
        self._lent.__exit__(kind, error, trace)

    @property
    def connection(self) -> Connection:
        """What it reads on."""
        return self._db

    def lanes(self) -> Sequence[Lane]:
        """Return where every lane ends."""
        rows = self._all(f"SELECT position, {BATCH} FROM writers ORDER BY writer", ())
        batches = [(position, BatchRow(*batch)) for position, *batch in rows]
        return [Lane(batch.writer, batch if batch.sequence else None, position) for position, batch in batches]

    def writers(self) -> Sequence[int]:
        """Return the numbers of all writers of whom anything is stored."""
        # For who reads everything: an index is read whole.
        tables = ("writers", "batches", "entries")
        rows = self._all(" UNION ".join(f"SELECT writer FROM {table}" for table in tables) + " ORDER BY writer", ())
        return [row[0] for row in rows]

    def entries_by_position(
        self, writer: int, *, after: int, limit: int, tenant_id: str = "", tag: int | None = None
    ) -> Sequence[EntryRow]:
        """Return entries above a position, ascending."""
        given: list[Any] = [writer, after, limit]
        where = "writer = $1 AND position > $2"
        for column, value in (("tenant_id", tenant_id or None), ("tag", tag)):
            if value is not None:
                given.append(value)
                where += f" AND {column} = ${len(given)}"
        rows = self._all(f"SELECT {ENTRY} FROM entries WHERE {where} ORDER BY position LIMIT $3", tuple(given))
        return [_as_entry(row) for row in rows]

    def entries_before(self, writer: int, *, position: int, limit: int, tenant_id: str, tag: int) -> Sequence[EntryRow]:
        """Return entries below a position, descending."""
        rows = self._all(
            f"SELECT {ENTRY} FROM entries WHERE tenant_id = $1 AND tag = $2 AND writer = $3 AND position < $4"
            " ORDER BY position DESC LIMIT $5",
            (tenant_id, tag, writer, position, limit),
        )
        return [_as_entry(row) for row in rows]

    def changed(self, writer: int, *, after: int, limit: int) -> Sequence[CustomerKey]:
        """Return whose the entries above a position are."""
        rows = self._all(
            "SELECT tenant_id, customer_id FROM entries WHERE writer = $1 AND position > $2 ORDER BY position LIMIT $3",
            (writer, after, limit),
        )
        return list(dict.fromkeys((row[0], row[1]) for row in rows))

    def customer_entries_before(self, key: CustomerKey, *, sequence: int, limit: int, tag: int) -> Sequence[EntryRow]:
        """Return a customer's entries below a sequence, descending."""
        rows = self._all(
            f"SELECT {ENTRY} FROM entries WHERE {OF_CUSTOMER} AND sequence < $3 AND tag = $4"
            " ORDER BY sequence DESC LIMIT $5",
            (*key, sequence, tag, limit),
        )
        return [_as_entry(row) for row in rows]

    def marked(self, tag: int) -> Iterator[tuple[CustomerKey, int]]:
        """Yield whose the entries of one tag are, and when each was recorded, tenant by tenant."""
        tenant_id = ""
        # The index leads with the tenant: from one to the next it is a single step.
        while found := self._all("SELECT tenant_id FROM entries WHERE tenant_id > $1 ORDER BY 1 LIMIT 1", (tenant_id,)):
            ((tenant_id,),) = found
            asked = "SELECT customer_id, at_us FROM entries WHERE tenant_id = $1 AND tag = $2"
            for customer_id, at_us in self._all(asked, (tenant_id, tag)):
                yield (tenant_id, customer_id), at_us

    def purchases(self, key: CustomerKey, *, after: str, limit: int, only_open: bool) -> Sequence[PurchaseRow]:
        """Return the customer's purchases by transaction id."""
        still_open = " AND lapses_us > 0" if only_open else ""
        rows = self._all(
            f"SELECT {PURCHASE} FROM purchases WHERE {OF_CUSTOMER} AND transaction_id > $3{still_open}"
            " ORDER BY transaction_id LIMIT $4",
            (*key, after, limit),
        )
        return [as_purchase(row) for row in rows]

    def payments(self, key: CustomerKey) -> Sequence[PaymentRow]:
        """Return the customer's payments by id."""
        rows = self._all(f"SELECT payment_id, state FROM payments WHERE {OF_CUSTOMER} ORDER BY payment_id", key)
        return [PaymentRow(key, *row) for row in rows]

    def scopes(self, keys: Sequence[ScopeKey]) -> Sequence[ScopeRow]:
        """Return those of the scopes that were written; one that is empty is only there to be locked."""
        asked = "SELECT state FROM scopes WHERE tenant_id = $1 AND kind = $2 AND id = $3"
        rows = [(key, self._one(asked, key)) for key in keys]
        return [ScopeRow(key, row[0]) for key, row in rows if row and row[0]]

    def all_scopes(self, *, after: ScopeKey, limit: int) -> Sequence[ScopeRow]:
        """Return scopes by key, without those that are only there to be locked."""
        rows = self._all(
            "SELECT tenant_id, kind, id, state FROM scopes WHERE (tenant_id, kind, id) > ($1, $2, $3) AND state <> ''"
            " ORDER BY tenant_id, kind, id LIMIT $4",
            (*after, limit),
        )
        return [ScopeRow((row[0], row[1], row[2]), row[3]) for row in rows]

    def messages_due(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """Return messages to be sent, the longest due first."""
        rows = self._all(
            f"SELECT {MESSAGE} FROM messages WHERE due_us <= $1"
            " ORDER BY due_us, tenant_id, customer_id, message_id LIMIT $2",
            (now_us, limit),
        )
        return [as_message(row) for row in rows]

    def customers(self, *, after: CustomerKey, limit: int) -> Sequence[CustomerRow]:
        """Return customers by key."""
        rows = self._all(
            f"SELECT {CUSTOMER} FROM customers WHERE (tenant_id, customer_id) > ($1, $2)"
            " ORDER BY tenant_id, customer_id LIMIT $3",
            (*after, limit),
        )
        return [as_customer(row) for row in rows]

    def batches(self, writer: int, *, after: int, limit: int) -> Sequence[BatchRow]:
        """Return batch rows by sequence."""
        rows = self._all(
            f"SELECT {BATCH} FROM batches WHERE writer = $1 AND sequence > $2 ORDER BY sequence LIMIT $3",
            (writer, after, limit),
        )
        return [BatchRow(*row) for row in rows]

    def requests(self, key: CustomerKey, *, after: str, limit: int) -> Sequence[RequestRow]:
        """Return the customer's requests by id."""
        rows = self._all(
            f"SELECT {REQUEST} FROM requests WHERE {OF_CUSTOMER} AND request_id > $3 ORDER BY request_id LIMIT $4",
            (*key, after, limit),
        )
        return [as_request(row) for row in rows]

    def counts(self) -> Mapping[str, int]:
        """Return how many rows there are."""
        counted = self._one("SELECT " + ", ".join(f"(SELECT count(*) FROM {table})" for table in _COUNTED), ())
        assert counted is not None
        return dict(zip(_COUNTED, counted, strict=True))

    def ruleset_source(self, ruleset_hash: bytes) -> str | None:
        """Return the source text of a ruleset."""
        row = self._one("SELECT source FROM rulesets WHERE hash = $1", (ruleset_hash,))
        return row[0] if row else None

    def ruleset_sources(self) -> Mapping[bytes, str]:
        """Return the source texts of all rulesets."""
        return dict(self._all("SELECT hash, source FROM rulesets", ()))

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        """Return customers with a hold that lapsed, earliest first."""
        rows = self._all(
            "SELECT tenant_id, customer_id FROM customers WHERE next_lapse_us > 0 AND next_lapse_us <= $1"
            " ORDER BY next_lapse_us, tenant_id, customer_id LIMIT $2",
            (now_us, limit),
        )
        return [(row[0], row[1]) for row in rows]
