"""What several servers wrote, read as one: every lane is verified, and none can lose or change a row unseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from riskgate_server.crypto.seal import Sealer
from riskgate_server.crypto.signing import Head
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.report import Report
from riskgate_server.engine.verify import verify
from riskgate_server.opening import head_of
from riskgate_server.stores.memory import MemoryVault
from riskgate_server.stores.postgres.store import PostgresSnapshots, PostgresStore
from tests import factories as f
from tests.contract.sessions import ask


class Fleet:
    """Servers of one database, each with a lane of its own, and the vault they share."""

    def __init__(self, dsn: str, size: int = 2) -> None:
        self.dsn = dsn
        self.vault = MemoryVault()
        self.stores = [PostgresStore(dsn, writer) for writer in range(size)]
        self.servers = [f.make_pipeline(store, vault=self.vault, entropy=f.SeededEntropy()) for store in self.stores]

    def close(self) -> None:
        for store in self.stores:
            store.close()

    def heads(self) -> list[Head]:
        return [head_of(store) for store in self.stores]

    def verify(self, heads: list[Head] | None = None, progress: Callable[..., Any] = lambda *_: None) -> Report:
        with closing(PostgresSnapshots(self.dsn)) as snapshots:
            return verify(snapshots, self.vault, Sealer(), progress, heads or [])


def shop(one: Pipeline, other: Pipeline) -> None:
    """Two customers' lives, in turn at both servers."""
    f.make_customer(one)
    other.run([f.open_line(customer_id="bo"), f.check("t1", 500)])
    one.run([f.capture("c1", "t1", 300), f.check("t1", 70, customer_id="bo")])
    other.run([f.pay("p1", 100)])
    other.run([f.check("t2", 20), f.check("t2", 30, customer_id="bo")])


@pytest.fixture
def fleet(dsn: str) -> Iterator[Fleet]:
    fleet = Fleet(dsn)
    shop(*fleet.servers)
    yield fleet
    fleet.close()


def test_lanes_that_nobody_touched_are_clean_and_summed_up(fleet: Fleet) -> None:
    told: list[tuple[str, int, int]] = []

    report = fleet.verify(fleet.heads(), lambda *now: told.append(now))

    assert report.faults == []
    assert (report.batches, report.entries, report.customers, report.heads) == (5, 8, 2, 2)
    assert [(lane.writer, lane.batches, lane.entries, lane.heads) for lane in report.lanes] == [
        (0, 2, 3, 1),
        (1, 3, 5, 1),
    ]
    assert [lane.head for lane in report.lanes] == [head.batch_hash for head in fleet.heads()]
    assert [done for what, done, total in told if what == "batches" and total == 5][-1] == 5


def test_a_lane_without_a_commit_is_clean(dsn: str) -> None:
    with closing(Fleet(dsn, size=3)) as fleet:
        shop(*fleet.servers[:2])

        report = fleet.verify(fleet.heads())

    assert report.faults == []
    assert [lane.batches for lane in report.lanes] == [2, 3, 0]


DAMAGES = {
    "the row of a writer": (
        "DELETE FROM writers WHERE writer = 1",
        "lane 1: nothing says where it ends: the row of its writer is gone",
    ),
    "an older row of a writer": (
        "UPDATE writers SET sequence = 2, position = 3 WHERE writer = 1",
        "lane 1: its writer went on to batch 2 and position 3, its rows end at batch 3 and position 5",
    ),
    "another hash to go on from": (
        "UPDATE writers SET hash = decode(repeat('00', 32), 'hex') WHERE writer = 1",
        "lane 1: its writer would go on from another batch 3 than is stored",
    ),
    "a batch row in another lane": (
        "UPDATE batches SET writer = 0, sequence = 3, first_position = 4 WHERE writer = 1 AND sequence = 3",
        "lane 0: batch 3: its hash does not follow from the batch before it",
    ),
    "a whole lane under another number": (
        "; ".join(f"UPDATE {table} SET writer = 2 WHERE writer = 1" for table in ("batches", "entries", "writers")),
        "lane 2: batch 1: its hash does not follow from the batch before it",
    ),
    "a cut batch": (
        "DELETE FROM batches WHERE writer = 1 AND sequence = 3",
        "lane 1: entries above position 3 belong to no batch",
    ),
    "a cut tail": (
        "DELETE FROM batches WHERE writer = 1 AND sequence = 3; DELETE FROM entries WHERE writer = 1 AND position > 3",
        "lane 1: its writer went on to batch 3 and position 5, its rows end at batch 2 and position 3",
    ),
    "an entry in another lane": (
        "UPDATE entries SET writer = 0, position = 4 WHERE writer = 1 AND position = 5",
        "lane 0: entries above position 3 belong to no batch",
    ),
    "two entries in each other's place": (
        "UPDATE entries SET position = 9 - position WHERE writer = 1 AND position > 3",
        "lane 1: batch 3: its Merkle root is not that of its entries",
    ),
    "a batch between": ("DELETE FROM batches WHERE writer = 0 AND sequence = 1", "lane 0: batch 2 follows batch 0"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_a_lane_is_found(fleet: Fleet, name: str) -> None:
    statements, fault = DAMAGES[name]
    for statement in statements.split(";"):
        ask(fleet.dsn, statement)

    faults = fleet.verify().faults

    assert fault in faults, faults


def test_a_cut_tail_that_also_its_writers_row_hides_is_found_by_what_was_signed(fleet: Fleet) -> None:
    """The whole past of the second server is taken away, and that of everybody who was there."""
    heads = fleet.heads()
    for table in ("batches", "entries", "writers"):
        ask(fleet.dsn, f"DELETE FROM {table} WHERE writer = 1")

    faults = fleet.verify(heads).faults

    assert "lane 1: batch 3 was signed and is gone" in faults


def test_a_customers_chain_leads_through_all_lanes(fleet: Fleet) -> None:
    """Whoever takes a whole lane away, with all that says that it was there, has broken the chains of its customers."""
    for table in ("batches", "entries", "writers"):
        ask(fleet.dsn, f"DELETE FROM {table} WHERE writer = 1")

    faults = fleet.verify().faults

    assert "acme/ada: entry 3 follows entry 1" in faults


def test_heads_of_a_lane_that_was_signed_in_two_places_must_agree(fleet: Fleet) -> None:
    one, other = fleet.heads()
    forged = Head(writer=1, batch=3, batch_hash=bytes(32), entries=5, at_us=1)

    assert fleet.verify([one, other, other]).faults == []
    assert "batch 3 of lane 1 was signed twice, and not the same" in fleet.verify([one, other, forged]).faults
