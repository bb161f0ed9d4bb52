"""Use cases of a repayment: book it, undo it."""

from __future__ import annotations

from riskgate_server.domain.errors import AlreadyExists, NotFound, PreconditionFailed
from riskgate_server.domain.journal import Happening, PaymentRecorded, PaymentReversed
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.repayment import Payment, PaymentState, allocate
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
        PreconditionFailed: the line has moved all it may, or the payment would repay more purchases than one may.
    """
    line = work.customer.line(command.line_id)
    require_currency(line.currency, command.currency)
    if work.payment(command.payment_id):
        reason, message = "PAYMENT_EXISTS", "the customer already has a payment of this id"
        raise AlreadyExists(reason, message, payment_id=command.payment_id)
    postings.require_room(line.books, command.amount_minor)
    owed = work.owed(line.line_id)
    allocations, rest = allocate(command.amount_minor, owed, most=work.bounds.shares)
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


def reverse_payment(work: Work, command: ReversePayment) -> PaymentReply:
    """
    Undo a repayment by entries that mirror it; may drive the line over its limit.

    Raises:
        NotFound: no such payment.
        PreconditionFailed: it was reversed before, or its credit has since left.
    """
    payment = work.payment(command.payment_id)
    if payment is None:
        reason, message = "PAYMENT_NOT_FOUND", "the customer has no such payment"
        raise NotFound(reason, message, payment_id=command.payment_id)
    if payment.state is PaymentState.REVERSED:
        reason, message = "PAYMENT_ALREADY_REVERSED", "the payment was reversed before"
        raise PreconditionFailed(reason, message, payment_id=command.payment_id)
    line = work.customer.line(payment.line_id)
    if payment.to_credit_minor > postings.customer_credit(line.books):
        reason, message = "PAYMENT_NOT_REVERSIBLE", "the customer credit it left has since been paid out"
        raise PreconditionFailed(reason, message, payment_id=command.payment_id)
    for share in payment.allocations:
        work.aggregate.purchases[share.transaction_id] = work.hold(share.transaction_id)
    work.aggregate.payments[payment.payment_id] = payment
    booked = postings.payment(payment.amount_minor - payment.to_credit_minor, payment.to_credit_minor)
    event = PaymentReversed(payment.payment_id, command.reason_code, command.actor_id)
    work.record(Happening(event, postings.mirror(booked)))
    return _reply(work, work.aggregate.payments[payment.payment_id])
