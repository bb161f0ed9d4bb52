"""
Tells watchers that something was committed; what it was they read from the store themselves.

So a watcher can never miss a change or see one that is not durable, however slow it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from riskgate_server.domain.customer import CustomerKey


class Feed:
    """Keeps `engine.ports.EntrySink`. `committed` may be called from any thread; the rest is for the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # By tenant, or by tenant and customer.
        self._watchers: dict[str | CustomerKey, set[asyncio.Event]] = {}

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

    def tenant(self, tenant_id: str) -> AbstractContextManager[asyncio.Event]:
        """An event that is set after every commit that changed a customer of this tenant."""
        return self._watch(tenant_id)

    def customer(self, key: CustomerKey) -> AbstractContextManager[asyncio.Event]:
        """An event that is set after every commit that changed this customer."""
        return self._watch(key)

    @contextmanager
    def _watch(self, what: str | CustomerKey) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._watchers.setdefault(what, set()).add(event)
        try:
            yield event
        finally:
            watchers = self._watchers[what]
            watchers.discard(event)
            if not watchers:
                del self._watchers[what]
