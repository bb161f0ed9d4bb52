"""Use cases of a hold after it was placed: capture, increment, void, refund."""

from __future__ import annotations

from riskgate_server.domain.credit.line import require_spendable
from riskgate_server.domain.errors import PreconditionFailed
from riskgate_server.domain.events import CaptureRefunded, Happening, HoldCaptured, HoldIncremented, HoldVoided
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.holds import (
    Purchase,
    plan_capture,
    require_pending,
    require_refundable,
    require_reviewed,
)
from riskgate_server.domain.ledger.repayment import allocate
from riskgate_server.engine.commands import CaptureHold, IncrementHold, RefundCapture, VoidHold
from riskgate_server.engine.payments import use_credit
from riskgate_server.engine.purchases import require_currency
from riskgate_server.engine.replies import HoldReply
from riskgate_server.engine.work import Work


def _reply(work: Work, purchase: Purchase, to_credit_minor: int = 0) -> HoldReply:
    return HoldReply(work.key, work.customer.line(purchase.line_id).currency, purchase, to_credit_minor)


def capture_hold(work: Work, command: CaptureHold) -> HoldReply:
    """
    Take all or part of a hold. Never asks what happened to the line since: an approved hold is honoured.

    What is captured is repaid at once as far as money is owed to the customer.
    """
    purchase = work.hold(command.transaction_id)
    if command.amount_minor is not None:
        require_currency(work.customer.line(purchase.line_id).currency, command.currency)
    terms = plan_capture(purchase, amount_minor=command.amount_minor, final=command.final, force=command.force)
    event = HoldCaptured(purchase.transaction_id, terms.captured_minor, terms.released_minor, terms.forced)
    if terms.forced:
        transfers = postings.draw(terms.captured_minor)
    else:
        transfers = postings.capture(terms.captured_minor, terms.released_minor)
    work.change_purchase(purchase, Happening(event, transfers))
    use_credit(work, purchase.line_id)
    return _reply(work, work.aggregate.purchases[purchase.transaction_id])


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
    """
    Give captured money back: against what the purchase still owes, then the oldest others, the rest to the customer.

    Raises:
        PreconditionFailed: more than was captured and not yet refunded, or it would repay too many purchases at once.
    """
    purchase = work.hold(command.transaction_id)
    require_currency(work.customer.line(purchase.line_id).currency, command.currency)
    require_refundable(purchase, command.amount_minor)
    others = [] if command.amount_minor <= purchase.principal_minor else work.owed(purchase.line_id)
    others = [other for other in others if other.transaction_id != purchase.transaction_id]
    shares, to_credit = allocate(command.amount_minor, (purchase, *others), most=work.bounds.shares)
    own = sum(share.amount_minor for share in shares if share.transaction_id == purchase.transaction_id)
    to_others = shares[1:] if own else shares
    repaid = {share.transaction_id for share in to_others}
    work.aggregate.purchases.update((p.transaction_id, p) for p in others if p.transaction_id in repaid)
    event = CaptureRefunded(purchase.transaction_id, own, to_credit, to_others)
    happening = Happening(event, postings.refund(command.amount_minor - to_credit, to_credit))
    return _reply(work, work.change_purchase(purchase, happening), to_credit)
