"""Callers who all come at once are let in, every one."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import Deployment

pytestmark = pytest.mark.process

ROUNDS = 12
AT_ONCE = 32


async def come_and_go(deployment: Deployment) -> None:
    """Have many clients shake hands at once and leave, again and again."""
    context = ssl.create_default_context(cadata=deployment.ca_certificate.decode())
    context.set_alpn_protocols(["h2"])

    async def one() -> None:
        _, writer = await asyncio.open_connection("localhost", deployment.port, ssl=context)
        writer.transport.abort()

    for _ in range(ROUNDS):
        async with asyncio.TaskGroup() as everybody:
            for _ in range(AT_ONCE):
                everybody.create_task(one())
        deployment.must_run()


def test_many_handshakes_at_once_do_not_hurt_the_server(deployment: Deployment, figures: Figures) -> None:
    """The RPC library replaced the certificate under handshakes in flight, and the process died of it."""
    deployment.started()
    asyncio.run(come_and_go(deployment))
    figures(handshakes=ROUNDS * AT_ONCE)

    assert deployment.stop() == 0
