"""The life of a hold, as a caller sees it."""

from __future__ import annotations

from riskgate.credit.v1 import ledger_service_pb2 as pb
from riskgate.credit.v1.credit_line_service_pb2 import BLOCK_KIND_FRAUD_SOFT
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from tests.rpc.calling import Api, refused
from tests.rpc.requests import (
    blocking,
    buy,
    buying,
    capturing,
    hold,
    hold_of,
    line_of,
    open_line,
    paying,
    raising,
    refunding,
    voiding,
)
from tests.rpc.serving import Tenant


def parts(found: pb.Hold) -> tuple[int, ...]:
    """Authorised, captured, released, expired, remaining."""
    amounts = (found.authorised, found.captured, found.released, found.expired, found.remaining)
    return tuple(amount.amount_minor for amount in amounts)


def credit(api: Api) -> tuple[int, int, int]:
    """Available, held, outstanding."""
    line = line_of(api)
    return line.available.amount_minor, line.held.amount_minor, line.outstanding.amount_minor


def test_an_approved_purchase_holds_its_amount(ada: Api) -> None:
    decision = buy(ada, amount=2_500)

    assert decision.outcome == risk_pb.OUTCOME_APPROVE
    assert decision.available_after.amount_minor == 97_500
    assert credit(ada) == (97_500, 2_500, 0)
    assert hold_of(ada, decision.transaction_id).expire_time == decision.hold_expire_time


def test_a_capture_without_an_amount_takes_all_that_remains(ada: Api) -> None:
    hold_id = hold(ada, 2_500)

    captured = ada.ledger.CaptureHold(capturing(hold_id)).hold

    assert captured.state == pb.HOLD_STATE_CAPTURED
    assert parts(captured) == (2_500, 2_500, 0, 0, 0)
    assert credit(ada) == (97_500, 0, 2_500)
    assert hold_of(ada, hold_id) == captured


def test_a_hold_is_captured_in_parts_and_the_last_releases_the_rest(ada: Api) -> None:
    hold_id = hold(ada, 1_000)

    first = ada.ledger.CaptureHold(capturing(hold_id, 300)).hold
    last = ada.ledger.CaptureHold(capturing(hold_id, 500, final=True)).hold

    assert (first.state, parts(first)) == (pb.HOLD_STATE_PENDING, (1_000, 300, 0, 0, 700))
    assert (last.state, parts(last)) == (pb.HOLD_STATE_CAPTURED, (1_000, 800, 200, 0, 0))
    assert credit(ada) == (99_200, 0, 800)


def test_more_than_the_hold_has_left_is_not_captured(ada: Api) -> None:
    hold_id = hold(ada, 1_000)

    refusal = refused(lambda: ada.ledger.CaptureHold(capturing(hold_id, 1_001)))

    assert refusal.name == "FAILED_PRECONDITION AMOUNT_EXCEEDS_HOLD"
    assert refusal.metadata["remaining_minor"] == "1000"
    assert parts(hold_of(ada, hold_id)) == (1_000, 0, 0, 0, 1_000)


def test_a_hold_resolves_once(ada: Api) -> None:
    captured, voided = hold(ada, 1_000), hold(ada, 1_000)
    ada.ledger.CaptureHold(capturing(captured))
    ada.ledger.VoidHold(voiding(voided))

    answers = [
        refused(lambda: ada.ledger.CaptureHold(capturing(captured))).reason,
        refused(lambda: ada.ledger.VoidHold(voiding(captured))).reason,
        refused(lambda: ada.ledger.VoidHold(voiding(voided))).reason,
        refused(lambda: ada.ledger.CaptureHold(capturing(voided))).reason,
        refused(lambda: ada.ledger.IncrementHold(raising(voided, 1))).reason,
    ]

    assert answers == [
        "HOLD_ALREADY_CAPTURED", "HOLD_ALREADY_CAPTURED", "HOLD_VOIDED", "HOLD_VOIDED", "HOLD_VOIDED",
    ]  # fmt: skip
    assert credit(ada) == (99_000, 0, 1_000)


def test_a_void_gives_the_credit_back(ada: Api) -> None:
    hold_id = hold(ada, 2_500)

    voided = ada.ledger.VoidHold(voiding(hold_id)).hold

    assert (voided.state, parts(voided)) == (pb.HOLD_STATE_VOIDED, (2_500, 0, 2_500, 0, 0))
    assert credit(ada) == (100_000, 0, 0)


def test_a_purchase_above_the_available_credit_is_declined_and_holds_nothing(ada: Api) -> None:
    decision = buy(ada, amount=100_001)

    assert decision.outcome == risk_pb.OUTCOME_DECLINE
    assert [reason.code for reason in decision.reasons] == ["CREDIT_LIMIT_EXCEEDED"]
    assert {text.language_code for text in decision.reasons[0].customer_texts} == {"en", "zh-Hans"}
    assert not decision.HasField("held_amount")
    assert refused(lambda: hold_of(ada, decision.transaction_id)).name == "NOT_FOUND HOLD_NOT_FOUND"
    assert credit(ada) == (100_000, 0, 0)


def test_the_whole_limit_and_not_a_fen_more_can_be_held(ada: Api) -> None:
    first = buy(ada, amount=100_000)
    second = buy(ada, amount=1)

    assert (first.outcome, second.outcome) == (risk_pb.OUTCOME_APPROVE, risk_pb.OUTCOME_DECLINE)
    assert credit(ada) == (0, 100_000, 0)


def test_a_partial_approval_holds_what_is_available(ada: Api) -> None:
    hold(ada, 99_000)

    decision = buy(ada, amount=5_000, allow_partial=True)

    assert decision.outcome == risk_pb.OUTCOME_APPROVE
    assert [reason.code for reason in decision.reasons] == ["PARTIAL_APPROVAL"]
    assert (decision.requested_amount.amount_minor, decision.held_amount.amount_minor) == (5_000, 1_000)
    assert credit(ada) == (0, 100_000, 0)


def test_an_account_check_is_decided_and_never_held(ada: Api) -> None:
    decision = buy(ada, amount=0)

    assert decision.outcome == risk_pb.OUTCOME_APPROVE
    assert not decision.HasField("held_amount")
    assert credit(ada) == (100_000, 0, 0)


def test_an_increment_raises_the_hold_within_the_available_credit(ada: Api) -> None:
    hold_id = hold(ada, 60_000)

    raised = ada.ledger.IncrementHold(raising(hold_id, 30_000)).hold
    refusal = refused(lambda: ada.ledger.IncrementHold(raising(hold_id, 10_001)))

    assert parts(raised) == (90_000, 0, 0, 0, 90_000)
    assert refusal.name == "FAILED_PRECONDITION CREDIT_LIMIT_EXCEEDED"
    assert refusal.metadata["available_minor"] == "10000"
    assert hold_of(ada, hold_id) == raised


def test_a_blocked_line_refuses_an_increment_but_honours_the_capture(ada: Api) -> None:
    hold_id = hold(ada, 1_000)
    ada.lines.PlaceBlock(blocking(BLOCK_KIND_FRAUD_SOFT))

    refusal = refused(lambda: ada.ledger.IncrementHold(raising(hold_id, 1)))
    captured = ada.ledger.CaptureHold(capturing(hold_id)).hold

    assert refusal.name == "FAILED_PRECONDITION LINE_BLOCKED"
    assert captured.state == pb.HOLD_STATE_CAPTURED


def test_what_was_voided_is_not_taken_even_by_force(ada: Api) -> None:
    hold_id = hold(ada, 1_000)
    ada.ledger.VoidHold(voiding(hold_id))

    refusal = refused(lambda: ada.ledger.CaptureHold(capturing(hold_id, force=True)))

    assert refusal.name == "FAILED_PRECONDITION HOLD_VOIDED"
    assert credit(ada) == (100_000, 0, 0)


def test_force_needs_a_scope_of_its_own(tenant: Tenant) -> None:
    open_line(tenant.api)
    hold_id = hold(tenant.api, 1_000)
    merchant = tenant.caller("ledger:write")

    refusal = refused(lambda: merchant.ledger.CaptureHold(capturing(hold_id, force=True)))
    captured = tenant.caller("ledger:write", "ledger:force").ledger.CaptureHold(capturing(hold_id, force=True)).hold

    assert refusal.name == "PERMISSION_DENIED SCOPE_MISSING"
    assert refusal.metadata == {"scope": "ledger:force"}
    assert captured.state == pb.HOLD_STATE_CAPTURED


def test_a_refund_reduces_what_is_owed_first_and_the_rest_becomes_customer_credit(ada: Api) -> None:
    hold_id = hold(ada, 1_000)
    ada.ledger.CaptureHold(capturing(hold_id))
    ada.ledger.RecordPayment(paying(700))

    refund = ada.ledger.RefundCapture(refunding(hold_id, 500))

    assert refund.to_customer_credit.amount_minor == 200
    assert (refund.hold.refunded.amount_minor, refund.hold.principal.amount_minor) == (500, 0)
    assert line_of(ada).customer_credit.amount_minor == 200
    assert credit(ada) == (100_000, 0, 0)


def test_more_than_was_captured_is_not_refunded(ada: Api) -> None:
    hold_id = hold(ada, 1_000)
    ada.ledger.CaptureHold(capturing(hold_id, 600))
    ada.ledger.RefundCapture(refunding(hold_id, 600))

    refusal = refused(lambda: ada.ledger.RefundCapture(refunding(hold_id, 1)))

    assert refusal.name == "FAILED_PRECONDITION AMOUNT_EXCEEDS_CAPTURE"
    assert refusal.metadata["refundable_minor"] == "0"


def test_money_in_another_currency_is_refused_everywhere(ada: Api) -> None:
    hold_id = hold(ada, 1_000)

    answers = {
        refused(call).name
        for call in (
            lambda: ada.risk.CheckTransaction(buying(currency="USD")),
            lambda: ada.ledger.CaptureHold(capturing(hold_id, 1, "USD")),
            lambda: ada.ledger.IncrementHold(raising(hold_id, 1, "USD")),
            lambda: ada.ledger.RefundCapture(refunding(hold_id, 1, "USD")),
            lambda: ada.ledger.RecordPayment(paying(1, "USD")),
        )
    }

    assert answers == {"INVALID_ARGUMENT CURRENCY_MISMATCH"}
    assert credit(ada) == (99_000, 1_000, 0)


def test_a_purchase_under_review_holds_credit_and_cannot_be_captured(ada: Api) -> None:
    decision = buy(ada, amount=1_000, phone="look")

    refusals = [
        refused(lambda: ada.ledger.CaptureHold(capturing(decision.transaction_id))).name,
        refused(lambda: ada.ledger.IncrementHold(raising(decision.transaction_id, 1))).name,
    ]

    assert decision.outcome == risk_pb.OUTCOME_REVIEW
    assert decision.HasField("review_deadline")
    assert hold_of(ada, decision.transaction_id).under_review
    assert refusals == ["FAILED_PRECONDITION HOLD_UNDER_REVIEW"] * 2
    assert credit(ada) == (99_000, 1_000, 0)


def test_a_step_up_stores_the_purchase_without_a_hold_and_says_what_to_prove(ada: Api) -> None:
    decision = buy(ada, amount=1_000, phone="ask")

    assert decision.outcome == risk_pb.OUTCOME_STEP_UP
    assert (decision.step_up.required_level, list(decision.step_up.allowed_factors)) == (
        1,
        ["SMS", "TOTP", "DEVICE_KEY"],
    )
    assert decision.step_up.expire_time.seconds - decision.decide_time.seconds == 15 * 60
    assert refused(lambda: hold_of(ada, decision.transaction_id)).reason == "HOLD_NOT_FOUND"
    assert credit(ada) == (100_000, 0, 0)


def test_at_most_one_hold_exists_per_transaction_id(ada: Api) -> None:
    hold_id = hold(ada, 1_000)

    again = refused(lambda: buy(ada, amount=1_000, transaction_id=hold_id))

    assert again.name == "ALREADY_EXISTS TRANSACTION_ID_REUSED"
    assert credit(ada) == (99_000, 1_000, 0)


def test_a_purchase_that_waits_for_a_proof_keeps_its_terms(ada: Api) -> None:
    asked = buy(ada, amount=1_000, phone="ask")

    dearer = refused(lambda: buy(ada, amount=1_001, transaction_id=asked.transaction_id))
    same = buy(ada, amount=1_000, transaction_id=asked.transaction_id)

    assert dearer.name == "FAILED_PRECONDITION TRANSACTION_CHANGED"
    assert same.outcome == risk_pb.OUTCOME_STEP_UP
    assert [reason.code for reason in same.reasons] == ["STEP_UP_UNANSWERED"]
    assert same.step_up == asked.step_up


def test_a_hold_ends_by_the_clock_and_its_credit_is_available_again(api: Api) -> None:
    # Whoever may wait for a minute in a test? The hold's end is moved by a server whose clock is the data's:
    # see test_event_times. Here only what the caller asked for is seen.
    open_line(api)
    decision = buy(api, hold_lifetime_seconds=60)

    assert decision.hold_expire_time.seconds - decision.decide_time.seconds == 60


def test_holds_are_listed_by_transaction_id_in_stable_pages(ada: Api) -> None:
    wanted = sorted(hold(ada, 100, transaction_id=f"t-{number:02}") for number in (5, 1, 4, 2, 3))
    ada.ledger.VoidHold(voiding("t-02"))
    found: list[str] = []
    token = ""

    while True:
        page = ada.ledger.ListHolds(pb.ListHoldsRequest(customer_id="ada", page_size=2, page_token=token))
        found += [item.hold_id for item in page.holds]
        # A hold before the page's end changes nothing about the pages after it.
        hold(ada, 1, transaction_id=f"t-00-{len(found)}")
        token = page.next_page_token
        if not token:
            break
    pending = ada.ledger.ListHolds(pb.ListHoldsRequest(customer_id="ada", only_pending=True, page_size=500)).holds

    assert found == wanted
    assert "t-02" not in {item.hold_id for item in pending}
    assert "t-03" in {item.hold_id for item in pending}
