"""Where `now` comes from: the machine, or the data that is being streamed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final

from riskgate_server.domain.errors import FieldViolation, InvalidRequest
from riskgate_server.engine.commands import Command

EVENT_TOLERANCE_US: Final = 5 * 60 * 1_000_000
"""How far a live purchase's own time may be from the server's clock."""


class SystemClock:
    """The machine's clock. An event time only places a purchase in its customer's history."""

    driven_by_data: Final = False

    def now_us(self) -> int:
        """Return the time in microseconds UTC."""
        return time.time_ns() // 1000

    def advance(self, commands: Iterable[Command]) -> None:
        """Time passes by itself."""

    def at(self, command: Command, now_us: int) -> int:
        """
        Every command of a batch happens now.

        Raises:
            InvalidRequest: its own time is further from now than a live event may be.
        """
        if command.event_us and abs(command.event_us - now_us) > EVENT_TOLERANCE_US:
            reason, message = "EVENT_TIME_OUT_OF_RANGE", "must be within five minutes of now"
            raise InvalidRequest(reason, message, FieldViolation("event_time", message))
        return now_us


class DataClock:
    """Time as the events tell it: for importing history and streaming published data. Never goes back."""

    driven_by_data: Final = True

    def __init__(self, start_us: int) -> None:
        self._now_us = start_us
        self._lock = threading.Lock()

    def now_us(self) -> int:
        """Return the newest event time seen."""
        return self._now_us

    def advance(self, commands: Iterable[Command]) -> None:
        """Let time pass up to the newest event among `commands`."""
        newest = max((command.event_us for command in commands), default=0)
        with self._lock:
            self._now_us = max(self._now_us, newest)

    def at(self, command: Command, now_us: int) -> int:
        """A command happens at its own event time."""
        return command.event_us or now_us
