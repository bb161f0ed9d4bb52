"""CustomerService: looks after customers as people."""

from __future__ import annotations

from riskgate.operations.v1 import customer_service_pb2 as pb
from riskgate_server.domain.errors import Unavailable
from riskgate_server.engine.commands import EraseCustomer
from riskgate_server.engine.failures import StoreInUse
from riskgate_server.engine.replies import RevokedReply
from riskgate_server.rpc.convert import stamp
from riskgate_server.rpc.door import Call
from riskgate_server.rpc.service import Rooms


class CustomerServicer:
    """Serves `riskgate.operations.v1.CustomerService`."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def EraseCustomer(self, request: pb.EraseCustomerRequest, call: Call) -> pb.EraseCustomerResponse:
        """Forget a customer."""
        command = EraseCustomer(
            **self._rooms.head(request, call), reason_code=request.reason_code, actor_id=request.actor_id
        )
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, RevokedReply)
        try:
            # After the commit, and again when the request is repeated: whatever was interrupted is finished.
            await self._rooms.readers.ask(self._rooms.erase, reply.key, reply.at_us)
        except StoreInUse:
            message = "the key is destroyed, but a reader still holds a copy; repeat the same request id"
            raise Unavailable("OUTCOME_UNKNOWN", message) from None
        return pb.EraseCustomerResponse(erase_time=stamp(reply.at_us))
