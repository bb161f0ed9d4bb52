"""Calls as a client makes them with the generated stubs, and refusals as data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_status import rpc_status

from riskgate.credit.v1 import credit_line_service_pb2_grpc, ledger_service_pb2_grpc
from riskgate.identity.v1 import device_service_pb2_grpc, otp_service_pb2_grpc
from riskgate.operations.v1 import customer_service_pb2_grpc
from riskgate.risk.v1 import risk_service_pb2_grpc

TIMEOUT_SECONDS: Final = 10.0
REPEATS: Final = int(os.environ.get("RACES", "4"))
"""How often the races are run; a hundred times by `make races`."""

Metadata = tuple[tuple[str, str | bytes], ...]

told: Final[set[str]] = set()
"""Every refusal that calls of the running test met, in a word each: what its marks are held against."""


@dataclass(frozen=True)
class Refused:
    """What a refused call was told."""

    code: grpc.StatusCode
    reason: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    retry_seconds: float = 0
    metadata: dict[str, str] = field(default_factory=dict)
    message: str = ""

    @property
    def name(self) -> str:
        """Status and reason in one word."""
        return f"{self.code.name} {self.reason}".rstrip()


def refused_by(status: status_pb2.Status) -> Refused:
    """Read a rich status."""
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        assert sum(map(detail.Unpack, (info, bad, retry))) == 1, "a detail nobody documented"
    assert info.domain in {"", "riskgate"}
    return Refused(
        code,
        info.reason,
        {violation.field: violation.description for violation in bad.field_violations},
        retry.retry_delay.ToTimedelta().total_seconds(),
        dict(info.metadata),
        status.message,
    )


def refused_of(error: Any) -> Refused:
    """Read what a failed call brought: an error of the library's, which is a call too."""
    status = rpc_status.from_call(error)
    found = Refused(error.code(), message=error.details() or "") if status is None else refused_by(status)
    told.add(found.name)
    return found


def refused(call: Callable[[], object]) -> Refused:
    """Make a call that must be refused."""
    with pytest.raises(grpc.RpcError) as error:
        call()
    return refused_of(error.value)


def answer(call: Callable[[], object]) -> str:
    """Make a call and return in a word what came: OK, or status and reason."""
    try:
        call()
    except grpc.RpcError as error:
        return refused_of(error).name
    return "OK"


def at_once(calls: Sequence[Callable[[], object]]) -> Counter[str]:
    """Make calls side by side, up to 64 at a time, and count what came of them."""
    with ThreadPoolExecutor(64) as threads:
        return Counter(threads.map(answer, calls))


class Channels:
    """Connections to one server, shared by all who present the same certificate."""

    def __init__(self, ca_certificate: bytes) -> None:
        self._ca = ca_certificate
        self._open: dict[tuple[int, bytes], grpc.Channel] = {}

    def to(self, port: int, pair: tuple[bytes, bytes] | None = None) -> grpc.Channel:
        key = (port, b"".join(pair or ()))
        if key not in self._open:
            self._open[key] = self.new(port, pair)
        return self._open[key]

    def new(
        self, port: int, pair: tuple[bytes, bytes] | None = None, options: tuple[tuple[str, Any], ...] = ()
    ) -> grpc.Channel:
        """Open a connection of its own; whoever asked closes it."""
        credentials = grpc.ssl_channel_credentials(self._ca, *(pair or (None, None)))
        # Without its own pool two channels with equal arguments would share one connection.
        return grpc.secure_channel(f"localhost:{port}", credentials, [("grpc.use_local_subchannel_pool", 1), *options])

    def close(self) -> None:
        for channel in self._open.values():
            channel.close()


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class _Presenting(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Presents a credential with every call, and a deadline where the call names none."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def _with(self, details: Any) -> Any:
        return _Details(
            details.method,
            details.timeout or TIMEOUT_SECONDS,
            (*self._metadata, *(details.metadata or ())),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with(client_call_details), request)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._with(client_call_details), request_iterator)


class Api:
    """All calls as one caller makes them."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata = ()) -> None:
        self.channel = channel
        self.metadata = metadata
        presenting = grpc.intercept_channel(channel, _Presenting(metadata))
        self.risk = risk_service_pb2_grpc.RiskServiceStub(presenting)
        self.lines = credit_line_service_pb2_grpc.CreditLineServiceStub(presenting)
        self.customers = customer_service_pb2_grpc.CustomerServiceStub(presenting)
        self.devices = device_service_pb2_grpc.DeviceServiceStub(presenting)
        self.otp = otp_service_pb2_grpc.OtpServiceStub(presenting)
        self.ledger = ledger_service_pb2_grpc.LedgerServiceStub(presenting)
        self.health: Any = health_pb2_grpc.HealthStub(presenting)

    def send(
        self, method: MethodDescriptor | str, raw: bytes, *, metadata: Metadata = (), timeout: float = TIMEOUT_SECONDS
    ) -> bytes:
        """Send bytes as they are and return the first answer; empty for a stream that ended without one."""
        presented = (*self.metadata, *metadata)
        path = method if isinstance(method, str) else path_of(method)
        channel: Any = self.channel
        if isinstance(method, str) or not method.server_streaming:
            return bytes(channel.unary_unary(path)(raw, metadata=presented, timeout=timeout))
        if method.client_streaming:
            answers = channel.stream_stream(path)(iter([raw]), metadata=presented, timeout=timeout)
        else:
            answers = channel.unary_stream(path)(raw, metadata=presented, timeout=timeout)
        try:
            return bytes(next(answers, b""))
        finally:
            answers.cancel()

    def answer(self, method: MethodDescriptor | str, raw: bytes, **how: Any) -> str:
        """Send bytes as they are and return in a word what came: OK, or status and reason."""
        try:
            self.send(method, raw, **how)
        except grpc.RpcError as error:
            return refused_of(error).name
        return "OK"


def path_of(method: MethodDescriptor) -> str:
    """Name a method as HTTP/2 does."""
    return f"/{method.containing_service.full_name}/{method.name}"


def taking(stream: Any, number: int) -> Iterator[Any]:
    """Yield so many messages of a stream, then let it go."""
    try:
        for _ in range(number):
            yield next(stream)
    finally:
        stream.cancel()
