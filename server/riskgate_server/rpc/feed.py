"""
Tells watchers that something was committed; what it was they read from the store themselves.

So a watcher can never miss a change or see one that is not durable, however slow it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from riskgate_server.domain.customer import CustomerKey


class Feed:
    """Keeps `engine.ports.EntrySink`. `committed` may be called from any thread; the rest is for the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._everything: set[asyncio.Event] = set()
        self._customers: dict[CustomerKey, set[asyncio.Event]] = {}

    def committed(self, position: int, keys: Iterable[CustomerKey]) -> None:
        """Everything up to `position` is durable; `keys` changed."""
        del position
        # Nobody watches most of the time, and then a commit must cost nothing here.
        if self._everything or self._customers:
            self._loop.call_soon_threadsafe(self._wake, tuple(keys))

    def _wake(self, keys: tuple[CustomerKey, ...]) -> None:
        for event in self._everything:
            event.set()
        for key in keys:
            for event in self._customers.get(key, ()):
                event.set()

    @contextmanager
    def everything(self) -> Iterator[asyncio.Event]:
        """An event that is set after every commit."""
        event = asyncio.Event()
        self._everything.add(event)
        try:
            yield event
        finally:
            self._everything.discard(event)

    @contextmanager
    def customer(self, key: CustomerKey) -> Iterator[asyncio.Event]:
        """An event that is set after every commit that changed this customer."""
        event = asyncio.Event()
        self._customers.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            watchers = self._customers[key]
            watchers.discard(event)
            if not watchers:
                del self._customers[key]
