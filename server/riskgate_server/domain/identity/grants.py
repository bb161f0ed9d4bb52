"""
Evidence that a customer proved themselves: opaque, for one use, for one purpose, and for one purchase if any.

A grant is bound to amount and payee by the keyed digest that the purchase is stored with (Delegated Regulation
2018/389, article 5: dynamic linking). It is a bearer secret, so only its hash is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

import msgspec


class Purpose(IntEnum):
    """What a proof is asked for; equal to `riskgate.identity.v1.ProofPurpose`."""

    TRANSACTION = 1
    BINDING = 2
    SIGN_IN = 3
    UNLOCK = 4
    LIMIT_OFFER = 5


class Method(IntEnum):
    """What a customer proves themselves with; equal to `riskgate.identity.v1.FactorKind`."""

    SMS = 1
    TOTP = 2
    DEVICE_KEY = 3
    RECOVERY_CODE = 4


def mask_of(*methods: Method) -> int:
    """Return kinds of factor as bits, as a purchase keeps those that may answer for it."""
    return sum(1 << method for method in methods)


ANY_METHOD = mask_of(Method.SMS, Method.TOTP, Method.DEVICE_KEY)
"""What may answer for a purchase; a spare code restores access, it buys nothing."""


class Use(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a proof is for: a purpose and, for TRANSACTION, the purchase with the digest of its terms."""

    purpose: Purpose
    transaction_id: str = ""
    terms: bytes = b""


class Source(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A factor or device that was proven."""

    method: Method
    id: str


class Grant(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    An unspent grant.

    Attributes:
        mark: SHA-256 of its token.
        level: 1 (a code), 2 (a device key, or two different kinds of factor), 3 (an attested, device-bound key).
        expires_us: when it becomes worthless, UTC µs.
    """

    mark: bytes
    use: Use
    level: int
    sources: tuple[Source, ...]
    expires_us: int


CODE_LEVEL = 1
TWO_FACTORS_LEVEL = 2


ALWAYS: Final = 0
NEVER: Final = 2**62

CountsFrom = Callable[[Source], int]
"""From when on a factor or device counts where a grant is offered, UTC µs; `ALWAYS` or `NEVER`."""


def anything(_source: Source) -> int:
    """Let every factor and device count."""
    return ALWAYS


def of_methods(methods: int) -> CountsFrom:
    """Let only some kinds of factor count (`mask_of`)."""
    return lambda source: ALWAYS if methods & mask_of(source.method) else NEVER


def level_by(grant: Grant, counts_from: CountsFrom, now_us: int) -> int:
    """Return how strong a grant is where only some of what it rests on counts; 0 if none of it does."""
    counting = [source for source in grant.sources if counts_from(source) <= now_us]
    counted = {source.method for source in counting}
    if len(counting) == len(grant.sources):
        return grant.level
    # What is left of a pair is no pair, yet a device key is strong alone.
    if Method.DEVICE_KEY in counted:
        return TWO_FACTORS_LEVEL
    return CODE_LEVEL if counted else 0


def reaches_level_us(grant: Grant, counts_from: CountsFrom, level: int, now_us: int) -> int:
    """Return from when on a grant by the same factors and devices is of a level, UTC µs; `NEVER` if at no time."""
    times = sorted({max(counts_from(source), now_us) for source in grant.sources} - {NEVER})
    return next((at_us for at_us in times if level_by(grant, counts_from, at_us) >= level), NEVER)


def combined(grants: tuple[Grant, ...], use: Use, source: Source, level: int, now_us: int) -> Grant | None:
    """
    Return the grant that a proof by `source` strengthens: unspent, for the same use, by another kind of factor.

    Two different kinds together are level 2, whatever each is alone; a proof that is as strong alone needs no other.
    A kind that is in the grant already does not renew it, or the other proof in it would never end.
    """
    if level >= TWO_FACTORS_LEVEL:
        return None
    for grant in reversed(grants):
        another_kind = all(s.method is not source.method for s in grant.sources)
        if grant.use == use and now_us < grant.expires_us and another_kind:
            return grant
    return None
