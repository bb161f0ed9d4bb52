"""Purchases on a stream."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
import pytest

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.rpc import risk, service
from tests.rpc.calling import Api, path_of, refused, refused_by, refused_of
from tests.rpc.contract import SERVED
from tests.rpc.logs import Lines
from tests.rpc.requests import buying, entries_of, line_of, open_line
from tests.rpc.serving import Deployment, Running, Tenant
from tests.rpc.test_deadlines import stalled

STREAM: Final = next(method for method in SERVED if method.name == "StreamCheckTransactions")


def items(*checks: pb.CheckTransactionRequest) -> Iterator[pb.StreamCheckTransactionsRequest]:
    return (pb.StreamCheckTransactionsRequest(check=check) for check in checks)


class Sending:
    """A stream of requests that a test feeds by hand."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[pb.StreamCheckTransactionsRequest | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[pb.StreamCheckTransactionsRequest]:
        while (item := self._queue.get()) is not None:
            yield item

    def send(self, check: pb.CheckTransactionRequest) -> None:
        self._queue.put(pb.StreamCheckTransactionsRequest(check=check))

    def half_close(self) -> None:
        self._queue.put(None)


def test_a_client_that_has_sent_its_last_gets_every_answer(api: Api) -> None:
    open_line(api, limit=10**9)
    checks = [buying(amount=1) for _ in range(1_500)]

    answers = [answer.result for answer in api.risk.StreamCheckTransactions(items(*checks), timeout=20)]

    assert Counter(answer.request_id for answer in answers) == Counter(check.request_id for check in checks)
    assert {answer.decision.outcome for answer in answers} == {pb.OUTCOME_APPROVE}


def test_an_answer_comes_as_soon_as_it_is_decided(ada: Api) -> None:
    sending = Sending()
    answers: Any = ada.risk.StreamCheckTransactions(iter(sending), timeout=20)

    for _ in range(3):
        check = buying()
        sending.send(check)
        assert next(answers).result.request_id == check.request_id
    sending.half_close()
    assert list(answers) == []


def test_one_bad_item_spoils_only_itself(ada: Api) -> None:
    good = [buying(), buying()]
    bad = [buying("nobody"), buying(channel=99), buying(request_id=""), buying(amount=-1)]
    checks = [good[0], *bad, good[1]]

    by_id = {answer.result.request_id: answer.result for answer in ada.risk.StreamCheckTransactions(items(*checks))}

    assert all(by_id[check.request_id].HasField("decision") for check in good)
    assert {check.request_id: refused_by(by_id[check.request_id].error).reason for check in bad} == dict(
        zip(
            (check.request_id for check in bad),
            ("CUSTOMER_NOT_FOUND", "FIELD_INVALID", "FIELD_INVALID", "AMOUNT_NOT_POSITIVE"),
            strict=True,
        )
    )


def test_bytes_that_are_no_message_spoil_only_their_item(ada: Api) -> None:
    check = buying()
    raw = [b"\xff\xff", pb.StreamCheckTransactionsRequest(check=check).SerializeToString(), b"\x0a\x7f"]
    channel: Any = ada.channel

    replies = channel.stream_stream(path_of(STREAM))(iter(raw), metadata=ada.metadata, timeout=10)
    results = [pb.StreamCheckTransactionsResponse.FromString(reply).result for reply in replies]

    assert [refused_by(r.error).reason for r in results if r.HasField("error")] == ["MESSAGE_MALFORMED"] * 2
    assert [r.request_id for r in results if r.HasField("decision")] == [check.request_id]


def test_an_empty_stream_has_no_answers(ada: Api) -> None:
    assert list(ada.risk.StreamCheckTransactions(iter(()))) == []


def test_purchases_of_one_customer_are_decided_in_the_order_they_were_sent(ada: Api) -> None:
    checks = [buying(amount=60_000), buying(amount=60_000), buying(amount=40_000), buying(amount=1)]

    list(ada.risk.StreamCheckTransactions(items(*checks)))

    assert [entry.request_id for entry in entries_of(ada)[1:]] == [check.request_id for check in checks]


def test_a_reader_that_does_not_read_stops_the_stream_from_being_decided(
    ada: Api, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(risk, "IN_FLIGHT_MAX", 8)
    little = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
    channel = running.channels.new(running.key_port, options=little)
    slow = Api(channel, ada.metadata)
    total = 20_000
    endless = (item for _ in range(total) for item in items(buying(amount=10**9)))

    answers: Any = slow.risk.StreamCheckTransactions(endless, timeout=60)
    next(answers)
    # Nobody reads: what is decided stops to grow, long before everything is. Sent it may be, into a growing window.
    decided, unchanged = 0, 0
    while unchanged < 100:
        before, decided = decided, int(line_of(ada).etag)
        unchanged = unchanged + 1 if decided == before else 0
    answers.cancel()
    channel.close()

    assert 1 < decided < total / 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Deployment.revoke, "UNAUTHENTICATED CREDENTIAL_INVALID"),
        (lambda deployment, *who: deployment.rescope(*who, "risk:read"), "PERMISSION_DENIED SCOPE_MISSING"),
    ],
    ids=["revoked", "without the scope"],
)
@pytest.mark.parametrize("sends_on", [True, False])
def test_a_stream_ends_with_its_callers_rights_after_the_answers_under_way(
    running: Running,
    tenant: Tenant,
    log: Lines,
    monkeypatch: pytest.MonkeyPatch,
    *,
    change: Callable[..., None],
    told: str,
    sends_on: bool,
) -> None:
    monkeypatch.setattr(service, "CONFIRM_SECONDS", 60.0 if sends_on else 0.05)
    open_line(tenant.api)
    name, key = running.deployment.add_caller("risk:check", tenant=tenant.name)
    sending = Sending()
    answers: Any = running.keyed(key.text).risk.StreamCheckTransactions(iter(sending), timeout=20)
    sending.send(buying())
    before = next(answers).result
    under_way, later = buying(), [buying() for _ in range(20)]

    with stalled(monkeypatch) as stall:
        sending.send(under_way)
        assert stall.reached.wait(10)
        change(running.deployment, tenant.name, name)
        for check in later if sends_on else ():
            sending.send(check)
    answered = next(answers).result
    refusal = refused(lambda: list(answers))
    sending.half_close()

    assert before.HasField("decision")
    assert answered.request_id == under_way.request_id
    assert refusal.name == told
    assert [line["reason"] for line in log.of("call refused")] == [told.split()[1]]


def test_a_client_that_vanishes_leaves_what_was_decided_and_nobody_waiting(ada: Api) -> None:
    sending = Sending()
    answers: Any = ada.risk.StreamCheckTransactions(iter(sending), timeout=20)
    check = buying()
    sending.send(check)
    decided = next(answers).result.decision
    answers.cancel()
    sending.half_close()

    assert refused(lambda: next(answers)).code is grpc.StatusCode.CANCELLED
    assert ada.risk.CheckTransaction(check).decision == decided


def test_an_item_waits_as_long_as_the_server_lets_it_however_old_the_stream(
    ada: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[int] = []
    run = Pipeline.run_free

    def noting(self: Pipeline, commands: Any, **how: Any) -> Any:
        deadlines.extend(command.deadline_us for command in commands)
        return run(self, commands, **how)

    monkeypatch.setattr(Pipeline, "run_free", noting)
    sending = Sending()
    answers: Any = ada.risk.StreamCheckTransactions(iter(sending), timeout=3_600)
    for _ in range(2):
        sending.send(buying())
        next(answers)
    sending.half_close()
    list(answers)

    first, second = [deadline for deadline in deadlines if deadline][-2:]
    assert second > first


def test_a_batch_answers_in_its_order_however_it_ends(ada: Api) -> None:
    checks = [buying(amount=99_000), buying("nobody"), buying(amount=5_000), buying(channel=99), buying(amount=1_000)]

    results = ada.risk.BatchCheckTransactions(pb.BatchCheckTransactionsRequest(checks=checks)).results

    assert [result.request_id for result in results] == [check.request_id for check in checks]
    assert [result.WhichOneof("result") for result in results] == ["decision", "error", "decision", "error", "decision"]
    assert [results[at].decision.outcome for at in (0, 2, 4)] == [
        pb.OUTCOME_APPROVE, pb.OUTCOME_DECLINE, pb.OUTCOME_APPROVE,
    ]  # fmt: skip


@pytest.mark.parametrize("size", [0, 501])
def test_a_batch_has_one_to_five_hundred_items(ada: Api, size: int) -> None:
    request = pb.BatchCheckTransactionsRequest(checks=[buying() for _ in range(size)])

    with pytest.raises(grpc.RpcError) as error:
        ada.risk.BatchCheckTransactions(request)

    assert list(refused_of(error.value).fields) == ["checks"]
    assert len(entries_of(ada)) == 1
