"""The writer's thread with real callers' threads around it, over memory and over a file."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.events import Outcome
from riskgate_server.engine import writer as writer_module
from riskgate_server.engine.commands import Command
from riskgate_server.engine.failures import ReadFailed, StoreBroken, StoreBusy, StoreFull
from riskgate_server.engine.replies import DecisionReply, Failed, HoldReply, Reply
from riskgate_server.engine.storing import Store
from riskgate_server.engine.verify import verify
from riskgate_server.engine.writer import Writer
from riskgate_server.stores.memory import MemoryStore, MemoryVault
from riskgate_server.stores.sqlite.store import SQLiteStore
from tests import factories as f
from tests.simulation.faults import Fault, FaultyStore
from tests.simulation.world import Chain

PATIENCE_SECONDS = 30
CALLERS = 64


class Edge:
    """Callers' side of the queue: hands a command in and waits for its reply."""

    def __init__(self, store: Store, clock: f.FixedClock | None = None, **parts: Any) -> None:
        self.store = store
        self.vault = MemoryVault()
        self.clock = clock or f.FixedClock()
        self.broken = threading.Event()
        self._replies: dict[int, Reply] = {}
        self._arrived = threading.Condition()
        self._tickets = iter(range(10**9))
        self.pipeline = f.make_pipeline(store, vault=self.vault, clock=self.clock, **parts)
        self.writer = Writer(
            self.pipeline, store, self.clock, deliver=self._deliver, on_broken=self.broken.set, batch_max=50
        )
        self.pipeline.run([f.open_line()])

    def _deliver(self, replies: Sequence[tuple[int, Reply]]) -> None:
        with self._arrived:
            self._replies.update(replies)
            self._arrived.notify_all()

    def put(self, command: Command) -> int:
        ticket = next(self._tickets)
        self.writer.put(ticket, command)
        return ticket

    def wait(self, ticket: int) -> Reply:
        with self._arrived:
            assert self._arrived.wait_for(lambda: ticket in self._replies, PATIENCE_SECONDS), "nobody answered"
            return self._replies.pop(ticket)

    def call(self, command: Command) -> Reply:
        return self.wait(self.put(command))


@pytest.fixture(params=["memory", "sqlite"])
def edge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Edge]:
    store: Store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "riskgate.db")
    edge = Edge(store)
    edge.writer.start()
    yield edge
    edge.writer.stop()
    store.close()


def callers(work: Callable[[int], Any]) -> list[Any]:
    """Run `work` on 64 threads that begin together."""
    together = threading.Barrier(CALLERS)

    def begin(number: int) -> Any:
        together.wait(PATIENCE_SECONDS)
        return work(number)

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(begin, range(CALLERS)))


@pytest.mark.parametrize(("limit", "amount"), [(100_000, 2_100), (100_000, 100_000), (1, 1), (99, 100)])
def test_64_callers_on_one_line_get_exactly_what_it_can_give(edge: Edge, limit: int, amount: int) -> None:
    """Invariant 15."""
    edge.call(f.open_line("open bo", customer_id="bo", limit_minor=limit))

    replies = callers(lambda n: edge.call(f.check(f"t{n}", amount, customer_id="bo")))

    outcomes = Counter(reply.decided.outcome for reply in replies)
    assert outcomes[Outcome.APPROVE] == limit // amount
    assert outcomes[Outcome.DECLINE] == CALLERS - limit // amount


def test_64_callers_who_hold_take_and_give_back_never_pass_the_limit(edge: Edge) -> None:
    """At no prefix of the journal: `Chain` adds it up entry by entry."""

    def shop(number: int) -> Counter[str]:
        chance = Random(number)
        seen: Counter[str] = Counter()
        for turn in range(8):
            name = f"t{number}.{turn}"
            bought = edge.call(f.check(name, chance.randint(1, 30_000), allow_partial=chance.random() < 0.3))
            assert isinstance(bought, DecisionReply)
            seen[bought.decided.outcome.name] += 1
            if bought.decided.outcome is Outcome.APPROVE:
                if chance.random() < 0.5:
                    after = edge.call(f.void(f"v {name}", name))
                else:
                    after = edge.call(f.capture(f"c {name}", name, final=True))
                    edge.call(f.pay(f"p {name}", bought.decided.held_minor))
                assert isinstance(after, HoldReply)
        return seen

    outcomes: Counter[str] = sum(callers(shop), Counter())

    assert outcomes["APPROVE"] > 50
    assert outcomes["DECLINE"] > 50
    key = (f.TENANT, f.CUSTOMER)
    with edge.store.snapshot() as snapshot:
        Chain(key).follow(list(snapshot.entries(key, after=0, limit=10**6)))
    assert verify(edge.store, edge.vault, Sealer()).faults == []


def test_64_callers_with_one_request_id_cause_one_effect_and_hear_one_answer(edge: Edge) -> None:
    replies = callers(lambda _: edge.call(f.check("t1", 700)))

    assert all(reply == replies[0] for reply in replies)
    with edge.store.snapshot() as snapshot:
        assert snapshot.counts()["purchases"] == 1


def test_what_was_queued_before_the_stop_is_finished(edge: Edge) -> None:
    tickets = [edge.put(f.check(f"t{n}", 1)) for n in range(200)]

    edge.writer.stop()

    assert all(isinstance(edge.wait(ticket), DecisionReply) for ticket in tickets)
    edge.writer = Writer(edge.pipeline, edge.store, edge.clock, deliver=edge._deliver, on_broken=edge.broken.set)
    edge.writer.start()


def test_after_a_broken_commit_its_callers_hear_that_nobody_knows_and_the_rest_that_nothing_was_done() -> None:
    faults = iter([Fault.NONE, Fault.LOST])
    edge = Edge(FaultyStore(MemoryStore(), lambda: next(faults)))
    first = edge.put(f.check("t1"))
    edge.writer.start()
    assert edge.broken.wait(PATIENCE_SECONDS)
    second = edge.put(f.check("t2"))

    unknown, refused = edge.wait(first), edge.wait(second)
    edge.writer.stop()

    assert isinstance(unknown, Failed)
    assert isinstance(refused, Failed)
    assert (unknown.family, unknown.reason) == ("Unavailable", "OUTCOME_UNKNOWN")
    assert (refused.family, refused.reason) == ("Unavailable", "SHUTTING_DOWN")


# --- The sweep. ---


class Sink:
    """Keeps `engine.ports.EntrySink`; remembers that it was told."""

    def __init__(self) -> None:
        self.told = threading.Semaphore(0)

    def committed(self, position: int, keys: Iterable[tuple[str, str]]) -> None:
        self.told.release()


def test_a_lapsed_hold_is_ended_without_anybody_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SWEEP_SECONDS", 0.01)
    sink = Sink()
    edge = Edge(MemoryStore(), sink=sink)
    edge.pipeline.run([f.check("t1", 5, hold_lifetime_us=f.MINUTE_US)])
    for _ in range(2):
        assert sink.told.acquire(timeout=PATIENCE_SECONDS)
    edge.clock.wait(f.MINUTE_US)

    edge.writer.start()

    assert sink.told.acquire(timeout=PATIENCE_SECONDS)
    edge.writer.stop()
    with edge.store.snapshot() as snapshot:
        assert [e.tag for e in snapshot.entries((f.TENANT, f.CUSTOMER), after=2, limit=9)] == [6]


class UnsweepableStore(FaultyStore):
    """A store on which the sweep fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__(MemoryStore())
        self.error = error
        self.asked = threading.Event()

    def forget_replies(self, before_us: int, limit: int) -> int:
        self.asked.set()
        raise self.error


@pytest.mark.parametrize("error", [StoreFull("no room"), StoreBusy("in the way"), ReadFailed("no file")])
def test_a_sweep_that_cannot_be_done_now_is_tried_again_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(writer_module, "SWEEP_SECONDS", 0.01)
    store = UnsweepableStore(error)
    edge = Edge(store)
    edge.writer.start()
    for _ in range(2):
        assert store.asked.wait(PATIENCE_SECONDS)
        store.asked.clear()

    assert isinstance(edge.call(f.check("t1")), DecisionReply)
    edge.writer.stop()
    assert not edge.broken.is_set()


@pytest.mark.parametrize("error", [StoreBroken("gone"), ZeroDivisionError("ours")])
def test_a_writer_that_cannot_go_on_says_so_and_refuses_the_rest(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A thread that died in silence would leave every caller hanging."""
    monkeypatch.setattr(writer_module, "SWEEP_SECONDS", 0.01)
    edge = Edge(UnsweepableStore(error))
    edge.writer.start()

    assert edge.broken.wait(PATIENCE_SECONDS)
    refused = edge.call(f.check("t1"))
    edge.writer.stop()

    assert isinstance(refused, Failed)
    assert refused.reason == "SHUTTING_DOWN"


class DeafSink:
    """Keeps `engine.ports.EntrySink`, badly."""

    def committed(self, position: int, keys: Iterable[tuple[str, str]]) -> None:
        raise ZeroDivisionError


def test_who_watches_cannot_harm_what_is_committed() -> None:
    edge = Edge(MemoryStore(), sink=DeafSink())

    (reply,) = edge.pipeline.run([f.check("t1")])

    assert isinstance(reply, DecisionReply)
