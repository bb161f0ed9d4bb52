"""
An engine that says what a test wants it to say, over real TLS: a real one cannot be made to fail on demand.

`plan("CheckTransaction", unavailable(), answer)` gives the calls of a method one step each. A step is a
message to answer, a `Refusal`, or a function of request and context; of a stream, a generator function.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from riskgate_server.crypto.tls import Credential, issue_server, new_authority

Step = Message | Callable[..., Any]
ERROR_INFO_DOMAIN = "riskgate"


@dataclass(frozen=True)
class Received:
    """A call as it came in."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    seconds_left: float | None
    certified: bool


@dataclass
class ScriptedEngine:
    """The engine. `calls` holds what came in, in order."""

    target: str = ""
    calls: list[Received] = field(default_factory=list)
    steps: dict[str, deque[Step]] = field(default_factory=lambda: defaultdict(deque))

    def plan(self, method: str, *steps: Step) -> None:
        """Say what the next calls of a method get. The last step is for all that follow."""
        self.steps[method] = deque(steps)

    def received(self, method: str) -> list[Any]:
        """Return the requests of a method, in order."""
        return [call.request for call in self.calls if call.method == method]

    def next_step(self, method: str) -> Step:
        steps = self.steps[method]
        if not steps:
            return refusal(grpc.StatusCode.UNIMPLEMENTED, message=f"the test plans nothing for {method}")
        return steps.popleft() if len(steps) > 1 else steps[0]


def detail(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def status(
    code: grpc.StatusCode,
    reason: str = "",
    *details: Message,
    message: str = "said by the test",
    domain: str = ERROR_INFO_DOMAIN,
    **metadata: str,
) -> Any:
    """Return a rich status as the engine writes it."""
    info = error_details_pb2.ErrorInfo(domain=domain, reason=reason, metadata=metadata)
    packed = [detail(info)] if reason else []
    return status_pb2.Status(code=code.value[0], message=message, details=[*packed, *map(detail, details)])


def refusal(code: grpc.StatusCode, reason: str = "", *details: Message, **kwargs: Any) -> Callable[..., Any]:
    """Return a step that refuses with a rich status."""

    def refuse(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort_with_status(rpc_status.to_status(status(code, reason, *details, **kwargs)))

    return refuse


def broken() -> Callable[..., Any]:
    """Return a step after which the caller cannot know whether it was heard, as when a connection breaks."""

    def refuse(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    return refuse


def unavailable(reason: str = "SHUTTING_DOWN") -> Callable[..., Any]:
    """Return a step that says the engine cannot serve now."""
    return refusal(grpc.StatusCode.UNAVAILABLE, reason)


def never() -> Callable[..., Any]:
    """Return a step that does not answer while anybody waits."""

    def wait(request: Any, context: grpc.ServicerContext) -> Any:
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(timeout=30)
        context.abort(grpc.StatusCode.CANCELLED, "nobody waits any more")

    return wait


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        path = details.method.removeprefix("/").replace("/", ".")
        method = descriptor_pool.Default().FindMethodByName(path)
        codec: dict[str, Any] = {
            "request_deserializer": GetMessageClass(method.input_type).FromString,
            "response_serializer": GetMessageClass(method.output_type).SerializeToString,
        }
        engine, name = self._engine, method.name

        def note(request: Any, context: grpc.ServicerContext) -> Step:
            certified = bool(context.auth_context().get("x509_pem_cert"))
            metadata = dict(context.invocation_metadata())
            engine.calls.append(Received(name, request, metadata, _seconds_left(context), certified))
            return engine.next_step(name)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            step = note(request, context)
            return step if isinstance(step, Message) else step(request, context)

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            step = note(None if method.client_streaming else request, context)
            assert not isinstance(step, Message)
            yield from step(request, context) or ()

        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, **codec)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **codec)
        return grpc.unary_unary_rpc_method_handler(answer, **codec)


def _seconds_left(context: grpc.ServicerContext) -> float | None:
    left = context.time_remaining()
    # The library's way of saying that there is no deadline.
    return None if left > 1e6 else left


@cache
def authority() -> Credential:
    """Return the authority that vouches for every scripted engine."""
    return new_authority(datetime.now(UTC))


@cache
def _server_credential() -> Credential:
    return issue_server(authority(), (), datetime.now(UTC))


def serve(
    engine: ScriptedEngine, *, port: int = 0, certificates: bool = False, own: Credential | None = None
) -> grpc.Server:
    """Start serving; the caller stops it. `certificates` asks callers for theirs; `own` replaces a good one."""
    server = grpc.server(
        ThreadPoolExecutor(max_workers=16), handlers=[_Handlers(engine)], options=[("grpc.so_reuseport", 0)]
    )
    own = own or _server_credential()
    proof = grpc.ssl_server_credentials(
        [(own.key_pem, own.certificate_pem)],
        root_certificates=authority().certificate_pem if certificates else None,
        require_client_auth=certificates,
    )
    bound = server.add_secure_port(f"localhost:{port}", proof)
    engine.target = f"localhost:{bound}"
    server.start()
    return server
