"""Who has a message on lease, where only one process writes: it remembers, and its end frees them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.rows import MessageRow
from riskgate_server.engine.storing import MESSAGE_LEASE_SECONDS


class Leases:
    """Keeps what `lease_messages` promises, over rows that others look up."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._ends: dict[tuple[CustomerKey, str], float] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def begin(self, rows: Iterable[MessageRow]) -> None:
        """Lease rows that are being written."""
        ends = self._monotonic() + MESSAGE_LEASE_SECONDS
        self._ends.update(((row.key, row.message_id), ends) for row in rows)

    def end(self, settled: Collection[tuple[CustomerKey, str]]) -> None:
        """Forget messages that wait no more."""
        for where in settled:
            self._ends.pop(where, None)

    def take(self, due: Iterable[MessageRow], limit: int) -> list[MessageRow]:
        """Lease the first of those rows that are free, at most `limit`."""
        now = self._monotonic()
        self._ends = {where: ends for where, ends in self._ends.items() if ends > now}
        free = [row for row in due if (row.key, row.message_id) not in self._ends][:limit]
        self.begin(free)
        return free
