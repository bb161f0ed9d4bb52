"""One initialised directory for all, a copy for each test, a database beside it, and what each test has to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import postgres
from tests.acceptance.deployment import Deployment, Template

Figures = Callable[..., None]

_FIGURES: Final = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template(tmp_path_factory.mktemp("template") / "data")


@pytest.fixture
def deployment(template: Template, tmp_path: Path) -> Iterator[Deployment]:
    made = template.deployment(tmp_path)
    yield made
    made.cleanup()


@pytest.fixture
def dsn(tmp_path: Path, deployment: Deployment) -> Iterator[str]:
    """An empty database that holds the deployment's rows and keys."""
    deployment.dsn = postgres.database(tmp_path)
    yield deployment.dsn
    deployment.cleanup()
    postgres.give_back(tmp_path)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Tell what was seen; printed after the run, green or red."""

    def tell(**values: object) -> None:
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
        request.config.stash.setdefault(_FIGURES, []).append(f"{request.node.name}: {said}")

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    told = config.stash.get(_FIGURES, [])
    if told:
        terminalreporter.section("figures")
        for line in told:
            terminalreporter.write_line(line)
