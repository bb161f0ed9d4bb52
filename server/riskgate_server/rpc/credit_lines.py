"""CreditLineService: opens, shows, blocks and closes credit lines."""

from __future__ import annotations

from collections.abc import AsyncIterator

from riskgate.credit.v1 import credit_line_service_pb2 as pb
from riskgate_server.domain.credit.line import BlockKind
from riskgate_server.engine.commands import CloseCreditLine, LiftBlock, OpenCreditLine, PlaceBlock
from riskgate_server.engine.replies import LineReply
from riskgate_server.rpc.convert import amount_from, block_to_proto, line_to_proto, mark_from, time_from, time_zone_from
from riskgate_server.rpc.door import Call
from riskgate_server.rpc.service import Rooms, key_of
from riskgate_server.rpc.watching import LineWatches
from riskgate_server.scopes import lift_scope

DEFAULT_PRODUCT = "consumer-revolving"


class CreditLineServicer:
    """Serves `riskgate.credit.v1.CreditLineService`."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._watches = LineWatches(rooms)

    async def _submit(self, command: OpenCreditLine | PlaceBlock | LiftBlock | CloseCreditLine) -> LineReply:
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, LineReply)
        return reply

    async def OpenCreditLine(self, request: pb.OpenCreditLineRequest, call: Call) -> pb.OpenCreditLineResponse:
        """Open a line with a limit."""
        command = OpenCreditLine(
            **self._rooms.head(request, call),
            event_us=self._rooms.event_time(time_from(request, "event_time"), call),
            line_id=request.line_id,
            currency=request.limit.currency_code,
            limit_minor=amount_from(request.limit, "limit"),
            product_id=request.product_id or DEFAULT_PRODUCT,
            time_zone=time_zone_from(request.time_zone),
            decision_reference=request.decision_reference,
            actor_id=request.actor_id,
        )
        return pb.OpenCreditLineResponse(credit_line=line_to_proto(await self._submit(command)))

    async def GetCreditLine(self, request: pb.GetCreditLineRequest, call: Call) -> pb.GetCreditLineResponse:
        """Return one line as it stands now."""
        rooms = self._rooms
        reply = await rooms.readers.ask(rooms.queries.credit_line, key_of(request, call), request.line_id)
        return pb.GetCreditLineResponse(credit_line=line_to_proto(reply))

    async def ListCreditLines(self, request: pb.ListCreditLinesRequest, call: Call) -> pb.ListCreditLinesResponse:
        """List the lines of one customer."""
        replies = await self._rooms.readers.ask(self._rooms.queries.credit_lines, key_of(request, call))
        return pb.ListCreditLinesResponse(credit_lines=map(line_to_proto, replies))

    async def WatchCreditLine(
        self, request: pb.WatchCreditLineRequest, call: Call
    ) -> AsyncIterator[pb.WatchCreditLineResponse]:
        """Send the line as it stands, then again after every change."""
        rooms = self._rooms
        key = key_of(request, call)
        told = pb.CreditLine()
        with rooms.feed.customer(key) as changed, rooms.gateway.closing(changed.set):
            while True:
                rooms.door.confirm(call.caller, call.scopes)
                reply = await self._watches.line(key, request.line_id)
                line = line_to_proto(reply)
                # Time alone changes a line too: a block lapses without an entry.
                if line != told:
                    told = line
                    yield pb.WatchCreditLineResponse(credit_line=line)
                await rooms.change(changed)

    async def PlaceBlock(self, request: pb.PlaceBlockRequest, call: Call) -> pb.PlaceBlockResponse:
        """Stop new spending."""
        command = PlaceBlock(
            **self._rooms.head(request, call),
            line_id=request.line_id,
            kind=BlockKind(request.kind),
            reason_code=request.reason_code,
            actor_id=request.actor_id,
            note=request.note,
            expires_us=time_from(request, "expire_time"),
        )
        reply = await self._submit(command)
        assert reply.block is not None
        return pb.PlaceBlockResponse(block=block_to_proto(reply.block), credit_line=line_to_proto(reply))

    async def LiftBlock(self, request: pb.LiftBlockRequest, call: Call) -> pb.LiftBlockResponse:
        """Lift one named block, or agree to it as the first of two people."""
        command = LiftBlock(
            **self._rooms.head(request, call),
            line_id=request.line_id,
            block_id=request.block_id,
            actor_id=request.actor_id,
            note=request.note,
            liftable=frozenset(kind for kind in BlockKind if call.caller.may(lift_scope(kind))),
            grant=mark_from(request.grant),
        )
        reply = await self._submit(command)
        assert reply.block is not None
        return pb.LiftBlockResponse(
            lifted=reply.lifted, block=block_to_proto(reply.block), credit_line=line_to_proto(reply)
        )

    async def CloseCreditLine(self, request: pb.CloseCreditLineRequest, call: Call) -> pb.CloseCreditLineResponse:
        """Close a line that owes nothing."""
        command = CloseCreditLine(
            **self._rooms.head(request, call),
            line_id=request.line_id,
            reason_code=request.reason_code,
            actor_id=request.actor_id,
        )
        return pb.CloseCreditLineResponse(credit_line=line_to_proto(await self._submit(command)))
