"""What a store promises of messages that wait: who may send one, and for how long."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from riskgate_server.engine.rows import MessageRow
from riskgate_server.engine.storing import MESSAGE_LEASE_SECONDS, Store
from riskgate_server.stores.leases import Leases
from riskgate_server.stores.postgres.store import PostgresStore
from tests import postgres
from tests.contract.rows import ADA, BO, batch_write, commit, message
from tests.contract.sessions import ask


def let_leases_run_out(store: Store, tmp_path: Path) -> None:
    """Do as if their time were over, without waiting for it."""
    if isinstance(store, PostgresStore):
        back = f"leased_until - interval '{MESSAGE_LEASE_SECONDS} seconds'"
        ask(postgres.database(tmp_path), f"UPDATE messages SET leased_until = {back}")
        return
    leases: Leases = store._leases  # type: ignore[attr-defined]
    leases._ends = {where: ends - MESSAGE_LEASE_SECONDS for where, ends in leases._ends.items()}


def ids(rows: Any) -> list[str]:
    return [row.message_id for row in rows]


@pytest.fixture
def waiting(store: Store, tmp_path: Path) -> Store:
    """Messages that were written long ago: m2 has waited longest, m4 is not due at 30."""
    commit(store, message("m1", due_us=30), message("m2", BO, due_us=10), message("m3", due_us=20))
    commit(store, message("m4", due_us=31))
    let_leases_run_out(store, tmp_path)
    return store


def test_messages_are_leased_that_are_due_by_the_time_they_have_waited(waiting: Store) -> None:
    rows = waiting.lease_messages(30, 9)

    assert rows == [message("m2", BO, due_us=10), message("m3", due_us=20), message("m1", due_us=30)]


def test_no_more_are_leased_than_were_asked_for_and_the_rest_is_free(waiting: Store) -> None:
    assert ids(waiting.lease_messages(30, 2)) == ["m2", "m3"]
    assert ids(waiting.lease_messages(30, 2)) == ["m1"]
    assert ids(waiting.lease_messages(30, 2)) == []


def test_a_lease_runs_out(waiting: Store, tmp_path: Path) -> None:
    waiting.lease_messages(30, 9)
    let_leases_run_out(waiting, tmp_path)

    assert ids(waiting.lease_messages(30, 9)) == ["m2", "m3", "m1"]


def test_a_message_is_on_lease_to_who_writes_it(store: Store) -> None:
    commit(store, message("m1", due_us=10))

    assert ids(store.lease_messages(30, 9)) == []


def test_a_message_that_was_put_off_is_on_lease_anew_and_then_due_later(waiting: Store, tmp_path: Path) -> None:
    waiting.lease_messages(30, 9)
    commit(waiting, message("m1", due_us=50))
    assert ids(waiting.lease_messages(60, 9)) == ["m4"]
    let_leases_run_out(waiting, tmp_path)

    assert ids(waiting.lease_messages(49, 9)) == ["m2", "m3", "m4"]
    assert ids(waiting.lease_messages(50, 9)) == ["m1"]


def test_a_message_that_was_settled_is_leased_no_more(waiting: Store, tmp_path: Path) -> None:
    settle = batch_write()
    settle.settled.append((ADA, "m1"))
    with waiting.transaction() as tx:
        tx.write(settle)
    let_leases_run_out(waiting, tmp_path)

    assert ids(waiting.lease_messages(30, 9)) == ["m2", "m3"]


def test_who_has_many_on_lease_still_finds_the_one_that_is_free(waiting: Store, tmp_path: Path) -> None:
    commit(waiting, *(message(f"n{n}", due_us=1) for n in range(50)))

    assert ids(waiting.lease_messages(30, 1)) == ["m2"]


def test_two_processes_never_have_one_message_on_lease(tmp_path: Path) -> None:
    dsn = postgres.database(tmp_path)
    stores = [PostgresStore(dsn, writer) for writer in range(2)]
    commit(stores[0], *(message(f"m{n}", due_us=n) for n in range(100)))
    let_leases_run_out(stores[0], tmp_path)

    def take_all(store: PostgresStore) -> list[MessageRow]:
        taken: list[MessageRow] = []
        while rows := store.lease_messages(100, 3):
            taken.extend(rows)
        return taken

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(take_all, stores)
    assert sorted(ids(first) + ids(second)) == sorted(f"m{n}" for n in range(100))
    for store in stores:
        store.close()


def test_what_a_process_had_on_lease_is_anothers_after_its_time(tmp_path: Path) -> None:
    dsn = postgres.database(tmp_path)
    gone = PostgresStore(dsn, 0)
    commit(gone, message("m1", due_us=1))
    gone.close()
    other = PostgresStore(dsn, 1)

    assert ids(other.lease_messages(9, 9)) == []
    let_leases_run_out(other, tmp_path)
    assert ids(other.lease_messages(9, 9)) == ["m1"]
    other.close()
