"""The engine over a database that several servers share: each sees what the others did, and nothing happens twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import errors

from riskgate_server.domain.events import Outcome
from riskgate_server.engine.pipeline import CONFLICTS_MAX, Pipeline
from riskgate_server.engine.replies import DecisionReply, Failed, LineReply, Reply
from riskgate_server.engine.storing import Store
from riskgate_server.stores.memory import MemoryVault
from riskgate_server.stores.postgres.store import PostgresStore
from tests import factories as f
from tests.contract.sessions import Cut, fail_with, kill


@pytest.fixture
def stores(dsn: str) -> Iterator[list[PostgresStore]]:
    """Two servers' stores on one database."""
    stores = [PostgresStore(dsn, writer) for writer in range(2)]
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def servers(stores: list[PostgresStore]) -> list[Pipeline]:
    vault = MemoryVault()
    return [f.make_pipeline(store, vault=vault, entropy=f.SeededEntropy()) for store in stores]


def reasons(replies: list[Reply]) -> list[str]:
    return [reply.reason if isinstance(reply, Failed) else "" for reply in replies]


def outcomes(replies: list[Reply]) -> list[Outcome]:
    return [reply.decided.outcome for reply in replies if isinstance(reply, DecisionReply)]


def entries(store: Store) -> int:
    with store.snapshot() as snapshot:
        return snapshot.counts()["entries"]


def test_a_server_decides_on_what_the_other_left_however_well_it_remembers(servers: list[Pipeline]) -> None:
    """Each has the customer in memory from its own last purchase, and the other has spent since."""
    one, other = servers
    f.make_customer(one, limit_minor=10_000)
    got = [
        outcome
        for number in range(6)
        for server in (one, other)
        for outcome in outcomes(server.run([f.check(f"t{number} {server is one}", 1_000)]))
    ]

    assert got == [Outcome.APPROVE] * 10 + [Outcome.DECLINE] * 2


def test_a_request_that_goes_to_both_servers_has_one_effect_and_one_answer(
    servers: list[Pipeline], stores: list[PostgresStore]
) -> None:
    one, other = servers
    f.make_customer(one)

    first, second = one.run([f.check("t1")]), other.run([f.check("t1")])

    assert first == second
    assert entries(stores[0]) == 2


def test_two_servers_never_lend_more_than_the_limit_of_one_line(
    servers: list[Pipeline], stores: list[PostgresStore]
) -> None:
    f.make_customer(servers[0], limit_minor=100_000)

    def spend(server: Pipeline) -> list[Reply]:
        name = servers.index(server)
        batches = [[f.check(f"t{name}.{n}.{m}", 1_000) for m in range(5)] for n in range(24)]
        return [reply for batch in batches for reply in server.run(batch)]

    with ThreadPoolExecutor(2) as pool:
        replies = [reply for done in pool.map(spend, servers) for reply in done]

    assert len(outcomes(replies)) == 240
    assert outcomes(replies).count(Outcome.APPROVE) == 100
    assert entries(stores[0]) == 241


@pytest.mark.parametrize("at", ["SELECT c.tenant_id, c.customer_id FROM", "SELECT t.tenant_id", "INSERT INTO"])
def test_a_customer_that_both_servers_begin_at_once_is_begun_once(
    stores: list[PostgresStore], servers: list[Pipeline], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Whenever the other does so: right after the lock found nobody, while this one reads, or as it writes."""
    one, other = servers
    theirs: list[Reply] = []

    def meanwhile(go: Callable[[], Any]) -> Any:
        done = go() if at.startswith("SELECT c") else None
        if not theirs:
            theirs.extend(other.run([f.open_line()]))
        return done or go()

    monkeypatch.setattr(stores[0], "_db", Cut(stores[0]._db, at, meanwhile))

    mine = one.run([f.open_line(), f.check("t1")])

    assert isinstance(theirs[0], LineReply)
    assert mine[0] == theirs[0]
    assert outcomes(mine) == [Outcome.APPROVE]
    assert entries(stores[0]) == 2


@pytest.mark.parametrize("happened", [False, True])
def test_a_commit_in_doubt_is_told_as_such_and_repeating_the_id_resolves_it(
    stores: list[Any], *, happened: bool
) -> None:
    store = stores[0]
    server = f.make_pipeline(store)
    f.make_customer(server)

    def lose(go: Callable[[], Any]) -> Any:
        if happened:
            go()
        kill(store)
        return go()

    store._db = Cut(store._db, "COMMIT", lose)
    doubtful = server.run([f.check("t1"), f.check("t2")])
    resolved = server.run([f.check("t1"), f.check("t2")])

    assert reasons(doubtful) == ["OUTCOME_UNKNOWN"] * 2
    assert outcomes(resolved) == [Outcome.APPROVE] * 2
    assert entries(store) == 3
    assert outcomes(server.run([f.check("t3")])) == [Outcome.APPROVE]


def test_a_connection_lost_before_the_commit_is_told_as_such_and_the_next_try_has_its_effect(
    stores: list[PostgresStore],
) -> None:
    server = f.make_pipeline(stores[0])
    f.make_customer(server)
    kill(stores[0])

    assert reasons(server.run([f.check("t1")])) == ["STORE_UNREACHABLE"]
    assert outcomes(server.run([f.check("t1")])) == [Outcome.APPROVE]
    assert entries(stores[0]) == 2


@pytest.mark.parametrize("error", [errors.SerializationFailure(), errors.DeadlockDetected()])
@pytest.mark.parametrize("at", ["SELECT c.tenant_id", "INSERT INTO entries", "COMMIT"])
def test_a_batch_that_lost_a_race_is_run_again_whole(
    stores: list[PostgresStore], monkeypatch: pytest.MonkeyPatch, error: errors.OperationalError, at: str
) -> None:
    server = f.make_pipeline(stores[0])
    f.make_customer(server)
    failures = [error] * 3

    def fail(go: Callable[[], Any]) -> Any:
        if failures:
            raise failures.pop()
        return go()

    monkeypatch.setattr(stores[0], "_db", Cut(stores[0]._db, at, fail))

    assert outcomes(server.run([f.check("t1"), f.check("t2")])) == [Outcome.APPROVE] * 2
    assert entries(stores[0]) == 3


def test_a_race_that_is_lost_for_ever_is_given_up_and_nothing_was_done(
    stores: list[PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = f.make_pipeline(stores[0])
    f.make_customer(server)
    cut = Cut(stores[0]._db, "COMMIT", fail_with(errors.SerializationFailure()))
    monkeypatch.setattr(stores[0], "_db", cut)

    assert reasons(server.run([f.check("t1")])) == ["WRITE_CONFLICT"]
    assert cut.asked.count("COMMIT") == 1 + CONFLICTS_MAX
    assert entries(stores[0]) == 1


def test_a_hundred_decisions_are_a_dozen_statements(
    stores: list[PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = f.make_pipeline(stores[0])
    customers: list[Any] = [{"customer_id": f"c{n}"} for n in range(100)]
    server.run([f.open_line(**who) for who in customers])
    cut = Cut(stores[0]._db, "nothing", lambda go: go())
    monkeypatch.setattr(stores[0], "_db", cut)

    replies = server.run([f.check("t1", **who) for who in customers])

    assert len(outcomes(replies)) == 100
    assert len(cut.asked) <= 12
