"""`riskgate keys rotate` beside a server process: killed anywhere, it loses nothing, and no caller notices."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import time
from itertools import count
from pathlib import Path

import pytest

from tests.acceptance.calling import Backend, open_line
from tests.acceptance.deployment import PYTHON, Deployment, Template, environment, riskgate
from tests.acceptance.shopping import Wallet

pytestmark = pytest.mark.process

KILLS = int(os.environ.get("KILLS", "4"))
CLIENTS = 3
LIMIT_MINOR = 20_000
KINDS = ("master", "fingerprint", "proofs", "heads")


class Load:
    """Clients that begin customer after customer, and ask everything once."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._over = False
        self._numbers = count()
        self.customers: list[str] = []
        self.calls = 0

    async def client(self, seed: int) -> None:
        """Open a customer, buy, and repeat the purchase of long ago, until told to stop; nothing may fail."""
        chance = random.Random(seed)
        async with Backend(self._deployment) as backend:
            first = None
            while not self._over:
                customer_id = f"c{next(self._numbers)}"
                opened = await backend.once(open_line(customer_id, LIMIT_MINOR))
                assert opened.done, opened
                wallet = Wallet(customer_id, LIMIT_MINOR, chance)
                request = wallet.next_request()
                told = await backend.once(request)
                assert told.settled, told
                self.customers.append(customer_id)
                first = first or told
                again = await backend.once(first.request)
                assert again.words == first.words, again
                self.calls += 3

    def stop(self) -> None:
        self._over = True


def rotate(deployment: Deployment, seconds: float = 0) -> int:
    """Run the command; with a time, take its process away after so long. Return the exit code."""
    command = [*PYTHON, "keys", "rotate", "all", "--data", str(deployment.root), "--json"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait(seconds or 60)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(10)


async def killed_again_and_again(deployment: Deployment, load: Load) -> int:
    """Kill rotations at random moments, as many as can be had, finish one, and return how many were killed."""
    chance = random.Random(KILLS)
    killed = tries = 0
    # One that comes through before its time is none: the machine is not always as fast.
    while killed < KILLS and tries < 10 * KILLS:
        tries += 1
        began = time.monotonic()
        assert await asyncio.to_thread(rotate, deployment) == 0
        whole = time.monotonic() - began
        # Most of it is the interpreter's start; what is written, is written towards the end.
        killed += await asyncio.to_thread(rotate, deployment, whole * chance.uniform(0.5, 0.95)) != 0
    assert await asyncio.to_thread(rotate, deployment) == 0
    # Until the newest secrets are in force.
    calls = load.calls
    await asyncio.sleep(7)
    assert load.calls > calls
    return killed


async def under_load(deployment: Deployment) -> tuple[Load, int]:
    load = Load(deployment)
    async with asyncio.TaskGroup() as group:
        for seed in range(CLIENTS):
            group.create_task(load.client(seed))
        killed = await killed_again_and_again(deployment, load)
        load.stop()
    return load, killed


async def each_line(deployment: Deployment, customers: list[str]) -> None:
    async with Backend(deployment) as backend:
        for customer_id in customers:
            assert (await backend.line(customer_id)).limit.amount_minor == LIMIT_MINOR


def test_a_rotation_that_is_killed_anywhere_loses_nothing_and_no_call_fails(template: Template, tmp_path: Path) -> None:
    deployment = template.deployment(tmp_path)
    try:
        deployment.started(settings={"heads_seconds": "0.2"})
        load, killed = asyncio.run(under_load(deployment))
        assert killed == KILLS
        assert deployment.verify()["clean"]
        assert deployment.stop() == 0

        deployment.started()
        asyncio.run(each_line(deployment, load.customers))
        assert deployment.stop() == 0
        report = deployment.verify()
        assert (report["clean"], report["customers"]) == (True, len(load.customers))
        listed = json.loads(riskgate("keys", "list", "--data", deployment.root, "--json").stdout)["secrets"]
        assert [one["needed"] for one in listed if one["kind"] == "master"] == [
            f"{report['customers']:,} customers' keys"
        ]
        assert {one["kind"] for one in listed if one["in_force"]} == set(KINDS)
        assert not (deployment.root / "secrets" / "rotation").exists()
    finally:
        deployment.cleanup()
