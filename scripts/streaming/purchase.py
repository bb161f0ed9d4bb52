"""A purchase to stream, and the names that are derived from it."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

ID_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}"
"""What the contract takes as an id."""


class Purchase(msgspec.Struct, frozen=True):
    """One row of a history in the contract's terms. Empty text and None mean "not known"."""

    number: int
    """Its place in the stream, from 1."""
    transaction_id: str
    customer_id: str
    at_us: int
    amount_minor: int
    currency: str
    merchant_id: str
    category_code: str = ""
    country_code: str = ""
    device_id: str = ""
    ip_address: str = ""
    latitude: float | None = None
    longitude: float | None = None
    channel: str = ""
    limit_minor: int = 0
    """Limit of the line that is opened when this is its customer's first purchase."""
    label: str = ""
    """What it truly was: GENUINE, or a kind of fraud; empty when the history does not tell."""


GENUINE: Final = "genuine"


def request_id(verb: str, *names: str) -> str:
    """
    Name an attempt after what it is about, so that repeating a stream repeats the attempts.

    Hashed, since a customer's id alone may be as long as a request id can be.
    """
    digest = hashlib.blake2b("\0".join(names).encode(), digest_size=15).hexdigest()
    return f"{verb}-{digest}"
