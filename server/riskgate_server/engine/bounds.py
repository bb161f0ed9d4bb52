"""How much one customer, one command or one payment may be: nobody holds up the writer or outgrows a reply."""

from __future__ import annotations

import msgspec

from riskgate_server.domain.identity.limits import PROOF_LIMITS, ProofLimits


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's own; tests choose smaller ones, to meet them."""

    open_holds: int = 10_000
    """Holds of one customer that may be open at once; one more purchase is declined."""

    lapsed: int = 200
    """Lapsed holds that one command ends. The rest stay due, and their credit counts as free meanwhile."""

    credits: int = 64
    """Payments that may have left credit on one line; one more that would is refused."""

    shares: int = 5_000
    """Purchases that one payment repays: under half a megabyte of reply."""

    proofs: ProofLimits = PROOF_LIMITS
    """How long, how often and how many, of codes and devices."""
