"""All that one customer can prove themselves with, and how each event changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from riskgate_server.domain.errors import NotFound, PreconditionFailed
from riskgate_server.domain.identity import events
from riskgate_server.domain.identity.budgets import UNSPENT, Budget, give_back, spend
from riskgate_server.domain.identity.enrolled import Device, DeviceChallenge, Enrolment, with_changed, with_counters
from riskgate_server.domain.identity.events import IdentitySecrets
from riskgate_server.domain.identity.factors import CodeChallenge, Factor
from riskgate_server.domain.identity.grants import NEVER, TWO_FACTORS_LEVEL, Grant, Method, Source
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
    devices: tuple[Device, ...] = ()
    revoked: tuple[Device, ...] = ()
    """Devices revoked lately, so that what they sign is told from what nobody's device signed."""
    enrolments: tuple[Enrolment, ...] = ()
    challenges: tuple[DeviceChallenge, ...] = ()
    revoked_factors: tuple[str, ...] = ()
    """Ids of factors revoked lately: revoking one again is told from revoking what never was."""

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

    def device(self, credential_id: str) -> Device:
        """
        Return a device that stands.

        Raises:
            NotFound: the customer has no such device.
            PreconditionFailed: it was revoked.
        """
        for device in self.devices:
            if device.credential_id == credential_id:
                return device
        if any(device.credential_id == credential_id for device in self.revoked):
            raise PreconditionFailed("DEVICE_REVOKED", "the device was revoked")
        raise NotFound("DEVICE_NOT_FOUND", "the customer has no such device")

    def enrolment(self, enrolment_id: str) -> Enrolment:
        """
        Return an enrolment under way, or one that ended lately.

        Raises:
            NotFound: there is none.
        """
        for enrolment in self.enrolments:
            if enrolment.challenge_id == enrolment_id:
                return enrolment
        raise NotFound("CHALLENGE_NOT_FOUND", "the customer has no such enrolment")

    def challenge(self, challenge_id: str) -> DeviceChallenge:
        """
        Return what devices were asked, and may still be or were lately.

        Raises:
            NotFound: there is no such challenge.
        """
        for challenge in self.challenges:
            if challenge.challenge_id == challenge_id:
                return challenge
        raise NotFound("CHALLENGE_NOT_FOUND", "the customer has no such challenge")

    def grant(self, mark: bytes) -> Grant | None:
        """Return an unspent grant by the hash of its token."""
        return next((grant for grant in self.grants if grant.mark == mark), None)

    @property
    def bound(self) -> bool:
        """Whether anything was ever confirmed that still stands: then another factor needs a grant."""
        return bool(self.devices) or any(not factor.expires_us for factor in self.factors)

    def highest_level(self, now_us: int) -> int:
        """
        Return the strongest level of proof the customer can reach now; 0 when they can prove nothing.

        What is in its cool-down is not asked for, or it would keep its owner from binding another.
        """
        kinds = {f.method for f in self.active() if f.full_strength_us <= now_us}
        devices = [device for device in self.devices if device.full_strength_us <= now_us]
        if devices:
            kinds.add(Method.DEVICE_KEY)
        return max(min(len(kinds), TWO_FACTORS_LEVEL), *(device.assurance.level for device in devices), 0)

    def full_strength_us(self, source: Source) -> int:
        """Return when the cool-down of what was proven ends, UTC µs; of what was revoked never."""
        times = [d.full_strength_us for d in self.devices if d.credential_id == source.id]
        times += [f.full_strength_us for f in self.factors if f.factor_id == source.id]
        return min(times, default=NEVER)


EMPTY_IDENTITY: Final = Identity()

CHALLENGES_KEPT: Final = 8
"""Challenges remembered, so that what ended lately is told from what never was; the oldest is forgotten first."""

DEVICE_CHALLENGES_KEPT: Final = 16
"""As above, of devices: a page may ask for a passkey whenever it is opened."""

DEVICES_KEPT: Final = 16
"""Revoked devices remembered; the one revoked first is forgotten first."""

FACTORS_KEPT: Final = 16
"""As above, of factors."""

GRANTS_KEPT: Final = 8
"""Grants that may be unspent at once; the oldest is forgotten first."""

_Item = TypeVar("_Item")
_Asked = TypeVar("_Asked", CodeChallenge, DeviceChallenge, Enrolment)


def newest(items: tuple[_Item, ...], item: _Item, most: int) -> tuple[_Item, ...]:
    """Return items, oldest first, with one more; of more than `most` the oldest are forgotten."""
    return (*items, item)[-most:]


def _change_factor(identity: Identity, factor_id: str, **changes: Any) -> Identity:
    factors = tuple(replace(f, **changes) if f.factor_id == factor_id else f for f in identity.factors)
    return replace(identity, factors=factors)


def ended(asked: tuple[_Asked, ...], challenge_id: str, reason: str) -> tuple[_Asked, ...]:
    """Return what was asked with one of it ended, if it had not ended before."""
    return tuple(replace(a, ended=a.ended or reason) if a.challenge_id == challenge_id else a for a in asked)


def _missed(asked: tuple[_Asked, ...], challenge_id: str, *, burned: bool) -> tuple[_Asked, ...]:
    reason = "CHALLENGE_BURNED" if burned else ""
    return tuple(
        replace(a, wrong=a.wrong + 1, ended=a.ended or reason) if a.challenge_id == challenge_id else a for a in asked
    )


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


def without_pending(identity: Identity, but: str = "") -> Identity:
    """Return the identity without the factors that wait to be confirmed, except for one."""
    return replace(identity, factors=tuple(f for f in identity.factors if not f.expires_us or f.factor_id == but))


def without_begun(identity: Identity) -> Identity:
    """Return the identity with nothing left that is only being bound: what was revoked may have granted it."""
    begun = tuple(replace(e, ended=e.ended or "CHALLENGE_SUPERSEDED") for e in identity.enrolments)
    return replace(without_pending(identity), enrolments=begun)


def _factor_confirmed(
    identity: Identity, event: events.FactorConfirmed, _at_us: int, _secrets: IdentitySecrets | None
) -> Identity:
    if not identity.bound:
        # From now on a grant is needed, and what waits beside the first has none.
        identity = without_pending(identity, event.factor_id)
    confirmed = _change_factor(
        identity,
        event.factor_id,
        expires_us=0,
        full_strength_us=event.full_strength_us,
        last_step=event.step,
        failures=0,
        locked_until_us=0,
    )
    return replace(confirmed, codes=ended(confirmed.codes, event.challenge_id, "CHALLENGE_USED"))


def _factor_revoked(
    identity: Identity, event: events.FactorRevoked, _at_us: int, _secrets: IdentitySecrets | None
) -> Identity:
    if any(f.factor_id == event.factor_id and not f.expires_us for f in identity.factors):
        identity = without_begun(identity)
    return replace(
        identity,
        factors=tuple(f for f in identity.factors if f.factor_id != event.factor_id),
        codes=tuple(
            replace(c, ended=c.ended or "CHALLENGE_SUPERSEDED") if c.factor_id == event.factor_id else c
            for c in identity.codes
        ),
        grants=without_source(identity.grants, event.factor_id),
        revoked_factors=newest(identity.revoked_factors, event.factor_id, FACTORS_KEPT),
    )


def without_source(grants: tuple[Grant, ...], *source_ids: str) -> tuple[Grant, ...]:
    """Return the grants that rest on none of these factors or devices."""
    return tuple(g for g in grants if all(s.id not in source_ids for s in g.sources))


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
    return replace(identity, codes=newest(codes, challenge, CHALLENGES_KEPT), sends=sends)


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
    counted = {"failures": event.failures, "locked_until_us": event.locked_until_us}
    changed = _change_factor(identity, event.source.id, **counted)
    return replace(
        changed,
        devices=with_changed(identity.devices, event.source.id, **counted),
        codes=_missed(identity.codes, event.challenge_id, burned=event.burned),
        challenges=_missed(identity.challenges, event.challenge_id, burned=event.burned),
        enrolments=_missed(identity.enrolments, event.challenge_id, burned=event.burned),
    )


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
    device = next((d for d in identity.devices if d.credential_id == event.source.id), None)
    if device is not None:
        key = with_counters(device, sign_count=event.sign_count, app_sign_count=event.app_sign_count)
        used = with_changed(
            identity.devices, device.credential_id, key=key, last_use_us=at_us, failures=0, locked_until_us=0
        )
        identity = replace(identity, devices=used)
    grants = tuple(g for g in identity.grants if g.mark != event.replaces and at_us < g.expires_us)
    grant = Grant(event.mark, event.use, event.level, event.sources, event.expires_us)
    return replace(
        identity,
        grants=newest(grants, grant, GRANTS_KEPT),
        codes=ended(identity.codes, event.challenge_id, "CHALLENGE_USED"),
        challenges=ended(identity.challenges, event.challenge_id, "CHALLENGE_USED"),
    )


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


Evolver = Callable[[Identity, Any, int, IdentitySecrets | None], Identity]

EVOLVERS: Final[dict[type, Evolver]] = {
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
