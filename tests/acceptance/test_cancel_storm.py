"""Callers who give up disturb nobody, and what became of their calls is one thing, told alike whenever asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
import urllib.request
from dataclasses import dataclass, field
from itertools import count

import grpc
import pytest

from riskgate.credit.v1.credit_line_service_pb2 import GetCreditLineRequest
from tests.acceptance import books, witness
from tests.acceptance.calling import Backend, Told, connections, open_line, told
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import PYTHON, Deployment
from tests.acceptance.planted import planted
from tests.acceptance.shopping import Wallet

pytestmark = pytest.mark.process

CALLS = int(os.environ.get("CALLS", "3000"))
CONTROL_CALLS = 500
CLIENTS = 64
CONNECTIONS = 4
CALLS_PER_CUSTOMER = 30
LIMIT_MINOR = 20_000
CANCELLED_SHARE = 0.3
CANCELLED_WITHIN_SECONDS = 0.020
DEADLINE_SECONDS = 10.0
QUIET_SECONDS = 5.0
CONTROL_SECONDS = 5.0
PATIENCE_SECONDS = 60.0


@dataclass
class Storm:
    """What came of it."""

    answers: list[Told] = field(default_factory=list)
    given_up: list[Told] = field(default_factory=list)
    unanswered: list[Told] = field(default_factory=list)
    resolved: list[tuple[Told, Told]] = field(default_factory=list)
    waiting_after: float = -1.0
    healthy: bool = False


def waiting(deployment: Deployment) -> float:
    """Return how many commands the server says are waiting for the writer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{deployment.metrics_port}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("riskgate_commands_waiting ")]
    return float(value)


def quiet(deployment: Deployment) -> float:
    """Return how many commands still wait when that has stopped changing, at the latest after some seconds."""
    deadline = time.monotonic() + QUIET_SECONDS
    while (left := waiting(deployment)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


async def storm(deployment: Deployment, calls: int) -> Storm:
    """64 clients, three calls in ten cancelled within 20 ms, then every cancelled key asked again, twice."""
    seen = Storm()
    begun = count(1)

    async def client(number: int, backend: Backend) -> None:
        chance = random.Random()
        usual = CANCELLED_WITHIN_SECONDS
        for customer in count():
            wallet = Wallet(f"c{number}-{customer}", LIMIT_MINOR, chance)
            answer = await backend.settle(wallet.next_request())
            seen.answers.append(answer)
            for _ in range(CALLS_PER_CUSTOMER):
                if next(begun) > calls:
                    return
                request = wallet.next_request()
                asked_at = time.time()
                call = backend.begin(request, seconds=DEADLINE_SECONDS)
                waits = asyncio.ensure_future(told(request, call, asked_at))
                if chance.random() < CANCELLED_SHARE:
                    # Half of them as soon as the claim says, half whenever a call is under way on this machine.
                    await asyncio.sleep(chance.uniform(0, chance.choice((CANCELLED_WITHIN_SECONDS, usual))))
                    call.cancel()
                answer = await waits
                usual = max(CANCELLED_WITHIN_SECONDS, answer.told_at - asked_at) if answer.done else usual
                if answer.code is grpc.StatusCode.CANCELLED:
                    seen.given_up.append(answer)
                    # The customer's own next step needs to know.
                    answer = await backend.settle(request)
                    seen.resolved.append((answer, await backend.settle(request)))
                elif not answer.settled:
                    seen.unanswered.append(answer)
                    return
                seen.answers.append(answer)
                wallet.learn(answer)

    async with connections(deployment, CONNECTIONS) as backends:
        seen.answers.append(await backends[0].settle(open_line("probe", 1)))
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(client(number, backends[number % CONNECTIONS]))
        seen.healthy = (await backends[0].once(GetCreditLineRequest(customer_id="probe"), seconds=2)).done
    return seen


def stormed(deployment: Deployment, calls: int, program: tuple[str, ...] = PYTHON) -> Storm:
    deployment.started(program=program)
    seen = asyncio.run(asyncio.wait_for(storm(deployment, calls), PATIENCE_SECONDS + calls * 0.02))
    seen.waiting_after = quiet(deployment)
    return seen


def test_a_cancelled_caller_cancels_nothing_but_its_own_wait(deployment: Deployment, figures: Figures) -> None:
    seen = stormed(deployment, CALLS)

    assert deployment.stop() == 0
    entries = books.read(deployment.store)
    at = {key: entry.at_us for key, (entry, *_) in books.by_key(entries).items()}
    done_anyway = sum(
        at[first.request.customer_id, first.request.request_id] < first.asked_at * 1_000_000
        for first, _ in seen.resolved
    )
    figures(
        calls=len(seen.answers),
        cancelled=len(seen.given_up),
        of_these_done_anyway=done_anyway,
        unanswered=len(seen.unanswered),
        told_differently=sum(first.words != second.words for first, second in seen.resolved),
        waiting_afterwards=seen.waiting_after,
    )
    assert seen.unanswered == []
    assert [pair for pair in seen.resolved if pair[0].words != pair[1].words] == []
    assert witness.missing(seen.answers, entries) == []
    assert witness.doubled(entries) == []
    assert seen.waiting_after == 0
    assert seen.healthy
    assert deployment.verify()["faults"] == []
    # Otherwise nobody gave up in the middle of anything.
    assert 0 < done_anyway < len(seen.resolved)


def test_the_storm_finds_replies_to_nobody(deployment: Deployment, figures: Figures) -> None:
    deployment.started(program=planted("naive-futures"))
    with contextlib.suppress(TimeoutError, ExceptionGroup):
        asyncio.run(asyncio.wait_for(storm(deployment, CONTROL_CALLS), CONTROL_SECONDS))
    left = waiting(deployment)
    figures(calls=CONTROL_CALLS, hang_for_ever=left)

    assert left
