"""Too large, too many, too often: refused early, with a word on when to come back."""

from __future__ import annotations

import resource
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_server.domain.errors import NotFound
from riskgate_server.engine.queries import Queries
from riskgate_server.rpc import callers, service
from riskgate_server.rpc.reading import MESSAGE_BYTES_MAX, REQUEST_BYTES_MAX
from tests.rpc.calling import Api, path_of, refused, refused_by, refused_of
from tests.rpc.contract import SERVED
from tests.rpc.requests import annotating, buy, buying, entries_of, line_of, open_line
from tests.rpc.serving import Deployment, Loop, Running, Tenant, serving
from tests.rpc.test_deadlines import stalled

CHECK: Final = SERVED[0]
STREAM: Final = next(method for method in SERVED if method.name == "StreamCheckTransactions")
BATCH: Final = next(method for method in SERVED if method.name == "BatchCheckTransactions")
ANNOTATE: Final = next(method for method in SERVED if method.name == "AnnotateDecision")
WAVES, WAVE, LIMIT = 4, 12, 2
MEBIBYTE: Final = 1024 * 1024


def note_of(size: int) -> bytes:
    """Return a request of exactly so many bytes."""
    request = annotating("d-2")
    request.note = "x" * size
    request.note = "x" * (2 * size - request.ByteSize())
    assert request.ByteSize() == size
    return request.SerializeToString()


@pytest.mark.attack("too-large")
def test_a_message_of_the_largest_size_is_read_and_one_byte_more_is_not(ada: Api) -> None:
    assert ada.answer(ANNOTATE, note_of(REQUEST_BYTES_MAX)) == "INVALID_ARGUMENT FIELD_INVALID"
    assert ada.answer(ANNOTATE, note_of(REQUEST_BYTES_MAX + 1)) == "INVALID_ARGUMENT MESSAGE_TOO_LARGE"
    assert ada.answer(ANNOTATE, note_of(MESSAGE_BYTES_MAX + 1)) == "RESOURCE_EXHAUSTED"
    assert buy(ada).outcome == pb.OUTCOME_APPROVE


def test_a_purchase_alone_or_on_a_stream_has_a_largest_size_and_many_in_a_batch_another(ada: Api) -> None:
    fat = b"\xa0\x06\x01" * (REQUEST_BYTES_MAX // 3 + 1)

    alone = refused(lambda: ada.send(CHECK, fat))
    streamed = pb.StreamCheckTransactionsResponse.FromString(ada.send(STREAM, fat)).result
    batch = ada.answer(BATCH, fat)

    assert alone.name == refused_by(streamed.error).name == "INVALID_ARGUMENT MESSAGE_TOO_LARGE"
    assert "65536" in alone.message
    assert batch == "INVALID_ARGUMENT FIELD_INVALID"


def test_a_message_that_inflates_beyond_the_largest_size_is_refused_without_being_inflated(ada: Api) -> None:
    bomb = b"\x00" * (48 * MEBIBYTE)
    call: Any = ada.channel.unary_unary("/riskgate.risk.v1.RiskService/CheckTransaction")
    # Sent once before, so that the client's own copies count in neither reading.
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(grpc.RpcError) as error:
            call(bomb, metadata=ada.metadata, timeout=20, compression=grpc.Compression.Gzip)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    assert refused_of(error.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grown < 16
    assert buy(ada).outcome == pb.OUTCOME_APPROVE


def test_a_compressed_request_is_a_request(ada: Api) -> None:
    reply = ada.risk.CheckTransaction(buying(), compression=grpc.Compression.Gzip)

    assert reply.decision.outcome == pb.OUTCOME_APPROVE


@pytest.mark.parametrize(("name", "size"), [("x-long", 64 * 1024), ("x-long-bin", 64 * 1024)])
def test_metadata_beyond_the_largest_size_is_refused(ada: Api, name: str, size: int) -> None:
    value: str | bytes = b"\x00" * size if name.endswith("-bin") else "x" * size

    answer = ada.answer(CHECK, buying().SerializeToString(), metadata=((name, value),))

    assert answer == "RESOURCE_EXHAUSTED"
    assert len(entries_of(ada)) == 1


def test_metadata_nobody_asked_for_changes_nothing(ada: Api) -> None:
    more = (("x-request-id", "1"), ("x-trace-bin", b"\xff\x00"), ("grpc-previous-rpc-attempts", "3"))

    assert ada.answer(CHECK, buying().SerializeToString(), metadata=more) == "OK"


# --- Rate ---


def test_a_caller_above_its_rate_is_told_when_to_come_back(tenant: Tenant) -> None:
    open_line(tenant.api)
    api = tenant.caller("limit:read", rate=1, burst=5)

    answers = [api.answer("/riskgate.credit.v1.CreditLineService/GetCreditLine", b"\n\x03ada") for _ in range(6)]
    refusal = refused(lambda: line_of(api))

    assert answers == ["OK"] * 5 + ["RESOURCE_EXHAUSTED RATE_LIMITED"]
    assert 0 < refusal.retry_seconds <= 1


def test_a_caller_that_comes_back_when_told_is_let_in(tenant: Tenant) -> None:
    open_line(tenant.api)
    api = tenant.caller("limit:read", rate=20, burst=1)
    line_of(api)
    refusal = refused(lambda: line_of(api))
    come_back = time.monotonic() + refusal.retry_seconds

    threading.Event().wait(come_back - time.monotonic())

    assert line_of(api).line_id == "main"


def test_one_callers_rate_is_no_other_callers(tenant: Tenant) -> None:
    open_line(tenant.api)
    busy, calm = tenant.caller("limit:read", rate=1, burst=1), tenant.caller("limit:read", rate=1, burst=1)
    line_of(busy)

    assert refused(lambda: line_of(busy)).reason == "RATE_LIMITED"
    assert line_of(calm).line_id == "main"


def test_a_batch_costs_as_many_calls_as_it_has_items(tenant: Tenant) -> None:
    open_line(tenant.api)
    api = tenant.caller("risk:check", rate=1, burst=10)

    def batch(size: int) -> Any:
        request = pb.BatchCheckTransactionsRequest(checks=[buying(amount=1) for _ in range(size)])
        return api.risk.BatchCheckTransactions(request)

    batch(6)
    refusal = refused(lambda: batch(6))
    batch(3)

    assert refusal.reason == "RATE_LIMITED"
    assert 0 < refusal.retry_seconds <= 6
    assert len(entries_of(tenant.api)) == 1 + 6 + 3


def test_an_item_of_a_stream_costs_a_call(tenant: Tenant) -> None:
    open_line(tenant.api)
    api = tenant.caller("risk:check", rate=1, burst=4)

    answers = list(
        api.risk.StreamCheckTransactions(pb.StreamCheckTransactionsRequest(check=buying(amount=1)) for _ in range(6))
    )

    # The stream itself was the first.
    ends = Counter(answer.result.WhichOneof("result") for answer in answers)
    assert ends == {"decision": 3, "error": 3}
    refusals = [refused_by(answer.result.error) for answer in answers if answer.result.HasField("error")]
    assert {refusal.name for refusal in refusals} == {"RESOURCE_EXHAUSTED RATE_LIMITED"}
    assert all(refusal.retry_seconds > 0 for refusal in refusals)


def test_an_item_that_is_no_message_costs_a_call_too(tenant: Tenant) -> None:
    """Reading it was work: a stream of them would be a way around the rate."""
    api = tenant.caller("risk:check", rate=1, burst=4)
    channel: Any = api.channel

    replies = channel.stream_stream(path_of(STREAM))(iter([b"\xff"] * 6), metadata=api.metadata, timeout=10)
    results = [pb.StreamCheckTransactionsResponse.FromString(reply).result for reply in replies]

    reasons = Counter(refused_by(result.error).reason for result in results)
    assert reasons == {"MESSAGE_MALFORMED": 3, "RATE_LIMITED": 3}


def test_each_question_on_a_stream_of_reflection_costs_a_call(tenant: Tenant) -> None:
    api = tenant.caller("reflection:read", rate=1, burst=4)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")] * 9

    refusal = refused(lambda: list(stub.ServerReflectionInfo(iter(asked), metadata=api.metadata, timeout=10)))

    assert refusal.name == "RESOURCE_EXHAUSTED RATE_LIMITED"


def test_who_cannot_prove_itself_costs_nobodys_rate(running: Running, tenant: Tenant) -> None:
    open_line(tenant.api)
    api = tenant.caller("limit:read", rate=1, burst=2)
    for _ in range(20):
        running.anonymous().answer(CHECK, b"")

    assert [line_of(api).line_id for _ in range(2)] == ["main", "main"]


def test_a_call_without_the_scope_for_it_costs_its_caller(tenant: Tenant) -> None:
    api = tenant.caller("limit:read", rate=1, burst=3)

    answers = Counter(api.answer(CHECK, b"") for _ in range(5))

    assert answers == {"PERMISSION_DENIED SCOPE_MISSING": 3, "RESOURCE_EXHAUSTED RATE_LIMITED": 2}


def test_a_batch_above_the_burst_passes_when_its_caller_did_nothing_before(tenant: Tenant) -> None:
    open_line(tenant.api)
    api = tenant.caller("risk:check", rate=1, burst=10)

    results = api.risk.BatchCheckTransactions(_batch(50)).results
    refusal = refused(lambda: api.risk.BatchCheckTransactions(_batch(50)))

    assert [result.WhichOneof("result") for result in results] == ["decision"] * 50
    assert refusal.name == "RESOURCE_EXHAUSTED RATE_LIMITED"


def test_a_caller_keeps_so_many_streams_open_and_no_other_caller_notices(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "STREAMS_MAX", 3)
    open_line(tenant.api)
    api, other = tenant.caller("risk:read"), tenant.caller("risk:read")
    request = pb.WatchDecisionsRequest()
    watches: list[Any] = [api.risk.WatchDecisions(request, timeout=20) for _ in range(3)]
    for watch in watches:
        next(watch)

    refusal = refused(lambda: next(api.risk.WatchDecisions(request)))
    others = next(other.risk.WatchDecisions(request)).resume_token
    watches.pop().cancel()
    while not _opens(api):
        pass
    for watch in watches:
        watch.cancel()

    assert refusal.name == "RESOURCE_EXHAUSTED TOO_MANY_STREAMS"
    assert refusal.retry_seconds > 0
    assert others


def _opens(api: Api) -> bool:
    watch: Any = api.risk.WatchDecisions(pb.WatchDecisionsRequest(), timeout=20)
    try:
        next(watch)
    except grpc.RpcError:
        return False
    watch.cancel()
    return True


def test_questions_beyond_what_may_wait_are_refused_at_once(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "READS_MAX", 2)
    open_line(tenant.api)
    reached, go = threading.Semaphore(0), threading.Event()

    def slow(_self: Queries, _key: object, _line_id: str) -> Any:
        reached.release()
        assert go.wait(20)
        raise NotFound("LINE_NOT_FOUND", "said by the test")

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as asking:
        patch.setattr(Queries, "credit_line", slow)
        waiting = [asking.submit(refused, lambda: line_of(tenant.api)) for _ in range(2)]
        assert all(reached.acquire(timeout=10) for _ in range(2))
        refusal = refused(lambda: line_of(tenant.api))
        go.set()
        answers = {call.result(10).reason for call in waiting}

    assert refusal.name == "RESOURCE_EXHAUSTED OVERLOADED"
    assert refusal.retry_seconds > 0
    assert answers == {"LINE_NOT_FOUND"}
    assert line_of(tenant.api).line_id == "main"


# --- Overload ---


def test_never_more_than_the_limit_is_at_work_and_the_rest_is_refused_at_once(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment, waiting_max=LIMIT) as running:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        for _ in range(WAVES):
            before = len(entries_of(api))
            requests = [buying(amount=1) for _ in range(WAVE)]
            with stalled(monkeypatch) as stall, ThreadPoolExecutor(WAVE) as callers:
                wave = [callers.submit(api.answer, CHECK, request.SerializeToString()) for request in requests]
                assert stall.reached.wait(10)
                refusals = _first(wave, WAVE - LIMIT)
                batch = refused(lambda: api.risk.BatchCheckTransactions(_batch(1)))
                read = line_of(api)  # questions need no writer
                stall.go.set()
                answers = Counter(call.result(10) for call in wave)

            assert refusals == {"RESOURCE_EXHAUSTED OVERLOADED"}
            assert batch.name == "RESOURCE_EXHAUSTED OVERLOADED"
            assert batch.retry_seconds == 0.5
            assert read.line_id == "main"
            assert answers == {"OK": LIMIT, "RESOURCE_EXHAUSTED OVERLOADED": WAVE - LIMIT}
            assert len(entries_of(api)) == before + LIMIT
    deployment.close()


def _batch(size: int) -> pb.BatchCheckTransactionsRequest:
    return pb.BatchCheckTransactionsRequest(checks=[buying(amount=1) for _ in range(size)])


def _first(wave: list[Any], number: int) -> set[str]:
    """Return what the first so many of a wave were answered, while the others still wait."""
    deadline = time.monotonic() + 10
    while (done := sum(call.done() for call in wave)) < number:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    assert done == number
    return {call.result() for call in wave if call.done()}


def test_a_refused_call_consumes_no_id(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment, waiting_max=1) as running:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        request = buying()
        with stalled(monkeypatch) as stall:
            leading = api.risk.CheckTransaction.future(buying())
            assert stall.reached.wait(10)
            refusal = refused(lambda: api.risk.CheckTransaction(request))
            stall.go.set()
            leading.result()
        again = api.risk.CheckTransaction(request)
    deployment.close()

    assert refusal.reason == "OVERLOADED"
    assert again.decision.outcome == pb.OUTCOME_APPROVE
