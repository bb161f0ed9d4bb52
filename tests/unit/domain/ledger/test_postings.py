from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.postings import EMPTY_BOOKS, Account, Books, Layer, Transfer
from riskgate_server.domain.money import AMOUNT_MAX_MINOR, COUNTER_MAX_MINOR, checked_amount

amounts = st.integers(1, AMOUNT_MAX_MINOR)
parts = st.integers(0, AMOUNT_MAX_MINOR)

TEMPLATES = st.one_of(
    st.builds(postings.grant_limit, amounts),
    st.builds(postings.withdraw_limit, amounts),
    st.builds(postings.authorise, amounts),
    st.builds(postings.release, amounts),
    st.builds(postings.draw, amounts),
    st.builds(postings.capture, amounts, parts),
    st.builds(postings.refund, parts, parts),
    st.builds(postings.payment, parts, parts),
)


def after(*steps: tuple[Transfer, ...]) -> Books:
    books = EMPTY_BOOKS
    for transfers in steps:
        books = postings.post(books, transfers)
    return books


def shown(books: Books) -> dict[str, int]:
    return {
        "limit": postings.limit(books),
        "available": postings.available(books),
        "held": postings.held(books),
        "outstanding": postings.outstanding(books),
        "credit": postings.customer_credit(books),
    }


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.lists(TEMPLATES, max_size=30))
def test_whatever_is_booked_debits_equal_credits_and_counters_only_grow(steps: list[tuple[Transfer, ...]]) -> None:
    """Invariants 2, 3 and 18."""
    books = EMPTY_BOOKS
    for transfers in steps:
        before, books = books, postings.post(books, transfers)
        assert all(old <= new for old, new in zip(before, books, strict=True))
        for layer in Layer:
            assert sum(postings.debit_balance(books, account, layer) for account in Account) == 0
        assert -postings.debit_balance(books, Account.DRAWN) == postings.outstanding(books)
        assert postings.debit_balance(books, Account.PAYMENT_SUSPENSE) == 0


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.lists(TEMPLATES, max_size=10), TEMPLATES)
def test_a_mirror_undoes_what_was_booked(history: list[tuple[Transfer, ...]], step: tuple[Transfer, ...]) -> None:
    before = after(*history)
    undone = after(*history, step, postings.mirror(step))

    assert shown(undone) == shown(before)
    for account in Account:
        for layer in Layer:
            assert postings.debit_balance(undone, account, layer) == postings.debit_balance(before, account, layer)


def test_a_limit_is_what_may_be_owed_and_held_together() -> None:
    books = after(postings.grant_limit(1_000))

    assert shown(books) == {"limit": 1_000, "available": 1_000, "held": 0, "outstanding": 0, "credit": 0}


def test_a_hold_takes_from_what_is_available_and_owes_nothing() -> None:
    books = after(postings.grant_limit(1_000), postings.authorise(300))

    assert shown(books) == {"limit": 1_000, "available": 700, "held": 300, "outstanding": 0, "credit": 0}


def test_a_capture_turns_the_hold_into_a_debt_and_gives_back_the_rest() -> None:
    books = after(postings.grant_limit(1_000), postings.authorise(300), postings.capture(200, 100))

    assert shown(books) == {"limit": 1_000, "available": 800, "held": 0, "outstanding": 200, "credit": 0}


def test_a_release_gives_the_credit_back() -> None:
    books = after(postings.grant_limit(1_000), postings.authorise(300), postings.release(300))

    assert shown(books)["available"] == 1_000


def test_a_forced_draw_may_take_more_than_is_available() -> None:
    books = after(postings.grant_limit(100), postings.draw(150))

    assert shown(books) == {"limit": 100, "available": -50, "held": 0, "outstanding": 150, "credit": 0}


def test_a_payment_frees_the_limit_and_what_is_left_is_the_customers() -> None:
    books = after(postings.grant_limit(1_000), postings.draw(300), postings.payment(300, 40))

    assert shown(books) == {"limit": 1_000, "available": 1_000, "held": 0, "outstanding": 0, "credit": 40}


def test_a_refund_reduces_the_debt_and_what_is_left_is_the_customers() -> None:
    books = after(postings.grant_limit(1_000), postings.draw(300), postings.refund(300, 25))

    assert shown(books) == {"limit": 1_000, "available": 1_000, "held": 0, "outstanding": 0, "credit": 25}


def test_a_limit_that_is_withdrawn_is_gone() -> None:
    assert shown(after(postings.grant_limit(500), postings.withdraw_limit(500)))["limit"] == 0


def test_templates_leave_out_transfers_of_nothing() -> None:
    assert postings.refund(0, 0) == ()
    assert len(postings.payment(5, 0)) == 3
    assert all(t.amount_minor for t in postings.capture(5, 0))


@pytest.mark.parametrize("amount", [0, -1])
def test_a_transfer_of_nothing_or_less_is_refused(amount: int) -> None:
    transfer = Transfer(Account.UNUSED, Account.DRAWN, Layer.PENDING, amount)

    with pytest.raises(ValueError, match="minor units"):
        postings.post(EMPTY_BOOKS, (transfer,))


def test_a_counter_never_leaves_64_bits() -> None:
    whole = Transfer(Account.UNUSED, Account.DRAWN, Layer.PENDING, COUNTER_MAX_MINOR)
    one = Transfer(Account.UNUSED, Account.CASH, Layer.PENDING, 1)
    books = postings.post(EMPTY_BOOKS, (whole,))

    assert max(books) == COUNTER_MAX_MINOR
    with pytest.raises(ValueError, match="64 bits"):
        postings.post(books, (one,))


def test_accounts_and_layers_keep_their_numbers_for_ever() -> None:
    """They are written into the journal."""
    assert [(a.name, a.value) for a in Account] == [
        ("COMMITMENT", 0),
        ("UNUSED", 1),
        ("DRAWN", 2),
        ("PRINCIPAL_OPEN", 3),
        ("CASH", 4),
        ("MERCHANT_PAYABLE", 5),
        ("PAYMENT_SUSPENSE", 6),
        ("CUSTOMER_CREDIT", 7),
    ]
    assert [(layer.name, layer.value) for layer in Layer] == [("PENDING", 0), ("POSTED", 1)]
    assert set(postings.ACCOUNT_CODES) == set(Account)


# --- Amounts (invariant 10). ---


@pytest.mark.parametrize("amount", [1, AMOUNT_MAX_MINOR])
def test_an_amount_is_a_whole_number_of_minor_units(amount: int) -> None:
    assert checked_amount(amount) == amount


@pytest.mark.parametrize("amount", [0, -1, AMOUNT_MAX_MINOR + 1, 2**63])
def test_an_amount_out_of_bounds_is_refused(amount: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        checked_amount(amount)


@pytest.mark.parametrize("amount", [1.0, True, "1", None, 1e15, float("nan")])
def test_what_is_not_a_whole_number_never_becomes_money(amount: object) -> None:
    with pytest.raises(TypeError):
        checked_amount(amount)  # type: ignore[arg-type] # the claim is about what types do not stop
