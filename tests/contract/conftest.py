from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from riskgate_server.engine.storing import Store, Vault
from tests import postgres
from tests.contract.backends import BACKENDS, OPTED_OUT, VAULTS


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(what): a back end may opt out, with its reason (backends.py)")


def _opt_out(request: pytest.FixtureRequest, backend: str) -> None:
    mark = request.node.get_closest_marker("needs")
    if mark and (reason := OPTED_OUT[mark.args[0]].get(backend)):
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def clean_databases(tmp_path: Path) -> Iterator[None]:
    """A database that stands for the test's folder is given back at the end."""
    yield
    postgres.give_back(tmp_path)


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    """A database without a table."""
    return postgres.database(tmp_path)


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    _opt_out(request, request.param)
    opened = BACKENDS[request.param](tmp_path)
    yield opened
    opened.close()


@pytest.fixture(params=VAULTS)
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vault]:
    """An empty vault of each kind."""
    _opt_out(request, request.param)
    opened = VAULTS[request.param](tmp_path)
    yield opened
    if close := getattr(opened, "close", None):
        close()
