"""
Health and reflection, through the same door as everything else.

Their protos cannot carry our scope option, so their scopes stand here. A health check tells nothing
but "serving", so any scope will do for it; but it too needs a credential.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import ReflectionServicer

from riskgate_server.domain.errors import InvalidRequest
from riskgate_server.rpc.door import Call, end_of_stream
from riskgate_server.scopes import SCOPES

HEALTH: Final[Any] = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION: Final[Any] = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

ANY_SCOPE: Final = frozenset(SCOPES)
SCOPES_OF: Final[dict[str, frozenset[str]]] = {
    HEALTH.full_name: ANY_SCOPE,
    REFLECTION.full_name: frozenset({"reflection:read"}),
}
"""Scopes of services whose protos are not ours: any one of the set lets a caller in."""


class Health:
    """Serves `grpc.health.v1.Health`."""

    def __init__(self) -> None:
        self._servicer = HealthServicer()

    async def set_serving(self, *services: str, serving: bool) -> None:
        """Say whether services take calls; the empty name is the server as a whole."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *services):
            await self._servicer.set(service, status)

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        """Say how a service is now."""
        response: health_pb2.HealthCheckResponse = await self._servicer.Check(request, call.context)
        return response

    async def Watch(self, request: health_pb2.HealthCheckRequest, call: Call) -> AsyncIterator[Any]:
        """Say how a service is, now and whenever that changes. The library's servicer writes by itself."""
        await self._servicer.Watch(request, call.context)
        nothing: tuple[health_pb2.HealthCheckResponse, ...] = ()
        for response in nothing:
            yield response


class Reflection:
    """Serves `grpc.reflection.v1alpha.ServerReflection` for the named services."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._servicer = ReflectionServicer(services)

    async def ServerReflectionInfo(self, _incoming: Any, call: Call) -> AsyncIterator[Any]:
        """Describe services to clients that do not have the protos."""
        while (raw := await call.context.read()) is not end_of_stream:
            try:
                request = reflection_pb2.ServerReflectionRequest.FromString(raw)
            except DecodeError:
                raise InvalidRequest("MESSAGE_MALFORMED", "the bytes are not a message of this type") from None
            for response in self._servicer.ServerReflectionInfo(iter([request]), call.context):
                yield response
