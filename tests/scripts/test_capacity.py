"""The capacity model against the measured points, and docs/scale.md against the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from scripts.capacity.model import BUSY_MOST, Needs, Point, fit, needs, read_points

PAGE: Final = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
POINTS: Final = read_points()
STORES: Final = ("sqlite", "postgresql")


def work_of(point: Point) -> tuple[int, int, int]:
    return point.calls, point.decisions, point.commits


def off(predicted: float, seen: float) -> float:
    return abs(predicted - seen) / seen


def needed(**other: Any) -> Needs:
    load: dict[str, Any] = {
        "decisions_per_second": 1_000,
        "per_call": 1,
        "per_commit": 50,
        "customers": 10**6,
        "commit_seconds": 0.01,
    }
    return needs(fit(POINTS, "postgresql"), **(load | other))


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point.store}, {point.name}")
def test_the_model_meets_every_measured_point(point: Point) -> None:
    """Within 10 % those it was fitted to, and within 20 % the others."""
    model = fit(POINTS, point.store)
    bound = 0.10 if point.fitted else 0.20

    assert off(model.server.of(*work_of(point)), point.server_cpu) < bound
    if point.store == "postgresql":
        assert off(model.database.of(*work_of(point)), point.database_cpu) < bound + 0.05
        assert off(model.log.of(*work_of(point)), point.log_bytes) < bound


@pytest.mark.parametrize("store", STORES)
def test_some_points_of_every_store_say_how_far_the_model_goes(store: str) -> None:
    mine = [point for point in POINTS if point.store == store]

    assert sum(point.fitted for point in mine) >= 4
    assert sum(not point.fitted for point in mine) >= 2
    assert any(point.calls == point.decisions for point in mine if not point.fitted)
    assert any(point.calls < point.decisions for point in mine if not point.fitted)


def test_a_model_of_other_costs_would_not_pass() -> None:
    """Half the cost of a commit, as if each were twice as large, is told apart by the points with few per commit."""
    slow = [msgspec.structs.replace(p, commits=2 * p.commits) for p in POINTS if p.store == "postgresql"]
    alone = next(p for p in POINTS if p.store == "postgresql" and p.calls == p.commits)

    assert off(fit(slow, "postgresql").server.of(*work_of(alone)), alone.server_cpu) > 0.20


def test_more_load_never_needs_less_and_larger_calls_and_commits_never_more() -> None:
    rates = [needed(decisions_per_second=rate) for rate in (1, 10, 100, 1_000, 10_000)]

    assert rates == sorted(rates, key=lambda found: (found.processes, found.server_cores))
    assert needed(per_call=100).server_cores < needed().server_cores
    assert needed(per_commit=100).database_cores < needed().database_cores
    assert needed(customers=1_000).lock_wait >= needed(customers=10**6).lock_wait


def test_processes_leave_room_and_lanes_have_time_for_their_commits() -> None:
    found = needed(decisions_per_second=10_000)

    assert found.server_cores <= BUSY_MOST * found.processes
    assert needed(per_commit=1).processes >= 1_000 * 0.01 / BUSY_MOST


def rows_of_table(heading: str) -> list[list[str]]:
    table = PAGE.partition(heading)[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.strip().splitlines()[1:]]


def test_the_costs_on_the_page_are_the_models() -> None:
    sqlite, postgresql = (fit(POINTS, store) for store in STORES)
    costs = (sqlite.server, postgresql.server, postgresql.database)

    assert [row[1:] for row in rows_of_table("| µs of a core | call | decision | commit |\n")] == [
        [f"{1e6 * value:,.0f}" for value in (cost.call, cost.decision, cost.commit)] for cost in costs
    ]
    said = re.search(r"A decision leaves ([\d.]+) KB in files, and ([\d.]+) KB .* beside ([\d.]+) KB", PAGE)
    assert said
    assert said.groups() == tuple(
        f"{found / 1e3:.1f}"
        for found in (sqlite.disk_bytes_per_decision, postgresql.disk_bytes_per_decision, postgresql.log.decision)
    )


def test_the_needs_on_the_page_are_the_models() -> None:
    heading = re.search(r"\| purchases a second .*\n", PAGE)
    assert heading
    rows = rows_of_table(heading[0])

    assert len(rows) >= 5
    for row in rows:
        rate, per_call, per_commit = (int(cell.replace(",", "")) for cell in row[:3])
        found = needed(decisions_per_second=rate, per_call=per_call, per_commit=per_commit)
        assert row[3:] == [
            f"{found.server_cores:.2f}",
            f"{found.database_cores:.2f}",
            str(found.processes),
            str(found.connections),
            f"{found.log_megabytes_per_second:.1f}",
            f"{found.disk_gigabytes_per_day:,.0f}",
        ]
        assert found.lock_wait < 0.01


@pytest.mark.parametrize(("per_call", "said"), [(1, 1_100), (100, 3_300)])
def test_what_one_process_can_do_is_said_as_the_model_has_it(per_call: int, said: int) -> None:
    found = needs(
        fit(POINTS, "sqlite"),
        decisions_per_second=1,
        per_call=per_call,
        per_commit=50 if per_call == 1 else 100,
        customers=10**6,
        commit_seconds=0.01,
    )

    assert f"{said:,}" in PAGE
    assert off(BUSY_MOST / found.server_cores, said) < 0.05
