"""Calls of CreditLineService: open, show, block and close credit lines."""

from __future__ import annotations

import datetime as dt
from typing import Final, Unpack

from riskgate.credit.v1 import credit_line_service_pb2 as pb
from riskgate.credit.v1.credit_line_service_pb2_grpc import CreditLineServiceStub
from riskgate_client.call import (
    Call,
    CommandOptions,
    QuestionOptions,
    Verbs,
    WatchStep,
    money,
    timestamp,
    tuple_of,
)
from riskgate_client.reading import number_of, only, reader
from riskgate_client.values import BlockKind, CreditLine, LiftedBlock, Money, PlacedBlock

_lines: Final = Verbs(CreditLineServiceStub)
_line: Final = only("credit_line", CreditLine)


def open(  # noqa: A001 - a line is opened
    *,
    customer_id: str,
    line_id: str,
    limit: Money,
    decision_reference: str,
    actor_id: str,
    time_zone: str = "",
    product_id: str = "",
    event_time: dt.datetime | None = None,
    **options: Unpack[CommandOptions],
) -> Call[CreditLine]:
    """Open a line with a limit, and the customer too, when this is their first line."""
    request = pb.OpenCreditLineRequest(
        customer_id=customer_id,
        line_id=line_id,
        limit=money(limit, "limit"),
        time_zone=time_zone,
        product_id=product_id,
        decision_reference=decision_reference,
        actor_id=actor_id,
        event_time=timestamp(event_time),
    )
    return _lines.command("OpenCreditLine", request, _line, options)


def get(customer_id: str, line_id: str = "", **options: Unpack[QuestionOptions]) -> Call[CreditLine]:
    """Return limit, available credit, state and blocks of a line as of now."""
    request = pb.GetCreditLineRequest(customer_id=customer_id, line_id=line_id)
    return _lines.question("GetCreditLine", request, _line, options)


def list(customer_id: str, **options: Unpack[QuestionOptions]) -> Call[tuple[CreditLine, ...]]:  # noqa: A001
    """List the lines of one customer, oldest first."""
    request = pb.ListCreditLinesRequest(customer_id=customer_id)
    return _lines.question("ListCreditLines", request, tuple_of("credit_lines", reader(CreditLine)), options)


def watch(customer_id: str, line_id: str = "", **options: Unpack[QuestionOptions]) -> Call[WatchStep[CreditLine]]:
    """Follow a line: as it stands, then again after every change. Quick changes may be told once."""
    request = pb.WatchCreditLineRequest(customer_id=customer_id, line_id=line_id)
    return _lines.question("WatchCreditLine", request, lambda response: WatchStep(_line(response)), options)


def place_block(
    *,
    customer_id: str,
    kind: BlockKind,
    reason_code: str,
    actor_id: str,
    note: str,
    line_id: str = "",
    expire_time: dt.datetime | None = None,
    **options: Unpack[CommandOptions],
) -> Call[PlacedBlock]:
    """Stop new spending on a line for a stated reason."""
    request = pb.PlaceBlockRequest(
        customer_id=customer_id,
        line_id=line_id,
        kind=number_of("kind", kind, BlockKind),  # type: ignore[arg-type]  # a number of the contract's
        reason_code=reason_code,
        actor_id=actor_id,
        note=note,
        expire_time=timestamp(expire_time),
    )
    return _lines.command("PlaceBlock", request, reader(PlacedBlock), options)


def lift_block(
    *,
    customer_id: str,
    block_id: str,
    actor_id: str,
    note: str,
    line_id: str = "",
    grant: str = "",
    **options: Unpack[CommandOptions],
) -> Call[LiftedBlock]:
    """
    Lift one block, or agree to it as the first of two people (`lifted` is then False).

    With a `grant` for UNLOCK customers lift their own lock, or a soft fraud block, themselves.
    """
    request = pb.LiftBlockRequest(
        customer_id=customer_id, line_id=line_id, block_id=block_id, actor_id=actor_id, note=note, grant=grant
    )
    return _lines.command("LiftBlock", request, reader(LiftedBlock), options)


def close(
    *,
    customer_id: str,
    actor_id: str,
    reason_code: str,
    line_id: str = "",
    **options: Unpack[CommandOptions],
) -> Call[CreditLine]:
    """Close a line that owes nothing, holds nothing and is owed nothing."""
    request = pb.CloseCreditLineRequest(
        customer_id=customer_id, line_id=line_id, actor_id=actor_id, reason_code=reason_code
    )
    return _lines.command("CloseCreditLine", request, _line, options)


def accept_offer(
    *,
    customer_id: str,
    offer_id: str,
    actor_id: str,
    line_id: str = "",
    **options: Unpack[CommandOptions],
) -> Call[CreditLine]:
    """Take up an offered higher limit with the customer's consent."""
    request = pb.AcceptLimitOfferRequest(customer_id=customer_id, line_id=line_id, offer_id=offer_id, actor_id=actor_id)
    return _lines.command("AcceptLimitOffer", request, _line, options)
