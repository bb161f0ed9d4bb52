"""
Tells watchers that something was committed; what it was is read from the store (`watching.py`).

So a watcher can never miss a change or see one that is not durable, however slow it is. What this server commits is
announced; for what others do to a shared store it asks, once for all watchers, and not at all while nobody watches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import structlog

from riskgate_server.domain.customer import CustomerKey

log = structlog.get_logger()

FOLLOW_SECONDS: Final = 0.03
"""
Between two questions for what others committed: a third of the time in which a change is to be seen. The other two are
for reading it, on a busy machine. An idle question takes a quarter of a millisecond of one processor.
"""

FOLLOW_AGAIN_SECONDS: Final = 1.0
"""When it is asked again after the store could not be read."""


class Feed:
    """Keeps `engine.ports.EntrySink`. `committed` may be called from any thread; the rest is for the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # By tenant, or by tenant and customer.
        self._watchers: dict[str | CustomerKey, set[asyncio.Event]] = {}
        self._watched = asyncio.Event()

    def committed(self, position: int, keys: Iterable[CustomerKey]) -> None:
        """Everything up to `position` is durable; `keys` changed."""
        del position
        # Nobody watches most of the time, and then a commit must cost nothing here.
        if self._watchers:
            self._loop.call_soon_threadsafe(self._wake, tuple(keys))

    def _wake(self, keys: tuple[CustomerKey, ...]) -> None:
        for changed in {tenant for tenant, _ in keys}.union(keys):
            for event in self._watchers.get(changed, ()):
                event.set()

    def _wake_all(self) -> None:
        for events in self._watchers.values():
            for event in events:
                event.set()

    async def follow(self, changed: Callable[[], Collection[CustomerKey] | None]) -> None:
        """
        Wake watchers of what others commit, until cancelled.

        `changed` tells whom they changed since it was last asked, None for anybody; it may take its time, on a thread.
        A watcher that comes in between reads the store later than that, and is woken by what is committed after.
        """
        failing = False
        while True:
            await self._watched.wait()
            try:
                keys = await self._loop.run_in_executor(None, changed)
            except Exception:
                # Whatever it was, those who watch must go on being told.
                if not failing:
                    log.exception("changes of others cannot be read")
                failing = True
                await asyncio.sleep(FOLLOW_AGAIN_SECONDS)
                continue
            failing = False
            if keys is None:
                self._wake_all()
            else:
                self._wake(tuple(keys))
            await asyncio.sleep(FOLLOW_SECONDS)

    def tenant(self, tenant_id: str) -> AbstractContextManager[asyncio.Event]:
        """An event that is set after every commit that changed a customer of this tenant, and perhaps after others."""
        return self._watch(tenant_id)

    def customer(self, key: CustomerKey) -> AbstractContextManager[asyncio.Event]:
        """An event that is set after every commit that changed this customer, and perhaps after others."""
        return self._watch(key)

    @contextmanager
    def _watch(self, what: str | CustomerKey) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._watchers.setdefault(what, set()).add(event)
        self._watched.set()
        try:
            yield event
        finally:
            watchers = self._watchers[what]
            watchers.discard(event)
            if not watchers:
                del self._watchers[what]
            if not self._watchers:
                self._watched.clear()
