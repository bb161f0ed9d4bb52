"""By which index SQLite answers what is asked of a journal that grows for ever."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from riskgate_server.stores.sqlite.reads import SQLiteSnapshot
from riskgate_server.stores.sqlite.store import SQLiteStore
from tests.contract.rows import ADA, batch, commit, customer, entry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(tmp_path / "riskgate.db")
    yield store
    store.close()


@pytest.mark.parametrize(
    ("question", "end"),
    [
        (lambda s: s.entries_before(0, position=10, limit=5, tenant_id="t", tag=2), "<"),
        (lambda s: s.entries_by_position(0, after=10, limit=5, tenant_id="t", tag=2), ">"),
    ],
    ids=["backwards", "forwards"],
)
def test_a_page_of_a_tenants_journal_reads_no_other_tenants_entries_and_sorts_nothing(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, question: Callable[[SQLiteSnapshot], object], end: str
) -> None:
    """Else a small tenant beside a large one reads the whole journal for one page."""
    asked: list[tuple[str, tuple[Any, ...]]] = []
    with store.snapshot() as snapshot:

        def note(sql: str, given: tuple[Any, ...]) -> list[tuple[Any, ...]]:
            asked.append((sql, given))
            return []

        monkeypatch.setattr(snapshot, "_all", note)
        question(snapshot)

        ((sql, given),) = asked
        plan = [row[3] for row in snapshot._db.execute(f"EXPLAIN QUERY PLAN {sql}", given)]

    assert plan == [f"SEARCH entries USING INDEX entries_by_tag (tenant_id=? AND tag=? AND rowid{end}?)"]


def test_what_is_asked_of_one_tag_reads_no_other_entry(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every start would read the whole journal."""
    commit(store, customer(ADA), entry(1, 1, ADA), batch(1, 1, 1))
    asked: list[tuple[str, tuple[Any, ...]]] = []
    with store.snapshot() as snapshot:
        answer = snapshot._all

        def note(sql: str, given: tuple[Any, ...]) -> list[tuple[Any, ...]]:
            asked.append((sql, given))
            return answer(sql, given)

        monkeypatch.setattr(snapshot, "_all", note)
        list(snapshot.marked(2))

        plans = [snapshot._db.execute(f"EXPLAIN QUERY PLAN {sql}", given).fetchall() for sql, given in asked]

    (next_tenant, of_tag, end) = [[row[3] for row in plan] for plan in plans]
    assert next_tenant == end
    assert len(next_tenant) == 1
    assert re.fullmatch(r"SEARCH entries USING COVERING INDEX \w+ \(tenant_id>\?\)", next_tenant[0])
    assert of_tag == ["SEARCH entries USING INDEX entries_by_tag (tenant_id=? AND tag=?)"]
