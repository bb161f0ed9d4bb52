"""What the rules may know of a customer's proofs: changes, right and wrong ones, demands that nobody answered."""

from __future__ import annotations

from typing import Final

import msgspec

from riskgate_server.domain.identity import events
from riskgate_server.domain.identity.devices import Fault
from riskgate_server.domain.identity.grants import Purpose

FAILED_MAX: Final = 10
"""Wrong proofs remembered; more of them in a day say nothing more."""


class Safety(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    Stored with the profile, so new fields go to the end and have a default. Times in UTC µs, 0 for never.

    Attributes:
        changed_us: when a factor or device last joined others, or was revoked.
        passed_us: when a proof was last right.
        failed_us: when proofs were last wrong, oldest first.
        unanswered: purchases that asked for a proof since one was last given for a purchase.
        regressed_us: when a device's counter last went back, as a copied key's does.
    """

    changed_us: int = 0
    passed_us: int = 0
    failed_us: tuple[int, ...] = ()
    unanswered: int = 0
    regressed_us: int = 0


UNTOUCHED: Final = Safety()


def failed_since(safety: Safety, since_us: int) -> int:
    """Return how many proofs were wrong at or after `since_us`, at most `FAILED_MAX`."""
    return sum(at_us >= since_us for at_us in safety.failed_us)


def after(safety: Safety, event: events.IdentityEvent, at_us: int, *, bound: bool) -> Safety:
    """Return what is known after an event. `bound` says that something was confirmed before it."""
    replace = msgspec.structs.replace
    match event:
        case events.FactorConfirmed() | events.DeviceEnrolled() if bound:
            return replace(safety, changed_us=at_us)
        case events.FactorRevoked() | events.RecoveryCodesMade() if bound:
            return replace(safety, changed_us=at_us)
        case events.DevicesRevoked() if event.credential_ids:
            return replace(safety, changed_us=at_us)
        case events.ProofFailed():
            regressed = event.reason == Fault.COUNTER_NOT_GROWN.name
            return replace(
                safety,
                failed_us=(*safety.failed_us, at_us)[-FAILED_MAX:],
                regressed_us=at_us if regressed else safety.regressed_us,
            )
        case events.ProofPassed():
            answered = event.use.purpose is Purpose.TRANSACTION
            return replace(
                safety,
                passed_us=at_us,
                unanswered=0 if answered else safety.unanswered,
                regressed_us=at_us if event.regressed else safety.regressed_us,
            )
    return safety


def asked(safety: Safety) -> Safety:
    """Return what is known after a purchase asked for a proof."""
    return msgspec.structs.replace(safety, unanswered=safety.unanswered + 1)
