"""What a caller may believe about a command that failed."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_client import (
    DeadlineExceeded,
    FailedPrecondition,
    Money,
    OutcomeUnknown,
    Riskgate,
    RiskgateError,
    Unauthenticated,
    Unavailable,
    check,
)
from tests.client.conftest import IMPATIENT
from tests.client.messages import checked
from tests.client.scripted import ScriptedEngine, authority, broken, never, refusal, status, unavailable

Step = Callable[..., Any]


def failure_of(gate: Riskgate, timeout: float | None = None) -> RiskgateError:
    with pytest.raises(RiskgateError) as failed:
        gate.ledger.capture(
            customer_id="ada", hold_id="T1", amount=Money("CNY", 1), request_id="attempt-7", timeout=timeout
        )
    return failed.value


def test_a_command_that_never_left_had_no_effect(connect: Callable[..., Riskgate]) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        target = f"localhost:{taken.getsockname()[1]}"
        gate = connect(target, ca=authority().certificate_pem, api_key="rgk_k", retry=IMPATIENT)

        error = failure_of(gate, timeout=0.3)

    assert type(error) is Unavailable
    assert not error.effect_possible
    assert error.request_id == "attempt-7"


def test_a_command_on_a_broken_connection_may_have_had_its_effect(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("CaptureHold", broken())

    error = failure_of(gate)

    assert isinstance(error, OutcomeUnknown)
    assert error.effect_possible
    assert error.request_id == "attempt-7"
    assert error.reason == "OUTCOME_UNKNOWN"


def test_a_command_refused_by_a_stopping_engine_had_no_effect(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("CaptureHold", unavailable("SHUTTING_DOWN"))

    error = failure_of(gate)

    assert type(error) is Unavailable
    assert not error.effect_possible


@pytest.mark.parametrize(
    ("last", "family"),
    [
        (unavailable("SHUTTING_DOWN"), OutcomeUnknown),
        (refusal(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_INVALID"), Unauthenticated),
        (refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED"), DeadlineExceeded),
    ],
)
def test_an_unknown_outcome_stays_unknown_until_the_engine_looks(
    engine: ScriptedEngine, gate: Riskgate, last: Step, family: type[RiskgateError]
) -> None:
    engine.plan("CaptureHold", unavailable("OUTCOME_UNKNOWN"), last)

    error = failure_of(gate)

    assert type(error) is family
    assert error.effect_possible


@pytest.mark.parametrize("first", [broken(), unavailable("OUTCOME_UNKNOWN")], ids=["broken", "unknown"])
@pytest.mark.parametrize(
    "last",
    [
        refusal(grpc.StatusCode.INTERNAL, "INTERNAL"),
        refusal(grpc.StatusCode.INVALID_ARGUMENT, "EVENT_TIME_OUT_OF_RANGE"),
        refusal(grpc.StatusCode.ABORTED, "WRITE_CONFLICT"),
        refusal(grpc.StatusCode.UNKNOWN, "SOMETHING_NEW"),
        refusal(grpc.StatusCode.UNKNOWN),
    ],
    ids=["internal", "invalid", "conflict", "unknown", "not the engine's"],
)
def test_a_refusal_from_before_the_engine_looked_resolves_nothing(
    engine: ScriptedEngine, gate: Riskgate, first: Step, last: Step
) -> None:
    engine.plan("CaptureHold", first, last)

    assert failure_of(gate).effect_possible


def test_a_forgotten_reply_tells_that_it_was_done_and_what(engine: ScriptedEngine, gate: Riskgate) -> None:
    told = {"effect": "HOLD_CAPTURED", "sequence": "3"}
    engine.plan("CaptureHold", refusal(grpc.StatusCode.FAILED_PRECONDITION, "REPLY_FORGOTTEN", **told))

    error = failure_of(gate)

    assert error.effect_possible
    assert error.metadata == told


def test_what_failed_of_a_batch_may_have_been_done_by_an_earlier_try(engine: ScriptedEngine, gate: Riskgate) -> None:
    failed = status(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
    refused = status(grpc.StatusCode.NOT_FOUND, "CUSTOMER_NOT_FOUND")
    results = [risk_pb.CheckResult(request_id=str(i), error=error) for i, error in enumerate((failed, refused))]
    engine.plan("BatchCheckTransactions", broken(), risk_pb.BatchCheckTransactionsResponse(results=results))

    late, unknown = gate.risk.check_batch([check(customer_id="ada", transaction_id="T1")])

    assert late.error is not None
    assert unknown.error is not None
    assert (late.error.effect_possible, unknown.error.effect_possible) == (True, False)


def test_a_refusal_by_the_state_resolves_an_unknown_outcome(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("CaptureHold", broken(), refusal(grpc.StatusCode.FAILED_PRECONDITION, "HOLD_VOIDED"))

    error = failure_of(gate)

    assert isinstance(error, FailedPrecondition)
    assert not error.effect_possible


def test_a_command_without_an_answer_in_time_may_have_had_its_effect(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("CaptureHold", never())

    error = failure_of(gate, timeout=0.2)

    assert isinstance(error, DeadlineExceeded)
    assert error.effect_possible
    assert error.request_id == "attempt-7"


def test_a_command_too_late_to_be_started_had_no_effect(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("CaptureHold", refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED"))

    assert not failure_of(gate).effect_possible


def test_a_question_has_no_effect(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetHold", broken())

    with pytest.raises(Unavailable) as failed:
        gate.ledger.get_hold(customer_id="ada", hold_id="T1")

    assert type(failed.value) is Unavailable
    assert not failed.value.effect_possible
    assert failed.value.request_id is None


def test_the_request_id_of_an_unknown_outcome_resolves_it(engine: ScriptedEngine, gate: Riskgate) -> None:
    purchase: dict[str, Any] = {
        "customer_id": "ada",
        "transaction_id": "T1",
        "amount": Money("CNY", 1),
        "merchant_id": "M1",
    }
    engine.plan("CheckTransaction", broken())
    with pytest.raises(OutcomeUnknown) as failed:
        gate.risk.check(**purchase)
    engine.plan("CheckTransaction", checked())

    answer = gate.risk.check(**purchase, request_id=failed.value.request_id)

    assert answer.approved
    assert len({request.request_id for request in engine.received("CheckTransaction")}) == 1
