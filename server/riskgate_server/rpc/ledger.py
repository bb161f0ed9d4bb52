"""LedgerService: moves money on credit lines, and shows every movement."""

from __future__ import annotations

from typing import Final

from riskgate.credit.v1 import ledger_service_pb2 as pb
from riskgate_server.domain.errors import PermissionRefused
from riskgate_server.engine.commands import (
    CaptureHold,
    IncrementHold,
    RecordPayment,
    RefundCapture,
    ReversePayment,
    VoidHold,
)
from riskgate_server.engine.queries import sequence_of
from riskgate_server.engine.replies import HoldReply, PaymentReply
from riskgate_server.rpc.convert import (
    amount_from,
    entry_to_proto,
    hold_to_proto,
    money,
    optional_amount_from,
    payment_to_proto,
    time_from,
)
from riskgate_server.rpc.door import Call
from riskgate_server.rpc.service import Rooms, key_of, page_size_of

FORCE_SCOPE: Final = "ledger:force"


class LedgerServicer:
    """Serves `riskgate.credit.v1.LedgerService`; statements, instalments and waivers come with billing."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def _hold(self, command: CaptureHold | IncrementHold | VoidHold | RefundCapture) -> HoldReply:
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, HoldReply)
        return reply

    async def _payment(self, command: RecordPayment | ReversePayment) -> PaymentReply:
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, PaymentReply)
        return reply

    async def CaptureHold(self, request: pb.CaptureHoldRequest, call: Call) -> pb.CaptureHoldResponse:
        """Take all or part of a hold; after its end only by who may force."""
        if request.force and not call.caller.may(FORCE_SCOPE):
            raise PermissionRefused("SCOPE_MISSING", "a forced capture needs a scope of its own", scope=FORCE_SCOPE)
        amount_minor, currency = optional_amount_from(request, "amount")
        command = CaptureHold(
            **self._rooms.head(request, call),
            transaction_id=request.hold_id,
            amount_minor=amount_minor,
            currency=currency,
            final=request.final,
            force=request.force,
        )
        return pb.CaptureHoldResponse(hold=hold_to_proto(await self._hold(command)))

    async def IncrementHold(self, request: pb.IncrementHoldRequest, call: Call) -> pb.IncrementHoldResponse:
        """Raise an open hold."""
        command = IncrementHold(
            **self._rooms.head(request, call),
            transaction_id=request.hold_id,
            amount_minor=amount_from(request.amount, "amount"),
            currency=request.amount.currency_code,
        )
        return pb.IncrementHoldResponse(hold=hold_to_proto(await self._hold(command)))

    async def VoidHold(self, request: pb.VoidHoldRequest, call: Call) -> pb.VoidHoldResponse:
        """Give up what a hold still reserves."""
        command = VoidHold(**self._rooms.head(request, call), transaction_id=request.hold_id)
        return pb.VoidHoldResponse(hold=hold_to_proto(await self._hold(command)))

    async def RefundCapture(self, request: pb.RefundCaptureRequest, call: Call) -> pb.RefundCaptureResponse:
        """Give captured money back."""
        command = RefundCapture(
            **self._rooms.head(request, call),
            transaction_id=request.hold_id,
            amount_minor=amount_from(request.amount, "amount"),
            currency=request.amount.currency_code,
        )
        reply = await self._hold(command)
        return pb.RefundCaptureResponse(
            hold=hold_to_proto(reply), to_customer_credit=money(reply.currency, reply.to_credit_minor)
        )

    async def RecordPayment(self, request: pb.RecordPaymentRequest, call: Call) -> pb.RecordPaymentResponse:
        """Book a repayment."""
        command = RecordPayment(
            **self._rooms.head(request, call),
            line_id=request.line_id,
            payment_id=request.payment_id,
            amount_minor=amount_from(request.amount, "amount"),
            currency=request.amount.currency_code,
            value_us=time_from(request, "value_time"),
        )
        reply = await self._payment(command)
        return pb.RecordPaymentResponse(
            payment=payment_to_proto(reply), available=money(reply.currency, reply.available_minor)
        )

    async def ReversePayment(self, request: pb.ReversePaymentRequest, call: Call) -> pb.ReversePaymentResponse:
        """Undo a repayment that was returned."""
        command = ReversePayment(
            **self._rooms.head(request, call),
            payment_id=request.payment_id,
            reason_code=request.reason_code,
            actor_id=request.actor_id,
        )
        reply = await self._payment(command)
        return pb.ReversePaymentResponse(
            payment=payment_to_proto(reply), available=money(reply.currency, reply.available_minor)
        )

    async def GetHold(self, request: pb.GetHoldRequest, call: Call) -> pb.GetHoldResponse:
        """Return one hold as it stands now."""
        reply = await self._rooms.readers.ask(self._rooms.queries.hold, key_of(request, call), request.hold_id)
        return pb.GetHoldResponse(hold=hold_to_proto(reply))

    async def ListHolds(self, request: pb.ListHoldsRequest, call: Call) -> pb.ListHoldsResponse:
        """List the holds of one customer."""
        holds, more = await self._rooms.readers.ask(
            self._rooms.queries.holds,
            key_of(request, call),
            after=request.page_token,
            limit=page_size_of(request),
            only_pending=request.only_pending,
        )
        return pb.ListHoldsResponse(holds=map(hold_to_proto, holds), next_page_token=more)

    async def ListEntries(self, request: pb.ListEntriesRequest, call: Call) -> pb.ListEntriesResponse:
        """List the journal of one customer."""
        entries, more = await self._rooms.readers.ask(
            self._rooms.queries.entries,
            key_of(request, call),
            after=sequence_of(request.page_token),
            limit=page_size_of(request),
        )
        return pb.ListEntriesResponse(entries=map(entry_to_proto, entries), next_page_token=str(more or ""))
