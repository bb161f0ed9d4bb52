"""Where `now` comes from: the machine, or the data that is being streamed."""

from __future__ import annotations

import time
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

    def after(self, _command: Command, now_us: int) -> int:
        """A batch is one instant."""
        return now_us

    def reached(self, now_us: int) -> None:
        """Time passes by itself."""


class DataClock:
    """
    Time as the events tell it: for importing history and streaming published data. Never goes back.

    Only what is on record moves it: a command that was carried out and is durable. One that was refused, repeated or
    only validated passes no time for anybody. There is no bound on a step, since the gaps in a history are real; and
    there is one time for all tenants, so whoever holds `risk:history` on such a server moves everybody's.
    """

    driven_by_data: Final = True

    def __init__(self, start_us: int) -> None:
        self._now_us = start_us

    def now_us(self) -> int:
        """Return the newest event time on record."""
        return self._now_us

    def at(self, command: Command, now_us: int) -> int:
        """A command happens at its own event time."""
        return command.event_us or now_us

    def after(self, command: Command, now_us: int) -> int:
        """Whatever follows in the batch happens no earlier than what was carried out before it."""
        return max(now_us, command.event_us)

    def reached(self, now_us: int) -> None:
        """Let time pass up to `now_us`."""
        self._now_us = max(self._now_us, now_us)
