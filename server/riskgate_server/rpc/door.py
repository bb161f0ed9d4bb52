"""
The one door every call comes through, whatever service it is for.

Authenticate, count against the caller's rate, check the scope, decode, validate, call, and say what
went wrong in a status. Handlers take raw bytes, so that bytes which are no message are refused like
any other bad input; and nothing an exception says ever reaches a caller.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import grpc
import msgspec
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2

from riskgate.common.v1 import access_pb2
from riskgate_server.domain.errors import (
    InternalError,
    PermissionRefused,
    ResourceExhausted,
    RiskgateError,
    Unavailable,
    Unimplemented,
)
from riskgate_server.rpc.callers import Authenticator, Caller, CredentialInvalid, OpenStreams, RateLimits
from riskgate_server.rpc.reading import RequestReader, parsed
from riskgate_server.rpc.refusals import RefusalLog
from riskgate_server.rpc.status import grpc_status_of, name_of, status_of

log = structlog.get_logger()

DEADLINE_MAX_SECONDS: Final = 10.0
"""A call that brings no deadline, or a later one, has this long."""

end_of_stream: Final = grpc.aio.EOF
"""What reading a stream of requests gives when the caller has sent its last."""

WRITE_SECONDS_MAX: Final = 10.0
"""A reader that does not take a message of its stream for this long is dropped."""

Context = grpc.aio.ServicerContext[Any, Any]


class Call(msgspec.Struct, frozen=True):
    """
    Who calls, and until when they wait.

    `scopes` are those of which one lets a caller in; `deadline_us` is monotonic time; `capped` says that it is the
    server's.
    """

    caller: Caller
    context: Context
    scopes: frozenset[str]
    deadline_us: int
    capped: bool = False

    def renewed(self, caller: Caller) -> Call:
        """
        Return the call of an item of a stream: with its caller's rights as of now.

        Its deadline is the server's own as of now, or the whole stream's where that is sooner: nobody would hear of
        an effect any more.
        """
        return _call(caller, self.context, self.scopes)


class Observer(Protocol):
    """Hears how every call ended."""

    def observe(self, method: str, status: str, seconds: float) -> None:
        """Note one call."""


Method = Callable[[Any, Call], Awaitable[Message]]
StreamMethod = Callable[[Any, Call], AsyncGenerator[Message, None]]
_Method = TypeVar("_Method", bound=Callable[..., Any])


def sorting_out(method: _Method) -> _Method:
    """Mark a method that checks its own request, by `RequestReader.sort_out`: one bad item of it spoils only itself."""
    method.sorts_out = True  # type: ignore[attr-defined]  # a mark
    return method


_Served = TypeVar("_Served")
_Answer = TypeVar("_Answer")


def required_scope(method: MethodDescriptor) -> frozenset[str]:
    """Return the scope a method declares; none when it declares none, and then nobody may call it."""
    options = method.GetOptions()
    if not options.HasExtension(access_pb2.required_scope):
        return frozenset()
    return frozenset({options.Extensions[access_pb2.required_scope]})


class Door:
    """Wraps the methods of services into handlers that only let the right calls through."""

    def __init__(self, authenticator: Authenticator, limits: RateLimits, observer: Observer) -> None:
        self._authenticator = authenticator
        self._limits = limits
        self._streams = OpenStreams()
        self._refusals = RefusalLog("call", "warning")
        self._observer = observer
        self.reader: Final = RequestReader()
        self._inside = 0
        self._closed = False
        self._empty = asyncio.Event()

    def close(self) -> None:
        """Send every new call elsewhere; whoever is inside may finish."""
        self._closed = True
        if not self._inside:
            self._empty.set()

    async def empty(self) -> None:
        """Wait until nobody is inside any more. Only after `close`."""
        await self._empty.wait()

    def _leave(self) -> None:
        self._inside -= 1
        if self._closed and not self._inside:
            self._empty.set()

    def handlers(
        self, service: ServiceDescriptor, servicer: object, scopes: frozenset[str] | None = None
    ) -> grpc.GenericRpcHandler:
        """
        Return handlers for every method of a service; a method the servicer lacks answers UNIMPLEMENTED.

        `scopes` is for services whose protos are not ours: any one of the set lets a caller in. They are
        served to the end, for one of them is how callers learn that it has come.
        """
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in service.methods:
            implementation = getattr(servicer, method.name, None)
            allowed = required_scope(method) if scopes is None else scopes
            wrap = self._streaming if method.server_streaming else self._unary
            methods[method.name] = wrap(method, implementation, allowed, to_the_end=scopes is not None)
        return grpc.method_handlers_generic_handler(service.full_name, methods)

    def enter(self, caller: Caller, scopes: frozenset[str], context: Context, *, to_the_end: bool = False) -> Call:
        """
        Let a caller in who has proved itself, is within its rate and holds one of the scopes.

        Raises:
            ResourceExhausted: the caller is above its rate.
            PermissionRefused: the caller lacks the scope.
            Unavailable: the door is closed, except `to_the_end`.
        """
        # What is refused for want of a scope was work too.
        self._limits.take(caller)
        _require_scope(caller, scopes)
        if self._closed and not to_the_end:
            raise Unavailable("SHUTTING_DOWN", "the server is stopping; nothing was done")
        return _call(caller, context, scopes)

    def charge(self, caller: Caller, cost: int = 1) -> None:
        """
        Count one more item of a stream.

        Raises:
            ResourceExhausted: the caller is above its rate.
        """
        self._limits.take(caller, cost)

    def charge_whole(self, caller: Caller, cost: int) -> None:
        """
        Count what a call turned out to cost, now that it was read: coming in was the first of it.

        Raises:
            ResourceExhausted: the caller is above its rate.
        """
        self._limits.take(caller, cost, taken=1)

    def confirm(self, caller: Caller, scopes: frozenset[str]) -> Caller:
        """
        Check again, while a stream lasts, that its caller may still be here, and return what it may do now.

        Raises:
            Unauthenticated: its credential is no good any more.
            PermissionRefused: it holds none of the scopes any more.
        """
        now = self._authenticator.confirm(caller)
        _require_scope(now, scopes)
        return now

    def refusal(self, error: Exception, method: str, context: Context, caller: Caller | None) -> RiskgateError:
        """
        Return what a caller may be told: a refusal as it is, any other error as an id that finds it in the log.

        `caller` is None for who has not proved who they are; the log has the caller, and why a credential is no good.
        """
        if not isinstance(error, RiskgateError):
            return _logged_bug(method, error)
        if isinstance(error, InternalError) and "error_id" not in error.details:
            # The engine logged what happened when it happened; this line leads there.
            return _logged_bug(method, None)
        if status_of(error) in _LOGGED or error.reason in _LOGGED_TOO:
            self._refusals.note(method=method, reason=error.reason, peer=context.peer(), **_facts(error, caller))
        return error

    def _unary(
        self,
        method: MethodDescriptor,
        implementation: Method | None,
        scopes: frozenset[str],
        *,
        to_the_end: bool,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        request_class = GetMessageClass(method.input_type)
        name = _metric_name(method)
        read = parsed if getattr(implementation, "sorts_out", False) else self.reader.decode

        async def answer(raw: bytes, call: Call) -> Message:
            answering = _served(implementation)(read(request_class, raw), call)
            return await (_in_time(answering) if call.capped else answering)

        async def handle(raw: bytes, context: Context) -> Message:
            return await self._to_the_status(name, context, scopes, partial(answer, raw), to_the_end=to_the_end)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )

    def _streaming(
        self,
        method: MethodDescriptor,
        implementation: StreamMethod | None,
        scopes: frozenset[str],
        *,
        to_the_end: bool,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        request_class = GetMessageClass(method.input_type)
        name = _metric_name(method)

        async def answer(incoming: Any, call: Call) -> None:
            # A stream of requests decodes each as it arrives: one bad item spoils only itself.
            request = incoming if method.client_streaming else self.reader.decode(request_class, incoming)
            with self._streams.one_more(call.caller):
                # Closed at once when a write fails: what the method listens to it must let go of.
                async with aclosing(_served(implementation)(request, call)) as responses:
                    async for response in responses:
                        await _write(response, name, call.context)

        async def handle(incoming: Any, context: Context) -> None:
            await self._to_the_status(name, context, scopes, partial(answer, incoming), to_the_end=to_the_end)

        serializer = GetMessageClass(method.output_type).SerializeToString
        make = (
            grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(handle, response_serializer=serializer)

    async def _to_the_status(
        self,
        name: str,
        context: Context,
        scopes: frozenset[str],
        answer: Callable[[Call], Awaitable[_Answer]],
        *,
        to_the_end: bool,
    ) -> _Answer:
        """Let a call in, answer it and note how it ended; whatever goes wrong in it becomes a status."""
        began = time.perf_counter()
        status = "OK"
        caller: Caller | None = None
        self._inside += 1
        try:
            caller = self._authenticator.authenticate(context)
            return await answer(self.enter(caller, scopes, context, to_the_end=to_the_end))
        except grpc.aio.AbortError:
            status = code_pb2.Code.Name(context.code())
            raise
        except Exception as error:  # noqa: BLE001 - the last line: everything becomes a status
            refusal = self.refusal(error, name, context, caller)
            status = name_of(refusal)
            await context.abort_with_status(grpc_status_of(refusal))
        except asyncio.CancelledError:
            if is_being_cancelled():
                status = "CANCELLED"
                raise
            # Something inside raised it: left alone, the caller would hang until its own deadline.
            refusal = given_up()
            status = name_of(refusal)
            await context.abort_with_status(grpc_status_of(refusal))
        finally:
            self._leave()
            self._observer.observe(name, status, time.perf_counter() - began)


async def _write(response: Message, method: str, context: Context) -> None:
    """
    Send one message of a stream.

    A write waits once the reader's window and the connection's buffer are full. So does the status
    that follows: a reader learns that it was dropped when it reads on, or never; either way nothing
    more is kept for it.

    Raises:
        ResourceExhausted: the reader did not take it in time.
    """
    try:
        async with asyncio.timeout(WRITE_SECONDS_MAX):
            await context.write(response)
    except TimeoutError:
        log.warning("reader dropped", method=method, peer=context.peer())
        raise ResourceExhausted(
            "READER_TOO_SLOW", "the reader is too slow; resume with the last token", retry_after_seconds=1
        ) from None


async def _in_time(answering: Awaitable[Message]) -> Message:
    """
    Wait no longer than the server's own deadline.

    Raises:
        Unavailable: it passed. What had begun goes on, and the request's id tells what came of it.
    """
    waiting = asyncio.timeout(DEADLINE_MAX_SECONDS)
    try:
        async with waiting:
            return await answering
    except TimeoutError:
        if waiting.expired():
            raise given_up() from None
        raise


_LOGGED: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_LOGGED_TOO: Final = frozenset({"RATE_LIMITED", "TOO_MANY_STREAMS"})
"""What is refused for its caller's sake rather than for the request's."""


def _facts(error: RiskgateError, caller: Caller | None) -> Mapping[str, str]:
    """Return what the log says of a refusal beyond its reason, all of it names and ids of ours."""
    if isinstance(error, CredentialInvalid):
        return error.facts
    if caller is None:
        return {}
    whose = {"tenant": caller.tenant_id, "caller": caller.caller_id}
    scope = error.details.get("scope")
    return {**whose, "scope": scope} if scope else whose


def is_being_cancelled() -> bool:
    """Whether somebody cancelled what runs here: the caller hung up. gRPC's own word for it comes too late."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def given_up() -> Unavailable:
    """Return what is said of work that was left alone half way: it may have its effect or not."""
    return Unavailable("OUTCOME_UNKNOWN", "the call was given up inside the server; repeat the same request id")


def _logged_bug(method: str, error: Exception | None) -> InternalError:
    error_id = secrets.token_hex(8)
    log.error("call failed", method=method, error_id=error_id, exc_info=error)
    return InternalError("INTERNAL", "an internal error; it is logged", error_id=error_id)


def _served(implementation: _Served | None) -> _Served:
    if implementation is None:
        raise Unimplemented("NOT_SERVED_YET", "this version of the engine does not serve the call yet")
    return implementation


def _require_scope(caller: Caller, scopes: frozenset[str]) -> None:
    if any(map(caller.may, scopes)):
        return
    # Of services that any scope opens, naming them all would help nobody.
    named = next(iter(scopes)) if len(scopes) == 1 else ""
    raise PermissionRefused("SCOPE_MISSING", "the credential lacks the scope this call needs", scope=named)


def _call(caller: Caller, context: Context, scopes: frozenset[str]) -> Call:
    # None without a deadline, whatever types-grpcio says.
    remaining_seconds: float | None = context.time_remaining()
    if remaining_seconds is None or remaining_seconds > DEADLINE_MAX_SECONDS:
        return Call(caller, context, scopes, _deadline_us(DEADLINE_MAX_SECONDS), capped=True)
    return Call(caller, context, scopes, _deadline_us(remaining_seconds))


def _deadline_us(seconds: float) -> int:
    return int((time.monotonic() + seconds) * 1_000_000)


def _metric_name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.full_name}/{method.name}"
