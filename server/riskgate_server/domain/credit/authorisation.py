"""May this purchase reserve credit? The line, the limit and the rules, put together into one answer."""

from __future__ import annotations

from typing import Final

import msgspec

from riskgate_server.domain.calendar import DAY_US, SECOND_US
from riskgate_server.domain.credit.line import CreditLine, LifeCycle
from riskgate_server.domain.events import Outcome
from riskgate_server.domain.fraud.decision import Assessment
from riskgate_server.domain.fraud.profile import Profile, PurchaseFacts
from riskgate_server.domain.identity.grants import ANY_METHOD, Method, mask_of
from riskgate_server.domain.ledger import postings

HOLD_LIFETIME_US: Final = 7 * DAY_US
"""How long a hold lasts unless the caller says otherwise."""

REVIEW_LIFETIME_US: Final = DAY_US
"""How long a reviewer has; then the hold is given up."""

STEP_UP_LIFETIME_US: Final = 15 * 60 * SECOND_US
"""How long a purchase waits for a stronger proof."""

STRONG_STEP_UP_SCORE: Final = 600
"""From this risk score on a code is not proof enough: a device key, or two kinds of factor, must answer."""

STRONG_STEP_UP_SHARE: Final = 2
"""So it is from a purchase of half the limit on: limit / 2."""

SIM_TRUSTED_US: Final = 7 * DAY_US
"""How long a SIM that was changed is not trusted with codes: who took a number over uses it at once."""


class StepUp(msgspec.Struct, frozen=True, gc=False):
    """A proof asked for: its level (1 a code, 2 a device key; 0 none), until when (UTC µs), by what (`mask_of`)."""

    level: int
    expires_us: int
    methods: int = ANY_METHOD


NO_STEP_UP: Final = StepUp(0, 0)


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What is answered to a purchase. Times in UTC µs, 0 where they do not apply. `step_up` is what stands after it."""

    outcome: Outcome
    reasons: tuple[str, ...]
    held_minor: int = 0
    expires_us: int = 0
    review_deadline_us: int = 0
    step_up: StepUp = NO_STEP_UP


def judge(
    line: CreditLine | None,
    assessment: Assessment,
    *,
    amount_minor: int,
    allow_partial: bool,
    hold_lifetime_us: int,
    now_us: int,
    demanded: StepUp = NO_STEP_UP,
    may_hold: bool = True,
    methods: int = ANY_METHOD,
    proven_level: int = 0,
) -> Verdict:
    """
    Answer a purchase.

    What forbids it comes first: no line, the line's end, a block, a rule's DECLINE, the limit, a bound. Then
    what delays it: REVIEW, STEP_UP. Reasons are in that order, the rules' own after the engine's.

    `demanded` is the proof an earlier attempt on this purchase was asked for. Until it expires the purchase is not
    approved without it, whatever the rules make of the attempt, and no answer in between lets it be forgotten.
    `proven_level` is that of a proof given for this purchase: it answers a demand, old or new, of at most its level.
    `may_hold` is False for a customer with as many open holds as one may have. `methods` may answer a new demand.
    """
    outcome = Outcome[assessment.outcome]
    waiting = demanded if now_us < demanded.expires_us else NO_STEP_UP
    standing = waiting if proven_level < waiting.level else NO_STEP_UP
    forbidden = _forbidden(line, now_us)
    if line is None or forbidden or outcome is Outcome.DECLINE:
        return Verdict(Outcome.DECLINE, (*forbidden, *assessment.reasons), step_up=waiting)
    available = postings.available(line.books)
    held = amount_minor
    notes: tuple[str, ...] = ()
    if amount_minor > available:
        if not allow_partial or available <= 0:
            return Verdict(Outcome.DECLINE, ("CREDIT_LIMIT_EXCEEDED", *assessment.reasons), step_up=waiting)
        held, notes = available, ("PARTIAL_APPROVAL",)
    if held and not (may_hold and postings.has_room(line.books, held)):
        return Verdict(Outcome.DECLINE, ("HOLD_BOUND_REACHED", *assessment.reasons), step_up=waiting)
    if outcome is Outcome.STEP_UP:
        limit = postings.limit(line.books)
        level = max(step_up_level(assessment.risk_score, amount_minor, limit), standing.level)
        if proven_level < level:
            # What an earlier attempt found not to be trusted is not trusted because this one does not mention it.
            step_up = StepUp(level, now_us + STEP_UP_LIFETIME_US, methods & waiting.methods)
            return Verdict(outcome, assessment.reasons, step_up=step_up)
    if outcome is Outcome.APPROVE and standing.level:
        return Verdict(Outcome.STEP_UP, (*assessment.reasons, "STEP_UP_UNANSWERED"), step_up=standing)
    if outcome is Outcome.STEP_UP or (outcome is Outcome.APPROVE and proven_level):
        outcome, notes = Outcome.APPROVE, (*notes, "STEP_UP_PASSED")
    return Verdict(
        outcome,
        (*assessment.reasons, *notes),
        held_minor=held,
        expires_us=now_us + (hold_lifetime_us or HOLD_LIFETIME_US) if held else 0,
        review_deadline_us=now_us + REVIEW_LIFETIME_US if held and outcome is Outcome.REVIEW else 0,
        step_up=standing,
    )


def _forbidden(line: CreditLine | None, now_us: int) -> tuple[str, ...]:
    if line is None:
        return ("NO_CREDIT_LINE",)
    if line.life_cycle is not LifeCycle.ACTIVE:
        return ("LINE_NOT_ACTIVE",)
    if line.standing_blocks(now_us):
        return ("LINE_BLOCKED",)
    return ()


def step_up_level(risk_score: int, amount_minor: int, limit_minor: int) -> int:
    """Return the level of proof a STEP_UP asks for: 1 (a code), or 2 (a device key) where much is at stake."""
    strong = risk_score >= STRONG_STEP_UP_SCORE or amount_minor * STRONG_STEP_UP_SHARE >= limit_minor
    return 2 if strong else 1


def methods_trusted(facts: PurchaseFacts, profile: Profile, now_us: int) -> int:
    """Return the kinds of factor that may answer for a purchase: no message to a phone that may be a thief's by now."""
    new_phone = bool(facts.device_id and profile.devices) and all(
        known.device_id != facts.device_id for known in profile.devices
    )
    new_sim = bool(facts.sim_changed_us) and now_us - facts.sim_changed_us < SIM_TRUSTED_US
    return ANY_METHOD & ~mask_of(Method.SMS) if new_phone or new_sim else ANY_METHOD
