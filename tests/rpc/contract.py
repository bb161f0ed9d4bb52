"""The contract as descriptors: every method, which of them are served, and a good request for each of those."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.credit.v1 import ledger_service_pb2 as ledger_pb
from riskgate.identity.v1 import device_service_pb2 as device_pb
from riskgate.identity.v1 import grant_pb2
from riskgate.identity.v1 import otp_service_pb2 as otp_pb
from riskgate.operations.v1 import customer_service_pb2 as customer_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_server.rpc.door import required_scope
from riskgate_server.rpc.server import LATER
from riskgate_server.rpc.standard import HEALTH, REFLECTION, SCOPES_OF
from tests.rpc import requests

SERVICES: Final = (
    risk_pb.DESCRIPTOR.services_by_name["RiskService"],
    line_pb.DESCRIPTOR.services_by_name["CreditLineService"],
    ledger_pb.DESCRIPTOR.services_by_name["LedgerService"],
    otp_pb.DESCRIPTOR.services_by_name["OtpService"],
    device_pb.DESCRIPTOR.services_by_name["DeviceService"],
    customer_pb.DESCRIPTOR.services_by_name["CustomerService"],
    *LATER,
)
OURS: Final[tuple[MethodDescriptor, ...]] = tuple(method for service in SERVICES for method in service.methods)
STANDARD: Final[tuple[MethodDescriptor, ...]] = (*HEALTH.methods, *REFLECTION.methods)
EVERY: Final = (*OURS, *STANDARD)

LATER_METHODS: Final = frozenset({
    "AcceptLimitOffer", "ConvertToInstallments", "WaiveCharge", "GetStatement", "ListStatements",
    *(method.name for service in LATER for method in service.methods),
})  # fmt: skip
"""In the contract and not served yet."""

SERVED: Final = tuple(method for method in OURS if method.name not in LATER_METHODS)


def scopes_of(method: MethodDescriptor) -> frozenset[str]:
    """Return the scopes of which one opens a method, written down apart from the server's own reading."""
    return SCOPES_OF.get(method.containing_service.full_name) or required_scope(method)


def now(seconds: int = 0) -> Timestamp:
    return Timestamp(seconds=int(time.time()) + seconds, nanos=1)


Sample = Callable[[], Message]


def _whose() -> dict[str, Any]:
    return {"request_id": requests.new_id(), "customer_id": "ada"}


SAMPLES: Final[dict[str, Sample]] = {
    "CheckTransaction": lambda: requests.buying(
        phone="phone-1", location={"latitude": 1.5, "longitude": 103.8}, event_time=now()
    ),
    "BatchCheckTransactions": lambda: risk_pb.BatchCheckTransactionsRequest(checks=[requests.buying()]),
    "StreamCheckTransactions": lambda: risk_pb.StreamCheckTransactionsRequest(check=requests.buying()),
    "AnnotateDecision": lambda: requests.annotating("d-2"),
    "GetDecision": lambda: risk_pb.GetDecisionRequest(customer_id="ada", decision_id="d-2"),
    "ListDecisions": lambda: risk_pb.ListDecisionsRequest(
        customer_id="ada", outcomes=[risk_pb.OUTCOME_APPROVE], page_size=5
    ),
    "ExplainDecision": lambda: risk_pb.ExplainDecisionRequest(customer_id="ada", decision_id="d-2"),
    "WatchDecisions": lambda: risk_pb.WatchDecisionsRequest(customer_id="ada"),
    "OpenCreditLine": lambda: requests.opening(
        line_id=requests.new_id(), time_zone="Asia/Shanghai", product_id="x", event_time=now()
    ),
    "GetCreditLine": lambda: line_pb.GetCreditLineRequest(customer_id="ada", line_id="main"),
    "ListCreditLines": lambda: line_pb.ListCreditLinesRequest(customer_id="ada"),
    "WatchCreditLine": lambda: line_pb.WatchCreditLineRequest(customer_id="ada", line_id="main"),
    "PlaceBlock": lambda: requests.blocking(line_pb.BLOCK_KIND_HARDSHIP, line_id="main", expire_time=now(60)),
    "LiftBlock": lambda: requests.lifting("b-4", line_id="main"),
    "CloseCreditLine": lambda: requests.closing(line_id="main"),
    "CaptureHold": lambda: requests.capturing("t-1", 10),
    "IncrementHold": lambda: requests.raising("t-1", 10),
    "VoidHold": lambda: requests.voiding("t-1"),
    "RefundCapture": lambda: requests.refunding("t-1", 1),
    "RecordPayment": lambda: requests.paying(5, line_id="main", value_time=now()),
    "ReversePayment": lambda: requests.returning("p-1"),
    "GetHold": lambda: ledger_pb.GetHoldRequest(customer_id="ada", hold_id="t-1"),
    "ListHolds": lambda: ledger_pb.ListHoldsRequest(customer_id="ada", page_size=5, page_token="a"),
    "ListEntries": lambda: ledger_pb.ListEntriesRequest(customer_id="ada", page_size=5, page_token="1"),
    "EnrollPhone": lambda: otp_pb.EnrollPhoneRequest(
        **_whose(), phone_number="+86 138 1234 5678", language_code="zh-Hans"
    ),
    "EnrollTotp": lambda: otp_pb.EnrollTotpRequest(**_whose(), label="ada"),
    "ConfirmFactor": lambda: otp_pb.ConfirmFactorRequest(**_whose(), factor_id="f-1", code="012345"),
    "SendCode": lambda: otp_pb.SendCodeRequest(
        **_whose(), factor_id="f-1", purpose=grant_pb2.PROOF_PURPOSE_SIGN_IN, language_code="en"
    ),
    "ResendCode": lambda: otp_pb.ResendCodeRequest(**_whose(), challenge_id="c-1"),
    "VerifyCode": lambda: otp_pb.VerifyCodeRequest(**_whose(), challenge_id="c-1", code="012345"),
    "ListFactors": lambda: otp_pb.ListFactorsRequest(customer_id="ada"),
    "RevokeFactor": lambda: otp_pb.RevokeFactorRequest(
        **_whose(), factor_id="f-1", reason_code="PHONE_LOST", actor_id="olga"
    ),
    "GenerateRecoveryCodes": lambda: otp_pb.GenerateRecoveryCodesRequest(**_whose(), binding_grant="none"),
    "BeginEnrollment": lambda: device_pb.BeginEnrollmentRequest(
        **_whose(), platform=device_pb.DEVICE_PLATFORM_ANDROID_KEYSTORE, display_name="ada's phone"
    ),
    "FinishEnrollment": lambda: device_pb.FinishEnrollmentRequest(
        **_whose(),
        enrollment_id="e-1",
        raw_key=device_pb.RawKeyRegistration(public_key=bytes(91), signature=bytes(70), android_chain=[b"x"]),
    ),
    "BeginChallenge": lambda: device_pb.BeginChallengeRequest(
        **_whose(), purpose=grant_pb2.PROOF_PURPOSE_SIGN_IN, credential_ids=["k-1"]
    ),
    "VerifyChallenge": lambda: device_pb.VerifyChallengeRequest(
        **_whose(),
        challenge_id="c-1",
        device_signature=device_pb.DeviceSignature(credential_id="k-1", signature=bytes(70)),
    ),
    "ListDevices": lambda: device_pb.ListDevicesRequest(customer_id="ada"),
    "RevokeDevice": lambda: device_pb.RevokeDeviceRequest(
        **_whose(), credential_id="k-1", reason_code="PHONE_STOLEN", actor_id="olga"
    ),
    "RevokeAllDevices": lambda: device_pb.RevokeAllDevicesRequest(
        **_whose(), reason_code="ACCOUNT_TAKEOVER", actor_id="olga"
    ),
    "VerifyRecoveryCode": lambda: otp_pb.VerifyRecoveryCodeRequest(
        **_whose(), code="ABCD-EFGH-IJKL-MNOP", purpose=grant_pb2.PROOF_PURPOSE_SIGN_IN
    ),
    "EraseCustomer": lambda: customer_pb.EraseCustomerRequest(
        **_whose(), reason_code="CUSTOMER_ASKED", actor_id="olga"
    ),
}
"""A well-formed request for every served method, about ada of `furnish`."""

HEALTH_SAMPLE: Final = health_pb2.HealthCheckRequest()
REFLECTION_SAMPLE: Final = reflection_pb2.ServerReflectionRequest(list_services="")


def sample(method: MethodDescriptor) -> Message:
    """Return a good request; an empty one for what is not served."""
    if method.containing_service is REFLECTION:
        return REFLECTION_SAMPLE
    return SAMPLES[method.name]() if method in SERVED else HEALTH_SAMPLE
