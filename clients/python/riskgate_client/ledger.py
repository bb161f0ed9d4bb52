"""Calls of LedgerService: holds, captures, refunds, payments and the entries they leave."""

from __future__ import annotations

import datetime as dt
from typing import Final, Unpack

from riskgate.credit.v1 import ledger_service_pb2 as pb
from riskgate.credit.v1.ledger_service_pb2_grpc import LedgerServiceStub
from riskgate_client.call import (
    Call,
    CommandOptions,
    QuestionOptions,
    Verbs,
    money,
    page_of,
    timestamp,
    tuple_of,
)
from riskgate_client.reading import only, reader
from riskgate_client.values import (
    Hold,
    Installment,
    JournalEntry,
    Money,
    Page,
    PaymentReceipt,
    Refund,
    Statement,
)

_ledger: Final = Verbs(LedgerServiceStub)
_hold: Final = only("hold", Hold)


def capture(
    *,
    customer_id: str,
    hold_id: str,
    amount: Money | None = None,
    final: bool = False,
    force: bool = False,
    **options: Unpack[CommandOptions],
) -> Call[Hold]:
    """Take all that remains of a hold, or `amount` of it; `final` releases the rest, `force` posts after its end."""
    request = pb.CaptureHoldRequest(
        customer_id=customer_id, hold_id=hold_id, amount=money(amount), final=final, force=force
    )
    return _ledger.command("CaptureHold", request, _hold, options)


def increment(*, customer_id: str, hold_id: str, amount: Money, **options: Unpack[CommandOptions]) -> Call[Hold]:
    """Raise an open hold by `amount` within the available credit."""
    request = pb.IncrementHoldRequest(customer_id=customer_id, hold_id=hold_id, amount=money(amount))
    return _ledger.command("IncrementHold", request, _hold, options)


def void(*, customer_id: str, hold_id: str, **options: Unpack[CommandOptions]) -> Call[Hold]:
    """Give up what a hold still reserves."""
    request = pb.VoidHoldRequest(customer_id=customer_id, hold_id=hold_id)
    return _ledger.command("VoidHold", request, _hold, options)


def refund(*, customer_id: str, hold_id: str, amount: Money, **options: Unpack[CommandOptions]) -> Call[Refund]:
    """Give captured money back."""
    request = pb.RefundCaptureRequest(customer_id=customer_id, hold_id=hold_id, amount=money(amount))
    return _ledger.command("RefundCapture", request, reader(Refund), options)


def record_payment(
    *,
    customer_id: str,
    payment_id: str,
    amount: Money,
    line_id: str = "",
    value_time: dt.datetime | None = None,
    **options: Unpack[CommandOptions],
) -> Call[PaymentReceipt]:
    """Book a repayment: the oldest purchase first, what is left over to customer credit."""
    request = pb.RecordPaymentRequest(
        customer_id=customer_id,
        line_id=line_id,
        payment_id=payment_id,
        amount=money(amount),
        value_time=timestamp(value_time),
    )
    return _ledger.command("RecordPayment", request, reader(PaymentReceipt), options)


def reverse_payment(
    *,
    customer_id: str,
    payment_id: str,
    reason_code: str,
    actor_id: str,
    **options: Unpack[CommandOptions],
) -> Call[PaymentReceipt]:
    """Undo a repayment that was returned."""
    request = pb.ReversePaymentRequest(
        customer_id=customer_id, payment_id=payment_id, reason_code=reason_code, actor_id=actor_id
    )
    return _ledger.command("ReversePayment", request, reader(PaymentReceipt), options)


def convert_to_installments(
    *, customer_id: str, hold_id: str, installments: int, **options: Unpack[CommandOptions]
) -> Call[tuple[Installment, ...]]:
    """Turn a captured purchase into instalments, earliest first."""
    request = pb.ConvertToInstallmentsRequest(customer_id=customer_id, hold_id=hold_id, installments=installments)
    return _ledger.command("ConvertToInstallments", request, tuple_of("installments", reader(Installment)), options)


def waive_charge(
    *,
    customer_id: str,
    charge_id: str,
    amount: Money,
    reason_code: str,
    actor_id: str,
    **options: Unpack[CommandOptions],
) -> Call[Money]:
    """Give up a fee, interest or penalty, and return what is still owed of it."""
    request = pb.WaiveChargeRequest(
        customer_id=customer_id,
        charge_id=charge_id,
        amount=money(amount),
        reason_code=reason_code,
        actor_id=actor_id,
    )
    return _ledger.command("WaiveCharge", request, only("remaining", Money), options)


def get_hold(*, customer_id: str, hold_id: str, **options: Unpack[QuestionOptions]) -> Call[Hold]:
    """Return one hold as of now."""
    request = pb.GetHoldRequest(customer_id=customer_id, hold_id=hold_id)
    return _ledger.question("GetHold", request, _hold, options)


def list_holds(
    *,
    customer_id: str,
    only_pending: bool = False,
    page_size: int = 0,
    page_token: str = "",
    **options: Unpack[QuestionOptions],
) -> Call[Page[Hold]]:
    """List the holds of one customer by transaction id."""
    request = pb.ListHoldsRequest(
        customer_id=customer_id, only_pending=only_pending, page_size=page_size, page_token=page_token
    )
    return _ledger.question("ListHolds", request, page_of("holds", reader(Hold)), options)


def list_entries(
    *, customer_id: str, page_size: int = 0, page_token: str = "", **options: Unpack[QuestionOptions]
) -> Call[Page[JournalEntry]]:
    """List the journal of one customer, oldest first."""
    request = pb.ListEntriesRequest(customer_id=customer_id, page_size=page_size, page_token=page_token)
    return _ledger.question("ListEntries", request, page_of("entries", reader(JournalEntry)), options)


def get_statement(*, customer_id: str, statement_id: str, **options: Unpack[QuestionOptions]) -> Call[Statement]:
    """Return one statement as it was issued."""
    request = pb.GetStatementRequest(customer_id=customer_id, statement_id=statement_id)
    return _ledger.question("GetStatement", request, only("statement", Statement), options)


def list_statements(
    *,
    customer_id: str,
    line_id: str = "",
    page_size: int = 0,
    page_token: str = "",
    **options: Unpack[QuestionOptions],
) -> Call[Page[Statement]]:
    """List the statements of one line, newest first."""
    request = pb.ListStatementsRequest(
        customer_id=customer_id, line_id=line_id, page_size=page_size, page_token=page_token
    )
    return _ledger.question("ListStatements", request, page_of("statements", reader(Statement)), options)
