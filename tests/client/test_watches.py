"""Watches stand for ever, and go on where they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_client import DeadlineExceeded, PermissionDenied, Retry, Riskgate, Unavailable
from tests.client.messages import decision, line
from tests.client.scripted import ScriptedEngine, never, refusal, unavailable

Code = grpc.StatusCode
GateTo = Callable[..., Riskgate]
READER_TOO_SLOW = refusal(
    Code.RESOURCE_EXHAUSTED, "READER_TOO_SLOW", error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1))
)


def stands(token: str) -> risk_pb.WatchDecisionsResponse:
    return risk_pb.WatchDecisionsResponse(resume_token=token)


def decided(token: str) -> risk_pb.WatchDecisionsResponse:
    return risk_pb.WatchDecisionsResponse(decision=decision(f"T{token}"), resume_token=token)


def telling(*messages: Any, then: Callable[..., Any] | None = None) -> Callable[..., Iterator[Any]]:
    """Return a watch that sends messages and then fails in some way; by default it says no more."""

    def watch(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from messages
        (then or never())(request, context)

    return watch


def test_a_watch_gives_decisions_and_where_to_go_on(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchDecisions", telling(stands("10"), decided("11"), decided("12")))

    with gate.risk.watch_decisions(customer_id="ada") as watch:
        token_before = watch.resume_token
        transactions = [next(watch).transaction_id]
        token_between = watch.resume_token
        transactions.append(next(watch).transaction_id)

    assert transactions == ["T11", "T12"]
    assert (token_before, token_between, watch.resume_token) == ("10", "11", "12")
    assert engine.received("WatchDecisions")[0].customer_id == "ada"
    assert engine.calls[0].seconds_left is None


@pytest.mark.parametrize("failure", [unavailable(), READER_TOO_SLOW], ids=["UNAVAILABLE", "READER_TOO_SLOW"])
def test_a_watch_resumes_where_it_was(engine: ScriptedEngine, gate: Riskgate, failure: Callable[..., Any]) -> None:
    engine.plan(
        "WatchDecisions",
        telling(stands("10"), decided("11"), then=failure),
        unavailable(),
        telling(stands("11"), decided("12"), then=failure),
        telling(stands("12"), decided("13")),
    )

    with gate.risk.watch_decisions() as watch:
        transactions = [each.transaction_id for each in islice(watch, 3)]

    assert transactions == ["T11", "T12", "T13"]
    assert [request.resume_token for request in engine.received("WatchDecisions")] == ["", "11", "11", "12"]


def test_a_watch_that_the_engine_ends_resumes(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan(
        "WatchDecisions",
        telling(stands("10"), decided("11"), then=lambda request, context: None),
        telling(stands("11"), decided("12")),
    )

    with gate.risk.watch_decisions() as watch:
        transactions = [each.transaction_id for each in islice(watch, 2)]

    assert transactions == ["T11", "T12"]


def test_a_watch_goes_on_from_a_token_kept_earlier(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchDecisions", telling(stands("41"), decided("42")))

    watch = gate.risk.watch_decisions(resume_token="41")
    item = next(iter(watch))
    watch.close()

    assert item.transaction_id == "T42"
    assert engine.received("WatchDecisions")[0].resume_token == "41"


def test_a_watch_without_with_stands_from_the_first_item_asked_for(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchDecisions", telling(stands("10"), decided("11")))

    watch = gate.risk.watch_decisions()
    calls_before = len(engine.calls)
    item = next(iter(watch))
    watch.close()

    assert calls_before == 0
    assert item.transaction_id == "T11"


def test_a_refused_watch_fails_where_it_is_entered(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchDecisions", refusal(Code.PERMISSION_DENIED, "SCOPE_MISSING", scope="risk:read"))

    with pytest.raises(PermissionDenied), gate.risk.watch_decisions():
        pytest.fail("the watch does not stand")

    assert len(engine.calls) == 1


def test_a_watch_that_loses_its_scope_ends_with_the_refusal(engine: ScriptedEngine, gate: Riskgate) -> None:
    refused = refusal(Code.PERMISSION_DENIED, "SCOPE_MISSING")
    engine.plan("WatchDecisions", telling(stands("10"), decided("11"), then=refused))
    watch = gate.risk.watch_decisions()
    next(iter(watch))

    with pytest.raises(PermissionDenied):
        next(iter(watch))


def test_a_watch_that_never_stood_gives_up_like_any_call(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchDecisions", unavailable())

    with pytest.raises(Unavailable), gate.risk.watch_decisions():
        pytest.fail("the watch does not stand")

    assert len(engine.calls) == 4


def test_a_watch_that_says_nothing_at_first_is_given_up(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchDecisions", telling())

    with pytest.raises(DeadlineExceeded), gate.risk.watch_decisions(timeout=0.2):
        pytest.fail("the watch does not stand")


def test_a_watch_that_stood_outlasts_an_outage(engine: ScriptedEngine, gate: Riskgate) -> None:
    outage = [unavailable()] * 20
    engine.plan(
        "WatchDecisions", telling(stands("10"), then=unavailable()), *outage, telling(stands("10"), decided("11"))
    )

    with gate.risk.watch_decisions() as watch:
        item = next(watch)

    assert item.transaction_id == "T11"


def test_an_outage_that_is_too_long_ends_a_watch(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan("WatchDecisions", telling(stands("10"), then=unavailable()), unavailable())
    gate = gate_to(engine, retry=Retry(pause_first_seconds=0.01, pause_max_seconds=0.05, outage_max_seconds=0.3))

    began = time.monotonic()
    with gate.risk.watch_decisions() as watch, pytest.raises(Unavailable):
        next(watch)

    assert time.monotonic() - began < 1.0
    assert watch.resume_token == "10"


def test_a_watch_that_was_quiet_for_long_outlasts_an_outage_too(engine: ScriptedEngine, gate_to: GateTo) -> None:
    def quiet(request: Any, context: grpc.ServicerContext) -> None:
        time.sleep(0.4)
        unavailable()(request, context)

    engine.plan("WatchDecisions", telling(stands("10"), then=quiet), telling(stands("10"), decided("11")))
    gate = gate_to(engine, retry=Retry(pause_first_seconds=0.01, outage_max_seconds=0.2))

    with gate.risk.watch_decisions() as watch:
        item = next(watch)

    assert item.transaction_id == "T11"


def test_an_engine_too_slow_to_resume_a_watch_is_asked_again(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchDecisions", telling(stands("10"), then=unavailable()), telling(), telling(decided("11")))

    with gate.risk.watch_decisions(timeout=0.5) as watch:
        item = next(watch)

    assert item.transaction_id == "T11"
    assert len(engine.calls) == 3


def test_closing_a_watch_ends_it_for_whoever_waits(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchDecisions", telling(stands("10"), decided("11")))
    watch = gate.risk.watch_decisions()
    next(iter(watch))
    alarm = threading.Timer(0.1, watch.close)
    alarm.start()

    rest = list(watch)
    alarm.join()

    assert rest == []


def told(available: int) -> line_pb.WatchCreditLineResponse:
    return line_pb.WatchCreditLineResponse(credit_line=line(available, etag=str(available)))


def test_a_watched_line_is_told_as_it_stands_and_after_every_change(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchCreditLine", telling(told(500), told(400)))

    with gate.lines.watch("ada") as watch:
        available = [each.available.amount_minor for each in islice(watch, 2)]

    assert available == [500, 400]
    assert watch.resume_token == ""


def test_after_a_break_a_line_that_stayed_as_it_was_is_not_told_again(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("WatchCreditLine", telling(told(500), then=unavailable()), telling(told(500), told(400)))

    with gate.lines.watch("ada") as watch:
        available = [each.available.amount_minor for each in islice(watch, 2)]

    assert available == [500, 400]
