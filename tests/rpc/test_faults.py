"""Our own bugs: whatever breaks inside, a caller learns an id for the log and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_server.engine import pipeline
from riskgate_server.engine.commands import CaptureHold
from riskgate_server.engine.decide import USE_CASES
from riskgate_server.engine.failures import ReadFailed
from riskgate_server.engine.queries import Queries
from riskgate_server.rpc import risk
from riskgate_server.rpc.convert import check_command
from riskgate_server.rpc.reading import RequestReader
from tests.rpc.calling import Api, refused, refused_by
from tests.rpc.contract import SERVED, sample
from tests.rpc.logs import Lines
from tests.rpc.requests import buy, buying, capturing, hold, line_of

CANARY: Final = "postgres://admin:hunter2@10.0.0.1/ledger"


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


PLANTED: Final = [
    RuntimeError(CANARY),
    ValueError(CANARY),
    KeyError(CANARY),
    AssertionError(CANARY),
    TimeoutError(CANARY),
    OSError(CANARY),
    grpc.RpcError(CANARY),
    ExceptionGroup(CANARY, [ValueError(CANARY)]),
    StopAsyncIteration(CANARY),
    StopIteration(CANARY),
]


def is_only_an_id(answer: Any, log: Lines) -> bool:
    """Whether a refusal tells no more than an id, and the log has the rest under it."""
    assert answer.name == "INTERNAL INTERNAL"
    assert answer.metadata.keys() == {"error_id"}
    assert CANARY not in str(answer)
    assert "hunter2" not in str(answer)
    return answer.metadata["error_id"] in {event["error_id"] for event in log.of("call failed")}


@pytest.mark.parametrize("method", SERVED, ids=lambda method: method.name)
def test_a_bug_in_any_method_is_told_as_an_id_of_the_log(
    ada: Api, method: MethodDescriptor, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    monkeypatch.setattr(RequestReader, "_violations", failing(RuntimeError(CANARY)))
    raw = sample(method).SerializeToString()

    if method.name == "StreamCheckTransactions":
        message = risk_pb.StreamCheckTransactionsRequest.FromString(raw)
        (answer,) = ada.risk.StreamCheckTransactions(iter([message]))
        answers = refused_by(answer.result.error)
    else:
        answers = refused(lambda: ada.send(method, raw))

    assert is_only_an_id(answers, log)
    (event,) = log.of("call failed")
    # An item of a stream is called what it stands for.
    named = {"StreamCheckTransactions": "CheckTransaction"}.get(method.name, method.name)
    assert event["method"] == f"{method.containing_service.full_name}/{named}"
    assert CANARY in event["exception"]


@pytest.mark.parametrize("error", PLANTED, ids=lambda error: type(error).__name__)
def test_no_kind_of_exception_reaches_a_caller(
    ada: Api, error: BaseException, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    monkeypatch.setattr(Queries, "credit_line", failing(error))

    assert is_only_an_id(refused(lambda: line_of(ada)), log)


def test_a_question_the_store_cannot_answer_now_is_refused_for_now(ada: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as planted:
        planted.setattr(Queries, "credit_line", failing(ReadFailed(CANARY)))
        told = refused(lambda: line_of(ada))

    assert (told.name, told.retry_seconds) == ("UNAVAILABLE READ_FAILED", 1)
    assert CANARY not in str(told)
    assert line_of(ada).line_id


def test_a_command_that_breaks_the_engine_is_refused_for_good_and_no_other(
    ada: Api, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    hold_id = hold(ada)
    request = capturing(hold_id)
    with monkeypatch.context() as planted:
        broken: dict[Any, Any] = {**USE_CASES, CaptureHold: failing(RuntimeError(CANARY))}
        planted.setattr(pipeline, "USE_CASES", broken)
        first = refused(lambda: ada.ledger.CaptureHold(request))

    again = refused(lambda: ada.ledger.CaptureHold(request))
    other = ada.ledger.CaptureHold(capturing(hold_id))

    assert is_only_an_id(first, log)
    assert is_only_an_id(again, log)
    assert any(CANARY in str(event) for event in log.events)
    assert other.hold.captured.amount_minor == 1_000


def test_one_item_that_breaks_the_engine_spoils_only_itself(
    ada: Api, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:

    def breaking(request: risk_pb.CheckTransactionRequest, *rest: Any, **more: Any) -> Any:
        if request.transaction_id == "bad":
            raise RuntimeError(CANARY)
        return check_command(request, *rest, **more)

    monkeypatch.setattr(risk, "check_command", breaking)
    checks = [buying(), buying(transaction_id="bad"), buying()]

    batch = ada.risk.BatchCheckTransactions(risk_pb.BatchCheckTransactionsRequest(checks=checks)).results
    again = [buying(), buying(transaction_id="bad"), buying()]
    stream = list(
        ada.risk.StreamCheckTransactions(risk_pb.StreamCheckTransactionsRequest(check=check) for check in again)
    )

    assert [result.WhichOneof("result") for result in batch] == ["decision", "error", "decision"]
    assert is_only_an_id(refused_by(batch[1].error), log)
    by_id = {answer.result.request_id: answer.result for answer in stream}
    assert [by_id[check.request_id].WhichOneof("result") for check in again] == ["decision", "error", "decision"]
    assert is_only_an_id(refused_by(by_id[again[1].request_id].error), log)


def test_a_call_given_up_inside_is_answered_at_once_and_resolves_by_its_id(
    ada: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = buying()
    with monkeypatch.context() as planted:
        # A library below may cancel what is not its own: left alone, the caller would wait for its deadline.
        planted.setattr(risk.RiskServicer, "_command", failing(asyncio.CancelledError(CANARY)))
        unary = refused(lambda: ada.risk.CheckTransaction(request, timeout=60))
        planted.setattr(Queries, "ends", failing(asyncio.CancelledError(CANARY)))
        stream = refused(lambda: list(ada.risk.WatchDecisions(risk_pb.WatchDecisionsRequest(), timeout=60)))

    # Not "nothing was done": it may have been given up after its command had gone to the writer.
    assert {unary.name, stream.name} == {"UNAVAILABLE OUTCOME_UNKNOWN"}
    assert ada.risk.CheckTransaction(request).decision.outcome == risk_pb.OUTCOME_APPROVE


def test_the_server_serves_on_after_all_of_it(ada: Api) -> None:
    assert buy(ada).outcome == risk_pb.OUTCOME_APPROVE
