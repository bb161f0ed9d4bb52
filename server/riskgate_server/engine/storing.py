"""
What the engine needs from where rows and keys are kept, said in the engine's words.

A store moves rows and knows nothing of their meaning: states arrive and leave as bytes, so every
store holds the same bytes for the same history. Every "must" below is a test in `tests/contract/`,
run against every store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Final, Protocol

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
)


class NoKey(Enum):
    """Why a customer has no data key."""

    ABSENT = "absent"
    """The vault never had one, or lost its row."""
    FORGOTTEN = "forgotten"
    """It was destroyed, so that what it sealed is gone for good."""
    DAMAGED = "damaged"
    """Its row cannot be opened."""


JOB_LEASE_SECONDS: Final = 10.0
"""How long a periodic job stays with the process that took it: so long nobody does it when that process dies."""


MESSAGE_LEASE_SECONDS: Final = 60.0
"""How long a message is for one process alone to send."""


WRITERS_MAX: Final = 256
"""Writers of one store, numbered from 0: what a reader's token has room for."""


class Reads(Protocol):
    """Questions a transaction and a snapshot both answer. Absent is None, never an error."""

    def customer(self, key: CustomerKey) -> CustomerRow | None:
        """Return the customer's state."""

    def purchase(self, key: CustomerKey, transaction_id: str) -> PurchaseRow | None:
        """Return one purchase."""

    def payment(self, key: CustomerKey, payment_id: str) -> PaymentRow | None:
        """Return one payment."""

    def identity(self, key: CustomerKey) -> IdentityRow | None:
        """Return what the customer can prove themselves with."""

    def message(self, key: CustomerKey, message_id: str) -> MessageRow | None:
        """Return one message that was not delivered yet."""

    def messages(self, key: CustomerKey) -> Sequence[MessageRow]:
        """Return the customer's messages that were not delivered yet, by message id."""

    def lapsed(self, key: CustomerKey, now_us: int) -> Sequence[PurchaseRow]:
        """Return the customer's open holds with `lapses_us` at or before `now_us`, by (lapses_us, transaction_id)."""

    def entries(self, key: CustomerKey, *, after: int, limit: int) -> Sequence[EntryRow]:
        """Return the customer's entries with a sequence above `after`, ascending, at most `limit`."""


class Transaction(Reads, Protocol):
    """One atomic unit of work of the only writer of its lane."""

    def lock(
        self,
        keys: Sequence[CustomerKey],
        wait: Collection[CustomerKey] = frozenset(),
        known: Mapping[CustomerKey, int] = NOBODY,
    ) -> Locked:
        """
        Take customers for this transaction, before anything is read of them: once, and with all that will be named.

        Those in `wait` are waited for, in key order; of the others, who is held elsewhere is left there. `known` are
        the sequences of those whose state is at hand already: of the others it comes along.
        """

    def customers(self, keys: Sequence[CustomerKey]) -> Sequence[CustomerRow]:
        """Return the states of those of the customers that exist, in any order."""

    def found(
        self, requests: Sequence[tuple[CustomerKey, str]], purchases: Sequence[tuple[CustomerKey, str]]
    ) -> tuple[Sequence[RequestRow], Sequence[PurchaseRow]]:
        """Return what those of the request ids that were used came to, and the purchases that exist; in any order."""

    def scopes(self, keys: Sequence[ScopeKey]) -> Sequence[ScopeRow]:
        """
        Take scopes for this transaction, and return those that exist, in any order.

        Once, after the customers were locked, and with all that will be written: they are waited for in key order.
        """

    def owed(self, key: CustomerKey) -> Sequence[PurchaseRow]:
        """Return the customer's purchases that owe principal, by (owed_since, transaction_id)."""

    def next_lapse(self, key: CustomerKey, after_us: int) -> int:
        """Return the earliest `lapses_us` above `after_us` among the customer's open holds; 0 when there is none."""

    def tail(self) -> tuple[BatchRow | None, int]:
        """Return the last batch row and the position of the last entry (0 before the first)."""

    def write(self, batch: BatchWrite) -> None:
        """
        Add or replace everything in `batch`. A customer that is replaced must have been locked, a scope taken.

        Raises when an entry's (key, sequence), its position, a batch's sequence or a request id is taken.
        """


class Snapshot(Reads, AbstractContextManager["Snapshot"], Protocol):
    """
    A consistent view for reading; never sees an uncommitted row.

    Positions and batches are counted in the lane of each writer; a lane that nobody wrote is an empty one.
    """

    def lanes(self) -> Sequence[Lane]:
        """Return where every lane ends, by writer: what its writer goes on from, whatever rows there are."""

    def writers(self) -> Sequence[int]:
        """Return the numbers of all writers of whom a lane, a batch row or an entry is stored, ascending."""

    def entries_by_position(
        self, writer: int, *, after: int, limit: int, tenant_id: str = "", tag: int | None = None
    ) -> Sequence[EntryRow]:
        """Return a lane's entries with a position above `after`, ascending, at most `limit`; of one tenant and tag."""

    def entries_before(self, writer: int, *, position: int, limit: int, tenant_id: str, tag: int) -> Sequence[EntryRow]:
        """Return a tenant's entries of one tag in a lane below `position`, descending, at most `limit`."""

    def changed(self, writer: int, *, after: int, limit: int) -> Sequence[CustomerKey]:
        """Return whose the entries of a lane above `after` are, in the order of the first `limit` entries."""

    def customer_entries_before(self, key: CustomerKey, *, sequence: int, limit: int, tag: int) -> Sequence[EntryRow]:
        """Return a customer's entries of one tag with a sequence below `sequence`, descending, at most `limit`."""

    def marked(self, tag: int) -> Iterator[tuple[CustomerKey, int]]:
        """
        Yield whose the entries of one tag are and when each was recorded (UTC µs), of every tenant and lane.

        Reads no entry of another tag, however long the journal is. To be exhausted before the snapshot ends.
        """

    def purchases(self, key: CustomerKey, *, after: str, limit: int, only_open: bool) -> Sequence[PurchaseRow]:
        """Return the customer's purchases with a transaction id above `after`, ascending, at most `limit`."""

    def payments(self, key: CustomerKey) -> Sequence[PaymentRow]:
        """Return the customer's payments by payment id."""

    def scopes(self, keys: Sequence[ScopeKey]) -> Sequence[ScopeRow]:
        """Return those of the scopes that were written, as they stand, in any order."""

    def all_scopes(self, *, after: ScopeKey, limit: int) -> Sequence[ScopeRow]:
        """Return scopes that were written, as they stand, with a key above `after`, ascending, at most `limit`."""

    def messages_due(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """Return messages to be sent at or before `now_us`, the longest due first, at most `limit`."""

    def customers(self, *, after: CustomerKey, limit: int) -> Sequence[CustomerRow]:
        """Return customers with a key above `after`, ascending, at most `limit`."""

    def batches(self, writer: int, *, after: int, limit: int) -> Sequence[BatchRow]:
        """Return a lane's batch rows with a sequence above `after`, ascending, at most `limit`."""

    def requests(self, key: CustomerKey, *, after: str, limit: int) -> Sequence[RequestRow]:
        """Return the customer's requests with an id above `after`, ascending, at most `limit`."""

    def counts(self) -> Mapping[str, int]:
        """Return how many rows there are: customers and identities, purchases, and so on."""

    def ruleset_source(self, ruleset_hash: bytes) -> str | None:
        """Return the source text of a ruleset that decided here."""

    def ruleset_sources(self) -> Mapping[bytes, str]:
        """Return the source texts of all rulesets that decided here, by their hashes."""


class Snapshots(Protocol):
    """Where consistent views come from."""

    def snapshot(self) -> Snapshot:
        """
        A consistent view of everything committed so far. Safe from any thread; each call has its own.

        Entering it, and every question, raises ReadFailed when it cannot be answered now.
        """


class Store(Snapshots, Protocol):
    """Durable rows. What a transaction committed survives any crash that follows."""

    @property
    def shared(self) -> bool:
        """Whether others may write too: then what is remembered of a customer counts only at the locked version."""

    @property
    def writer(self) -> int:
        """The number of the lane that this store writes; in every entry and batch row it is given."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """
        One atomic unit of work: commits on clean exit, leaves nothing on any exception.

        Raises:
            StoreBroken: the commit failed and may or may not have happened.
            StoreFull: there was no room; nothing happened.
            StoreBusy: another program was in the way; nothing happened.
            StoreUnreachable: there is no connection, or it was lost; nothing happened.
            StoreConflict: another writer was first; nothing happened.
            OutcomeUnknown: the commit may or may not have happened; the store goes on.
        """

    def lease(self, job: str) -> bool:
        """
        Take, or keep, a job that only one of the processes that share the store is to do; False if another has it.

        For JOB_LEASE_SECONDS by the store's own clock, or until the store is closed.
        """

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        """Return customers with a hold that lapsed at or before `now_us`, earliest first, at most `limit`."""

    def lease_messages(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """
        Take messages that are due at or before `now_us` and on lease to nobody: the longest due first, at most `limit`.

        No other lease has them for MESSAGE_LEASE_SECONDS by the store's own clock, however this process ends. Who
        writes a message, anew or to put it off, has it on lease for as long from then on. Belongs to the thread that
        writes, like a transaction, and raises what one does.
        """

    def forget_replies(self, before_us: int, limit: int) -> int:
        """Empty the replies of at most `limit` requests older than `before_us`, oldest first; return how many."""

    def remember_ruleset(self, ruleset_hash: bytes, source: str, at_us: int) -> None:
        """Keep the source text of a ruleset, so that what it decided can be recomputed. Again is no effect."""

    def close(self) -> None:
        """Finish; use afterwards raises."""


class Vault(Protocol):
    """Customers' data keys, apart from the store so that a key can be truly forgotten."""

    def keys(self, customers: Sequence[CustomerKey]) -> dict[CustomerKey, bytes | NoKey]:
        """Return the data key of each customer, or why there is none; one customer's damage harms no other."""

    def create(self, keys: Mapping[CustomerKey, bytes]) -> dict[CustomerKey, bytes]:
        """
        Keep new keys, durable on return, and return the keys that now stand (an older one wins).

        Raises:
            ValueError: a customer's key was forgotten, or is damaged.
        """

    def forget(self, customer: CustomerKey) -> None:
        """
        Destroy one customer's key for good.

        Who locks the customer from then on is told so; other processes read with it for at most 10 seconds more.
        """
