"""Nobody owes and is owed at once, and a payment that comes back takes back what it paid, early or late."""

from __future__ import annotations

import pytest

from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.ledger import postings
from riskgate_server.engine import sealing
from riskgate_server.engine.bounds import Bounds
from riskgate_server.engine.commands import Command
from riskgate_server.engine.replies import HoldReply, Refusal, Reply
from riskgate_server.engine.verify import verify
from riskgate_server.stores.memory import MemoryStore, MemoryVault
from tests import factories as f


class Desk:
    """A customer with a limit of 1,000."""

    def __init__(self) -> None:
        self.store, self.vault = MemoryStore(), MemoryVault()
        self.pipeline = f.make_pipeline(self.store, vault=self.vault, bounds=Bounds(credits=2, shares=3))
        self.run(f.open_line(limit_minor=1_000))

    def run(self, *commands: Command) -> list[Reply]:
        return self.pipeline.run(commands)

    def buy(self, *purchases: tuple[str, int]) -> list[Reply]:
        """Buy and capture, in this order; return what the captures came to."""
        return [self.run(f.check(name, amount), f.capture(f"take {name}", name))[1] for name, amount in purchases]

    def balances(self) -> tuple[int, int, int]:
        """What the customer owes, is owed, and may spend, once the journal was found to agree."""
        assert verify(self.store, self.vault, Sealer()).faults == []
        with self.store.snapshot() as snapshot:
            row = snapshot.customer((f.TENANT, f.CUSTOMER))
        assert row
        (line,) = sealing.decode_customer(row.key, row.state).lines
        books = line.books
        return postings.outstanding(books), postings.customer_credit(books), postings.available(books)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_payment_returned_after_a_refund_leaves_nothing_owed_and_nothing_to_pay_out(desk: Desk) -> None:
    desk.buy(("t1", 100))
    desk.run(f.pay("p1", 100), f.refund("r1", "t1", 100))
    assert desk.balances() == (0, 100, 1_000)

    desk.run(f.reverse("x1", "p1"))
    assert desk.balances() == (0, 0, 1_000)
    desk.run(f.pay("p2", 5), f.reverse("x2", "p2"))
    (closed,) = desk.run(f.close())
    assert not isinstance(closed, Refusal)


def test_what_is_captured_next_uses_the_credit_first(desk: Desk) -> None:
    desk.run(f.pay("p1", 70))
    (taken,) = desk.buy(("t1", 100))

    assert isinstance(taken, HoldReply)
    assert (taken.purchase.captured_minor, taken.purchase.principal_minor) == (100, 30)
    assert desk.balances() == (30, 0, 970)


def test_a_payment_whose_credit_was_used_takes_that_back_too_when_it_is_returned(desk: Desk) -> None:
    desk.run(f.pay("p1", 70))
    desk.buy(("t1", 50), ("t2", 50))

    desk.run(f.reverse("x1", "p1"))
    assert desk.balances() == (100, 0, 900)


def test_of_two_payments_each_takes_back_its_own(desk: Desk) -> None:
    desk.buy(("t1", 100))
    desk.run(f.pay("p1", 100), f.pay("p2", 60))
    assert desk.balances() == (0, 60, 1_000)

    desk.run(f.reverse("x1", "p1"))
    assert desk.balances() == (40, 0, 960)
    desk.run(f.reverse("x2", "p2"))
    assert desk.balances() == (100, 0, 900)


def test_a_refund_repays_its_own_purchase_then_the_oldest_others_then_the_customer(desk: Desk) -> None:
    desk.buy(("t1", 100), ("t2", 100), ("t3", 300))
    desk.run(f.pay("p1", 50))

    (first,) = desk.run(f.refund("r1", "t3", 120))
    assert isinstance(first, HoldReply)
    assert (first.purchase.principal_minor, first.purchase.refunded_minor) == (180, 120)
    (rest,) = desk.run(f.refund("r2", "t3", 180))
    assert isinstance(rest, HoldReply)
    assert desk.balances() == (150, 0, 850)
    desk.run(f.pay("p2", 110))
    (last,) = desk.run(f.refund("r3", "t1", 100))
    assert isinstance(last, HoldReply)
    assert last.to_credit_minor == 60
    assert desk.balances() == (0, 60, 1_000)


def test_too_many_payments_that_leave_credit_are_refused_and_one_that_leaves_none_is_not(desk: Desk) -> None:
    one, two, three = desk.run(*(f.pay(f"p{n}", 10) for n in range(3)))

    assert not isinstance(one, Refusal)
    assert not isinstance(two, Refusal)
    assert isinstance(three, Refusal)
    assert (three.reason, three.details["allocatable_minor"]) == ("BOUND_REACHED", "0")
    desk.buy(("t1", 100))
    (four,) = desk.run(f.pay("p4", 80))
    assert not isinstance(four, Refusal)
    assert desk.balances() == (0, 0, 1_000)


def test_credit_of_a_payment_with_as_many_shares_as_it_may_have_waits(desk: Desk) -> None:
    desk.run(f.pay("p1", 100))
    desk.buy(("t1", 10), ("t2", 10), ("t3", 10), ("t4", 10))

    assert desk.balances() == (10, 70, 990)
