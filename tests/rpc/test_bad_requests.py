"""Requests that break the contract: generated for every field of every request, from the rules the protos declare."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Final

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message

from riskgate.common.v1.money_pb2 import Money
from riskgate.credit.v1.credit_line_service_pb2 import BLOCK_KIND_FRAUD_SOFT
from riskgate.identity.v1 import otp_service_pb2 as otp_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_server.rpc.wording import NOT_TAKEN, PATTERNS
from tests.rpc.calling import Api, Refused, refused, refused_by, refused_of
from tests.rpc.contract import OURS, SERVED, sample
from tests.rpc.invalid import broken, rules_of
from tests.rpc.requests import blocking, buy, buying, capturing, entries_of, hold_of, money, open_line, opening, paying

TELLTALE: Final = re.compile(
    r"/work|/tmp|site-packages|Traceback|riskgate_server|sqlite|SELECT|INSERT|object at 0x|\.py\b|Error|Exception"
)
"""What no caller may ever read: paths, classes, statements."""

SINGLE: Final = [m for m in SERVED if m.name not in {"BatchCheckTransactions", "StreamCheckTransactions"}]


def verdict(api: Api, method: MethodDescriptor, message: Message) -> Refused | None:
    try:
        api.send(method, message.SerializeToString())
    except grpc.RpcError as error:
        return refused_of(error)
    return None


def of_batch(api: Api, check: risk_pb.CheckTransactionRequest) -> Refused | None:
    (result,) = api.risk.BatchCheckTransactions(risk_pb.BatchCheckTransactionsRequest(checks=[check])).results
    assert result.request_id == check.request_id
    return refused_by(result.error) if result.HasField("error") else None


@pytest.mark.attack("undefined")
def test_a_value_that_no_enum_has_is_refused(ada: Api) -> None:
    kinds = blocking(BLOCK_KIND_FRAUD_SOFT)
    kinds.kind = 99  # type: ignore[assignment]  # as another client would send it

    found = refused(lambda: ada.lines.PlaceBlock(kinds))
    assert (found.name, *found.fields) == ("INVALID_ARGUMENT FIELD_INVALID", "kind")


@pytest.mark.parametrize("method", SINGLE, ids=lambda method: method.name)
def test_a_field_that_breaks_its_rule_is_refused_by_its_path(ada: Api, method: MethodDescriptor) -> None:
    wrong = []
    for path, how, message in broken(sample(method)):
        refusal = verdict(ada, method, message)
        named = refusal is not None and refusal.code is grpc.StatusCode.INVALID_ARGUMENT and path in refusal.fields
        if not named or TELLTALE.search(str(refusal)):
            wrong.append(f"{path} {how}: {refusal}")

    assert wrong == []


def test_a_check_is_judged_alike_alone_in_a_batch_and_on_a_stream(ada: Api) -> None:
    cases = [case.message for case in broken(sample(SERVED[0]))]
    assert all(isinstance(case, risk_pb.CheckTransactionRequest) for case in cases)
    checks = [case for case in cases if isinstance(case, risk_pb.CheckTransactionRequest)]

    alone = [verdict(ada, SERVED[0], check) for check in checks]
    batched = [of_batch(ada, check) for check in checks]
    # One at a time: answers come in the order they are ready.
    streamed = [
        refused_by(answer.result.error)
        for check in checks
        for answer in ada.risk.StreamCheckTransactions(iter([risk_pb.StreamCheckTransactionsRequest(check=check)]))
    ]

    assert len(checks) > 100
    assert batched == alone
    assert streamed == alone


def test_every_field_that_breaks_a_rule_is_named_at_once(ada: Api) -> None:
    refusal = refused(lambda: ada.risk.CheckTransaction(buying("!", request_id="", merchant={"category_code": "x"})))

    assert set(refusal.fields) == {"customer_id", "request_id", "merchant.merchant_id", "merchant.category_code"}


def test_what_an_id_must_be_is_said_in_words_and_in_the_message_too(ada: Api) -> None:
    rule = "must begin with a letter or digit and hold at most 64 of letters, digits, . _ : -"

    refusal = refused(lambda: ada.risk.CheckTransaction(buying("!")))
    currency = refused(lambda: ada.risk.CheckTransaction(buying(currency="XQQ")))

    assert refusal.fields == {"customer_id": rule}
    assert refusal.message == f"customer_id: {rule}"
    assert currency.message.startswith("amount.currency_code: must be")


def _patterns(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        rules = rules_of(field)
        yield from filter(None, (rules.string.pattern, rules.repeated.items.string.pattern))
    for inner in message.nested_types:
        yield from _patterns(inner)


def test_every_pattern_of_the_contract_has_words() -> None:
    files = {method.containing_service.file.name: method.containing_service.file for method in OURS}
    messages = [message for file in files.values() for message in file.message_types_by_name.values()]

    patterns = {pattern for message in (*messages, Money.DESCRIPTOR) for pattern in _patterns(message)}

    assert patterns == PATTERNS.keys()


def _not_taken(message: Descriptor) -> Iterator[tuple[str, int]]:
    for field in message.fields:
        rules = rules_of(field)
        for enum in (rules.enum, rules.repeated.items.enum):
            yield from ((field.name, number) for number in enum.not_in)
    for inner in message.nested_types:
        yield from _not_taken(inner)


def test_every_value_that_is_not_taken_somewhere_has_words(ada: Api) -> None:
    files = {method.containing_service.file.name: method.containing_service.file for method in OURS}
    messages = [message for file in files.values() for message in file.message_types_by_name.values()]
    spare = {"request_id": "r-spare", "customer_id": "ada", "code": "A" * 16}

    requests = [otp_pb.VerifyRecoveryCodeRequest(**spare, purpose=purpose) for purpose in (0, 1)]  # type: ignore[arg-type]
    refusals = [refused(partial(ada.otp.VerifyRecoveryCode, request)) for request in requests]

    assert {taken for message in messages for taken in _not_taken(message) if taken[1]} == NOT_TAKEN.keys()
    assert [refusal.fields for refusal in refusals] == [
        {"purpose": "must not be unspecified"},
        {"purpose": "must be for something else: a recovery code buys nothing"},
    ]


def test_an_id_that_is_not_there_or_taken_is_named(ada: Api) -> None:
    taken = refused(lambda: ada.lines.OpenCreditLine(opening(line_id="main")))
    absent = [
        refused(lambda: ada.ledger.CaptureHold(capturing("t-5f1e"))),
        refused(lambda: hold_of(ada, "t-5f1e")),
    ]

    assert "main" in taken.message
    assert [("t-5f1e" in refusal.message, refusal.metadata) for refusal in absent] == [
        (True, {"hold_id": "t-5f1e"})
    ] * 2


def test_an_amount_must_be_positive_where_money_moves(ada: Api) -> None:
    calls = {
        "limit.amount_minor": lambda: ada.lines.OpenCreditLine(opening("bob", 0)),
        "amount.amount_minor": lambda: ada.ledger.RecordPayment(paying(0)),
    }

    for path, call in calls.items():
        refusal = refused(call)
        assert (refusal.name, list(refusal.fields)) == ("INVALID_ARGUMENT AMOUNT_NOT_POSITIVE", [path])
    negative = refused(lambda: ada.risk.CheckTransaction(buying(amount=-1)))
    assert negative.name == "INVALID_ARGUMENT AMOUNT_NOT_POSITIVE"
    nothing = refused(lambda: ada.ledger.CaptureHold(capturing("t", 0)))
    assert nothing.name == "INVALID_ARGUMENT AMOUNT_NOT_POSITIVE"


@pytest.mark.parametrize("fields", [["amount"], ["merchant"], ["amount", "merchant"]], ids=" ".join)
def test_a_purchase_needs_an_amount_and_a_merchant(ada: Api, fields: list[str]) -> None:
    request = buying()
    for field in fields:
        request.ClearField(field)  # type: ignore[arg-type]  # one of the names above

    refusal = refused(lambda: ada.risk.CheckTransaction(request))

    assert (refusal.name, list(refusal.fields)) == ("INVALID_ARGUMENT FIELD_INVALID", fields)


@pytest.mark.attack("impossible-purchase")
def test_a_purchase_that_cannot_be_is_refused_by_its_field(ada: Api) -> None:
    beyond = buying()
    beyond.ClearField("amount")
    # 2^63 has no place in the field; who sends it anyway writes the number that is furthest below 0.
    amount = b"\x0a\x03CNY\x10" + b"\x80" * 9 + b"\x01"
    raw = beyond.SerializeToString() + bytes([5 << 3 | 2, len(amount)]) + amount
    amounts = [refused(lambda: ada.send(SERVED[0], raw))]
    amounts += [refused(partial(buy, ada, amount=amount)) for amount in (-1, -(2**63))]

    assert [each.name for each in amounts] == [
        "INVALID_ARGUMENT FIELD_INVALID", "INVALID_ARGUMENT AMOUNT_NOT_POSITIVE", "INVALID_ARGUMENT FIELD_INVALID",
    ]  # fmt: skip
    assert {name for each in amounts for name in each.fields} == {"amount.amount_minor"}
    for currency, reason in (("usd", "FIELD_INVALID"), ("", "FIELD_INVALID"), ("ZZZ", "CURRENCY_UNKNOWN")):
        currencies = refused(partial(buy, ada, currency=currency))
        assert (currencies.name, *currencies.fields) == (f"INVALID_ARGUMENT {reason}", "amount.currency_code")
    for payee in ("sh\0op", "x" * 65):
        payees = refused(partial(buy, ada, merchant={"merchant_id": payee}))
        assert (payees.name, *payees.fields) == ("INVALID_ARGUMENT FIELD_INVALID", "merchant.merchant_id")
    megabyte = refused(lambda: buy(ada, merchant={"merchant_id": "x" * 1_000_000}))
    assert megabyte.name == "INVALID_ARGUMENT MESSAGE_TOO_LARGE"
    assert [entry.kind for entry in entries_of(ada)] == ["LINE_OPENED"]


@pytest.mark.attack("undefined")
def test_nothing_of_what_must_be_chosen_from_is_refused(ada: Api) -> None:
    for method in SERVED:
        for oneof in method.input_type.oneofs:
            if len(oneof.fields) < 2:  # a field of its own that may be absent
                continue
            request = sample(method)
            for field in oneof.fields:
                request.ClearField(field.name)
            found = verdict(ada, method, request)
            assert found is not None, method.name
            assert (found.name, *found.fields) == ("INVALID_ARGUMENT FIELD_INVALID", oneof.name)


def test_a_hold_shorter_than_a_minute_is_refused(ada: Api) -> None:
    refusal = refused(lambda: ada.risk.CheckTransaction(buying(hold_lifetime_seconds=59)))

    assert list(refusal.fields) == ["hold_lifetime_seconds"]


def test_a_grant_brings_no_second_amount(ada: Api) -> None:
    refusal = refused(lambda: ada.risk.CheckTransaction(buying(grant="x")))

    assert refusal.name == "INVALID_ARGUMENT FIELD_INVALID"
    assert refusal.fields.keys() == {"amount"}


def test_hostile_text_harms_nobody_and_names_nobody(api: Api) -> None:
    hostile = "a\r\nb\x00\u202e\U0001f600' OR 1=1 --"
    open_line(api, decision_reference=hostile)
    api.lines.PlaceBlock(blocking(BLOCK_KIND_FRAUD_SOFT, note=hostile))

    for actor in (hostile, "alice ", "\u0430lice", "alice\n"):
        nameless = blocking(BLOCK_KIND_FRAUD_SOFT, actor_id=actor)
        assert list(refused(partial(api.lines.PlaceBlock, nameless)).fields) == ["actor_id"]


def test_an_amount_in_the_smallest_and_largest_currency_is_exact(api: Api) -> None:
    for currency in ("JPY", "CNY", "BHD", "CLF"):
        line = api.lines.OpenCreditLine(opening(currency, 10**15, currency)).credit_line
        assert line.available == money(10**15, currency)
