"""Makes calls and waits for them: what is behind `Riskgate`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import grpc

from riskgate_client import risk
from riskgate_client.call import Call, WatchStep, at_page, described, from_token
from riskgate_client.caller import Caller, Service, presented_as
from riskgate_client.errors import DeadlineExceeded, RiskgateError, Unavailable
from riskgate_client.in_flight import LEASE_SECONDS, SILENT_LEASES_MAX, InFlight
from riskgate_client.values import CheckResult, Decision, Page

P = ParamSpec("P")
T = TypeVar("T")


def answer(describe: Callable[P, Call[T]]) -> Callable[Concatenate[Service, P], T]:
    """Make a method that makes the call and returns its answer."""

    @presented_as(describe)
    def method(self: Service, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return make(self._caller, described(describe, *args, **kwargs))

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


def make(caller: Caller, call: Call[T]) -> T:
    """Make a call, as often as it takes and may."""
    method = caller.method(call)
    attempts = caller.attempts(call)
    while True:
        try:
            response = method(call.request, timeout=attempts.remaining)
        except grpc.RpcError as failure:
            error = attempts.concluded(caller.error(failure))
        else:
            return attempts.answered(call.read(response))
        pause = attempts.pause_after(error)
        if pause is None:
            raise error
        time.sleep(pause)


class Pages(Generic[T]):
    """The items of a list, fetched page by page as they are asked for."""

    def __init__(self, caller: Caller, call: Call[Page[T]]) -> None:
        self._caller = caller
        self._call = call

    def __iter__(self) -> Iterator[T]:
        for page in self.pages():
            yield from page.items

    def pages(self) -> Iterator[Page[T]]:
        """Go through the pages; each says with which token the next one can be asked for later."""
        call = self._call
        while True:
            page = make(self._caller, call)
            yield page
            if not page.next_page_token:
                return
            call = at_page(call, page.next_page_token)


class Watch(Generic[T]):
    """
    Changes as they happen, for ever: it resumes by itself where it was when the engine restarts or drops it.

    In a `with` statement it stands, and so misses nothing, from the first line of the body on; otherwise
    from the first item asked for. `close` ends it, also from another thread that waits for an item.

    Attributes:
        resume_token: where to go on after the last item; empty where the watch begins with what stands now.
    """

    def __init__(self, caller: Caller, call: Call[WatchStep[T]]) -> None:
        self.resume_token: str = getattr(call.request, "resume_token", "")
        self._caller = caller
        self._call = call
        self._attempts = caller.attempts(call)
        self._stream: Any = None
        self._stood = False
        self._ahead: WatchStep[T] | None = None
        self._told: T | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        self._ahead = self._step()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while True:
            step, self._ahead = self._ahead or self._step(), None
            if step is None:
                raise StopIteration
            # After a break a line is told as it stands, be it as it was.
            if step.item is not None and step.item != self._told:
                self._told = step.item
                return step.item

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def _step(self) -> WatchStep[T] | None:
        while not self._closed.is_set():
            try:
                step = self._call.read(self._receive())
            except RiskgateError as failed:
                error = self._attempts.concluded(failed)
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
            self._closed.wait(pause)
        return None

    def _receive(self) -> Any:
        try:
            if self._stream is None:
                return self._open()
            return next(self._stream)
        except StopIteration:
            raise Unavailable("the watch ended", status=grpc.StatusCode.UNAVAILABLE) from None
        except grpc.RpcError as failure:
            raise self._caller.error(failure) from failure

    def _open(self) -> Any:
        """Return the first message, which comes at once or not at all; the later ones have no deadline."""
        request = from_token(self._call, self.resume_token)
        seconds = self._caller.seconds(self._call)
        stream = self._stream = self._caller.method(self._call)(request)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            stream.cancel()

        alarm = threading.Timer(seconds, give_up)
        alarm.start()
        try:
            if self._closed.is_set():
                stream.cancel()
            return next(stream)
        except grpc.RpcError:
            if late.is_set():
                raise self._late(seconds) from None
            raise
        finally:
            alarm.cancel()

    def _late(self, seconds: float) -> RiskgateError:
        # To a watch that stood, an engine too slow to take it up again is as good as away.
        if self._stood:
            return Unavailable(f"not resumed within {seconds:g} s", status=grpc.StatusCode.UNAVAILABLE)
        return DeadlineExceeded(f"no answer within {seconds:g} s", status=grpc.StatusCode.DEADLINE_EXCEEDED)


class CheckStream:
    """Purchases out, results in, over as many streams as it takes."""

    def __init__(self, caller: Caller, checks: Iterable[Call[Decision]], timeout: float | None) -> None:
        self._caller = caller
        self._checks = checks
        self._call = risk.stream()
        self._lease_seconds = LEASE_SECONDS if timeout is None else timeout
        if self._lease_seconds <= 0:
            raise ValueError("timeout must be above zero seconds")
        self._attempts = caller.attempts(self._call)
        self._stream: Any = None
        self._stood = False
        self._silent_leases = 0
        # Guards what follows, between whoever takes the purchases, gRPC's thread that sends, and the reader.
        self._changed = threading.Condition()
        self._in_flight = InFlight()
        self._streams_opened = 0
        self._all_taken = False
        self._closed = False
        self._source_failure: BaseException | None = None

    def results(self) -> Generator[CheckResult, None, None]:
        """Give results in the order they come."""
        threading.Thread(target=self._take_all, name="riskgate-checks", daemon=True).start()
        try:
            while (result := self._next()) is not None:
                yield result
            if self._source_failure is not None:
                raise self._source_failure
        finally:
            self._close()

    def _take_all(self) -> None:
        try:
            for described in self._checks:
                request = risk.check_request(described)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._in_flight.has_room(request))  # noqa: B023 - called here
                    if self._closed:
                        return
                    self._in_flight.add(request)
                    self._changed.notify_all()
        except BaseException as failure:  # noqa: BLE001 - raised where the results are read
            self._source_failure = failure
        finally:
            with self._changed:
                self._all_taken = True
                self._changed.notify_all()

    def _requests(self, number: int) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._streams_opened != number or self._done or self._in_flight.may_send)
                if self._streams_opened != number or self._done:
                    return
                pause = self._in_flight.pause
                request = None if pause else self._in_flight.next_unsent()
            if request is None:
                time.sleep(pause)
            else:
                yield request

    @property
    def _done(self) -> bool:
        return self._closed or (self._all_taken and not self._in_flight)

    def _next(self) -> CheckResult | None:
        while True:
            try:
                if self._stream is None:
                    self._open()
                result = self._call.read(next(self._stream))
            except StopIteration:
                error: RiskgateError = Unavailable("the stream ended", status=grpc.StatusCode.UNAVAILABLE)
            except grpc.RpcError as failure:
                error = self._caller.error(failure)
            else:
                if self._accept(result):
                    return result
                continue
            self._stream = None
            with self._changed:
                if self._done:
                    return None
            self._recover(error)

    def _open(self) -> None:
        with self._changed:
            self._streams_opened += 1
            self._in_flight.send_all_again()
            self._changed.notify_all()
        requests = self._requests(self._streams_opened)
        self._stream = self._caller.method(self._call)(requests, timeout=self._lease_seconds)

    def _accept(self, result: CheckResult) -> bool:
        """Note a result; False when the purchase is sent again instead."""
        if not self._stood:
            self._stood = True
            self._attempts = self._caller.outage(self._call)
        if result.error is not None:
            self._in_flight.judge(result.request_id, result.error)
        pause = None if result.error is None else self._attempts.pause_after(result.error)
        with self._changed:
            self._changed.notify_all()
            if pause is not None:
                self._in_flight.put_off(result.request_id, pause)
                return False
            owed = self._in_flight.answered(result.request_id)
        self._attempts = self._caller.outage(self._call)
        self._silent_leases = 0
        return owed

    def _recover(self, error: RiskgateError) -> None:
        if isinstance(error, DeadlineExceeded):
            # The lease is over, which is nothing unless answers were due and none came.
            self._silent_leases += bool(self._in_flight)
            if self._silent_leases < SILENT_LEASES_MAX:
                return
        error = self._attempts.concluded(error)
        pause = self._attempts.pause_after(error)
        if pause is None:
            raise error
        time.sleep(pause)

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._stream is not None:
            self._stream.cancel()
