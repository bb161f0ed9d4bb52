"""A bank whose messages are delivered, and the gateway at the far end, which does as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from riskgate_server.crypto.keys import FingerprintKey
from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.engine import commands as c
from riskgate_server.engine.delivery import AT_ONCE, Answer, Delivery, Terms
from riskgate_server.engine.envelopes import Envelopes, Opened
from riskgate_server.engine.messages import Channel, Message
from riskgate_server.engine.ports import DeliveryUnknown, GatewayDown, MessageRefused
from riskgate_server.engine.queries import Queries
from riskgate_server.engine.replies import CodeReply, FactorReply, Failed, Refusal, Reply, error_of
from riskgate_server.engine.rows import MessageRow
from riskgate_server.engine.storing import Store
from riskgate_server.notify.texts import own_texts
from riskgate_server.stores.leases import Leases
from riskgate_server.stores.memory import MemoryStore
from tests import factories as f
from tests.bank import KEY, Bank
from tests.virtual import VirtualLoop


class FarEnd:
    """
    Keeps `ports.MessageGateway`, and honours ids: a message that comes again is taken for the first.

    `plan` says what happens to each attempt, the last for all that follow: ok, down, refused, lost (it never arrives,
    and nobody knows), silent (it arrives, and nobody knows), hangs, or seconds after which to try again.
    """

    def __init__(self, loop: VirtualLoop, plan: Sequence[str | float] = ("ok",)) -> None:
        self._loop = loop
        self.plan = list(plan)
        self.attempts: list[tuple[float, Message]] = []
        self.delivered: dict[str, Message] = {}
        self.at_once = 0
        self.most_at_once = 0
        self.seconds = 0.0
        self.closed = False

    async def send(self, message: Message) -> None:
        self.attempts.append((self._loop.time(), message))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
            await self._do(self.plan.pop(0) if len(self.plan) > 1 else self.plan[0], message)
        finally:
            self.at_once -= 1

    async def _do(self, what: str | float, message: Message) -> None:
        match what:
            case "down":
                raise GatewayDown("away")
            case float():
                raise GatewayDown("busy", retry_after_seconds=what)
            case "refused":
                raise MessageRefused("no such number")
            case "lost":
                raise DeliveryUnknown("cut")
            case "broken":
                raise RuntimeError(message.text)
        self.delivered.setdefault(message.id, message)
        if what == "silent":
            raise DeliveryUnknown("cut")
        if what == "hangs":
            await asyncio.sleep(1e6)

    async def close(self) -> None:
        self.closed = True

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.attempts]

    @property
    def ids(self) -> list[str]:
        return [message.id for _, message in self.attempts]


class Counts:
    """Keeps `delivery.DeliveryObserver`."""

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self.outcomes: list[str] = []

    def attempted(self, channel: Channel, result: str, seconds: float) -> None:
        assert channel is Channel.SMS
        assert seconds >= 0
        self.attempts.append(result)

    def settled(self, channel: Channel, outcome: str) -> None:
        self.outcomes.append(outcome)


class Post:
    """
    A bank whose messages are delivered. Time is the loop's, and nobody waits for it.

    `refusals` is what the write path says of the next settlements instead of running them; `dead` is a process that
    was killed: nothing it asks for is ever answered.
    """

    def __init__(
        self, plan: Sequence[str | float] = ("ok",), *, store: Store | None = None, at_once: int = AT_ONCE
    ) -> None:
        self.loop = VirtualLoop(self._passed)
        self.store = store or MemoryStore()
        if isinstance(self.store, MemoryStore):
            self.store._leases = Leases(self.loop.time)
        self.bank = Bank(self.store)
        self.queries = Queries(
            self.store,
            vault=self.bank.vault,
            sealer=Sealer(),
            clock=self.bank.clock,
            rulesets=lambda _: f.ChosenRules(),
        )
        self.far_end = FarEnd(self.loop, plan)
        self.counts = Counts()
        self.refusals: list[Exception] = []
        self._at_once = at_once
        self._begun: list[Delivery] = []
        self.envelopes = Envelopes(
            vault=self.bank.vault,
            sealer=Sealer(),
            secrets=self.bank.secrets,
            texts=own_texts(),
            fingerprint=FingerprintKey(bytes(32)).of_content,
            language="en",
        )
        self.delivery = self.loop.run(self.start())

    def _passed(self, seconds: float) -> None:
        self.bank.clock.wait(round(seconds * f.SECOND_US))

    async def start(self) -> Delivery:
        """Another process begins, over what is stored."""
        alive = True
        delivery = Delivery(
            self.far_end,
            open_all=self._open,
            recall=self._recall,
            ended=self._ended,
            submit=lambda command: self._submit(command, lambda: alive),
            clock=self.bank.clock,
            observer=self.counts,
            terms=Terms(),
            at_once=self._at_once,
            monotonic=self.loop.time,
            chance=lambda: 0.5,
        )

        self._begun.append(delivery)

        def die() -> None:
            nonlocal alive
            alive = False

        self.kill = die
        self.bank.pipeline = f.make_pipeline(
            self.store,
            vault=self.bank.vault,
            clock=self.bank.clock,
            secrets=self.bank.secrets,
            outgoing=delivery,
            monotonic_us=lambda: round(self.loop.time() * f.SECOND_US),
        )
        return delivery

    def close(self) -> None:
        for delivery in self._begun:
            self.loop.run(delivery.close())
        self.loop.close()

    async def _open(self, rows: Sequence[MessageRow]) -> list[Opened | None]:
        return self.envelopes.open(rows)

    async def _recall(self, key: CustomerKey, message_id: str) -> str:
        return self.queries.message_outcome(key, message_id)

    async def _ended(self, key: CustomerKey, challenge_id: str) -> bool:
        return self.queries.code_ended(key, challenge_id)

    async def _submit(self, command: c.Command, alive: Any) -> Reply:
        await asyncio.sleep(0.001)
        if not alive():
            await asyncio.Event().wait()
        if self.refusals:
            raise self.refusals.pop(0)
        reply = self.bank.do(command)
        if isinstance(reply, Refusal | Failed):
            raise error_of(reply)
        return reply

    def sweep(self) -> list[MessageRow]:
        """What the writer's thread does every second."""
        rows = list(self.store.lease_messages(self.bank.clock.now_us(), self.delivery.room))
        self.delivery.leased(rows, self.loop.time())
        return rows

    async def send(self, purpose: Purpose = Purpose.SIGN_IN, transaction_id: str = "") -> tuple[str, Answer]:
        """A code is asked for: its challenge, and what the caller is told."""
        reply = self.bank.send(purpose, transaction_id)
        assert isinstance(reply, CodeReply), reply
        return reply.code.challenge_id, await self.told(reply.code.message_id)

    async def told(self, message_id: str, seconds: float | None = None) -> Answer:
        """What a caller is told, whose reply came over from the writer's thread like the message before it."""
        await asyncio.sleep(0)
        return await self.delivery.answer(KEY, message_id, seconds)

    async def enroll(self) -> str:
        """A confirmed phone; the message for it was delivered."""
        plan, self.far_end.plan = self.far_end.plan, ["ok"]
        reply = self.bank.enroll_phone()
        assert isinstance(reply, FactorReply), reply
        assert reply.code is not None
        assert await self.told(reply.code.message_id) is Answer.DELIVERED
        code = self.far_end.attempts[-1][1].parameters["code"]
        confirmed = self.bank.ask(c.ConfirmFactor, factor_id=reply.factor.factor_id, code=code)
        assert isinstance(confirmed, FactorReply), confirmed
        await asyncio.sleep(1)
        self.far_end.plan = plan
        self.far_end.attempts.clear()
        self.far_end.delivered.clear()
        self.counts.attempts.clear()
        self.counts.outcomes.clear()
        return reply.factor.factor_id

    @property
    def waiting(self) -> int:
        with self.store.snapshot() as snapshot:
            return snapshot.counts()["messages"]
