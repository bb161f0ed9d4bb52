"""Signed heads of a database that several servers write: each signs its own lane, and looks at it before it goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from riskgate_server.cli.init import initialise
from riskgate_server.crypto.keys import HEADS
from riskgate_server.crypto.signing import HeadLog, HeadSigner
from riskgate_server.datadir import DataDirectory
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.report import Report
from riskgate_server.engine.storing import Store
from riskgate_server.opening import (
    LaneLogs,
    OtherPast,
    master_keys,
    refuse_other_past,
    ring_file,
    secret,
    sign_head,
    verify_directory,
)
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.postgres.vault import PostgresVault, create_vault
from tests import factories as f
from tests.contract.sessions import ask


class Host:
    """A data directory, whose processes serve lanes of a database."""

    def __init__(self, root: Path, dsn: str) -> None:
        initialise(root, names=(), tenant="default")
        self.directory = DataDirectory(root)
        self.dsn = dsn

    def share_keys_of(self, other: Host) -> None:
        for name in ("master_key", "heads_key", "heads_public_key"):
            getattr(self.directory, name).write_bytes(getattr(other.directory, name).read_bytes())

    def _vault(self) -> PostgresVault:
        master = master_keys(self.directory)
        # The tables first: a vault is made beside them, by whoever comes first.
        PostgresStore(self.dsn, writer=9).close()
        create_vault(self.dsn, master.wrap)
        return PostgresVault(self.dsn, wrap=master.wrap, unwrap=master.unwrap)

    def log(self, writer: int) -> HeadLog:
        return HeadLog(self.directory.heads_of(writer), HeadSigner(secret(HEADS, self.directory.heads_key)))

    def serve(self, life: Callable[[Pipeline, Pipeline], object], writers: tuple[int, int] = (0, 1)) -> None:
        """Run two processes for a while; each looks at its lane first, and signs it at the beginning and the end."""
        with ExitStack() as closes:
            vault = closes.enter_context(closing(self._vault()))
            stores: list[Store] = [closes.enter_context(closing(PostgresStore(self.dsn, each))) for each in writers]
            logs = [closes.enter_context(closing(self.log(each))) for each in writers]
            for log, store in zip(logs, stores, strict=True):
                refuse_other_past(log, store)
                sign_head(log, store)
            one, other = (f.make_pipeline(store, vault=vault) for store in stores)
            life(one, other)
            for log, store in zip(logs, stores, strict=True):
                sign_head(log, store)

    def verify(self) -> Report:
        return verify_directory(self.directory, lambda *_: None, self.dsn)


def begin(one: Pipeline, other: Pipeline) -> None:
    f.make_customer(one)
    other.run([f.check("t1", 500)])
    other.run([f.capture("c1", "t1", 300)])


def go_on(one: Pipeline, other: Pipeline) -> None:
    one.run([f.pay("p1", 100)])
    other.run([f.check("t2", 20)])


@pytest.fixture
def host(dsn: str, tmp_path: Path) -> Host:
    host = Host(tmp_path / "data", dsn)
    host.serve(begin)
    return host


def test_each_process_signs_its_own_lane_into_a_file_of_its_own(host: Host) -> None:
    host.serve(go_on)

    report = host.verify()

    assert report.faults == []
    assert [path.name for path in host.directory.all_heads()] == ["heads-1.log", "heads.log"]
    assert [(lane.writer, lane.heads) for lane in report.lanes] == [(0, 3), (1, 3), (9, 0)]


def test_a_lane_that_went_on_elsewhere_is_gone_on_with_and_older_heads_are_still_good(
    host: Host, tmp_path: Path
) -> None:
    """As after another host took the numbers over: it has the same keys, and heads of its own."""
    elsewhere = Host(tmp_path / "other", host.dsn)
    elsewhere.share_keys_of(host)
    elsewhere.serve(go_on)
    between = host.verify()
    host.serve(lambda one, other: [one.run([f.check("t3", 5)]), other.run([f.check("t4", 5)])])

    assert between.faults == []
    assert (host.verify().faults, elsewhere.verify().faults) == ([], [])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("DELETE FROM writers WHERE writer = 1", "lane 1 would go on from commit 0"),
        ("UPDATE writers SET sequence = 1, position = 1 WHERE writer = 1", "lane 1 would go on from commit 1"),
        ("DELETE FROM batches WHERE writer = 1 AND sequence = 2", "lane 1 would go on from commit 2"),
        ("DELETE FROM entries WHERE writer = 1 AND position = 2", "does not hold the entries of commit 2"),
        (
            "; ".join(f"DELETE FROM {table} WHERE writer = 1" for table in ("entries", "batches", "writers")),
            "does not hold commit 2, whose head was signed",
        ),
    ],
)
def test_a_process_whose_lane_is_not_what_it_was_does_not_go_on(host: Host, damage: str, fault: str) -> None:
    for statement in damage.split(";"):
        ask(host.dsn, statement)

    with pytest.raises(OtherPast, match=fault):
        host.serve(go_on)


def test_what_happened_to_another_lane_keeps_nobody_from_going_on(host: Host) -> None:
    ask(host.dsn, "DELETE FROM entries WHERE writer = 1 AND position = 2")

    host.serve(lambda one, _: one.run([f.open_line(customer_id="bo")]), writers=(0, 2))


def test_a_head_of_another_lane_is_not_taken_for_ones_own(host: Host) -> None:
    host.directory.heads_of(1).rename(host.directory.heads_of(2))

    with pytest.raises(OtherPast, match="heads of lane 1 are in the file of lane 2"):
        host.serve(go_on, writers=(0, 2))


def test_a_lane_whose_log_another_process_holds_is_passed_over_and_stays_its_own(host: Host) -> None:
    """Its process stands still for longer than its lease."""
    logs = LaneLogs(host.directory, ring_file(HEADS, host.directory.heads_key))
    with closing(PostgresStore(host.dsn, 0)) as still, closing(host.log(0)), closing(logs):
        ask(host.dsn, "UPDATE writers SET lease_until = clock_timestamp() - interval '1 second'")
        with closing(PostgresStore(host.dsn, None, may_take=logs.may_take)) as beside:
            found = (beside.writer, logs.of(beside.writer).name)
            with still.transaction() as tx:
                goes_on = tx.tail()

    assert found == (1, "heads-1.log")
    assert goes_on[1] > 0


def test_a_log_is_made_for_no_lane_but_the_one_that_was_taken(host: Host) -> None:
    logs = LaneLogs(host.directory, ring_file(HEADS, host.directory.heads_key))
    with closing(logs):
        asked = logs.may_take(7)
        taken = logs.of(3).name

    assert asked
    assert taken == "heads-3.log"
    assert not host.directory.heads_of(7).exists()


def test_an_emptied_log_of_any_lane_is_found(host: Host) -> None:
    host.directory.heads_of(1).write_bytes(b"")

    assert host.verify().faults == ["heads-1.log has no head of its lane: it was lost or emptied"]


def test_a_directory_without_a_head_of_what_was_written_is_found(host: Host) -> None:
    for path in host.directory.all_heads():
        path.unlink()

    assert len(host.verify().faults) == 2


def test_a_changed_line_of_any_lanes_log_is_found(host: Host) -> None:
    path = host.directory.heads_of(1)
    path.write_bytes(path.read_bytes().replace(b'"entries":2', b'"entries":3'))

    assert any(fault.startswith("heads-1.log: line ") for fault in host.verify().faults)
