"""The memory store: one dictionary per kind of row, replaced as a whole at commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.rows import (
    NOBODY,
    BatchRow,
    BatchWrite,
    CustomerRow,
    EntryRow,
    IdentityRow,
    Lane,
    Locked,
    MessageRow,
    PaymentRow,
    PurchaseRow,
    RequestRow,
    ScopeKey,
    ScopeRow,
    locked_by_the_only_writer,
)
from riskgate_server.stores.leases import Leases

_Row = TypeVar("_Row")


class _Tables:
    """Everything that was committed."""

    def __init__(self) -> None:
        self.customers: dict[CustomerKey, CustomerRow] = {}
        self.purchases: dict[CustomerKey, dict[str, PurchaseRow]] = {}
        self.payments: dict[CustomerKey, dict[str, PaymentRow]] = {}
        self.requests: dict[tuple[CustomerKey, str], RequestRow] = {}
        self.chains: dict[CustomerKey, list[EntryRow]] = {}
        self.journal: list[EntryRow] = []
        self.batches: list[BatchRow] = []
        self.identities: dict[CustomerKey, IdentityRow] = {}
        self.scopes: dict[ScopeKey, ScopeRow] = {}
        self.messages: dict[tuple[CustomerKey, str], MessageRow] = {}
        self.rulesets: dict[bytes, str] = {}


class MemoryStore:
    """Keeps `engine.storing.Store`. A lock makes each transaction and each snapshot's answers consistent."""

    shared: Final = False
    writer: Final = 0

    def __init__(self) -> None:
        self._tables = _Tables()
        self._leases = Leases()
        self._lock = threading.RLock()
        self._closed = False

    @contextmanager
    def transaction(self) -> Iterator[MemoryTransaction]:
        """One atomic unit of work."""
        self._check_open()
        with self._lock:
            tx = MemoryTransaction(self._tables, self._leases)
            yield tx
            tx.apply()

    def snapshot(self) -> MemorySnapshot:
        """A view of everything committed so far."""
        self._check_open()
        return MemorySnapshot(self._tables, self._lock)

    def lease(self, _job: str) -> bool:
        """The only process does every job."""
        self._check_open()
        return True

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        """Return customers with a hold that lapsed, earliest first."""
        self._check_open()
        with self._lock:
            due = [row for row in self._tables.customers.values() if 0 < row.next_lapse_us <= now_us]
        return [row.key for row in sorted(due, key=lambda row: (row.next_lapse_us, row.key))[:limit]]

    def lease_messages(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """Take due messages that nobody has."""
        with self.snapshot() as snapshot:
            return self._leases.take(snapshot.messages_due(now_us, limit + len(self._leases)), limit)

    def forget_replies(self, before_us: int, limit: int) -> int:
        """Empty the replies of old requests."""
        self._check_open()
        with self._lock:
            old = [(where, row) for where, row in self._tables.requests.items() if row.reply and row.at_us < before_us]
            old.sort(key=lambda item: item[1].at_us)
            for where, row in old[:limit]:
                self._tables.requests[where] = msgspec.structs.replace(row, reply=b"")
        return len(old[:limit])

    def remember_ruleset(self, ruleset_hash: bytes, source: str, at_us: int) -> None:
        """Keep the source text of a ruleset."""
        del at_us
        self._check_open()
        with self._lock:
            self._tables.rulesets.setdefault(ruleset_hash, source)

    def close(self) -> None:
        """Finish."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            message = "the store is closed"
            raise RuntimeError(message)


class _MemoryReads:
    def __init__(self, tables: _Tables) -> None:
        self._tables = tables

    def customer(self, key: CustomerKey) -> CustomerRow | None:
        """Return the customer's state."""
        return self._tables.customers.get(key)

    def purchase(self, key: CustomerKey, transaction_id: str) -> PurchaseRow | None:
        """Return one purchase."""
        return self._tables.purchases.get(key, {}).get(transaction_id)

    def payment(self, key: CustomerKey, payment_id: str) -> PaymentRow | None:
        """Return one payment."""
        return self._tables.payments.get(key, {}).get(payment_id)

    def identity(self, key: CustomerKey) -> IdentityRow | None:
        """Return what the customer can prove themselves with."""
        return self._tables.identities.get(key)

    def message(self, key: CustomerKey, message_id: str) -> MessageRow | None:
        """Return one message."""
        return self._tables.messages.get((key, message_id))

    def messages(self, key: CustomerKey) -> Sequence[MessageRow]:
        """Return the customer's messages by id."""
        return [row for (whose, _), row in sorted(self._tables.messages.items()) if whose == key]

    def lapsed(self, key: CustomerKey, now_us: int) -> Sequence[PurchaseRow]:
        """Return the customer's open holds that lapsed."""
        rows = [p for p in self._tables.purchases.get(key, {}).values() if 0 < p.lapses_us <= now_us]
        return sorted(rows, key=lambda p: (p.lapses_us, p.transaction_id))

    def entries(self, key: CustomerKey, *, after: int, limit: int) -> Sequence[EntryRow]:
        """Return the customer's entries above `after`."""
        start = max(after, 0)
        return self._tables.chains.get(key, [])[start : start + limit]

    def scopes(self, keys: Sequence[ScopeKey]) -> Sequence[ScopeRow]:
        """Return those of the scopes that exist."""
        return [row for key in keys if (row := self._tables.scopes.get(key))]


class MemoryTransaction(_MemoryReads):
    """Keeps `engine.storing.Transaction`: reads what is committed, applies what is written at the end."""

    def __init__(self, tables: _Tables, leases: Leases) -> None:
        super().__init__(tables)
        self._leases = leases
        self._writes: list[BatchWrite] = []
        self._taken: set[tuple[CustomerKey, str]] = set()
        self._sequences: dict[CustomerKey, int] = {}
        self._position = len(tables.journal)
        self._batches = len(tables.batches)

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
        return [row for key in keys if (row := self.customer(key))]

    def found(
        self, requests: Sequence[tuple[CustomerKey, str]], purchases: Sequence[tuple[CustomerKey, str]]
    ) -> tuple[Sequence[RequestRow], Sequence[PurchaseRow]]:
        """Return what those of the request ids that were used came to, and those of the purchases that exist."""
        used = [row for asked in requests if (row := self._tables.requests.get(asked))]
        return used, [found for key, transaction_id in purchases if (found := self.purchase(key, transaction_id))]

    def owed(self, key: CustomerKey) -> Sequence[PurchaseRow]:
        """Return the purchases that owe principal."""
        rows = [p for p in self._tables.purchases.get(key, {}).values() if p.owed_since]
        return sorted(rows, key=lambda p: (p.owed_since, p.transaction_id))

    def next_lapse(self, key: CustomerKey, after_us: int) -> int:
        """Return the earliest lapse above `after_us`."""
        rows = self._tables.purchases.get(key, {}).values()
        return min((p.lapses_us for p in rows if p.lapses_us > after_us), default=0)

    def tail(self) -> tuple[BatchRow | None, int]:
        """Return the last batch row and the position of the last entry."""
        return (self._tables.batches[-1] if self._tables.batches else None), len(self._tables.journal)

    def write(self, batch: BatchWrite) -> None:
        """Add or replace everything in `batch` when the transaction ends."""
        tables = self._tables
        for row in batch.requests:
            where = (row.key, row.request_id)
            _refuse(where in tables.requests or where in self._taken, f"request id {row.request_id} is taken")
            self._taken.add(where)
        for entry in batch.entries:
            follows = self._sequences.get(entry.key, len(tables.chains.get(entry.key, ()))) + 1
            _refuse(entry.sequence != follows, f"entry {entry.sequence} does not follow {follows - 1}")
            self._sequences[entry.key] = follows
            self._position += 1
            _refuse(entry.position != self._position, f"position {entry.position} is not {self._position}")
        if batch.batch:
            self._batches += 1
            _refuse(batch.batch.sequence != self._batches, f"batch {batch.batch.sequence} is not {self._batches}")
        self._writes.append(batch)

    def apply(self) -> None:
        """Commit."""
        tables = self._tables
        for batch in self._writes:
            tables.customers.update((row.key, row) for row in batch.customers)
            for purchase in batch.purchases:
                tables.purchases.setdefault(purchase.key, {})[purchase.transaction_id] = purchase
            for payment in batch.payments:
                tables.payments.setdefault(payment.key, {})[payment.payment_id] = payment
            tables.requests.update(((row.key, row.request_id), row) for row in batch.requests)
            for entry in batch.entries:
                tables.chains.setdefault(entry.key, []).append(entry)
                tables.journal.append(entry)
            if batch.batch:
                tables.batches.append(batch.batch)
            tables.identities.update((row.key, row) for row in batch.identities)
            tables.scopes.update((row.scope, row) for row in batch.scopes)
            tables.messages.update(((row.key, row.message_id), row) for row in batch.messages)
            for settled in batch.settled:
                tables.messages.pop(settled, None)
            self._leases.begin(batch.messages)
            self._leases.end(batch.settled)


class MemorySnapshot(_MemoryReads):
    """Keeps `engine.storing.Snapshot`: holds the lock, so nothing is committed while it is open."""

    def __init__(self, tables: _Tables, lock: threading.RLock) -> None:
        super().__init__(tables)
        self._lock = lock

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def lanes(self) -> Sequence[Lane]:
        """Return where the one lane ends."""
        tables = self._tables
        return [Lane(MemoryStore.writer, tables.batches[-1] if tables.batches else None, len(tables.journal))]

    def writers(self) -> Sequence[int]:
        """Return the number of the one writer."""
        return [MemoryStore.writer]

    def _lane(self, writer: int) -> list[EntryRow]:
        return self._tables.journal if writer == MemoryStore.writer else []

    def entries_by_position(
        self, writer: int, *, after: int, limit: int, tenant_id: str = "", tag: int | None = None
    ) -> Sequence[EntryRow]:
        """Return entries above a position, ascending."""
        wanted = _wanted(tenant_id, tag)
        return _first(limit, (e for e in self._lane(writer)[max(after, 0) :] if wanted(e)))

    def entries_before(self, writer: int, *, position: int, limit: int, tenant_id: str, tag: int) -> Sequence[EntryRow]:
        """Return entries below a position, descending."""
        wanted = _wanted(tenant_id, tag)
        return _first(limit, (e for e in reversed(self._lane(writer)[: max(position - 1, 0)]) if wanted(e)))

    def changed(self, writer: int, *, after: int, limit: int) -> Sequence[CustomerKey]:
        """Return whose the entries above a position are."""
        start = max(after, 0)
        return list(dict.fromkeys(e.key for e in self._lane(writer)[start : start + limit]))

    def customer_entries_before(self, key: CustomerKey, *, sequence: int, limit: int, tag: int) -> Sequence[EntryRow]:
        """Return a customer's entries below a sequence, descending."""
        chain = self._tables.chains.get(key, [])[: max(sequence - 1, 0)]
        return _first(limit, (e for e in reversed(chain) if e.tag == tag))

    def marked(self, tag: int) -> Iterator[tuple[CustomerKey, int]]:
        """Yield whose the entries of one tag are, and when each was recorded."""
        return ((e.key, e.at_us) for e in self._tables.journal if e.tag == tag)

    def purchases(self, key: CustomerKey, *, after: str, limit: int, only_open: bool) -> Sequence[PurchaseRow]:
        """Return the customer's purchases by transaction id."""
        rows = sorted(self._tables.purchases.get(key, {}).items())
        return _first(limit, (p for i, p in rows if i > after and (p.lapses_us or not only_open)))

    def payments(self, key: CustomerKey) -> Sequence[PaymentRow]:
        """Return the customer's payments by id."""
        return [row for _, row in sorted(self._tables.payments.get(key, {}).items())]

    def messages_due(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """Return messages to be sent, the longest due first."""
        due = [row for row in self._tables.messages.values() if row.due_us <= now_us]
        return sorted(due, key=lambda row: (row.due_us, row.key, row.message_id))[:limit]

    def all_scopes(self, *, after: ScopeKey, limit: int) -> Sequence[ScopeRow]:
        """Return scopes by key."""
        return _first(limit, (row for scope, row in sorted(self._tables.scopes.items()) if scope > after))

    def requests(self, key: CustomerKey, *, after: str, limit: int) -> Sequence[RequestRow]:
        """Return the customer's requests by id."""
        rows = sorted((i, row) for (whose, i), row in self._tables.requests.items() if whose == key and i > after)
        return [row for _, row in rows[:limit]]

    def customers(self, *, after: CustomerKey, limit: int) -> Sequence[CustomerRow]:
        """Return customers by key."""
        return _first(limit, (row for key, row in sorted(self._tables.customers.items()) if key > after))

    def batches(self, writer: int, *, after: int, limit: int) -> Sequence[BatchRow]:
        """Return batch rows by sequence."""
        start = max(after, 0)
        return self._tables.batches[start : start + limit] if writer == MemoryStore.writer else []

    def counts(self) -> Mapping[str, int]:
        """Return how many rows there are."""
        tables = self._tables
        return {
            "customers": len(tables.customers),
            "purchases": sum(map(len, tables.purchases.values())),
            "payments": sum(map(len, tables.payments.values())),
            "requests": len(tables.requests),
            "entries": len(tables.journal),
            "batches": len(tables.batches),
            "identities": len(tables.identities),
            "messages": len(tables.messages),
        }

    def ruleset_source(self, ruleset_hash: bytes) -> str | None:
        """Return the source text of a ruleset."""
        return self._tables.rulesets.get(ruleset_hash)

    def ruleset_sources(self) -> Mapping[bytes, str]:
        """Return the source texts of all rulesets."""
        return dict(self._tables.rulesets)


def _refuse(refused: bool, message: str) -> None:  # noqa: FBT001 - reads as a sentence
    if refused:
        raise ValueError(message)


def _wanted(tenant_id: str, tag: int | None) -> Callable[[EntryRow], bool]:
    return lambda e: (not tenant_id or e.key[0] == tenant_id) and (tag is None or e.tag == tag)


def _first(limit: int, rows: Iterator[_Row]) -> list[_Row]:
    return list(islice(rows, limit))
