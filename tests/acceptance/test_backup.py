"""The commands of docs/backup.md do what it says, as pasted: beside load, and nobody who was erased comes back."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from psycopg import conninfo
from scripts.own_postgres import programs

from riskgate_client import FailedPrecondition, Money, Riskgate
from tests import postgres
from tests.acceptance.deployment import Deployment, environment, until
from tests.acceptance.load import Load

PAGE: Final = (Path(__file__).parents[2] / "docs" / "backup.md").read_text("utf-8")
STOPPED, RUNNING, TRIAL, RESTORE, DUMP, RESTORE_DUMP = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)

BOB: Final = "bob"
RESTORED: Final = "riskgate_restored"

pytestmark = pytest.mark.process


def paste(deployment: Deployment, commands: str) -> str:
    """Run a block of the page where the directory stands, and return what it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), str(programs()), os.environ["PATH"]])
    settings = {"PATH": path}
    if deployment.dsn:
        found = conninfo.conninfo_to_dict(deployment.dsn)
        settings |= {"RISKGATE_STORE": deployment.dsn, "PGHOST": str(found["host"]), "PGUSER": str(found["user"])}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=deployment.work,
        env=environment() | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_serving(block: str) -> str:
    """Return a block without its last line, which serves: the deployment does, on ports of its own."""
    commands, _, last = block.rstrip().rpartition("\n")
    assert last.startswith("riskgate serve --data data")
    return commands


def calling(deployment: Deployment) -> Riskgate:
    return Riskgate(f"localhost:{deployment.port}", ca=deployment.ca_certificate, api_key=deployment.api_key)


def enrol_bob(deployment: Deployment) -> None:
    with calling(deployment) as gate:
        gate.lines.open(
            customer_id=BOB, line_id="main", limit=Money("CNY", 1_000), decision_reference="b", actor_id="tests"
        )
        gate.otp.enroll_phone(customer_id=BOB, phone_number="+86 138 1234 5678")


def erase_bob(deployment: Deployment) -> None:
    with calling(deployment) as gate:
        gate.lines.close(customer_id=BOB, line_id="main", reason_code="CUSTOMER_ASKED", actor_id="tests")
        gate.customers.erase(customer_id=BOB, reason_code="CUSTOMER_ASKED", actor_id="tests")


def what_is_known_of_bob(deployment: Deployment) -> str:
    """Serve for a moment, and return whose number bob's is, or why nobody knows."""
    deployment.started()
    with calling(deployment) as gate:
        try:
            (factor,) = gate.otp.list_factors(BOB)
            known = factor.display_name
        except FailedPrecondition as error:
            known = error.reason
    assert deployment.stop() == 0
    return known


async def answered(load: Load, calls: int) -> None:
    """Wait until so many more calls were answered."""
    enough = len(load.answers) + calls
    await asyncio.to_thread(until, lambda: len(load.answers) >= enough, seconds=30, what="answers under load")


def live(deployment: Deployment, calls: int, while_it_runs: str = "") -> None:
    """Serve under load, paste commands in the middle of it, and erase bob."""
    load = Load(deployment, seed=7)

    async def scene() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            await answered(load, calls)
            if while_it_runs:
                await asyncio.to_thread(paste, deployment, while_it_runs)
                await answered(load, calls)
            load.stop()

    asyncio.run(scene())
    if while_it_runs:
        erase_bob(deployment)
    assert deployment.stop() == 0


@pytest.fixture
def begun(deployment: Deployment) -> Deployment:
    deployment.started()
    enrol_bob(deployment)
    paste(deployment, "cp -a data/secrets secrets")
    return deployment


def restored(deployment: Deployment, block: str) -> None:
    """Restore as pasted; the verification of the page is part of it."""
    assert paste(deployment, without_serving(block)).startswith("clean: ")


def test_a_copy_beside_load_is_whole_and_whoever_was_erased_since_stays_erased(begun: Deployment) -> None:
    live(begun, 400, while_it_runs=RUNNING)
    lived = begun.verify()["entries"]

    assert paste(begun, TRIAL).startswith("clean: ")
    restored(begun, RESTORE)
    assert 0 < begun.verify()["entries"] < lived
    assert what_is_known_of_bob(begun) == "CUSTOMER_ERASED"
    assert begun.events("erased again") == 1
    assert begun.verify()["faults"] == []


def test_without_the_newest_erased_log_a_restored_copy_brings_them_back(begun: Deployment) -> None:
    """Why the page insists."""
    live(begun, 50, while_it_runs=RUNNING)

    restored(begun, re.sub(r"cp lost/erased.log .*\n", "", RESTORE))
    assert what_is_known_of_bob(begun) == "*** **** 5678"
    assert begun.verify()["faults"] == []


def test_a_copy_of_a_stopped_server_is_whole_and_whoever_was_erased_since_stays_erased(begun: Deployment) -> None:
    live(begun, 200)
    paste(begun, STOPPED)
    lived = begun.verify()["entries"]
    begun.started()
    erase_bob(begun)
    assert begun.stop() == 0

    restored(begun, RESTORE)
    assert begun.verify()["entries"] == lived
    assert what_is_known_of_bob(begun) == "CUSTOMER_ERASED"
    assert begun.verify()["faults"] == []


def test_the_newest_heads_refuse_an_older_store(begun: Deployment) -> None:
    live(begun, 50, while_it_runs=RUNNING)
    restored(begun, RESTORE)
    paste(begun, "cp lost/heads.log data/heads.log")

    begun.start()
    assert begun.wait(30) == 1
    assert "whose head was signed" in begun.log.read_text()
    assert not begun.verify()["clean"]


@pytest.fixture
def restored_database(dsn: str) -> Iterator[str]:
    """The DSN of the database that the page makes to restore into."""
    yield dsn.replace(str(conninfo.conninfo_to_dict(dsn)["dbname"]), RESTORED)
    postgres.admin(f"DROP DATABASE IF EXISTS {RESTORED} WITH (FORCE)")


def test_a_dump_beside_load_is_whole_and_whoever_was_erased_since_stays_erased(
    restored_database: str, begun: Deployment
) -> None:
    live(begun, 400, while_it_runs=DUMP)
    lived = begun.verify()["entries"]

    restored(begun, RESTORE_DUMP)
    begun.dsn = restored_database
    assert 0 < begun.verify()["entries"] < lived
    assert what_is_known_of_bob(begun) == "CUSTOMER_ERASED"
    assert begun.verify()["faults"] == []
