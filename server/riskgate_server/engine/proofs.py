"""What use cases of proofs share, whether by a code or by a device."""

from __future__ import annotations

from typing import Final

from riskgate_server.domain.calendar import DAY_US, SECOND_US
from riskgate_server.domain.errors import PermissionRefused, PreconditionFailed, ResourceExhausted
from riskgate_server.domain.fraud.safety import UNTOUCHED
from riskgate_server.domain.identity.factors import FOR_GOOD, Factor
from riskgate_server.domain.identity.grants import Method, Use, mask_of
from riskgate_server.engine.messages import NoticeMessage
from riskgate_server.engine.work import Work

PROOF_WRONG: Final = "PROOF_WRONG"

NOTICE_LIFETIME_US: Final = DAY_US
"""How long it is worth telling a customer that something about their account changed."""


def phones(work: Work) -> list[Factor]:
    """Return the customer's confirmed phones."""
    return list(work.identity.active(Method.SMS))


def tell(work: Work, phones: list[Factor], notice: str) -> None:
    """Tell a customer on the phones they had before what was just recorded; the entry says how many are told."""
    for phone in phones:
        notice_message = NoticeMessage(phone.secret.decode(), "", notice, work.now_us + NOTICE_LIFETIME_US)
        work.send(notice_message, entry=work.customer.sequence)


def require_counts(work: Work, use: Use, method: Method) -> None:
    """Refuse a kind of factor that the purchase does not trust: its grant would open nothing."""
    purchase = work.purchase(use.transaction_id) if use.transaction_id else None
    if purchase is not None and not purchase.step_up_methods & mask_of(method):
        raise PreconditionFailed("METHOD_NOT_ALLOWED", "this kind of factor does not count for the purchase")


def require_unlocked(work: Work, locked_until_us: int) -> None:
    """
    Let a proof be looked at only while its factor or device is not locked.

    Raises:
        ResourceExhausted: it is; a right proof is answered as a wrong one.
    """
    if work.now_us >= locked_until_us:
        return
    wait = 0 if locked_until_us == FOR_GOOD else (locked_until_us - work.now_us) / SECOND_US
    reason, message = "PROOF_LOCKED", "too many wrong proofs; try again later, or another factor"
    raise ResourceExhausted(reason, message, retry_after_seconds=wait)


def full_strength_us(work: Work) -> int:
    """
    Return from when on what is confirmed now is at full strength, UTC µs.

    Nothing is to be protected from a customer's first; what joins others must first have been there for a while. So
    must what comes after others were revoked: else revoking them would be the way around.
    """
    safety = work.customer.profile.safety or UNTOUCHED
    first = not (work.identity.bound or safety.changed_us)
    return work.now_us + (0 if first else work.bounds.proofs.cool_down_us)


def wrong(checks_left: int | None) -> PermissionRefused:
    """
    Return the one answer to every wrong proof.

    It tells how many more its challenge takes, 0 when that one burned it; None is a proof that answers no challenge.
    """
    counted = {} if checks_left is None else {"checks_left": str(checks_left)}
    return PermissionRefused(PROOF_WRONG, "the proof is wrong", **counted)
