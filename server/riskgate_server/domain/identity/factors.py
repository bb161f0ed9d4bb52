"""What codes are made for: phones, authenticator apps and written-down codes; and codes under way."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from riskgate_server.domain.identity.grants import Method, Use
from riskgate_server.domain.identity.limits import ProofLimits

FOR_GOOD: Final = 2**62
"""End of a lock that only a new enrolment ends."""


class FactorState(IntEnum):
    """How far a factor has come; equal to `riskgate.identity.v1.FactorState`."""

    PENDING = 1
    ACTIVE = 2
    LOCKED = 3


class Factor(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    Something a customer can prove themselves with by a code. Times in UTC µs, 0 where they do not apply.

    Attributes:
        secret: the number in E.164 for SMS, the seed for TOTP; empty for recovery codes, and of an erased customer.
        mark: keyed hash of the number, by which budgets find it; `prefix` that of the number but for three digits.
        expires_us: when it is forgotten unless it is confirmed; 0 once it is.
        last_step: number of the last accepted 30-second step (RFC 6238); none at or below it is accepted again.
        failures: wrong codes in a row.
        codes: keyed hashes of the recovery codes that are left.
    """

    factor_id: str
    method: Method
    display_name: str
    region: str
    secret: bytes
    mark: bytes
    prefix: bytes
    enrolled_us: int
    expires_us: int
    full_strength_us: int = 0
    last_step: int = 0
    failures: int = 0
    locked_until_us: int = 0
    codes: tuple[bytes, ...] = ()

    def stands(self, now_us: int) -> bool:
        """Whether it is there at all: not pending for too long."""
        return not self.expires_us or now_us < self.expires_us

    def state(self, now_us: int) -> FactorState:
        """Return how far it has come."""
        if self.expires_us:
            return FactorState.PENDING
        return FactorState.LOCKED if now_us < self.locked_until_us else FactorState.ACTIVE


class CodeChallenge(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    A code that was sent. The code itself is nowhere: `key_id` and the random `challenge_id` give it again.

    `ended` is the reason why it is worthless: CHALLENGE_USED, _BURNED, or _SUPERSEDED by a newer one; empty while open.
    """

    challenge_id: str
    factor_id: str
    use: Use
    key_id: int
    sent_us: int
    expires_us: int
    resend_us: int
    wrong: int = 0
    ended: str = ""


def lock_after(failures: int, *, now_us: int, limits: ProofLimits) -> int:
    """
    Return until when a factor is locked after so many wrong proofs in a row; 0 while it is not.

    Doubles from the first lock to the longest; for good once nobody honest would still be trying.
    """
    if failures >= limits.failures_max:
        return FOR_GOOD
    beyond = failures - limits.failures_free
    if beyond < 0:
        return 0
    return now_us + min(limits.first_lock_us << min(beyond, 32), limits.longest_lock_us)
