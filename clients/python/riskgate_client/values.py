"""
What the client takes and gives: frozen dataclasses that mirror the contract's messages.

One principle, without exception: whatever a call returns is a frozen dataclass with the fields of the
contract's message under the contract's names (a response of one field is that field). Amounts are
`Money`, times are aware datetimes in UTC, enums are strings without their prefix, a message that may be
absent is `None`, lists are tuples. What a field means stands in the contract, `protos/riskgate`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar

from riskgate_client.errors import RiskgateError

T = TypeVar("T")


# --- Words ---


class Outcome(StrEnum):
    """What the engine answers to a purchase. One newer than this client reads as DECLINE."""

    APPROVE = "APPROVE"
    STEP_UP = "STEP_UP"
    REVIEW = "REVIEW"
    DECLINE = "DECLINE"


class Channel(StrEnum):
    """Where the customer stands when buying. UNSPECIFIED means unknown."""

    UNSPECIFIED = "UNSPECIFIED"
    MOBILE_APP = "MOBILE_APP"
    WEB = "WEB"
    IN_STORE = "IN_STORE"
    RECURRING = "RECURRING"


class Label(StrEnum):
    """What a purchase later turned out to be. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    LEGITIMATE = "LEGITIMATE"
    CONFIRMED_FRAUD = "CONFIRMED_FRAUD"
    CHARGEBACK = "CHARGEBACK"


class RuleResult(StrEnum):
    """What came of a rule. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    HIT = "HIT"
    MISS = "MISS"
    ERROR = "ERROR"


class LineState(StrEnum):
    """The worst of a line's life cycle and its standing blocks. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    ACTIVE = "ACTIVE"
    REDUCED = "REDUCED"
    SUSPENDED = "SUSPENDED"
    FROZEN = "FROZEN"
    CLOSED = "CLOSED"
    CHARGED_OFF = "CHARGED_OFF"


class BlockKind(StrEnum):
    """Why a block stands. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    FRAUD_SOFT = "FRAUD_SOFT"
    FRAUD_HARD = "FRAUD_HARD"
    CUSTOMER_LOCK = "CUSTOMER_LOCK"
    DELINQUENCY = "DELINQUENCY"
    COMPLIANCE = "COMPLIANCE"
    HARDSHIP = "HARDSHIP"


class HoldState(StrEnum):
    """Where a hold is in its life. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    PENDING = "PENDING"
    CAPTURED = "CAPTURED"
    VOIDED = "VOIDED"
    EXPIRED = "EXPIRED"


class PaymentState(StrEnum):
    """Where a payment is in its life. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    POSTED = "POSTED"
    REVERSED = "REVERSED"


class Layer(StrEnum):
    """Which layer of the books a transfer touches. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    PENDING = "PENDING"
    POSTED = "POSTED"


# --- Taken and given ---


_MINOR_DIGITS: Final = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF",
         "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}  # fmt: skip
"""Decimal places of the minor unit where they are not two, by ISO 4217."""


@dataclass(frozen=True, slots=True, repr=False)
class Money:
    """A whole number of minor units (fen, cents) of an ISO 4217 currency: `Money("CNY", 1234)` is 12.34 yuan."""

    currency_code: str
    amount_minor: int

    def __post_init__(self) -> None:
        # A float here is a bug that would otherwise surface as a wrong amount.
        if type(self.amount_minor) is not int:
            raise TypeError(f"amount_minor must be an int, not {type(self.amount_minor).__name__}")

    def __repr__(self) -> str:
        return f"Money({self.currency_code!r}, {self.amount_minor})"

    def __str__(self) -> str:
        digits = _MINOR_DIGITS.get(self.currency_code, 2)
        major, minor = divmod(abs(self.amount_minor), 10**digits)
        sign = "-" if self.amount_minor < 0 else ""
        return f"{self.currency_code} {sign}{major:,}" + (f".{minor:0{digits}}" if digits else "")


@dataclass(frozen=True, slots=True)
class Location:
    """A place on Earth in degrees, WGS 84."""

    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list. `next_page_token` is empty on the last page."""

    items: tuple[T, ...]
    next_page_token: str


# --- Risk ---


@dataclass(frozen=True, slots=True)
class LocalizedText:
    """A sentence in one language, safe to show to the customer."""

    language_code: str
    text: str


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a decision is not a plain approval."""

    code: str
    customer_texts: tuple[LocalizedText, ...]

    def text(self, language_code: str = "en") -> str:
        """Return what may be told to the customer in a language; empty when there is nothing."""
        return next((t.text for t in self.customer_texts if t.language_code == language_code), "")


@dataclass(frozen=True, slots=True)
class StepUp:
    """What the customer must prove before the purchase can go on."""

    required_level: int
    allowed_factors: tuple[str, ...]
    expire_time: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The stored answer to one purchase."""

    decision_id: str
    customer_id: str
    transaction_id: str
    request_id: str
    line_id: str
    outcome: Outcome
    risk_score: int
    reasons: tuple[Reason, ...]
    ruleset_version: str
    ruleset_hash: str
    requested_amount: Money | None
    held_amount: Money | None
    hold_expire_time: dt.datetime | None
    step_up: StepUp | None
    review_deadline: dt.datetime | None
    line_suspended: bool
    block_id: str
    available_after: Money | None
    degraded: bool
    decide_time: dt.datetime
    event_time: dt.datetime
    engine_version: str

    @property
    def approved(self) -> bool:
        """Whether the purchase may go ahead now: the outcome is APPROVE."""
        return self.outcome is Outcome.APPROVE

    @property
    def reason_codes(self) -> tuple[str, ...]:
        """The codes of the reasons, the weightiest first."""
        return tuple(reason.code for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The answer to one purchase of many: a decision, or the error a single call would have raised."""

    request_id: str
    decision: Decision | None
    error: RiskgateError | None

    def unwrap(self) -> Decision:
        """
        Return the decision.

        Raises:
            RiskgateError: there is none, for the reason the error gives.
        """
        if self.decision is not None:
            return self.decision
        raise self.error or RiskgateError("the result is neither a decision nor an error")


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a decision later turned out to be."""

    decision_id: str
    label: Label
    actor_id: str
    annotate_time: dt.datetime


@dataclass(frozen=True, slots=True)
class FeatureValue:
    """One fact the rules saw. `value` is None for a kind of value that is newer than this client."""

    name: str
    value: int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """What one rule made of one purchase."""

    rule_id: str
    expression: str
    result: RuleResult
    reason_code: str
    weight: int
    why: str
    features: tuple[FeatureValue, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that led to a decision."""

    decision: Decision
    features: tuple[FeatureValue, ...]
    rules: tuple[RuleTrace, ...]
    annotations: tuple[Annotation, ...]
    reproduced: bool


# --- Lines ---


@dataclass(frozen=True, slots=True)
class Block:
    """Something that stops new spending on a line."""

    block_id: str
    kind: BlockKind
    reason_code: str
    placed_by: str
    place_time: dt.datetime
    expire_time: dt.datetime | None
    lift_approved_by: str


@dataclass(frozen=True, slots=True)
class CreditLine:
    """A credit line as it stands."""

    line_id: str
    customer_id: str
    product_id: str
    state: LineState
    limit: Money
    available: Money
    held: Money
    outstanding: Money
    past_due: Money
    customer_credit: Money
    blocks: tuple[Block, ...]
    next_review_time: dt.datetime | None
    open_time: dt.datetime
    time_zone: str
    etag: str


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A new block and the line under it."""

    block: Block
    credit_line: CreditLine


@dataclass(frozen=True, slots=True)
class LiftedBlock:
    """What came of a lift. `lifted` is False when a second, different person must still lift the block."""

    lifted: bool
    block: Block
    credit_line: CreditLine


# --- Ledger ---


@dataclass(frozen=True, slots=True)
class Hold:
    """Credit reserved for one purchase. authorised = captured + released + expired + remaining, always."""

    hold_id: str
    customer_id: str
    line_id: str
    state: HoldState
    authorised: Money
    captured: Money
    released: Money
    expired: Money
    remaining: Money
    forced: Money
    refunded: Money
    principal: Money
    place_time: dt.datetime
    expire_time: dt.datetime
    under_review: bool


@dataclass(frozen=True, slots=True)
class Refund:
    """The hold after a refund, and the part that went to customer credit because it had been repaid."""

    hold: Hold
    to_customer_credit: Money


@dataclass(frozen=True, slots=True)
class Allocation:
    """A share of a payment that repaid one purchase."""

    transaction_id: str
    amount: Money


@dataclass(frozen=True, slots=True)
class Payment:
    """A repayment."""

    payment_id: str
    customer_id: str
    line_id: str
    state: PaymentState
    amount: Money
    allocations: tuple[Allocation, ...]
    to_customer_credit: Money
    value_time: dt.datetime
    record_time: dt.datetime


@dataclass(frozen=True, slots=True)
class PaymentReceipt:
    """A payment as booked or undone, and the line's available credit afterwards."""

    payment: Payment
    available: Money


@dataclass(frozen=True, slots=True)
class Installment:
    """One part of an instalment plan."""

    due_date: dt.date
    principal: Money
    fee: Money


@dataclass(frozen=True, slots=True)
class Transfer:
    """One movement between two accounts of a line; debit and credit are always equal."""

    debit_account: str
    credit_account: str
    layer: Layer
    amount: Money


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One row of the journal."""

    sequence: int
    kind: str
    line_id: str
    request_id: str
    reference_id: str
    transfers: tuple[Transfer, ...]
    record_time: dt.datetime
    entry_hash: bytes


@dataclass(frozen=True, slots=True)
class Statement:
    """A bill: what one month left to pay."""

    statement_id: str
    line_id: str
    cut_off_date: dt.date
    due_date: dt.date
    opening_balance: Money
    purchases: Money
    charges: Money
    credits: Money
    closing_balance: Money
    minimum_due: Money
