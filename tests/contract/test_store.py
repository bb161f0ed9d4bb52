"""What `engine.storing.Store` promises, asked of every store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from riskgate_server.engine.rows import EntryRow, Lane
from riskgate_server.engine.storing import Store
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
    everything,
    payment,
    purchase,
    request,
)


def assert_empty(store: Store) -> None:
    with store.snapshot() as snapshot:
        assert set(snapshot.counts().values()) == {0}
        assert snapshot.lanes() == [Lane(0, None, 0)]
    with store.transaction() as tx:
        assert tx.found([(ADA, "r1")], [])[0] == []
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


def test_a_lock_brings_the_states_of_those_who_are_not_known_as_they_stand(store: Store) -> None:
    commit(store, customer(sequence=7), customer(BO, sequence=9), customer(ADA_ELSEWHERE, sequence=2))

    with store.transaction() as tx:
        locked = tx.lock([BO, ADA_ELSEWHERE, ADA], known={BO: 9, ADA: 6})

    assert locked.versions == {ADA: 7, BO: 9, ADA_ELSEWHERE: 2}
    assert sorted(locked.changed, key=repr) == [customer(sequence=7), customer(ADA_ELSEWHERE, sequence=2)]


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
            "request": lambda name: tx.found([(ADA, name)], [])[0][0],
        }.get(where, lambda name: tx.customer(key(name)))
        assert [read(name) for name in LOOK_ALIKES] == [row(name) for name in LOOK_ALIKES]
        many: dict[str, Callable[[], Any]] = {
            "transaction": lambda: tx.found([], asked)[1],
            "request": lambda: tx.found(asked, [])[0],
            "customer": lambda: tx.customers([each for each, _ in asked]),
            "tenant": lambda: tx.customers([each for each, _ in asked]),
        }
        if where in many:
            assert sorted(many[where](), key=repr) == sorted((row(name) for name in LOOK_ALIKES), key=repr)


def test_questions_about_many_answer_for_those_that_exist(store: Store) -> None:
    commit(store, customer(), customer(BO), purchase(), request())

    with store.transaction() as tx:
        assert sorted(tx.customers([ADA, ADA_ELSEWHERE, BO]), key=repr) == [customer(), customer(BO)]
        assert tx.found([], [(ADA, "t1"), (ADA, "t2"), (BO, "t1")])[1] == [purchase()]
        assert tx.found([(ADA, "r1"), (ADA, "r2"), (BO, "r1")], [])[0] == [request()]
        assert (tx.customers([]), tx.found([], [])[1], tx.found([], [])[0]) == ([], [], [])


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
        assert tx.found([(ADA, "r1")], [])[0] == [request(at_us=at_us)]


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
        assert len(tx.found([(ADA, name) for name in names], [])[0]) == 700
        assert len(tx.found([], [(ADA, name) for name in names])[1]) == 700


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
        return {row.request_id: row.reply for row in tx.found([(ADA, f"r{n}") for n in range(1, 6)], [])[0]}


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
