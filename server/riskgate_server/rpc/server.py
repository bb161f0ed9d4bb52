"""The gRPC server: two ports with TLS, limits that close abusive connections, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import grpc
import msgspec
from google.protobuf.descriptor import ServiceDescriptor

from riskgate.credit.v1 import assessment_service_pb2, credit_line_service_pb2, ledger_service_pb2
from riskgate.identity.v1 import device_service_pb2, otp_service_pb2
from riskgate.operations.v1 import (
    audit_service_pb2,
    caller_service_pb2,
    case_service_pb2,
    customer_service_pb2,
    list_service_pb2,
    ruleset_service_pb2,
)
from riskgate.risk.v1 import risk_service_pb2
from riskgate_server.rpc.credit_lines import CreditLineServicer
from riskgate_server.rpc.customers import CustomerServicer
from riskgate_server.rpc.devices import DeviceServicer
from riskgate_server.rpc.ledger import LedgerServicer
from riskgate_server.rpc.otp import OtpServicer
from riskgate_server.rpc.reading import MESSAGE_BYTES_MAX
from riskgate_server.rpc.risk import RiskServicer
from riskgate_server.rpc.service import Rooms
from riskgate_server.rpc.standard import HEALTH, REFLECTION, SCOPES_OF, Health, Reflection

LINGER_SECONDS: Final = 0.2
"""How long a server that is done still tells late calls to go elsewhere."""

METADATA_BYTES_MAX: Final = 16 * 1024

OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    # One connection may not occupy the server: a rapid-reset loop found 100 harmless and the default not.
    ("grpc.max_concurrent_streams", 128),
    # Silent and half-open connections are closed; by default they stay for ever.
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 300_000),
    # Callers come back through the load balancer now and then, so that deploys and certificates spread.
    ("grpc.max_connection_age_ms", 1_800_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
)

LATER: Final[tuple[ServiceDescriptor, ...]] = tuple(
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (assessment_service_pb2, "AssessmentService"),
        (ruleset_service_pb2, "RulesetService"),
        (list_service_pb2, "ListService"),
        (case_service_pb2, "CaseService"),
        (caller_service_pb2, "CallerService"),
        (audit_service_pb2, "AuditService"),
    )
)
"""In the contract, and answered UNIMPLEMENTED by this version."""


class ServerTLS(msgspec.Struct, frozen=True):
    """
    What the server proves itself with, and whom it lets vouch for callers; PEM, read at every handshake.

    While something cannot be read, handshakes go on with what was read last.
    """

    read_pair: Callable[[], tuple[bytes, bytes]]
    """Returns a key and its certificate."""
    read_authority: Callable[[], bytes]

    def credentials(self, *, require_client: bool) -> grpc.ServerCredentials:
        """Return credentials for one port."""
        known = self._read(require_client=require_client)

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # Only a change may be told: gRPC puts what it is given in the place of what the handshakes of other
            # threads are just using, and without a lock; doing that at every handshake crashed the process.
            nonlocal known
            found = self._read(require_client=require_client)
            if found == known:
                return None
            known = found
            return _configuration(*found)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(*known),
            changed,  # type: ignore[arg-type]  # types-grpcio does not know that None means no change
            require_client_authentication=require_client,
        )

    def _read(self, *, require_client: bool) -> tuple[bytes, bytes, bytes | None]:
        return *self.read_pair(), self.read_authority() if require_client else None


def _configuration(key: bytes, certificate: bytes, authority: bytes | None) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)


class RpcServer:
    """Everything that listens, on ports of its own or, with `share_ports`, beside other processes. Created stopped."""

    def __init__(self, rooms: Rooms, *, share_ports: bool = False) -> None:
        self._door = rooms.door
        self._health = Health(rooms.door)
        self._server = grpc.aio.server(options=(*OPTIONS, ("grpc.so_reuseport", int(share_ports))))
        served: dict[ServiceDescriptor, object] = {
            risk_service_pb2.DESCRIPTOR.services_by_name["RiskService"]: RiskServicer(rooms),
            credit_line_service_pb2.DESCRIPTOR.services_by_name["CreditLineService"]: CreditLineServicer(rooms),
            ledger_service_pb2.DESCRIPTOR.services_by_name["LedgerService"]: LedgerServicer(rooms),
            otp_service_pb2.DESCRIPTOR.services_by_name["OtpService"]: OtpServicer(rooms),
            device_service_pb2.DESCRIPTOR.services_by_name["DeviceService"]: DeviceServicer(rooms),
            customer_service_pb2.DESCRIPTOR.services_by_name["CustomerService"]: CustomerServicer(rooms),
            **dict.fromkeys(LATER),
        }
        self._names = tuple(service.full_name for service in served)
        reflection = Reflection((*self._names, HEALTH.full_name, REFLECTION.full_name), rooms.door)
        for service, servicer in served.items():
            self._server.add_generic_rpc_handlers((rooms.door.handlers(service, servicer),))
        for standard, standard_servicer in ((HEALTH, self._health), (REFLECTION, reflection)):
            scopes = SCOPES_OF[standard.full_name]
            self._server.add_generic_rpc_handlers((rooms.door.handlers(standard, standard_servicer, scopes),))

    def listen(self, address: str, port: int, tls: ServerTLS, *, require_client: bool) -> int:
        """Open a port and return its number. Raises RuntimeError when it is taken."""
        where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        return self._server.add_secure_port(where, tls.credentials(require_client=require_client))

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()
        self._health.set_serving(*self._names, serving=True)

    async def drain(self) -> None:
        """Tell load balancers to go elsewhere; calls are still taken."""
        self._health.set_serving(*self._names, serving=False)

    async def stop(self, grace_seconds: float) -> None:
        """Take no more calls and let those in flight finish; 0 cuts them."""
        self._health.end()
        self._door.close()
        if grace_seconds:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._door.empty()
            # gRPC tells calls that it has not picked up when it stops that they were CANCELLED, as if their callers
            # had done so. Refused a little longer, they are on their way elsewhere before that.
            await asyncio.sleep(LINGER_SECONDS)
        await self._server.stop(0)
