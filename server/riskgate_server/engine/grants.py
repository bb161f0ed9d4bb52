"""Use cases' common part: a right proof gives a grant, and a grant is spent by what it was made for."""

from __future__ import annotations

from hashlib import sha256

from riskgate_server.domain.errors import (
    FieldViolation,
    InvalidRequest,
    NotFound,
    PermissionRefused,
    PreconditionFailed,
)
from riskgate_server.domain.events import Happening
from riskgate_server.domain.identity.events import GrantSpent, ProofPassed
from riskgate_server.domain.identity.grants import (
    CODE_LEVEL,
    NEVER,
    TWO_FACTORS_LEVEL,
    CountsFrom,
    Method,
    Purpose,
    Source,
    Use,
    anything,
    combined,
    level_by,
    mask_of,
    of_methods,
    reaches_level_us,
)
from riskgate_server.domain.ledger.holds import HoldState, Purchase
from riskgate_server.engine import across
from riskgate_server.engine.replies import GrantReply, Refusal, refusal_of, rfc3339
from riskgate_server.engine.work import Work


def mark_of(token: str) -> bytes:
    """Return what is kept of a grant's token."""
    return sha256(token.encode()).digest()


def use_for(work: Work, purpose: Purpose, transaction_id: str) -> Use:
    """
    Return what a proof will be for.

    Raises:
        InvalidRequest: a purchase is named where none belongs, or none where one does.
        NotFound: the customer has no such purchase.
        PreconditionFailed: the purchase waits for no proof, or no longer.
    """
    require_named(purpose, transaction_id)
    if not transaction_id:
        return Use(purpose)
    purchase = work.purchase(transaction_id)
    if purchase is None:
        raise purchase_not_found()
    if purchase.state is not HoldState.NONE or not purchase.step_up_level:
        raise PreconditionFailed("STEP_UP_NOT_ASKED", "the purchase does not wait for a proof")
    if work.now_us >= purchase.step_up_expires_us:
        raise PreconditionFailed("STEP_UP_EXPIRED", "the purchase waited too long for a proof; check it again")
    return Use(purpose, transaction_id, purchase.terms)


def require_named(purpose: Purpose, transaction_id: str) -> None:
    """Raise `InvalidRequest` where a purchase is named and none belongs, or none where one does."""
    if (purpose is Purpose.TRANSACTION) != bool(transaction_id):
        message = "required for a transaction, and for nothing else"
        raise InvalidRequest("FIELD_INVALID", message, FieldViolation("transaction_id", message))


def purchase_not_found() -> NotFound:
    """Return the refusal of a purchase that the customer does not have."""
    return NotFound("TRANSACTION_NOT_FOUND", "the customer has no such purchase")


def pass_proof(
    work: Work,
    source: Source,
    use: Use,
    *,
    level: int,
    challenge_id: str = "",
    step: int = 0,
    spent_code: bytes = b"",
    sign_count: int = 0,
    app_sign_count: int = 0,
    regressed: bool = False,
) -> GrantReply:
    """
    Record a right proof and return its grant; with an unspent one by another kind of factor it is at least of level 2.

    What else is given is recorded as it is (`ProofPassed`).
    """
    weaker = combined(work.identity.grants, use, source, level, work.now_us)
    if weaker and across.was_offered(work, weaker.mark):
        weaker = None
    sources = (*weaker.sources, source) if weaker else (source,)
    if weaker:
        level = max(weaker.level, TWO_FACTORS_LEVEL)
    key_id = work.secrets.key_id
    expires_us = work.now_us + work.bounds.proofs.grant_lifetime_us
    passed = ProofPassed(
        source=source,
        challenge_id=challenge_id,
        use=use,
        level=level,
        sources=sources,
        mark=mark_of(work.secrets.token(key_id, work.key, work.request_id)),
        expires_us=expires_us,
        replaces=weaker.mark if weaker else b"",
        step=step,
        spent_code=spent_code,
        sign_count=sign_count,
        app_sign_count=app_sign_count,
        regressed=regressed,
    )
    work.record(Happening(passed))
    methods = tuple(dict.fromkeys(s.method for s in sources))
    return GrantReply(work.key, work.request_id, key_id, use, level, methods, expires_us)


def spend(work: Work, mark: bytes, use: Use, level: int, counts_from: CountsFrom = anything) -> GrantSpent | Refusal:
    """
    Return the event that spends a grant for `use`, to be recorded with its effect.

    `counts_from` says from when on each of the factors and devices it rests on does.

    One that was made for something else is destroyed: whoever offers it does not know what it is for, or hopes that
    nobody looks. So is one that another customer of the tenant offered. That is recorded at once, and the refusal is
    the command's answer.

    Raises:
        PreconditionFailed: there is no such grant any more, it is of a lower level, or it would be of the level but for
            a cool-down.
    """
    note_foreign(work, mark)
    grant = work.identity.grant(mark)
    if grant is None or work.now_us >= grant.expires_us:
        raise _invalid()
    if across.was_offered(work, mark):
        work.record(Happening(GrantSpent(mark, grant.use, grant.level, destroyed="CUSTOMER")))
        return refusal_of(_invalid())
    if grant.use != use:
        work.record(Happening(GrantSpent(mark, use, grant.level, destroyed="USE")))
        return refusal_of(PreconditionFailed("GRANT_MISMATCH", "the grant was made for something else; it is void now"))
    if level_by(grant, counts_from, work.now_us) < level:
        reaches_us = reaches_level_us(grant, counts_from, level, work.now_us)
        if reaches_us != NEVER:
            raise cooling_down(reaches_us)
        raise PreconditionFailed("GRANT_TOO_WEAK", f"a grant of level {level} is needed", level=str(level))
    return GrantSpent(mark, use, grant.level)


def note_foreign(work: Work, mark: bytes) -> None:
    """
    Void a grant that the customer offers and does not have, wherever it may be: it is no secret any more.

    Kept with the refusal that follows. Of another tenant's grants nothing is known here, and nothing changes.
    """
    if work.identity.grant(mark) is None:
        across.note_offered(work, mark)


def _invalid() -> PreconditionFailed:
    return PreconditionFailed("GRANT_INVALID", "the grant was spent, is too old, or is not this customer's")


def spend_to_bind(work: Work, mark: bytes) -> tuple[GrantSpent, ...] | Refusal:
    """
    Return the event that spends the grant which binding a further factor needs; nothing for a customer's first.

    Raises:
        PermissionRefused: a grant is needed, and none was given.
        PreconditionFailed: as `spend`, where what is in its cool-down does not count.
    """
    if not work.identity.bound:
        return ()
    if not mark:
        raise grant_required()
    # While nothing is past its cool-down, nothing binds.
    level = max(work.identity.highest_level(work.now_us), CODE_LEVEL)
    spent = spend(work, mark, Use(Purpose.BINDING), level, past_cool_down(work))
    return spent if isinstance(spent, Refusal) else (spent,)


def past_cool_down(work: Work) -> CountsFrom:
    """Let only count what has been there for a while, or was the customer's first."""
    return work.identity.full_strength_us


def answering(work: Work, purchase: Purchase) -> CountsFrom:
    """Let only count what may answer for a purchase."""
    trusted = of_methods(purchase.step_up_methods)
    if not needs_strength(Use(Purpose.TRANSACTION), purchase):
        return trusted
    settled = past_cool_down(work)
    return lambda source: max(trusted(source), settled(source))


def needs_strength(use: Use, purchase: Purchase | None) -> bool:
    """
    Whether a factor or device in its cool-down counts for nothing.

    A code to the customer's number may have bound it. So where a code is enough it is as good as that, and where one
    is not, or is not trusted, it would be a way around.
    """
    if use.purpose is not Purpose.TRANSACTION:
        return use.purpose is not Purpose.SIGN_IN
    assert purchase is not None
    return purchase.step_up_level > CODE_LEVEL or not purchase.step_up_methods & mask_of(Method.SMS)


def cooling_down(full_us: int) -> PreconditionFailed:
    """Return the refusal of what would count but for its cool-down, which ends at `full_us`."""
    time = rfc3339(full_us)
    message = f"what joined others lately does not count for this before {time}"
    return PreconditionFailed("FACTOR_COOLING_DOWN", message, full_strength_time=time)


def grant_required() -> PermissionRefused:
    """Return the refusal of a further factor or device that comes without a grant."""
    return PermissionRefused("GRANT_REQUIRED", "a further factor needs a grant of the customer's highest level")
