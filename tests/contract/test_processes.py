"""Processes that share a database get out of each other's way, and none does what another does already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import pytest
from psycopg import errors

from riskgate_server.crypto.keys import MasterKey
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.events import Outcome
from riskgate_server.engine.clocks import DataClock
from riskgate_server.engine.failures import StoreInUse
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.replies import DecisionReply, Failed, Reply
from riskgate_server.engine.storing import NoKey
from riskgate_server.engine.writer import Ticket, Writer
from riskgate_server.rpc.metrics import Metrics
from riskgate_server.stores.memory import MemoryVault
from riskgate_server.stores.postgres import store as store_module
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.postgres.vault import CACHED_SECONDS, PostgresVault, create_vault
from tests import factories as f
from tests import postgres
from tests.contract.sessions import Cut, ask, kill

ADA: CustomerKey = (f.TENANT, "ada")
BO: CustomerKey = (f.TENANT, "bo")
MASTER = MasterKey(bytes(range(32)))


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    return postgres.database(tmp_path)


@pytest.fixture
def stores(dsn: str) -> Iterator[list[Any]]:
    stores = [PostgresStore(dsn, writer) for writer in range(2)]
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def servers(stores: list[PostgresStore]) -> list[Pipeline]:
    vault = MemoryVault()
    made = [f.make_pipeline(store, vault=vault, entropy=f.SeededEntropy(n)) for n, store in enumerate(stores)]
    made[0].run([f.open_line(customer_id=name) for _, name in (ADA, BO)])
    return made


@contextmanager
def held(store: PostgresStore, *customers: CustomerKey) -> Iterator[None]:
    """Hold customers, as a process whose batch is under way does."""
    with store.transaction() as tx:
        assert len(tx.lock(sorted(customers)).versions) == len(customers)
        yield


def told(replies: Sequence[Reply | None]) -> list[str]:
    def word(reply: Reply | None) -> str:
        if isinstance(reply, DecisionReply):
            return reply.decided.outcome.name
        return reply.reason if isinstance(reply, Failed) else str(reply)

    return [word(reply) for reply in replies]


def bought(store: PostgresStore, customer: CustomerKey) -> list[str]:
    """The request ids of a customer's entries after the line was opened."""
    with store.snapshot() as snapshot:
        return [entry.request_id for entry in snapshot.entries(customer, after=1, limit=1_000)]


class Desk:
    """A writer driven step by step, and what its callers were told."""

    def __init__(self, pipeline: Pipeline, store: PostgresStore) -> None:
        self.answered: dict[Ticket, Reply] = {}
        self.writer = Writer(
            pipeline,
            store,
            f.FixedClock(f.NOW_US + f.HOUR_US),
            deliver=self.answered.update,
            on_broken=lambda: None,
            pause=lambda _seconds: None,
        )
        self._tickets = 0

    def put(self, *commands: Any) -> list[Ticket]:
        made = []
        for command in commands:
            self._tickets += 1
            self.writer.put(self._tickets, command)
            made.append(self._tickets)
        return made


# --- Customers who are held elsewhere. ---


def test_all_commands_of_a_customer_held_elsewhere_are_left_and_the_others_are_answered(
    servers: list[Pipeline], stores: list[PostgresStore]
) -> None:
    commands = [f.check("t1"), f.check("t1", customer_id="bo"), f.check("t2"), f.check("t2", customer_id="bo")]

    with held(stores[1], ADA):
        replies = servers[0].run_free(commands, wait=())

    assert told(replies) == ["None", "APPROVE", "None", "APPROVE"]
    assert bought(stores[0], ADA) == []
    assert told(servers[0].run_free(commands, wait=())) == ["APPROVE"] * 4


def test_where_all_are_held_elsewhere_nothing_is_done(servers: list[Pipeline], stores: list[PostgresStore]) -> None:
    with held(stores[1], ADA, BO):
        replies = servers[0].run_free([f.check("t1"), f.check("t1", customer_id="bo")], wait=())

    assert replies == [None, None]
    assert bought(stores[0], ADA) == bought(stores[0], BO) == []


def test_a_batch_that_fails_and_is_run_one_by_one_still_waits_for_nobody(
    servers: list[Pipeline], stores: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [errors.CheckViolation()]

    def fail_once(go: Callable[[], Any]) -> Any:
        if failures:
            raise failures.pop()
        return go()

    monkeypatch.setattr(stores[0], "_db", Cut(stores[0]._db, "INSERT INTO entries", fail_once))
    with held(stores[1], ADA):
        replies = servers[0].run_free([f.check("t1"), f.check("t1", customer_id="bo")], wait=())

    assert told(replies) == ["None", "APPROVE"]
    assert failures == []


def test_commands_that_another_process_was_in_the_way_of_are_counted(
    servers: list[Pipeline], stores: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    server = f.make_pipeline(stores[0], rivals=metrics)
    begun: list[Reply] = []

    def counted() -> list[float | None]:
        name = "riskgate_commands_put_back_total"
        return [metrics.registry.get_sample_value(name, {"reason": reason}) for reason in ("HELD", "CONFLICT")]

    def begin_cyd(go: Callable[[], Any]) -> Any:
        begun.extend(begun or servers[1].run([f.open_line(customer_id="cyd")]))
        return go()

    before = counted()
    with held(stores[1], ADA):
        server.run_free([f.check("t1"), f.check("t2"), f.check("t1", customer_id="bo")], wait=())
    left = counted()
    monkeypatch.setattr(stores[0], "_db", Cut(stores[0]._db, "INSERT INTO customers", begin_cyd))
    server.run([f.open_line(customer_id="cyd"), f.check("t3"), f.check("t4")])

    assert before == [0, 0]
    assert left == [2, 0]
    assert counted() == [2, 3]


def test_who_is_held_for_too_long_is_told_so_and_nobody_else_suffers(
    servers: list[Pipeline], stores: list[Any]
) -> None:
    stores[0]._db.execute("SET lock_timeout = '20ms'")

    with held(stores[1], ADA):
        replies = servers[0].run_free([f.check("t1"), f.check("t1", customer_id="bo")], wait={ADA})

    assert told(replies) == ["WRITE_CONFLICT", "APPROVE"]


def test_commands_that_were_left_keep_their_order_before_those_that_came_later(
    servers: list[Pipeline], stores: list[PostgresStore]
) -> None:
    desk = Desk(servers[0], stores[0])
    tickets = desk.put(f.check("t1"), f.check("t1", customer_id="bo"), f.check("t2"))

    with held(stores[1], ADA):
        desk.writer._step()
        early = set(desk.answered)
        tickets += desk.put(f.check("t3"))
        desk.writer._step()
    desk.put(f.check("t4"))
    desk.writer._step()

    assert early == {tickets[1]}
    assert bought(stores[0], ADA) == ["check t1", "check t2", "check t3", "check t4"]
    assert told(list(desk.answered.values())) == ["APPROVE"] * 5


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


class Asked:
    """For whom each batch waits."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.waits: list[set[CustomerKey]] = []
        self.waiting = Event()
        run_free = Pipeline.run_free

        def watched(pipeline: Pipeline, commands: Any, *, wait: Any) -> Any:
            self.waits.append(set(wait))
            if wait:
                self.waiting.set()
            return run_free(pipeline, commands, wait=wait)

        patch.setattr(Pipeline, "run_free", watched)


def test_who_was_left_is_asked_for_only_so_often_and_then_waited_for(
    servers: list[Pipeline], stores: list[PostgresStore], asked: Asked
) -> None:
    desk = Desk(servers[0], stores[0])
    desk.put(f.check("t1"))

    def step_until_answered() -> None:
        while not desk.answered:
            desk.writer._step()

    with ThreadPoolExecutor(1) as pool:
        with held(stores[1], ADA):
            stepping = pool.submit(step_until_answered)
            assert asked.waiting.wait(10)
        stepping.result(10)

    assert asked.waits == [set(), set(), set(), {ADA}]
    assert told(list(desk.answered.values())) == ["APPROVE"]


def test_a_command_that_was_left_has_no_effect_after_its_deadline(stores: list[PostgresStore]) -> None:
    now = [1_000]
    server = f.make_pipeline(stores[0], monotonic_us=lambda: now[0])
    server.run([f.open_line()])
    desk = Desk(server, stores[0])
    desk.put(f.check("t1", deadline_us=2_000), f.check("t2", deadline_us=4_000))

    with held(stores[1], ADA):
        desk.writer._step()
        now[0] = 3_000
    desk.writer._step()

    assert told(list(desk.answered.values())) == ["DEADLINE_PASSED", "APPROVE"]
    assert bought(stores[0], ADA) == ["check t2"]


def test_what_was_left_is_answered_before_the_writer_ends(
    servers: list[Pipeline], stores: list[PostgresStore], asked: Asked
) -> None:
    desk = Desk(servers[0], stores[0])
    desk.put(f.check("t1"))

    with ThreadPoolExecutor(1) as pool:
        with held(stores[1], ADA):
            desk.writer.start()
            stopping = pool.submit(desk.writer.stop)
            assert asked.waiting.wait(10)
        stopping.result(10)

    assert told(list(desk.answered.values())) == ["APPROVE"]


def test_two_processes_serve_the_same_customers_and_all_are_answered_once(
    servers: list[Pipeline], stores: list[PostgresStore]
) -> None:
    names = [f"c{n}" for n in range(40)]
    servers[0].run([f.open_line(customer_id=name, limit_minor=10_000) for name in names])
    desks = [Desk(server, store) for server, store in zip(servers, stores, strict=True)]
    chance = Random(1)
    for number, desk in enumerate(desks):
        desk.put(*(f.check(f"t{number}.{n}", 10, customer_id=chance.choice(names)) for n in range(1_000)))

    for desk in desks:
        desk.writer.start()
    for desk in desks:
        desk.writer.stop()

    for desk in desks:
        assert told(list(desk.answered.values())) == ["APPROVE"] * 1_000
    with stores[0].snapshot() as snapshot:
        assert snapshot.counts()["purchases"] == 2_000


# --- Jobs that one process does for all. ---


def test_a_job_is_one_process_s_until_it_closes(stores: list[PostgresStore]) -> None:
    one, other = stores

    assert [one.lease("job"), other.lease("job"), one.lease("job"), other.lease("another")] == [True, False, True, True]
    one.close()
    assert other.lease("job")


def test_the_job_of_a_process_that_died_is_taken_over_when_its_lease_ends_by_the_database_s_clock(
    stores: list[PostgresStore], dsn: str
) -> None:
    one, other = stores
    assert one.lease("job")
    before = other.lease("job")
    ask(dsn, "UPDATE jobs SET lease_until = clock_timestamp() - interval '1 microsecond'")

    assert not before
    assert other.lease("job")
    assert not one.lease("job")


def test_lapsed_holds_are_ended_by_one_process(servers: list[Pipeline], stores: list[PostgresStore]) -> None:
    servers[0].run([f.check("t1", hold_lifetime_us=f.MINUTE_US)])
    assert stores[1].lease("lapsed holds")
    late = [
        f.make_pipeline(store, clock=f.FixedClock(f.NOW_US + f.HOUR_US), vault=servers[0]._vault) for store in stores
    ]
    desks = [Desk(server, store) for server, store in zip(late, stores, strict=True)]

    desks[0].writer._sweep()
    before = len(bought(stores[0], ADA))
    desks[1].writer._sweep()

    assert (before, len(bought(stores[0], ADA))) == (1, 2)


def test_the_sweep_goes_on_beside_a_customer_who_is_held(servers: list[Pipeline], stores: list[PostgresStore]) -> None:
    servers[0].run([f.check("t1", hold_lifetime_us=f.MINUTE_US, customer_id=name) for _, name in (ADA, BO)])
    late = f.make_pipeline(stores[0], clock=f.FixedClock(f.NOW_US + f.HOUR_US), vault=servers[0]._vault)
    desk = Desk(late, stores[0])

    with held(stores[1], ADA):
        desk.writer._sweep()
        during = [len(bought(stores[0], who)) for who in (ADA, BO)]
    desk.writer._sweep()

    assert during == [1, 2]
    assert len(bought(stores[0], ADA)) == 2


# --- Keys that another process has forgotten. ---


@pytest.fixture
def vaults(dsn: str) -> Iterator[Callable[..., PostgresVault]]:
    create_vault(dsn, MASTER.wrap)
    opened: list[PostgresVault] = []

    def make(**how: Any) -> PostgresVault:
        opened.append(PostgresVault(dsn, wrap=MASTER.wrap, unwrap=MASTER.unwrap, **how))
        return opened[-1]

    yield make
    for vault in opened:
        vault.close()


def each_with_a_vault(
    stores: list[PostgresStore], vaults: Callable[..., PostgresVault]
) -> list[tuple[Pipeline, PostgresVault]]:
    return [(f.make_pipeline(store, vault=vault), vault) for store in stores for vault in (vaults(),)]


def test_a_key_that_one_process_forgets_seals_nothing_more_in_another(
    stores: list[PostgresStore], vaults: Callable[..., PostgresVault]
) -> None:
    (one, vault), (other, _) = each_with_a_vault(stores, vaults)
    one.run([f.open_line()])
    assert told(other.run([f.check("t1")])) == ["APPROVE"]

    vault.forget(ADA)

    assert told(other.run([f.check("t2")])) == ["CUSTOMER_ERASED"]
    assert told(one.run([f.check("t3")])) == ["CUSTOMER_ERASED"]
    assert bought(stores[0], ADA) == ["check t1"]


def test_a_customer_whom_another_process_changed_needs_no_vault_to_be_read_again(
    stores: list[PostgresStore], vaults: Callable[..., PostgresVault]
) -> None:
    (one, _), (other, other_vault) = each_with_a_vault(stores, vaults)
    one.run([f.open_line()])
    assert told(other.run([f.check("t1")])) == ["APPROVE"]
    assert told(one.run([f.check("t2")])) == ["APPROVE"]

    other_vault.close()

    assert told(other.run([f.check("t3")])) == ["APPROVE"]
    assert bought(stores[0], ADA) == ["check t1", "check t2", "check t3"]


def test_a_key_that_one_process_forgets_is_read_with_in_another_for_ten_seconds_at_most(
    vaults: Callable[..., PostgresVault], dsn: str
) -> None:
    now = [100.0]
    vault, other = vaults(), vaults(monotonic=lambda: now[0])
    vault.create({ADA: bytes(32)})
    assert other.keys([ADA]) == {ADA: bytes(32)}
    vault.forget(ADA)

    now[0] += CACHED_SECONDS

    assert other.keys([ADA]) == {ADA: NoKey.FORGOTTEN}


def test_forgetting_waits_for_whoever_is_just_sealing(
    servers: list[Pipeline], stores: list[PostgresStore], vaults: Callable[..., PostgresVault]
) -> None:
    vault = vaults()
    vault.create({ADA: bytes(32)})
    with ThreadPoolExecutor(1) as pool:
        with held(stores[0], ADA):
            forgetting = pool.submit(vault.forget, ADA)
            # It cannot have been done: the row that it changes first is held.
            assert vault.keys([ADA]) == {ADA: bytes(32)}
        forgetting.result(10)

    assert vault.keys([ADA]) == {ADA: NoKey.FORGOTTEN}


# --- Time that the data tells. ---


def test_a_commit_in_doubt_moves_the_data_s_clock_as_far_as_it_came(stores: list[Any]) -> None:
    store = stores[0]
    clock = DataClock(f.NOW_US)
    server = f.make_pipeline(store, clock=clock)
    server.run([f.open_line(), f.open_line(customer_id="bo")])

    def lose(go: Callable[[], Any]) -> Any:
        go()
        kill(store)
        return go()

    store._db = Cut(store._db, "COMMIT", lose)
    doubtful = server.run([f.check("t1", event_us=f.NOW_US + f.DAY_US)])
    later = server.run([f.check("t2", customer_id="bo")])

    assert told(doubtful) == ["OUTCOME_UNKNOWN"]
    assert clock.now_us() == f.NOW_US + f.DAY_US
    assert isinstance(later[0], DecisionReply)
    assert later[0].at_us == f.NOW_US + f.DAY_US
    assert later[0].decided.outcome is Outcome.APPROVE


# --- Numbers. ---


def test_a_process_takes_the_lowest_number_that_is_free(dsn: str) -> None:
    first, second, third = (PostgresStore(dsn, None) for _ in range(3))
    numbers = [store.writer for store in (first, second, third)]
    second.close()
    heir = PostgresStore(dsn, None)
    next_one = PostgresStore(dsn, None)
    for store in (first, third, heir, next_one):
        store.close()

    assert numbers == [0, 1, 2]
    assert (heir.writer, next_one.writer) == (1, 3)


def test_processes_that_start_at_once_take_different_numbers(dsn: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: PostgresStore(dsn, None), range(6)))
    numbers = sorted(store.writer for store in stores)
    for store in stores:
        store.close()

    assert numbers == [0, 1, 2, 3, 4, 5]


def test_a_database_has_only_so_many_writers(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WRITERS_MAX", 1)
    only = PostgresStore(dsn, None)

    with pytest.raises(StoreInUse, match="its 1 writers already"):
        PostgresStore(dsn, None)
    only.close()
