"""One real server for all tests of this folder; every test has a tenant of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from riskgate_server.stores.access import registry
from tests.rpc.attacks import ATTACKS, OK, named
from tests.rpc.calling import Api, told
from tests.rpc.logs import Lines, logs
from tests.rpc.phones import confirmed_phone
from tests.rpc.requests import open_line
from tests.rpc.serving import Deployment, Loop, Running, Tenant, serving


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Have who bears the mark of an attack meet, on the wire, all the answers that are required of it."""
    told.clear()
    yield
    for name in named(item):
        assert name in ATTACKS, f"{name} is no attack of the table"
        unmet = set(ATTACKS[name].answers) - told - {OK}
        assert not unmet, f"{name} was not answered with {unmet}, but with {told}"


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    loop = Loop()
    with pytest.MonkeyPatch.context() as patch:
        # Tests add callers all the time, and would wait a second for each to be known.
        patch.setattr(registry, "CHECK_SECONDS", 0.0)
        yield loop
    loop.close()


@pytest.fixture(scope="session")
def running(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    deployment = Deployment(tmp_path_factory.mktemp("rpc") / "data")
    with serving(loop, deployment) as running:
        yield running
    deployment.close()


@pytest.fixture
def log() -> Iterator[Lines]:
    """What the server logs during the test."""
    with logs() as lines:
        yield lines


@pytest.fixture
def tenant(running: Running) -> Tenant:
    return running.tenant()


@pytest.fixture
def api(tenant: Tenant) -> Api:
    """The administrator of a tenant without customers."""
    return tenant.api


@pytest.fixture
def ada(api: Api) -> Api:
    """The administrator of a tenant whose only customer, ada, has a line of 1,000.00 yuan."""
    open_line(api)
    return api


@pytest.fixture
def ada_at(tenant: Tenant) -> Tenant:
    """A tenant whose customer ada has a line."""
    open_line(tenant.api)
    return tenant


@pytest.fixture
def phone(ada_at: Tenant) -> Tenant:
    """A tenant whose customer ada has a line and a confirmed phone."""
    confirmed_phone(ada_at)
    return ada_at
