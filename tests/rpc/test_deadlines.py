"""Deadlines and callers who give up: no effect starts late, and nobody else notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from riskgate.identity.v1 import otp_service_pb2 as otp_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.rpc import door
from tests.rpc.calling import Api, refused, refused_of
from tests.rpc.contract import SERVED
from tests.rpc.phones import code_of, confirmed_phone, sent, verify, whose
from tests.rpc.requests import buy, buying, entries_of, line_of, open_line
from tests.rpc.serving import Tenant

CHECK = SERVED[0]


class Stall:
    """Keeps the writer from its next batch until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()


@contextmanager
def stalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stall]:
    """Stop the writer before a batch; the stop is over when the block is."""
    stall = Stall()
    run = Pipeline.run_free

    def wait(self: Pipeline, commands: Any, **how: Any) -> Any:
        stall.reached.set()
        assert stall.go.wait(20)
        return run(self, commands, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "run_free", wait)
        try:
            yield stall
        finally:
            stall.go.set()


def late(api: Api, request: risk_pb.CheckTransactionRequest, timeout: float) -> grpc.StatusCode:
    return refused(lambda: api.risk.CheckTransaction(request, timeout=timeout)).code


def test_a_call_that_is_cut_at_any_moment_resolves_by_its_id_to_one_effect(ada: Api) -> None:
    requests = [buying(amount=1) for _ in range(60)]

    for number, request in enumerate(requests):
        # From before it is sent to after it is answered.
        ada.answer(CHECK, request.SerializeToString(), timeout=number * 0.0001 + 1e-9)
    first = [ada.risk.CheckTransaction(request) for request in requests]
    second = [ada.risk.CheckTransaction(request) for request in requests]

    assert first == second
    used = [entry.request_id for entry in entries_of(ada)]
    assert [used.count(request.request_id) for request in requests] == [1] * len(requests)


def test_what_waited_past_its_deadline_never_starts(ada: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    first, request = buying(), buying()
    with stalled(monkeypatch) as stall:
        leading = ada.risk.CheckTransaction.future(first, timeout=20)
        assert stall.reached.wait(10)
        code = late(ada, request, 0.05)
        stall.go.set()
        assert leading.result().decision.outcome == risk_pb.OUTCOME_APPROVE
    buy(ada)

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [entry.request_id for entry in entries_of(ada)].count(request.request_id) == 0
    assert ada.risk.CheckTransaction(request).decision.outcome == risk_pb.OUTCOME_APPROVE


def test_a_caller_who_gives_up_while_queued_takes_nobody_along(ada: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [buying() for _ in range(40)]
    with stalled(monkeypatch) as stall:
        leading = ada.risk.CheckTransaction.future(buying(), timeout=20)
        assert stall.reached.wait(10)
        waiting = [ada.risk.CheckTransaction.future(request, timeout=20) for request in requests]
        for call in waiting[::3]:
            call.cancel()
        stall.go.set()
        leading.result()
        for index, call in enumerate(waiting):
            if index % 3:
                assert call.result().decision.outcome == risk_pb.OUTCOME_APPROVE
            else:
                assert call.cancelled()

    # Each of them resolves by its id to exactly one outcome, whether or not it had reached the engine.
    for request in requests:
        assert ada.risk.CheckTransaction(request) == ada.risk.CheckTransaction(request)
    used = [entry.request_id for entry in entries_of(ada)]
    assert [used.count(request.request_id) for request in requests] == [1] * len(requests)
    assert line_of(ada).held.amount_minor == 41_000


def test_what_a_stream_left_waiting_past_its_deadline_never_starts(ada: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    request = buying()
    item = risk_pb.StreamCheckTransactionsRequest(check=request)
    with stalled(monkeypatch) as stall:
        leading = ada.risk.CheckTransaction.future(buying(), timeout=20)
        assert stall.reached.wait(10)
        refusal = refused(lambda: list(ada.risk.StreamCheckTransactions(iter([item]), timeout=0.3)))
        stall.go.set()
        leading.result()
    buy(ada)

    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [entry.request_id for entry in entries_of(ada)].count(request.request_id) == 0


@pytest.mark.parametrize("timeout", [None, 3_600.0])
def test_a_call_with_no_deadline_or_a_later_one_has_the_servers_own(
    ada: Api, timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "DEADLINE_MAX_SECONDS", 0.2)
    request = buying()
    call: Any = ada.channel.unary_unary("/riskgate.risk.v1.RiskService/CheckTransaction")
    with stalled(monkeypatch) as stall:
        leading = ada.risk.CheckTransaction.future(buying(), timeout=0.1)
        assert stall.reached.wait(10)
        with pytest.raises(grpc.RpcError) as error:
            call(request.SerializeToString(), metadata=ada.metadata, timeout=timeout)
        stall.go.set()
        assert leading.exception() is not None
    buy(ada)

    # The caller is told what it is: nobody knows yet. Here it never started, and the id shows that.
    assert refused_of(error.value).name == "UNAVAILABLE OUTCOME_UNKNOWN"
    assert [entry.request_id for entry in entries_of(ada)].count(request.request_id) == 0


def test_a_deadline_that_suffices_is_not_cut_short(ada: Api) -> None:
    assert ada.risk.CheckTransaction(buying(), timeout=3_600).decision.outcome == risk_pb.OUTCOME_APPROVE
    assert ada.answer(CHECK, buying().SerializeToString(), timeout=3_600) == "OK"


def test_what_started_before_its_deadline_finishes_and_resolves_by_its_id(
    ada: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = buying()
    done = threading.Event()
    run = Pipeline._commit

    def slow(self: Pipeline, *given: Any) -> Any:
        replies = run(self, *given)
        assert done.wait(20)  # committed, not yet answered
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "_commit", slow)
        code = late(ada, request, 0.3)
        done.set()

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert ada.risk.CheckTransaction(request).decision.decision_id == "d-2"
    assert len(entries_of(ada)) == 2


@pytest.mark.attack("retried-proof")
def test_a_proof_whose_answer_was_lost_is_repeated_for_its_one_grant(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_line(tenant.api)
    confirmed_phone(tenant)
    challenge_id = sent(tenant)
    code = code_of(tenant, challenge_id)
    done = threading.Event()
    commit = Pipeline._commit

    def slow(self: Pipeline, *given: Any) -> Any:
        replies = commit(self, *given)
        assert done.wait(20)  # committed, not yet answered
        return replies

    said: dict[str, Any] = {**whose(), "challenge_id": challenge_id, "code": code}
    request = otp_pb.VerifyCodeRequest(**said)
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "_commit", slow)
        lost = refused(lambda: tenant.api.otp.VerifyCode(request, timeout=0.3))
        done.set()

    assert lost.code is grpc.StatusCode.DEADLINE_EXCEEDED
    grant = tenant.api.otp.VerifyCode(request).grant
    assert tenant.api.otp.VerifyCode(request).grant == grant
    assert refused(lambda: verify(tenant, challenge_id, code)).name == "FAILED_PRECONDITION CHALLENGE_USED"
    assert [entry.kind for entry in entries_of(tenant.api)].count("PROOF_PASSED") == 1
