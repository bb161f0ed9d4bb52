"""What a store promises of proofs, of facts across customers, and of messages that wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from riskgate_server.engine.rows import BatchWrite
from riskgate_server.engine.storing import Store
from riskgate_server.stores.postgres.store import PostgresStore
from tests import postgres
from tests.contract.rows import ADA, ADA_ELSEWHERE, BO, batch_write, commit, identity, message, scope


def test_an_identity_is_read_back_by_a_transaction_and_a_snapshot_and_is_its_customers_alone(store: Store) -> None:
    commit(store, identity())

    with store.transaction() as tx:
        assert tx.identity(ADA) == identity()
        assert tx.identity(ADA_ELSEWHERE) is None
    with store.snapshot() as snapshot:
        assert snapshot.identity(ADA) == identity()
        assert snapshot.identity(BO) is None
        assert snapshot.counts()["identities"] == 1


def test_an_identity_is_replaced_whole(store: Store) -> None:
    commit(store, identity())
    commit(store, identity(state=b"another"))

    with store.snapshot() as snapshot:
        assert snapshot.identity(ADA) == identity(state=b"another")
        assert snapshot.counts()["identities"] == 1


def test_scopes_that_exist_are_returned_and_one_that_was_only_taken_says_nothing(store: Store) -> None:
    commit(store, scope(), scope(kind=2), scope(tenant_id="zeta"))
    asked = [("acme", 1, b"number"), ("acme", 2, b"number"), ("acme", 1, b"other"), ("zeta", 2, b"number")]

    with store.transaction() as tx:
        assert set(map(str, tx.scopes(asked))) == {str(scope()), str(scope(kind=2))}
    with store.transaction() as tx:
        assert list(tx.scopes([("acme", 1, b"other")])) == []
        assert list(tx.scopes([])) == []


def test_scopes_are_read_without_being_taken(store: Store) -> None:
    commit(store, scope(), scope(kind=2))
    asked = [("acme", 1, b"number"), ("acme", 2, b"number"), ("acme", 1, b"other"), ("zeta", 2, b"number")]
    with store.transaction() as tx:
        tx.scopes(asked)

    with store.snapshot() as snapshot:
        assert set(map(str, snapshot.scopes(asked))) == {str(scope()), str(scope(kind=2))}
        assert list(snapshot.scopes([])) == []


def test_all_scopes_come_in_order_and_as_many_as_asked_for_without_those_only_taken(store: Store) -> None:
    rows = [scope(), scope(kind=2), scope(tenant_id="zeta")]
    commit(store, *rows)
    with store.transaction() as tx:
        tx.scopes([("acme", 1, b"other")])

    with store.snapshot() as snapshot:
        assert list(snapshot.all_scopes(after=("", 0, b""), limit=9)) == rows
        assert list(snapshot.all_scopes(after=("", 0, b""), limit=1)) == rows[:1]
        assert list(snapshot.all_scopes(after=rows[0].scope, limit=9)) == rows[1:]
        assert list(snapshot.all_scopes(after=rows[2].scope, limit=9)) == []


def test_a_scope_is_replaced_whole(store: Store) -> None:
    commit(store, scope())
    commit(store, scope(state=b"spent"))

    with store.transaction() as tx:
        assert list(tx.scopes([scope().scope])) == [scope(state=b"spent")]


def test_messages_that_are_due_come_by_the_time_they_have_waited(store: Store) -> None:
    commit(
        store,
        message("m1", due_us=30),
        message("m2", BO, due_us=10),
        message("m3", due_us=20),
        message("m4", due_us=31),
    )

    with store.snapshot() as snapshot:
        assert [row.message_id for row in snapshot.messages_due(30, 9)] == ["m2", "m3", "m1"]
        assert [row.message_id for row in snapshot.messages_due(30, 2)] == ["m2", "m3"]
        assert [row.message_id for row in snapshot.messages(ADA)] == ["m1", "m3", "m4"]
        assert snapshot.message(BO, "m2") == message("m2", BO)
        assert snapshot.message(ADA, "m2") is None


def test_a_message_is_put_off_by_replacing_it_and_gone_once_it_is_settled(store: Store) -> None:
    commit(store, message("m1"), message("m2"), message("m1", BO))
    commit(store, message("m1", due_us=90))
    settle = batch_write()
    settle.settled.append((ADA, "m2"))
    with store.transaction() as tx:
        tx.write(settle)

    with store.snapshot() as snapshot:
        assert snapshot.messages(ADA) == [message("m1", due_us=90)]
        assert snapshot.messages(BO) == [message("m1", BO)]
        assert snapshot.counts()["messages"] == 2


def test_what_one_commit_writes_is_not_in_the_next(store: Store) -> None:
    assert batch_write().identities is not batch_write().identities
    first = BatchWrite([], [], [], [], [], None)
    first.settled.append((ADA, "m1"))

    assert BatchWrite([], [], [], [], [], None).settled == []


def test_a_scope_is_one_writers_until_its_transaction_ends(tmp_path: Path) -> None:
    dsn = postgres.database(tmp_path)
    stores = [PostgresStore(dsn, writer) for writer in range(2)]

    def count(store: PostgresStore) -> None:
        for _ in range(40):
            with store.transaction() as tx:
                found = tx.scopes([("acme", 2, b"x"), ("acme", 1, b"number")])
                counted = sum(int(row.state) for row in found if row.scope[1] == 1)
                tx.write(batch_write(scope(state=b"%d" % (counted + 1))))

    with ThreadPoolExecutor(2) as both:
        list(both.map(count, stores))
    with stores[0].transaction() as tx:
        assert list(tx.scopes([scope().scope])) == [scope(state=b"80")]
    for store in stores:
        store.close()
