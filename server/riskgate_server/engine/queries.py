"""
Questions: what stands now, what was decided, and why. Reads only what is committed.

Expiry is evaluated at read: a hold whose time is over is shown as ended, and its credit as
available, whether or not the books say so yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from heapq import merge
from typing import Final

import msgspec

from riskgate_server.domain.customer import Customer, CustomerKey
from riskgate_server.domain.errors import NotFound, PreconditionFailed, RiskgateError
from riskgate_server.domain.events import (
    DecisionAnnotated,
    Event,
    Happening,
    HoldExpired,
    Outcome,
    PurchaseDecided,
    PurchaseSecrets,
)
from riskgate_server.domain.identity.events import MessageSettled
from riskgate_server.domain.identity.identity import EMPTY_IDENTITY, Identity
from riskgate_server.domain.journal import Aggregate, evolve
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.holds import HoldState, after_expiry
from riskgate_server.engine import sealing
from riskgate_server.engine.devices import view as device_view
from riskgate_server.engine.messages import entry_of
from riskgate_server.engine.otp import view
from riskgate_server.engine.places import Places, token_invalid
from riskgate_server.engine.ports import Clock, RiskRules, Rulesets, RuleTrace, Sealer
from riskgate_server.engine.replies import (
    ERASED,
    UNREADABLE,
    AnnotationReply,
    DecisionReply,
    DeviceView,
    FactorView,
    HoldReply,
    LineReply,
)
from riskgate_server.engine.rows import CustomerRow, EntryRow
from riskgate_server.engine.storing import NoKey, Snapshot, Store, Vault

DECISION_TAG: Final = sealing.EVENT_TAGS[PurchaseDecided]
ANNOTATION_TAG: Final = sealing.EVENT_TAGS[DecisionAnnotated]
SETTLED_TAG: Final = sealing.EVENT_TAGS[MessageSettled]
ANNOTATIONS_MAX: Final = 100
"""Annotations shown with one decision."""
TOKEN_DIGITS_MAX: Final = 18
SCAN_MAX: Final = 2_000
"""Entries one page of a filtered list looks at; a page may come back short, with a token."""
CHUNK: Final = 200
"""Entries that are read at once for a list."""
_CHAIN: Final = 0
"""The one lane of a list of a single customer: their own chain."""


SETTLED_CHUNK: Final = 16
"""Entries that are read at once to see what a message came to: mostly it is the next but few."""


class Page(msgspec.Struct):
    """Some items, and what the next page comes before; empty at the end."""

    decisions: list[DecisionReply]
    next_before: Places


class Entry(msgspec.Struct):
    """A row of the journal with the line it concerns; both empty when it concerns none."""

    row: EntryRow
    event: Event
    transfers: tuple[postings.Transfer, ...]
    line_id: str
    currency: str


class Explanation(msgspec.Struct):
    """Everything that led to a decision. `features` and `rules` are empty when the customer's key was destroyed."""

    decision: DecisionReply
    features: tuple[tuple[str, int | float | bool | str], ...]
    rules: tuple[RuleTrace, ...]
    annotations: list[AnnotationReply]
    reproduced: bool


class Queries:
    """Answers questions from snapshots of the store. Safe from any thread."""

    def __init__(self, store: Store, *, vault: Vault, sealer: Sealer, clock: Clock, rulesets: Rulesets) -> None:
        self._store = store
        self._vault = vault
        self._sealer = sealer
        self._clock = clock
        self._compiled = lru_cache(maxsize=8)(rulesets)

    def credit_line(self, key: CustomerKey, line_id: str) -> LineReply:
        """
        Return a line as it stands now.

        Raises:
            NotFound: no such customer in the tenant, or no such line.
        """
        with self._store.snapshot() as snapshot:
            return self._line(snapshot, key, line_id)

    def credit_lines_of(self, asked: Sequence[tuple[CustomerKey, str]]) -> list[LineReply | RiskgateError]:
        """Return many lines as they stood at one moment, and in place of one that is not there what it raises."""
        found: list[LineReply | RiskgateError] = []
        with self._store.snapshot() as snapshot:
            for key, line_id in asked:
                try:
                    found.append(self._line(snapshot, key, line_id))
                except RiskgateError as error:
                    found.append(error)
        return found

    def _line(self, snapshot: Snapshot, key: CustomerKey, line_id: str) -> LineReply:
        customer, now_us = self._as_of_now(snapshot, key)
        return LineReply(key, customer.sequence, now_us, customer.line(line_id))

    def credit_lines(self, key: CustomerKey) -> list[LineReply]:
        """Return all lines of a customer, oldest first."""
        with self._store.snapshot() as snapshot:
            customer, now_us = self._as_of_now(snapshot, key)
        return [LineReply(key, customer.sequence, now_us, line) for line in customer.lines]

    def factors(self, key: CustomerKey) -> list[FactorView]:
        """Return a customer's factors, oldest first. Raises as `identity`."""
        identity, now_us = self.identity(key)
        return [view(factor, now_us) for factor in identity.factors if factor.stands(now_us)]

    def message_outcome(self, key: CustomerKey, message_id: str) -> str:
        """Return what a message came to; empty while it waits, and if it is unheard of."""
        with self._store.snapshot() as snapshot:
            if snapshot.message(key, message_id) is not None:
                return ""
            for row in _entries_after(snapshot, key, entry_of(message_id)):
                event = sealing.open_clear(row).event if row.tag == SETTLED_TAG else None
                if isinstance(event, MessageSettled) and event.message_id == message_id:
                    return event.outcome
        return ""

    def code_ended(self, key: CustomerKey, challenge_id: str) -> bool:
        """Tell whether a code that was sent is worthless by now; one that was forgotten is. Raises as `identity`."""
        identity, _ = self.identity(key)
        return all(challenge.ended for challenge in identity.codes if challenge.challenge_id == challenge_id)

    def devices(self, key: CustomerKey) -> list[DeviceView]:
        """Return a customer's devices, oldest first. Raises as `identity`."""
        identity, _ = self.identity(key)
        return [device_view(device) for device in identity.devices]

    def identity(self, key: CustomerKey) -> tuple[Identity, int]:
        """
        Return what a customer can prove themselves with, and the time that is for them, UTC µs.

        Of one who does not exist that is nothing: who only asks for proofs is not told which customers there are.

        Raises:
            PreconditionFailed: the customer was erased, or cannot be read.
        """
        with self._store.snapshot() as snapshot:
            row, stored = snapshot.customer(key), snapshot.identity(key)
        last_us = sealing.decode_customer(row.key, row.state).last_us if row else 0
        now_us = max(self._clock.now_us(), last_us)
        if stored is None:
            return EMPTY_IDENTITY, now_us
        (data_key,) = self._vault.keys([key]).values()
        if isinstance(data_key, NoKey):
            raise PreconditionFailed(*(ERASED if data_key is NoKey.FORGOTTEN else UNREADABLE))
        return sealing.unseal_identity(stored, data_key, self._sealer), now_us

    def _as_of_now(self, snapshot: Snapshot, key: CustomerKey) -> tuple[Customer, int]:
        row = _customer_row(snapshot, key)
        customer = sealing.decode_customer(row.key, row.state)
        now_us = max(self._clock.now_us(), customer.last_us)
        if not row.next_lapse_us or now_us < row.next_lapse_us:
            return customer, now_us
        aggregate = Aggregate(customer)
        for lapsed in snapshot.lapsed(key, now_us):
            purchase = sealing.decode_purchase(lapsed.state)
            aggregate.purchases[purchase.transaction_id] = purchase
            remaining = purchase.remaining_minor
            ended = Happening(HoldExpired(purchase.transaction_id, remaining), postings.release(remaining))
            evolve(aggregate, ended, sequence=customer.sequence, at_us=customer.last_us, head=customer.head)
        return aggregate.customer, now_us

    def hold(self, key: CustomerKey, transaction_id: str) -> HoldReply:
        """
        Return a hold as it stands now.

        Raises:
            NotFound: the customer has no such hold.
        """
        with self._store.snapshot() as snapshot:
            customer = sealing.decode_customer(key, _customer_row(snapshot, key).state)
            row = snapshot.purchase(key, transaction_id)
        purchase = sealing.decode_purchase(row.state) if row else None
        if purchase is None or purchase.state is HoldState.NONE:
            reason, message = "HOLD_NOT_FOUND", f"the customer has no hold {transaction_id}"
            raise NotFound(reason, message, hold_id=transaction_id)
        now_us = max(self._clock.now_us(), customer.last_us)
        if purchase.lapsed(now_us):
            purchase = after_expiry(purchase)
        return HoldReply(key, customer.line(purchase.line_id).currency, purchase)

    def holds(self, key: CustomerKey, *, after: str, limit: int, only_pending: bool) -> tuple[list[HoldReply], str]:
        """Return a page of holds by transaction id, and where the next page begins (empty at the end)."""
        with self._store.snapshot() as snapshot:
            customer = sealing.decode_customer(key, _customer_row(snapshot, key).state)
            rows = snapshot.purchases(key, after=after, limit=limit + 1, only_open=only_pending)
        now_us = max(self._clock.now_us(), customer.last_us)
        more = rows[limit - 1].transaction_id if len(rows) > limit else ""
        purchases = [sealing.decode_purchase(row.state) for row in rows[:limit]]
        replies = [
            HoldReply(key, customer.line(p.line_id).currency, after_expiry(p) if p.lapsed(now_us) else p)
            for p in purchases
            if p.state is not HoldState.NONE and not (only_pending and p.lapsed(now_us))
        ]
        return replies, more

    def entries(self, key: CustomerKey, *, after: int, limit: int) -> tuple[list[Entry], int]:
        """Return a page of the customer's journal, and where the next page begins (0 at the end)."""
        with self._store.snapshot() as snapshot:
            customer = sealing.decode_customer(key, _customer_row(snapshot, key).state)
            rows = list(snapshot.entries(key, after=after, limit=limit + 1))
            more = rows[limit - 1].sequence if len(rows) > limit else 0
            currencies = {line.line_id: line.currency for line in customer.lines}
            page = []
            for row in rows[:limit]:
                clear = sealing.open_clear(row)
                line_id = _line_id_of(clear.event, snapshot, key)
                page.append(Entry(row, clear.event, clear.transfers, line_id, currencies.get(line_id, "")))
        return page, more

    def decision(self, key: CustomerKey, sequence: int) -> DecisionReply:
        """
        Return one decision as it was answered.

        Raises:
            NotFound: the customer has no such decision.
        """
        with self._store.snapshot() as snapshot:
            return decision_of(_decision_entry(snapshot, key, sequence))

    def decisions(
        self, tenant_id: str, customer_id: str, *, outcomes: Collection[Outcome], before: Places, limit: int
    ) -> Page:
        """
        Return a page of decisions, newest first; `before` is empty for the first page.

        Lanes are merged by (at_us, writer, position), each in its own order. Of one customer the chain is the one lane.
        """
        found: list[DecisionReply] = []
        with self._store.snapshot() as snapshot:
            if customer_id:
                key = (tenant_id, customer_id)
                _customer_row(snapshot, key)
                at = dict(before) or {_CHAIN: 2**62}
                rows = _chain_backwards(snapshot, key, at.get(_CHAIN, 0))
            else:
                at = dict(before) or {lane.writer: lane.position + 1 for lane in snapshot.lanes()}
                rows = _lanes_backwards(snapshot, tenant_id, at)
            for scanned, row in enumerate(rows, 1):
                at |= {_CHAIN: row.sequence} if customer_id else {row.writer: row.position}
                reply = decision_of(row)
                if not outcomes or reply.decided.outcome in outcomes:
                    found.append(reply)
                if len(found) == limit or scanned == SCAN_MAX:
                    return Page(found, at if next(rows, None) else {})
        return Page(found, {})

    def decisions_after(
        self, places: Places, *, tenant_id: str, customer_id: str, limit: int, until: Places | None = None
    ) -> tuple[list[tuple[dict[int, int], DecisionReply]], dict[int, int]]:
        """
        Return some decisions committed after `places`, with the places after each, and up to where that looked.

        No further than `until`, or than what is committed when that is None.
        """
        at, seen = dict(places), dict(places)
        lanes = []
        with self._store.snapshot() as snapshot:
            ends = until if until is not None else {lane.writer: lane.position for lane in snapshot.lanes()}
            moved = {writer: end for writer, end in ends.items() if end > at.get(writer, 0)}
            each = max(limit // max(len(moved), 1), 1)
            for writer, end in moved.items():
                rows = snapshot.entries_by_position(
                    writer, after=at.get(writer, 0), limit=each, tenant_id=tenant_id, tag=DECISION_TAG
                )
                lanes.append([row for row in rows if row.position <= end])
                seen[writer] = min(rows[-1].position, end) if len(rows) == each else end
        found = []
        for row in merge(*lanes, key=_order):
            at[row.writer] = row.position
            if not customer_id or row.key[1] == customer_id:
                found.append((dict(at), decision_of(row)))
        return found, seen

    def ends(self) -> dict[int, int]:
        """Return the position of the last entry of every lane that has one."""
        with self._store.snapshot() as snapshot:
            return {lane.writer: lane.position for lane in snapshot.lanes() if lane.position}

    def explain(self, key: CustomerKey, sequence: int) -> Explanation:
        """
        Return a decision with what the rules saw and made of it, recomputed from the stored features.

        Raises:
            NotFound: the customer has no such decision.
        """
        data_key = self._vault.keys([key])[key]
        with self._store.snapshot() as snapshot:
            entry = _decision_entry(snapshot, key, sequence)
            notes = snapshot.customer_entries_before(key, sequence=2**62, limit=SCAN_MAX, tag=ANNOTATION_TAG)
            reply = decision_of(entry)
            source = snapshot.ruleset_source(reply.decided.ruleset_hash)
        annotations = [
            AnnotationReply(key, event.decision_sequence, event.label, event.actor_id, row.at_us)
            for row in reversed(notes)
            if isinstance(event := sealing.open_clear(row).event, DecisionAnnotated)
            and event.decision_sequence == sequence
        ][:ANNOTATIONS_MAX]
        secrets = sealing.open_secrets(entry, data_key, self._sealer)
        if not isinstance(secrets, PurchaseSecrets) or source is None:
            return Explanation(reply, (), (), annotations, reproduced=False)
        rules = self._compiled(source)
        return Explanation(
            decision=reply,
            features=tuple(zip(rules.feature_names, secrets.features, strict=True)),
            rules=tuple(rules.explain(secrets.features)),
            annotations=annotations,
            reproduced=_reproduces(rules, secrets, reply.decided),
        )


def _reproduces(rules: RiskRules, secrets: PurchaseSecrets, decided: PurchaseDecided) -> bool:
    """Whether the stored features still give the stored score and the rules that fired."""
    assessment = rules.assess(secrets.features)
    return (assessment.risk_score, assessment.fired) == (decided.risk_score, decided.fired)


def decision_of(row: EntryRow) -> DecisionReply:
    """Return the answer a decision's entry stands for."""
    event = sealing.open_clear(row).event
    assert isinstance(event, PurchaseDecided)
    return DecisionReply(row.key, row.sequence, row.at_us, row.request_id, event)


def _customer_row(snapshot: Snapshot, key: CustomerKey) -> CustomerRow:
    row = snapshot.customer(key)
    if row is None:
        reason, message = "CUSTOMER_NOT_FOUND", "no such customer"
        raise NotFound(reason, message)
    return row


def _line_id_of(event: Event, snapshot: Snapshot, key: CustomerKey) -> str:
    """Return the line an event concerns: the one it names, or the one its purchase or payment is on."""
    named: str = getattr(event, "line_id", "")
    if named:
        return named
    transaction_id, payment_id = getattr(event, "transaction_id", ""), getattr(event, "payment_id", "")
    if transaction_id and (purchase := snapshot.purchase(key, transaction_id)):
        return sealing.decode_purchase(purchase.state).line_id
    if payment_id and (payment := snapshot.payment(key, payment_id)):
        return sealing.decode_payment(payment.state).line_id
    return ""


def _decision_entry(snapshot: Snapshot, key: CustomerKey, sequence: int) -> EntryRow:
    _customer_row(snapshot, key)
    for row in snapshot.entries(key, after=sequence - 1, limit=1):
        if row.sequence == sequence and row.tag == DECISION_TAG:
            return row
    reason, message = "DECISION_NOT_FOUND", "the customer has no such decision"
    raise NotFound(reason, message)


def _order(row: EntryRow) -> tuple[int, int, int]:
    return row.at_us, row.writer, row.position


def _lanes_backwards(snapshot: Snapshot, tenant_id: str, before: Places) -> Iterator[EntryRow]:
    """Yield a tenant's decisions below a place in each lane, the newest of those that come next in theirs first."""

    def lane(writer: int, position: int) -> Iterator[EntryRow]:
        while rows := snapshot.entries_before(
            writer, position=position, limit=CHUNK, tenant_id=tenant_id, tag=DECISION_TAG
        ):
            yield from rows
            position = rows[-1].position

    return merge(*(lane(*place) for place in before.items()), key=_order, reverse=True)


def _chain_backwards(snapshot: Snapshot, key: CustomerKey, sequence: int) -> Iterator[EntryRow]:
    """Yield a customer's decisions below a sequence, descending."""
    while rows := snapshot.customer_entries_before(key, sequence=sequence, limit=CHUNK, tag=DECISION_TAG):
        yield from rows
        sequence = rows[-1].sequence


def _entries_after(snapshot: Snapshot, key: CustomerKey, sequence: int) -> Iterator[EntryRow]:
    """Yield a customer's entries above a sequence, ascending, a few at a time."""
    while rows := snapshot.entries(key, after=sequence, limit=SETTLED_CHUNK):
        yield from rows
        sequence = rows[-1].sequence


def sequence_of(token: str) -> int:
    """
    Read the page token of a customer's journal: a sequence, in decimal.

    Raises:
        InvalidRequest: it is none.
    """
    if not token:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) <= TOKEN_DIGITS_MAX):
        raise token_invalid("page_token", "was not made by this call")
    return int(token)
