from __future__ import annotations

import msgspec
import pytest

from riskgate_server.domain.credit.authorisation import (
    HOLD_LIFETIME_US,
    NO_STEP_UP,
    REVIEW_LIFETIME_US,
    STEP_UP_LIFETIME_US,
    STRONG_STEP_UP_SCORE,
    StepUp,
    Verdict,
    judge,
    step_up_level,
)
from riskgate_server.domain.credit.line import Block, BlockKind, CreditLine, LifeCycle
from riskgate_server.domain.events import Outcome
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.money import TURNOVER_MAX_MINOR
from tests.factories import ASSESSMENTS, HOUR_US, NOW_US

BOOKS = postings.post(postings.EMPTY_BOOKS, postings.grant_limit(1_000))
LINE = CreditLine("line-1", "CNY", "standard", "UTC", NOW_US, "decision-1", books=BOOKS)
BLOCKED = msgspec.structs.replace(LINE, blocks=(Block("b-1", BlockKind.COMPLIANCE, "ASKED", "olga", NOW_US),))
CLOSED = msgspec.structs.replace(LINE, life_cycle=LifeCycle.CLOSED)
OVERDRAWN = msgspec.structs.replace(LINE, books=postings.post(BOOKS, postings.draw(1_200)))


def ask(
    line: CreditLine | None = LINE,
    amount: int = 100,
    risk: str = "",
    *,
    partial: bool = False,
    lifetime_us: int = 0,
    demanded: StepUp = NO_STEP_UP,
) -> Verdict:
    return judge(
        line,
        ASSESSMENTS[risk],
        amount_minor=amount,
        allow_partial=partial,
        hold_lifetime_us=lifetime_us,
        now_us=NOW_US,
        demanded=demanded,
    )


def test_a_purchase_within_the_limit_is_approved_and_held() -> None:
    assert ask() == Verdict(Outcome.APPROVE, (), held_minor=100, expires_us=NOW_US + HOLD_LIFETIME_US)


def test_the_last_unit_of_the_limit_may_be_spent_and_not_one_more() -> None:
    assert ask(amount=1_000).held_minor == 1_000
    assert ask(amount=1_001) == Verdict(Outcome.DECLINE, ("CREDIT_LIMIT_EXCEEDED",))


def test_a_hold_lasts_as_long_as_asked_for() -> None:
    assert ask(lifetime_us=HOUR_US).expires_us == NOW_US + HOUR_US


def test_a_partial_approval_holds_what_there_is_and_says_so() -> None:
    verdict = ask(amount=1_500, partial=True)

    assert (verdict.outcome, verdict.held_minor, verdict.reasons) == (Outcome.APPROVE, 1_000, ("PARTIAL_APPROVAL",))


def test_no_part_is_approved_when_nothing_is_left() -> None:
    """Invariant 14: below zero every new hold is refused."""
    full = msgspec.structs.replace(LINE, books=postings.post(BOOKS, postings.authorise(1_000)))

    for line in (full, OVERDRAWN):
        assert ask(line, 1, partial=True).reasons == ("CREDIT_LIMIT_EXCEEDED",)


def test_an_account_check_holds_nothing_and_expires_never() -> None:
    assert ask(amount=0) == Verdict(Outcome.APPROVE, ())
    assert ask(amount=0, risk="review") == Verdict(Outcome.REVIEW, ("STRANGE",))


def test_a_review_holds_the_credit_and_has_a_deadline() -> None:
    verdict = ask(risk="review")

    assert (verdict.outcome, verdict.held_minor) == (Outcome.REVIEW, 100)
    assert verdict.review_deadline_us == NOW_US + REVIEW_LIFETIME_US


def test_a_step_up_holds_nothing_and_waits_for_a_while() -> None:
    def expected(level: int) -> Verdict:
        return Verdict(Outcome.STEP_UP, ("UNUSUAL",), step_up=StepUp(level, NOW_US + STEP_UP_LIFETIME_US))

    assert ask(risk="step_up") == expected(1)
    assert ask(amount=1_500, risk="step_up", partial=True) == expected(2)


@pytest.mark.parametrize(
    ("line", "reason"),
    [(None, "NO_CREDIT_LINE"), (CLOSED, "LINE_NOT_ACTIVE"), (BLOCKED, "LINE_BLOCKED")],
    ids=["no line", "closed", "blocked"],
)
@pytest.mark.parametrize("risk", ["", "step_up", "review", "decline"])
def test_what_forbids_a_purchase_comes_before_what_the_rules_say(
    line: CreditLine | None, reason: str, risk: str
) -> None:
    assert ask(line, risk=risk) == Verdict(Outcome.DECLINE, (reason, *ASSESSMENTS[risk].reasons))


def test_the_rules_decline_comes_before_the_limit() -> None:
    assert ask(amount=9_999, risk="decline") == Verdict(Outcome.DECLINE, ("LISTED",))


@pytest.mark.parametrize("risk", ["step_up", "review"])
def test_the_limit_comes_before_a_step_up_and_a_review(risk: str) -> None:
    expected = ("CREDIT_LIMIT_EXCEEDED", *ASSESSMENTS[risk].reasons)

    assert ask(amount=1_001, risk=risk) == Verdict(Outcome.DECLINE, expected)


def test_a_block_that_lapsed_forbids_nothing() -> None:
    (block,) = BLOCKED.blocks
    lapsed = msgspec.structs.replace(BLOCKED, blocks=(msgspec.structs.replace(block, expires_us=NOW_US),))

    assert ask(lapsed).outcome is Outcome.APPROVE


def test_a_line_that_has_moved_all_it_may_takes_no_hold_but_answers() -> None:
    moved = TURNOVER_MAX_MINOR - 100
    books = postings.post(postings.post(BOOKS, postings.authorise(moved)), postings.release(moved))
    worn = msgspec.structs.replace(LINE, books=books)

    assert ask(worn, 100).outcome is Outcome.APPROVE
    assert ask(worn, 101) == Verdict(Outcome.DECLINE, ("HOLD_BOUND_REACHED",))
    assert ask(worn, 101, "step_up").outcome is Outcome.DECLINE
    assert ask(worn, 0).outcome is Outcome.APPROVE


UNANSWERED = StepUp(2, NOW_US + 1)


def test_a_proof_that_was_asked_for_is_not_dodged_by_an_attempt_the_rules_would_approve() -> None:
    expected = Verdict(Outcome.STEP_UP, ("STEP_UP_UNANSWERED",), step_up=UNANSWERED)

    assert ask(demanded=UNANSWERED) == expected
    assert ask(amount=0, demanded=UNANSWERED) == expected
    assert ask(demanded=StepUp(2, NOW_US)).outcome is Outcome.APPROVE


@pytest.mark.parametrize(
    ("line", "amount", "risk"),
    [(LINE, 100, "decline"), (LINE, 1_001, ""), (BLOCKED, 100, ""), (None, 100, ""), (LINE, 0, "review")],
    ids=["declined by a rule", "above the limit", "blocked", "no line", "looked at"],
)
def test_no_answer_in_between_lets_a_proof_be_forgotten(line: CreditLine | None, amount: int, risk: str) -> None:
    assert ask(line, amount, risk, demanded=UNANSWERED).step_up == UNANSWERED


def test_the_strongest_proof_that_was_asked_for_stands() -> None:
    assert ask(risk="step_up", demanded=UNANSWERED).step_up == StepUp(2, NOW_US + STEP_UP_LIFETIME_US)
    assert ask(risk="step_up", demanded=StepUp(2, NOW_US)).step_up.level == 1


def test_more_risk_asks_for_a_stronger_proof() -> None:
    assert step_up_level(STRONG_STEP_UP_SCORE - 1, 1, 1_000) == 1
    assert step_up_level(STRONG_STEP_UP_SCORE, 1, 1_000) == 2
    assert (step_up_level(0, 499, 1_000), step_up_level(0, 500, 1_000)) == (1, 2)
