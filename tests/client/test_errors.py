"""What a refusal looks like on this side."""

from __future__ import annotations

import pickle
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_client import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidRequest,
    Money,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    ResourceExhausted,
    Riskgate,
    RiskgateError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    check,
)
from riskgate_client.errors import error_from_status
from tests.client.messages import decision
from tests.client.scripted import ScriptedEngine, refusal, status

Code = grpc.StatusCode
FAMILIES = {
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.NOT_FOUND: NotFound,
    Code.ALREADY_EXISTS: AlreadyExists,
    Code.FAILED_PRECONDITION: FailedPrecondition,
    Code.ABORTED: Conflict,
    Code.RESOURCE_EXHAUSTED: ResourceExhausted,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.UNAVAILABLE: Unavailable,
    Code.UNIMPLEMENTED: Unimplemented,
    Code.INTERNAL: Internal,
    Code.DATA_LOSS: RiskgateError,
}


def failure_of(gate: Riskgate) -> RiskgateError:
    with pytest.raises(RiskgateError) as failed:
        gate.lines.get("ada")
    return failed.value


@pytest.mark.parametrize(("code", "family"), FAMILIES.items(), ids=lambda value: getattr(value, "name", ""))
def test_every_status_is_a_class_with_its_reason(
    engine: ScriptedEngine, gate: Riskgate, code: Code, family: type[RiskgateError]
) -> None:
    engine.plan("GetCreditLine", refusal(code, "THE_REASON", scope="limit:read"))

    error = failure_of(gate)

    assert type(error) is family
    assert (error.status, error.reason, error.message) == (code, "THE_REASON", "said by the test")
    assert error.metadata == {"scope": "limit:read"}
    assert str(error) == "THE_REASON: said by the test (scope=limit:read)"


def test_an_invalid_request_names_its_fields(engine: ScriptedEngine, gate: Riskgate) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="amount.amount_minor", description="must be above 0")
    bad = error_details_pb2.BadRequest(field_violations=[violation])
    engine.plan("GetCreditLine", refusal(Code.INVALID_ARGUMENT, "FIELD_INVALID", bad))

    error = failure_of(gate)

    assert isinstance(error, InvalidRequest)
    assert error.fields == (FieldViolation("amount.amount_minor", "must be above 0"),)
    assert str(error) == "FIELD_INVALID: said by the test (amount.amount_minor: must be above 0)"


def test_exhaustion_says_when_to_come_back(engine: ScriptedEngine, gate: Riskgate) -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    engine.plan("GetCreditLine", refusal(Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry))

    error = failure_of(gate)

    assert isinstance(error, ResourceExhausted)
    assert error.retry_after == 2.5


def test_an_internal_error_can_be_found_in_the_log(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetCreditLine", refusal(Code.INTERNAL, "INTERNAL", error_id="4f2a"))

    error = failure_of(gate)

    assert isinstance(error, Internal)
    assert error.error_id == "4f2a"


def test_an_unknown_outcome_is_unavailable_too() -> None:
    error = error_from_status(status(Code.UNAVAILABLE, "OUTCOME_UNKNOWN"))

    assert type(error) is OutcomeUnknown
    assert isinstance(error, Unavailable)


def test_reasons_of_other_domains_are_not_ours() -> None:
    error = error_from_status(status(Code.NOT_FOUND, "LINE_NOT_FOUND", domain="example.com", line="main"))

    assert type(error) is NotFound
    assert (error.reason, error.metadata) == ("", {})


def test_a_plain_status_has_no_reason(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetCreditLine", lambda request, context: context.abort(Code.NOT_FOUND, "plain words"))

    error = failure_of(gate)

    assert type(error) is NotFound
    assert (error.reason, error.message, str(error)) == ("", "plain words", "NOT_FOUND: plain words")


@pytest.mark.parametrize(
    "details",
    [b"\xff\xff\xff", status(Code.INTERNAL, "INTERNAL").SerializeToString()],
    ids=["garbage", "another code's"],
)
def test_details_that_cannot_be_believed_are_ignored(engine: ScriptedEngine, gate: Riskgate, details: bytes) -> None:
    def refuse(request: Any, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(Code.NOT_FOUND, "plain words")

    engine.plan("GetCreditLine", refuse)

    error = failure_of(gate)

    assert type(error) is NotFound
    assert (error.reason, error.message) == ("", "plain words")


def test_garbage_inside_a_detail_is_ignored() -> None:
    spoilt = status(Code.INVALID_ARGUMENT, "FIELD_INVALID")
    spoilt.details.add(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\xff")

    error = error_from_status(spoilt)

    assert isinstance(error, InvalidRequest)
    assert error.fields == ()


def test_the_grpc_error_is_the_cause(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetCreditLine", refusal(Code.NOT_FOUND, "LINE_NOT_FOUND"))

    assert isinstance(failure_of(gate).__cause__, grpc.RpcError)


def test_errors_cross_process_borders() -> None:
    error = error_from_status(status(Code.NOT_FOUND, "LINE_NOT_FOUND", line="main"))

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is NotFound
    assert vars(copy) == vars(error)


def test_one_bad_purchase_of_a_batch_spoils_only_its_own_result(engine: ScriptedEngine, gate: Riskgate) -> None:
    bad = status(Code.INVALID_ARGUMENT, "CURRENCY_MISMATCH")
    results = [
        risk_pb.CheckResult(request_id="r1", error=bad),
        risk_pb.CheckResult(request_id="r2", decision=decision("T2")),
        risk_pb.CheckResult(request_id="r3", error=status(Code.UNAVAILABLE, "OUTCOME_UNKNOWN")),
    ]
    engine.plan("BatchCheckTransactions", risk_pb.BatchCheckTransactionsResponse(results=results))
    checks = [
        check(customer_id="ada", transaction_id=f"T{i}", amount=Money("CNY", 1), merchant_id="M1") for i in (1, 2, 3)
    ]

    refused, decided, unknown = gate.risk.check_batch(checks)

    assert isinstance(refused.error, InvalidRequest)
    assert refused.error.reason == "CURRENCY_MISMATCH"
    assert refused.error.request_id == "r1"
    assert not refused.error.effect_possible
    with pytest.raises(InvalidRequest):
        refused.unwrap()
    assert decided.unwrap().transaction_id == "T2"
    assert unknown.error is not None
    assert unknown.error.effect_possible


def test_an_answer_without_its_amount_is_not_read_as_zero(engine: ScriptedEngine, gate: Riskgate) -> None:
    from riskgate.credit.v1 import credit_line_service_pb2 as line_pb  # noqa: PLC0415 - only here

    engine.plan("GetCreditLine", line_pb.GetCreditLineResponse(credit_line=line_pb.CreditLine(line_id="main")))

    error = failure_of(gate)

    assert isinstance(error, Internal)
    assert "CreditLine lacks limit" in error.message
