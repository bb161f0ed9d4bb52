"""
Between the event loop and the writer's thread: who waits for which ticket, and how many may wait.

A caller that gives up stops waiting and nothing else: its command runs or not by its own deadline,
and its place is free again only when the writer is done with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from riskgate_server.domain.errors import ResourceExhausted, Unavailable
from riskgate_server.engine.commands import Command
from riskgate_server.engine.replies import Failed, Refusal, Reply, error_of, failure_of
from riskgate_server.engine.writer import Ticket, Writer

WAITING_MAX: Final = 4_096
"""Commands that may wait for the writer: about half a second of work. One more is refused at once."""

RETRY_AFTER_SECONDS: Final = 0.5


class _Wait:
    __slots__ = ("future", "missing", "replies")

    def __init__(self, future: asyncio.Future[list[Reply]], size: int) -> None:
        self.future = future
        self.missing = size
        self.replies: list[Reply | None] = [None] * size


class Gateway:
    """Takes commands from handlers and brings back replies. For one event loop."""

    def __init__(self, *, waiting_max: int = WAITING_MAX) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Ticket, tuple[_Wait, int]] = {}
        self._waiting_max = waiting_max
        self._next_ticket = 0
        self._writer: Writer | None = None
        self._tell_closing: list[Callable[[], object]] = []

    @property
    def waiting(self) -> int:
        """Commands the writer has not answered yet."""
        return len(self._waiting)

    def open(self, writer: Writer) -> None:
        """Let commands through."""
        self._writer = writer

    def close(self) -> None:
        """Refuse every further command, and tell those who listen for it."""
        self._writer = None
        for tell in tuple(self._tell_closing):
            tell()

    @contextmanager
    def closing(self, tell: Callable[[], object]) -> Iterator[None]:
        """Have `tell` called when the gateway closes: streams would keep a stopping server waiting."""
        self._tell_closing.append(tell)
        try:
            yield
        finally:
            self._tell_closing.remove(tell)

    def require_open(self) -> None:
        """
        Refuse while the server stops.

        Raises:
            Unavailable: the server is stopping.
        """
        if self._writer is None:
            raise Unavailable("SHUTTING_DOWN", "the server is stopping; nothing was done")

    def admit(self, size: int = 1) -> None:
        """
        Refuse work that could not be done in time, before any is done for it.

        Raises:
            ResourceExhausted: too much waits already.
            Unavailable: the server is stopping.
        """
        self.require_open()
        if len(self._waiting) + size > self._waiting_max:
            raise ResourceExhausted(
                "OVERLOADED", "the server has as much work as it can do", retry_after_seconds=RETRY_AFTER_SECONDS
            )

    async def submit(self, command: Command) -> Reply:
        """
        Have a command run and return its reply.

        Raises:
            RiskgateError: the command was refused or failed.
        """
        (reply,) = await self.submit_many([command])
        if isinstance(reply, Refusal | Failed):
            raise error_of(reply)
        return reply

    async def submit_many(self, commands: Sequence[Command]) -> list[Reply]:
        """Have commands run, in order for each customer, and return their replies in the same order."""
        self.admit(len(commands))
        writer = self._writer
        assert writer is not None
        wait = _Wait(self._loop.create_future(), len(commands))
        for index, command in enumerate(commands):
            self._next_ticket += 1
            self._waiting[self._next_ticket] = (wait, index)
            writer.put(self._next_ticket, command)
        return await wait.future

    def deliver(self, replies: Sequence[tuple[Ticket, Reply]]) -> None:
        """Bring back the replies of one commit. Called from the writer's thread."""
        self._loop.call_soon_threadsafe(self._resolve, replies)

    def _resolve(self, replies: Sequence[tuple[Ticket, Reply]]) -> None:
        for ticket, reply in replies:
            wait, index = self._waiting.pop(ticket)
            wait.replies[index] = reply
            wait.missing -= 1
            # A caller that was cancelled took its future with it: that must not disturb the others.
            if not wait.missing and not wait.future.done():
                wait.future.set_result(wait.replies)  # type: ignore[arg-type]  # none is missing any more

    def fail_all(self) -> None:
        """Answer everything that still waits: the writer died, so what came of it is unknown."""
        unknown = failure_of(Unavailable("OUTCOME_UNKNOWN", "the outcome is unknown; repeat the same request id"))
        self._resolve([(ticket, unknown) for ticket in list(self._waiting)])
