"""What readers see of a store: one moment each, in pages that neither skip nor repeat; over every store."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from riskgate_server.engine.rows import Lane
from riskgate_server.engine.storing import Snapshot, Store
from tests.contract.rows import (
    ADA,
    ADA_ELSEWHERE,
    BO,
    batch,
    batch_write,
    commit,
    customer,
    entry,
    everything,
    payment,
    purchase,
)


@pytest.fixture
def full(store: Store) -> Store:
    """Twelve entries in four batches, of three customers in turn; every second one is of kind 3."""
    turn = (ADA, BO, ADA_ELSEWHERE)
    for number in range(4):
        first = 3 * number + 1
        rows = [
            entry(number + 1, first + n, key, tag=2 + (first + n) % 2, batch=number + 1) for n, key in enumerate(turn)
        ]
        commit(store, *rows, batch(number + 1, first, 3))
    return store


Ask = Callable[[Snapshot], Any]


@pytest.mark.parametrize(
    ("ask", "positions"),
    [
        (lambda s: s.entries_by_position(0, after=0, limit=99), list(range(1, 13))),
        (lambda s: s.entries_by_position(0, after=10, limit=99), [11, 12]),
        (lambda s: s.entries_by_position(0, after=12, limit=99), []),
        (lambda s: s.entries_by_position(0, after=2, limit=3), [3, 4, 5]),
        (lambda s: s.entries_by_position(0, after=0, limit=99, tenant_id="zeta"), [3, 6, 9, 12]),
        (lambda s: s.entries_by_position(0, after=0, limit=99, tag=3), [1, 3, 5, 7, 9, 11]),
        (lambda s: s.entries_by_position(0, after=3, limit=2, tenant_id="acme", tag=2), [4, 8]),
        (lambda s: s.entries_before(0, position=9, limit=3, tenant_id="acme", tag=2), [8, 4, 2]),
        (lambda s: s.entries_before(0, position=2**62, limit=2, tenant_id="zeta", tag=3), [9, 3]),
        (lambda s: s.entries_before(0, position=1, limit=2, tenant_id="acme", tag=3), []),
        (lambda s: s.customer_entries_before(ADA, sequence=4, limit=9, tag=3), [7, 1]),
        (lambda s: s.customer_entries_before(ADA, sequence=2**62, limit=1, tag=2), [10]),
        (lambda s: s.entries(BO, after=1, limit=2), [5, 8]),
        (lambda s: s.entries(BO, after=0, limit=0), []),
    ],
)
def test_entries_come_in_order_and_as_many_as_asked_for(full: Store, ask: Ask, positions: list[int]) -> None:
    with full.snapshot() as snapshot:
        assert [e.position for e in ask(snapshot)] == positions


def test_entries_of_one_tag_are_told_of_every_tenant(full: Store) -> None:
    with full.snapshot() as snapshot:
        told = Counter(key for key, at_us in snapshot.marked(3) if at_us)

        assert told == {ADA: 2, BO: 2, ADA_ELSEWHERE: 2}
        assert list(snapshot.marked(40)) == []


def test_batches_and_the_end_of_the_lane_are_there(full: Store) -> None:
    with full.snapshot() as snapshot:
        assert [b.sequence for b in snapshot.batches(0, after=1, limit=2)] == [2, 3]
        assert snapshot.lanes() == [Lane(0, batch(4, 10, 3), 12)]
        assert snapshot.writers() == [0]
    with full.transaction() as tx:
        assert tx.tail() == (batch(4, 10, 3), 12)


def test_those_whose_entries_follow_a_position_are_told_once_each(full: Store) -> None:
    with full.snapshot() as snapshot:
        assert snapshot.changed(0, after=1, limit=99) == [BO, ADA_ELSEWHERE, ADA]
        assert snapshot.changed(0, after=10, limit=99) == [BO, ADA_ELSEWHERE]
        assert snapshot.changed(0, after=0, limit=2) == [ADA, BO]
        assert snapshot.changed(0, after=12, limit=99) == []


def test_a_lane_that_nobody_wrote_is_empty(full: Store) -> None:
    with full.snapshot() as snapshot:
        assert snapshot.batches(7, after=0, limit=9) == []
        assert snapshot.entries_by_position(7, after=0, limit=9) == []
        assert snapshot.entries_by_position(7, after=0, limit=9, tenant_id="acme", tag=2) == []
        assert snapshot.entries_before(7, position=99, limit=9, tenant_id="acme", tag=2) == []
        assert snapshot.changed(7, after=0, limit=9) == []


def test_purchases_and_payments_come_by_id(store: Store) -> None:
    names = ["b", "a", "B", "é", "z", "😀", "￿"]
    commit(store, *(purchase(n, lapses_us=int(n < "c")) for n in names), *map(payment, names), purchase("a", BO))

    with store.snapshot() as snapshot:
        found = snapshot.purchases(ADA, after="", limit=9, only_open=False)
        assert [p.transaction_id for p in found] == sorted(names)
        found = snapshot.purchases(ADA, after="B", limit=9, only_open=True)
        assert [p.transaction_id for p in found] == ["a", "b"]
        assert [p.payment_id for p in snapshot.payments(ADA)] == sorted(names)


def test_pages_neither_skip_nor_repeat_a_row_while_others_are_added(store: Store) -> None:
    chance = random.Random(5)
    names = [f"{chance.randrange(10**6):06}" for _ in range(50)]
    commit(store, *(customer(("acme", name)) for name in names), *(purchase(name) for name in names))
    customers: list[str] = []
    purchases: list[str] = []

    while True:
        with store.snapshot() as snapshot:
            rows = snapshot.customers(after=("acme", customers[-1] if customers else ""), limit=7)
            held = snapshot.purchases(ADA, after=purchases[-1] if purchases else "", limit=7, only_open=False)
        if not rows and not held:
            break
        customers += [row.key[1] for row in rows]
        purchases += [row.transaction_id for row in held]
        extra = f"{chance.randrange(10**6):06}x"
        commit(store, customer(("acme", extra)), purchase(extra))

    for seen in (customers, purchases):
        assert seen == sorted(set(seen))
        assert set(names) <= set(seen)


def test_customers_of_all_tenants_come_by_key(store: Store) -> None:
    keys = [("b", "a"), ("a", "z"), ("a", "b"), ("ab", "")]
    commit(store, *map(customer, keys))

    with store.snapshot() as snapshot:
        assert [row.key for row in snapshot.customers(after=("", ""), limit=9)] == sorted(keys)
        assert [row.key for row in snapshot.customers(after=("a", "b"), limit=1)] == [("a", "z")]


def test_a_snapshot_never_sees_what_is_not_committed(store: Store) -> None:
    with store.transaction() as tx:
        tx.write(batch_write(*everything()))
        with store.snapshot() as snapshot:
            assert snapshot.customer(ADA) is None
            assert set(snapshot.counts().values()) == {0}


@pytest.mark.needs("commits beside snapshots")
def test_a_snapshot_shows_one_moment_however_much_is_committed_meanwhile(store: Store) -> None:
    commit(store, *everything())

    with store.snapshot() as snapshot:
        before = snapshot.counts()
        commit(store, customer(BO), entry(1, 2, BO, batch=2), batch(2, 2))
        assert snapshot.customer(BO) is None
        assert snapshot.counts() == before
        assert snapshot.lanes()[0].position == 1
    with store.snapshot() as snapshot:
        assert snapshot.customer(BO) == customer(BO)


@pytest.mark.needs("commits beside snapshots")
def test_a_snapshot_shows_the_moment_it_was_taken_not_of_its_first_question(store: Store) -> None:
    with store.snapshot() as snapshot:
        commit(store, *everything())
        assert snapshot.customer(ADA) is None


def test_each_snapshot_has_a_life_of_its_own_also_on_one_thread(store: Store) -> None:
    commit(store, *everything())

    with store.snapshot() as outer:
        with store.snapshot() as inner:
            assert inner.customer(ADA) == customer()
        assert outer.customer(ADA) == customer()


def test_many_threads_read_while_one_writes(store: Store) -> None:
    """Every reader always sees whole commits: as many purchases as entries."""

    def read(_: int) -> int:
        seen = 0
        for _ in range(20):
            with store.snapshot() as snapshot:
                counted = snapshot.counts()
                assert counted["purchases"] == counted["entries"] >= seen
                seen = counted["entries"]
        return seen

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read, n) for n in range(8)]
        for number in range(1, 60):
            commit(store, purchase(f"t{number}"), entry(number, number, batch=number), batch(number, number))
        assert all(reader.result() <= 59 for reader in readers)
