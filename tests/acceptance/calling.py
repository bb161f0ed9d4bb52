"""Calls a server, as a careful backend does: a deadline on every call, the same key on every retry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from riskgate.common.v1.money_pb2 import Money
from riskgate.credit.v1 import credit_line_service_pb2 as lines
from riskgate.credit.v1 import ledger_service_pb2 as ledger
from riskgate.identity.v1 import otp_service_pb2 as otp
from riskgate.risk.v1 import risk_service_pb2 as risk
from tests.acceptance.deployment import Deployment

CURRENCY: Final = "CNY"
ATTEMPT_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.02
"""Between two attempts of one key."""

_PATHS: Final = {
    method.input_type.full_name: (f"/{service.full_name}/{method.name}", method.output_type.full_name)
    for module in (lines, ledger, otp, risk)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
_OPTIONS: Final = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 20),
    # How long one attempt to connect may take; a server that is being traced is slow to shake hands.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 50),
    # Every `Backend` has a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
)

SETTLED: Final = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)
"""Answers after which nothing is open: done, or refused for good."""

UNSETTLED: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    }
)
"""Answers after which the same key is asked again. Any other status is a fault of the server's."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a caller was told, and when, by the wall clock."""

    request: Any
    code: grpc.StatusCode
    reply: bytes = b""
    reason: str = ""
    text: str = ""
    asked_at: float = 0.0
    told_at: float = 0.0
    attempts: int = 1

    @property
    def done(self) -> bool:
        """Whether the call had its effect."""
        return self.code is grpc.StatusCode.OK

    @property
    def settled(self) -> bool:
        """Whether the outcome is known."""
        return self.code in SETTLED

    @property
    def words(self) -> tuple[grpc.StatusCode, bytes, str]:
        """What must be the same whenever the key is repeated."""
        return self.code, self.reply, self.reason


class Backend:
    """One connection to a deployment, whichever process serves it just now."""

    def __init__(self, deployment: Deployment, *, attempt_seconds: float = ATTEMPT_SECONDS) -> None:
        self._attempt_seconds = attempt_seconds
        # Where others write too, one of them may have been in the way for too long.
        self._unsettled = UNSETTLED | {grpc.StatusCode.ABORTED} if deployment.dsn else UNSETTLED
        self._metadata = (("authorization", f"Bearer {deployment.api_key}"),)
        credentials = grpc.ssl_channel_credentials(deployment.ca_certificate)
        self._channel = grpc.aio.secure_channel(f"localhost:{deployment.port}", credentials, options=_OPTIONS)
        self._calls: dict[str, grpc.aio.UnaryUnaryMultiCallable[Message, bytes]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    def begin(self, request: Message, *, seconds: float | None = None) -> grpc.aio.UnaryUnaryCall[Message, bytes]:
        """Start a call; the reply stays in the bytes in which it came."""
        name = request.DESCRIPTOR.full_name
        call = self._calls.get(name)
        if call is None:
            call = self._calls[name] = self._channel.unary_unary(
                _PATHS[name][0], request_serializer=lambda message: message.SerializeToString()
            )
        return call(request, metadata=self._metadata, timeout=seconds or self._attempt_seconds)

    async def once(self, request: Message, *, seconds: float | None = None) -> Told:
        """Ask once."""
        asked_at = time.time()
        return await told(request, self.begin(request, seconds=seconds), asked_at)

    async def settle(self, request: Message, *, patience: float = PATIENCE_SECONDS) -> Told:
        """Ask with the same key until the outcome is known."""
        deadline = time.monotonic() + patience
        attempts = 0
        while True:
            attempts += 1
            answer = await self.once(request)
            if answer.settled:
                return Told(
                    request, answer.code, answer.reply, answer.reason, answer.text, answer.asked_at, answer.told_at,
                    attempts,
                )  # fmt: skip
            assert answer.code in self._unsettled, f"{answer.code} {answer.reason} {answer.text} to {request}"
            assert time.monotonic() < deadline, f"not settled in {patience} s: {answer.code} {answer.text} to {request}"
            await asyncio.sleep(PAUSE_SECONDS)

    async def line(self, customer_id: str) -> lines.CreditLine:
        """Return a customer's line as the server tells it."""
        answer = await self.settle(lines.GetCreditLineRequest(customer_id=customer_id))
        assert answer.done, answer
        return lines.GetCreditLineResponse.FromString(answer.reply).credit_line


@asynccontextmanager
async def connections(deployment: Deployment, number: int, **named: float) -> AsyncIterator[list[Backend]]:
    """Several connections to one deployment."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Backend(deployment, **named)) for _ in range(number)]


async def told(request: Message, call: grpc.aio.UnaryUnaryCall[Message, bytes], asked_at: float) -> Told:
    """Wait for a call that was begun and say how it ended."""
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        code, reason, text = error.code(), _reason(error), error.details() or ""
        return Told(request, code, b"", reason, text, asked_at, time.time())
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise  # it is we who were cancelled, not the call
        return Told(request, grpc.StatusCode.CANCELLED, b"", "", "given up", asked_at, time.time())
    return Told(request, grpc.StatusCode.OK, reply, "", "", asked_at, time.time())


def _reason(error: grpc.aio.AioRpcError) -> str:
    # Only the server's own refusals carry details; what the RPC library says of a lost connection does not.
    status = rpc_status.from_call(error) if error.trailing_metadata() else None  # type: ignore[arg-type]  # types-grpcio knows only the blocking call
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def money(amount_minor: int) -> Money:
    """Return an amount of the currency all these tests use."""
    return Money(currency_code=CURRENCY, amount_minor=amount_minor)


def open_line(customer_id: str, limit_minor: int, request_id: str = "open") -> lines.OpenCreditLineRequest:
    """Ask for a line."""
    return lines.OpenCreditLineRequest(
        request_id=request_id,
        customer_id=customer_id,
        line_id="main",
        limit=money(limit_minor),
        decision_reference="acceptance",
        actor_id="tests",
    )


def check(customer_id: str, request_id: str, transaction_id: str, amount_minor: int) -> risk.CheckTransactionRequest:
    """Ask about a purchase."""
    return risk.CheckTransactionRequest(
        request_id=request_id,
        customer_id=customer_id,
        transaction_id=transaction_id,
        amount=money(amount_minor),
        merchant=risk.Merchant(merchant_id="m-1"),
    )
