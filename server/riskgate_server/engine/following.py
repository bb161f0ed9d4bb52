"""What other servers of a shared store committed: nobody announces it, so it is asked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.storing import Store

CHANGED_MAX: Final = 10_000
"""Entries that are looked at one by one between two questions; beyond, anybody may have changed."""


class Follower:
    """Knows how far the lanes of others were when it last looked. For one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ends: dict[int, int] | None = None

    def changed(self) -> Collection[CustomerKey] | None:
        """
        Return whom others changed since the last call; None when that may be anybody, as at the first.

        One question while nothing happens, however many wait for the answer.

        Raises:
            ReadFailed: the store could not be read now; the next call tells what this one would have.
        """
        with self._store.snapshot() as snapshot:
            ends = {lane.writer: lane.position for lane in snapshot.lanes() if lane.writer != self._store.writer}
            before = self._ends
            changed: set[CustomerKey] | None = None
            if before is not None:
                moved = {writer: before.get(writer, 0) for writer, end in ends.items() if end != before.get(writer, 0)}
                if all(0 < ends[writer] - after <= CHANGED_MAX for writer, after in moved.items()):
                    changed = set()
                    for writer, after in moved.items():
                        changed.update(snapshot.changed(writer, after=after, limit=CHANGED_MAX))
        self._ends = ends
        return changed
