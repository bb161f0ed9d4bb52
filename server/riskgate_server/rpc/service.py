"""What the servicers share: the rooms they speak to, and how a request becomes the head of a command."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final, Protocol, TypeVar

import msgspec
import structlog

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.errors import PermissionRefused, ResourceExhausted, Unavailable
from riskgate_server.domain.identity.devices import ProofPolicy
from riskgate_server.engine.delivery import Delivery
from riskgate_server.engine.failures import ReadFailed, StoreBusy
from riskgate_server.engine.judging import Judge
from riskgate_server.engine.places import PlaceTokens
from riskgate_server.engine.ports import Clock, ProofSecrets
from riskgate_server.engine.queries import Queries
from riskgate_server.rpc.convert import DecisionWriter, invalid
from riskgate_server.rpc.decoys import Nobody
from riskgate_server.rpc.door import Call, Door
from riskgate_server.rpc.feed import Feed
from riskgate_server.rpc.gateway import Gateway
from riskgate_server.rpc.phones import PhoneBook

_T = TypeVar("_T")

log = structlog.get_logger()

CONFIRM_SECONDS: Final = 2.0
"""How often a watcher to whom nothing happens is asked for its rights again."""

HISTORY_END_US: Final = 253_370_764_800 * 1_000_000
"""The year 9999. Time that the data drives stops here: beyond, a time zone's hour or a hold's end has no date."""

READ_AGAIN_SECONDS: Final = 1.0
"""When a question that could not be answered may be asked again."""

PAGE_SIZE: Final = 50
"""Items on a page unless the request says otherwise."""


READS_MAX: Final = 256
"""Questions of calls that may wait for a reader's thread, about half a second of work. One more is refused at once."""

WATCH_READS_MAX: Final = 2
"""Questions of watchers at one time; the others wait their turn, and leave the rest of the threads to calls."""

RETRY_AFTER_SECONDS: Final = 0.5


class ServingClock(Clock, Protocol):
    """The engine's clock, and whether the data drives it."""

    @property
    def driven_by_data(self) -> bool:
        """Whether time is what the events say."""


class Readers:
    """Asks the store questions without keeping the event loop waiting. For one event loop."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._waiting = 0
        self._watchers_turns = asyncio.Semaphore(WATCH_READS_MAX)

    async def ask(self, question: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """
        Ask for a call.

        Raises:
            ResourceExhausted: too many wait already.
            Unavailable: the store could not be read just now.
        """
        if self._waiting >= READS_MAX:
            raise ResourceExhausted(
                "OVERLOADED", "the server has as much work as it can do", retry_after_seconds=RETRY_AFTER_SECONDS
            )
        self._waiting += 1
        try:
            return await self._asked(question, *args, **kwargs)
        finally:
            self._waiting -= 1

    async def ask_for_watcher(self, question: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Ask for a stream that watches: in turn, for there are many and one commit wakes all of a tenant."""
        async with self._watchers_turns:
            return await self._asked(question, *args, **kwargs)

    async def _asked(self, question: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        def ask() -> _T:
            try:
                return question(*args, **kwargs)
            except StopIteration as error:
                # The one exception that cannot cross a future: left alone, the caller would hang.
                raise RuntimeError(question) from error
            except (ReadFailed, StoreBusy) as error:
                # The second is a vault's, which has one connection for all.
                log.exception("read failed", question=getattr(question, "__name__", ""))
                raise Unavailable(
                    "READ_FAILED", "the store could not be read just now", retry_after_seconds=READ_AGAIN_SECONDS
                ) from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)


async def changed_or_due(changed: asyncio.Event) -> None:
    """Wait for a watcher's next change, or until its caller's rights should be looked at again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONFIRM_SECONDS):
            await changed.wait()
    changed.clear()


class Proofs(msgspec.Struct, frozen=True):
    """
    What is needed to ask devices for proofs.

    `threads` verify what they answer, before the queue. `fingerprint` hashes (tenant, kind, value) under a secret key.
    """

    policy: ProofPolicy
    judge: Judge
    threads: Readers
    fingerprint: Callable[[str, str, str], bytes]


class Rooms(msgspec.Struct, frozen=True):
    """Everything a servicer may speak to."""

    door: Door
    gateway: Gateway
    queries: Queries
    feed: Feed
    clock: ServingClock
    readers: Readers
    fingerprint: Callable[[CustomerKey, bytes], tuple[bytes, tuple[bytes, ...]]]
    write_decision: DecisionWriter
    secrets: ProofSecrets
    places: PlaceTokens
    delivery: Delivery
    phones: PhoneBook
    proofs: Proofs
    erase: Callable[[CustomerKey, int], None]
    nobody: Nobody = msgspec.field(default_factory=Nobody)

    async def change(self, changed: asyncio.Event) -> None:
        """
        Wait for a watcher's next commit, or until its caller's rights should be looked at again.

        Raises:
            Unavailable: the server is stopping.
        """
        await changed_or_due(changed)
        self.gateway.require_open()

    def head(self, request: Any, call: Call) -> dict[str, Any]:
        """Return what every command of this request carries."""
        caller = call.caller
        # Deterministic, so that the order of fields on the wire does not matter; unknown fields count as content.
        # So does the kind of request: a capture and a void may be the same bytes.
        fingerprint, others = self.fingerprint(
            key_of(request, call),
            request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True),
        )
        return {
            "tenant_id": caller.tenant_id,
            "customer_id": request.customer_id,
            "request_id": request.request_id,
            "fingerprint": fingerprint,
            "other_fingerprints": others,
            "caller_id": caller.caller_id,
            "deadline_us": call.deadline_us,
        }

    def event_time(self, event_us: int, call: Call) -> int:
        """
        Return when a caller says something happened, if this caller may say so on this server; 0 for now.

        How far from now it may be is for the engine's clock to say, after it is known that the request is new:
        a repeated one is answered however old it has become.

        Raises:
            InvalidRequest: it is beyond all history.
            PermissionRefused: the clock follows the data, and the caller may not drive it.
        """
        if not event_us:
            return 0
        if self.clock.driven_by_data and not call.caller.may("risk:history"):
            raise PermissionRefused("HISTORY_FORBIDDEN", "the credential may not send event times of its own")
        if event_us >= HISTORY_END_US:
            raise invalid("EVENT_TIME_OUT_OF_RANGE", "event_time", "must be before the year 9999")
        return event_us


def key_of(request: Any, call: Call) -> CustomerKey:
    """Return whose state a request concerns: the tenant is the caller's own, never the request's."""
    return (call.caller.tenant_id, request.customer_id)


def page_size_of(request: Any) -> int:
    """Return how many items a page may have."""
    size: int = request.page_size
    return size or PAGE_SIZE
