"""A real PostgreSQL whose connections are cut and whose transactions lose races: the engine agrees with the model."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count

import psycopg
import pytest

from riskgate_server.engine.failures import OutcomeUnknown, StoreUnreachable
from riskgate_server.stores.postgres import session
from riskgate_server.stores.postgres.store import PostgresStore
from tests.acceptance.conftest import Figures
from tests.simulation.shared import FAULTS, Database, SharedSimulation
from tests.simulation.simulator import SeedFailed

INJECTED = int(os.environ.get("INJECTED", "200"))
"""How many faults must come, those that were planned and did not come not counted."""
CONTROL_SEEDS = 10


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(tmp_path_factory.mktemp("shared"))
    yield database
    database.close()


def test_cut_connections_and_lost_races_lose_and_double_nothing(database: Database, figures: Figures) -> None:
    """After every batch the rows are what the model says, and at the end every unknown outcome is asked by its id."""
    first = int(os.environ.get("START", random.SystemRandom().randrange(1_000_000)))
    met: Counter[str] = Counter()
    commands = unknown = 0
    for seed in count(first):
        simulation = SharedSimulation(seed, database)
        simulation.run()
        met.update(fault.name for fault in simulation.fired)
        commands += simulation.tally.commands
        unknown += simulation.tally.unknown
        if met.total() >= INJECTED:
            break
    figures(
        first_seed=first,
        seeds=seed + 1 - first,
        commands=commands,
        faults=met.total(),
        unknown_outcomes_resolved=unknown,
        **{name.lower(): times for name, times in sorted(met.items())},
    )

    assert min(met[fault.name] for fault in FAULTS) >= INJECTED / 100, met


def doubt_taken_for_no(patch: pytest.MonkeyPatch) -> None:
    """A connection lost in a commit is said to have done nothing."""
    commit = session.commit

    def committing(connection: session.Connection, warnings: list[str]) -> None:
        try:
            commit(connection, warnings)
        except OutcomeUnknown as doubt:
            raise StoreUnreachable(str(doubt)) from doubt

    patch.setattr(session, "commit", committing)


def failed_commit_taken_for_done(patch: pytest.MonkeyPatch) -> None:
    """What the server says to a COMMIT is not looked at."""
    commit = session.commit

    def committing(connection: session.Connection, warnings: list[str]) -> None:
        try:
            commit(connection, warnings)
        except Exception as error:
            if connection.closed or not isinstance(error.__cause__, psycopg.Error):
                raise

    patch.setattr(session, "commit", committing)


def own_memory_trusted(patch: pytest.MonkeyPatch) -> None:
    """Where a commit in doubt left the customers and the lane is not asked: memory says."""
    patch.setattr(PostgresStore, "shared", False)


@pytest.mark.parametrize("bug", [doubt_taken_for_no, failed_commit_taken_for_done, own_memory_trusted])
def test_the_model_finds_a_planted_bug(
    database: Database, figures: Figures, monkeypatch: pytest.MonkeyPatch, bug: Callable[[pytest.MonkeyPatch], None]
) -> None:
    bug(monkeypatch)
    told = ""
    for seed in range(CONTROL_SEEDS):
        try:
            SharedSimulation(seed, database).run()
        except SeedFailed as failed:
            told = str(failed)
            break
    figures(bug=bug.__name__, red=told[:90])

    assert told
