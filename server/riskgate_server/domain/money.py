"""Money is a positive whole number of minor units in one ISO 4217 currency; no float touches it."""

from __future__ import annotations

from typing import Final

AMOUNT_MAX_MINOR: Final = 10**15
"""Largest single amount, in minor units. More than a thousand such amounts fit into `TURNOVER_MAX_MINOR`."""

COUNTER_MAX_MINOR: Final = 2**63 - 1
"""Largest value of an account counter, in minor units."""

TURNOVER_MAX_MINOR: Final = 2**60
"""
From here on no account of a line takes a new hold, increment or payment, in minor units.

An eighth of what a counter holds: what must follow from all those before (captures, releases, refunds, returned
payments) still fits, so that an approved hold is honoured to the end.
"""


def checked_amount(amount_minor: int) -> int:
    """
    Return the amount if it is a whole number from 1 to `AMOUNT_MAX_MINOR`.

    Raises:
        TypeError: it is not an int (a float, a bool or a string never becomes money).
        ValueError: it is out of bounds.
    """
    if type(amount_minor) is not int:
        message = f"an amount is an int of minor units, not {type(amount_minor).__name__}"
        raise TypeError(message)
    if not 1 <= amount_minor <= AMOUNT_MAX_MINOR:
        message = f"amount {amount_minor} is outside 1..{AMOUNT_MAX_MINOR} minor units"
        raise ValueError(message)
    return amount_minor
