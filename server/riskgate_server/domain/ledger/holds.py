"""
One purchase and the credit it reserves: at most one hold per transaction id, at most one ending.

A purchase that was declined or waits for a stronger proof has no hold (`HoldState.NONE`). The
hold's identity is the purchase's transaction id. At every moment

    authorised = captured + released + expired + remaining

and what is taken by force after the end is counted apart, in `forced_minor`.

`review_deadline_us` is above zero from the moment a purchase is put under review until a reviewer
passes it, and for ever if none does: such a hold is never captured, open or ended.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from riskgate_server.domain.errors import PreconditionFailed


class HoldState(IntEnum):
    """Where a hold is in its life. Written into the store: numbers never change meaning."""

    NONE = 0
    PENDING = 1
    CAPTURED = 2
    VOIDED = 3
    EXPIRED = 4


class Purchase(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A purchase as last decided, with its hold. Amounts in minor units of the line's currency, times in UTC µs."""

    transaction_id: str
    line_id: str
    terms: bytes
    decision_sequence: int
    state: HoldState = HoldState.NONE
    authorised_minor: int = 0
    captured_minor: int = 0
    released_minor: int = 0
    expired_minor: int = 0
    forced_minor: int = 0
    refunded_minor: int = 0
    principal_minor: int = 0
    placed_us: int = 0
    expires_us: int = 0
    review_deadline_us: int = 0
    step_up_expires_us: int = 0
    owed_since: int = 0
    event_us: int = 0
    step_up_level: int = 0
    step_up_methods: int = 0

    @property
    def remaining_minor(self) -> int:
        """Still reserved."""
        return self.authorised_minor - self.captured_minor - self.released_minor - self.expired_minor

    @property
    def lapses_us(self) -> int:
        """When the clock ends the hold: its own expiry, or the reviewer's deadline if that comes first."""
        if self.review_deadline_us:
            return min(self.expires_us, self.review_deadline_us)
        return self.expires_us

    @property
    def is_open(self) -> bool:
        """Whether the books still reserve credit for it."""
        return self.state is HoldState.PENDING

    def lapsed(self, now_us: int) -> bool:
        """Whether the hold is over at `now_us`, whatever the books say yet. At its very expiry it is."""
        return self.state is HoldState.PENDING and now_us >= self.lapses_us


class CaptureTerms(msgspec.Struct, frozen=True, gc=False):
    """What a capture will book."""

    captured_minor: int
    released_minor: int
    forced: bool


_ENDED = {
    HoldState.CAPTURED: ("HOLD_ALREADY_CAPTURED", "the hold was captured"),
    HoldState.VOIDED: ("HOLD_VOIDED", "the hold was voided"),
    HoldState.EXPIRED: ("HOLD_EXPIRED", "the hold expired"),
}


def require_pending(purchase: Purchase) -> None:
    """Raise `PreconditionFailed` unless the hold is open."""
    if purchase.state is not HoldState.PENDING:
        raise PreconditionFailed(*_ENDED[purchase.state], hold_id=purchase.transaction_id)


def require_reviewed(purchase: Purchase) -> None:
    """Raise `PreconditionFailed` while a reviewer has yet to decide."""
    if purchase.review_deadline_us:
        reason, message = "HOLD_UNDER_REVIEW", "a reviewer must decide first"
        raise PreconditionFailed(reason, message, hold_id=purchase.transaction_id)


def plan_capture(purchase: Purchase, *, amount_minor: int | None, final: bool, force: bool) -> CaptureTerms:
    """
    Say what a capture takes, without looking at the line: an approved hold is always honoured.

    Force is for a late presentment: the merchant was promised the money and asks after the clock took the promise
    back. It is posted, never lost, even on a line that was closed since (the customer then owes on it and repays it
    like any other). What the caller gave up, by voiding or by a final capture, is promised to nobody.

    Args:
        amount_minor: what to take; None means all that remains (or, by force, all that expired and was never taken).
        final: release the rest.
        force: take from a hold that has ended, up to what the clock gave up.

    Raises:
        PreconditionFailed: the hold has ended, was never passed by the reviewer it needs, or has less left than asked
            for.
    """
    if purchase.state is HoldState.PENDING:
        require_reviewed(purchase)
        bound, forced = purchase.remaining_minor, False
    elif force and purchase.review_deadline_us:
        reason, message = "REVIEW_NOT_PASSED", "the hold ended before a reviewer passed it"
        raise PreconditionFailed(reason, message, hold_id=purchase.transaction_id)
    elif force and purchase.expired_minor:
        bound, forced = purchase.expired_minor - purchase.forced_minor, True
    else:
        require_pending(purchase)
        raise AssertionError(purchase.state)
    amount = bound if amount_minor is None else amount_minor
    if not 0 < amount <= bound:
        reason, message = "AMOUNT_EXCEEDS_HOLD", "more than the hold has left"
        raise PreconditionFailed(reason, message, hold_id=purchase.transaction_id, remaining_minor=str(bound))
    released = bound - amount if final and not forced else 0
    return CaptureTerms(captured_minor=amount, released_minor=released, forced=forced)


def require_refundable(purchase: Purchase, amount_minor: int) -> None:
    """Raise `PreconditionFailed` when it is more than was captured and not yet refunded, in minor units."""
    refundable = purchase.captured_minor + purchase.forced_minor - purchase.refunded_minor
    if amount_minor > refundable:
        reason, message = "AMOUNT_EXCEEDS_CAPTURE", "more than was captured and not yet refunded"
        raise PreconditionFailed(reason, message, hold_id=purchase.transaction_id, refundable_minor=str(refundable))


def after_capture(purchase: Purchase, terms: CaptureTerms, *, sequence: int) -> Purchase:
    """Return the purchase after a capture booked at journal position `sequence`."""
    owed_since = purchase.owed_since or sequence
    if terms.forced:
        return msgspec.structs.replace(
            purchase,
            forced_minor=purchase.forced_minor + terms.captured_minor,
            principal_minor=purchase.principal_minor + terms.captured_minor,
            owed_since=owed_since,
        )
    remaining = purchase.remaining_minor - terms.captured_minor - terms.released_minor
    return msgspec.structs.replace(
        purchase,
        state=HoldState.PENDING if remaining else HoldState.CAPTURED,
        captured_minor=purchase.captured_minor + terms.captured_minor,
        released_minor=purchase.released_minor + terms.released_minor,
        principal_minor=purchase.principal_minor + terms.captured_minor,
        owed_since=owed_since,
    )


def after_void(purchase: Purchase) -> Purchase:
    """Return the purchase after its caller gave up the rest. A hold that was partly captured counts as captured."""
    return msgspec.structs.replace(
        purchase,
        state=HoldState.CAPTURED if purchase.captured_minor else HoldState.VOIDED,
        released_minor=purchase.released_minor + purchase.remaining_minor,
    )


def after_expiry(purchase: Purchase) -> Purchase:
    """Return the purchase after the clock, or a reviewer, gave up the rest. Partly captured counts as captured."""
    return msgspec.structs.replace(
        purchase,
        state=HoldState.CAPTURED if purchase.captured_minor else HoldState.EXPIRED,
        expired_minor=purchase.expired_minor + purchase.remaining_minor,
    )
