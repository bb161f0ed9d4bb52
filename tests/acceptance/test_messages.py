"""
Messages of a server process over real HTTP.

`kill -9` between sending one and recording that it was sent: it is sent again, and arrives once. And the commands of
docs/messages.md do what it says.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from riskgate.identity.v1 import otp_service_pb2 as otp
from riskgate_server.notify.webhook import secrets_from
from riskgate_server.stores.sqlite.snapshots import SQLiteSnapshots
from tests.acceptance.calling import Backend, open_line
from tests.acceptance.deployment import Deployment, environment, until
from tests.far_end import WRITTEN_SECRET, FarEnd, listening

pytestmark = pytest.mark.process

KILLS = int(os.environ.get("KILLS", "3"))
START_SECONDS = 30.0
PAGE = (Path(__file__).parents[2] / "docs" / "messages.md").read_text("utf-8")


def waiting(deployment: Deployment) -> int:
    snapshots = SQLiteSnapshots(deployment.store)
    try:
        with snapshots.snapshot() as snapshot:
            return snapshot.counts()["messages"]
    finally:
        snapshots.close()


async def enroll(deployment: Deployment, customer: int) -> str:
    """Ask once for a phone to be enrolled, and return how that ended."""
    async with Backend(deployment) as backend:
        assert (await backend.settle(open_line(f"c{customer}", 1_000))).done
        request = otp.EnrollPhoneRequest(
            request_id="enrol", customer_id=f"c{customer}", phone_number=f"+86139{customer:04d}0000"
        )
        return (await backend.once(request)).code.name


def test_a_server_killed_between_sending_and_settling_sends_again_under_the_same_id(
    deployment: Deployment, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.touch(mode=0o600)
    secrets.write_text(WRITTEN_SECRET)
    with listening(FarEnd()) as far_end:
        settings = {"gateway": "webhook", "gateway_url": far_end.url, "gateway_secrets": str(secrets)}
        for customer in range(KILLS):
            deployment.started(settings=settings)
            far_end.before = deployment.kill
            assert asyncio.run(enroll(deployment, customer)) == "UNAVAILABLE"
            assert deployment.process is not None
            deployment.process.wait(START_SECONDS)
            far_end.before = lambda: None
            assert waiting(deployment) == 1

            deployment.started(settings=settings)
            until(lambda: waiting(deployment) == 0, seconds=START_SECONDS, what="the message settled")
            assert deployment.stop() == 0
        times = Counter(far_end.keys)
        log = deployment.log.read_text()

    assert list(times.values()) == [2] * KILLS
    assert set(far_end.delivered) == set(times)
    assert far_end.faults == []
    assert deployment.verify()["clean"]
    numbers = [data["destination"][1:] for data in far_end.delivered.values()]
    texts = [data["text"] for data in far_end.delivered.values()]
    assert [secret for secret in (*numbers, *texts, "t0ken-5f1e", WRITTEN_SECRET) if secret in log] == []


def test_the_lines_for_a_webhook_work_as_pasted(deployment: Deployment) -> None:
    (block,) = re.findall(r"## The webhook\n\n```\n(.*?)```", PAGE, re.DOTALL)
    (address,) = re.findall(r"https://\S+", block)
    deployment.started()
    assert asyncio.run(enroll(deployment, 1)) == "OK"
    assert deployment.stop() == 0
    with listening(FarEnd()) as far_end:
        *making, serve = block.replace(address, f"'{far_end.url}'").splitlines()
        ports = {"KEY": str(deployment.port), "CERTIFICATE": "0", "METRICS": "-1"}
        with deployment.log.open("ab") as output:
            deployment.process = subprocess.Popen(
                ["bash", "-euc", "\n".join([*making, f"exec {serve}"])],
                cwd=deployment.work,
                env=environment()
                | {f"RISKGATE_{name}_PORT": port for name, port in ports.items()}
                | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])},
                stdout=output,
                stderr=output,
            )
        deployment.pid = deployment.process.pid
        until(lambda: deployment.events("serving") == 2, seconds=START_SECONDS, what="start")
        (far_end.secret,) = secrets_from((deployment.work / "gateway.secrets").read_text())
        assert asyncio.run(enroll(deployment, 2)) == "OK"
        assert deployment.stop() == 0

    assert [data["template"] for data in far_end.delivered.values()] == ["CODE_BINDING"]
    assert far_end.faults == []
