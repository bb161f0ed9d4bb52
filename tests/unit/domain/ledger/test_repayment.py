from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskgate_server.domain.errors import PreconditionFailed
from riskgate_server.domain.ledger.holds import HoldState, Purchase
from riskgate_server.domain.ledger.repayment import (
    Allocation,
    Credit,
    CreditUse,
    add_credit,
    allocate,
    plan_use,
    take_credit,
)


def owing(name: str, principal_minor: int) -> Purchase:
    return Purchase(name, "line-1", b"", 1, state=HoldState.CAPTURED, principal_minor=principal_minor)


def spread(amount_minor: int, owed: list[Purchase]) -> tuple[tuple[Allocation, ...], int]:
    return allocate(amount_minor, owed, most=20)


def test_the_first_in_line_is_repaid_before_the_next_gets_anything() -> None:
    shares, rest = spread(150, [owing("a", 100), owing("b", 100)])

    assert shares == (Allocation("a", 100), Allocation("b", 50))
    assert rest == 0


def test_what_nobody_owes_is_left_over() -> None:
    assert spread(150, [owing("a", 100)]) == ((Allocation("a", 100),), 50)
    assert spread(150, []) == ((), 150)


def test_purchases_that_owe_nothing_get_no_share() -> None:
    assert spread(10, [owing("a", 0), owing("b", 10)]) == ((Allocation("b", 10),), 0)


def test_a_payment_that_would_repay_too_many_purchases_says_how_much_may_be_booked() -> None:
    owed = [owing(name, 100) for name in "abc"]

    with pytest.raises(PreconditionFailed) as error:
        allocate(201, owed, most=2)
    assert (error.value.reason, error.value.details["allocatable_minor"]) == ("BOUND_REACHED", "200")
    assert allocate(200, owed, most=2)[1] == 0
    # What nobody owes needs no share.
    assert allocate(900, [*owed[:2], owing("d", 0)], most=2)[1] == 700


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.integers(1, 10**15), st.lists(st.integers(0, 10**15), max_size=20))
def test_shares_and_rest_are_the_payment_to_the_last_unit(amount: int, debts: list[int]) -> None:
    purchases = [owing(f"t{n:02}", debt) for n, debt in enumerate(debts)]

    shares, rest = spread(amount, purchases)

    assert sum(share.amount_minor for share in shares) + rest == amount
    owed = {p.transaction_id: p.principal_minor for p in purchases}
    assert all(0 < share.amount_minor <= owed[share.transaction_id] for share in shares)
    # Only the last share may be less than what was owed, and nothing is left while anything is owed.
    assert all(share.amount_minor == owed[share.transaction_id] for share in shares[:-1])
    assert rest == max(amount - sum(debts), 0)


# --- Money owed to the customer. ---


def test_credit_is_kept_apart_by_the_payment_that_left_it() -> None:
    unused = add_credit(add_credit(add_credit((), "p1", 5), "", 7), "", 3)

    assert unused == (Credit("p1", 5), Credit("", 10))
    assert add_credit(unused, "p2", 0) == unused
    assert take_credit(unused, "", 4) == (Credit("p1", 5), Credit("", 6))
    assert take_credit(unused, "p1", 5) == (Credit("", 10),)


def test_the_oldest_credit_repays_the_oldest_debt() -> None:
    unused = (Credit("p1", 30), Credit("", 100))

    uses = plan_use(unused, [owing("a", 20), owing("b", 0), owing("c", 50)], shares={}, most=9)

    assert uses == (CreditUse("p1", "a", 20), CreditUse("p1", "c", 10), CreditUse("", "c", 40))


def test_a_payment_that_repays_as_many_purchases_as_it_may_keeps_the_rest_of_its_credit() -> None:
    owed = [owing(name, 10) for name in "abcd"]

    assert plan_use((Credit("p1", 90),), owed, shares={"p1": 2}, most=3) == (CreditUse("p1", "a", 10),)
    assert plan_use((Credit("p1", 90),), owed, shares={"p1": 3}, most=3) == ()
    assert [use.payment_id for use in plan_use((Credit("p1", 90), Credit("", 9)), owed, shares={"p1": 2}, most=3)] == [
        "p1", "",
    ]  # fmt: skip
