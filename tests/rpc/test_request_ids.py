"""At most one effect per (tenant, customer, request id), as the wire shows it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.credit.v1 import ledger_service_pb2 as ledger_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from tests.rpc.calling import Api, Refused, refused, refused_of
from tests.rpc.contract import SERVED
from tests.rpc.requests import (
    annotating,
    blocking,
    buying,
    capturing,
    closing,
    entries_of,
    hold,
    lifting,
    line_of,
    open_line,
    opening,
    paying,
    raising,
    refunding,
    returning,
    voiding,
)
from tests.rpc.serving import Deployment, Loop, Running, serving

METHODS = {method.name: method for method in SERVED}
COPIES = 50

# One command of every kind that has its effect on the state `prepare` leaves.
COMMANDS: dict[str, Callable[[], Message]] = {
    "CheckTransaction": lambda: buying(transaction_id="t-9", line_id="main"),
    "IncrementHold": lambda: raising("t-1", 10),
    "CaptureHold": lambda: capturing("t-1"),
    "RefundCapture": lambda: refunding("t-3", 10),
    "VoidHold": lambda: voiding("t-2"),
    "RecordPayment": lambda: paying(10, payment_id="p-1", line_id="main"),
    "ReversePayment": lambda: returning("p-0"),
    "AnnotateDecision": lambda: annotating("d-2"),
    "PlaceBlock": lambda: blocking(line_pb.BLOCK_KIND_HARDSHIP, line_id="main"),
    "LiftBlock": lambda: lifting("b-8", line_id="empty"),
    "OpenCreditLine": lambda: opening(line_id="third"),
    "CloseCreditLine": lambda: closing(line_id="empty"),
}
REFUSALS: dict[str, Callable[[], Message]] = {
    "CheckTransaction": lambda: buying(transaction_id="t-1", line_id="main"),
    "IncrementHold": lambda: raising("t-1", 10**9),
    "CaptureHold": lambda: capturing("t-99"),
    "RefundCapture": lambda: refunding("t-1", 10),
    "VoidHold": lambda: voiding("t-99"),
    "RecordPayment": lambda: paying(10, payment_id="p-0", line_id="main"),
    "ReversePayment": lambda: returning("p-99"),
    "AnnotateDecision": lambda: annotating("d-1"),
    "LiftBlock": lambda: lifting("b-99", line_id="main"),
    "OpenCreditLine": lambda: opening(line_id="main"),
    "CloseCreditLine": lambda: closing(line_id="main"),
}


def prepare(api: Api) -> None:
    """Entries 1 to 8: a line with two open holds, a captured one and a payment, and an empty line under a block."""
    open_line(api)
    for transaction_id in ("t-1", "t-2", "t-3"):
        hold(api, transaction_id=transaction_id)
    api.ledger.CaptureHold(capturing("t-3"))
    api.ledger.RecordPayment(paying(10, payment_id="p-0"))
    open_line(api, line_id="empty")
    api.lines.PlaceBlock(blocking(line_pb.BLOCK_KIND_CUSTOMER_LOCK, line_id="empty"))


def sent(api: Api, name: str, message: Message) -> bytes | Refused:
    """Return the reply's bytes, or the whole of the refusal."""
    try:
        return api.send(METHODS[name], message.SerializeToString())
    except grpc.RpcError as error:
        return refused_of(error)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_repeated_command_has_one_effect_and_the_same_reply(api: Api, name: str) -> None:
    prepare(api)
    request = COMMANDS[name]()

    first = sent(api, name, request)
    after = entries_of(api)
    second = sent(api, name, request)

    assert isinstance(first, bytes), first
    assert second == first
    assert entries_of(api) == after


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_sticks_to_its_id(api: Api, name: str) -> None:
    prepare(api)
    request = REFUSALS[name]()

    first = sent(api, name, request)
    after = entries_of(api)
    second = sent(api, name, request)

    assert isinstance(first, Refused)
    assert second == first
    assert entries_of(api) == after


@pytest.mark.attack("other-content")
@pytest.mark.parametrize("name", COMMANDS)
def test_an_id_with_other_content_is_refused_without_effect(api: Api, name: str) -> None:
    prepare(api)
    request = COMMANDS[name]()
    api.ledger.VoidHold(voiding("t-1", request_id=request.request_id))  # type: ignore[attr-defined]  # all have one
    before = entries_of(api)

    refusal = sent(api, name, request)

    assert isinstance(refusal, Refused)
    assert refusal.name == "ALREADY_EXISTS REQUEST_ID_REUSED"
    assert entries_of(api) == before


def test_the_same_bytes_to_another_method_are_other_content(ada: Api) -> None:
    hold_id = hold(ada)
    void = voiding(hold_id)
    capture = ledger_pb.CaptureHoldRequest.FromString(void.SerializeToString())
    ada.ledger.VoidHold(void)

    refusal = refused(lambda: ada.ledger.CaptureHold(capture))

    assert refusal.name == "ALREADY_EXISTS REQUEST_ID_REUSED"


def fields(message: Message) -> list[bytes]:
    """Return the encoded fields of a message, each by itself."""
    parts = []
    for field, _ in message.ListFields():
        alone = type(message)()
        alone.CopyFrom(message)
        for other, _ in message.ListFields():
            if other.number != field.number:
                alone.ClearField(other.name)
        parts.append(alone.SerializeToString())
    return parts


def test_the_order_of_fields_on_the_wire_makes_no_difference(ada: Api) -> None:
    request = buying(phone="phone-1")
    parts = fields(request)

    ways = [b"".join(parts), b"".join(reversed(parts)), b"".join(parts[2:] + parts[:2])]
    # An explicit zero is the default it stands for, and of a field that is sent twice the last counts.
    ways += [b"".join(parts) + b"\x60\x00\x68\x00", b"\x0a\x05other" + b"".join(parts)]
    replies = {ada.send(METHODS["CheckTransaction"], way) for way in ways}

    assert len(set(ways)) == len(ways)
    assert len(replies) == 1
    assert len(entries_of(ada)) == 2


@pytest.mark.parametrize("unknown", [b"\xf8\x7f\x01", b"\xfa\x7f\x02ab", b"\x32\x03\xf8\x7f\x01"])
def test_unknown_fields_are_content(ada: Api, unknown: bytes) -> None:
    raw = buying().SerializeToString()
    ada.send(METHODS["CheckTransaction"], raw)

    assert ada.answer(METHODS["CheckTransaction"], raw + unknown) == "ALREADY_EXISTS REQUEST_ID_REUSED"


def test_a_decline_sticks_whatever_the_line_can_bear_later(ada: Api) -> None:
    hold_id = hold(ada, 99_000)
    request = buying(amount=2_000)
    declined = ada.risk.CheckTransaction(request)
    ada.ledger.VoidHold(voiding(hold_id))

    again = ada.risk.CheckTransaction(request)
    anew = ada.risk.CheckTransaction(buying(amount=2_000))

    assert again == declined
    assert (again.decision.outcome, anew.decision.outcome) == (risk_pb.OUTCOME_DECLINE, risk_pb.OUTCOME_APPROVE)


def test_the_same_id_in_another_tenant_or_of_another_customer_is_another_request(running: Running) -> None:
    one, other = running.tenant().api, running.tenant().api
    request = buying(request_id="the-one")
    for api, customer in ((one, "ada"), (one, "bob"), (other, "ada")):
        open_line(api, customer)

    replies = [one.risk.CheckTransaction(request), other.risk.CheckTransaction(request)]
    request.customer_id = "bob"
    replies.append(one.risk.CheckTransaction(request))

    assert {reply.decision.outcome for reply in replies} == {risk_pb.OUTCOME_APPROVE}
    assert [len(entries_of(api, customer)) for api, customer in ((one, "ada"), (one, "bob"), (other, "ada"))] == [2] * 3


def test_validating_only_has_no_effect_and_consumes_no_id(ada: Api) -> None:
    request = buying(amount=99_999, validate_only=True)
    journal, before = entries_of(ada), line_of(ada)

    tries = [ada.risk.CheckTransaction(request).decision for _ in range(3)]
    unchanged = (entries_of(ada), line_of(ada))
    request.validate_only = False
    real = ada.risk.CheckTransaction(request).decision

    assert {(decision.outcome, decision.decision_id) for decision in tries} == {(risk_pb.OUTCOME_APPROVE, "")}
    assert unchanged == (journal, before)
    assert real.decision_id == "d-2"
    assert real.held_amount.amount_minor == 99_999


def test_what_never_reached_the_engine_consumes_no_id(ada: Api) -> None:
    request = buying()
    request.merchant.category_code = "no"
    invalid = refused(lambda: ada.risk.CheckTransaction(request))
    request.merchant.category_code = "5411"

    assert invalid.reason == "FIELD_INVALID"
    assert ada.risk.CheckTransaction(request).decision.outcome == risk_pb.OUTCOME_APPROVE


def test_copies_sent_at_once_have_one_effect(ada: Api) -> None:
    request = buying()
    with ThreadPoolExecutor(8) as many:
        replies = list(many.map(lambda _: ada.risk.CheckTransaction(request), range(COPIES)))

    assert len({reply.SerializeToString() for reply in replies}) == 1
    assert len(entries_of(ada)) == 2


def test_copies_in_one_batch_have_one_effect(ada: Api) -> None:
    request, other = buying(), buying()
    other.request_id = request.request_id
    checks = [request, request, other]

    results = ada.risk.BatchCheckTransactions(risk_pb.BatchCheckTransactionsRequest(checks=checks)).results

    assert results[0] == results[1]
    assert results[2].WhichOneof("result") == "error"
    assert len(entries_of(ada)) == 2


def test_an_id_used_alone_counts_in_batches_and_streams_too(ada: Api) -> None:
    request = buying()

    alone = ada.risk.CheckTransaction(request).decision
    (batched,) = ada.risk.BatchCheckTransactions(risk_pb.BatchCheckTransactionsRequest(checks=[request])).results
    (streamed,) = ada.risk.StreamCheckTransactions(iter([risk_pb.StreamCheckTransactionsRequest(check=request)]))

    assert alone == batched.decision == streamed.result.decision


def test_replies_are_the_same_bytes_after_a_restart(loop: Loop, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    requests: dict[str, tuple[str, Message]] = {}
    before: dict[str, bytes | Refused] = {}
    with serving(loop, deployment) as first:
        api = first.keyed(deployment.admin_key)
        prepare(api)
        for kind, samples in (("command", COMMANDS), ("refusal", REFUSALS)):
            for name, make in samples.items():
                requests[f"{kind} {name}"] = (name, make())
                before[f"{kind} {name}"] = sent(api, *requests[f"{kind} {name}"])

    with serving(loop, deployment) as second:
        api = second.keyed(deployment.admin_key)
        after = {what: sent(api, *request) for what, request in requests.items()}
        journal = entries_of(api)
    deployment.close()

    assert after == before
    assert len(journal) == len({entry.sequence for entry in journal})
