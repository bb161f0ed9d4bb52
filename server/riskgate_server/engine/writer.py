"""
The thread that runs the pipeline: takes everything waiting, commits it, hands the replies back.

Commands cross the queue as plain data under a ticket; the edge keeps who waits for which ticket. A
caller that gave up is the edge's business: here a command that started always finishes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final

import structlog

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.errors import Unavailable
from riskgate_server.engine.commands import Command, SettleLapsed
from riskgate_server.engine.failures import OutcomeUnknown, ReadFailed, StoreBroken, StoreBusy, StoreConflict, StoreFull
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.ports import Clock, Outgoing
from riskgate_server.engine.replies import Failed, Reply, failure_of
from riskgate_server.engine.storing import Store

log = structlog.get_logger()

BATCH_MAX: Final = 512
"""Commands in one commit."""

LINGER_STEP_SECONDS: Final = 0.001

LINGER_STEPS_MAX: Final = 20
"""How long a batch waits at most for callers that are on their way: 20 ms."""

DEFERRALS_MAX: Final = 3
"""Batches that go without a customer whom another process holds; the next one waits for them."""

DEFERRED_SECONDS: Final = 0.005
"""How long who was left waits for company, at the latest: doubled with every batch that went without them."""

SWEEP_SECONDS: Final = 1.0
"""How often holds that lapsed unnoticed are ended."""

SWEEP_CUSTOMERS_MAX: Final = 200
"""Customers one sweep ends holds for."""

PASSED_OVER_MAX: Final = 10_000
"""Customers the sweep passes over because their holds cannot be ended."""

REPLY_LIFETIME_US: Final = 7 * 86_400 * 1_000_000
"""How long the full reply to a request id is kept; afterwards only that it was used, and for what."""

FORGET_MAX: Final = 1_000
"""Replies one sweep forgets."""

MESSAGES_MAX: Final = 500
"""Messages one sweep takes to be sent."""

Ticket = int
Delivery = Callable[[Sequence[tuple[Ticket, Reply]]], None]

LAPSED: Final = "lapsed holds"
OLD_REPLIES: Final = "old replies"
"""The periodic jobs, of which each is one process's at a time."""

_HOPELESS: Final = frozenset({"CUSTOMER_UNREADABLE", "INTERNAL"})

_STOP: Final = (-1, None)


class Writer:
    """
    Owns the pipeline's thread.

    Args:
        deliver: takes the replies of one commit; called from this thread.
        on_broken: hears that nothing will be written any more.
        outgoing: takes the messages that were left in the store.
        spent_seconds: processor time the process has used so far: what is spent while this thread sleeps, the edge
            spends on callers who are on their way.
        pause: sleeps.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        store: Store,
        clock: Clock,
        *,
        deliver: Delivery,
        on_broken: Callable[[], object],
        outgoing: Outgoing | None = None,
        spent_seconds: Callable[[], float] = time.process_time,
        pause: Callable[[float], object] = time.sleep,
        batch_max: int = BATCH_MAX,
    ) -> None:
        self._pipeline = pipeline
        self._store = store
        self._clock = clock
        self._deliver = deliver
        self._on_broken = on_broken
        self._outgoing = outgoing
        self._spent_seconds = spent_seconds
        self._pause = pause
        self._batch_max = batch_max
        self._queue: SimpleQueue[tuple[Ticket, Command | None]] = SimpleQueue()
        self._swept_at = time.monotonic()
        self._passed_over: set[CustomerKey] = set()
        self._last_size = 1
        self._deferred: list[tuple[Ticket, Command]] = []
        self._deferrals: dict[CustomerKey, int] = {}
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Begin to take commands."""
        self._thread.start()

    def put(self, ticket: Ticket, command: Command) -> None:
        """Queue a command. Never blocks; how much may wait is the edge's bound."""
        self._queue.put((ticket, command))

    def stop(self) -> None:
        """Finish what is queued and end the thread."""
        self._queue.put(_STOP)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._step():
                if time.monotonic() - self._swept_at >= SWEEP_SECONDS:
                    self._swept_at = time.monotonic()
                    try:
                        self._sweep()
                    except (OutcomeUnknown, ReadFailed, StoreBusy, StoreConflict, StoreFull):
                        log.warning("sweep put off", exc_info=True)
            while self._deferred:
                self._run_batch(self._deferred)
        except Exception as error:
            # Whatever it is: a thread that dies in silence leaves every caller hanging.
            self._on_broken()
            log.critical("store broken" if isinstance(error, StoreBroken) else "writer broken", exc_info=True)
            self._refuse_the_rest()

    def _step(self) -> bool:
        # Before whatever came since: each customer's commands keep their order.
        taken: list[tuple[Ticket, Command | None]] = [*self._deferred]
        with contextlib.suppress(Empty):
            if len(taken) < self._batch_max:
                taken.append(self._queue.get(timeout=self._patience_seconds))
                self._gather(taken)
        batch = [(ticket, command) for ticket, command in taken if command is not None]
        if batch:
            self._run_batch(batch)
        return len(batch) == len(taken)

    @property
    def _patience_seconds(self) -> float:
        """How long the queue may stay empty."""
        if not self._deferred:
            return SWEEP_SECONDS
        # Who holds a customer lets go when its batch ends: a try before that costs a few questions for nothing.
        return DEFERRED_SECONDS * 2.0 ** (max(self._deferrals.values()) - 1)

    def _gather(self, taken: list[tuple[Ticket, Command | None]]) -> None:
        """
        Take everything that waits, and wait for more as long as the edge is busy bringing it.

        Two threads that run Python at once only take turns at its lock, so a batch that begins while callers are
        still being let in is smaller, and dearer for everybody. The wait ends when the edge has been idle for half a
        step, and is bounded; who came alone last time does not wait at all.
        """
        self._take(taken)
        for _ in range(LINGER_STEPS_MAX if self._last_size > 1 else 0):
            if len(taken) >= self._batch_max:
                return
            spent = self._spent_seconds()
            self._pause(LINGER_STEP_SECONDS)
            self._take(taken)
            if self._spent_seconds() - spent <= LINGER_STEP_SECONDS / 2:
                return

    def _take(self, taken: list[tuple[Ticket, Command | None]]) -> None:
        with contextlib.suppress(Empty):
            while len(taken) < self._batch_max:
                taken.append(self._queue.get_nowait())

    def _run_batch(self, batch: Sequence[tuple[Ticket, Command]]) -> None:
        """Have a batch run, and put off those whose customers another process holds, though not for ever."""
        wait = {key for key, times in self._deferrals.items() if times >= DEFERRALS_MAX}
        self._deferred = []
        try:
            replies = self._pipeline.run_free([command for _, command in batch], wait=wait)
        except StoreBroken:
            unknown = failure_of(Unavailable("OUTCOME_UNKNOWN", "the outcome is unknown; repeat the same request id"))
            self._deliver([(ticket, unknown) for ticket, _ in batch])
            raise
        answered: list[tuple[Ticket, Reply]] = []
        for (ticket, command), reply in zip(batch, replies, strict=True):
            if reply is None:
                self._deferred.append((ticket, command))
            else:
                answered.append((ticket, reply))
        if answered:
            self._deliver(answered)
        put_off = {command.key for _, command in self._deferred}
        self._deferrals = {key: self._deferrals.get(key, 0) + 1 for key in put_off}
        self._last_size = len(batch)

    def _refuse_the_rest(self) -> None:
        """Answer what never started: it had no effect."""
        refused = failure_of(Unavailable("SHUTTING_DOWN", "the server is stopping; nothing was done"))
        if self._deferred:
            self._deliver([(ticket, refused) for ticket, _ in self._deferred])
        while True:
            ticket, command = self._queue.get()
            if command is None:
                return
            self._deliver([(ticket, refused)])

    def _pass_over(self, customers: Sequence[CustomerKey]) -> None:
        """Leave customers whose holds cannot be ended to a restart: at the head of the queue they would block it."""
        added = customers[: PASSED_OVER_MAX - len(self._passed_over)]
        if added:
            self._passed_over.update(added)
            log.error("holds not ended", customers=len(self._passed_over))

    def _sweep(self) -> None:
        """End lapsed holds nobody asked about, and forget old replies, unless another process does it."""
        now_us = self._clock.now_us()
        if self._store.lease(LAPSED):
            self._end_lapsed(now_us)
        if self._store.lease(OLD_REPLIES):
            self._store.forget_replies(now_us - REPLY_LIFETIME_US, FORGET_MAX)
        # Which message is whose, each row says itself.
        self._take_messages(now_us)

    def _end_lapsed(self, now_us: int) -> None:
        due = self._store.customers_due(now_us, SWEEP_CUSTOMERS_MAX + len(self._passed_over))
        due = [key for key in due if key not in self._passed_over][:SWEEP_CUSTOMERS_MAX]
        if due:
            settling = [SettleLapsed(tenant_id=key[0], customer_id=key[1]) for key in due]
            # Whoever holds a customer ends their holds, or the next sweep does.
            replies = self._pipeline.run_free(settling, wait=())
            self._pass_over([key for key, reply in zip(due, replies, strict=True) if _hopeless(reply)])

    def _take_messages(self, now_us: int) -> None:
        """Have messages sent that a process left behind, or put off until now."""
        room = min(self._outgoing.room, MESSAGES_MAX) if self._outgoing else 0
        if room and self._outgoing:
            since = time.monotonic()
            if rows := self._store.lease_messages(now_us, room):
                self._outgoing.leased(rows, since)


def _hopeless(reply: Reply | None) -> bool:
    return isinstance(reply, Failed) and reply.reason in _HOPELESS
