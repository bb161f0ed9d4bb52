"""Use cases of a purchase: decide and hold, then annotate and review."""

from __future__ import annotations

from typing import Final

import msgspec

from riskgate_server.domain.calendar import local_hour
from riskgate_server.domain.credit.authorisation import NO_STEP_UP, StepUp, Verdict, judge, methods_trusted
from riskgate_server.domain.credit.line import SOFT_BLOCK_LIFETIME_US, Block, BlockKind, CreditLine
from riskgate_server.domain.errors import (
    AlreadyExists,
    FieldViolation,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
)
from riskgate_server.domain.events import (
    BlockPlaced,
    DecisionAnnotated,
    Happening,
    HoldExpired,
    Note,
    PurchaseDecided,
    PurchaseSecrets,
    ReviewPassed,
)
from riskgate_server.domain.fraud.decision import Assessment
from riskgate_server.domain.fraud.features import LineFacts
from riskgate_server.domain.identity.events import GrantSpent
from riskgate_server.domain.identity.grants import ANY_METHOD, Purpose
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.holds import HoldState, Purchase, require_pending
from riskgate_server.engine import grants
from riskgate_server.engine.commands import AnnotateDecision, CheckTransaction, ResolveReview
from riskgate_server.engine.ports import RiskRules
from riskgate_server.engine.replies import AnnotationReply, DecisionReply, HoldReply, Refusal
from riskgate_server.engine.work import Work

ENGINE_VERSION: Final = "0.1.0"
"""Stored with every decision; changes whenever the same inputs may be answered differently."""

_NO_LINE: Final = LineFacts(limit_minor=0, available_minor=0, opened_us=0)


def check_transaction(work: Work, command: CheckTransaction, rules: RiskRules) -> DecisionReply | Refusal:
    """
    Decide about a purchase and hold the credit in the same step.

    An attempt on a purchase that was declined or asked for a proof is decided again in full, over everything it says
    anew, and counts anew: only amount and payee are the purchase's own. One that brings a grant is decided over what
    was stored, counts once with the attempt it resumes, and spends the grant in the same step.

    Raises:
        AlreadyExists: the transaction id holds credit already, or was used for other terms.
        InvalidRequest: the amount is in another currency than the line's; the line is not clear.
        PreconditionFailed: the purchase waits for a proof and has other terms; with a grant, as `grants.spend`.
        NotFound: with a grant, there is no such purchase.
    """
    previous = work.purchase(command.transaction_id)
    spent: GrantSpent | None = None
    if command.grant:
        grants.note_foreign(work, command.grant)
        use = grants.use_for(work, Purpose.TRANSACTION, command.transaction_id)
        assert previous is not None
        found = grants.spend(work, command.grant, use, previous.step_up_level, grants.answering(work, previous))
        if isinstance(found, Refusal):
            return found
        spent = found
        command = _as_stored(work, command, previous)
    elif previous:
        _require_same(previous, command, work.now_us)
        # Digested as they were at first, whatever the key is by now: codes and grants were made for that digest.
        command = msgspec.structs.replace(command, terms=previous.terms)
    line = _line_for(work, command)
    event_us = command.event_us or work.now_us
    facts = msgspec.structs.replace(
        command.facts,
        event_time_us=event_us,
        local_hour=local_hour(event_us, line.time_zone if line else "UTC"),
    )
    line_facts = _NO_LINE
    if line:
        line_facts = LineFacts(postings.limit(line.books), postings.available(line.books), line.opened_us)
    profile = work.customer.profile
    features = rules.features(profile, facts, line_facts)
    assessment = rules.assess(features)
    verdict = judge(
        line,
        assessment,
        amount_minor=facts.amount_minor,
        allow_partial=command.allow_partial,
        hold_lifetime_us=command.hold_lifetime_us,
        now_us=work.now_us,
        demanded=_demanded(previous) if previous else NO_STEP_UP,
        may_hold=work.open_holds < work.bounds.open_holds,
        # Nobody else is asked for a proof anew.
        methods=methods_trusted(facts, profile, work.now_us) if assessment.outcome == "STEP_UP" else ANY_METHOD,
        proven_level=spent.level if spent else 0,
    )
    if spent:
        work.record(Happening(spent))
    block = _suspension(work, line, assessment)
    decided = PurchaseDecided(
        line_id=line.line_id if line else "",
        transaction_id=command.transaction_id,
        terms=command.terms,
        outcome=verdict.outcome,
        reasons=verdict.reasons,
        risk_score=assessment.risk_score,
        ruleset_version=rules.version,
        ruleset_hash=bytes.fromhex(rules.hash),
        engine_version=ENGINE_VERSION,
        currency=facts.currency,
        requested_minor=facts.amount_minor,
        held_minor=verdict.held_minor,
        available_minor=line_facts.available_minor - verdict.held_minor,
        event_us=event_us,
        expires_us=verdict.expires_us,
        review_deadline_us=verdict.review_deadline_us,
        step_up_expires_us=verdict.step_up.expires_us,
        block_id=block.block_id if block else "",
        degraded=assessment.degraded,
        # Every attempt counts: only one that proves who asks may replace the attempt that was asked for the proof.
        replaces_event_us=previous.event_us if previous and spent else 0,
        fired=assessment.fired,
        step_up_level=verdict.step_up.level,
        step_up_methods=verdict.step_up.methods if verdict.step_up.level else 0,
        proven_level=spent.level if spent else 0,
    )
    sequence = work.customer.sequence + 1
    work.record(_decision(decided, verdict, PurchaseSecrets(facts, features)))
    if block and line:
        work.record(Happening(BlockPlaced(line.line_id, block)))
    if verdict.held_minor:
        work.expect_lapse(work.hold(command.transaction_id))
    return DecisionReply(
        key=work.key,
        sequence=0 if command.validate_only else sequence,
        at_us=work.now_us,
        request_id=work.request_id,
        decided=decided,
    )


def _as_stored(work: Work, command: CheckTransaction, purchase: Purchase) -> CheckTransaction:
    """Return the command with what was stored of its purchase: who proves themselves brings no second amount."""
    facts = work.facts(purchase)
    # The customer can be read, or nothing of theirs would be decided.
    assert facts is not None
    return msgspec.structs.replace(command, line_id=purchase.line_id, terms=purchase.terms, facts=facts)


def _require_same(previous: Purchase, command: CheckTransaction, now_us: int) -> None:
    """Let an attempt on a known purchase go on only while nothing is held for it, and with its own terms."""
    if previous.state is HoldState.NONE and previous.terms in (command.terms, *command.other_terms):
        return
    if previous.state is HoldState.NONE and now_us < previous.step_up_expires_us:
        reason, message = (
            "TRANSACTION_CHANGED",
            "the purchase waits for a proof with other terms; use another id",
        )
        raise PreconditionFailed(reason, message, transaction_id=command.transaction_id)
    held = previous.state is not HoldState.NONE
    message = "the purchase of this id held credit before" if held else "the purchase of this id has other terms"
    raise AlreadyExists("TRANSACTION_ID_REUSED", message, transaction_id=command.transaction_id)


def _demanded(previous: Purchase) -> StepUp:
    return StepUp(previous.step_up_level, previous.step_up_expires_us, previous.step_up_methods)


def _decision(decided: PurchaseDecided, verdict: Verdict, secrets: PurchaseSecrets) -> Happening:
    transfers = postings.authorise(verdict.held_minor) if verdict.held_minor else ()
    return Happening(decided, transfers, secrets)


def _line_for(work: Work, command: CheckTransaction) -> CreditLine | None:
    try:
        line = work.customer.line(command.line_id)
    except NotFound:
        # "Is this allowed?" has an answer even without a line: no.
        return None
    require_currency(line.currency, command.facts.currency)
    return work.as_of_now(line)


def require_currency(expected: str, given: str) -> None:
    """Raise `InvalidRequest` when an amount is in another currency than its line's."""
    if given != expected:
        reason, message = "CURRENCY_MISMATCH", f"the line is in {expected}"
        raise InvalidRequest(reason, message, FieldViolation("amount.currency_code", message))


def _suspension(work: Work, line: CreditLine | None, assessment: Assessment) -> Block | None:
    """Return the block a severe anomaly places at once, unless one of its kind stands already."""
    if not assessment.suspend or line is None:
        return None
    if any(block.kind is BlockKind.FRAUD_SOFT for block in line.standing_blocks(work.now_us)):
        return None
    return Block(
        # The decision is the next entry and the block the one after it.
        block_id=f"b-{work.customer.sequence + 2}",
        kind=BlockKind.FRAUD_SOFT,
        reason_code=assessment.suspend_reason,
        placed_by="engine",
        placed_us=work.now_us,
        expires_us=work.now_us + SOFT_BLOCK_LIFETIME_US,
    )


def annotate_decision(work: Work, command: AnnotateDecision) -> AnnotationReply:
    """
    Record what a purchase turned out to be.

    Raises:
        NotFound: the customer has no such decision.
    """
    if not work.is_decision(command.decision_sequence):
        reason, message = "DECISION_NOT_FOUND", "the customer has no such decision"
        raise NotFound(reason, message)
    event = DecisionAnnotated(command.decision_sequence, command.label, command.actor_id)
    work.record(Happening(event, sealed=Note(command.note) if command.note else None))
    return AnnotationReply(work.key, command.decision_sequence, command.label, command.actor_id, work.now_us)


def resolve_review(work: Work, command: ResolveReview) -> HoldReply:
    """
    Decide a purchase under review: the hold stands and may be captured, or it is given up. Exactly once.

    Raises:
        NotFound: no review of this purchase is open.
        PreconditionFailed: the hold ended before.
    """
    purchase = work.hold(command.transaction_id)
    require_pending(purchase)
    if not purchase.review_deadline_us:
        reason, message = "CASE_NOT_FOUND", "no review of this purchase is open"
        raise NotFound(reason, message)
    note = Note(command.note) if command.note else None
    if command.approve:
        happening = Happening(ReviewPassed(command.transaction_id, command.actor_id), sealed=note)
    else:
        remaining = purchase.remaining_minor
        event = HoldExpired(command.transaction_id, remaining, refused_by=command.actor_id)
        happening = Happening(event, postings.release(remaining), note)
    purchase = work.change_purchase(purchase, happening)
    if command.approve:
        work.expect_lapse(purchase)
    return HoldReply(work.key, work.customer.line(purchase.line_id).currency, purchase)
