"""
Where money from or for the customer goes: the oldest purchase first, what is left over to customer credit.

Nobody owes and is owed at once: credit is used as soon as something is captured or a payment comes
back, so that the next statement finds it used. It remembers which payment it came from, and a share
it pays becomes that payment's own, so that a payment which is returned takes back what it paid,
early or late.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

import msgspec

from riskgate_server.domain.errors import PreconditionFailed
from riskgate_server.domain.ledger.holds import Purchase


class PaymentState(IntEnum):
    """Where a payment is in its life. Written into the store."""

    POSTED = 1
    REVERSED = 2


class Allocation(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The share of a payment that repaid one purchase, in minor units."""

    transaction_id: str
    amount_minor: int


class Payment(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A repayment as booked. Amounts in minor units of the line's currency, times in UTC µs."""

    payment_id: str
    line_id: str
    amount_minor: int
    allocations: tuple[Allocation, ...]
    to_credit_minor: int
    value_us: int
    recorded_us: int
    state: PaymentState = PaymentState.POSTED


class Credit(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Money owed to the customer, in minor units, and the payment it was left by; empty when refunds left it."""

    payment_id: str
    amount_minor: int


class CreditUse(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The part of a `Credit` that repaid one purchase, in minor units."""

    payment_id: str
    transaction_id: str
    amount_minor: int


def add_credit(unused: tuple[Credit, ...], payment_id: str, amount_minor: int) -> tuple[Credit, ...]:
    """Return what is owed to the customer with more of one origin."""
    if not amount_minor:
        return unused
    before = sum(credit.amount_minor for credit in unused if credit.payment_id == payment_id)
    others = tuple(credit for credit in unused if credit.payment_id != payment_id)
    return (*others, Credit(payment_id, before + amount_minor))


def take_credit(unused: tuple[Credit, ...], payment_id: str, amount_minor: int) -> tuple[Credit, ...]:
    """Return what is owed to the customer with less of one origin."""
    less = (
        Credit(credit.payment_id, credit.amount_minor - amount_minor) if credit.payment_id == payment_id else credit
        for credit in unused
    )
    return tuple(credit for credit in less if credit.amount_minor)


def plan_use(
    unused: tuple[Credit, ...], owed: Iterable[Purchase], *, shares: Mapping[str, int], most: int
) -> tuple[CreditUse, ...]:
    """
    Spread the customer's credit over what is owed, the oldest of both first.

    Args:
        shares: how many purchases the payments behind the credit repay already.
        most: how many a payment may; credit beyond that waits to be paid out.
    """
    sources = [(c.payment_id, c.amount_minor, most - shares.get(c.payment_id, 0)) for c in unused]
    sources = [source for source in reversed(sources) if source[2] > 0]
    uses: list[CreditUse] = []
    for purchase in owed:
        needed = purchase.principal_minor
        while needed and sources and len(uses) < most:
            payment_id, left, room = sources.pop()
            amount = min(needed, left)
            uses.append(CreditUse(payment_id, purchase.transaction_id, amount))
            needed -= amount
            if left > amount and room > 1:
                sources.append((payment_id, left - amount, room - 1))
    return tuple(uses)


def allocate(amount_minor: int, owed: Iterable[Purchase], *, most: int) -> tuple[tuple[Allocation, ...], int]:
    """
    Spread a payment over what is owed, in the order given, and return the shares and the rest.

    Raises:
        PreconditionFailed: it would repay more than `most` purchases. Less money may be booked at once; then the
            next part goes on where it ended, so the money lies where one payment would have put it.
    """
    shares: list[Allocation] = []
    rest = amount_minor
    for purchase in owed:
        if not rest:
            break
        share = min(rest, purchase.principal_minor)
        if share and len(shares) == most:
            reason, message = "BOUND_REACHED", f"one payment repays at most {most} purchases: book it in parts"
            raise PreconditionFailed(reason, message, allocatable_minor=str(amount_minor - rest))
        if share:
            shares.append(Allocation(purchase.transaction_id, share))
            rest -= share
    return tuple(shares), rest
