"""
The settings of proofs: how long, how often, how many.

Bounds follow NIST SP 800-63B-4 (never above 100 wrong codes in a row, a code lives at most 10 minutes), the RTS of
PSD2 (Delegated Regulation 2018/389, article 4: five attempts, then a lock that grows) and OWASP ASVS 5.
"""

from __future__ import annotations

from typing import Final

import msgspec

from riskgate_server.domain.calendar import DAY_US, SECOND_US

MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US


class ProofLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's own; tests choose smaller ones, to meet them. Times in µs."""

    code_lifetime_us: int = 5 * MINUTE_US
    """How long a code that was sent is accepted; sending it again does not move it."""
    code_checks: int = 5
    """Wrong codes that burn a challenge."""
    resend_us: int = 30 * SECOND_US
    """Between two messages with the same code."""
    pending_us: int = 10 * MINUTE_US
    """How long a new factor, or a device to be enrolled, waits for its first proof."""
    challenge_lifetime_us: int = 120 * SECOND_US
    """How long a device may take to answer."""
    challenge_checks: int = 3
    """Wrong answers that burn a device's challenge."""
    grant_lifetime_us: int = 5 * MINUTE_US
    """How long a grant opens what it is for."""
    cool_down_us: int = DAY_US
    """How long a factor that joined others, or came after them, is worth no more than a code."""

    failures_free: int = 5
    """Wrong proofs in a row after which a factor is locked for a time."""
    first_lock_us: int = 30 * SECOND_US
    """The first lock; each further wrong proof doubles it."""
    longest_lock_us: int = HOUR_US
    """No lock for a time is longer."""
    failures_max: int = 20
    """Wrong proofs in a row that lock a factor for good: it is to be enrolled anew."""

    sends_per_customer: int = 5
    """Messages with codes to one customer in ten minutes."""
    sends_per_number: int = 5
    """Messages with codes to one number in ten minutes, whoever's it is."""
    sends_per_number_day: int = 10
    """Messages with codes to one number in a day."""
    numbers_per_prefix_day: int = 10
    """Numbers that differ in their last three digits only, to which one tenant may send in a day."""
    sends_per_country_day: int = 20_000
    """Messages with codes of one tenant to one country in a day."""
    sends_per_tenant_day: int = 50_000
    """Messages with codes of one tenant in a day."""
    wrong_codes_per_tenant_hour: int = 1_000
    """Wrong codes of one tenant's customers in an hour; then none is compared until some of them are an hour old."""

    factors: int = 16
    """Factors a customer may have."""
    devices: int = 16
    """Devices a customer may have."""


PROOF_LIMITS: Final = ProofLimits()
