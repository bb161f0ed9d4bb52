"""Who moves the data's clock, and who does not."""

from __future__ import annotations

from riskgate_server.engine.clocks import DataClock
from riskgate_server.engine.commands import Command
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.replies import DecisionReply
from riskgate_server.stores.memory import MemoryStore
from tests import factories as f
from tests.simulation.faults import Fault, FaultyStore

FAR_US = f.NOW_US + 1_000 * f.DAY_US


class Feed:
    """A server whose clock the data drives, with a customer of each of two tenants."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.memory = MemoryStore()
        self.clock = DataClock(f.NOW_US)
        store = FaultyStore(self.memory, lambda: self.faults.pop(0) if self.faults else Fault.NONE)
        self.pipeline: Pipeline = f.make_pipeline(store, clock=self.clock)
        self.pipeline.run([f.open_line(), f.open_line(tenant_id="zeta")])

    def run(self, *commands: Command) -> None:
        self.pipeline.run(commands)

    def available(self) -> int:
        """What the first tenant's customer may spend."""
        (reply,) = self.pipeline.run([f.check("look", 0, validate_only=True)])
        assert isinstance(reply, DecisionReply)
        return reply.decided.available_minor


def test_what_is_carried_out_moves_the_clock() -> None:
    feed = Feed()
    feed.run(f.check("t1", 600, event_us=FAR_US), f.check("t2", 1, tenant_id="zeta", event_us=FAR_US - 1))

    assert feed.clock.now_us() == FAR_US


def test_what_only_asks_or_is_refused_passes_no_time_for_anybody() -> None:
    feed = Feed()
    feed.run(f.check("t1", 600), f.check("t1", 600, tenant_id="zeta", event_us=f.NOW_US))

    for command in (
        f.check("t2", 1, tenant_id="zeta", event_us=FAR_US, validate_only=True),
        f.check("t2", 1, tenant_id="zeta", customer_id="nobody", event_us=FAR_US),
        f.check("t1", 601, tenant_id="zeta", event_us=FAR_US, request_id="other terms"),
        f.check("t3", 1, tenant_id="zeta", event_us=FAR_US, currency="USD"),
        f.open_line(tenant_id="zeta", event_us=FAR_US, request_id="twice"),
        f.check("t1", 600, tenant_id="zeta", event_us=f.NOW_US),
    ):
        feed.run(command, f.settle())

    assert feed.clock.now_us() == f.NOW_US
    assert feed.available() == 100_000 - 600


def test_a_batch_that_is_rolled_back_passes_no_time() -> None:
    feed = Feed()
    feed.faults = [Fault.FULL_AT_COMMIT]
    feed.run(f.check("t1", 600, event_us=FAR_US))

    assert feed.clock.now_us() == f.NOW_US


def test_a_history_comes_to_the_same_in_one_batch_and_in_many() -> None:
    history = [
        f.check("t1", 600, event_us=f.NOW_US + f.DAY_US, hold_lifetime_us=f.HOUR_US),
        f.check("t2", 100_000),
        f.check("t3", 1, event_us=FAR_US, tenant_id="zeta", validate_only=True),
        f.check("t4", 100_000, event_us=f.NOW_US + 2 * f.DAY_US),
        f.check("t5", 1, tenant_id="zeta"),
        f.check("t6", 1, event_us=FAR_US),
        f.pay("p1", 50, tenant_id="zeta"),
    ]
    whole, parts = Feed(), Feed()
    whole.run(*history)
    for command in history:
        parts.run(command)

    found = [[(e.key, e.sequence, e.at_us, e.clear) for e in feed.memory._tables.journal] for feed in (whole, parts)]
    assert found[0] == found[1]
    assert whole.clock.now_us() == parts.clock.now_us() == FAR_US
