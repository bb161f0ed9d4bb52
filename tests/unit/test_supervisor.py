"""What is done when server processes die, cannot start, or do not end; with processes of the test's own making."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from riskgate_server.cli import main
from riskgate_server.settings import Settings, as_environment, load
from riskgate_server.supervisor import (
    RESTART_SECONDS_MAX,
    RESTART_SECONDS_MIN,
    STEADY_SECONDS,
    Fleet,
    Process,
    settings_of,
)

STOP_SECONDS = 30.0

Cannot = Callable[[int, int], bool]
"""Whether the process of a number cannot start, at which turn."""


class Fake:
    """Keeps `Process`: serves at once unless it is one that cannot, and ends when it is told to or the test says so."""

    def __init__(self, pid: int, *, serves: bool, deaf: bool) -> None:
        self.pid = pid
        self.sent: list[signal.Signals] = []
        self._serves = serves
        self._deaf = deaf
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not serves:
            self.end(1)

    def end(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)

    async def ready(self) -> bool:
        return self._serves

    async def wait(self) -> int:
        return await self._code

    def send(self, number: signal.Signals) -> None:
        self.sent.append(number)
        if number is signal.SIGKILL:
            self.end(-signal.SIGKILL)
        elif not self._deaf:
            self.end(0)


class World:
    """Processes by number, one after the other, and time that passes only when somebody sleeps."""

    def __init__(
        self, *, cannot: Callable[[int, int], bool] = lambda _number, _turn: False, deaf: bool = False
    ) -> None:
        self.made: dict[int, list[Fake]] = {}
        self.slept: list[float] = []
        self.now = 0.0
        self.shortages = 0
        """How many starts the system refuses."""
        self._cannot = cannot
        self._deaf = deaf
        self.fleet = Fleet(2, self._start, stop_seconds=STOP_SECONDS, sleep=self._sleep, monotonic=lambda: self.now)

    async def _start(self, number: int) -> Process:
        turns = self.made.setdefault(number, [])
        if self.shortages:
            self.shortages -= 1
            raise BlockingIOError
        turns.append(Fake(10 * number + len(turns), serves=not self._cannot(number, len(turns)), deaf=self._deaf))
        return turns[-1]

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not met():  # noqa: ASYNC110  what happens is the fleet's, which tells nobody
                await asyncio.sleep(0)

    async def die(self, number: int, *, after: float = 0.0) -> None:
        """Have a process of a number die, and wait for the next."""
        turns = self.made[number]
        before = len(turns)
        self.now += after
        turns[-1].end(-signal.SIGKILL)
        await self.until(lambda: len(turns) > before)


def lived(world: World, life: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run the fleet beside a life, and return its exit code."""

    async def both() -> int:
        running = asyncio.create_task(world.fleet.run())
        await life()
        async with asyncio.timeout(10):
            return await running

    return asyncio.run(both())


def test_a_process_that_died_is_started_again_and_the_others_go_on() -> None:
    world = World()

    async def life() -> None:
        await world.until(lambda: len(world.made) == 2)
        await world.die(1)
        world.fleet.stop()

    assert lived(world, life) == 0
    assert [len(world.made[number]) for number in (0, 1)] == [1, 2]


def test_whoever_dies_again_and_again_waits_longer_each_time_and_a_steady_life_is_forgiven() -> None:
    world = World()

    async def life() -> None:
        await world.until(lambda: len(world.made) == 2)
        for _ in range(10):
            await world.die(0)
        await world.die(0, after=STEADY_SECONDS)
        world.fleet.stop()

    lived(world, life)

    doubled = [min(RESTART_SECONDS_MIN * 2**n, RESTART_SECONDS_MAX) for n in range(10)]
    assert world.slept[:11] == [*doubled, RESTART_SECONDS_MIN]


def test_a_successor_that_cannot_start_is_tried_again() -> None:
    world = World(cannot=lambda number, turn: number == 0 and turn in {1, 2})

    async def life() -> None:
        await world.until(lambda: len(world.made) == 2)
        world.made[0][0].end(1)
        await world.until(lambda: len(world.made[0]) == 4)
        world.fleet.stop()

    assert lived(world, life) == 0
    assert world.slept[:3] == [RESTART_SECONDS_MIN * 2**n for n in range(3)]


def test_a_system_without_room_for_a_process_is_asked_again() -> None:
    world = World()

    async def life() -> None:
        await world.until(lambda: len(world.made) == 2)
        world.shortages = 2
        await world.die(0)
        world.fleet.stop()

    assert lived(world, life) == 0
    assert world.slept[:3] == [RESTART_SECONDS_MIN * 2**n for n in range(3)]


@pytest.mark.parametrize("which", [0, 1])
def test_where_one_cannot_start_at_all_the_others_end_in_order(which: int) -> None:
    world = World(cannot=lambda number, _turn: number == which)

    async def nothing() -> None:
        pass

    assert lived(world, nothing) == 1
    assert list(world.made) == ([0] if which == 0 else [0, 1])
    assert all(signal.SIGTERM in made[0].sent and len(made) == 1 for made in world.made.values())


def test_a_process_that_does_not_end_in_time_is_killed() -> None:
    world = World(deaf=True)

    async def life() -> None:
        await world.until(lambda: len(world.made) == 2)
        world.fleet.stop()

    assert lived(world, life) == 1
    assert world.slept == [STOP_SECONDS]
    assert world.made[0][0].sent == world.made[1][0].sent == [signal.SIGTERM, signal.SIGKILL]


def test_who_is_told_to_stop_while_it_waits_starts_nobody() -> None:
    world = World()

    async def forever(_seconds: float) -> None:
        await asyncio.Event().wait()

    async def life() -> None:
        await world.until(lambda: len(world.made) == 2)
        world.fleet._sleep = forever
        world.made[0][0].end(1)
        await asyncio.sleep(0.01)
        world.fleet.stop()

    lived(world, life)

    assert len(world.made[0]) == 1


def test_a_successor_that_is_told_to_stop_while_it_starts_ends_in_order() -> None:
    """Its signal is not yet handled: it dies of it, and nothing was begun that could be lost."""
    world = World()

    class Starting(Fake):
        async def ready(self) -> bool:
            await self.wait()
            return False

        def send(self, number: signal.Signals) -> None:
            self.end(-number)

    async def starting(number: int) -> Process:
        world.made[number].append(Starting(99, serves=True, deaf=False))
        return world.made[number][-1]

    async def life() -> None:
        await world.until(lambda: len(world.made) == 2)
        world.fleet._start = starting
        await world.die(0)
        world.fleet.stop()

    assert lived(world, life) == 0


def test_each_process_has_its_own_metrics_and_processor_and_shares_the_ports_for_calls() -> None:
    settings = Settings(data="x", store="postgresql:///x", processes=2, metrics_port=7445, cpu=3, key_port=0)

    each = [settings_of(settings, process, 1, 2) for process in range(2)]

    assert [(s.process, s.certificate_port, s.key_port, s.metrics_port, s.cpu) for s in each] == [
        (0, 1, 2, 7445, 3),
        (1, 1, 2, 7446, 4),
    ]
    assert settings_of(Settings(data="x", metrics_port=-1), 1, 1, 2).metrics_port == -1
    assert settings_of(Settings(data="x", metrics_port=0), 1, 1, 2).metrics_port == 0


def test_settings_survive_the_way_to_another_process() -> None:
    told = Settings(data="x", store="postgresql://u:p w@h/x?a=%20b", processes=2, drain_seconds=0.5, process=1)
    flags = {name: True for name, value in msgspec.structs.asdict(told).items() if value is False}

    for settings in (told, msgspec.structs.replace(told, **flags)):
        assert load({}, as_environment(settings)) == settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "needs a database"),
        (["--store", "postgresql:///x", "--clock", "data"], "time that data tells"),
        (["--store", "postgresql:///x", "--cpu", str(max(os.sched_getaffinity(0)))], "would stay on processors"),
        (["--store", "postgresql:///x", "--metrics-port", "65535"], "need as many ports"),
    ],
)
def test_what_is_one_process_s_is_refused_to_several(tmp_path: Path, options: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["serve", "--data", str(tmp_path), "--processes", "2", *options])

    assert result.exit_code == 2
    assert words in result.output
