"""64 callers on one line, with kills in between: at no entry of the journal is it over its limit."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

import pytest

from riskgate.risk.v1 import risk_service_pb2 as risk
from tests.acceptance import books, witness
from tests.acceptance.conftest import Figures
from tests.acceptance.crowd import LIMIT_MINOR, Crowd
from tests.acceptance.deployment import PYTHON, Deployment
from tests.acceptance.planted import planted

pytestmark = pytest.mark.process

SECONDS = float(os.environ.get("CROWD_SECONDS", "5"))
CONTROL_SECONDS = 1.5


def crowded(deployment: Deployment, seconds: float, program: tuple[str, ...] = PYTHON, *, kills: bool = True) -> Crowd:
    deployment.started(program=program)

    def kill() -> bool:
        deployment.kill()
        deployment.start(program=program)
        return True

    crowd = Crowd(deployment, seconds)
    asyncio.run(crowd.run(kill if kills else None))
    return crowd


def test_64_callers_never_exceed_one_limit_whenever_the_server_is_killed(
    deployment: Deployment, figures: Figures
) -> None:
    crowd = crowded(deployment, SECONDS)

    assert deployment.stop() == 0
    entries = books.read(deployment.store)
    fullest = max(line.held + line.drawn for _, line in books.prefixes(entries))
    outcomes = Counter(
        risk.Outcome.Name(e.event[3]).removeprefix("OUTCOME_") for e in entries if e.tag == books.DECIDED
    )
    figures(
        seconds=SECONDS,
        kills=crowd.kills,
        answered=len(crowd.answers),
        entries=len(entries),
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
    # Otherwise it was never close.
    assert fullest > LIMIT_MINOR * 0.95
    assert outcomes["DECLINE"] > 0
    assert crowd.kills > 0


def test_the_crowd_finds_a_limit_that_is_read_too_early(deployment: Deployment, figures: Figures) -> None:
    crowded(deployment, CONTROL_SECONDS, planted("stale-limit"), kills=False)
    deployment.kill()
    breaches = books.breaches(books.read(deployment.store))
    figures(breaches=len(breaches))

    assert breaches
