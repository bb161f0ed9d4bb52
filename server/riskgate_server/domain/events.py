"""
What can happen to a customer, as written for ever; `domain/journal.py` says what each changes.

The field order and the tag of an event are its storage format. Fields may be added at the end
with a default; nothing is removed or reordered.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from riskgate_server.domain.credit.line import Block, BlockKind
from riskgate_server.domain.fraud.profile import PurchaseFacts
from riskgate_server.domain.identity.events import IdentityEvent, IdentitySecrets
from riskgate_server.domain.ledger.postings import Transfer
from riskgate_server.domain.ledger.repayment import (
    Allocation,
    CreditUse,
)


class Outcome(IntEnum):
    """What was answered to a purchase; equal to `riskgate.risk.v1.Outcome`."""

    APPROVE = 1
    STEP_UP = 2
    REVIEW = 3
    DECLINE = 4


class Label(IntEnum):
    """What a purchase later turned out to be; equal to `riskgate.risk.v1.Label`."""

    LEGITIMATE = 1
    CONFIRMED_FRAUD = 2
    CHARGEBACK = 3


class LineOpened(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """A line was granted."""

    line_id: str
    currency: str
    limit_minor: int
    product_id: str
    time_zone: str
    decision_reference: str
    actor_id: str


class PurchaseDecided(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """
    A purchase was answered. Carries everything the answer says, so that a repeated request is answered from here.

    `replaces_event_us` is when the attempt this one replaces was counted; 0 for an attempt that counts for itself.
    `step_up_level` and `step_up_expires_us` are the proof without which the purchase is not approved from now on,
    whichever attempt asked for it; 0 for none. `step_up_methods` are the kinds of factor that may give it (`mask_of`).
    `proven_level` is that of the grant this attempt spent; 0 for none.
    """

    line_id: str
    transaction_id: str
    terms: bytes
    outcome: Outcome
    reasons: tuple[str, ...]
    risk_score: int
    ruleset_version: str
    ruleset_hash: bytes
    engine_version: str
    currency: str
    requested_minor: int
    held_minor: int
    available_minor: int
    event_us: int
    expires_us: int
    review_deadline_us: int
    step_up_expires_us: int
    block_id: str
    degraded: bool
    replaces_event_us: int
    fired: tuple[str, ...]
    step_up_level: int = 0
    step_up_methods: int = 0
    proven_level: int = 0


class HoldCaptured(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """All or part of a hold became a loan; by force when it had ended."""

    transaction_id: str
    captured_minor: int
    released_minor: int
    forced: bool


class HoldIncremented(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """An open hold was raised."""

    transaction_id: str
    amount_minor: int


class HoldVoided(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """The caller gave up the rest of a hold."""

    transaction_id: str
    released_minor: int


class HoldExpired(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """The clock, or a reviewer who refused, gave up the rest of a hold."""

    transaction_id: str
    expired_minor: int
    refused_by: str = ""


class CaptureRefunded(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=7):
    """Captured money came back: to its purchase, then to the oldest others, then to the customer."""

    transaction_id: str
    to_principal_minor: int
    to_credit_minor: int
    to_others: tuple[Allocation, ...] = ()


class PaymentRecorded(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=8):
    """A repayment was booked and allocated."""

    line_id: str
    payment_id: str
    amount_minor: int
    allocations: tuple[Allocation, ...]
    to_credit_minor: int
    value_us: int


class PaymentReversed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=9):
    """A repayment was returned and undone."""

    payment_id: str
    reason_code: str
    actor_id: str


class BlockPlaced(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=10):
    """New spending was stopped."""

    line_id: str
    block: Block


class BlockLifted(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=11):
    """A block was lifted, or the first of two people agreed to lift it."""

    line_id: str
    block_id: str
    kind: BlockKind
    actor_id: str
    complete: bool


class LineClosed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=12):
    """A line ended with nothing owed."""

    line_id: str
    withdrawn_minor: int
    reason_code: str
    actor_id: str


class DecisionAnnotated(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=13):
    """Somebody said what a purchase turned out to be."""

    decision_sequence: int
    label: Label
    actor_id: str


class ReviewPassed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=14):
    """A reviewer decided for the customer: the hold may be captured."""

    transaction_id: str
    actor_id: str


class CommandRefused(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=15):
    """
    A command was refused by the domain. Nothing moved; the refusal is remembered for its request id.

    `family` and `reason` name the refusal for ever; its words and details are kept only with the reply.
    """

    command: str
    reason: str
    family: str = ""


class CreditUsed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=16):
    """Money owed to the customer repaid what they owe."""

    line_id: str
    uses: tuple[CreditUse, ...]


class CustomerErased(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=40):
    """The customer is to be forgotten: their key is destroyed after this, and nothing but the end of holds follows."""

    reason_code: str
    actor_id: str


Event = (
    LineOpened
    | PurchaseDecided
    | HoldCaptured
    | HoldIncremented
    | HoldVoided
    | HoldExpired
    | CaptureRefunded
    | PaymentRecorded
    | PaymentReversed
    | BlockPlaced
    | BlockLifted
    | LineClosed
    | DecisionAnnotated
    | ReviewPassed
    | CommandRefused
    | CreditUsed
    | CustomerErased
    | IdentityEvent
)


class PurchaseSecrets(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """What a purchase looked like, and the features the rules saw, in the ruleset's order."""

    facts: PurchaseFacts
    features: tuple[int | float | bool | str, ...]


class Note(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """Words of a colleague."""

    text: str


Sealed = PurchaseSecrets | Note | IdentitySecrets


class Happening(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One entry before it is written: the event, the money it moved, and what is sealed."""

    event: Event
    transfers: tuple[Transfer, ...] = ()
    sealed: Sealed | None = None
