"""What a command came to, as plain data: what crosses the queue back, and what a repeated request is answered from."""

from __future__ import annotations

import datetime as dt
from typing import Final

import msgspec

from riskgate_server.domain import errors, events
from riskgate_server.domain.credit.line import Block, CreditLine
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.events import Event, Label, PurchaseDecided
from riskgate_server.domain.identity import events as identity_events
from riskgate_server.domain.identity.devices import Assurance, Platform
from riskgate_server.domain.identity.enrolled import DeviceChallenge, Enrolment
from riskgate_server.domain.identity.factors import FactorState
from riskgate_server.domain.identity.grants import Method, Use
from riskgate_server.domain.ledger.holds import Purchase
from riskgate_server.domain.ledger.repayment import Payment


class DecisionReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """A purchase was decided as entry `sequence` (0 for validate_only)."""

    key: CustomerKey
    sequence: int
    at_us: int
    request_id: str
    decided: PurchaseDecided


class HoldReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """A hold as it stands after a command."""

    key: CustomerKey
    currency: str
    purchase: Purchase
    to_credit_minor: int = 0


class PaymentReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """A payment as it stands after a command."""

    key: CustomerKey
    currency: str
    payment: Payment
    available_minor: int


class LineReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """A line as it stands at `at_us`, after entry `sequence`."""

    key: CustomerKey
    sequence: int
    at_us: int
    line: CreditLine
    block: Block | None = None
    lifted: bool = False


class AnnotationReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """A decision's truth as recorded."""

    key: CustomerKey
    decision_sequence: int
    label: Label
    actor_id: str
    at_us: int


class Refusal(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """A refusal by the domain, kept so that the same id is refused for ever."""

    family: str
    reason: str
    message: str
    details: dict[str, str]


class Settled(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=7):
    """Lapsed holds were ended."""

    holds: int


class Failed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=8):
    """The command had no effect, or an unknown one, for a reason that is not remembered."""

    family: str
    reason: str
    message: str
    violations: tuple[errors.FieldViolation, ...] = ()
    retry_after_seconds: float = 0
    details: dict[str, str] = msgspec.field(default_factory=dict)


class FactorView(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What may be shown of a factor. Times in UTC µs, 0 where they do not apply."""

    factor_id: str
    method: Method
    state: FactorState
    display_name: str
    enrolled_us: int
    full_strength_us: int
    locked_until_us: int
    codes_left: int


class CodeView(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What may be shown of a code that was sent; `message_id` is the message it went out with last."""

    challenge_id: str
    factor_id: str
    masked: str
    expires_us: int
    resend_us: int
    checks_left: int
    message_id: str


class FactorReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=9):
    """
    A factor as it stands. `key_id` gives the seed or the recovery codes again that the request was shown; 0 for none.

    `code` is the one that was sent to confirm it.
    """

    key: CustomerKey
    request_id: str
    factor: FactorView
    expires_us: int = 0
    key_id: int = 0
    code: CodeView | None = None


class CodeReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=10):
    """A code is on its way."""

    key: CustomerKey
    code: CodeView


class GrantReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=11):
    """A proof was right. `key_id` and `request_id` give the token of its grant again."""

    key: CustomerKey
    request_id: str
    key_id: int
    use: Use
    level: int
    methods: tuple[Method, ...]
    expires_us: int
    codes_left: int = 0


class RevokedReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=12):
    """Factors or devices are worthless since `at_us`."""

    key: CustomerKey
    at_us: int
    ids: tuple[str, ...]


class DeviceView(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What may be shown of a device. Times in UTC µs, 0 where they do not apply."""

    credential_id: str
    platform: Platform
    display_name: str
    assurance: Assurance
    enrolled_us: int
    full_strength_us: int
    last_use_us: int


class EnrolmentReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=13):
    """A new device is asked to prove that it has a key. `known` are the ids of the passkeys the customer has."""

    key: CustomerKey
    enrolment: Enrolment
    known: tuple[bytes, ...]


class DeviceReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=14):
    """A device as it stands."""

    key: CustomerKey
    device: DeviceView


class ChallengeReply(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=15):
    """Devices are asked for a proof. `passkeys` are the ids of those among them, `others` says if not all are such."""

    key: CustomerKey
    challenge: DeviceChallenge
    passkeys: tuple[bytes, ...]
    others: bool


Reply = (
    DecisionReply
    | HoldReply
    | PaymentReply
    | LineReply
    | AnnotationReply
    | Refusal
    | Settled
    | Failed
    | FactorReply
    | CodeReply
    | GrantReply
    | RevokedReply
    | EnrolmentReply
    | DeviceReply
    | ChallengeReply
)

PRIVATE: Final = (FactorReply, CodeReply, EnrolmentReply, DeviceReply, ChallengeReply)
"""Replies that show something of a person: they are kept sealed."""

ERASED: Final = ("CUSTOMER_ERASED", "the customer was erased: what this needs of them is gone for good")
UNREADABLE: Final = ("CUSTOMER_UNREADABLE", "the customer's record cannot be opened; the operator can tell why")
"""Reason and message of what is refused of a customer whose key is gone."""

STICKY: Final[dict[str, type[errors.RiskgateError]]] = {
    family.__name__: family
    for family in (
        errors.PreconditionFailed,
        errors.AlreadyExists,
        errors.PermissionRefused,
        errors.NotFound,
    )
}
"""Families of refusals by the domain: they consume the request id."""

KINDS: Final[dict[type[Event], str]] = {
    events.LineOpened: "LINE_OPENED",
    events.PurchaseDecided: "PURCHASE_DECIDED",
    events.HoldCaptured: "HOLD_CAPTURED",
    events.HoldIncremented: "HOLD_INCREMENTED",
    events.HoldVoided: "HOLD_VOIDED",
    events.HoldExpired: "HOLD_EXPIRED",
    events.CaptureRefunded: "CAPTURE_REFUNDED",
    events.PaymentRecorded: "PAYMENT_RECORDED",
    events.PaymentReversed: "PAYMENT_REVERSED",
    events.BlockPlaced: "BLOCK_PLACED",
    events.BlockLifted: "BLOCK_LIFTED",
    events.LineClosed: "LINE_CLOSED",
    events.DecisionAnnotated: "DECISION_ANNOTATED",
    events.ReviewPassed: "REVIEW_PASSED",
    events.CommandRefused: "COMMAND_REFUSED",
    events.CreditUsed: "CREDIT_USED",
    events.CustomerErased: "CUSTOMER_ERASED",
    identity_events.FactorEnrolled: "FACTOR_ENROLLED",
    identity_events.FactorConfirmed: "FACTOR_CONFIRMED",
    identity_events.FactorRevoked: "FACTOR_REVOKED",
    identity_events.CodeSent: "CODE_SENT",
    identity_events.CodeUnsent: "CODE_UNSENT",
    identity_events.ProofFailed: "PROOF_FAILED",
    identity_events.ProofPassed: "PROOF_PASSED",
    identity_events.GrantSpent: "GRANT_SPENT",
    identity_events.RecoveryCodesMade: "RECOVERY_CODES_MADE",
    identity_events.MessageSettled: "MESSAGE_SETTLED",
    identity_events.EnrolmentBegun: "ENROLMENT_BEGUN",
    identity_events.DeviceEnrolled: "DEVICE_ENROLLED",
    identity_events.DevicesRevoked: "DEVICES_REVOKED",
    identity_events.ChallengeIssued: "CHALLENGE_ISSUED",
}
"""What callers know the journal's events as."""

_FAMILIES: Final[dict[str, type[errors.RiskgateError]]] = {
    family.__name__: family
    for family in (
        errors.Conflict,
        errors.DeadlinePassed,
        errors.InternalError,
        errors.Unavailable,
        errors.Unimplemented,
    )
}


def refusal_of(error: errors.RiskgateError) -> Refusal:
    """Return the refusal as data."""
    return Refusal(type(error).__name__, error.reason, error.message, error.details)


def failure_of(error: errors.RiskgateError) -> Failed:
    """Return a failure that is not remembered as data."""
    return Failed(
        type(error).__name__,
        error.reason,
        error.message,
        error.violations if isinstance(error, errors.InvalidRequest) else (),
        error.retry_after_seconds if isinstance(error, errors.ResourceExhausted) else 0,
        error.details,
    )


def request_id_reused(request_id: str) -> errors.AlreadyExists:
    """Return the refusal of a request id that comes back with other content."""
    reason, message = "REQUEST_ID_REUSED", "the request id was used with other content"
    return errors.AlreadyExists(reason, message, request_id=request_id)


def forgotten(event: Event, *, sequence: int, at_us: int) -> errors.PreconditionFailed:
    """Return what is left to say of a command whose reply is no longer kept: its effect, by its journal entry."""
    kind = KINDS[type(event)]
    return errors.PreconditionFailed(
        "REPLY_FORGOTTEN",
        f"done before under this request id, as {kind} in entry {sequence}; the full reply is no longer kept",
        effect=kind,
        sequence=str(sequence),
        time=rfc3339(at_us),
    )


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def rfc3339(at_us: int) -> str:
    """Write a time in UTC µs as facts beside a reason have it."""
    return (_EPOCH + dt.timedelta(microseconds=at_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def error_of(reply: Refusal | Failed) -> errors.RiskgateError:
    """Return the error a refusal or failure stands for."""
    if isinstance(reply, Refusal):
        return STICKY[reply.family](reply.reason, reply.message, **reply.details)
    if reply.family == errors.InvalidRequest.__name__:
        return errors.InvalidRequest(reply.reason, reply.message, *reply.violations)
    if reply.family == errors.ResourceExhausted.__name__:
        return errors.ResourceExhausted(
            reply.reason, reply.message, retry_after_seconds=reply.retry_after_seconds, **reply.details
        )
    return ({**STICKY, **_FAMILIES})[reply.family](reply.reason, reply.message, **reply.details)
