"""All that one customer can prove themselves with, and how each event changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from riskgate_server.domain.errors import NotFound
from riskgate_server.domain.identity import events
from riskgate_server.domain.identity.budgets import UNSPENT, Budget, give_back, spend
from riskgate_server.domain.identity.events import IdentitySecrets
from riskgate_server.domain.identity.factors import CodeChallenge, Factor
from riskgate_server.domain.identity.grants import TWO_FACTORS_LEVEL, Grant, Method, Source
from riskgate_server.domain.identity.limits import MINUTE_US

replace = msgspec.structs.replace

SENDS_PERIOD_US: Final = 10 * MINUTE_US
"""The time in which the messages to one customer, and to one number, are counted."""


class Identity(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Stored, so new fields go to the end and have a default. Lists are oldest first."""

    factors: tuple[Factor, ...] = ()
    codes: tuple[CodeChallenge, ...] = ()
    grants: tuple[Grant, ...] = ()
    sends: Budget = UNSPENT

    def factor(self, factor_id: str, now_us: int) -> Factor:
        """
        Return a factor, pending or active.

        Raises:
            NotFound: there is none, or it was forgotten because nobody confirmed it.
        """
        for factor in self.factors:
            if factor.factor_id == factor_id and factor.stands(now_us):
                return factor
        raise NotFound("FACTOR_NOT_FOUND", "the customer has no such factor")

    def active(self, *methods: Method) -> tuple[Factor, ...]:
        """Return the confirmed factors of some kinds, or of all."""
        return tuple(f for f in self.factors if not f.expires_us and (not methods or f.method in methods))

    def code(self, challenge_id: str) -> CodeChallenge:
        """
        Return a code under way, or one that ended lately.

        Raises:
            NotFound: there is none.
        """
        for challenge in self.codes:
            if challenge.challenge_id == challenge_id:
                return challenge
        raise NotFound("CHALLENGE_NOT_FOUND", "the customer has no such challenge")

    def grant(self, mark: bytes) -> Grant | None:
        """Return an unspent grant by the hash of its token."""
        return next((grant for grant in self.grants if grant.mark == mark), None)

    @property
    def bound(self) -> bool:
        """Whether anything was ever confirmed that still stands: then another factor needs a grant."""
        return any(not factor.expires_us for factor in self.factors)

    def highest_level(self, now_us: int) -> int:
        """
        Return the strongest level of proof the customer can reach now; 0 when they can prove nothing.

        A factor in its cool-down is not asked for, or it would keep its owner from binding another.
        """
        kinds = {f.method for f in self.active() if f.full_strength_us <= now_us}
        return min(len(kinds), TWO_FACTORS_LEVEL)


EMPTY_IDENTITY: Final = Identity()

CHALLENGES_KEPT: Final = 8
"""Challenges remembered, so that what ended lately is told from what never was; the oldest is forgotten first."""

GRANTS_KEPT: Final = 8
"""Grants that may be unspent at once; the oldest is forgotten first."""

_Item = TypeVar("_Item")


def _newest(items: tuple[_Item, ...], item: _Item, most: int) -> tuple[_Item, ...]:
    return (*items, item)[-most:]


def _change_factor(identity: Identity, factor_id: str, **changes: Any) -> Identity:
    factors = tuple(replace(f, **changes) if f.factor_id == factor_id else f for f in identity.factors)
    return replace(identity, factors=factors)


def _end_code(identity: Identity, challenge_id: str, ended: str) -> Identity:
    codes = tuple(replace(c, ended=c.ended or ended) if c.challenge_id == challenge_id else c for c in identity.codes)
    return replace(identity, codes=codes)


def _factor_enrolled(
    identity: Identity, event: events.FactorEnrolled, at_us: int, secrets: IdentitySecrets | None
) -> Identity:
    # Of an erased customer nothing is left to read: the factor stands without its secret.
    known = secrets if isinstance(secrets, events.FactorSecrets) else events.FactorSecrets(b"", "", "")
    factor = Factor(
        factor_id=event.factor_id,
        method=event.method,
        display_name=known.display_name,
        region=known.region,
        secret=known.secret,
        mark=event.mark,
        prefix=event.prefix,
        enrolled_us=at_us,
        expires_us=event.expires_us,
    )
    standing = tuple(f for f in identity.factors if f.stands(at_us))
    return replace(identity, factors=(*standing, factor))


def _factor_confirmed(
    identity: Identity, event: events.FactorConfirmed, _at_us: int, _secrets: IdentitySecrets | None
) -> Identity:
    confirmed = _change_factor(
        identity,
        event.factor_id,
        expires_us=0,
        full_strength_us=event.full_strength_us,
        last_step=event.step,
        failures=0,
        locked_until_us=0,
    )
    return _end_code(confirmed, event.challenge_id, "CHALLENGE_USED")


def _factor_revoked(
    identity: Identity, event: events.FactorRevoked, _at_us: int, _secrets: IdentitySecrets | None
) -> Identity:
    return replace(
        identity,
        factors=tuple(f for f in identity.factors if f.factor_id != event.factor_id),
        codes=tuple(
            replace(c, ended=c.ended or "CHALLENGE_SUPERSEDED") if c.factor_id == event.factor_id else c
            for c in identity.codes
        ),
        grants=_without_source(identity.grants, event.factor_id),
    )


def _without_source(grants: tuple[Grant, ...], source_id: str) -> tuple[Grant, ...]:
    return tuple(g for g in grants if all(s.id != source_id for s in g.sources))


def _code_sent(identity: Identity, event: events.CodeSent, at_us: int, _secrets: IdentitySecrets | None) -> Identity:
    sends = spend(identity.sends, period_us=SENDS_PERIOD_US, now_us=at_us)
    if event.again:
        codes = tuple(
            replace(c, sent_us=at_us, resend_us=event.resend_us) if c.challenge_id == event.challenge_id else c
            for c in identity.codes
        )
        return replace(identity, codes=codes, sends=sends)
    # One code at a time: whoever has an older one has the wrong one.
    codes = tuple(
        replace(c, ended=c.ended or "CHALLENGE_SUPERSEDED") if c.factor_id == event.factor_id else c
        for c in identity.codes
    )
    challenge = CodeChallenge(
        challenge_id=event.challenge_id,
        factor_id=event.factor_id,
        use=event.use,
        key_id=event.key_id,
        sent_us=at_us,
        expires_us=event.expires_us,
        resend_us=event.resend_us,
    )
    return replace(identity, codes=_newest(codes, challenge, CHALLENGES_KEPT), sends=sends)


def _code_unsent(
    identity: Identity, event: events.CodeUnsent, at_us: int, _secrets: IdentitySecrets | None
) -> Identity:
    challenge = next((c for c in identity.codes if c.challenge_id == event.challenge_id), None)
    if challenge is None:
        return identity
    # It may be sent again at once: nothing has arrived.
    codes = tuple(replace(c, resend_us=at_us) if c is challenge else c for c in identity.codes)
    sends = give_back(identity.sends, period_us=SENDS_PERIOD_US, at_us=challenge.sent_us)
    return replace(identity, codes=codes, sends=sends)


def _proof_failed(
    identity: Identity, event: events.ProofFailed, _at_us: int, _secrets: IdentitySecrets | None
) -> Identity:
    changed = _change_factor(identity, event.source.id, failures=event.failures, locked_until_us=event.locked_until_us)
    codes = tuple(
        replace(c, wrong=c.wrong + 1, ended=c.ended or ("CHALLENGE_BURNED" if event.burned else ""))
        if c.challenge_id == event.challenge_id
        else c
        for c in changed.codes
    )
    return replace(changed, codes=codes)


def _proof_passed(
    identity: Identity, event: events.ProofPassed, at_us: int, _secrets: IdentitySecrets | None
) -> Identity:
    factor = next((f for f in identity.factors if f.factor_id == event.source.id), None)
    if factor is not None:
        identity = _change_factor(
            identity,
            factor.factor_id,
            failures=0,
            locked_until_us=0,
            last_step=max(factor.last_step, event.step),
            codes=tuple(code for code in factor.codes if code != event.spent_code),
        )
    identity = _end_code(identity, event.challenge_id, "CHALLENGE_USED")
    grants = tuple(g for g in identity.grants if g.mark != event.replaces and at_us < g.expires_us)
    grant = Grant(event.mark, event.use, event.level, event.sources, event.expires_us)
    return replace(identity, grants=_newest(grants, grant, GRANTS_KEPT))


def _grant_spent(
    identity: Identity, event: events.GrantSpent, _at_us: int, _secrets: IdentitySecrets | None
) -> Identity:
    return replace(identity, grants=tuple(g for g in identity.grants if g.mark != event.mark))


def _recovery_codes_made(
    identity: Identity, event: events.RecoveryCodesMade, at_us: int, secrets: IdentitySecrets | None
) -> Identity:
    codes = secrets.codes if isinstance(secrets, events.RecoverySecrets) else ()
    factor = Factor(
        factor_id=event.factor_id,
        method=Method.RECOVERY_CODE,
        display_name="",
        region="",
        secret=b"",
        mark=b"",
        prefix=b"",
        enrolled_us=at_us,
        expires_us=0,
        full_strength_us=event.full_strength_us,
        codes=codes,
    )
    others = tuple(f for f in identity.factors if f.method is not Method.RECOVERY_CODE)
    return replace(identity, factors=(*others, factor))


_Evolver = Callable[[Identity, Any, int, IdentitySecrets | None], Identity]

EVOLVERS: Final[dict[type, _Evolver]] = {
    events.FactorEnrolled: _factor_enrolled,
    events.FactorConfirmed: _factor_confirmed,
    events.FactorRevoked: _factor_revoked,
    events.CodeSent: _code_sent,
    events.CodeUnsent: _code_unsent,
    events.ProofFailed: _proof_failed,
    events.ProofPassed: _proof_passed,
    events.GrantSpent: _grant_spent,
    events.RecoveryCodesMade: _recovery_codes_made,
}


def source_of(factor: Factor) -> Source:
    """Return a factor as what a proof rests on."""
    return Source(factor.method, factor.factor_id)
