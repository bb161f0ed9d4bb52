"""
Health and reflection, through the same door as everything else.

Their protos cannot carry our scope option, so their scopes stand here. A health check tells nothing
but "serving", so any scope will do for it; but it too needs a credential.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import ReflectionServicer

from riskgate_server.domain.errors import NotFound, Unavailable
from riskgate_server.rpc.door import Call, Door, end_of_stream
from riskgate_server.rpc.reading import parsed
from riskgate_server.rpc.service import changed_or_due
from riskgate_server.scopes import SCOPES

HEALTH: Final[Any] = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION: Final[Any] = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

ANY_SCOPE: Final = frozenset(SCOPES)
SCOPES_OF: Final[dict[str, frozenset[str]]] = {
    HEALTH.full_name: ANY_SCOPE,
    REFLECTION.full_name: frozenset({"reflection:read"}),
}
"""Scopes of services whose protos are not ours: any one of the set lets a caller in."""


_SERVING: Final[Any] = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final[Any] = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final[Any] = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Serves `grpc.health.v1.Health`."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._statuses: dict[str, Any] = {}
        self._watchers: set[asyncio.Event] = set()
        self._ended = False

    def set_serving(self, *services: str, serving: bool) -> None:
        """Say whether services take calls; the empty name is the server as a whole."""
        self._statuses.update(dict.fromkeys(("", *services), _SERVING if serving else _NOT_SERVING))
        self._wake()

    def end(self) -> None:
        """End every watch, when all has been told: they would keep a stopping server waiting."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        for changed in self._watchers:
            changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        """Say how a service is now."""
        status = self._statuses.get(request.service)
        if status is None:
            raise NotFound("SERVICE_NOT_FOUND", "the server has no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Say how a service is, now and whenever that changes."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        told: Any = None
        try:
            while True:
                self._door.confirm(call.caller, call.scopes)
                status = self._statuses.get(request.service, _UNKNOWN)
                if status != told:
                    told = status
                    yield health_pb2.HealthCheckResponse(status=status)
                if self._ended:
                    raise Unavailable("SHUTTING_DOWN", "the server is stopping; nothing was done")
                await changed_or_due(changed)
        finally:
            self._watchers.discard(changed)


class Reflection:
    """Serves `grpc.reflection.v1alpha.ServerReflection` for the named services."""

    def __init__(self, services: tuple[str, ...], door: Door) -> None:
        self._door = door
        self._servicer = ReflectionServicer(services)

    async def ServerReflectionInfo(self, _incoming: Any, call: Call) -> AsyncIterator[Any]:
        """Describe services to clients that do not have the protos."""
        while (raw := await call.context.read()) is not end_of_stream:
            self._door.charge(self._door.confirm(call.caller, call.scopes))
            request: Any = parsed(reflection_pb2.ServerReflectionRequest, raw)
            for response in self._servicer.ServerReflectionInfo(iter([request]), call.context):
                yield response
