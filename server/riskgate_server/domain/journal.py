"""
What each happening changes.

`evolve` is the only way state changes: the live engine applies each event as it records it, and
`ledger verify` folds the stored events through the same function and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from riskgate_server.domain.credit.line import CreditLine, LifeCycle
from riskgate_server.domain.customer import Customer
from riskgate_server.domain.events import (
    BlockLifted,
    BlockPlaced,
    CaptureRefunded,
    CommandRefused,
    CreditUsed,
    CustomerErased,
    DecisionAnnotated,
    Event,
    Happening,
    HoldCaptured,
    HoldExpired,
    HoldIncremented,
    HoldVoided,
    LineClosed,
    LineOpened,
    Outcome,
    PaymentRecorded,
    PaymentReversed,
    PurchaseDecided,
    PurchaseSecrets,
    ReviewPassed,
    Sealed,
)
from riskgate_server.domain.fraud.profile import Profile, PurchaseFacts, observe, retract
from riskgate_server.domain.fraud.safety import UNTOUCHED
from riskgate_server.domain.fraud.safety import after as safety_after
from riskgate_server.domain.fraud.safety import asked as safety_asked
from riskgate_server.domain.identity.device_changes import EVOLVERS as DEVICE_EVOLVERS
from riskgate_server.domain.identity.events import IdentityEvent, IdentitySecrets, MessageSettled
from riskgate_server.domain.identity.identity import EVOLVERS as FACTOR_EVOLVERS
from riskgate_server.domain.identity.identity import Evolver, Identity
from riskgate_server.domain.ledger import holds, postings
from riskgate_server.domain.ledger.holds import CaptureTerms, HoldState, Purchase
from riskgate_server.domain.ledger.repayment import (
    Allocation,
    Credit,
    Payment,
    PaymentState,
    add_credit,
    take_credit,
)

replace = msgspec.structs.replace


# --- Events. The clear part: ids, amounts, times, codes. ---


# --- The sealed part: what says something about a person's life. Readable only with the customer's key. ---


class Aggregate:
    """
    A customer with the purchases and payments an event may touch; `evolve` changes it in place.

    `identity` is None until somebody looked at it: most of what happens to a customer does not concern it.
    """

    __slots__ = ("customer", "identity", "payments", "purchases")

    def __init__(self, customer: Customer) -> None:
        self.customer = customer
        self.identity: Identity | None = None
        self.purchases: dict[str, Purchase] = {}
        self.payments: dict[str, Payment] = {}


def evolve(aggregate: Aggregate, happening: Happening, *, sequence: int, at_us: int, head: bytes) -> None:
    """Apply one event as the customer's entry number `sequence`, recorded at `at_us` with hash `head`."""
    event = happening.event
    moves = bool(happening.transfers)
    concerned = getattr(event, "transaction_id", "") if moves else ""
    open_before = moves and _is_open(aggregate, concerned)
    line_id = _EVOLVERS[type(event)](aggregate, event, sequence, at_us, happening.sealed)
    customer = aggregate.customer
    lines = customer.lines
    if moves:
        line = customer.line(line_id)
        # A hold opens and ends with the movement that reserves its credit or gives back the last of it.
        open_holds = line.open_holds + _is_open(aggregate, concerned) - open_before
        books = postings.post(line.books, happening.transfers)
        lines = customer.with_line(replace(line, books=books, open_holds=open_holds))
    aggregate.customer = replace(customer, sequence=sequence, last_us=at_us, head=head, lines=lines)


def _is_open(aggregate: Aggregate, transaction_id: str) -> bool:
    purchase = aggregate.purchases.get(transaction_id)
    return purchase is not None and purchase.is_open


def _line_opened(aggregate: Aggregate, event: LineOpened, _sequence: int, at_us: int, _sealed: Sealed | None) -> str:
    line = CreditLine(
        line_id=event.line_id,
        currency=event.currency,
        product_id=event.product_id,
        time_zone=event.time_zone,
        opened_us=at_us,
        decision_reference=event.decision_reference,
    )
    aggregate.customer = replace(aggregate.customer, lines=(*aggregate.customer.lines, line))
    return event.line_id


def _purchase_decided(
    aggregate: Aggregate, event: PurchaseDecided, sequence: int, at_us: int, sealed: Sealed | None
) -> str:
    aggregate.purchases[event.transaction_id] = Purchase(
        transaction_id=event.transaction_id,
        line_id=event.line_id,
        terms=event.terms,
        decision_sequence=sequence,
        state=HoldState.PENDING if event.held_minor else HoldState.NONE,
        authorised_minor=event.held_minor,
        placed_us=at_us if event.held_minor else 0,
        expires_us=event.expires_us,
        review_deadline_us=event.review_deadline_us,
        step_up_expires_us=event.step_up_expires_us,
        event_us=event.event_us,
        step_up_level=event.step_up_level,
        step_up_methods=event.step_up_methods,
    )
    if isinstance(sealed, PurchaseSecrets):
        profile = _before_attempt(aggregate.customer.profile, sealed.facts, event.replaces_event_us)
        profile = observe(profile, sealed.facts, spent=event.held_minor > 0)
        if event.outcome is Outcome.STEP_UP:
            profile = replace(profile, safety=safety_asked(profile.safety or UNTOUCHED))
        aggregate.customer = replace(aggregate.customer, profile=profile)
    return event.line_id


def _before_attempt(profile: Profile, facts: PurchaseFacts, replaces_event_us: int) -> Profile:
    """Return the profile as it was before the attempt that this one replaces: the two count once."""
    if not replaces_event_us:
        return profile
    return retract(profile, replace(facts, event_time_us=replaces_event_us))


def _hold_captured(
    aggregate: Aggregate, event: HoldCaptured, sequence: int, _at_us: int, _sealed: Sealed | None
) -> str:
    purchase = aggregate.purchases[event.transaction_id]
    terms = CaptureTerms(event.captured_minor, event.released_minor, event.forced)
    aggregate.purchases[event.transaction_id] = holds.after_capture(purchase, terms, sequence=sequence)
    return purchase.line_id


def _hold_incremented(
    aggregate: Aggregate, event: HoldIncremented, _sequence: int, _at_us: int, _sealed: Sealed | None
) -> str:
    purchase = aggregate.purchases[event.transaction_id]
    raised = replace(purchase, authorised_minor=purchase.authorised_minor + event.amount_minor)
    aggregate.purchases[event.transaction_id] = raised
    return purchase.line_id


def _hold_voided(aggregate: Aggregate, event: HoldVoided, _sequence: int, _at_us: int, _sealed: Sealed | None) -> str:
    purchase = aggregate.purchases[event.transaction_id]
    aggregate.purchases[event.transaction_id] = holds.after_void(purchase)
    return purchase.line_id


def _hold_expired(aggregate: Aggregate, event: HoldExpired, _sequence: int, _at_us: int, _sealed: Sealed | None) -> str:
    purchase = aggregate.purchases[event.transaction_id]
    aggregate.purchases[event.transaction_id] = holds.after_expiry(purchase)
    return purchase.line_id


def _capture_refunded(
    aggregate: Aggregate, event: CaptureRefunded, _sequence: int, _at_us: int, _sealed: Sealed | None
) -> str:
    purchase = aggregate.purchases[event.transaction_id]
    aggregate.purchases[event.transaction_id] = replace(
        purchase,
        refunded_minor=purchase.refunded_minor
        + event.to_principal_minor
        + event.to_credit_minor
        + sum(share.amount_minor for share in event.to_others),
        principal_minor=purchase.principal_minor - event.to_principal_minor,
    )
    _owe(aggregate, event.to_others, sign=-1)
    _credit(aggregate, purchase.line_id, add_credit, "", event.to_credit_minor)
    return purchase.line_id


def _payment_recorded(
    aggregate: Aggregate, event: PaymentRecorded, _sequence: int, at_us: int, _sealed: Sealed | None
) -> str:
    _owe(aggregate, event.allocations, sign=-1)
    aggregate.payments[event.payment_id] = Payment(
        payment_id=event.payment_id,
        line_id=event.line_id,
        amount_minor=event.amount_minor,
        allocations=event.allocations,
        to_credit_minor=event.to_credit_minor,
        value_us=event.value_us,
        recorded_us=at_us,
    )
    _credit(aggregate, event.line_id, add_credit, event.payment_id, event.to_credit_minor)
    return event.line_id


def _payment_reversed(
    aggregate: Aggregate, event: PaymentReversed, _sequence: int, _at_us: int, _sealed: Sealed | None
) -> str:
    payment = aggregate.payments[event.payment_id]
    _owe(aggregate, payment.allocations, sign=1)
    _credit(aggregate, payment.line_id, take_credit, payment.payment_id, payment.to_credit_minor)
    aggregate.payments[event.payment_id] = replace(payment, state=PaymentState.REVERSED)
    return payment.line_id


def _owe(aggregate: Aggregate, allocations: tuple[Allocation, ...], *, sign: int) -> None:
    for share in allocations:
        purchase = aggregate.purchases[share.transaction_id]
        owed = purchase.principal_minor + sign * share.amount_minor
        aggregate.purchases[share.transaction_id] = replace(purchase, principal_minor=owed)


def _credit_used(aggregate: Aggregate, event: CreditUsed, _sequence: int, _at_us: int, _sealed: Sealed | None) -> str:
    for use in event.uses:
        share = Allocation(use.transaction_id, use.amount_minor)
        _owe(aggregate, (share,), sign=-1)
        _credit(aggregate, event.line_id, take_credit, use.payment_id, use.amount_minor)
        if use.payment_id:
            payment = aggregate.payments[use.payment_id]
            aggregate.payments[use.payment_id] = replace(
                payment,
                allocations=(*payment.allocations, share),
                to_credit_minor=payment.to_credit_minor - use.amount_minor,
            )
    return event.line_id


_ChangeCredit = Callable[[tuple[Credit, ...], str, int], tuple[Credit, ...]]


def _credit(aggregate: Aggregate, line_id: str, change: _ChangeCredit, payment_id: str, amount_minor: int) -> None:
    customer = aggregate.customer
    line = customer.line(line_id)
    changed = replace(line, credits=change(line.credits, payment_id, amount_minor))
    aggregate.customer = replace(customer, lines=customer.with_line(changed))


def _block_placed(aggregate: Aggregate, event: BlockPlaced, _sequence: int, at_us: int, _sealed: Sealed | None) -> str:
    customer = aggregate.customer
    line = customer.line(event.line_id)
    blocks = (*line.standing_blocks(at_us), event.block)
    aggregate.customer = replace(customer, lines=customer.with_line(replace(line, blocks=blocks)))
    return event.line_id


def _block_lifted(aggregate: Aggregate, event: BlockLifted, _sequence: int, _at_us: int, _sealed: Sealed | None) -> str:
    customer = aggregate.customer
    line = customer.line(event.line_id)
    if event.complete:
        blocks = tuple(block for block in line.blocks if block.block_id != event.block_id)
    else:
        blocks = tuple(
            replace(block, lift_approved_by=event.actor_id) if block.block_id == event.block_id else block
            for block in line.blocks
        )
    aggregate.customer = replace(customer, lines=customer.with_line(replace(line, blocks=blocks)))
    return event.line_id


def _line_closed(aggregate: Aggregate, event: LineClosed, _sequence: int, _at_us: int, _sealed: Sealed | None) -> str:
    customer = aggregate.customer
    closed = replace(customer.line(event.line_id), life_cycle=LifeCycle.CLOSED)
    aggregate.customer = replace(customer, lines=customer.with_line(closed))
    return event.line_id


def _review_passed(
    aggregate: Aggregate, event: ReviewPassed, _sequence: int, _at_us: int, _sealed: Sealed | None
) -> str:
    purchase = replace(aggregate.purchases[event.transaction_id], review_deadline_us=0)
    aggregate.purchases[event.transaction_id] = purchase
    return purchase.line_id


_IDENTITY_EVOLVERS: Final[dict[type, Evolver]] = {**FACTOR_EVOLVERS, **DEVICE_EVOLVERS}


def _identity(aggregate: Aggregate, event: IdentityEvent, _sequence: int, at_us: int, sealed: Sealed | None) -> str:
    assert aggregate.identity is not None
    secrets = sealed if isinstance(sealed, IdentitySecrets) else None
    profile = aggregate.customer.profile
    safety = safety_after(profile.safety or UNTOUCHED, event, at_us, bound=aggregate.identity.bound)
    if safety != UNTOUCHED:
        aggregate.customer = aggregate.customer.with_profile(replace(profile, safety=safety))
    aggregate.identity = _IDENTITY_EVOLVERS[type(event)](aggregate.identity, event, at_us, secrets)
    return ""


def _customer_erased(
    aggregate: Aggregate, _event: CustomerErased, _sequence: int, _at_us: int, _sealed: Sealed | None
) -> str:
    aggregate.customer = replace(aggregate.customer, erased=True)
    return ""


def _nothing(_aggregate: Aggregate, _event: Event, _sequence: int, _at_us: int, _sealed: Sealed | None) -> str:
    return ""


_EVOLVERS: Final[dict[type, Callable[[Aggregate, Any, int, int, Sealed | None], str]]] = {
    LineOpened: _line_opened,
    PurchaseDecided: _purchase_decided,
    HoldCaptured: _hold_captured,
    HoldIncremented: _hold_incremented,
    HoldVoided: _hold_voided,
    HoldExpired: _hold_expired,
    CaptureRefunded: _capture_refunded,
    PaymentRecorded: _payment_recorded,
    PaymentReversed: _payment_reversed,
    BlockPlaced: _block_placed,
    BlockLifted: _block_lifted,
    LineClosed: _line_closed,
    DecisionAnnotated: _nothing,
    ReviewPassed: _review_passed,
    CommandRefused: _nothing,
    CreditUsed: _credit_used,
    CustomerErased: _customer_erased,
    MessageSettled: _nothing,
    **dict.fromkeys(_IDENTITY_EVOLVERS, _identity),
}
