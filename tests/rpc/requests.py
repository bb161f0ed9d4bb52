"""Requests as tests need them: well formed, naming only what matters."""

from __future__ import annotations

from itertools import count
from typing import Any, Final

from riskgate.common.v1.money_pb2 import Money
from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.credit.v1 import ledger_service_pb2 as ledger_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from tests.rpc.calling import Api

CURRENCY: Final = "CNY"
CUSTOMER: Final = "ada"
LINE: Final = "main"
_ids = count(1)


def new_id() -> str:
    """An id nobody used before."""
    return f"id-{next(_ids)}"


def money(amount_minor: int, currency: str = CURRENCY) -> Money:
    return Money(currency_code=currency, amount_minor=amount_minor)


def opening(
    customer: str = CUSTOMER, limit: int = 100_000, currency: str = CURRENCY, **fields: Any
) -> line_pb.OpenCreditLineRequest:
    return line_pb.OpenCreditLineRequest(**{
        "request_id": new_id(), "customer_id": customer, "line_id": LINE, "limit": money(limit, currency),
        "decision_reference": "approval 1", "actor_id": "manager", **fields,
    })  # fmt: skip


def buying(
    customer: str = CUSTOMER, amount: int = 1_000, phone: str = "", currency: str = CURRENCY, **fields: Any
) -> risk_pb.CheckTransactionRequest:
    return risk_pb.CheckTransactionRequest(**{
        "request_id": new_id(), "customer_id": customer, "transaction_id": new_id(),
        "amount": money(amount, currency), "merchant": risk_pb.Merchant(merchant_id="shop"),
        "device": risk_pb.Device(device_id=phone), **fields,
    })  # fmt: skip


def resuming(
    transaction_id: str, grant: str, customer: str = CUSTOMER, **fields: Any
) -> risk_pb.CheckTransactionRequest:
    """A purchase that waited for a proof, and the proof."""
    return risk_pb.CheckTransactionRequest(**{
        "request_id": new_id(), "customer_id": customer, "transaction_id": transaction_id, "grant": grant, **fields,
    })  # fmt: skip


def capturing(
    hold_id: str, amount: int | None = None, currency: str = CURRENCY, **fields: Any
) -> ledger_pb.CaptureHoldRequest:
    return ledger_pb.CaptureHoldRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "hold_id": hold_id,
        "amount": None if amount is None else money(amount, currency), **fields,
    })  # fmt: skip


def raising(hold_id: str, amount: int, currency: str = CURRENCY, **fields: Any) -> ledger_pb.IncrementHoldRequest:
    return ledger_pb.IncrementHoldRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "hold_id": hold_id,
        "amount": money(amount, currency), **fields,
    })  # fmt: skip


def voiding(hold_id: str, **fields: Any) -> ledger_pb.VoidHoldRequest:
    return ledger_pb.VoidHoldRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "hold_id": hold_id, **fields,
    })  # fmt: skip


def refunding(hold_id: str, amount: int, currency: str = CURRENCY, **fields: Any) -> ledger_pb.RefundCaptureRequest:
    return ledger_pb.RefundCaptureRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "hold_id": hold_id,
        "amount": money(amount, currency), **fields,
    })  # fmt: skip


def paying(amount: int, currency: str = CURRENCY, **fields: Any) -> ledger_pb.RecordPaymentRequest:
    return ledger_pb.RecordPaymentRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "payment_id": new_id(),
        "amount": money(amount, currency), **fields,
    })  # fmt: skip


def returning(payment_id: str, **fields: Any) -> ledger_pb.ReversePaymentRequest:
    return ledger_pb.ReversePaymentRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "payment_id": payment_id,
        "reason_code": "RETURNED_BY_BANK", "actor_id": "clerk", **fields,
    })  # fmt: skip


def blocking(kind: line_pb.BlockKind.ValueType, **fields: Any) -> line_pb.PlaceBlockRequest:
    return line_pb.PlaceBlockRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "kind": kind, "reason_code": "ASKED_FOR",
        "actor_id": "analyst-1", "note": "as the customer asked", **fields,
    })  # fmt: skip


def lifting(block_id: str, **fields: Any) -> line_pb.LiftBlockRequest:
    return line_pb.LiftBlockRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "block_id": block_id, "actor_id": "analyst-1",
        "note": "it was the customer", **fields,
    })  # fmt: skip


def closing(**fields: Any) -> line_pb.CloseCreditLineRequest:
    return line_pb.CloseCreditLineRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "reason_code": "CUSTOMER_REQUEST", "actor_id": "clerk",
        **fields,
    })  # fmt: skip


def annotating(decision_id: str, **fields: Any) -> risk_pb.AnnotateDecisionRequest:
    return risk_pb.AnnotateDecisionRequest(**{
        "request_id": new_id(), "customer_id": CUSTOMER, "decision_id": decision_id,
        "label": risk_pb.LABEL_CHARGEBACK, "actor_id": "disputes", **fields,
    })  # fmt: skip


# --- Whole steps ---


def open_line(api: Api, customer: str = CUSTOMER, limit: int = 100_000, **fields: Any) -> line_pb.CreditLine:
    return api.lines.OpenCreditLine(opening(customer, limit, **fields)).credit_line


def buy(api: Api, customer: str = CUSTOMER, amount: int = 1_000, phone: str = "", **fields: Any) -> risk_pb.Decision:
    return api.risk.CheckTransaction(buying(customer, amount, phone, **fields)).decision


def hold(api: Api, amount: int = 1_000, **fields: Any) -> str:
    """Buy and return the hold's id."""
    decision = buy(api, amount=amount, **fields)
    assert decision.held_amount.amount_minor
    return decision.transaction_id


def line_of(api: Api, customer: str = CUSTOMER, line_id: str = "") -> line_pb.CreditLine:
    return api.lines.GetCreditLine(line_pb.GetCreditLineRequest(customer_id=customer, line_id=line_id)).credit_line


def hold_of(api: Api, hold_id: str, customer: str = CUSTOMER) -> ledger_pb.Hold:
    return api.ledger.GetHold(ledger_pb.GetHoldRequest(customer_id=customer, hold_id=hold_id)).hold


def entries_of(api: Api, customer: str = CUSTOMER) -> list[ledger_pb.JournalEntry]:
    return list(api.ledger.ListEntries(ledger_pb.ListEntriesRequest(customer_id=customer, page_size=500)).entries)
