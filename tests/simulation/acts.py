"""What each command does to a customer of the model, and what it must answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from riskgate_server.engine import commands as c
from tests.simulation.model import (
    ACTIVE,
    ANNOTATED,
    APPROVE,
    BLOCKED,
    BLOCKS_MAX,
    CAPTURED,
    CLOSED,
    DECIDED,
    DECLINE,
    ENDED,
    EXPIRED,
    FRAUD_HARD,
    FRAUD_SOFT,
    GIVEN_UP,
    HOLD_LIFETIME_US,
    LIFTED,
    LINES_MAX,
    NONE,
    OPENED,
    PAID,
    PASSED,
    PENDING,
    RAISED,
    REFUNDED,
    RETURNED,
    REVERSED,
    REVIEW,
    REVIEW_LIFETIME_US,
    RISKS,
    SHUT,
    SOFT_BLOCK_LIFETIME_US,
    STEP_UP,
    STEP_UP_LIFETIME_US,
    TAKEN,
    USED,
    VOIDED,
    Answer,
    Broken,
    Customer,
    Line,
    No,
    Payment,
    Purchase,
    forbid,
)


def open_line(who: Customer, command: c.OpenCreditLine, now_us: int) -> Answer:
    if command.line_id in who.lines:
        raise No("AlreadyExists", "LINE_EXISTS")
    if len(who.lines) >= LINES_MAX:
        raise forbid("BOUND_REACHED")
    line = Line(command.line_id, command.currency, now_us, command.limit_minor)
    who.lines[command.line_id] = line
    number = who.note(OPENED, now_us, command.request_id)
    return ("line", number, now_us, line.shown(), None, False)


def check(who: Customer, command: c.CheckTransaction, now_us: int) -> Answer:
    before = who.purchases.get(command.transaction_id)
    if before and (before.terms != command.terms or before.state != NONE):
        if before.state == NONE and now_us < before.step_up_us:
            raise No("PreconditionFailed", "TRANSACTION_CHANGED")
        raise No("AlreadyExists", "TRANSACTION_ID_REUSED")
    facts = command.facts
    try:
        line = who.line(command.line_id)
    except No as no:
        if no.answer[0] == "InvalidRequest":
            raise
        line = None
    if line and line.currency != facts.currency:
        raise No("InvalidRequest", "CURRENCY_MISMATCH")
    if facts.channel == "broken":
        raise Broken
    outcome, rule_reasons, alarm = RISKS[facts.channel]
    amount, available = facts.amount_minor, line.available if line else 0
    held, reasons = 0, rule_reasons
    proof, proof_us = (before.step_up_level, before.step_up_us) if before and now_us < before.step_up_us else (0, 0)
    if line is None:
        outcome, reasons = DECLINE, ("NO_CREDIT_LINE", *rule_reasons)
    elif line.life != ACTIVE:
        outcome, reasons = DECLINE, ("LINE_NOT_ACTIVE", *rule_reasons)
    elif line.standing(now_us):
        outcome, reasons = DECLINE, ("LINE_BLOCKED", *rule_reasons)
    elif outcome == DECLINE:
        pass
    elif amount > available and not (command.allow_partial and available > 0):
        outcome, reasons = DECLINE, ("CREDIT_LIMIT_EXCEEDED", *rule_reasons)
    elif amount and who.open >= who.bounds.open_holds:
        outcome, reasons = DECLINE, ("HOLD_BOUND_REACHED", *rule_reasons)
    elif outcome == STEP_UP:
        proof, proof_us = (
            max(proof, 2 if facts.channel == "strong_step_up" or 2 * amount >= line.limit else 1),
            now_us + STEP_UP_LIFETIME_US,
        )
    elif outcome == APPROVE and proof:
        outcome, reasons = STEP_UP, (*rule_reasons, "STEP_UP_UNANSWERED")
    else:
        held = min(amount, available)
        reasons = rule_reasons if held == amount else (*rule_reasons, "PARTIAL_APPROVAL")
    purchase = Purchase(
        command.transaction_id,
        line.line_id if line else "",
        command.terms,
        len(who.journal) + 1,
        state=PENDING if held else NONE,
        authorised=held,
        placed_us=now_us if held else 0,
        expires_us=now_us + (command.hold_lifetime_us or HOLD_LIFETIME_US) if held else 0,
        review_us=now_us + REVIEW_LIFETIME_US if held and outcome == REVIEW else 0,
        step_up_us=proof_us,
        event_us=command.event_us or now_us,
        step_up_level=proof,
    )
    who.purchases[command.transaction_id] = purchase
    number = who.note(DECIDED, now_us, command.request_id)
    who.decisions[number] = command.transaction_id
    block_id = ""
    if line:
        line.held += held
        if alarm and not any(block[1] == FRAUD_SOFT for block in line.standing(now_us)):
            block_id = f"b-{who.note(BLOCKED, now_us, command.request_id)}"
            block = [block_id, FRAUD_SOFT, alarm, "engine", now_us, now_us + SOFT_BLOCK_LIFETIME_US, ""]
            line.blocks = [*line.standing(now_us), block]
    return (
        "decision", 0 if command.validate_only else number, now_us, command.request_id, purchase.line_id,
        command.transaction_id, outcome, reasons, facts.currency, amount, held, available - held, purchase.event_us,
        purchase.expires_us, purchase.review_us, purchase.step_up_us, block_id, 0, proof,
    )  # fmt: skip


def hold_answer(line: Line, purchase: Purchase, to_credit: int = 0) -> Answer:
    return ("hold", line.currency, purchase.row(), to_credit)


def must_match(line: Line, currency: str) -> None:
    if currency != line.currency:
        raise No("InvalidRequest", "CURRENCY_MISMATCH")


def must_be_open(purchase: Purchase) -> None:
    ended = {CAPTURED: "HOLD_ALREADY_CAPTURED", VOIDED: "HOLD_VOIDED", EXPIRED: "HOLD_EXPIRED"}
    if purchase.state != PENDING:
        raise forbid(ended[purchase.state])


def capture(who: Customer, command: c.CaptureHold, now_us: int) -> Answer:
    purchase, line = who.hold(command.transaction_id)
    if command.amount_minor is not None:
        must_match(line, command.currency)
    if purchase.state == PENDING:
        if purchase.review_us:
            raise forbid("HOLD_UNDER_REVIEW")
        most = purchase.left
    elif command.force:
        if purchase.review_us:
            raise forbid("REVIEW_NOT_PASSED")
        if not purchase.expired:
            must_be_open(purchase)
        most = purchase.expired - purchase.forced
    else:
        must_be_open(purchase)
        raise AssertionError
    amount = most if command.amount_minor is None else command.amount_minor
    if not 0 < amount <= most:
        raise forbid("AMOUNT_EXCEEDS_HOLD")
    number = who.note(TAKEN, now_us, command.request_id)
    if purchase.state == PENDING:
        purchase.captured += amount
        line.held -= amount
        if command.final:
            line.held -= purchase.left
            purchase.released += purchase.left
        if not purchase.left:
            purchase.state = CAPTURED
    else:
        purchase.forced += amount
        line.overdrawn = True
    purchase.owed += amount
    line.owed += amount
    purchase.owed_since = purchase.owed_since or number
    use_credit(who, line, now_us, command.request_id)
    purchase = who.purchases[command.transaction_id]
    return hold_answer(line, purchase)


def increment(who: Customer, command: c.IncrementHold, now_us: int) -> Answer:
    purchase, line = who.hold(command.transaction_id)
    must_match(line, command.currency)
    must_be_open(purchase)
    if purchase.review_us:
        raise forbid("HOLD_UNDER_REVIEW")
    if line.life != ACTIVE:
        raise forbid("LINE_NOT_ACTIVE")
    if line.standing(now_us):
        raise forbid("LINE_BLOCKED")
    if command.amount_minor > line.available:
        raise forbid("CREDIT_LIMIT_EXCEEDED")
    purchase.authorised += command.amount_minor
    line.held += command.amount_minor
    who.note(RAISED, now_us, command.request_id)
    return hold_answer(line, purchase)


def void(who: Customer, command: c.VoidHold, now_us: int) -> Answer:
    purchase, line = who.hold(command.transaction_id)
    must_be_open(purchase)
    who.give_back(purchase, "released")
    who.note(GIVEN_UP, now_us, command.request_id)
    return hold_answer(line, purchase)


def refund(who: Customer, command: c.RefundCapture, now_us: int) -> Answer:
    purchase, line = who.hold(command.transaction_id)
    must_match(line, command.currency)
    if command.amount_minor > purchase.captured + purchase.forced - purchase.refunded:
        raise forbid("AMOUNT_EXCEEDS_CAPTURE")
    rest, repaid = command.amount_minor, []
    for debt in [purchase, *(p for p in who.owing(line) if p.transaction_id != purchase.transaction_id)]:
        share = min(rest, debt.owed)
        if share:
            repaid.append((debt.transaction_id, share))
            rest -= share
    if len(repaid) > who.bounds.shares:
        raise forbid("BOUND_REACHED")
    for name, share in repaid:
        who.touch(name).owed -= share
    purchase = who.touch(purchase.transaction_id)
    purchase.refunded += command.amount_minor
    line.owed -= command.amount_minor - rest
    to_credit = rest
    if to_credit:
        line.give("", to_credit)
    who.note(REFUNDED, now_us, command.request_id)
    return hold_answer(line, purchase, to_credit)


def pay(who: Customer, command: c.RecordPayment, now_us: int) -> Answer:
    line = who.line(command.line_id)
    must_match(line, command.currency)
    if command.payment_id in who.payments:
        raise No("AlreadyExists", "PAYMENT_EXISTS")
    rest = command.amount_minor
    shares: list[list[Any]] = []
    for purchase in who.owing(line):
        share = min(rest, purchase.owed)
        if share:
            shares.append([purchase.transaction_id, share])
            rest -= share
    if len(shares) > who.bounds.shares or (rest and len(line.credits) >= who.bounds.credits):
        raise forbid("BOUND_REACHED")
    for name, share in shares:
        who.touch(name).owed -= share
    line.owed -= command.amount_minor - rest
    if rest:
        line.give(command.payment_id, rest)
    value_us = command.value_us or now_us
    payment = Payment(command.payment_id, line.line_id, command.amount_minor, shares, rest, value_us, now_us)
    who.payments[command.payment_id] = payment
    who.note(PAID, now_us, command.request_id)
    return ("payment", line.currency, payment.row(), line.available)


def use_credit(who: Customer, line: Line, now_us: int, request_id: str) -> None:
    """What the customer is owed repays what they owe, and becomes a share of the payment that left it."""
    uses = 0
    for debt in who.owing(line):
        for credit in [*line.credits]:
            whose = who.payments.get(credit[0])
            full = whose is not None and len(whose.shares) >= who.bounds.shares
            owed = who.purchases[debt.transaction_id].owed
            if full or not owed or uses >= who.bounds.shares:
                continue
            amount = min(owed, credit[1])
            uses += 1
            who.touch(debt.transaction_id).owed -= amount
            line.owed -= amount
            credit[1] -= amount
            line.credits = [other for other in line.credits if other[1]]
            if whose:
                shares = [*whose.shares, [debt.transaction_id, amount]]
                who.payments[credit[0]] = replace(whose, shares=shares, to_credit=whose.to_credit - amount)
    if uses:
        who.note(USED, now_us, request_id)


def reverse(who: Customer, command: c.ReversePayment, now_us: int) -> Answer:
    if command.payment_id not in who.payments:
        raise No("NotFound", "PAYMENT_NOT_FOUND")
    payment = replace(who.payments[command.payment_id])
    if payment.state == REVERSED:
        raise forbid("PAYMENT_ALREADY_REVERSED")
    line = who.lines[payment.line_id]
    who.payments[command.payment_id] = payment
    payment.state = REVERSED
    line.credits = [credit for credit in line.credits if credit[0] != payment.payment_id]
    line.overdrawn = True
    for transaction_id, share in payment.shares:
        who.touch(transaction_id).owed += share
        line.owed += share
    who.note(RETURNED, now_us, command.request_id)
    use_credit(who, line, now_us, command.request_id)
    return ("payment", line.currency, payment.row(), line.available)


def place_block(who: Customer, command: c.PlaceBlock, now_us: int) -> Answer:
    line = who.line(command.line_id)
    if command.expires_us and command.expires_us <= now_us:
        raise No("InvalidRequest", "FIELD_INVALID")
    if len(line.standing(now_us)) >= BLOCKS_MAX:
        raise forbid("BOUND_REACHED")
    expires_us = command.expires_us
    if command.kind == FRAUD_SOFT and not expires_us:
        expires_us = now_us + SOFT_BLOCK_LIFETIME_US
    number = who.note(BLOCKED, now_us, command.request_id)
    block = [f"b-{number}", int(command.kind), command.reason_code, command.actor_id, now_us, expires_us, ""]
    line.blocks = [*line.standing(now_us), block]
    return ("line", number, now_us, line.shown(), block, False)


def lift(who: Customer, command: c.LiftBlock, now_us: int) -> Answer:
    line = who.line(command.line_id)
    block = next((block for block in line.blocks if block[0] == command.block_id), None)
    if block is None:
        raise No("NotFound", "BLOCK_NOT_FOUND")
    if block[1] not in command.liftable:
        raise No("PermissionRefused", "BLOCK_LIFT_FORBIDDEN")
    if block not in line.standing(now_us):
        raise forbid("BLOCK_NOT_STANDING")
    if block[1] == FRAUD_HARD and block[6].strip().lower() == command.actor_id.strip().lower():
        raise No("PermissionRefused", "SECOND_PERSON_REQUIRED")
    done = block[1] != FRAUD_HARD or bool(block[6])
    if done:
        line.blocks.remove(block)
    else:
        block[6] = command.actor_id
    number = who.note(LIFTED, now_us, command.request_id)
    return ("line", number, now_us, line.shown(), block, done)


def close(who: Customer, command: c.CloseCreditLine, now_us: int) -> Answer:
    line = who.line(command.line_id)
    if line.life != ACTIVE:
        raise forbid("LINE_NOT_ACTIVE")
    if line.owed or line.held > line.due or line.credit:
        raise forbid("LINE_IN_USE")
    line.limit, line.life = 0, CLOSED
    number = who.note(SHUT, now_us, command.request_id)
    return ("line", number, now_us, line.shown(), None, False)


def annotate(who: Customer, command: c.AnnotateDecision, now_us: int) -> Answer:
    if command.decision_sequence not in who.decisions:
        raise No("NotFound", "DECISION_NOT_FOUND")
    who.note(ANNOTATED, now_us, command.request_id)
    return ("annotation", command.decision_sequence, int(command.label), command.actor_id, now_us)


def resolve(who: Customer, command: c.ResolveReview, now_us: int) -> Answer:
    purchase, line = who.hold(command.transaction_id)
    must_be_open(purchase)
    if not purchase.review_us:
        raise No("NotFound", "CASE_NOT_FOUND")
    if command.approve:
        purchase.review_us = 0
        who.note(PASSED, now_us, command.request_id)
    else:
        who.give_back(purchase, "expired")
        who.note(ENDED, now_us, command.request_id)
    return hold_answer(line, purchase)


ACTS: Final[dict[type, Callable[[Customer, Any, int], Answer]]] = {
    c.OpenCreditLine: open_line,
    c.CheckTransaction: check,
    c.CaptureHold: capture,
    c.IncrementHold: increment,
    c.VoidHold: void,
    c.RefundCapture: refund,
    c.RecordPayment: pay,
    c.ReversePayment: reverse,
    c.PlaceBlock: place_block,
    c.LiftBlock: lift,
    c.CloseCreditLine: close,
    c.AnnotateDecision: annotate,
    c.ResolveReview: resolve,
    c.SettleLapsed: lambda _who, _command, _now_us: ("settled", 0),
}
