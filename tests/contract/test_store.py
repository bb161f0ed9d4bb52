"""What `engine.ports.Store` promises, asked of every store."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from riskgate_server.engine.ports import EntryRow, Lane, Snapshot, Store
from tests.contract.backends import BACKENDS
from tests.contract.rows import (
    ADA,
    ADA_ELSEWHERE,
    BO,
    INT64_MAX,
    INT64_MIN,
    Key,
    batch,
    batch_write,
    commit,
    customer,
    entry,
    identity,
    message,
    payment,
    purchase,
    request,
    scope,
)


def everything() -> tuple[Any, ...]:
    return customer(), purchase(), payment(), request(), entry(), batch(), identity(), scope(), message()


def assert_empty(store: Store) -> None:
    with store.snapshot() as snapshot:
        assert set(snapshot.counts().values()) == {0}
        assert snapshot.lanes() == [Lane(0, None, 0)]
    with store.transaction() as tx:
        assert tx.requests([(ADA, "r1")]) == []
        assert tx.tail() == (None, 0)


# --- Transactions. ---


def test_a_new_store_is_empty(store: Store) -> None:
    assert_empty(store)


def test_what_is_committed_is_read_back_by_a_transaction_and_by_a_snapshot(store: Store) -> None:
    commit(store, *everything())

    with store.transaction() as tx:
        assert tx.customer(ADA) == customer()
        assert tx.purchase(ADA, "t1") == purchase()
        assert tx.payment(ADA, "p1") == payment()
        assert tx.entries(ADA, after=0, limit=9) == [entry()]
        assert tx.tail() == (batch(), 1)
    with store.snapshot() as snapshot:
        assert snapshot.customer(ADA) == customer()
        assert snapshot.purchase(ADA, "t1") == purchase()
        assert snapshot.payment(ADA, "p1") == payment()
        assert snapshot.entries(ADA, after=0, limit=9) == [entry()]
        assert snapshot.batches(0, after=0, limit=9) == [batch()]


class Interruption(BaseException):
    """As a KeyboardInterrupt: not an Exception."""


@pytest.mark.parametrize("kind", [ValueError, Interruption])
def test_leaving_a_transaction_by_an_exception_leaves_nothing(store: Store, kind: type[BaseException]) -> None:
    def fail() -> None:
        with store.transaction() as tx:
            tx.write(batch_write(*everything()))
            raise kind

    with pytest.raises(kind):
        fail()

    assert_empty(store)


def test_a_rolled_back_transaction_does_not_hinder_the_next(store: Store) -> None:
    def fail() -> None:
        with store.transaction() as tx:
            tx.write(batch_write(*everything()))
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    commit(store, *everything())

    with store.snapshot() as snapshot:
        assert snapshot.counts() == {
            "customers": 1,
            "purchases": 1,
            "payments": 1,
            "requests": 1,
            "entries": 1,
            "batches": 1,
            "identities": 1,
            "messages": 1,
        }


def test_a_transaction_without_a_write_is_no_change(store: Store) -> None:
    with store.transaction() as tx:
        tx.customer(ADA)

    assert_empty(store)


def test_state_is_replaced_and_the_journal_is_added_to(store: Store) -> None:
    commit(store, *everything())
    commit(
        store,
        customer(sequence=2, state=b"later"),
        purchase(lapses_us=7),
        entry(2, 2, batch=2),
        batch(2, first=2),
    )

    with store.snapshot() as snapshot:
        assert snapshot.customer(ADA) == customer(sequence=2, state=b"later")
        assert snapshot.purchase(ADA, "t1") == purchase(lapses_us=7)
        assert [e.position for e in snapshot.entries_by_position(0, after=0, limit=9)] == [1, 2]
        assert [b.sequence for b in snapshot.batches(0, after=0, limit=9)] == [1, 2]


@pytest.mark.parametrize(
    "taken",
    [request(), entry(1, 2), entry(2, 1, batch=1), batch()],
    ids=["request id", "entry sequence", "position", "batch sequence"],
)
def test_what_is_taken_is_refused_and_the_whole_transaction_with_it(store: Store, taken: Any) -> None:
    commit(store, *everything())

    with pytest.raises(Exception):  # noqa: B017 - which one is the store's own affair
        commit(store, customer(BO), taken)

    with store.snapshot() as snapshot:
        assert snapshot.customer(BO) is None
        assert snapshot.counts()["entries"] == 1


@pytest.mark.parametrize(
    "rows", [[request(), request()], [entry(1, 1), entry(1, 2)]], ids=["request id", "entry sequence"]
)
def test_what_is_given_twice_in_one_transaction_is_refused(store: Store, rows: list[Any]) -> None:
    with pytest.raises(Exception):  # noqa: B017 - as above
        commit(store, customer(), *rows)

    assert_empty(store)


@pytest.mark.parametrize(
    "rows", [[request(), request()], [entry(1, 1), entry(1, 2)]], ids=["request id", "entry sequence"]
)
def test_what_is_written_twice_by_one_transaction_is_refused(store: Store, rows: list[Any]) -> None:
    def write_twice() -> None:
        with store.transaction() as tx:
            tx.write(batch_write(rows[0]))
            tx.write(batch_write(rows[1]))

    with pytest.raises(Exception):  # noqa: B017 - as above
        write_twice()

    assert_empty(store)


# --- Locks. ---


def test_a_lock_tells_the_sequence_of_who_exists_and_says_nothing_of_who_does_not(store: Store) -> None:
    commit(store, customer(sequence=7), customer(BO, sequence=9))

    with store.transaction() as tx:
        locked = tx.lock([BO, ADA_ELSEWHERE, ADA], wait={BO})

    assert locked.versions == {ADA: 7, BO: 9}
    assert locked.elsewhere == frozenset()


def test_a_lock_on_nobody_is_no_question(store: Store) -> None:
    with store.transaction() as tx:
        assert tx.lock([]).versions == {}
        assert tx.lock([], wait={ADA}).elsewhere == frozenset()


def test_the_next_transaction_locks_what_the_last_one_left(store: Store) -> None:
    commit(store, customer(sequence=1))
    commit(store, customer(sequence=2))

    with store.transaction() as tx:
        assert tx.lock([ADA]).versions == {ADA: 2}


def test_who_begins_in_a_transaction_can_be_written_again_in_it(store: Store) -> None:
    with store.transaction() as tx:
        tx.write(batch_write(customer(sequence=1)))
        tx.write(batch_write(customer(sequence=2)))

    with store.snapshot() as snapshot:
        assert snapshot.customer(ADA) == customer(sequence=2)


# --- Ids and numbers. ---

LOOK_ALIKES = [
    "ada",
    "Ada",
    "ADA",
    "ada ",
    " ada",
    "a\u0301da",
    "\u00e1da",
    "\u0430da",
    "ada\u200b",
    "1",
    "01",
    "1.0",
    "null",
    "",
    '"ada"',
    "[0]",
    "a\\b",
    "a'b",
    "a%",
    "a_a",
    "\U0001f600",
    "a\nb",
]


@pytest.mark.parametrize("where", ["tenant", "customer", "transaction", "payment", "request"])
def test_ids_that_look_alike_are_distinct(store: Store, where: str) -> None:
    def key(name: str) -> Key:
        return {"tenant": (name, "ada"), "customer": ("acme", name)}.get(where, ADA)

    def row(name: str) -> Any:
        makers: dict[str, Callable[..., Any]] = {"transaction": purchase, "payment": payment, "request": request}
        if where in makers:
            return makers[where](name)
        return customer(key(name), state=name.encode())

    commit(store, *(row(name) for name in LOOK_ALIKES))

    with store.transaction() as tx:
        asked = [(key(name), name) for name in LOOK_ALIKES]
        read = {
            "transaction": lambda name: tx.purchase(ADA, name),
            "payment": lambda name: tx.payment(ADA, name),
            "request": lambda name: tx.requests([(ADA, name)])[0],
        }.get(where, lambda name: tx.customer(key(name)))
        assert [read(name) for name in LOOK_ALIKES] == [row(name) for name in LOOK_ALIKES]
        many: dict[str, Callable[[], Any]] = {
            "transaction": lambda: tx.purchases(asked),
            "request": lambda: tx.requests(asked),
            "customer": lambda: tx.customers([each for each, _ in asked]),
            "tenant": lambda: tx.customers([each for each, _ in asked]),
        }
        if where in many:
            assert sorted(many[where](), key=repr) == sorted((row(name) for name in LOOK_ALIKES), key=repr)


def test_questions_about_many_answer_for_those_that_exist(store: Store) -> None:
    commit(store, customer(), customer(BO), purchase(), request())

    with store.transaction() as tx:
        assert sorted(tx.customers([ADA, ADA_ELSEWHERE, BO]), key=repr) == [customer(), customer(BO)]
        assert tx.purchases([(ADA, "t1"), (ADA, "t2"), (BO, "t1")]) == [purchase()]
        assert tx.requests([(ADA, "r1"), (ADA, "r2"), (BO, "r1")]) == [request()]
        assert (tx.customers([]), tx.purchases([]), tx.requests([])) == ([], [], [])


def test_one_customers_rows_are_not_anothers(store: Store) -> None:
    commit(store, *everything())

    with store.transaction() as tx:
        for key in (BO, ADA_ELSEWHERE):
            assert tx.customer(key) is None
            assert tx.purchase(key, "t1") is None
            assert tx.payment(key, "p1") is None
            assert tx.entries(key, after=0, limit=9) == []


@pytest.mark.parametrize("number", [0, 1, INT64_MAX])
def test_numbers_of_64_bits_come_back_as_they_went(store: Store, number: int) -> None:
    rows = customer(sequence=number, next_lapse_us=number), purchase(lapses_us=number, owed_since=number)
    commit(store, *rows)

    with store.snapshot() as snapshot:
        assert (snapshot.customer(ADA), snapshot.purchase(ADA, "t1")) == rows


@pytest.mark.parametrize("at_us", [INT64_MIN, -1, 0, 1_780_000_000_123_456, INT64_MAX])
def test_microseconds_come_back_to_the_last_one(store: Store, at_us: int) -> None:
    row = EntryRow(ADA, 1, 1, 1, at_us, 2, "", b"", b"", b"", b"")
    commit(store, row, request(at_us=at_us))

    with store.transaction() as tx:
        assert tx.entries(ADA, after=0, limit=1) == [row]
        assert tx.requests([(ADA, "r1")]) == [request(at_us=at_us)]


def test_bytes_come_back_bit_for_bit(store: Store) -> None:
    content = bytes(range(256)) * 300
    row = EntryRow(ADA, 1, 1, 1, 5, 2, "r", content, b"\x00", b"", content)
    commit(store, row, customer(state=content))

    with store.snapshot() as snapshot:
        assert snapshot.entries(ADA, after=0, limit=1) == [row]
        assert snapshot.customer(ADA) == customer(state=content)


def test_a_batch_of_many_rows_is_written_whole(store: Store) -> None:
    names = [f"t{n:04}" for n in range(700)]
    commit(
        store,
        *(customer(("acme", name)) for name in names),
        *(purchase(name) for name in names),
        *(payment(name) for name in names),
        *(request(name) for name in names),
        *(entry(n, n) for n in range(1, 701)),
        batch(count=700),
    )

    with store.snapshot() as snapshot:
        kinds = ("customers", "purchases", "payments", "requests", "entries")
        assert snapshot.counts() == dict.fromkeys(kinds, 700) | {"batches": 1, "identities": 0, "messages": 0}
        assert [e.sequence for e in snapshot.entries(ADA, after=0, limit=1_000)] == list(range(1, 701))
    with store.transaction() as tx:
        assert len(tx.requests([(ADA, name) for name in names])) == 700
        assert len(tx.purchases([(ADA, name) for name in names])) == 700


def test_a_customers_requests_are_paged_by_id(store: Store) -> None:
    commit(
        store, *(request(name) for name in ("r3", "r1", "R2", "r2")), request("r2", BO), request("r9", ADA_ELSEWHERE)
    )

    with store.snapshot() as snapshot:
        first = snapshot.requests(ADA, after="", limit=3)
        assert first == [request("R2"), request("r1"), request("r2")]
        assert snapshot.requests(ADA, after="r2", limit=3) == [request("r3")]


# --- Questions about holds, debts and lapses. ---


def test_lapsed_holds_come_by_time_then_by_id_and_only_when_over(store: Store) -> None:
    commit(
        store,
        purchase("d", lapses_us=30),
        purchase("b", lapses_us=20),
        purchase("a", lapses_us=20),
        purchase("c", lapses_us=31),
        purchase("ended", lapses_us=0),
        purchase("x", BO, lapses_us=1),
    )

    with store.transaction() as tx, store.snapshot() as snapshot:
        for reads in (tx, snapshot):
            assert [p.transaction_id for p in reads.lapsed(ADA, 30)] == ["a", "b", "d"]
            assert reads.lapsed(ADA, 19) == []


def test_debts_come_by_age_then_by_id_and_only_while_owed(store: Store) -> None:
    commit(
        store,
        purchase("c", owed_since=3),
        purchase("b", owed_since=2),
        purchase("a", owed_since=3),
        purchase("paid", owed_since=0),
        purchase("x", BO, owed_since=1),
    )

    with store.transaction() as tx:
        assert [p.transaction_id for p in tx.owed(ADA)] == ["b", "a", "c"]


def test_the_next_lapse_is_the_earliest_above_a_moment(store: Store) -> None:
    commit(store, purchase("a", lapses_us=20), purchase("b", lapses_us=30), purchase("x", BO, lapses_us=25))

    with store.transaction() as tx:
        assert [tx.next_lapse(ADA, after) for after in (0, 19, 20, 29, 30)] == [20, 20, 30, 30, 0]
        assert tx.next_lapse(ADA_ELSEWHERE, 0) == 0


def test_customers_with_a_lapsed_hold_are_due_earliest_first(store: Store) -> None:
    commit(
        store,
        customer(ADA, next_lapse_us=30),
        customer(BO, next_lapse_us=20),
        customer(("acme", "zoe"), next_lapse_us=31),
        customer(("acme", "none"), next_lapse_us=0),
    )

    assert [tuple(key) for key in store.customers_due(30, 9)] == [BO, ADA]
    assert [tuple(key) for key in store.customers_due(30, 1)] == [BO]
    assert list(store.customers_due(19, 9)) == []


# --- Replies and rulesets. ---


def replies(store: Store) -> dict[str, bytes]:
    with store.transaction() as tx:
        return {row.request_id: row.reply for row in tx.requests([(ADA, f"r{n}") for n in range(1, 6)])}


def test_who_has_a_job_keeps_it(store: Store) -> None:
    assert [store.lease("job"), store.lease("job"), store.lease("another")] == [True] * 3


def test_replies_are_forgotten_oldest_first_and_counted_and_the_ids_stay(store: Store) -> None:
    commit(
        store,
        request("r1", at_us=30),
        request("r2", at_us=10),
        request("r3", at_us=20),
        request("r4", at_us=5, reply=b""),
        request("r5", at_us=40),
    )

    assert store.forget_replies(40, 2) == 2
    assert replies(store) == {"r1": b"reply", "r2": b"", "r3": b"", "r4": b"", "r5": b"reply"}
    assert store.forget_replies(40, 9) == 1
    assert store.forget_replies(40, 9) == 0
    assert replies(store)["r5"] == b"reply"


def test_a_ruleset_is_remembered_once(store: Store) -> None:
    store.remember_ruleset(b"h", "first", 1)
    store.remember_ruleset(b"h", "second", 2)

    with store.snapshot() as snapshot:
        assert snapshot.ruleset_source(b"h") == "first"
        assert snapshot.ruleset_source(b"other") is None


def test_all_rulesets_are_told_by_their_hashes(store: Store) -> None:
    store.remember_ruleset(b"h", "first", 1)
    store.remember_ruleset(b"g", "second", 2)

    with store.snapshot() as snapshot:
        assert snapshot.ruleset_sources() == {b"h": "first", b"g": "second"}


# --- Snapshots and pages. ---


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


# --- The end. ---


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.snapshot().__enter__(),
        lambda store: store.transaction().__enter__(),
        lambda store: store.lease("job"),
        lambda store: store.customers_due(1, 1),
        lambda store: store.forget_replies(1, 1),
        lambda store: store.remember_ruleset(b"h", "text", 1),
    ],
    ids=["snapshot", "transaction", "lease", "customers_due", "forget_replies", "remember_ruleset"],
)
def test_use_after_close_raises(store: Store, use: Callable[[Store], Any]) -> None:
    store.close()

    with pytest.raises(Exception):  # noqa: B017 - a programmer's error, of any kind
        use(store)


def test_closing_twice_is_no_error(store: Store) -> None:
    store.close()
    store.close()


@pytest.mark.needs("survives")
def test_what_was_committed_is_there_after_reopening(
    store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    commit(store, *everything())
    store.close()

    again = BACKENDS[request.node.callspec.params["store"]](tmp_path)

    with again.snapshot() as snapshot:
        assert snapshot.customer(ADA) == customer()
        assert snapshot.entries(ADA, after=0, limit=9) == [entry()]
    again.close()
