"""A stream of purchases gives every purchase one result, whatever happens to the connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_client import (
    Call,
    Cancelled,
    CheckResult,
    DeadlineExceeded,
    Decision,
    InvalidRequest,
    Money,
    OutcomeUnknown,
    PermissionDenied,
    ResourceExhausted,
    Retry,
    Riskgate,
    Unavailable,
    check,
)
from riskgate_client import lines as line_calls
from riskgate_client.in_flight import WINDOW
from tests.client.messages import decision
from tests.client.scripted import ScriptedEngine, broken, never, refusal, status, unavailable

Code = grpc.StatusCode
GateTo = Callable[..., Riskgate]
METHOD = "StreamCheckTransactions"


def purchase(number: int) -> Call[Decision]:
    return check(
        customer_id="ada",
        transaction_id=f"T{number}",
        amount=Money("CNY", 1),
        merchant_id="M1",
        request_id=f"r{number}",
    )


def purchases(how_many: int) -> Iterator[Call[Decision]]:
    return map(purchase, range(how_many))


def answer(check: pb.CheckTransactionRequest) -> pb.StreamCheckTransactionsResponse:
    made = decision(check.transaction_id, check.request_id)
    return pb.StreamCheckTransactionsResponse(result=pb.CheckResult(request_id=check.request_id, decision=made))


def failed(check: pb.CheckTransactionRequest, error: Any) -> pb.StreamCheckTransactionsResponse:
    return pb.StreamCheckTransactionsResponse(result=pb.CheckResult(request_id=check.request_id, error=error))


class Deciding:
    """A step that answers purchases, and after `answers` of them fails. Remembers what it was sent."""

    def __init__(self, answers: int | None = None, then: Callable[..., Any] | None = None) -> None:
        self.answers = answers
        self.then = then
        self.sent: list[str] = []

    def __call__(self, incoming: Iterable[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for done, message in enumerate(incoming):
            self.sent.append(message.check.request_id)
            if done == self.answers:
                assert self.then is not None
                self.then(None, context)
            yield answer(message.check)


def ids(results: Iterable[CheckResult]) -> list[str]:
    return [result.unwrap().transaction_id for result in results]


def transactions(how_many: int) -> list[str]:
    return [f"T{number}" for number in range(how_many)]


def test_every_purchase_has_one_result(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding())

    results = gate.risk.check_stream(purchases(600))

    assert ids(results) == transactions(600)
    assert len(engine.calls) == 1


def test_a_stream_of_nothing_ends(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding())

    assert list(gate.risk.check_stream([])) == []


@pytest.mark.parametrize("failure", [broken(), unavailable("OUTCOME_UNKNOWN")])
def test_after_a_break_only_what_was_not_answered_is_sent_again(
    engine: ScriptedEngine, gate: Riskgate, failure: Callable[..., Any]
) -> None:
    first, second, third = Deciding(100, then=failure), Deciding(70, then=failure), Deciding()
    engine.plan(METHOD, first, second, third)

    results = ids(gate.risk.check_stream(purchases(400)))

    assert sorted(results) == sorted(transactions(400))
    # Answers on their way when the connection broke are lost, and those purchases are sent again: never others.
    assert set(second.sent).isdisjoint(f"r{number}" for number in range(results.index("T0") - 1))
    for later in (second, third):
        assert later.sent == sorted(later.sent, key=lambda request_id: int(request_id[1:]))


def test_a_stream_that_the_engine_ends_early_goes_on(engine: ScriptedEngine, gate: Riskgate) -> None:
    def one(incoming: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield answer(next(incoming).check)

    engine.plan(METHOD, one, Deciding())

    assert ids(gate.risk.check_stream(purchases(5))) == transactions(5)


def test_one_bad_purchase_spoils_only_its_own_result(engine: ScriptedEngine, gate: Riskgate) -> None:
    def refuse_first(incoming: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield failed(next(incoming).check, status(Code.INVALID_ARGUMENT, "CURRENCY_MISMATCH"))
        yield from (answer(message.check) for message in incoming)

    engine.plan(METHOD, refuse_first)

    refused, decided = gate.risk.check_stream(purchases(2))

    assert isinstance(refused.error, InvalidRequest)
    assert refused.request_id == "r0"
    assert decided.unwrap().transaction_id == "T1"


def test_a_purchase_whose_outcome_is_unknown_is_sent_again(engine: ScriptedEngine, gate: Riskgate) -> None:
    sent: list[str] = []

    def unsure_once(incoming: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for message in incoming:
            again = message.check.request_id in sent
            sent.append(message.check.request_id)
            unknown = failed(message.check, status(Code.UNAVAILABLE, "OUTCOME_UNKNOWN"))
            yield answer(message.check) if again or message.check.request_id != "r1" else unknown

    engine.plan(METHOD, unsure_once)

    results = ids(gate.risk.check_stream(purchases(3)))

    assert sorted(results) == transactions(3)
    assert sorted(sent) == ["r0", "r1", "r1", "r2"]


def exhausted() -> Any:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=1_000_000))
    return status(Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry)


def limited(incoming: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
    """Refuse every purchase once for its rate."""
    seen: set[str] = set()
    for message in incoming:
        known = message.check.request_id in seen
        seen.add(message.check.request_id)
        yield answer(message.check) if known else failed(message.check, exhausted())


def test_above_the_rate_a_purchase_has_an_error(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, limited)

    results = list(gate.risk.check_stream(purchases(3)))

    assert [type(result.error) for result in results] == [ResourceExhausted] * 3


def test_above_the_rate_a_purchase_waits_if_asked_to(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan(METHOD, limited)
    gate = gate_to(engine, retry=Retry(when_exhausted=True))

    results = ids(gate.risk.check_stream(purchases(50)))

    assert sorted(results) == sorted(transactions(50))


def test_a_refused_stream_ends_with_the_refusal(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, refusal(Code.PERMISSION_DENIED, "SCOPE_MISSING"))

    with pytest.raises(PermissionDenied):
        list(gate.risk.check_stream(purchases(3)))


def test_a_stream_that_never_worked_gives_up_like_any_call(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, unavailable())

    with pytest.raises(Unavailable):
        list(gate.risk.check_stream(purchases(3)))

    assert len(engine.calls) == 4


@pytest.mark.parametrize("failure", [broken(), unavailable("SHUTTING_DOWN")])
def test_a_stream_given_up_after_a_break_has_unknown_outcomes(
    engine: ScriptedEngine, gate_to: GateTo, failure: Callable[..., Any]
) -> None:
    engine.plan(METHOD, Deciding(2, then=failure), unavailable())
    gate = gate_to(engine, retry=Retry(pause_first_seconds=0.01, outage_max_seconds=0.3))

    with pytest.raises(OutcomeUnknown):
        list(gate.risk.check_stream(purchases(5)))


def test_a_stream_that_was_idle_for_long_outlasts_a_break_too(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan(METHOD, Deciding(1, then=broken()), Deciding())
    gate = gate_to(engine, retry=Retry(pause_first_seconds=0.01, outage_max_seconds=0.2))

    def with_a_pause() -> Iterator[Call[Decision]]:
        yield purchase(0)
        time.sleep(0.4)
        yield purchase(1)

    assert ids(gate.risk.check_stream(with_a_pause())) == ["T0", "T1"]


def test_a_stream_outlives_the_lease_of_its_connection(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding())

    def slowly() -> Iterator[Call[Decision]]:
        for number in range(6):
            time.sleep(0.15)
            yield purchase(number)

    results = ids(gate.risk.check_stream(slowly(), timeout=0.3))

    assert results == transactions(6)
    assert len(engine.calls) > 1
    assert all(call.seconds_left is not None for call in engine.calls)


def test_answers_that_do_not_come_are_an_error(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding(2, then=never()), Deciding(0, then=never()))

    with pytest.raises(DeadlineExceeded) as failed_with:
        list(gate.risk.check_stream(purchases(5), timeout=0.2))

    assert failed_with.value.effect_possible


def test_no_more_than_a_window_is_in_flight(engine: ScriptedEngine, gate: Riskgate) -> None:
    taken: list[int] = []
    window_taken = threading.Event()

    def hold_back(incoming: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        assert window_taken.wait(timeout=10)
        time.sleep(0.1)
        taken_before_any_answer.append(len(taken))
        yield from (answer(message.check) for message in incoming)

    def counted() -> Iterator[Call[Decision]]:
        for number in range(2 * WINDOW):
            taken.append(number)
            if number == WINDOW:
                window_taken.set()
            yield purchase(number)

    taken_before_any_answer: list[int] = []
    engine.plan(METHOD, hold_back)

    decided = ids(gate.risk.check_stream(counted()))

    assert decided == transactions(2 * WINDOW)
    # One more than the window waits outside to be let in.
    assert taken_before_any_answer == [WINDOW + 1]


def test_a_purchase_described_twice_is_answered_twice(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding())
    twice = purchase(1)

    assert ids(gate.risk.check_stream([twice, twice])) == ["T1", "T1"]


def test_results_come_while_purchases_are_still_made(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding())
    answered = threading.Event()

    def wait_for_the_first() -> Iterator[Call[Decision]]:
        yield purchase(0)
        assert answered.wait(timeout=5)
        yield purchase(1)

    seen: list[str] = []
    for result in gate.risk.check_stream(wait_for_the_first()):
        seen.append(result.unwrap().transaction_id)
        answered.set()

    assert seen == ["T0", "T1"]


def test_an_error_of_the_source_is_raised_after_the_results_before_it(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding())

    def break_off() -> Iterator[Call[Decision]]:
        yield from purchases(3)
        raise OSError("the file is torn")

    results = gate.risk.check_stream(break_off())
    seen = [next(results).request_id for _ in range(3)]

    assert seen == ["r0", "r1", "r2"]
    with pytest.raises(OSError, match="torn"):
        next(results)


def test_a_stream_can_be_left_early(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding())
    results = gate.risk.check_stream(map(purchase, count()))

    some = ids(islice(results, 10))
    results.close()

    assert some == transactions(10)
    assert list(results) == []


def test_only_purchases_can_be_streamed(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding())

    with pytest.raises(TypeError, match=r"described with check\(\.\.\.\), not GetCreditLine"):
        list(gate.risk.check_stream([line_calls.get("ada")]))  # type: ignore[list-item]  # what is tested


def test_a_stream_needs_time(gate: Riskgate) -> None:
    with pytest.raises(ValueError, match="above zero"):
        gate.risk.check_stream([], timeout=0)


def test_closing_the_client_ends_a_stream(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(METHOD, Deciding(1, then=never()))
    results = gate.risk.check_stream(purchases(2))
    next(results)
    alarm = threading.Timer(0.2, gate.close)
    alarm.start()

    with pytest.raises(Cancelled):
        next(results)
    alarm.join()


def test_a_purchase_of_many_has_no_deadline_of_its_own(gate: Riskgate) -> None:
    hurried = check(customer_id="ada", transaction_id="T1", timeout=1.0)

    with pytest.raises(ValueError, match="timeout"):
        gate.risk.check_batch([hurried])
