"""Use cases of a repayment: book it, undo it; and how money owed to the customer is used."""

from __future__ import annotations

from riskgate_server.domain.errors import AlreadyExists, NotFound, PreconditionFailed
from riskgate_server.domain.events import CreditUsed, Happening, PaymentRecorded, PaymentReversed
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.repayment import Payment, PaymentState, allocate, plan_use
from riskgate_server.engine.commands import RecordPayment, ReversePayment
from riskgate_server.engine.purchases import require_currency
from riskgate_server.engine.replies import PaymentReply
from riskgate_server.engine.work import Work


def _reply(work: Work, payment: Payment) -> PaymentReply:
    line = work.customer.line(payment.line_id)
    return PaymentReply(work.key, line.currency, payment, postings.available(work.as_of_now(line).books))


def record_payment(work: Work, command: RecordPayment) -> PaymentReply:
    """
    Book a repayment: the oldest purchase first, what is left over to customer credit.

    Raises:
        AlreadyExists: the payment id is taken.
        PreconditionFailed: the line has moved all it may, the payment would repay more purchases than one may, or too
            many payments left credit already.
    """
    line = work.customer.line(command.line_id)
    require_currency(line.currency, command.currency)
    if work.payment(command.payment_id):
        reason, message = "PAYMENT_EXISTS", "the customer already has a payment of this id"
        raise AlreadyExists(reason, message, payment_id=command.payment_id)
    postings.require_room(line.books, command.amount_minor)
    owed = work.owed(line.line_id)
    allocations, rest = allocate(command.amount_minor, owed, most=work.bounds.shares)
    if rest and len(line.credits) >= work.bounds.credits:
        reason, message = "BOUND_REACHED", "more is paid than is owed, and too many payments left credit already"
        raise PreconditionFailed(reason, message, allocatable_minor=str(command.amount_minor - rest))
    event = PaymentRecorded(
        line_id=line.line_id,
        payment_id=command.payment_id,
        amount_minor=command.amount_minor,
        allocations=allocations,
        to_credit_minor=rest,
        value_us=command.value_us or work.now_us,
    )
    repaid = {share.transaction_id for share in allocations}
    work.aggregate.purchases.update((p.transaction_id, p) for p in owed if p.transaction_id in repaid)
    work.record(Happening(event, postings.payment(command.amount_minor - rest, rest)))
    return _reply(work, work.aggregate.payments[command.payment_id])


def use_credit(work: Work, line_id: str) -> None:
    """Let money owed to the customer repay what they owe on the line, by an entry of its own."""
    line = work.customer.line(line_id)
    if not line.credits:
        return
    payments = {c.payment_id: work.payment(c.payment_id) for c in line.credits if c.payment_id}
    behind = {payment_id: payment for payment_id, payment in payments.items() if payment}
    shares = {payment_id: len(payment.allocations) for payment_id, payment in behind.items()}
    owed = work.owed(line_id)
    uses = plan_use(line.credits, owed, shares=shares, most=work.bounds.shares)
    if not uses:
        return
    repaid = {use.transaction_id for use in uses}
    work.aggregate.purchases.update((p.transaction_id, p) for p in owed if p.transaction_id in repaid)
    work.aggregate.payments.update((u.payment_id, behind[u.payment_id]) for u in uses if u.payment_id)
    amount = sum(use.amount_minor for use in uses)
    work.record(Happening(CreditUsed(line_id, uses), postings.use_credit(amount)))


def reverse_payment(work: Work, command: ReversePayment) -> PaymentReply:
    """
    Undo a repayment by entries that mirror it, then let what credit is left repay what is owed again.

    May drive the line over its limit.

    Raises:
        NotFound: no such payment.
        PreconditionFailed: it was reversed before.
    """
    payment = work.payment(command.payment_id)
    if payment is None:
        reason, message = "PAYMENT_NOT_FOUND", "the customer has no such payment"
        raise NotFound(reason, message, payment_id=command.payment_id)
    if payment.state is PaymentState.REVERSED:
        reason, message = "PAYMENT_ALREADY_REVERSED", "the payment was reversed before"
        raise PreconditionFailed(reason, message, payment_id=command.payment_id)
    for share in payment.allocations:
        work.aggregate.purchases[share.transaction_id] = work.hold(share.transaction_id)
    work.aggregate.payments[payment.payment_id] = payment
    booked = postings.payment(payment.amount_minor - payment.to_credit_minor, payment.to_credit_minor)
    event = PaymentReversed(payment.payment_id, command.reason_code, command.actor_id)
    work.record(Happening(event, postings.mirror(booked)))
    use_credit(work, payment.line_id)
    return _reply(work, work.aggregate.payments[payment.payment_id])
