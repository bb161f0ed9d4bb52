"""Where a repayment goes: the oldest purchase first, what is left over to customer credit."""

from __future__ import annotations

from collections.abc import Iterable
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
