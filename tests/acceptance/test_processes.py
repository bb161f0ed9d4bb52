"""Several server processes on one database and one port: any of them may die, and so may what looks after them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import psycopg
import pytest

from riskgate.risk.v1 import risk_service_pb2 as risk
from riskgate_client import NotFound, Riskgate, Unauthenticated
from tests.acceptance.calling import Told, check, connections, open_line
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import FREE_PORTS, START_SECONDS, Deployment, answer, gone, riskgate, until

pytestmark = pytest.mark.process

SECONDS = float(os.environ.get("FLEET_SECONDS", "4"))
PROCESSES = 2
CALLERS = 16
CUSTOMERS = [f"c{n}" for n in range(5)]
LIMIT_MINOR = 50_000
GONE_SECONDS = 2.0
SERVES_AGAIN_SECONDS = 10.0
FOLLOWS_SECONDS = 10.0


def replaced(deployment: Deployment, victim: int) -> None:
    """Kill one process and wait until another serves in its place."""
    seen = deployment.events("process serving again")
    os.kill(victim, signal.SIGKILL)
    until(lambda: deployment.events("process serving again") > seen, seconds=START_SECONDS, what="a successor")


async def shop(deployment: Deployment, seconds: float) -> list[Told]:
    """Buy for a few customers through many connections until the time is over; every answer is waited for."""
    answers: list[Told] = []
    ends = time.monotonic() + seconds

    async with connections(deployment, CALLERS, attempt_seconds=2) as backends:
        answers += [await backends[0].settle(open_line(name, LIMIT_MINOR)) for name in CUSTOMERS]

        async def caller(number: int) -> None:
            turn = 0
            while time.monotonic() < ends:
                turn += 1
                request = check(random.choice(CUSTOMERS), f"r{number}-{turn}", f"t{number}-{turn}", 100)
                answers.append(await backends[number].settle(request))

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return answers


async def asked_again(deployment: Deployment, answers: Sequence[Told]) -> list[Told]:
    async with connections(deployment, 4) as backends:
        return [await backends[n % 4].settle(told.request) for n, told in enumerate(answers)]


def held(answers: Sequence[Told]) -> dict[str, int]:
    """What each customer was told to have held, in all."""
    sums = dict.fromkeys(CUSTOMERS, 0)
    for told in answers:
        if isinstance(told.request, risk.CheckTransactionRequest):
            decision = risk.CheckTransactionResponse.FromString(told.reply).decision
            sums[told.request.customer_id] += decision.held_amount.amount_minor
    return sums


def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(
    deployment: Deployment, dsn: str, figures: Figures
) -> None:
    deployment.started(processes=PROCESSES)

    async def scene() -> list[Told]:
        shopping = asyncio.create_task(shop(deployment, SECONDS))
        for victim in deployment.children():
            await asyncio.sleep(SECONDS / (PROCESSES + 1))
            await asyncio.to_thread(replaced, deployment, victim)
        return await shopping

    answers = asyncio.run(scene())
    alive = deployment.children()
    again = asyncio.run(asked_again(deployment, answers))
    code = deployment.stop()
    report = deployment.verify()
    lanes = {row[0] for row in ask(dsn, "SELECT DISTINCT writer FROM riskgate.batches")}
    figures(answered=len(answers), entries=report["entries"], lanes=sorted(lanes))

    assert [told.words for told in again] == [told.words for told in answers]
    assert all(0 < sum_minor <= LIMIT_MINOR for sum_minor in held(answers).values())
    assert report["faults"] == []
    assert report["entries"] == len(answers)
    assert len(alive) == PROCESSES
    assert len(lanes) >= PROCESSES
    assert code == 0


def test_processes_whose_supervisor_is_killed_are_gone_and_a_new_one_serves_at_once(
    deployment: Deployment, dsn: str, figures: Figures
) -> None:
    deployment.started(processes=PROCESSES)
    answers = asyncio.run(shop(deployment, 0.5))
    orphans = deployment.children()

    deployment.kill()
    killed_at = time.monotonic()
    until(
        lambda: all(map(gone, orphans)),
        seconds=GONE_SECONDS,
        what="the end of the processes",
    )
    ended = time.monotonic() - killed_at
    deployment.started(processes=PROCESSES)
    serves = time.monotonic() - killed_at
    again = asyncio.run(asked_again(deployment, answers))
    figures(ended_after_s=round(ended, 3), serves_after_s=round(serves, 2))

    assert len(orphans) == PROCESSES
    assert [told.words for told in again] == [told.words for told in answers]
    assert serves < SERVES_AGAIN_SECONDS
    assert deployment.stop() == 0
    assert deployment.verify()["faults"] == []


def test_a_directory_that_processes_serve_is_no_other_server_s_but_the_database_is(
    deployment: Deployment, dsn: str
) -> None:
    """As on several hosts, each with a copy of the secrets and a directory of its own."""
    deployment.started(processes=PROCESSES)
    common = ("--store", dsn, "--certificate-port", "0", "--metrics-port", "-1")
    same = riskgate("serve", "--data", deployment.root, "--key-port", "0", *common)
    taken = riskgate("serve", "--data", deployment.root, "--key-port", str(deployment.port), *common)
    beside = elsewhere(deployment)
    beside.start(settings={"store": dsn})
    until(lambda: beside.events("serving") == 1, seconds=START_SECONDS, what="start")
    (line,) = (json.loads(line) for line in beside.log.read_text().splitlines() if '"serving"' in line)
    codes = (beside.stop(), deployment.stop())

    assert same.returncode == taken.returncode == 1
    assert f"is served by process {deployment.pid}" in same.stderr
    assert f"port {deployment.port} of 127.0.0.1 is taken" in taken.stderr
    assert line["writer"] == PROCESSES
    assert codes == (0, 0)


def test_who_may_call_is_each_host_s_to_say_until_its_file_is_carried_over(
    deployment: Deployment, dsn: str, figures: Figures
) -> None:
    """By the words of docs/scale.md."""
    deployment.started()
    beside = elsewhere(deployment)
    try:
        beside.started(settings={"store": dsn})
        added = answer("callers", "add", "shop", "--data", deployment.root, "--scope", "limit:read", "--key")
        key = added["key"]["api_key"]
        until(lambda: opens(deployment, key), seconds=FOLLOWS_SECONDS, what="a new key where it was made")
        heard = opens(beside, key)
        taken_after = carried_over(deployment, beside, key, opened=True)
        answer("callers", "revoke", "shop", "--data", deployment.root)
        until(lambda: not opens(deployment, key), seconds=FOLLOWS_SECONDS, what="the end of a key where it was revoked")
        still = opens(beside, key)
        ended_after = carried_over(deployment, beside, key, opened=False)
    finally:
        beside.cleanup()
    figures(taken_after_s=taken_after, ended_after_s=ended_after)

    assert (heard, still) == (False, True)


def opens(host: Deployment, key: str) -> bool:
    """Whether a key opens a host's door."""
    with Riskgate(f"localhost:{host.port}", ca=host.root / "tls" / "ca.crt", api_key=key) as gate:
        try:
            gate.lines.get("nobody")
        except NotFound:
            return True
        except Unauthenticated:
            return False
    raise AssertionError("nobody has no line")


def carried_over(one: Deployment, other: Deployment, key: str, *, opened: bool) -> float:
    """Send the file that says who may call to another host; return how many seconds it takes to be followed there."""
    copy, new = one.work / "access.copy", other.root / "access.new"
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(one.root / "access.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    shutil.copyfile(copy, new)
    new.rename(other.root / "access.db")
    at = time.monotonic()
    until(lambda: opens(other, key) is opened, seconds=FOLLOWS_SECONDS, what="a caller's change on another host")
    return round(time.monotonic() - at, 2)


def test_a_process_that_stands_still_keeps_no_other_from_being_replaced(deployment: Deployment, dsn: str) -> None:
    """Frozen or swapped out for longer than its lease: the log of its lane is still its own, and so is the lane."""
    deployment.started(processes=PROCESSES)
    still, victim = deployment.children()
    os.kill(still, signal.SIGSTOP)
    ask(dsn, "UPDATE riskgate.writers SET lease_until = clock_timestamp() - interval '1 second' RETURNING writer")
    replaced(deployment, victim)
    owners = ask(dsn, "SELECT writer, holder FROM riskgate.writers ORDER BY writer")
    os.kill(still, signal.SIGCONT)
    answers = asyncio.run(shop(deployment, 0.5))
    alive = deployment.children()

    assert deployment.events("process died") == 1
    assert owners[0] == (0, f"process {still} on {socket.gethostname()}")
    assert still in alive
    assert len(alive) == PROCESSES
    assert all(told.words for told in answers)
    assert deployment.stop() == 0
    assert deployment.verify()["faults"] == []


def test_processes_that_cannot_start_end_with_the_reason(deployment: Deployment) -> None:
    done = riskgate(
        "serve", "--data", deployment.root, "--processes", "2", "--store", "postgresql:///x?host=/nowhere",
        *FREE_PORTS,
    )  # fmt: skip

    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def ask(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(statement).fetchall()


def elsewhere(deployment: Deployment) -> Deployment:
    """The same deployment on another host."""
    work = deployment.work / "elsewhere"
    shutil.copytree(deployment.root, work / "data")
    for path in (work / "data").glob("heads*.log"):
        path.unlink()
    return Deployment(work / "data", deployment.api_key, work)
