from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from riskgate_server.domain.errors import PreconditionFailed
from riskgate_server.domain.ledger.holds import (
    CaptureTerms,
    HoldState,
    Purchase,
    after_capture,
    after_expiry,
    after_void,
    plan_capture,
    require_pending,
    require_refundable,
    require_reviewed,
)
from tests.factories import DAY_US, HOUR_US, NOW_US

HELD = Purchase(
    transaction_id="t1",
    line_id="line-1",
    terms=b"terms",
    decision_sequence=2,
    state=HoldState.PENDING,
    authorised_minor=500,
    placed_us=NOW_US,
    expires_us=NOW_US + DAY_US,
)


def hold(**fields: Any) -> Purchase:
    return msgspec.structs.replace(HELD, **fields)


def plan(purchase: Purchase, amount: int | None = None, *, final: bool = False, force: bool = False) -> CaptureTerms:
    return plan_capture(purchase, amount_minor=amount, final=final, force=force)


def refused(purchase: Purchase, amount: int | None = None, *, force: bool = False) -> str:
    with pytest.raises(PreconditionFailed) as error:
        plan(purchase, amount, force=force)
    return error.value.reason


VOIDED = after_void(HELD)
EXPIRED = after_expiry(HELD)
CAPTURED = after_capture(HELD, plan(HELD), sequence=5)
PARTLY_EXPIRED = after_expiry(after_capture(HELD, plan(HELD, 200), sequence=5))
ENDED = {"voided": VOIDED, "expired": EXPIRED, "captured": CAPTURED, "partly captured": PARTLY_EXPIRED}


# --- Time (invariant 16). ---


def test_a_hold_is_over_at_the_very_moment_of_its_expiry_and_not_before() -> None:
    assert not HELD.lapsed(HELD.expires_us - 1)
    assert HELD.lapsed(HELD.expires_us)


def test_a_hold_under_review_ends_at_the_reviewers_deadline_if_that_is_sooner() -> None:
    assert hold(review_deadline_us=NOW_US + HOUR_US).lapses_us == NOW_US + HOUR_US
    assert hold(review_deadline_us=NOW_US + 2 * DAY_US).lapses_us == NOW_US + DAY_US


@pytest.mark.parametrize("ended", ENDED.values(), ids=ENDED)
def test_a_hold_that_ended_does_not_lapse_again(ended: Purchase) -> None:
    assert not ended.lapsed(2**62)


# --- Capturing. ---


def test_a_capture_without_an_amount_takes_all_that_is_left() -> None:
    assert plan(HELD) == CaptureTerms(captured_minor=500, released_minor=0, forced=False)
    assert plan(hold(captured_minor=200)) == CaptureTerms(captured_minor=300, released_minor=0, forced=False)


def test_a_partial_capture_leaves_the_rest_held_unless_it_is_final() -> None:
    assert plan(HELD, 200) == CaptureTerms(captured_minor=200, released_minor=0, forced=False)
    assert plan(HELD, 200, final=True) == CaptureTerms(captured_minor=200, released_minor=300, forced=False)


def test_the_last_unit_of_a_hold_may_be_captured_and_not_one_more() -> None:
    assert plan(HELD, 500).captured_minor == 500
    assert refused(HELD, 501) == "AMOUNT_EXCEEDS_HOLD"


def test_a_hold_under_review_cannot_be_captured_even_by_force() -> None:
    waiting = hold(review_deadline_us=NOW_US + HOUR_US)

    assert refused(waiting, 1) == "HOLD_UNDER_REVIEW"
    assert refused(waiting, 1, force=True) == "HOLD_UNDER_REVIEW"


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (CAPTURED, "HOLD_ALREADY_CAPTURED"),
        (VOIDED, "HOLD_VOIDED"),
        (EXPIRED, "HOLD_EXPIRED"),
        (PARTLY_EXPIRED, "HOLD_ALREADY_CAPTURED"),
    ],
    ids=["captured", "voided", "expired", "partly captured"],
)
def test_a_hold_that_ended_can_be_captured_by_force_only(ended: Purchase, reason: str) -> None:
    """Invariant 13."""
    assert refused(ended, 1) == reason
    with pytest.raises(PreconditionFailed) as error:
        require_pending(ended)
    assert error.value.reason == reason


@pytest.mark.parametrize(("ended", "never_taken"), [(EXPIRED, 500), (PARTLY_EXPIRED, 300)])
def test_force_takes_what_the_clock_gave_up_and_no_more(ended: Purchase, never_taken: int) -> None:
    assert plan(ended, force=True) == CaptureTerms(captured_minor=never_taken, released_minor=0, forced=True)
    assert refused(ended, never_taken + 1, force=True) == "AMOUNT_EXCEEDS_HOLD"

    after = after_capture(ended, plan(ended, force=True, final=True), sequence=9)

    assert refused(after, force=True) == "AMOUNT_EXCEEDS_HOLD"
    assert after.state is ended.state
    assert after.forced_minor == never_taken


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (VOIDED, "HOLD_VOIDED"),
        (CAPTURED, "HOLD_ALREADY_CAPTURED"),
        (after_capture(HELD, plan(HELD, 200, final=True), sequence=5), "HOLD_ALREADY_CAPTURED"),
    ],
    ids=["voided", "captured", "finally captured"],
)
def test_what_the_caller_gave_up_is_not_taken_even_by_force(ended: Purchase, reason: str) -> None:
    assert refused(ended, 1, force=True) == reason


@pytest.mark.parametrize("ending", [after_void, after_expiry])
def test_a_hold_that_no_reviewer_passed_is_not_taken_after_its_end(ending: Callable[[Purchase], Purchase]) -> None:
    ended = ending(hold(review_deadline_us=NOW_US + HOUR_US))

    assert refused(ended, 1, force=True) == "REVIEW_NOT_PASSED"


def test_force_on_an_open_hold_is_an_ordinary_capture() -> None:
    assert plan(HELD, 100, force=True).forced is False


# --- What becomes of the hold (invariants 11 to 13). ---


@pytest.mark.parametrize(
    ("after", "state"),
    [
        (CAPTURED, HoldState.CAPTURED),
        (VOIDED, HoldState.VOIDED),
        (EXPIRED, HoldState.EXPIRED),
        (PARTLY_EXPIRED, HoldState.CAPTURED),
        (after_void(after_capture(HELD, plan(HELD, 1), sequence=5)), HoldState.CAPTURED),
        (after_capture(HELD, plan(HELD, 1), sequence=5), HoldState.PENDING),
        (after_capture(HELD, plan(HELD, 1, final=True), sequence=5), HoldState.CAPTURED),
    ],
)
def test_what_was_authorised_is_always_the_sum_of_its_parts(after: Purchase, state: HoldState) -> None:
    parts = after.captured_minor + after.released_minor + after.expired_minor + after.remaining_minor

    assert after.authorised_minor == parts
    assert after.state is state
    assert (after.remaining_minor > 0) is (state is HoldState.PENDING)


def test_a_debt_is_as_old_as_its_first_capture() -> None:
    once = after_capture(HELD, plan(HELD, 100), sequence=5)
    twice = after_capture(once, plan(once, 100), sequence=8)

    assert (twice.owed_since, twice.principal_minor) == (5, 200)


def test_a_hold_waits_for_its_reviewer() -> None:
    with pytest.raises(PreconditionFailed):
        require_reviewed(hold(review_deadline_us=NOW_US + HOUR_US))
    require_reviewed(HELD)


# --- Refunds. ---


def test_no_more_is_refunded_than_was_captured_and_not_yet_refunded() -> None:
    refunded = msgspec.structs.replace(CAPTURED, refunded_minor=450, principal_minor=50)

    require_refundable(refunded, 50)
    with pytest.raises(PreconditionFailed) as error:
        require_refundable(refunded, 51)
    assert error.value.details["refundable_minor"] == "50"


def test_what_was_taken_by_force_can_be_refunded() -> None:
    forced = after_capture(EXPIRED, plan(EXPIRED, 120, force=True), sequence=9)

    require_refundable(forced, 120)


def test_a_hold_of_which_nothing_was_taken_cannot_be_refunded() -> None:
    with pytest.raises(PreconditionFailed):
        require_refundable(HELD, 1)


def test_states_keep_their_numbers_for_ever() -> None:
    """They are written into the store."""
    assert {state.name: state.value for state in HoldState} == {
        "NONE": 0,
        "PENDING": 1,
        "CAPTURED": 2,
        "VOIDED": 3,
        "EXPIRED": 4,
    }
