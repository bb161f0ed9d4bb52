"""
A typed client of Riskgate.

    from riskgate_client import Money, Riskgate

    with Riskgate("localhost:7444", ca="data/tls/ca.crt", api_key=api_key) as gate:
        limit = Money("CNY", 500_000)
        gate.lines.open(customer_id="ada", line_id="main", limit=limit, decision_reference="A-17", actor_id="ops")
        decision = gate.risk.check(
            customer_id="ada", transaction_id="T1", amount=Money("CNY", 12_900), merchant_id="M1", device_id="phone-1"
        )
        if decision.approved:
            gate.ledger.capture(customer_id="ada", hold_id="T1")
        print(decision.outcome, gate.lines.get("ada").available)

Answers are frozen dataclasses (see `riskgate_client.values`), refusals are exceptions (see
`riskgate_client.errors`). Every call has a deadline, and is safely repeated while the engine cannot be
reached (see `riskgate_client.retry`). `AsyncRiskgate` is the same for asyncio.
"""

from riskgate_client.call import Call
from riskgate_client.client import AsyncRiskgate, Riskgate
from riskgate_client.errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    ResourceExhausted,
    RiskgateError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    error_from_rpc,
)
from riskgate_client.proofs import (
    CodeChallenge,
    EnrolledPhone,
    EnrolledTotp,
    Factor,
    FactorKind,
    FactorState,
    Grant,
    ProofPurpose,
    RecoveryCodes,
    RecoveryGrant,
)
from riskgate_client.retry import Retry
from riskgate_client.risk import check
from riskgate_client.transport import __version__
from riskgate_client.values import (
    Allocation,
    Annotation,
    Block,
    BlockKind,
    Channel,
    CheckResult,
    CreditLine,
    Decision,
    Explanation,
    FeatureValue,
    Hold,
    HoldState,
    Installment,
    JournalEntry,
    Label,
    Layer,
    LiftedBlock,
    LineState,
    LocalizedText,
    Location,
    Money,
    Outcome,
    Page,
    Payment,
    PaymentReceipt,
    PaymentState,
    PlacedBlock,
    Reason,
    Refund,
    RuleResult,
    RuleTrace,
    Statement,
    StepUp,
    Transfer,
)

__all__ = [
    "Allocation",
    "AlreadyExists",
    "Annotation",
    "AsyncRiskgate",
    "Block",
    "BlockKind",
    "Call",
    "Cancelled",
    "Channel",
    "CheckResult",
    "CodeChallenge",
    "Conflict",
    "CreditLine",
    "DeadlineExceeded",
    "Decision",
    "EnrolledPhone",
    "EnrolledTotp",
    "Explanation",
    "Factor",
    "FactorKind",
    "FactorState",
    "FailedPrecondition",
    "FeatureValue",
    "FieldViolation",
    "Grant",
    "Hold",
    "HoldState",
    "Installment",
    "Internal",
    "InvalidRequest",
    "JournalEntry",
    "Label",
    "Layer",
    "LiftedBlock",
    "LineState",
    "LocalizedText",
    "Location",
    "Money",
    "NotFound",
    "Outcome",
    "OutcomeUnknown",
    "Page",
    "Payment",
    "PaymentReceipt",
    "PaymentState",
    "PermissionDenied",
    "PlacedBlock",
    "ProofPurpose",
    "Reason",
    "RecoveryCodes",
    "RecoveryGrant",
    "Refund",
    "ResourceExhausted",
    "Retry",
    "Riskgate",
    "RiskgateError",
    "RuleResult",
    "RuleTrace",
    "Statement",
    "StepUp",
    "Transfer",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "__version__",
    "check",
    "error_from_rpc",
]
