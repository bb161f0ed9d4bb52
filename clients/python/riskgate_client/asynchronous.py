"""Makes calls for asyncio: what is behind `AsyncRiskgate`. The same as `blocking`, where every wait is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

import grpc

from riskgate_client import risk
from riskgate_client.call import Call, WatchStep, at_page, described, from_token
from riskgate_client.caller import Caller, Service, presented_as
from riskgate_client.errors import Cancelled, DeadlineExceeded, Internal, RiskgateError, Unavailable
from riskgate_client.in_flight import LEASE_SECONDS, SILENT_LEASES_MAX, InFlight
from riskgate_client.values import CheckResult, Decision, Page

LISTEN_SECONDS: Final = 0.1
"""How long a stream is listened to before it is written to, times how often the one before ended without a reason."""

P = ParamSpec("P")
T = TypeVar("T")


def answer(describe: Callable[P, Call[T]]) -> Callable[Concatenate[Service, P], Awaitable[T]]:
    """Make a method that makes the call and returns its answer."""

    @presented_as(describe)
    async def method(self: Service, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await make(self._caller, described(describe, *args, **kwargs))

    return method


def pages(describe: Callable[P, Call[Page[T]]]) -> Callable[Concatenate[Service, P], Pages[T]]:
    """Make a method that returns the items of a list."""

    @presented_as(describe)
    def method(self: Service, /, *args: P.args, **kwargs: P.kwargs) -> Pages[T]:
        return Pages(self._caller, described(describe, *args, **kwargs))

    return method


def watch(describe: Callable[P, Call[WatchStep[T]]]) -> Callable[Concatenate[Service, P], Watch[T]]:
    """Make a method that follows changes."""

    @presented_as(describe)
    def method(self: Service, /, *args: P.args, **kwargs: P.kwargs) -> Watch[T]:
        return Watch(self._caller, described(describe, *args, **kwargs))

    return method


async def make(caller: Caller, call: Call[T]) -> T:
    """Make a call, as often as it takes and may."""
    method = caller.method(call)
    attempts = caller.attempts(call)
    while True:
        try:
            response = await _heard(caller, method(call.request, timeout=attempts.remaining))
        except RiskgateError as failed:
            error = attempts.concluded(failed)
        else:
            return attempts.answered(call.read(response))
        pause = attempts.pause_after(error)
        if pause is None:
            raise error
        await asyncio.sleep(pause)


class Pages(Generic[T]):
    """The items of a list, fetched page by page as they are asked for."""

    def __init__(self, caller: Caller, call: Call[Page[T]]) -> None:
        self._caller = caller
        self._call = call

    async def __aiter__(self) -> AsyncIterator[T]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncIterator[Page[T]]:
        """Go through the pages; each says with which token the next one can be asked for later."""
        call = self._call
        while True:
            page = await make(self._caller, call)
            yield page
            if not page.next_page_token:
                return
            call = at_page(call, page.next_page_token)


class Watch(Generic[T]):
    """
    Changes as they happen, for ever: it resumes by itself where it was when the engine restarts or drops it.

    In an `async with` statement it stands, and so misses nothing, from the first line of the body on;
    otherwise from the first item asked for. `close` ends it, also while another task waits for an item.

    Attributes:
        resume_token: where to go on after the last item; empty where the watch begins with what stands now.
    """

    def __init__(self, caller: Caller, call: Call[WatchStep[T]]) -> None:
        self.resume_token: str = getattr(call.request, "resume_token", "")
        self._caller = caller
        self._call = call
        self._attempts = caller.attempts(call)
        self._stream: Any = None
        self._messages: Any = None
        self._stood = False
        self._ahead: WatchStep[T] | None = None
        self._told: T | None = None
        self._closed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._ahead = await self._step()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            step, self._ahead = self._ahead or await self._step(), None
            if step is None:
                raise StopAsyncIteration
            # After a break a line is told as it stands, be it as it was.
            if step.item is not None and step.item != self._told:
                self._told = step.item
                return step.item

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        if self._stream is not None:
            self._stream.cancel()

    async def _step(self) -> WatchStep[T] | None:
        while not self._closed.is_set():
            try:
                step = self._call.read(await self._receive())
            except RiskgateError as failed:
                error = self._attempts.concluded(failed)
            except asyncio.CancelledError:
                # Whoever waits was cancelled, and the stream with them. The next to ask resumes.
                self._stream = None
                raise
            else:
                self._stood = True
                self._attempts = self._caller.outage(self._call)
                self.resume_token = step.resume_token
                return step
            self._stream = None
            if self._closed.is_set():
                break
            pause = self._attempts.pause_after(error)
            if pause is None:
                raise error
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), pause)
        return None

    async def _receive(self) -> Any:
        try:
            if self._stream is None:
                return await self._open()
            return await _heard(self._caller, anext(self._messages))
        except StopAsyncIteration:
            raise Unavailable("the watch ended", status=grpc.StatusCode.UNAVAILABLE) from None

    async def _open(self) -> Any:
        """Return the first message, which comes at once or not at all; the later ones have no deadline."""
        request = from_token(self._call, self.resume_token)
        seconds = self._caller.seconds(self._call)
        self._stream = self._caller.method(self._call)(request)
        self._messages = aiter(self._stream)
        try:
            async with asyncio.timeout(seconds):
                return await _heard(self._caller, anext(self._messages))
        except TimeoutError:
            raise self._late(seconds) from None

    def _late(self, seconds: float) -> RiskgateError:
        # To a watch that stood, an engine too slow to take it up again is as good as away.
        if self._stood:
            return Unavailable(f"not resumed within {seconds:g} s", status=grpc.StatusCode.UNAVAILABLE)
        return DeadlineExceeded(f"no answer within {seconds:g} s", status=grpc.StatusCode.DEADLINE_EXCEEDED)


class CheckStream:
    """Purchases out, results in, over as many streams as it takes."""

    def __init__(
        self,
        caller: Caller,
        checks: Iterable[Call[Decision]] | AsyncIterable[Call[Decision]],
        timeout: float | None,
    ) -> None:
        self._caller = caller
        self._checks = checks
        self._call = risk.stream()
        self._lease_seconds = LEASE_SECONDS if timeout is None else timeout
        if self._lease_seconds <= 0:
            raise ValueError("timeout must be above zero seconds")
        self._attempts = caller.attempts(self._call)
        self._stream: Any = None
        self._messages: Any = None
        self._stood = False
        self._silent_leases = 0
        self._unexplained = 0
        self._changed = asyncio.Condition()
        self._in_flight = InFlight()
        self._streams_opened = 0
        self._all_taken = False
        self._closed = False
        self._source_failure: BaseException | None = None

    async def results(self) -> AsyncGenerator[CheckResult, None]:
        """Give results in the order they come."""
        taking = asyncio.create_task(self._take_all())
        try:
            while (result := await self._next()) is not None:
                yield result
            if self._source_failure is not None:
                raise self._source_failure
        finally:
            taking.cancel()
            async with self._changed:
                self._closed = True
                self._changed.notify_all()
            if self._stream is not None:
                self._stream.cancel()

    async def _take_all(self) -> None:
        try:
            async for described in _each(self._checks):
                request = risk.check_request(described)
                async with self._changed:
                    await self._changed.wait_for(lambda: self._in_flight.has_room(request))  # noqa: B023 - called here
                    self._in_flight.add(request)
                    self._changed.notify_all()
        except Exception as failure:  # noqa: BLE001 - raised where the results are read
            self._source_failure = failure
        async with self._changed:
            self._all_taken = True
            self._changed.notify_all()

    async def _requests(self, number: int) -> AsyncIterator[Any]:
        if self._unexplained:
            # The last stream ended while we wrote, and so without its reason: listen before writing again.
            await asyncio.sleep(LISTEN_SECONDS * self._unexplained)
        while True:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._streams_opened != number or self._done or self._in_flight.may_send
                )
                if self._streams_opened != number or self._done:
                    return
                pause = self._in_flight.pause
                request = None if pause else self._in_flight.next_unsent()
            if request is None:
                await asyncio.sleep(pause)
            else:
                yield request

    @property
    def _done(self) -> bool:
        return self._closed or (self._all_taken and not self._in_flight)

    async def _next(self) -> CheckResult | None:
        while True:
            try:
                if self._stream is None:
                    await self._open()
                result = self._call.read(await _heard(self._caller, anext(self._messages)))
            except StopAsyncIteration:
                error: RiskgateError = Unavailable("the stream ended", status=grpc.StatusCode.UNAVAILABLE)
            except RiskgateError as failed:
                error = _known_by_writing(failed)
                self._unexplained += error is not failed
            else:
                if await self._accept(result):
                    return result
                continue
            self._stream = None
            if self._done:
                return None
            await self._recover(error)

    async def _open(self) -> None:
        async with self._changed:
            self._streams_opened += 1
            self._in_flight.send_all_again()
            self._changed.notify_all()
        requests = self._requests(self._streams_opened)
        self._stream = self._caller.method(self._call)(requests, timeout=self._lease_seconds)
        self._messages = aiter(self._stream)

    async def _accept(self, result: CheckResult) -> bool:
        """Note a result; False when the purchase is sent again instead."""
        self._unexplained = 0
        if not self._stood:
            self._stood = True
            self._attempts = self._caller.outage(self._call)
        if result.error is not None:
            self._in_flight.judge(result.request_id, result.error)
        pause = None if result.error is None else self._attempts.pause_after(result.error)
        async with self._changed:
            self._changed.notify_all()
            if pause is not None:
                self._in_flight.put_off(result.request_id, pause)
                return False
            owed = self._in_flight.answered(result.request_id)
        self._attempts = self._caller.outage(self._call)
        self._silent_leases = 0
        return owed

    async def _recover(self, error: RiskgateError) -> None:
        if isinstance(error, DeadlineExceeded):
            # The lease is over, which is nothing unless answers were due and none came.
            self._silent_leases += bool(self._in_flight)
            if self._silent_leases < SILENT_LEASES_MAX:
                return
        error = self._attempts.concluded(error)
        pause = self._attempts.pause_after(error)
        if pause is None:
            raise error
        await asyncio.sleep(pause)


async def _each(
    checks: Iterable[Call[Decision]] | AsyncIterable[Call[Decision]],
) -> AsyncIterator[Call[Decision]]:
    if isinstance(checks, AsyncIterable):
        async for described in checks:
            yield described
    else:
        for described in checks:
            yield described


async def _heard(caller: Caller, answer: Awaitable[T]) -> T:
    """Await something of gRPC, and raise errors of ours."""
    try:
        return await answer
    except grpc.RpcError as failure:
        raise caller.error(failure) from failure
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # gRPC cancels whoever waits when the client is closed, as if somebody had cancelled the task.
        raise Cancelled("the client was closed", status=grpc.StatusCode.CANCELLED) from None


def _known_by_writing(error: RiskgateError) -> RiskgateError:
    """Return what a broken stream failed with: if we notice it by writing, gRPC forgets the cause and blames itself."""
    if isinstance(error, Internal) and error.message == "Internal error from Core":
        return Unavailable("the stream broke", status=grpc.StatusCode.UNAVAILABLE)
    return error
