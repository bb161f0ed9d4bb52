"""Credit lines: open, show, block, lift, close."""

from __future__ import annotations

import pytest

from riskgate.credit.v1 import credit_line_service_pb2 as pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from tests.rpc.calling import Api, refused
from tests.rpc.requests import (
    blocking,
    buy,
    capturing,
    closing,
    hold,
    lifting,
    line_of,
    open_line,
    opening,
    paying,
    voiding,
)
from tests.rpc.serving import Tenant

KINDS = [kind for name, kind in pb.BlockKind.items() if kind]


def test_a_new_line_has_its_whole_limit_available(api: Api) -> None:
    line = open_line(api, limit=123_456, time_zone="Asia/Shanghai")

    assert (line.limit.amount_minor, line.available.amount_minor) == (123_456, 123_456)
    assert (line.state, line.product_id, line.time_zone) == (
        pb.LINE_STATE_ACTIVE,
        "consumer-revolving",
        "Asia/Shanghai",
    )
    assert line_of(api) == line


def test_a_line_is_opened_once(ada: Api) -> None:
    again = refused(lambda: open_line(ada))

    assert again.name == "ALREADY_EXISTS LINE_EXISTS"


def test_a_customer_has_at_most_eight_lines(api: Api) -> None:
    for number in range(8):
        open_line(api, line_id=f"line-{number}")

    ninth = refused(lambda: open_line(api, line_id="line-8"))
    listed = api.lines.ListCreditLines(pb.ListCreditLinesRequest(customer_id="ada")).credit_lines

    assert ninth.name == "FAILED_PRECONDITION BOUND_REACHED"
    assert [line.line_id for line in listed] == [f"line-{number}" for number in range(8)]


def test_with_several_lines_the_request_must_name_one(api: Api) -> None:
    open_line(api, line_id="one")
    open_line(api, line_id="two")

    unnamed = refused(lambda: line_of(api))
    unknown = refused(lambda: line_of(api, line_id="three"))

    assert unnamed.name == "INVALID_ARGUMENT LINE_AMBIGUOUS"
    assert list(unnamed.fields) == ["line_id"]
    assert unknown.name == "NOT_FOUND LINE_NOT_FOUND"
    assert line_of(api, line_id="two").line_id == "two"


def test_an_unknown_time_zone_or_currency_is_refused(api: Api) -> None:
    zone = refused(lambda: open_line(api, time_zone="Mars/Olympus"))
    currency = refused(lambda: open_line(api, currency="ZZZ"))
    nothing = refused(lambda: open_line(api, limit=0))

    assert (zone.name, list(zone.fields)) == ("INVALID_ARGUMENT FIELD_INVALID", ["time_zone"])
    assert (currency.name, list(currency.fields)) == ("INVALID_ARGUMENT CURRENCY_UNKNOWN", ["limit.currency_code"])
    assert (nothing.name, list(nothing.fields)) == ("INVALID_ARGUMENT AMOUNT_NOT_POSITIVE", ["limit.amount_minor"])


@pytest.mark.parametrize("kind", KINDS, ids=pb.BlockKind.Name)
def test_a_block_stops_new_spending_until_it_is_lifted(ada: Api, kind: pb.BlockKind.ValueType) -> None:
    placed = ada.lines.PlaceBlock(blocking(kind))
    declined = buy(ada)
    block_id = placed.block.block_id
    ada.lines.LiftBlock(lifting(block_id))
    if kind == pb.BLOCK_KIND_FRAUD_HARD:
        ada.lines.LiftBlock(lifting(block_id, actor_id="analyst-2"))
    approved = buy(ada)

    assert placed.credit_line.state in {pb.LINE_STATE_SUSPENDED, pb.LINE_STATE_FROZEN}
    assert declined.outcome == risk_pb.OUTCOME_DECLINE
    assert [reason.code for reason in declined.reasons] == ["LINE_BLOCKED"]
    assert approved.outcome == risk_pb.OUTCOME_APPROVE


def test_a_soft_fraud_block_lapses_after_a_day_and_the_others_never(ada: Api) -> None:
    lifetimes = {}
    for kind in KINDS:
        block = ada.lines.PlaceBlock(blocking(kind)).block
        lifetimes[kind] = block.expire_time.seconds - block.place_time.seconds if block.HasField("expire_time") else 0

    assert lifetimes.pop(pb.BLOCK_KIND_FRAUD_SOFT) == 24 * 3600
    assert set(lifetimes.values()) == {0}


def test_confirmed_fraud_is_lifted_by_two_different_people(ada: Api) -> None:
    block_id = ada.lines.PlaceBlock(blocking(pb.BLOCK_KIND_FRAUD_HARD)).block.block_id

    first = ada.lines.LiftBlock(lifting(block_id, actor_id="analyst-1"))
    same = refused(lambda: ada.lines.LiftBlock(lifting(block_id, actor_id="analyst-1")))
    still = line_of(ada).state
    second = ada.lines.LiftBlock(lifting(block_id, actor_id="analyst-2"))
    gone = refused(lambda: ada.lines.LiftBlock(lifting(block_id, actor_id="analyst-3")))

    assert (first.lifted, first.block.lift_approved_by) == (False, "analyst-1")
    assert same.name == "PERMISSION_DENIED SECOND_PERSON_REQUIRED"
    assert still == pb.LINE_STATE_SUSPENDED
    assert (second.lifted, second.credit_line.state) == (True, pb.LINE_STATE_ACTIVE)
    assert gone.name == "NOT_FOUND BLOCK_NOT_FOUND"


@pytest.mark.parametrize("kind", KINDS, ids=pb.BlockKind.Name)
def test_a_caller_lifts_only_the_kinds_its_scopes_name(tenant: Tenant, kind: pb.BlockKind.ValueType) -> None:
    open_line(tenant.api)
    block_id = tenant.api.lines.PlaceBlock(blocking(kind)).block.block_id
    name = pb.BlockKind.Name(kind).removeprefix("BLOCK_KIND_")
    others = [other.removeprefix("BLOCK_KIND_").lower() for other, number in pb.BlockKind.items() if number]
    others.remove(name.lower())
    entitled = tenant.caller("line:block", f"block:lift:{name.lower()}")
    stranger = tenant.caller("line:block", *(f"block:lift:{other}" for other in others))

    refusal = refused(lambda: stranger.lines.LiftBlock(lifting(block_id)))
    lift = entitled.lines.LiftBlock(lifting(block_id))

    assert refusal.name == "PERMISSION_DENIED BLOCK_LIFT_FORBIDDEN"
    assert refusal.metadata == {"kind": name}
    assert lift.block.block_id == block_id


def test_a_severe_anomaly_suspends_the_line_and_the_answer_says_so(ada: Api) -> None:
    decision = buy(ada, phone="stolen")
    after = buy(ada)

    (block,) = line_of(ada).blocks
    assert (decision.outcome, decision.line_suspended) == (risk_pb.OUTCOME_DECLINE, True)
    assert (block.block_id, block.kind, block.placed_by, block.reason_code) == (
        decision.block_id,
        pb.BLOCK_KIND_FRAUD_SOFT,
        "engine",
        "STOLEN",
    )
    assert [reason.code for reason in after.reasons] == ["LINE_BLOCKED"]


def test_a_block_cannot_lapse_in_the_past(ada: Api) -> None:
    refusal = refused(lambda: ada.lines.PlaceBlock(blocking(pb.BLOCK_KIND_COMPLIANCE, expire_time={"seconds": 1})))

    assert (refusal.name, list(refusal.fields)) == ("INVALID_ARGUMENT FIELD_INVALID", ["expire_time"])
    assert not line_of(ada).blocks


def test_lifting_names_a_block_that_stands(ada: Api) -> None:
    refusal = refused(lambda: ada.lines.LiftBlock(lifting("b-99")))

    assert refusal.name == "NOT_FOUND BLOCK_NOT_FOUND"


def test_a_line_in_use_is_not_closed(ada: Api) -> None:
    hold_id = hold(ada)
    held = refused(lambda: ada.lines.CloseCreditLine(closing()))
    ada.ledger.CaptureHold(capturing(hold_id))
    owed = refused(lambda: ada.lines.CloseCreditLine(closing()))
    ada.ledger.RecordPayment(paying(1_001))
    owing = refused(lambda: ada.lines.CloseCreditLine(closing()))

    assert {held.name, owed.name, owing.name} == {"FAILED_PRECONDITION LINE_IN_USE"}


def test_a_closed_line_takes_no_purchase_and_stays_closed(ada: Api) -> None:
    ada.ledger.VoidHold(voiding(hold(ada)))

    closed = ada.lines.CloseCreditLine(closing()).credit_line
    decision = buy(ada)
    again = refused(lambda: ada.lines.CloseCreditLine(closing()))

    assert (closed.state, closed.limit.amount_minor, closed.available.amount_minor) == (pb.LINE_STATE_CLOSED, 0, 0)
    assert [reason.code for reason in decision.reasons] == ["LINE_NOT_ACTIVE"]
    assert again.name == "FAILED_PRECONDITION LINE_NOT_ACTIVE"


def test_customers_are_told_apart_by_case(api: Api) -> None:
    open_line(api, "ada", limit=1)
    open_line(api, "Ada", limit=2)

    assert line_of(api, "ada").limit.amount_minor == 1
    assert line_of(api, "Ada").limit.amount_minor == 2


def test_the_etag_changes_with_every_change_and_only_then(ada: Api) -> None:
    before = [line_of(ada).etag, line_of(ada).etag]
    buy(ada)

    assert before[0] == before[1] != line_of(ada).etag


def test_the_largest_limit_is_served_and_nothing_larger(api: Api) -> None:
    largest = open_line(api, limit=10**15)
    refusal = refused(lambda: api.lines.OpenCreditLine(opening("bob", 10**15 + 1)))

    assert largest.available.amount_minor == 10**15
    assert (refusal.name, list(refusal.fields)) == ("INVALID_ARGUMENT FIELD_INVALID", ["limit.amount_minor"])
