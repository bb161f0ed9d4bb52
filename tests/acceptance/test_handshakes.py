"""Callers who all come at once are let in, every one."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime

import pytest

from riskgate_server.certificate import renew
from riskgate_server.datadir import DataDirectory
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import Deployment

pytestmark = pytest.mark.process

ROUNDS = 12
AT_ONCE = 32


async def come_and_go(deployment: Deployment, *, renewing: bool = False) -> None:
    """Have many clients shake hands at once and leave, again and again; and the certificate be renewed meanwhile."""
    context = ssl.create_default_context(cadata=deployment.ca_certificate.decode())
    context.set_alpn_protocols(["h2"])

    async def one() -> None:
        _, writer = await asyncio.open_connection("localhost", deployment.port, ssl=context)
        writer.transport.abort()

    for _ in range(ROUNDS):
        async with asyncio.TaskGroup() as everybody:
            if renewing:
                everybody.create_task(asyncio.to_thread(_renew, deployment))
            for _ in range(AT_ONCE):
                everybody.create_task(one())
        deployment.must_run()


def _renew(deployment: Deployment) -> None:
    renew(DataDirectory(deployment.root), (), keep_names=True, now=datetime.now(UTC))


def test_many_handshakes_at_once_do_not_hurt_the_server(deployment: Deployment, figures: Figures) -> None:
    """The RPC library replaced the certificate under handshakes in flight, and the process died of it."""
    deployment.started()
    asyncio.run(come_and_go(deployment))
    figures(handshakes=ROUNDS * AT_ONCE)

    assert deployment.stop() == 0


def test_callers_come_in_beside_a_renewal_of_the_certificate(deployment: Deployment, figures: Figures) -> None:
    deployment.started()
    asyncio.run(come_and_go(deployment, renewing=True))
    shown = ssl.get_server_certificate(("localhost", deployment.port), timeout=5)
    figures(handshakes=ROUNDS * AT_ONCE, renewals=ROUNDS)

    assert shown == (deployment.root / "tls" / "server.crt").read_text("ascii")
    assert deployment.stop() == 0
