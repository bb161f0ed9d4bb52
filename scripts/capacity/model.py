"""
The capacity model: what a load costs is linear in its calls, decisions and commits.

A call costs its RPC, a decision its rules and rows, a commit its statements and its sync; calls and decisions differ by
batches of the caller's, decisions and commits by those of the writer. The coefficients are fitted to measured points
(`points.json`), and points that were not fitted say how far to trust it (`tests/scripts/test_capacity.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

POINTS: Final = Path(__file__).with_name("points.json")
BUSY_MOST: Final = 0.7
"""How much of a core, or of a lane's time, is planned for: what is above it is queueing."""
PROCESS_CORES: Final = 1.0
"""What one server process can use: its threads take turns at Python's lock."""
READERS: Final = 6
"""Connections for questions, per process (`stores/postgres/session.py`)."""
WRITERS: Final = 2
"""Connections for the lane and for the customers' keys, per process."""
SECONDS_PER_DAY: Final = 86_400


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """
    One measured load. CPU in core-seconds, user and system together.

    `disk_bytes` is what the tables and their indexes grew by, `log_bytes` what was written ahead (PostgreSQL only).
    """

    store: str
    name: str
    fitted: bool
    calls: int
    decisions: int
    commits: int
    seconds: float
    server_cpu: float
    database_cpu: float
    disk_bytes: int
    log_bytes: int
    syncs: int


class Cost(msgspec.Struct, frozen=True):
    """What one call, one decision and one commit add to a quantity."""

    call: float
    decision: float
    commit: float

    def of(self, calls: float, decisions: float, commits: float) -> float:
        """Return what so many of each come to."""
        return self.call * calls + self.decision * decisions + self.commit * commits


class Model(msgspec.Struct, frozen=True):
    """What a store costs: core-seconds of the server and of the database, bytes of the log."""

    server: Cost
    database: Cost
    log: Cost
    disk_bytes_per_decision: float
    syncs_per_commit: float


class Needs(msgspec.Struct, frozen=True):
    """
    What a load needs.

    Cores are those in use; `processes` leaves them room (`BUSY_MOST`). `lock_wait` is the share of a lane's time that
    it waits for customers whom other lanes hold, when all customers are alike.
    """

    server_cores: float
    database_cores: float
    processes: int
    connections: int
    syncs_per_second: float
    log_megabytes_per_second: float
    disk_gigabytes_per_day: float
    lock_wait: float


def read_points(path: Path = POINTS) -> list[Point]:
    """Return the measured points."""
    return msgspec.json.decode(path.read_bytes(), type=list[Point])


def fit(points: Iterable[Point], store: str) -> Model:
    """Return the model of a store from those of its points that are to be fitted."""
    mine = [point for point in points if point.store == store and point.fitted]
    return Model(
        server=_cost(mine, [point.server_cpu for point in mine], calls=True),
        database=_cost(mine, [point.database_cpu for point in mine], calls=False),
        log=_cost(mine, [float(point.log_bytes) for point in mine], calls=False),
        disk_bytes_per_decision=_ratio(mine, "disk_bytes", "decisions"),
        syncs_per_commit=_ratio(mine, "syncs", "commits"),
    )


def _ratio(points: Sequence[Point], what: str, per: str) -> float:
    return float(sum(getattr(p, what) for p in points) / sum(getattr(p, per) for p in points))


def _cost(points: Sequence[Point], seen: Sequence[float], *, calls: bool) -> Cost:
    """Fit so that relative errors are least; a coefficient that would be negative is left out."""
    if not any(seen):
        return Cost(0, 0, 0)
    columns = [0, 1, 2] if calls else [1, 2]
    while True:
        rows = np.array([[(p.calls, p.decisions, p.commits)[c] for c in columns] for p in points], dtype=float)
        scale = np.array(seen, dtype=float)
        found, *_ = np.linalg.lstsq(rows / scale[:, None], np.ones(len(points)), rcond=None)
        if found.min() >= 0:
            break
        del columns[int(found.argmin())]
    values = dict(zip(columns, map(float, found), strict=True))
    return Cost(values.get(0, 0.0), values.get(1, 0.0), values.get(2, 0.0))


def needs(
    model: Model,
    *,
    decisions_per_second: float,
    per_call: float,
    per_commit: float,
    customers: int,
    commit_seconds: float,
) -> Needs:
    """
    Return what a load needs.

    Args:
        per_call: decisions in a call, 1 for unary calls.
        per_commit: decisions in a commit of one lane; it grows with the load by itself, up to 250.
        customers: among whom purchases are spread evenly.
        commit_seconds: how long a batch holds its customers' rows, from its first statement to the end of its sync.
    """
    rate = decisions_per_second
    calls, commits = rate / per_call, rate / per_commit
    server, database = model.server.of(calls, rate, commits), model.database.of(calls, rate, commits)
    lanes = max(1, math.ceil(commits * commit_seconds / BUSY_MOST))
    processes = max(lanes, math.ceil(server / (BUSY_MOST * PROCESS_CORES)))
    # Customers whom the other lanes hold, at any moment; a customer of ours is one of them by chance, and is waited for
    # half as long as a batch lasts.
    held = rate * commit_seconds * (processes - 1) / processes
    lock_wait = min(1.0, per_commit * held / customers / 2)
    return Needs(
        server_cores=server,
        database_cores=database,
        processes=processes,
        connections=processes * (WRITERS + READERS),
        syncs_per_second=commits * model.syncs_per_commit,
        log_megabytes_per_second=model.log.of(calls, rate, commits) / 1e6,
        disk_gigabytes_per_day=rate * model.disk_bytes_per_decision * SECONDS_PER_DAY / 1e9,
        lock_wait=lock_wait,
    )
