"""64 callers on one line of four processes that share a database, any of which is killed at any moment."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from contextlib import suppress

import psycopg
import pytest

from riskgate.risk.v1 import risk_service_pb2 as risk
from tests.acceptance import books, witness
from tests.acceptance.conftest import Figures
from tests.acceptance.crowd import LIMIT_MINOR, Crowd
from tests.acceptance.deployment import PYTHON, Deployment
from tests.acceptance.planted import planted

pytestmark = pytest.mark.process

SECONDS = float(os.environ.get("FLEET_CROWD_SECONDS", "6"))
CONTROL_SECONDS = 4.0
SECONDS_PER_KILL = 1.5
PROCESSES = 4
CONNECTIONS = 16
"""The kernel deals them out among the processes: enough that each has some."""

_WITHOUT_THE_KEY = """
ALTER TABLE riskgate.entries DROP CONSTRAINT entries_pkey;
CREATE INDEX ON riskgate.entries (tenant_id, customer_id, sequence)
"""


def crowded(deployment: Deployment, seconds: float, program: tuple[str, ...] = PYTHON, *, kills: bool = True) -> Crowd:
    def kill() -> bool:
        serving = deployment.children()
        if not serving:
            return False
        with suppress(ProcessLookupError):
            os.kill(random.choice(serving), signal.SIGKILL)
        return True

    crowd = Crowd(deployment, seconds, CONNECTIONS)
    asyncio.run(crowd.run(kill if kills else None, seconds_per_kill=SECONDS_PER_KILL))
    return crowd


def test_four_processes_never_exceed_one_limit_whichever_is_killed(
    deployment: Deployment, dsn: str, figures: Figures
) -> None:
    deployment.started(processes=PROCESSES)
    crowd = crowded(deployment, SECONDS)

    code = deployment.stop()
    assert code == 0, deployment.log.read_text()[-3000:]
    entries = books.read_database(dsn)
    fullest = max(line.held + line.drawn for _, line in books.prefixes(entries))
    outcomes = Counter(
        risk.Outcome.Name(e.event[3]).removeprefix("OUTCOME_") for e in entries if e.tag == books.DECIDED
    )
    with psycopg.connect(dsn) as db:
        lanes: dict[int, int] = dict(
            db.execute("SELECT writer, count(*) FROM riskgate.entries GROUP BY 1 ORDER BY 1").fetchall()
        )
    figures(
        seconds=SECONDS,
        kills=crowd.kills,
        answered=len(crowd.answers),
        asked_more_than_once=sum(told.attempts > 1 for told in crowd.answers),
        entries=len(entries),
        entries_by_lane=lanes,
        limit=LIMIT_MINOR,
        fullest=fullest,
        breaches=len(books.breaches(entries)),
        **outcomes,
    )
    assert books.breaches(entries) == []
    assert books.overtaken(entries) == []
    assert witness.missing(crowd.answers, entries) == []
    assert witness.doubled(entries) == []
    assert deployment.verify()["faults"] == []
    # Otherwise it was never close, or all went through one process.
    assert fullest > LIMIT_MINOR * 0.95
    assert outcomes["DECLINE"] > 0
    assert crowd.kills > 0
    assert len(lanes) > 1


def test_the_crowd_finds_customers_that_are_read_without_a_lock(
    deployment: Deployment, dsn: str, figures: Figures
) -> None:
    """
    At READ COMMITTED, and without the journal's key, which lets nobody write the same entry of a customer twice.

    With that key who comes second fails, and the caller is told of an internal error.
    """
    deployment.started(processes=PROCESSES, program=planted("no-row-lock"))
    with psycopg.connect(dsn) as db:
        db.execute(_WITHOUT_THE_KEY)
    with suppress(ExceptionGroup):
        # A caller may meet an answer that no correct server gives; what counts is what is written.
        crowded(deployment, CONTROL_SECONDS, kills=False)
    deployment.kill()
    breaches = books.breaches(books.read_database(dsn))
    figures(breaches=len(breaches))

    assert breaches
