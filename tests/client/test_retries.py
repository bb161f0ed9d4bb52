"""What is made again, how often, and what is never."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_client import (
    DeadlineExceeded,
    Decision,
    FailedPrecondition,
    Money,
    ProofPurpose,
    ResourceExhausted,
    Retry,
    Riskgate,
    RiskgateError,
    Unavailable,
    check,
)
from riskgate_client.retry import Attempts
from riskgate_client.unreached import explained
from tests.client.messages import checked, decision, got_line
from tests.client.scripted import ScriptedEngine, broken, refusal, unavailable

GateTo = Callable[..., Riskgate]


def buy(gate: Riskgate, **options: str) -> Decision:
    amount = Money("CNY", 12_900)
    return gate.risk.check(
        customer_id="ada", transaction_id="T1", amount=amount, merchant_id="M1", request_id=options.get("request_id")
    )


def test_a_gateway_that_was_down_is_told_at_once_for_the_same_request_hears_nothing_else(
    engine: ScriptedEngine, gate: Riskgate
) -> None:
    engine.plan("SendCode", unavailable("GATEWAY_DOWN"))

    with pytest.raises(Unavailable) as raised:
        gate.otp.send_code(customer_id="ada", purpose=ProofPurpose.SIGN_IN)

    assert raised.value.reason == "GATEWAY_DOWN"
    assert not raised.value.effect_possible
    assert len(engine.calls) == 1


def exhausted(seconds: float, reason: str = "RATE_LIMITED") -> Callable[..., object]:
    delay = Duration(nanos=int(seconds * 1e9))
    return refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, error_details_pb2.RetryInfo(retry_delay=delay))


@pytest.mark.parametrize("failure", [broken(), unavailable("OUTCOME_UNKNOWN"), unavailable("SHUTTING_DOWN")])
def test_a_command_is_repeated_under_the_same_request_id(
    engine: ScriptedEngine, gate: Riskgate, failure: Callable[..., object]
) -> None:
    engine.plan("CheckTransaction", failure, failure, checked())

    answer = buy(gate)

    assert answer.approved
    requests = engine.received("CheckTransaction")
    assert len(requests) == 3
    assert requests[0].request_id
    assert requests[0] == requests[1] == requests[2]


def test_every_call_makes_a_request_id_of_its_own(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("CheckTransaction", checked())

    buy(gate)
    buy(gate)

    first, second = engine.received("CheckTransaction")
    assert first.request_id != second.request_id


def test_a_given_request_id_is_sent(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("CheckTransaction", checked())

    buy(gate, request_id="attempt-7")

    assert engine.received("CheckTransaction")[0].request_id == "attempt-7"


def test_a_question_is_repeated_because_it_changes_nothing(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetCreditLine", unavailable(), broken(), got_line(400_000))

    line = gate.lines.get("ada")

    assert line.available == Money("CNY", 400_000)
    assert len(engine.calls) == 3


def test_a_batch_is_repeated_under_the_same_request_ids(engine: ScriptedEngine, gate: Riskgate) -> None:
    results = [risk_pb.CheckResult(request_id=i, decision=decision(i)) for i in ("r1", "r2")]
    engine.plan("BatchCheckTransactions", broken(), risk_pb.BatchCheckTransactionsResponse(results=results))
    checks = [
        check(customer_id="ada", transaction_id=i, amount=Money("CNY", 1), merchant_id="M1", request_id=i)
        for i in ("r1", "r2")
    ]

    answers = gate.risk.check_batch(checks)

    assert [answer.request_id for answer in answers] == ["r1", "r2"]
    first, second = engine.received("BatchCheckTransactions")
    assert first == second


@pytest.mark.parametrize(
    "code",
    [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)],
    ids=lambda code: code.name,
)
def test_nothing_else_is_repeated(engine: ScriptedEngine, gate: Riskgate, code: grpc.StatusCode) -> None:
    engine.plan("CheckTransaction", refusal(code, "SOME_REASON"))

    with pytest.raises(RiskgateError) as refused:
        buy(gate)

    assert refused.value.status is code
    assert len(engine.calls) == 1


def test_tries_are_bounded(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan("CheckTransaction", unavailable())
    gate = gate_to(engine, retry=Retry(attempts_max=3, pause_first_seconds=0.001))

    with pytest.raises(Unavailable):
        buy(gate)

    assert len(engine.calls) == 3


def test_one_attempt_means_never_again(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan("CheckTransaction", unavailable())

    with pytest.raises(Unavailable):
        buy(gate_to(engine, retry=Retry(attempts_max=1)))

    assert len(engine.calls) == 1


def test_tries_and_pauses_end_with_the_deadline_of_the_call(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan("CheckTransaction", unavailable())
    patient = Retry(attempts_max=1000, pause_first_seconds=0.05, pause_max_seconds=0.05)
    gate = gate_to(engine, retry=patient, timeout=0.5)

    began = time.monotonic()
    # The last try may still be on its way when time is up.
    with pytest.raises((Unavailable, DeadlineExceeded)):
        buy(gate)

    assert time.monotonic() - began < 1.0
    assert 2 < len(engine.calls) < 30


def test_a_later_try_has_only_the_time_that_is_left(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan("GetCreditLine", unavailable(), unavailable(), got_line())
    gate = gate_to(engine, retry=Retry(pause_first_seconds=0.4, pause_max_seconds=0.4), timeout=2.0)

    gate.lines.get("ada")

    first, _, third = (call.seconds_left or 0.0 for call in engine.calls)
    # Two pauses of at least 0.2 s, less what gRPC rounds a deadline up.
    assert third < first - 0.25


def test_overload_is_not_repeated_unless_asked_for(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("CheckTransaction", exhausted(0.001), checked())

    with pytest.raises(ResourceExhausted) as refused:
        buy(gate)

    assert refused.value.retry_after == 0.001
    assert len(engine.calls) == 1


def test_overload_is_repeated_when_the_engine_said_if_asked_for(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan("CheckTransaction", exhausted(0.2), checked())
    gate = gate_to(engine, retry=Retry(when_exhausted=True))

    began = time.monotonic()
    answer = buy(gate)

    assert answer.approved
    assert time.monotonic() - began >= 0.2


def test_overload_that_outlasts_the_deadline_is_told_at_once(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan("CheckTransaction", exhausted(0.9))
    gate = gate_to(engine, retry=Retry(when_exhausted=True), timeout=0.5)

    began = time.monotonic()
    with pytest.raises(ResourceExhausted):
        buy(gate)

    assert time.monotonic() - began < 0.4


def test_overload_without_a_time_to_come_back_is_not_repeated(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan("CheckTransaction", refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"))

    with pytest.raises(ResourceExhausted) as refused:
        buy(gate_to(engine, retry=Retry(when_exhausted=True)))

    assert refused.value.retry_after is None
    assert len(engine.calls) == 1


def attempts(policy: Retry, *, chance: float = 0.0, seconds: float = 100.0) -> Attempts:
    return Attempts(policy, seconds=seconds, command=True, monotonic=lambda: 0.0, chance=lambda: chance)


def pauses(tried: Attempts) -> list[float]:
    found = []
    while (pause := tried.pause_after(Unavailable("down"))) is not None:
        found.append(pause)
    return found


def test_pauses_double_up_to_a_maximum() -> None:
    policy = Retry(attempts_max=6, pause_first_seconds=0.1, pause_max_seconds=0.5)

    assert pauses(attempts(policy)) == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


def test_chance_takes_at_most_half_of_a_pause() -> None:
    policy = Retry(attempts_max=4, pause_first_seconds=0.1, pause_max_seconds=1.0)

    assert pauses(attempts(policy, chance=1.0)) == pytest.approx([0.05, 0.1, 0.2])


def test_no_pause_reaches_beyond_the_deadline() -> None:
    policy = Retry(attempts_max=6, pause_first_seconds=0.1, pause_max_seconds=1.0)

    assert pauses(attempts(policy, seconds=0.4)) == pytest.approx([0.1, 0.2])


def test_a_refusal_by_the_state_has_no_pause() -> None:
    assert attempts(Retry()).pause_after(FailedPrecondition("no")) is None


@pytest.mark.parametrize(
    "nonsense", [{"attempts_max": 0}, {"pause_first_seconds": 0}, {"pause_first_seconds": 2, "pause_max_seconds": 1}]
)
def test_a_policy_that_makes_no_sense_is_refused(nonsense: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Retry(**nonsense)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


NOBODY: Final = "failed to connect to all addresses; last error: Failed to connect to remote host: Connection refused"


def test_where_nobody_listens_tries_go_on_for_as_long_as_the_call_may_take() -> None:
    clock = Clock()
    attempts = Attempts(Retry(), seconds=60, command=True, monotonic=clock, chance=lambda: 0.0)
    tries = 0

    while (pause := attempts.pause_after(Unavailable(NOBODY, status=grpc.StatusCode.UNAVAILABLE))) is not None:
        tries += 1
        clock.now += pause

    assert tries > 50
    assert 58 < clock.now <= 60


@pytest.mark.parametrize(
    ("policy", "message"),
    [(Retry(attempts_max=1), NOBODY), (Retry(), explained(NOBODY + " CERTIFICATE_VERIFY_FAILED"))],
    ids=["once means once", "whoever is there is somebody else"],
)
def test_waiting_is_not_for_everything(policy: Retry, message: str) -> None:
    attempts = Attempts(policy, seconds=60, command=True)

    assert attempts.pause_after(Unavailable(message, status=grpc.StatusCode.UNAVAILABLE)) is None
