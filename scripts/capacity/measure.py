"""Loads of several shapes on a real server, on each store: what each of them used."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
from scripts.bench.drive import Load
from scripts.bench.process import Process, prepare
from scripts.capacity.model import Point
from scripts.own_postgres import serving

CUSTOMERS: Final = 5_000
SHAPES: Final = (
    # Decisions, in a call, calls in flight, and whether the model is fitted to it.
    (300, 1, 1, True),
    (1_500, 1, 8, True),
    (1_500, 1, 32, False),
    (3_000, 1, 64, True),
    (3_000, 20, 4, False),
    (6_000, 100, 1, True),
    (9_000, 100, 4, True),
)


class Meter:
    """What a store has used so far: the database's CPU, commits, bytes of tables and of the log, syncs."""

    def __init__(self, database_cpu: Callable[[], float], counters: Callable[[], tuple[int, int, int, int]]) -> None:
        self.database_cpu = database_cpu
        self.counters = counters


def _cpu_seconds(pid: int, *, ended: bool = False) -> float:
    """Return a process's user plus system time, that of its children that have ended too; 0 if it has just ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if ended else 13])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _embedded(root: Path) -> Iterator[tuple[str, Meter]]:
    def counters() -> tuple[int, int, int, int]:
        with sqlite3.connect(f"file:{root / 'riskgate.db'}?mode=ro", uri=True) as db:
            (commits,) = db.execute("SELECT coalesce(max(sequence), 0) FROM batches").fetchone()
            (pages,), (size,) = db.execute("PRAGMA page_count").fetchone(), db.execute("PRAGMA page_size").fetchone()
        db.close()
        # Every commit is one sync of the log; checkpoints add a few.
        return commits, pages * size, 0, commits

    yield "", Meter(lambda: 0.0, counters)


@contextmanager
def _postgresql(_root: Path) -> Iterator[tuple[str, Meter]]:
    with serving() as (server, dsn), psycopg.connect(dsn, autocommit=True) as db:
        postmaster = server.get_pid()

        def cpu() -> float:
            sessions = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
            return _cpu_seconds(postmaster, ended=True) + sum(_cpu_seconds(int(pid)) for pid in sessions)

        def counters() -> tuple[int, int, int, int]:
            db.execute("SELECT pg_stat_force_next_flush()")
            row = db.execute(
                "SELECT (SELECT coalesce(sum(sequence), 0) FROM riskgate.writers)::bigint,"
                " pg_database_size(current_database()), pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,"
                " (SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal')::bigint"
            ).fetchone()
            assert row is not None
            return row

        yield dsn, Meter(cpu, counters)


STORES: Final[dict[str, Any]] = {"sqlite": _embedded, "postgresql": _postgresql}


async def _points(store: str, caller: Callable[[], Load], gate: Process, meter: Meter) -> list[Point]:
    # Made on the event loop that it is to run on.
    load = caller()
    points = []
    try:
        await load.open_lines()
        await load.unary(CUSTOMERS // 2, in_flight=64)
        for decisions, per_call, in_flight, fitted in SHAPES:
            cpu, database, began = gate.cpu_seconds(), meter.database_cpu(), time.perf_counter()
            before = meter.counters()
            if per_call == 1:
                await load.unary(decisions, in_flight=in_flight)
            else:
                await load.batches(decisions, size=per_call, in_flight=in_flight)
            seconds = time.perf_counter() - began
            cpu, database = gate.cpu_seconds() - cpu, meter.database_cpu() - database
            commits, disk, log, syncs = (b - a for a, b in zip(before, meter.counters(), strict=True))
            points.append(
                Point(
                    store=store,
                    name=f"{per_call} per call, {in_flight} in flight",
                    fitted=fitted,
                    calls=decisions // per_call,
                    decisions=decisions,
                    commits=commits,
                    seconds=round(seconds, 2),
                    server_cpu=round(cpu, 2),
                    database_cpu=round(database, 2),
                    disk_bytes=disk,
                    log_bytes=log,
                    syncs=syncs,
                )
            )
        approved = load.outcomes["OUTCOME_APPROVE"] / sum(load.outcomes.values())
        assert approved > 0.9, load.outcomes  # noqa: PLR2004 - else something else than purchases was measured
    finally:
        await load.close()
    return points


def measure(store: str) -> list[Point]:
    """Return the points of one store, measured on this machine."""
    with tempfile.TemporaryDirectory(prefix="riskgate-capacity-") as where:
        root = Path(where) / "data"
        key, ca = prepare(root)
        with STORES[store](root) as (dsn, meter):
            where_to = ["--store", dsn] if dsn else []
            gate = Process(
                sys.executable, "-m", "riskgate_server", "serve", "--data", str(root), "--certificate-port", "0",
                "--key-port", "0", "--metrics-port", "-1", *where_to,
            )  # fmt: skip
            try:
                address = f"localhost:{json.loads(gate.first_line('stderr'))['key_port']}"
                caller = partial(Load, address, ca, key, customers=CUSTOMERS, run="c")
                return asyncio.run(_points(store, caller, gate, meter))
            finally:
                gate.stop()
