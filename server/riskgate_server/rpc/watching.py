"""
Reads for those who watch: once, for all of them.

Decisions: one follower for each tenant that is watched reads what was committed and lays it before every watcher, who
takes it at their own pace. Before one who is slower than the others only so much is laid: the rest they read by their
own position, up to where the follower is then, and go on with the others from there. So nobody waits for anybody, and
everybody is told the same, in the same order, as if they read alone.

Lines: who asks how theirs stands while an answer is being read is answered by the next reading, with all the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import islice
from typing import Final

import msgspec

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.errors import Unavailable
from riskgate_server.engine.places import Places
from riskgate_server.engine.replies import DecisionReply, LineReply
from riskgate_server.rpc.door import given_up, is_being_cancelled
from riskgate_server.rpc.service import Rooms, changed_or_due

PAGE: Final = 500
"""Decisions that are read at once."""

LAID_MAX: Final = 1_000
"""Decisions that lie before a watcher; who is further behind reads for themselves."""

LINES_MAX: Final = 200
"""Lines that are read at once."""


class Told(msgspec.Struct, eq=False):
    """A decision, where a watch goes on after it, and, once somebody was told, the message for all of the tenant's."""

    reply: DecisionReply
    after: Places
    message: pb.WatchDecisionsResponse | None = None


class Seat:
    """A watcher's, before the follower of their tenant."""

    def __init__(self, follower: _Follower, customer_id: str) -> None:
        self.changed = asyncio.Event()
        """Set when there may be something to take."""
        self._follower = follower
        self._customer_id = customer_id
        self._laid: list[Told] = []
        # Nothing is laid before who must first read for themselves: those who just came, those too far behind.
        self._behind = True
        self._until: Places = {}

    def lay(self, told: Told) -> None:
        """Lay one more before the watcher."""
        self._behind = self._behind or len(self._laid) >= LAID_MAX
        if not self._behind:
            self._laid.append(told)
        self.changed.set()

    def catch_up(self) -> Places:
        """Have everything laid here from now on, and return where that begins."""
        self._behind = False
        self._until = self._follower.places
        return self._until

    async def take(self, after: Places) -> tuple[list[Told], Places]:
        """
        Return what came after a place, and up to where that is all; both may be unchanged, and nothing.

        Raises:
            RiskgateError: the store could not be read.
        """
        if _covers(after, self._until):
            self._follower.require()
            laid, self._laid = self._laid, []
            if laid or not self._behind:
                return laid, laid[-1].after if laid else after
            self.catch_up()
        return await self._follower.read(after, self._customer_id, self._until)


class _Follower:
    """Reads what is decided in a tenant, from some places on."""

    def __init__(self, rooms: Rooms, tenant_id: str, places: Places) -> None:
        self.places = places
        self.failure: Exception | None = None
        self._rooms = rooms
        self._tenant_id = tenant_id
        self._seats: dict[str, set[Seat]] = {}
        self._read_on = asyncio.Condition()
        self._closing = ExitStack()
        self._woken = self._closing.enter_context(rooms.feed.tenant(tenant_id))
        task = asyncio.create_task(self._run())
        self._closing.callback(task.cancel)

    @property
    def followed(self) -> bool:
        """Whether anybody sits here."""
        return bool(self._seats)

    @contextmanager
    def seat(self, customer_id: str) -> Iterator[Seat]:
        """Give a seat to who watches a customer, or the whole tenant when that is empty."""
        seat = Seat(self, customer_id)
        self._seats.setdefault(customer_id, set()).add(seat)
        try:
            yield seat
        finally:
            self._seats[customer_id].discard(seat)
            if not self._seats[customer_id]:
                del self._seats[customer_id]

    async def reach(self, places: Places) -> None:
        """Wait until it has read up to some places. Raises as `require`."""
        self._woken.set()
        async with self._read_on:
            await self._read_on.wait_for(lambda: self.failure or _covers(self.places, places))
        self.require()

    def require(self) -> None:
        """Raise what ended it, if anything did."""
        if self.failure is not None:
            raise self.failure

    async def read(
        self, after: Places, customer_id: str = "", until: Places | None = None
    ) -> tuple[list[Told], Places]:
        """Read a page for one who is alone there."""
        found, seen = await self._rooms.readers.ask_for_watcher(
            self._rooms.queries.decisions_after,
            after,
            until=until,
            tenant_id=self._tenant_id,
            customer_id=customer_id,
            limit=PAGE,
        )
        return [Told(reply, places) for places, reply in found], seen

    async def _run(self) -> None:
        try:
            while True:
                found, self.places = await self._read_again_once()
                for told in found:
                    for seat in (*self._seats.get("", ()), *self._seats.get(told.reply.key[1], ())):
                        seat.lay(told)
                async with self._read_on:
                    self._read_on.notify_all()
                # No lane has more than was asked of each.
                if len(found) < PAGE // (len(self.places) or 1):
                    await changed_or_due(self._woken)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            await self._fail(given_up())
        except Exception as error:  # noqa: BLE001 - whatever it is, each watcher's own call says so
            await self._fail(error)

    async def _read_again_once(self) -> tuple[list[Told], Places]:
        try:
            return await self.read(self.places)
        except Unavailable:
            # A connection may have been lost under the question; if it is more than that, all who watch must know.
            return await self.read(self.places)

    async def _fail(self, error: Exception) -> None:
        self.failure = error
        for seats in self._seats.values():
            for seat in seats:
                seat.changed.set()
        async with self._read_on:
            self._read_on.notify_all()

    def close(self) -> None:
        """Read no further."""
        self._closing.close()


class DecisionWatches:
    """The followers of all tenants that are watched just now. For one event loop."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._followers: dict[str, _Follower] = {}

    @asynccontextmanager
    async def seat(self, tenant_id: str, customer_id: str) -> AsyncIterator[tuple[Seat, Places]]:
        """
        Give a seat before a tenant's follower, and say from where on it has all that is decided.

        That is no earlier than now. Raises what keeps the store from being read.
        """
        ends = await self._rooms.readers.ask(self._rooms.queries.ends)
        follower = self._followers.get(tenant_id)
        if follower is None or follower.failure:
            follower = self._followers[tenant_id] = _Follower(self._rooms, tenant_id, ends)
        try:
            with follower.seat(customer_id) as seat:
                await follower.reach(ends)
                yield seat, seat.catch_up()
        finally:
            if not follower.followed:
                follower.close()
                if self._followers.get(tenant_id) is follower:
                    del self._followers[tenant_id]


class LineWatches:
    """Reads lines, for all who ask at the same time. For one event loop."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._asked: dict[tuple[CustomerKey, str], asyncio.Future[LineReply | Exception]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def line(self, key: CustomerKey, line_id: str) -> LineReply:
        """Return a line as it stands once this is asked. Raises as `Queries.credit_line`, and as `Readers`."""
        answer = self._asked.setdefault((key, line_id), asyncio.get_running_loop().create_future())
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_all())
        # Others may wait for the same.
        reply = await asyncio.shield(answer)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _read_all(self) -> None:
        while self._asked:
            some = dict(islice(self._asked.items(), LINES_MAX))
            for asked in some:
                del self._asked[asked]
            for answer, reply in zip(some.values(), await self._read(list(some)), strict=True):
                answer.set_result(reply)
        self._reading = None

    async def _read(self, asked: Sequence[tuple[CustomerKey, str]]) -> Sequence[LineReply | Exception]:
        try:
            return await self._rooms.readers.ask_for_watcher(self._rooms.queries.credit_lines_of, asked)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            return [given_up()] * len(asked)
        except Exception as error:  # noqa: BLE001 - whatever it is, each watcher's own call says so
            return [error] * len(asked)


def _covers(places: Places, others: Places) -> bool:
    """Whether some places are as far as others in every lane."""
    return all(places.get(writer, 0) >= position for writer, position in others.items())
