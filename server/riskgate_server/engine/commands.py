"""
Everything that may be asked to change, as plain data: what crosses the queue to the writer.

A command was authenticated, decoded and validated before it is made, so its fields are well formed;
whether the state allows it is for the use case to say.
"""

from __future__ import annotations

import msgspec

from riskgate_server.domain.credit.line import BlockKind
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.events import Label
from riskgate_server.domain.fraud.profile import PurchaseFacts
from riskgate_server.domain.identity.devices import Platform, ProofVerdict, RegistrationVerdict
from riskgate_server.domain.identity.enrolled import ProofFault
from riskgate_server.domain.identity.grants import Purpose


class Command(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """
    What every command carries.

    Args:
        request_id: names the attempt within (tenant, customer); empty only for what the clock causes.
        fingerprint: keyed digest of the request's whole content: same id and other fingerprint is refused.
        other_fingerprints: the same under the keys it may have been made with before, or elsewhere just now.
        deadline_us: monotonic time after which the command must not start; 0 for none.
        event_us: when the caller says it happened, UTC; 0 for now.
    """

    tenant_id: str
    customer_id: str
    request_id: str = ""
    fingerprint: bytes = b""
    other_fingerprints: tuple[bytes, ...] = ()
    caller_id: str = ""
    deadline_us: int = 0
    event_us: int = 0

    @property
    def key(self) -> CustomerKey:
        """Whose state it changes."""
        return (self.tenant_id, self.customer_id)


class PurchaseCommand(Command, frozen=True, gc=False, kw_only=True):
    """A command about one purchase."""

    transaction_id: str


class OpenCreditLine(Command, frozen=True, gc=False, kw_only=True):
    """Grant a line, and open the customer with their first one."""

    line_id: str
    currency: str
    limit_minor: int
    product_id: str
    time_zone: str
    decision_reference: str
    actor_id: str


class CheckTransaction(PurchaseCommand, frozen=True, gc=False, kw_only=True):
    """
    Decide about a purchase and hold the credit for it.

    Args:
        terms: keyed digest of amount and payee: a transaction id never changes its terms.
        other_terms: the same under other keys, as `other_fingerprints`.
        hold_lifetime_us: 0 for the product's own.
        grant: SHA-256 of the token of a grant for this purchase: it is decided again as it was stored, and terms, facts
            and line of the command are empty. Empty for a purchase that brings its own.
    """

    line_id: str
    terms: bytes
    facts: PurchaseFacts
    hold_lifetime_us: int = 0
    allow_partial: bool = False
    validate_only: bool = False
    grant: bytes = b""
    other_terms: tuple[bytes, ...] = ()


class CaptureHold(PurchaseCommand, frozen=True, gc=False, kw_only=True):
    """Take all (`amount_minor` None) or part of a hold."""

    amount_minor: int | None
    currency: str
    final: bool
    force: bool


class IncrementHold(PurchaseCommand, frozen=True, gc=False, kw_only=True):
    """Raise an open hold."""

    amount_minor: int
    currency: str


class VoidHold(PurchaseCommand, frozen=True, gc=False, kw_only=True):
    """Give up what a hold still reserves."""


class RefundCapture(PurchaseCommand, frozen=True, gc=False, kw_only=True):
    """Give captured money back."""

    amount_minor: int
    currency: str


class RecordPayment(Command, frozen=True, gc=False, kw_only=True):
    """Book a repayment. `value_us` 0 means now."""

    line_id: str
    payment_id: str
    amount_minor: int
    currency: str
    value_us: int


class ReversePayment(Command, frozen=True, gc=False, kw_only=True):
    """Undo a repayment that was returned."""

    payment_id: str
    reason_code: str
    actor_id: str


class PlaceBlock(Command, frozen=True, gc=False, kw_only=True):
    """Stop new spending. `expires_us` 0 means the kind's own lifetime."""

    line_id: str
    kind: BlockKind
    reason_code: str
    actor_id: str
    note: str
    expires_us: int


class LiftBlock(Command, frozen=True, gc=False, kw_only=True):
    """
    Lift one named block.

    `liftable` are the kinds the caller's scopes allow; `grant` is the SHA-256 of the token of a grant for UNLOCK, by
    which the customer lifts it themselves, or empty.
    """

    line_id: str
    block_id: str
    actor_id: str
    note: str
    liftable: frozenset[BlockKind]
    grant: bytes = b""


class CloseCreditLine(Command, frozen=True, gc=False, kw_only=True):
    """End a line that owes nothing."""

    line_id: str
    reason_code: str
    actor_id: str


class AnnotateDecision(Command, frozen=True, gc=False, kw_only=True):
    """Say what a purchase turned out to be."""

    decision_sequence: int
    label: Label
    actor_id: str
    note: str


class ResolveReview(PurchaseCommand, frozen=True, gc=False, kw_only=True):
    """Decide a purchase under review, for or against the customer."""

    approve: bool
    actor_id: str
    note: str


class EnrollPhone(Command, frozen=True, gc=False, kw_only=True):
    """
    Register a phone and send it a code.

    Args:
        number: E.164.
        mark: keyed hash of the number within the tenant; `prefix` that of the number without its last three digits.
        other_marks: mark and prefix under other keys, under which the number may be known since before.
        region: ISO 3166-1 alpha-2 code of the number's country, as far as it can be told.
        grant: SHA-256 of the token of a grant for BINDING; empty for none.
    """

    number: str
    masked: str
    mark: bytes
    prefix: bytes
    region: str
    grant: bytes
    language: str = ""
    other_marks: tuple[tuple[bytes, bytes], ...] = ()


class EnrollTotp(Command, frozen=True, gc=False, kw_only=True):
    """Register an authenticator app under a label; `grant` as for a phone."""

    label: str
    grant: bytes


class ConfirmFactor(Command, frozen=True, gc=False, kw_only=True):
    """Make a pending factor usable by a first right code."""

    factor_id: str
    code: str


class SendCode(Command, frozen=True, gc=False, kw_only=True):
    """Send a code to a confirmed phone; `factor_id` is empty for the customer's only one."""

    factor_id: str
    purpose: Purpose
    transaction_id: str
    language: str


class ResendCode(Command, frozen=True, gc=False, kw_only=True):
    """Send the same code again."""

    challenge_id: str
    language: str = ""


class VerifyCode(Command, frozen=True, gc=False, kw_only=True):
    """
    Check the code of a challenge, or of an authenticator app (`factor_id`); exactly one of both is named.

    `purpose` None and an empty `transaction_id` mean what the challenge was sent for.
    """

    challenge_id: str
    factor_id: str
    code: str
    purpose: Purpose | None
    transaction_id: str


class RevokeFactor(Command, frozen=True, gc=False, kw_only=True):
    """Make a factor worthless."""

    factor_id: str
    reason_code: str
    actor_id: str


class MakeRecoveryCodes(Command, frozen=True, gc=False, kw_only=True):
    """Make ten recovery codes; `grant` as for a phone."""

    grant: bytes


class VerifyRecoveryCode(Command, frozen=True, gc=False, kw_only=True):
    """Check a recovery code: 16 characters of Base32, as it was shown but for hyphens."""

    code: str
    purpose: Purpose


class EraseCustomer(Command, frozen=True, gc=False, kw_only=True):
    """Let a customer be forgotten."""

    reason_code: str
    actor_id: str


class BeginEnrolment(Command, frozen=True, gc=False, kw_only=True):
    """Ask a new device to prove that it has a key; `grant` as for a phone."""

    platform: Platform
    display_name: str
    grant: bytes


class FinishEnrolment(Command, frozen=True, gc=False, kw_only=True):
    """
    Register a device's key, which was verified before the queue.

    Args:
        found: what the registration was found to be; None when there was nothing to hold it against.
        judged: digest of what it was held against (`enrolled.enrolment_judged`).
        marks: keyed hashes of the key and of a passkey's id, within the tenant; empty unless it holds.
    """

    enrolment_id: str
    found: RegistrationVerdict | ProofFault | None
    judged: bytes
    marks: tuple[bytes, ...]


class BeginChallenge(Command, frozen=True, gc=False, kw_only=True):
    """Ask devices for a proof; no `credential_ids` means all of the customer's."""

    purpose: Purpose
    transaction_id: str
    credential_ids: tuple[str, ...]


class VerifyChallenge(Command, frozen=True, gc=False, kw_only=True):
    """
    Count a device's proof, which was verified before the queue.

    Args:
        found: what the proof was found to be; None when there was nothing to hold it against.
        judged: digest of what it was held against (`enrolled.challenge_judged`).
    """

    challenge_id: str
    found: ProofVerdict | ProofFault | None
    judged: bytes


class RevokeDevice(Command, frozen=True, gc=False, kw_only=True):
    """Make a device worthless."""

    credential_id: str
    reason_code: str
    actor_id: str


class RevokeAllDevices(Command, frozen=True, gc=False, kw_only=True):
    """Make all devices of a customer worthless."""

    reason_code: str
    actor_id: str


class SettleMessage(Command, frozen=True, gc=False, kw_only=True):
    """
    A message was delivered, or given up, or is to be tried again. The deliverer's own command: no request id.

    Args:
        outcome: DELIVERED, REFUSED by the gateway, UNSENT because it was down, EXPIRED, ENDED with its challenge,
            UNREADABLE; or RETRY, which leaves it to be sent at `due_us`.
        unsent_challenge: challenge of a code that certainly reached nobody; empty for none.
    """

    message_id: str
    outcome: str
    due_us: int = 0
    unsent_challenge: str = ""


class SettleLapsed(Command, frozen=True, gc=False, kw_only=True):
    """End the customer's holds whose time is over. The clock's own command: no request id, no reply to anybody."""
