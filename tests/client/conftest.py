from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from riskgate_client import Retry, Riskgate
from tests.client.drivers import CLIENTS, Connect
from tests.client.scripted import ScriptedEngine, authority, serve
from tests.rpc.serving import Loop

IMPATIENT = Retry(attempts_max=4, pause_first_seconds=0.001, pause_max_seconds=0.004, outage_max_seconds=5.0)


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    """Where asyncio clients live, and real engines."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    """An engine that does what the test plans."""
    scripted = ScriptedEngine()
    server = serve(scripted)
    yield scripted
    server.stop(None).wait()


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Connect]:
    """Either client's constructor; closes what was made."""
    with CLIENTS[request.param](loop) as connect:
        yield connect


@pytest.fixture
def gate_to(connect: Connect) -> Callable[..., Riskgate]:
    """Connects to an engine with a key, and pauses only briefly between tries."""

    def gate_to(engine: ScriptedEngine, retry: Retry = IMPATIENT, timeout: float | None = None) -> Riskgate:
        ca = authority().certificate_pem
        return connect(engine.target, ca=ca, api_key="rgk_test_key", retry=retry, timeout=timeout)

    return gate_to


@pytest.fixture
def gate(engine: ScriptedEngine, gate_to: Callable[..., Riskgate]) -> Riskgate:
    """A client of the scripted engine."""
    return gate_to(engine)
