"""
The chart of accounts of one credit line, and every movement that may be booked on it.

The limit lives inside the double entry, as an off-balance-sheet pair: what may still be used
(`UNUSED`) and what is drawn (`DRAWN`). A hold is a pending transfer from one to the other, so
available credit is `unused - held` and no other code computes it.

A movement is a *transfer* from a debit account to a credit account, so debits equal credits by
construction. Every account has four counters (pending and posted, debit and credit) that only
grow; a release is a pending transfer the other way round, never a subtraction.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from riskgate_server.domain.errors import PreconditionFailed
from riskgate_server.domain.money import COUNTER_MAX_MINOR, TURNOVER_MAX_MINOR


class Account(IntEnum):
    """Accounts of one line. The numbers are written into the journal: they never change meaning."""

    COMMITMENT = 0
    UNUSED = 1
    DRAWN = 2
    PRINCIPAL_OPEN = 3
    CASH = 4
    MERCHANT_PAYABLE = 5
    PAYMENT_SUSPENSE = 6
    CUSTOMER_CREDIT = 7


ACCOUNT_CODES: Final = {
    Account.COMMITMENT: "M.commitment",
    Account.UNUSED: "M.unused",
    Account.DRAWN: "M.drawn",
    Account.PRINCIPAL_OPEN: "A.principal.open",
    Account.CASH: "A.cash",
    Account.MERCHANT_PAYABLE: "L.merchant_payable",
    Account.PAYMENT_SUSPENSE: "L.payment_suspense",
    Account.CUSTOMER_CREDIT: "L.customer_credit",
}


class Layer(IntEnum):
    """Pending transfers reserve; posted transfers move for good. Written into the journal."""

    PENDING = 0
    POSTED = 1


class Transfer(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """`amount_minor` from `debit` to `credit` on one layer; always above zero."""

    debit: Account
    credit: Account
    layer: Layer
    amount_minor: int


Books = tuple[int, ...]
"""All counters of one line, `_WIDTH` per account: pending debit, pending credit, posted debit, posted credit."""

_WIDTH: Final = 4
EMPTY_BOOKS: Final[Books] = (0,) * (_WIDTH * len(Account))


def post(books: Books, transfers: tuple[Transfer, ...]) -> Books:
    """
    Add transfers to the counters.

    Raises:
        ValueError: an amount is not above zero, or a counter would leave 64 bits.
    """
    counters = list(books)
    for debit, credit, layer, amount in ((t.debit, t.credit, t.layer, t.amount_minor) for t in transfers):
        if amount <= 0:
            message = f"a transfer of {amount} minor units"
            raise ValueError(message)
        offset = 2 * layer
        for index in (_WIDTH * debit + offset, _WIDTH * credit + offset + 1):
            counters[index] += amount
            if counters[index] > COUNTER_MAX_MINOR:
                message = f"counter {index} would leave 64 bits"
                raise ValueError(message)
    return tuple(counters)


def has_room(books: Books, amount_minor: int) -> bool:
    """Whether `amount_minor` may begin to move: counters only grow, and what follows from it must fit too."""
    return max(books) + amount_minor <= TURNOVER_MAX_MINOR


def require_room(books: Books, amount_minor: int) -> None:
    """Raise `PreconditionFailed` unless `amount_minor` may begin to move on the line."""
    if not has_room(books, amount_minor):
        reason, message = "BOUND_REACHED", "the line has moved as much as one line may"
        raise PreconditionFailed(reason, message)


def debit_balance(books: Books, account: Account, layer: Layer = Layer.POSTED) -> int:
    """Debits minus credits of one account on one layer, in minor units."""
    at = _WIDTH * account + 2 * layer
    return books[at] - books[at + 1]


# Where the three that every purchase asks for lie: working it out each time costs five times the subtraction.
_HELD: Final = _WIDTH * Account.UNUSED + 2 * Layer.PENDING
_UNUSED: Final = _WIDTH * Account.UNUSED + 2 * Layer.POSTED
_DRAWN: Final = _WIDTH * Account.DRAWN + 2 * Layer.POSTED


def held(books: Books) -> int:
    """Credit reserved by open holds, in minor units."""
    return books[_HELD] - books[_HELD + 1]


def available(books: Books) -> int:
    """Credit a new hold may take, in minor units; negative only after a forced posting or a returned payment."""
    return books[_UNUSED + 1] - books[_UNUSED] - held(books)


def limit(books: Books) -> int:
    """What may be owed and held together, in minor units: unused plus drawn."""
    return books[_UNUSED + 1] - books[_UNUSED] + books[_DRAWN + 1] - books[_DRAWN]


def outstanding(books: Books) -> int:
    """Principal captured and not yet repaid, in minor units."""
    return debit_balance(books, Account.PRINCIPAL_OPEN)


def customer_credit(books: Books) -> int:
    """Money owed to the customer, in minor units."""
    return -debit_balance(books, Account.CUSTOMER_CREDIT)


# --- Journal templates: one function per event of the business, in the order of a purchase's life. ---


def _moves(*rows: tuple[Account, Account, Layer, int]) -> tuple[Transfer, ...]:
    return tuple(Transfer(*row) for row in rows if row[3])


def grant_limit(amount: int) -> tuple[Transfer, ...]:
    """Commit `amount` to the customer."""
    return _moves((Account.COMMITMENT, Account.UNUSED, Layer.POSTED, amount))


def withdraw_limit(amount: int) -> tuple[Transfer, ...]:
    """Take back `amount` of unused limit."""
    return _moves((Account.UNUSED, Account.COMMITMENT, Layer.POSTED, amount))


def authorise(amount: int) -> tuple[Transfer, ...]:
    """Reserve `amount` of the unused limit."""
    return _moves((Account.UNUSED, Account.DRAWN, Layer.PENDING, amount))


def release(amount: int) -> tuple[Transfer, ...]:
    """Give back `amount` of a reservation: void, expiry, or the rest after a final capture."""
    return _moves((Account.DRAWN, Account.UNUSED, Layer.PENDING, amount))


def draw(amount: int) -> tuple[Transfer, ...]:
    """Lend `amount` to the customer and owe it to the merchant. Alone it is the forced capture."""
    return _moves(
        (Account.UNUSED, Account.DRAWN, Layer.POSTED, amount),
        (Account.PRINCIPAL_OPEN, Account.MERCHANT_PAYABLE, Layer.POSTED, amount),
    )


def capture(amount: int, released: int) -> tuple[Transfer, ...]:
    """Turn `amount` of a reservation into a loan and give back `released` of it."""
    return release(amount + released) + draw(amount)


def refund(to_principal: int, to_credit: int) -> tuple[Transfer, ...]:
    """Take money back from the merchant: against what is still owed, the rest owed to the customer."""
    return _moves(
        (Account.MERCHANT_PAYABLE, Account.PRINCIPAL_OPEN, Layer.POSTED, to_principal),
        (Account.DRAWN, Account.UNUSED, Layer.POSTED, to_principal),
        (Account.MERCHANT_PAYABLE, Account.CUSTOMER_CREDIT, Layer.POSTED, to_credit),
    )


def payment(to_principal: int, to_credit: int) -> tuple[Transfer, ...]:
    """Receive money and allocate all of it, so that suspense is empty after every payment."""
    return _moves(
        (Account.CASH, Account.PAYMENT_SUSPENSE, Layer.POSTED, to_principal + to_credit),
        (Account.PAYMENT_SUSPENSE, Account.PRINCIPAL_OPEN, Layer.POSTED, to_principal),
        (Account.DRAWN, Account.UNUSED, Layer.POSTED, to_principal),
        (Account.PAYMENT_SUSPENSE, Account.CUSTOMER_CREDIT, Layer.POSTED, to_credit),
    )


def use_credit(amount: int) -> tuple[Transfer, ...]:
    """Repay `amount` of what is owed with money owed to the customer."""
    return _moves(
        (Account.CUSTOMER_CREDIT, Account.PRINCIPAL_OPEN, Layer.POSTED, amount),
        (Account.DRAWN, Account.UNUSED, Layer.POSTED, amount),
    )


def mirror(transfers: tuple[Transfer, ...]) -> tuple[Transfer, ...]:
    """Undo transfers by new ones: the same amounts, the other way, last one first."""
    return tuple(Transfer(t.credit, t.debit, t.layer, t.amount_minor) for t in reversed(transfers))
