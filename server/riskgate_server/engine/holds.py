"""Use cases of a hold after it was placed: capture, increment, void, refund."""

from __future__ import annotations

from riskgate_server.domain.credit.line import require_spendable
from riskgate_server.domain.errors import PreconditionFailed
from riskgate_server.domain.journal import (
    CaptureRefunded,
    Happening,
    HoldCaptured,
    HoldIncremented,
    HoldVoided,
)
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.holds import Purchase, plan_capture, plan_refund, require_pending, require_reviewed
from riskgate_server.engine.commands import CaptureHold, IncrementHold, RefundCapture, VoidHold
from riskgate_server.engine.purchases import require_currency
from riskgate_server.engine.replies import HoldReply
from riskgate_server.engine.work import Work


def _reply(work: Work, purchase: Purchase, to_credit_minor: int = 0) -> HoldReply:
    return HoldReply(work.key, work.customer.line(purchase.line_id).currency, purchase, to_credit_minor)


def capture_hold(work: Work, command: CaptureHold) -> HoldReply:
    """Take all or part of a hold. Never asks what happened to the line since: an approved hold is honoured."""
    purchase = work.hold(command.transaction_id)
    if command.amount_minor is not None:
        require_currency(work.customer.line(purchase.line_id).currency, command.currency)
    terms = plan_capture(purchase, amount_minor=command.amount_minor, final=command.final, force=command.force)
    event = HoldCaptured(purchase.transaction_id, terms.captured_minor, terms.released_minor, terms.forced)
    if terms.forced:
        transfers = postings.draw(terms.captured_minor)
    else:
        transfers = postings.capture(terms.captured_minor, terms.released_minor)
    return _reply(work, work.change_purchase(purchase, Happening(event, transfers)))


def increment_hold(work: Work, command: IncrementHold) -> HoldReply:
    """
    Raise an open hold within the available credit.

    Raises:
        PreconditionFailed: the hold ended or waits for a reviewer, the line may not spend, has too little
            available or has moved all it may.
    """
    purchase = work.hold(command.transaction_id)
    line = work.as_of_now(work.customer.line(purchase.line_id))
    require_currency(line.currency, command.currency)
    require_pending(purchase)
    require_reviewed(purchase)
    require_spendable(line, work.now_us)
    available = postings.available(line.books)
    if command.amount_minor > available:
        reason, message = "CREDIT_LIMIT_EXCEEDED", "more credit than the line has available"
        raise PreconditionFailed(reason, message, available_minor=str(available))
    postings.require_room(line.books, command.amount_minor)
    event = HoldIncremented(purchase.transaction_id, command.amount_minor)
    transfers = postings.authorise(command.amount_minor)
    return _reply(work, work.change_purchase(purchase, Happening(event, transfers)))


def void_hold(work: Work, command: VoidHold) -> HoldReply:
    """Give up what an open hold still reserves, under review or not."""
    purchase = work.hold(command.transaction_id)
    require_pending(purchase)
    remaining = purchase.remaining_minor
    happening = Happening(HoldVoided(purchase.transaction_id, remaining), postings.release(remaining))
    return _reply(work, work.change_purchase(purchase, happening))


def refund_capture(work: Work, command: RefundCapture) -> HoldReply:
    """Give captured money back: against what the purchase still owes, the rest to customer credit."""
    purchase = work.hold(command.transaction_id)
    require_currency(work.customer.line(purchase.line_id).currency, command.currency)
    to_principal, to_credit = plan_refund(purchase, command.amount_minor)
    event = CaptureRefunded(purchase.transaction_id, to_principal, to_credit)
    happening = Happening(event, postings.refund(to_principal, to_credit))
    return _reply(work, work.change_purchase(purchase, happening), to_credit)
