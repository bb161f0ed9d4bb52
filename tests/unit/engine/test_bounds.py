"""No customer holds up the writer or outgrows a reply, and no bound makes an answer wrong."""

from __future__ import annotations

import pytest

from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.holds import HoldState
from riskgate_server.domain.ledger.repayment import Allocation, Payment
from riskgate_server.domain.money import AMOUNT_MAX_MINOR
from riskgate_server.engine import sealing
from riskgate_server.engine.bounds import Bounds
from riskgate_server.engine.commands import Command
from riskgate_server.engine.replies import (
    DecisionReply,
    Failed,
    HoldReply,
    LineReply,
    PaymentReply,
    Refusal,
    Reply,
    Settled,
)
from riskgate_server.engine.verify import verify
from riskgate_server.rpc.convert import payment_to_proto
from riskgate_server.stores.memory import MemoryStore, MemoryVault
from tests import factories as f

REPLY_MAX_BYTES = 4 * 1024 * 1024
"""What a gRPC client takes unless told otherwise."""


class Desk:
    """A customer with room for four open holds, of whose lapsed ones a command ends two."""

    def __init__(self) -> None:
        self.clock = f.FixedClock()
        self.store = MemoryStore()
        self.vault = MemoryVault()
        bounds = Bounds(open_holds=4, lapsed=2, shares=3)
        self.pipeline = f.make_pipeline(self.store, clock=self.clock, vault=self.vault, bounds=bounds)
        self.run(f.open_line(limit_minor=1_000))

    def run(self, *commands: Command) -> list[Reply]:
        return self.pipeline.run(commands)

    def reasons(self, *commands: Command) -> list[str]:
        return [reply.reason if isinstance(reply, Failed | Refusal) else "" for reply in self.run(*commands)]

    def check(self, name: str, amount: int, **fields: str) -> tuple[int, tuple[str, ...], int]:
        """What was held, why not, and what is available afterwards."""
        (reply,) = self.run(f.check(name, amount, **fields))
        assert isinstance(reply, DecisionReply)
        return reply.decided.held_minor, reply.decided.reasons, reply.decided.available_minor

    def ended(self) -> int:
        """How many holds the journal has ended by the clock."""
        with self.store.snapshot() as snapshot:
            entries = snapshot.entries((f.TENANT, f.CUSTOMER), after=0, limit=1_000)
        return sum(sealing.EVENT_TAGS[type(sealing.open_clear(entry).event)] == 6 for entry in entries)


@pytest.fixture
def full() -> Desk:
    """As many holds are open as may be, and all end in a minute."""
    desk = Desk()
    desk.run(*(f.check(f"t{n}", 250, hold_lifetime_us=f.MINUTE_US) for n in range(4)))
    desk.run(f.open_line("second", line_id="second"))
    return desk


def test_a_customer_with_too_many_open_holds_is_declined_until_one_ends(full: Desk) -> None:
    assert full.check("t4", 1, line_id="second")[:2] == (0, ("HOLD_BOUND_REACHED",))
    assert full.check("t5", 0, line_id="second")[1] == ()
    full.run(f.capture("c1", "t0", 100), f.capture("c2", "t1"))

    assert [full.check(f"t{n}", 1, line_id="second")[0] for n in (6, 7)] == [1, 0]
    full.run(f.void("v1", "t2"))
    assert full.check("t8", 1, line_id="second")[0] == 1


def test_a_command_ends_a_few_lapsed_holds_and_counts_the_rest_as_free(full: Desk) -> None:
    full.clock.wait(f.MINUTE_US)

    assert full.check("t4", 1_001, line_id=f.LINE) == (0, ("CREDIT_LIMIT_EXCEEDED",), 1_000)
    assert full.ended() == 2
    (reply,) = full.run(f.place_block("b1", line_id=f.LINE))
    assert isinstance(reply, LineReply)
    assert (postings.held(reply.line.books), full.ended()) == (0, 4)


@pytest.mark.parametrize(
    "use",
    [
        f.check("new", 1_000, line_id=f.LINE),
        f.close(line_id=f.LINE),
        f.pay("p1", 1, line_id=f.LINE),
    ],
    ids=["a purchase of all there is", "closing", "a payment"],
)
def test_what_waits_to_be_ended_stands_in_nobodys_way(full: Desk, use: Command) -> None:
    full.clock.wait(f.MINUTE_US)
    (reply,) = full.run(use)

    assert full.ended() == 2
    assert not isinstance(reply, Failed | Refusal)
    if isinstance(reply, PaymentReply):
        assert reply.available_minor == 1_000
    while full.run(f.settle()) != [Settled(0)]:
        pass
    assert full.ended() == 4
    assert verify(full.store, full.vault, Sealer()).faults == []


@pytest.mark.parametrize("name", ["t0", "t3"])
def test_the_hold_a_command_names_is_ended_first(full: Desk, name: str) -> None:
    full.clock.wait(f.MINUTE_US)

    assert full.reasons(f.capture("c1", name)) == ["HOLD_EXPIRED"]


def test_an_open_hold_may_grow_into_what_waits_to_be_ended() -> None:
    desk = Desk()
    desk.run(*(f.check(f"t{n}", 250, hold_lifetime_us=f.MINUTE_US) for n in range(3)), f.check("t3", 250))
    desk.clock.wait(f.MINUTE_US)
    (reply,) = desk.run(f.increment("i1", "t3", 750))

    assert isinstance(reply, HoldReply)
    assert (reply.purchase.state, reply.purchase.remaining_minor) == (HoldState.PENDING, 1_000)


def test_the_sweeper_comes_again_for_what_was_left(full: Desk) -> None:
    full.clock.wait(f.MINUTE_US)
    full.run(f.settle())

    assert list(full.store.customers_due(full.clock.us, 9)) == [(f.TENANT, f.CUSTOMER)]
    full.run(f.settle())
    assert list(full.store.customers_due(full.clock.us, 9)) == []


def test_a_payment_over_too_many_purchases_is_booked_in_parts() -> None:
    desk = Desk()
    desk.run(*(command for n in range(4) for command in (f.check(f"t{n}", 100), f.capture(f"c{n}", f"t{n}"))))

    refused, first, rest = desk.run(f.pay("p1", 400), f.pay("p2", 300), f.pay("p3", 100))
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.details["allocatable_minor"]) == ("BOUND_REACHED", "300")
    assert isinstance(first, PaymentReply)
    assert isinstance(rest, PaymentReply)
    assert [share.transaction_id for share in (*first.payment.allocations, *rest.payment.allocations)] == [
        "t0", "t1", "t2", "t3",
    ]  # fmt: skip


def test_the_largest_payment_fits_into_a_reply() -> None:
    shares = tuple(Allocation(f"{n:064}", AMOUNT_MAX_MINOR) for n in range(Bounds().shares))
    payment = Payment("p" * 64, "l" * 64, AMOUNT_MAX_MINOR, shares, 0, f.NOW_US, f.NOW_US)
    reply = PaymentReply(("t" * 63, "c" * 64), f.CURRENCY, payment, 0)

    assert payment_to_proto(reply).ByteSize() < REPLY_MAX_BYTES
