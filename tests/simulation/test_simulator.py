from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.backings import workshop
from tests.simulation.faults import DISK_FAULTS, NETWORK_FAULTS, Fault
from tests.simulation.plants import NETWORK_PLANTS, PLANTS, planted
from tests.simulation.simulator import SeedFailed, Simulation, Tally

ROOT = Path(__file__).parents[2]
SEEDS = 300
POSTGRESQL_SEEDS = 16
CAUGHT_WITHIN_SEEDS = 40


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with workshop() as folder:
        yield folder


@pytest.fixture(scope="module")
def tallies(folder: Path) -> list[Tally]:
    """What every seed of the suite went through; the first that fails fails the test, in one line."""
    return [Simulation(seed, folder).run() for seed in range(SEEDS)]


@pytest.fixture(scope="module")
def tallies_on_postgresql(folder: Path) -> list[Tally]:
    return [Simulation(seed, folder, store="postgresql").run() for seed in range(POSTGRESQL_SEEDS)]


def faults_met(tallies: list[Tally]) -> Counter[str]:
    met: Counter[str] = Counter()
    for tally in tallies:
        met.update(tally.faults)
    return met


def run_a_few(folder: Path, store: str = "") -> None:
    for seed in range(CAUGHT_WITHIN_SEEDS):
        Simulation(seed, folder, store=store).run()


def test_every_seed_agrees_with_the_model(tallies: list[Tally]) -> None:
    assert len(tallies) == SEEDS


def test_the_seeds_meet_every_fault_many_times(tallies: list[Tally]) -> None:
    met = faults_met(tallies)

    assert min(met[fault.name] for fault in (Fault.NONE, *DISK_FAULTS)) >= 30, met
    assert sum(tally.unknown for tally in tallies) > 1_000
    assert sum(tally.repeated for tally in tallies) > 1_000


def test_a_database_that_goes_away_at_any_point_leaves_nothing_twice_and_nothing_half(
    tallies_on_postgresql: list[Tally],
) -> None:
    met = faults_met(tallies_on_postgresql)

    assert min(met[fault.name] for fault in (Fault.NONE, *NETWORK_FAULTS)) >= 3, met
    assert sum(tally.unknown for tally in tallies_on_postgresql) > 50
    assert sum(tally.restarts for tally in tallies_on_postgresql) > 2 * POSTGRESQL_SEEDS


def test_a_seed_on_postgresql_replays_to_the_last_bit(folder: Path, tallies_on_postgresql: list[Tally]) -> None:
    again = Simulation(3, folder, store="postgresql").run()

    assert again == tallies_on_postgresql[3]


@pytest.mark.parametrize("seed", [4, 5])
def test_a_seed_replays_to_the_last_bit(folder: Path, seed: int) -> None:
    first = Simulation(seed, folder).run()

    assert Simulation(seed, folder).run() == first


def test_a_seed_replays_in_another_process_with_other_hashing() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--start", "4", "--seeds", "3", "--digest"]
    outputs = [
        subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashing},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[:3]
        for hashing in ("1", "2")
    ]

    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 3


@pytest.mark.parametrize("bug", PLANTS)
def test_a_planted_bug_is_caught_within_a_few_seeds_and_told_in_one_line(folder: Path, bug: str) -> None:
    with planted(bug), pytest.raises(SeedFailed, match=r"\Aseed \d+ step \d+: .+\Z") as failed:
        run_a_few(folder)

    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("bug", NETWORK_PLANTS)
def test_a_bug_planted_over_a_database_is_caught_too(folder: Path, bug: str) -> None:
    with planted(bug), pytest.raises(SeedFailed):
        run_a_few(folder, "postgresql")


@pytest.mark.parametrize("bug", PLANTS)
def test_the_report_of_a_failing_seed_is_the_same_when_replayed(folder: Path, bug: str) -> None:
    reports = []
    for _ in range(2):
        with planted(bug), pytest.raises(SeedFailed) as failed:
            run_a_few(folder)
        reports.append(str(failed.value))

    assert reports[0] == reports[1]
