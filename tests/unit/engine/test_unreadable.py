"""Customers who cannot be read, and faults that pass: nobody else suffers, and nobody longer than they must."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine import pipeline as pipeline_module
from riskgate_server.engine import sealing
from riskgate_server.engine import writer as writer_module
from riskgate_server.engine.decide import USE_CASES
from riskgate_server.engine.replies import DecisionReply, Failed, Reply, Settled
from riskgate_server.engine.rows import BatchWrite
from riskgate_server.engine.storing import NoKey
from riskgate_server.engine.verify import verify
from riskgate_server.engine.writer import Writer
from riskgate_server.stores.memory import MemoryStore, MemoryVault
from tests import factories as f

ADA: CustomerKey = (f.TENANT, f.CUSTOMER)
PATIENCE_SECONDS = 30


class CountingStore(MemoryStore):
    """Counts its transactions."""

    transactions = 0

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        self.transactions += 1
        with super().transaction() as tx:
            yield tx


class Desk:
    """Ada and Bo, each with an open hold, and a pipeline that remembers neither."""

    def __init__(self) -> None:
        self.store, self.vault, self.clock = CountingStore(), MemoryVault(), f.FixedClock()
        self.restart()
        self.run(f.open_line(), f.open_line(customer_id="bo"), f.check("t1"), f.check("t1", customer_id="bo"))
        self.restart()
        self.store.transactions = 0

    def restart(self) -> None:
        self.pipeline = f.make_pipeline(self.store, vault=self.vault, clock=self.clock)

    def run(self, *commands: Any) -> list[Reply]:
        return self.pipeline.run(commands)

    def damage(self, name: str) -> None:
        LOSSES[name](self)


def damage_row(desk: Desk, field: str) -> None:
    rows = desk.store._tables.customers
    rows[ADA] = msgspec.structs.replace(rows[ADA], **{field: b"\xc1"})


def lose_key(desk: Desk, why: NoKey) -> None:
    desk.vault._keys[ADA] = why


LOSSES: dict[str, Callable[[Desk], None]] = {
    "key absent": lambda desk: lose_key(desk, NoKey.ABSENT),
    "key damaged": lambda desk: lose_key(desk, NoKey.DAMAGED),
    "profile damaged": lambda desk: damage_row(desk, "profile"),
    "state damaged": lambda desk: damage_row(desk, "state"),
    "erased": lambda desk: desk.vault.forget(ADA),
}
UNREADABLE = [name for name in LOSSES if name != "erased"]


def reasons(replies: Sequence[Reply]) -> list[str]:
    return [reply.reason if isinstance(reply, Failed) else "" for reply in replies]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize("loss", LOSSES)
def test_one_who_cannot_be_read_is_refused_alone_and_costs_no_transaction(desk: Desk, loss: str) -> None:
    desk.damage(loss)
    replies = desk.run(f.check("t2"), f.check("t2", customer_id="bo"), f.pay("p1", 5), f.check("t3", customer_id="bo"))

    expected = "CUSTOMER_ERASED" if loss == "erased" else "CUSTOMER_UNREADABLE"
    assert reasons(replies) == [expected, "", expected, ""]
    assert desk.store.transactions == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_answered_before_is_answered_again(loss: str) -> None:
    desk = Desk()
    desk.damage(loss)

    (again,) = desk.run(f.check("t1"))

    assert isinstance(again, DecisionReply)


@pytest.mark.parametrize(("why", "reason"), [(NoKey.FORGOTTEN, "ERASED"), (NoKey.DAMAGED, "UNREADABLE")])
def test_a_customer_only_the_vault_knows_is_not_begun_anew(desk: Desk, why: NoKey, reason: str) -> None:
    desk.vault._keys[f.TENANT, "cy"] = why

    replies = desk.run(f.open_line(customer_id="cy"), f.open_line(customer_id="di"), f.check("t2", customer_id="bo"))

    assert reasons(replies) == [f"CUSTOMER_{reason}", "", ""]
    assert desk.store.transactions == 1


def test_the_holds_of_one_who_was_erased_end_all_the_same(desk: Desk) -> None:
    """What ends a hold says nothing of a person's life, so it needs no key."""
    desk.damage("erased")
    desk.clock.wait(30 * f.DAY_US)

    replies = desk.run(f.settle(), f.settle(customer_id="bo"))

    assert replies == [Settled(1), Settled(1)]
    assert desk.store.customers_due(desk.clock.us, 9) == []
    report = verify(desk.store, desk.vault, Sealer())
    assert (report.faults, report.held_minor, report.erased) == ([], {f.CURRENCY: 0}, 1)


def test_those_whose_holds_cannot_end_do_not_keep_the_sweep_from_the_rest(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SWEEP_CUSTOMERS_MAX", 1)
    monkeypatch.setattr(writer_module, "SWEEP_SECONDS", 0.01)
    desk.damage("key damaged")
    desk.clock.wait(30 * f.DAY_US)
    ended = threading.Event()

    class Sink:
        def committed(self, position: int, keys: Any) -> None:
            ended.set()

    pipeline = f.make_pipeline(desk.store, vault=desk.vault, clock=desk.clock, sink=Sink())
    writer = Writer(pipeline, desk.store, desk.clock, deliver=lambda _: None, on_broken=lambda: None)
    writer.start()
    swept = ended.wait(PATIENCE_SECONDS)
    writer.stop()

    assert swept
    assert desk.store.customers_due(desk.clock.us, 9) == [ADA]


# --- Faults that pass. ---


class Failing:
    """A store whose next transaction fails with an error: while writing, or once it is committed."""

    def __init__(self, inner: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begin = inner.transaction
        self.errors: list[Exception] = []
        self.committed_first = False
        monkeypatch.setattr(inner, "transaction", self.transaction)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        error = self.errors.pop() if self.errors else None
        with self._begin() as tx:
            yield _Unwritable(tx, error) if error and not self.committed_first else tx
        if error and self.committed_first:
            raise error


class _Unwritable:
    def __init__(self, tx: Any, error: Exception) -> None:
        self._tx, self._error = tx, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    def write(self, batch: BatchWrite) -> None:
        raise self._error


@pytest.mark.parametrize("committed_first", [False, True])
def test_a_lack_of_memory_is_nobodys_fault(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, *, committed_first: bool
) -> None:
    """It may have come after the commit; the id resolves it."""
    failing = Failing(desk.store, monkeypatch)
    failing.committed_first = committed_first
    failing.errors = [MemoryError("out of memory")]

    unknown = desk.run(f.check("t2"), f.check("t2", customer_id="bo"))
    resolved = desk.run(f.check("t2"), f.check("t2", customer_id="bo"), f.check("t3"))

    assert reasons(unknown) == ["OUTCOME_UNKNOWN", "OUTCOME_UNKNOWN"]
    assert reasons(resolved) == ["", "", ""]
    assert verify(desk.store, desk.vault, Sealer()).faults == []


def test_a_command_for_which_there_was_no_memory_may_come_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> Reply:
        raise MemoryError

    with monkeypatch.context() as planted:
        known: dict[Any, Any] = dict(USE_CASES)
        planted.setattr(pipeline_module, "USE_CASES", known | {type(f.pay("p1", 5)): no_memory})
        replies = desk.run(f.pay("p1", 5), f.check("t2"))
    again = desk.run(f.pay("p1", 5))

    assert reasons(replies) == ["OVERLOADED", ""]
    assert reasons(again) == [""]


@pytest.mark.parametrize("at", ["seal_entry", "encode_state", "encode_reply"])
@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_command_that_fails_after_it_was_decided_leaves_nothing_behind(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, at: str, error: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        # Once, for the payment: what comes with it is sealed after it, and again when it runs by itself.
        monkeypatch.setattr(sealing, at, real)
        raise error("planted")

    real = getattr(sealing, at)
    monkeypatch.setattr(sealing, at, fail)
    desk.run(f.pay("p1", 5), f.check("t2", customer_id="bo"))

    desk.restart()
    repeated = desk.run(f.pay("p1", 5), f.check("t2", customer_id="bo"))

    assert reasons(repeated) == ["", ""]
    assert verify(desk.store, desk.vault, Sealer()).faults == []
    with desk.store.snapshot() as snapshot:
        journal = snapshot.entries(ADA, after=0, limit=99)
    assert [row.request_id for row in journal].count(f.pay("p1", 5).request_id) == 1


def test_who_has_no_chance_left_is_alone_in_it(desk: Desk) -> None:
    """Nonces are fetched for many commands at once."""
    given = f.SeededEntropy()
    shortages = [MemoryError()]

    def entropy(size: int) -> bytes:
        if shortages:
            raise shortages.pop()
        return given(size)

    desk.pipeline = f.make_pipeline(desk.store, vault=desk.vault, clock=desk.clock, entropy=entropy)
    replies = desk.run(*(f.check(f"t{n}", customer_id="bo") for n in range(2, 6)))

    assert reasons(replies) == ["OVERLOADED", "", "", ""]
    assert reasons(desk.run(f.check("t2", customer_id="bo"))) == [""]


def test_an_id_that_was_committed_is_answered_though_it_was_taken_for_harmful(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(desk.store, monkeypatch)
    failing.committed_first = True
    failing.errors = [RuntimeError("once")]

    first = desk.run(f.check("t2"))
    again = desk.run(f.check("t2"))

    assert reasons(first) == ["INTERNAL"]
    assert reasons(again) == [""]
