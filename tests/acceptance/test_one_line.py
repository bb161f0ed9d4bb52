"""64 callers on one line, with kills in between: at no entry of the journal is it over its limit."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from itertools import count

import pytest
from google.protobuf.message import Message

from riskgate.credit.v1 import ledger_service_pb2 as ledger
from riskgate.risk.v1 import risk_service_pb2 as risk
from tests.acceptance import books, witness
from tests.acceptance.calling import Backend, Told, check, connections, money, open_line
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import PYTHON, Deployment
from tests.acceptance.planted import planted

pytestmark = pytest.mark.process

SECONDS = float(os.environ.get("CROWD_SECONDS", "5"))
CONTROL_SECONDS = 1.5
SECONDS_PER_KILL = 3.0
CALLERS = 64
CONNECTIONS = 4
LIMIT_MINOR = 100_000


class Crowd:
    """Callers of one line. What they know of it may be old by the time they call."""

    def __init__(self, deployment: Deployment, program: tuple[str, ...], seconds: float) -> None:
        self.answers: list[Told] = []
        self.kills = 0
        self._deployment = deployment
        self._program = program
        self._until = time.monotonic() + seconds
        self._numbers = count(1)
        self._holds: set[str] = set()

    async def run(self, *, kills: bool) -> None:
        """Call until the time is over."""
        async with connections(self._deployment, CONNECTIONS, attempt_seconds=2) as backends:
            self.answers.append(await backends[0].settle(open_line("one", LIMIT_MINOR)))
            async with asyncio.TaskGroup() as everybody:
                for number in range(CALLERS):
                    everybody.create_task(self._call(backends[number % CONNECTIONS]))
                if kills:
                    everybody.create_task(self._kill())

    async def _call(self, backend: Backend) -> None:
        while time.monotonic() < self._until:
            told = await backend.settle(self._request())
            self.answers.append(told)
            if told.done and isinstance(told.request, risk.CheckTransactionRequest):
                if risk.CheckTransactionResponse.FromString(told.reply).decision.HasField("held_amount"):
                    self._holds.add(told.request.transaction_id)
            elif not told.done and isinstance(told.request, ledger.CaptureHoldRequest | ledger.VoidHoldRequest):
                self._holds.discard(told.request.hold_id)

    def _request(self) -> Message:
        """Ask for more credit than the line can give, and give some back."""
        number = next(self._numbers)
        request_id = f"r{number}"
        doing = random.random()
        if self._holds and doing < 0.5:
            hold_id = random.choice(list(self._holds))
            if doing < 0.25:
                return ledger.VoidHoldRequest(customer_id="one", request_id=request_id, hold_id=hold_id)
            amount = money(random.randint(1, 5_000))
            return ledger.CaptureHoldRequest(
                customer_id="one", request_id=request_id, hold_id=hold_id, amount=amount, final=doing < 0.3
            )
        if doing < 0.6:
            return ledger.RecordPaymentRequest(
                customer_id="one",
                request_id=request_id,
                payment_id=f"p{number}",
                amount=money(random.randint(1, 9_000)),
            )
        return check("one", request_id, f"t{number}", random.randint(1, 30_000))

    async def _kill(self) -> None:
        while time.monotonic() + SECONDS_PER_KILL < self._until:
            await asyncio.sleep(random.uniform(0.3, 1.0) * SECONDS_PER_KILL)
            self._deployment.kill()
            self._deployment.start(program=self._program)
            self.kills += 1


def crowded(deployment: Deployment, seconds: float, program: tuple[str, ...] = PYTHON, *, kills: bool = True) -> Crowd:
    deployment.started(program=program)

    async def scene() -> Crowd:
        crowd = Crowd(deployment, program, seconds)
        await crowd.run(kills=kills)
        return crowd

    return asyncio.run(scene())


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
