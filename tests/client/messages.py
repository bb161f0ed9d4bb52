"""Answers of the engine, as the contract has them."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from riskgate.common.v1 import money_pb2
from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.credit.v1 import ledger_service_pb2 as ledger_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb

NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


def stamp(time: datetime = NOON) -> Timestamp:
    written = Timestamp()
    written.FromDatetime(time)
    return written


def yuan(amount_minor: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="CNY", amount_minor=amount_minor)


def decision(transaction_id: str = "T1", request_id: str = "", **changes: object) -> risk_pb.Decision:
    message = risk_pb.Decision(
        decision_id=f"d-{transaction_id}",
        customer_id="ada",
        transaction_id=transaction_id,
        request_id=request_id,
        line_id="main",
        outcome=risk_pb.OUTCOME_APPROVE,
        requested_amount=yuan(12_900),
        held_amount=yuan(12_900),
        available_after=yuan(487_100),
        decide_time=stamp(),
        event_time=stamp(),
    )
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def checked(transaction_id: str = "T1") -> risk_pb.CheckTransactionResponse:
    return risk_pb.CheckTransactionResponse(decision=decision(transaction_id))


def line(available: int = 500_000, etag: str = "1") -> line_pb.CreditLine:
    return line_pb.CreditLine(
        line_id="main",
        customer_id="ada",
        product_id="consumer-revolving",
        state=line_pb.LINE_STATE_ACTIVE,
        limit=yuan(500_000),
        available=yuan(available),
        held=yuan(500_000 - available),
        outstanding=yuan(0),
        past_due=yuan(0),
        customer_credit=yuan(0),
        open_time=stamp(),
        time_zone="UTC",
        etag=etag,
    )


def got_line(available: int = 500_000) -> line_pb.GetCreditLineResponse:
    return line_pb.GetCreditLineResponse(credit_line=line(available))


def hold(hold_id: str = "T1") -> ledger_pb.Hold:
    nothing = yuan(0)
    return ledger_pb.Hold(
        hold_id=hold_id,
        customer_id="ada",
        line_id="main",
        state=ledger_pb.HOLD_STATE_PENDING,
        authorised=yuan(12_900),
        captured=nothing,
        released=nothing,
        expired=nothing,
        remaining=yuan(12_900),
        forced=nothing,
        refunded=nothing,
        principal=nothing,
        place_time=stamp(),
        expire_time=stamp(),
    )
