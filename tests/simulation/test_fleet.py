"""Several processes whose batches run into each other on one database: what comes of it is what the model says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.backings import workshop
from tests.simulation.faults import NETWORK_FAULTS, Fault
from tests.simulation.fleet import FleetSimulation
from tests.simulation.plants import FLEET_PLANTS, planted
from tests.simulation.simulator import SeedFailed

SEEDS = 32
CAUGHT_WITHIN_SEEDS = 20


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with workshop() as folder:
        yield folder


def lived(seed: int, folder: Path) -> FleetSimulation:
    simulation = FleetSimulation(seed, folder)
    simulation.run()
    return simulation


@pytest.fixture(scope="module")
def fleets(folder: Path) -> list[FleetSimulation]:
    return [lived(seed, folder) for seed in range(SEEDS)]


def test_batches_that_run_into_each_other_agree_with_the_model(fleets: list[FleetSimulation]) -> None:
    """Every answer, row and entry; and that those whom another process held were left, and nobody else."""
    met: Counter[str] = Counter()
    for fleet in fleets:
        met.update(fleet.tally.faults)

    assert {len(fleet.processes) for fleet in fleets} == {2, 3}
    assert sum(fleet.woven for fleet in fleets) > 1_000
    assert sum(fleet.left for fleet in fleets) > 1_000
    assert sum(fleet.races for fleet in fleets) >= 10
    assert min(met[fault.name] for fault in (Fault.NONE, *NETWORK_FAULTS)) >= 10, met


def test_a_fleet_replays_to_the_last_bit(folder: Path, fleets: list[FleetSimulation]) -> None:
    again = lived(3, folder)

    assert (again.tally, again.woven, again.left, again.races) == (
        fleets[3].tally, fleets[3].woven, fleets[3].left, fleets[3].races,
    )  # fmt: skip


@pytest.mark.parametrize("bug", FLEET_PLANTS)
def test_a_bug_that_shows_only_between_processes_is_caught(folder: Path, bug: str) -> None:
    def run_a_few() -> None:
        for seed in range(CAUGHT_WITHIN_SEEDS):
            lived(seed, folder)

    with planted(bug), pytest.raises(SeedFailed):
        run_a_few()
