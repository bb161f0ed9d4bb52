"""
Delivers messages that wait in the store: after their commit, at least once, under one id.

A message is sent by the process that has it on lease, which began when it was written or when the writer's sweep took
it. What came of it goes through the one write path as `SettleMessage`, so that a crash between sending and settling
has it sent again under the same id. A message whose time is over is dropped, never sent late; so is a code that ended
before it was tried again.

For one event loop; only `written` and `leased` may be called from other threads.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Final, Protocol

import msgspec
import structlog

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.errors import (
    Conflict,
    NotFound,
    PreconditionFailed,
    ResourceExhausted,
    RiskgateError,
    Unavailable,
)
from riskgate_server.engine.commands import Command, SettleMessage
from riskgate_server.engine.envelopes import Opened
from riskgate_server.engine.failures import ReadFailed, StoreBusy
from riskgate_server.engine.messages import Channel
from riskgate_server.engine.ports import Clock, DeliveryUnknown, GatewayDown, MessageGateway, MessageRefused
from riskgate_server.engine.rows import MessageRow
from riskgate_server.engine.storing import MESSAGE_LEASE_SECONDS

log = structlog.get_logger()

WAITING_MAX: Final = 4_096
"""Messages that one process has in hand, about 1 KiB each; what is beyond waits in the store."""

AT_ONCE: Final = 32
"""Messages that are with the gateway at the same time."""

RETRY_SECONDS: Final = 0.25
"""About how long after a first failure a message is tried again; doubled with each further one."""

ROUND_SECONDS: Final = MESSAGE_LEASE_SECONDS
"""About how long after a round of attempts that came to nothing the next one begins; doubled with each further one."""

ROUND_SECONDS_MAX: Final = 3_600.0
"""No round begins later than that after the last."""

SETTLE_SECONDS_MAX: Final = 5.0
"""Between two attempts to record what came of a message, at most."""

ROUNDS_REMEMBERED_MAX: Final = 10_000
"""Messages whose number of rounds is remembered; beyond it the oldest is forgotten."""

RECALL_SECONDS: Final = 0.25
"""How often the store is asked what a message came to that another process has."""

_SECOND_US: Final = 1_000_000

_AGAIN: Final = (Conflict, ResourceExhausted, Unavailable)
"""Refusals of a command that may be accepted later."""

Where = tuple[CustomerKey, str]


class Answer(Enum):
    """What is known of a message by whoever waits for it."""

    DELIVERED = "delivered"
    """The gateway has taken it."""
    REFUSED = "refused"
    """The gateway will never take it: there is no such number."""
    UNSENT = "unsent"
    """The gateway is down and certainly did not take it; it will not be sent any more, and counts for nothing."""
    PENDING = "pending"
    """It is not known; it is still being tried, or another process has it."""


_ANSWERS: Final = {
    "DELIVERED": Answer.DELIVERED,
    "REFUSED": Answer.REFUSED,
    "UNREADABLE": Answer.REFUSED,
    "UNSENT": Answer.UNSENT,
}
"""By the outcome on record."""


class DeliveryObserver(Protocol):
    """Counts. Nothing it hears of names a person."""

    def attempted(self, channel: Channel, result: str, seconds: float) -> None:
        """One attempt took so long and came to DELIVERED, REFUSED, DOWN or UNKNOWN."""

    def settled(self, channel: Channel, outcome: str) -> None:
        """A message waits no longer."""


class Terms(msgspec.Struct, frozen=True):
    """
    How long things may take, in seconds.

    Attributes:
        attempt: how long the gateway may take to answer.
        patience: how long a message is tried in one go; who waits for a code waits no longer than that and one attempt.
    """

    attempt: float = 3.0
    patience: float = 5.0

    def __post_init__(self) -> None:
        # A round must end within its lease, with time to record what came of it.
        assert 2 * self.attempt + self.patience <= MESSAGE_LEASE_SECONDS / 2


class _Sending(msgspec.Struct):
    """
    A message in hand.

    Attributes:
        lease_ends: by the monotonic clock, in seconds; nothing is sent that could still be under way then.
        fresh: whether it was just committed; else somebody may have tried it before.
        certain: whether it has certainly not reached anybody so far.
    """

    row: MessageRow
    lease_ends: float
    fresh: bool
    certain: bool
    answer: asyncio.Future[Answer]

    @property
    def where(self) -> Where:
        return (self.row.key, self.row.message_id)


class Delivery:
    """
    Keeps `ports.Outgoing`.

    Args:
        open_all: returns messages ready to be sent, None for each that nobody can read any more.
        submit: has a command run, through the one write path.
        recall: returns the outcome on record of a message; empty while there is none.
        ended: tells whether a code's challenge ended meanwhile: it was used, burned, or a newer one took its place.
        chance: a number from 0 to 1, which spreads attempts.
    """

    def __init__(
        self,
        gateway: MessageGateway,
        *,
        open_all: Callable[[Sequence[MessageRow]], Awaitable[Sequence[Opened | None]]],
        submit: Callable[[Command], Awaitable[object]],
        recall: Callable[[CustomerKey, str], Awaitable[str]],
        ended: Callable[[CustomerKey, str], Awaitable[bool]],
        clock: Clock,
        observer: DeliveryObserver,
        terms: Terms = Terms(),  # noqa: B008 - frozen
        at_once: int = AT_ONCE,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._gateway = gateway
        self._open_all = open_all
        self._submit = submit
        self._recall = recall
        self._ended = ended
        self._clock = clock
        self._observer = observer
        self._terms = terms
        self._slots = asyncio.Semaphore(at_once)
        self._monotonic = monotonic
        self._chance = chance
        self._in_hand: dict[Where, _Sending] = {}
        self._rounds: OrderedDict[Where, int] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- What may be called from the writer's thread. ---

    @property
    def room(self) -> int:
        """How many more messages are taken."""
        return 0 if self._closed else max(0, WAITING_MAX - len(self._in_hand))

    def written(self, rows: Sequence[MessageRow], since: float) -> None:
        """Send what a commit has written and is due."""
        self._loop.call_soon_threadsafe(self._take, rows, since, True)

    def leased(self, rows: Sequence[MessageRow], since: float) -> None:
        """Send what was left in the store. Whether it was tried before is not known."""
        self._loop.call_soon_threadsafe(self._take, rows, since, False)

    # --- What callers wait for. ---

    @property
    def pending(self) -> int:
        """Messages in hand."""
        return len(self._in_hand)

    async def answer(self, key: CustomerKey, message_id: str, seconds: float | None = None) -> Answer:
        """
        Wait for the gateway's answer to a message, at most `seconds`, or as long as a message is tried in one go.

        May be asked from the commit on that wrote the message, as often as one likes and in any process: who asks again
        under the same request id is told the same. A caller that is cancelled cancels nothing but its own wait.
        """
        # One attempt may begin in the last moment of its patience.
        wait = self._terms.patience + self._terms.attempt if seconds is None else seconds
        sending = self._in_hand.get((key, message_id))
        if sending is not None:
            done, _ = await asyncio.wait({sending.answer}, timeout=wait)
            return sending.answer.result() if done else Answer.PENDING
        ends = self._monotonic() + wait
        while True:
            outcome = await self._recall(key, message_id)
            if outcome or self._closed or self._monotonic() + RECALL_SECONDS > ends:
                return _ANSWERS.get(outcome, Answer.PENDING)
            await asyncio.sleep(RECALL_SECONDS)

    async def close(self, grace_seconds: float = 0.0) -> None:
        """
        Take nothing more, let what is in hand come to its end, and leave the rest in the store.

        While it goes on, commands must still be accepted.
        """
        self._closed = True
        if self._tasks and grace_seconds:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._gateway.close()

    # --- Taking messages in hand. ---

    def _take(self, rows: Sequence[MessageRow], since: float, fresh: bool) -> None:  # noqa: FBT001
        now_us = self._clock.now_us()
        taken = []
        for row in rows:
            where = (row.key, row.message_id)
            if row.due_us > now_us or where in self._in_hand or not self.room:
                continue
            answer = self._loop.create_future()
            sending = _Sending(row, since + MESSAGE_LEASE_SECONDS, fresh, certain=fresh, answer=answer)
            self._in_hand[where] = sending
            taken.append(sending)
        if taken:
            self._begin(self._deliver_all(taken))

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work, loop=self._loop)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver_all(self, taken: Sequence[_Sending]) -> None:
        try:
            opened = await self._open_all([sending.row for sending in taken])
        except (ReadFailed, StoreBusy):
            log.warning("messages put off", messages=len(taken), exc_info=True)
            opened = None
        except BaseException:
            for sending in taken:
                self._let_go(sending, Answer.PENDING)
            raise
        for index, sending in enumerate(taken):
            if opened is None:
                # Whoever has it on lease next.
                self._let_go(sending, Answer.PENDING)
            else:
                self._begin(self._deliver(sending, opened[index]))

    async def _deliver(self, sending: _Sending, opened: Opened | None) -> None:
        try:
            if opened is None:
                await self._settle(sending, None, "UNREADABLE", Answer.REFUSED)
            else:
                await self._one_round(sending, opened)
        except Exception:
            log.exception("delivery failed")
        finally:
            # Unless it came to something: it is left to whoever has it on lease next.
            self._let_go(sending, Answer.PENDING)

    def _let_go(self, sending: _Sending, answer: Answer) -> None:
        if not sending.answer.done():
            self._answered(sending, answer)
        self._in_hand.pop(sending.where, None)

    def _answered(self, sending: _Sending, answer: Answer) -> None:
        sending.answer.set_result(answer)

    # --- One message. ---

    async def _one_round(self, sending: _Sending, opened: Opened) -> None:
        """Try a message until it came to something, or patience or lease is over."""
        began, failures = self._monotonic(), 0
        while True:
            # Its first attempt follows on its commit; what is tried later may be a wrong code by then.
            if (failures or not sending.fresh) and await self._overtaken(sending, opened):
                await self._settle(sending, opened, "ENDED", Answer.UNSENT)
                return
            async with self._slots:
                if self._clock.now_us() >= opened.message.not_after_us:
                    await self._settle(sending, opened, "EXPIRED", Answer.UNSENT)
                    return
                if self._lease_over(sending, after=0.0):
                    # Another process may be sending it.
                    return
                if self._patience_over(began, after=0.0):
                    break
                failure = await self._attempt(sending, opened)
            if failure is None:
                return
            failures += 1
            wait = max(failure.retry_after_seconds, RETRY_SECONDS * 2.0**failures * (0.5 + self._chance() / 2))
            if self._patience_over(began, after=wait) or self._lease_over(sending, after=wait):
                await self._end_round(sending, opened, failure.retry_after_seconds)
                return
            await asyncio.sleep(wait)
        await self._end_round(sending, opened, 0.0)

    async def _overtaken(self, sending: _Sending, opened: Opened) -> bool:
        """Whether it is a code that is worthless by now. While that cannot be asked it is sent: it may be right."""
        if not opened.challenge_id:
            return False
        try:
            return await self._ended(sending.row.key, opened.challenge_id)
        except (NotFound, PreconditionFailed):
            # The customer was erased meanwhile.
            return True
        except (ResourceExhausted, Unavailable):
            return False

    def _patience_over(self, began: float, *, after: float) -> bool:
        """Whether an attempt that begins so many seconds from now is left to a later round."""
        return self._monotonic() + after > began + self._terms.patience

    def _lease_over(self, sending: _Sending, *, after: float) -> bool:
        """Whether such an attempt could still be under way when another process sends the message."""
        return self._monotonic() + after + 2 * self._terms.attempt > sending.lease_ends

    async def _attempt(self, sending: _Sending, opened: Opened) -> GatewayDown | None:
        """Send once; return what failed, None if there is nothing left to try."""
        channel, began = opened.message.channel, self._monotonic()
        try:
            async with asyncio.timeout(self._terms.attempt):
                await self._gateway.send(opened.message)
        except TimeoutError:
            failure: GatewayDown = DeliveryUnknown("timed out")
        except GatewayDown as error:
            failure = error
        except MessageRefused as error:
            self._observer.attempted(channel, "REFUSED", self._monotonic() - began)
            log.warning("message refused", message=opened.message.id, channel=channel.name, why=str(error))
            await self._settle(sending, opened, "REFUSED", Answer.REFUSED)
            return None
        except Exception as error:  # noqa: BLE001 - whatever a gateway breaks, the message is tried again
            failure = DeliveryUnknown(type(error).__name__)
        else:
            self._observer.attempted(channel, "DELIVERED", self._monotonic() - began)
            await self._settle(sending, opened, "DELIVERED", Answer.DELIVERED)
            return None
        unknown = isinstance(failure, DeliveryUnknown)
        sending.certain = sending.certain and not unknown
        result = "UNKNOWN" if unknown else "DOWN"
        self._observer.attempted(channel, result, self._monotonic() - began)
        log.warning(
            "message not delivered", message=opened.message.id, channel=channel.name, result=result, why=str(failure)
        )
        return failure

    async def _end_round(self, sending: _Sending, opened: Opened, retry_after_seconds: float) -> None:
        """Give a code up that certainly reached nobody, for who asked for it is told so; put off all else."""
        if opened.challenge_id and sending.certain:
            await self._settle(sending, opened, "UNSENT", Answer.UNSENT)
            return
        rounds = self._rounds.pop(sending.where, 0)
        self._rounds[sending.where] = rounds + 1
        if len(self._rounds) > ROUNDS_REMEMBERED_MAX:
            self._rounds.popitem(last=False)
        spread = 0.75 + self._chance() / 2
        wait = min(max(retry_after_seconds, ROUND_SECONDS * 2.0**rounds * spread), ROUND_SECONDS_MAX)
        key, message_id = sending.where
        due_us = self._clock.now_us() + round(wait * _SECOND_US)
        self._let_go(sending, Answer.PENDING)
        await self._record(
            SettleMessage(
                tenant_id=key[0],
                customer_id=key[1],
                message_id=message_id,
                outcome="RETRY",
                due_us=due_us,
                deadline_us=_deadline_us(sending),
            )
        )

    async def _settle(self, sending: _Sending, opened: Opened | None, outcome: str, answer: Answer) -> None:
        """Record what a message came to. Who waits is told when it is recorded, and of a success at once."""
        if answer is Answer.DELIVERED:
            self._answered(sending, answer)
        key, message_id = sending.where
        # What is refused counts: nobody is to ask the gateway about numbers without end.
        unsent = opened.challenge_id if opened and sending.certain and answer is Answer.UNSENT else ""
        done = await self._record(
            SettleMessage(
                tenant_id=key[0],
                customer_id=key[1],
                message_id=message_id,
                outcome=outcome,
                unsent_challenge=unsent,
                # What the gateway said stands whoever has the message now; what it did not say may have changed.
                deadline_us=0 if answer in (Answer.DELIVERED, Answer.REFUSED) else _deadline_us(sending),
            )
        )
        if done:
            self._rounds.pop(sending.where, None)
            self._observer.settled(opened.message.channel if opened else Channel.SMS, outcome)
            if answer is not Answer.DELIVERED:
                self._let_go(sending, answer if sending.certain or answer is Answer.REFUSED else Answer.PENDING)

    async def _record(self, command: SettleMessage) -> bool:
        """Have a command run, until it was or never will be; False if the message is left as it is."""
        wait = RETRY_SECONDS
        while True:
            try:
                await self._submit(command)
            except _AGAIN as error:
                log.warning("message not settled", outcome=command.outcome, reason=error.reason)
                if self._closed or 0 < command.deadline_us <= self._monotonic() * _SECOND_US:
                    return False
            except RiskgateError as error:
                # It stays on lease for a while, so that it cannot be in everybody's way.
                log.error("message not settled", outcome=command.outcome, reason=error.reason)  # noqa: TRY400
                return False
            else:
                return True
            await asyncio.sleep(wait)
            wait = min(2 * wait, SETTLE_SECONDS_MAX)


def _deadline_us(sending: _Sending) -> int:
    return round(sending.lease_ends * _SECOND_US)
