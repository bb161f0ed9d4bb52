"""What a store keeps: rows of plain values, sealed where they are personal, and what one commit writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from riskgate_server.domain.customer import CustomerKey


class CustomerRow(msgspec.Struct, frozen=True, gc=False):
    """State of a customer as stored. `next_lapse_us` is when the clock will next end a hold; 0 when no hold is open."""

    key: CustomerKey
    sequence: int
    next_lapse_us: int
    state: bytes
    profile: bytes


class PurchaseRow(msgspec.Struct, frozen=True, gc=False):
    """A purchase as stored. `lapses_us` is 0 unless its hold is open; `owed_since` is 0 unless principal is owed."""

    key: CustomerKey
    transaction_id: str
    lapses_us: int
    owed_since: int
    state: bytes


class PaymentRow(msgspec.Struct, frozen=True, gc=False):
    """A payment as stored."""

    key: CustomerKey
    payment_id: str
    state: bytes


class IdentityRow(msgspec.Struct, frozen=True, gc=False):
    """What a customer can prove themselves with, and what is under way; `state` is sealed under their own key."""

    key: CustomerKey
    state: bytes


ScopeKey = tuple[str, int, bytes]
"""(tenant id, kind, id): names a fact that concerns several customers. What the kinds are is the engine's to say."""


class ScopeRow(msgspec.Struct, frozen=True, gc=False):
    """A fact across customers as stored: a budget, or whose something is."""

    scope: ScopeKey
    state: bytes


class MessageRow(msgspec.Struct, frozen=True, gc=False):
    """
    A message to a customer that was not delivered yet; `sealed` holds it, under the customer's own key.

    `due_us` is when it is to be sent, or sent again. Beside it the store knows who has it on lease (`lease_messages`).
    """

    key: CustomerKey
    message_id: str
    due_us: int
    sealed: bytes


class RequestRow(msgspec.Struct, frozen=True, gc=False):
    """What a request id came to. `reply` is empty once forgotten, and for purchases: the journal has them."""

    key: CustomerKey
    request_id: str
    fingerprint: bytes
    sequence: int
    at_us: int
    reply: bytes


class EntryRow(msgspec.Struct, frozen=True, gc=False):
    """One journal entry. `position` is its place in commit order within the lane of `writer`."""

    key: CustomerKey
    sequence: int
    position: int
    batch: int
    at_us: int
    tag: int
    request_id: str
    clear: bytes
    nonce: bytes
    sealed: bytes
    hash: bytes
    writer: int = 0


class BatchRow(msgspec.Struct, frozen=True, gc=False):
    """One commit: the Merkle root of its entries, chained to the commit of the same writer before it."""

    sequence: int
    at_us: int
    first_position: int
    count: int
    root: bytes
    hash: bytes
    writer: int = 0


class Lane(msgspec.Struct, frozen=True):
    """Where the lane of one writer ends, as its next commit will find it: `position` is that of the last entry."""

    writer: int
    batch: BatchRow | None
    """None, and position 0, before the first commit."""
    position: int


class Locked(msgspec.Struct, frozen=True):
    """Which customers a transaction may now change."""

    versions: dict[CustomerKey, int]
    """The sequences of those that exist and are locked: state of another sequence is out of date."""
    elsewhere: frozenset[CustomerKey]
    """Those that another writer holds right now. One that is in neither does not exist yet."""
    forgotten: frozenset[CustomerKey] = frozenset()
    """Those of the locked whose data key was destroyed, whatever a vault remembers of it."""
    changed: Sequence[CustomerRow] = ()
    """The states of those of the locked that are not as whoever asked knew them, or whose key was destroyed."""


NOBODY: Final[Mapping[CustomerKey, int]] = MappingProxyType({})
"""The sequences of no customers."""


def locked_by_the_only_writer(rows: Sequence[CustomerRow], known: Mapping[CustomerKey, int]) -> Locked:
    """Return what a lock of these customers comes to where nobody else writes."""
    changed = [row for row in rows if known.get(row.key) != row.sequence]
    return Locked({row.key: row.sequence for row in rows}, frozenset(), changed=changed)


class BatchWrite(msgspec.Struct):
    """Everything one commit adds or replaces."""

    customers: list[CustomerRow]
    purchases: list[PurchaseRow]
    payments: list[PaymentRow]
    requests: list[RequestRow]
    entries: list[EntryRow]
    batch: BatchRow | None
    identities: list[IdentityRow] = []
    scopes: list[ScopeRow] = []
    messages: list[MessageRow] = []
    settled: list[tuple[CustomerKey, str]] = []
    """Messages to be sent no more."""
