"""What only a database that several servers share can do wrong: rivals, lost connections, settings, other versions."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg import errors

from riskgate_server.engine.failures import (
    OutcomeUnknown,
    ReadFailed,
    StoreBroken,
    StoreBusy,
    StoreConflict,
    StoreFull,
    StoreInUse,
    StoreUnreachable,
)
from riskgate_server.engine.rows import Lane
from riskgate_server.stores.postgres import session
from riskgate_server.stores.postgres.reads import PostgresSnapshot
from riskgate_server.stores.postgres.session import Readers
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.postgres.transaction import LEASE_SECONDS
from tests import postgres
from tests.contract.rows import ADA, BO, batch, batch_write, commit, customer, entry, purchase, request
from tests.contract.sessions import Cut, ask, counted, fail_with, kill, until


@pytest.fixture
def store(dsn: str) -> Iterator[PostgresStore]:
    store = PostgresStore(dsn)
    yield store
    store.close()


@pytest.fixture
def rival(dsn: str, store: PostgresStore) -> Iterator[PostgresStore]:
    """Another server on the same database, with a number of its own."""
    rival = PostgresStore(dsn, writer=1)
    yield rival
    rival.close()


# --- Two servers. ---


def test_who_was_in_the_way_is_told_without_the_row_that_was(store: PostgresStore, rival: PostgresStore) -> None:
    """PostgreSQL adds it to its words, which go into the log: there it would name a customer."""
    with pytest.raises(StoreConflict, match="duplicate key") as conflict:
        lose_the_race(rival, store)
    with pytest.raises(errors.UniqueViolation) as other:
        store._change("INSERT INTO vault.keys SELECT $1, $2, $3 FROM generate_series(1, 2)", (*ADA, b"key"))
    told = [line for caught in (conflict, other) for line in traceback.format_exception(caught.value)]

    assert [line for line in told if "(acme, ada)" in line] == []


def lose_the_race(late: PostgresStore, first: PostgresStore) -> None:
    """Begin a customer whom the other begins meanwhile."""
    with late.transaction() as tx:
        tx.lock([ADA])
        commit(first, customer())
        tx.write(batch_write(customer()))


def test_a_number_that_is_served_is_refused_by_name_and_nothing_changes(store: PostgresStore, dsn: str) -> None:
    naps: list[float] = []

    with pytest.raises(StoreInUse, match=rf"writer 0 .* is served by process {os.getpid()} on .*; one number takes"):
        PostgresStore(dsn, sleep=naps.append)

    assert sum(naps) <= 1.01
    commit(store, customer())


def test_a_number_is_free_again_when_its_server_closes(store: PostgresStore, dsn: str) -> None:
    store.close()

    PostgresStore(dsn).close()


def test_a_number_is_free_again_when_its_server_is_killed(dsn: str) -> None:
    script = (
        "import os, sys; from riskgate_server.stores.postgres.store import PostgresStore;"
        "PostgresStore(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, dsn], check=False)

    PostgresStore(dsn).close()


def test_a_server_whose_lease_ran_out_is_replaced_and_writes_no_more(store: PostgresStore, dsn: str) -> None:
    commit(store, customer())
    ask(dsn, "UPDATE writers SET lease_until = clock_timestamp() - interval '1 second'")

    heir = PostgresStore(dsn)

    for _ in range(2):
        with pytest.raises(StoreBroken, match="writer 0 was taken over by another server"):
            commit(store, customer(BO))
    commit(heir, customer(("acme", "cy")))
    assert counted(heir) == 2
    heir.close()


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_server_whose_clock_runs_away_writes_nothing_until_it_is_back(dsn: str, seconds: float) -> None:
    """A customer's time never goes back: what one such server wrote would have them stand still for all others."""
    off = [0.0]
    with closing(PostgresStore(dsn, now=lambda: time.time() + off[0])) as store:
        commit(store, customer())
        off[0] = 1.5
        commit(store, customer(BO))
        off[0] = seconds

        for _ in range(2):
            with pytest.raises(StoreUnreachable, match=r"the database's clock is [+-]3600\.0 seconds"):
                commit(store, customer(("acme", "cy")))
        assert counted(store) == 2
        off[0] = 0.0
        commit(store, customer(("acme", "cy")))
        assert counted(store) == 3


def test_a_server_that_stood_still_while_it_asked_for_the_time_goes_on(dsn: str) -> None:
    """What it asked is an hour old when it hears the answer, and nothing is wrong with its clock."""
    offsets: list[float] = []
    with closing(PostgresStore(dsn, now=lambda: time.time() + (offsets.pop(0) if offsets else 0.0))) as store:
        offsets += [-3600.0, 0.0]
        commit(store, customer())

        assert counted(store) == 1


def test_a_replaced_server_does_not_free_the_number_of_its_heir(store: PostgresStore, dsn: str) -> None:
    ask(dsn, "UPDATE writers SET lease_until = clock_timestamp() - interval '1 second'")
    heir = PostgresStore(dsn)

    store.close()

    with pytest.raises(StoreInUse):
        PostgresStore(dsn, sleep=lambda _: None)
    heir.close()


def test_a_server_that_lost_its_connection_while_another_took_over_writes_no_more(
    store: PostgresStore, dsn: str
) -> None:
    kill(store)
    heir = PostgresStore(dsn)
    with pytest.raises(StoreBusy):
        commit(store, customer())

    with pytest.raises(StoreBroken, match="taken over"):
        commit(store, customer())

    heir.close()


@pytest.mark.parametrize("rows", [(customer(),), ()], ids=["writing", "idle"])
def test_every_transaction_is_a_sign_of_life(store: PostgresStore, dsn: str, rows: tuple[Any, ...]) -> None:
    ask(dsn, "UPDATE writers SET lease_until = clock_timestamp() + interval '1 second'")

    commit(store, entry(), *rows) if rows else store.forget_replies(1, 1)

    ((left,),) = ask(dsn, "SELECT extract(epoch FROM lease_until - clock_timestamp())::float8 FROM writers")
    assert left > LEASE_SECONDS - 5


def test_each_server_writes_a_lane_of_its_own(store: PostgresStore, rival: PostgresStore) -> None:
    commit(store, customer(), entry(), batch())
    other_entry, other_batch = _of_writer(1, entry(1, 1, BO)), _of_writer(1, batch())
    commit(rival, customer(BO), other_entry, other_batch)
    commit(store, entry(2, 2, batch=2), batch(2, first=2))

    with store.transaction() as tx, rival.transaction() as others:
        assert (tx.tail(), others.tail()) == ((batch(2, first=2), 2), (other_batch, 1))
    for each in (store, rival):
        with each.snapshot() as snapshot:
            assert snapshot.lanes() == [Lane(0, batch(2, first=2), 2), Lane(1, other_batch, 1)]
            assert snapshot.batches(0, after=0, limit=9) == [batch(), batch(2, first=2)]
            assert snapshot.batches(1, after=0, limit=9) == [other_batch]
            assert snapshot.entries_by_position(0, after=0, limit=9) == [entry(), entry(2, 2, batch=2)]
            assert snapshot.entries_by_position(1, after=0, limit=9) == [other_entry]
            assert snapshot.entries_before(1, position=9, limit=9, tenant_id="acme", tag=2) == [other_entry]
            assert (snapshot.changed(0, after=1, limit=9), snapshot.changed(1, after=0, limit=9)) == ([ADA], [BO])
            assert snapshot.counts()["entries"] == 3


@pytest.mark.parametrize("kept", ["writers", "batches", "entries"])
def test_a_writer_is_known_by_any_row_of_it(store: PostgresStore, rival: PostgresStore, dsn: str, kept: str) -> None:
    commit(rival, customer(BO), _of_writer(1, entry(1, 1, BO)), _of_writer(1, batch()))
    for lost in {"writers", "batches", "entries"} - {kept}:
        ask(dsn, f"DELETE FROM {lost} WHERE writer = 1")

    with store.snapshot() as snapshot:
        assert snapshot.writers() == [0, 1]
        assert [lane.writer for lane in snapshot.lanes()] == ([0, 1] if kept == "writers" else [0])


def _of_writer(writer: int, row: Any) -> Any:
    return type(row)(*(writer if name == "writer" else getattr(row, name) for name in row.__struct_fields__))


def test_a_row_of_another_lane_is_refused(rival: PostgresStore) -> None:
    with pytest.raises(ValueError, match="another writer than 1"):
        commit(rival, entry())


def test_a_customer_locked_elsewhere_is_passed_over_and_found_changed_afterwards(
    store: PostgresStore, rival: PostgresStore
) -> None:
    commit(store, customer(), customer(BO))

    with store.transaction() as mine:
        mine.lock([ADA])
        with rival.transaction() as theirs:
            locked = theirs.lock([ADA, BO, ("acme", "nobody")])
        mine.write(batch_write(customer(sequence=2)))

    assert (locked.versions, locked.elsewhere) == ({BO: 1}, frozenset({ADA}))
    with rival.transaction() as theirs:
        assert theirs.lock([ADA, BO]).versions == {ADA: 2, BO: 1}


def test_who_is_waited_for_comes_with_what_the_other_committed(
    store: PostgresStore, rival: PostgresStore, dsn: str
) -> None:
    commit(store, customer(), customer(BO))
    found: list[Any] = []

    def wait() -> None:
        with rival.transaction() as theirs:
            found.append((theirs.lock([ADA, BO], wait={ADA}, known={ADA: 1, BO: 1}), theirs.customer(ADA)))

    waiting = threading.Thread(target=wait)
    with store.transaction() as mine:
        mine.lock([ADA])
        waiting.start()
        until(lambda: ask(dsn, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)])
        mine.write(batch_write(customer(sequence=2)))
    waiting.join()

    ((locked, read),) = found
    assert locked.versions == {ADA: 2, BO: 1}
    assert list(locked.changed) == [customer(sequence=2)] == [read]


def test_waiting_has_an_end_and_then_nothing_happened(store: PostgresStore, rival: PostgresStore) -> None:
    commit(store, customer())
    assert rival._db is not None
    rival._db.execute("SET lock_timeout = '20ms'")

    with store.transaction() as mine:
        mine.lock([ADA])
        with pytest.raises(StoreBusy), rival.transaction() as theirs:
            theirs.lock([ADA], wait={ADA})

    commit(rival, customer(sequence=2))


def test_servers_that_wait_for_what_the_other_takes_in_passing_never_hold_each_other_up(
    store: PostgresStore, rival: PostgresStore
) -> None:
    """What is waited for is taken first: the other way round, each would hold what the other waits for."""
    commit(store, customer(), customer(BO))

    def take(server: PostgresStore, patient: Any) -> None:
        for _ in range(60):
            with server.transaction() as tx:
                assert patient in tx.lock([ADA, BO], wait={patient}).versions

    with ThreadPoolExecutor(2) as pool:
        taking = [pool.submit(take, store, BO), pool.submit(take, rival, ADA)]

    assert [each.result() for each in taking] == [None, None]


@pytest.mark.parametrize("row", [customer(BO), request()], ids=["customer", "request id"])
def test_what_two_servers_begin_at_once_is_begun_by_one_and_the_other_starts_again(
    store: PostgresStore, rival: PostgresStore, row: Any
) -> None:
    def come_second() -> None:
        with store.transaction() as mine:
            commit(rival, row)
            mine.write(batch_write(row, purchase()))

    with pytest.raises(StoreConflict):
        come_second()

    commit(store, purchase())
    with store.transaction() as tx:
        assert tx.purchase(ADA, "t1") == purchase()


def test_a_customer_that_was_not_locked_is_never_overwritten(store: PostgresStore) -> None:
    commit(store, customer())

    with pytest.raises(StoreConflict), store.transaction() as tx:
        tx.write(batch_write(customer(sequence=2)))

    with store.snapshot() as snapshot:
        assert snapshot.customer(ADA) == customer()


# --- Lost connections. ---


def test_a_connection_lost_before_the_commit_is_nothing_and_the_next_transaction_connects_again(
    store: PostgresStore,
) -> None:
    def lose() -> None:
        with store.transaction() as tx:
            tx.write(batch_write(customer()))
            kill(store)

    with pytest.raises(StoreUnreachable):
        lose()

    assert counted(store) == 0
    commit(store, customer())
    assert counted(store) == 1


def test_a_connection_lost_between_two_statements_is_nothing(store: PostgresStore) -> None:
    def lose() -> None:
        with store.transaction() as tx:
            tx.write(batch_write(customer()))
            kill(store)
            tx.customer(ADA)

    with pytest.raises(StoreUnreachable):
        lose()

    assert counted(store) == 0


@pytest.mark.parametrize("happened", [False, True])
def test_a_connection_lost_in_the_commit_is_unknown_and_the_next_transaction_sees_what_it_was(
    store: Any, *, happened: bool
) -> None:
    def lose(go: Callable[[], Any]) -> Any:
        if happened:
            go()
        kill(store)
        return go()

    # For good: the connection that is made anew takes its place.
    store._db = Cut(store._db, "COMMIT", lose)

    with pytest.raises(OutcomeUnknown):
        commit(store, customer(), entry(), batch())

    with store.transaction() as tx:
        assert tx.tail() == ((batch(), 1) if happened else (None, 0))
        assert tx.lock([ADA]).versions == ({ADA: 1} if happened else {})


def test_a_commit_that_a_standby_may_not_have_is_unknown(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(go: Callable[[], Any]) -> Any:
        done = go()
        store._warnings.append("canceling wait for synchronous replication due to user request")
        return done

    monkeypatch.setattr(store, "_db", Cut(store._db, "COMMIT", warn))

    with pytest.raises(OutcomeUnknown, match="synchronous replication"):
        commit(store, customer())


def test_warnings_of_the_server_are_heard(store: PostgresStore) -> None:
    assert store._db is not None
    store._db.execute("DO $$ BEGIN RAISE WARNING 'as a commit would'; END $$")

    assert store._warnings == ["as a commit would"]


def test_a_transaction_whose_failure_was_swallowed_does_not_seem_to_commit(store: PostgresStore) -> None:
    def swallow() -> None:
        with store.transaction() as tx:
            tx.write(batch_write(customer()))
            with pytest.raises(errors.DivisionByZero):
                tx.change("SELECT 1 / $1", (0,))

    with pytest.raises(StoreConflict):
        swallow()

    assert counted(store) == 0


@pytest.mark.parametrize("at", ["INSERT INTO customers", "COMMIT"])
@pytest.mark.parametrize(
    ("error", "word"),
    [
        (errors.SerializationFailure("40001"), StoreConflict),
        (errors.DeadlockDetected("40P01"), StoreConflict),
        (errors.DiskFull("53100"), StoreFull),
        (errors.DataCorrupted("XX001"), StoreBroken),
        (errors.IndexCorrupted("XX002"), StoreBroken),
        (errors.IoError("58030"), StoreBroken),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, psycopg.Error) else "",
)
def test_what_the_database_says_is_said_in_the_engines_words_and_nothing_stands(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, at: str, error: psycopg.Error, word: type[Exception]
) -> None:
    real = store._db
    monkeypatch.setattr(store, "_db", Cut(real, at, fail_with(error)))

    with pytest.raises(word) as said:
        commit(store, customer(), entry(), batch())

    assert said.value.__cause__ is error
    monkeypatch.setattr(store, "_db", real)
    assert counted(store) == 0
    commit(store, customer(), entry(), batch())


class Reach:
    """A database that comes and goes, and how often it was tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there = True
        self.tries = 0
        real = session.connect

        def connect(dsn: str) -> session.Connection:
            self.tries += 1
            if not self.there:
                raise StoreUnreachable("out of reach")
            return real(dsn)

        monkeypatch.setattr(session, "connect", connect)


def test_a_database_out_of_reach_is_tried_seldom_and_used_again_when_it_is_back(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_now = [100.0]
    store = PostgresStore(dsn, monotonic=lambda: time_now[0])
    reach = Reach(monkeypatch)
    reach.there = False
    kill(store)
    with pytest.raises(StoreBusy):
        commit(store, customer())

    tried_at: list[float] = []
    for _ in range(400):
        before = reach.tries
        with pytest.raises(StoreBusy):
            commit(store, customer())
        if reach.tries > before:
            tried_at.append(time_now[0])
        time_now[0] += 0.1

    gaps = [round(later - earlier, 1) for earlier, later in pairwise(tried_at)]
    assert gaps[0] <= 0.2
    assert gaps == sorted(gaps)
    assert 5.0 <= gaps[-1] <= 5.2
    reach.there = True
    time_now[0] += 5.1
    commit(store, customer())
    assert counted(store) == 1
    store.close()


def test_readers_that_were_lost_are_replaced(store: PostgresStore) -> None:
    commit(store, customer())
    with store.snapshot(), store.snapshot():
        pass
    postgres.admin(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'riskgate' AND pid <> %s",
        store._db and store._db.info.backend_pid,
    )

    assert counted(store) == 1


def test_a_reader_lost_in_the_middle_says_so_and_the_next_goes_on(store: PostgresStore) -> None:
    def lose() -> None:
        with store.snapshot() as snapshot:
            postgres.admin("SELECT pg_terminate_backend(%s, 5000)", snapshot._db.info.backend_pid)
            snapshot.customer(ADA)

    with pytest.raises(ReadFailed):
        lose()

    assert counted(store) == 0


def test_readers_are_bounded_and_who_comes_too_late_is_told(
    store: PostgresStore, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "READER_WAIT_SECONDS", 0.01)
    readers = Readers(dsn, most=1)

    with PostgresSnapshot(readers) as first:
        with pytest.raises(ReadFailed), PostgresSnapshot(readers):
            pass
        assert first.customer(ADA) is None
    with PostgresSnapshot(readers) as again:
        assert again.customer(ADA) is None
    readers.close()


def test_those_who_read_cannot_write(store: PostgresStore) -> None:
    with store.snapshot() as snapshot, pytest.raises(errors.ReadOnlySqlTransaction):
        snapshot._db.execute("DELETE FROM customers")
