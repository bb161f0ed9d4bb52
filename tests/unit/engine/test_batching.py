"""How long a batch waits for more: as long as the edge is at work, and never for a lone caller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from riskgate_server.engine.commands import Command
from riskgate_server.engine.replies import Reply, Settled
from riskgate_server.engine.writer import LINGER_STEPS_MAX, Writer
from riskgate_server.stores.memory import MemoryStore
from tests import factories as f


class Edge:
    """An edge of which the test says, millisecond by millisecond, how many callers it lets in and how busy it is."""

    def __init__(self, *, batch_max: int = 50) -> None:
        self.batches: list[int] = []
        self.pauses = 0
        self._seconds = 0.0
        self._script: Iterator[tuple[int, float]] = iter(())
        self.writer = Writer(
            self,  # type: ignore[arg-type]  # only `run_free` is asked of a pipeline
            MemoryStore(),
            f.FixedClock(),
            deliver=lambda _replies: None,
            on_broken=lambda: None,
            spent_seconds=lambda: self._seconds,
            pause=self._pause,
            batch_max=batch_max,
        )

    def run_free(self, commands: Sequence[Command], *, wait: object) -> list[Reply]:
        self.batches.append(len(commands))
        return [Settled(0)] * len(commands)

    def _pause(self, seconds: float) -> None:
        self.pauses += 1
        callers, busy = next(self._script, (0, 0.0))
        self._seconds += busy * seconds
        self.come(callers)

    def come(self, callers: int) -> None:
        for _ in range(callers):
            self.writer.put(0, f.open_line())

    def step(self, callers: int, *script: tuple[int, float]) -> int:
        """Let `callers` come, then follow the script; return how many shared the commit."""
        self._script = iter(script)
        self.come(callers)
        self.writer._step()
        return self.batches[-1]


@pytest.fixture
def edge() -> Edge:
    edge = Edge()
    edge.step(2)
    edge.pauses = 0
    return edge


def test_a_lone_caller_never_waits() -> None:
    edge = Edge()

    assert [edge.step(1), edge.step(1)] == [1, 1]
    assert edge.pauses == 0


def test_callers_who_come_while_the_edge_is_at_work_share_the_commit(edge: Edge) -> None:
    assert edge.step(3, (4, 0.9), (5, 0.8), (6, 0.1), (7, 1.0)) == 3 + 4 + 5 + 6
    assert edge.pauses == 3


def test_an_idle_edge_is_waited_for_once(edge: Edge) -> None:
    assert edge.step(3, (0, 0.0), (9, 1.0)) == 3
    assert edge.pauses == 1


def test_a_busy_edge_is_waited_for_only_so_long(edge: Edge) -> None:
    assert edge.step(2, *[(1, 1.0)] * 100) == 2 + LINGER_STEPS_MAX


def test_a_full_batch_goes_at_once(edge: Edge) -> None:
    full = Edge(batch_max=4)
    full.step(2)
    full.pauses = 0

    assert full.step(9, (1, 1.0)) == 4
    assert full.pauses == 0


def test_who_came_alone_among_many_begins_alone_again(edge: Edge) -> None:
    edge.step(1)
    edge.pauses = 0

    assert edge.step(1, (5, 1.0)) == 1
    assert edge.pauses == 0
