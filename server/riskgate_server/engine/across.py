"""
Facts that concern several customers, in scope rows of the tenant: what may still be sent to whom, and be guessed.

They change in the same transaction as the customer they were asked for, so that a budget is neither spent twice nor
given back by a crash.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum
from typing import Final

import msgspec

from riskgate_server.domain.calendar import DAY_US, SECOND_US
from riskgate_server.domain.errors import AlreadyExists, ResourceExhausted
from riskgate_server.domain.identity.budgets import UNSPENT, Budget, frees_us, give_back, spend, spent
from riskgate_server.domain.identity.factors import Factor
from riskgate_server.domain.identity.identity import SENDS_PERIOD_US
from riskgate_server.domain.identity.limits import HOUR_US
from riskgate_server.engine.commands import EnrollPhone
from riskgate_server.engine.rows import ScopeKey
from riskgate_server.engine.work import Work


class ScopeKind(IntEnum):
    """What a scope row is about. Stored: numbers never change meaning."""

    NUMBER = 1
    """Messages to one number."""
    PREFIX = 2
    """Numbers of a tenant that differ in their last digits only: who pumps messages to a range of numbers uses many."""
    COUNTRY = 3
    """Messages to one country."""
    SENDS = 4
    """Messages of the tenant."""
    WRONG_CODES = 5
    """Wrong codes of all customers of the tenant."""
    CREDENTIAL = 6
    """Whose a device's key is."""
    OFFERED = 7
    """Grants that customers offered who have none such, by the first byte of their marks."""


class _NumberSends(msgspec.Struct, frozen=True, gc=False, array_like=True):
    recent: Budget = UNSPENT
    day: Budget = UNSPENT


class _Seen(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Marks of the numbers a message went to, or of grants that were offered, and when last."""

    seen: tuple[tuple[bytes, int], ...] = ()


class _Owner(msgspec.Struct, frozen=True, gc=False, array_like=True):
    customer_id: str


_encode: Final = msgspec.msgpack.Encoder().encode
_number_sends: Final = msgspec.msgpack.Decoder(_NumberSends).decode
_seen: Final = msgspec.msgpack.Decoder(_Seen).decode
_owner: Final = msgspec.msgpack.Decoder(_Owner).decode
_budget: Final = msgspec.msgpack.Decoder(Budget).decode


OFFERED_KEPT: Final = 64
"""Grants remembered in one row as offered by somebody else; the one offered first is forgotten first."""


class Recipient(msgspec.Struct, frozen=True, gc=False):
    """Where a message goes, as budgets know it."""

    mark: bytes
    prefix: bytes
    region: str


def recipient_of(factor: Factor) -> Recipient:
    """Return where a factor's messages go."""
    return Recipient(factor.mark, factor.prefix, factor.region)


def possible_recipients(command: EnrollPhone) -> tuple[Recipient, ...]:
    """Return under which marks the budgets may know a new phone's number; the one in force last."""
    marks = (*command.other_marks, (command.mark, command.prefix))
    return tuple(Recipient(mark, prefix, command.region) for mark, prefix in marks)


def recipient_as_known(work: Work, command: EnrollPhone) -> Recipient:
    """
    Return a new phone's number under the mark it is known by already, or under the one in force.

    So one number keeps one budget when keys are renewed.
    """
    possible = possible_recipients(command)
    known = (recipient for recipient in possible if work.scope((work.key[0], ScopeKind.NUMBER, recipient.mark)))
    return next(known, possible[-1])


def send_scopes(tenant_id: str, recipient: Recipient) -> tuple[ScopeKey, ...]:
    """Return every scope that a message to `recipient` concerns."""
    return (
        (tenant_id, ScopeKind.NUMBER, recipient.mark),
        (tenant_id, ScopeKind.PREFIX, recipient.prefix),
        (tenant_id, ScopeKind.COUNTRY, recipient.region.encode()),
        (tenant_id, ScopeKind.SENDS, b""),
    )


def charged_by_send(tenant_id: str, recipient: Recipient) -> tuple[tuple[ScopeKey, int], ...]:
    """Return the budgets that a message to `recipient` is counted against: scope and period in µs."""
    number, _, country, tenant = send_scopes(tenant_id, recipient)
    return (number, SENDS_PERIOD_US), (number, DAY_US), (country, DAY_US), (tenant, DAY_US)


def budgets_in(kind: int, state: bytes) -> tuple[tuple[int, Budget], ...]:
    """
    Return the budgets of a scope row by their periods in µs; none where nothing is counted.

    Raises:
        ValueError: the row is of no kind, or not of its form.
    """
    match ScopeKind(kind):
        case ScopeKind.NUMBER:
            sends = _number_sends(state)
            return (SENDS_PERIOD_US, sends.recent), (DAY_US, sends.day)
        case ScopeKind.COUNTRY | ScopeKind.SENDS:
            return ((DAY_US, _budget(state)),)
        case ScopeKind.WRONG_CODES:
            return ((HOUR_US, _budget(state)),)
    return ()


def seen_in(state: bytes) -> tuple[tuple[bytes, int], ...]:
    """
    Return the marks of a scope row, each with when it was seen last, UTC µs.

    Raises:
        ValueError: it is not of that form.
    """
    return _seen(state).seen


def wrong_code_scope(tenant_id: str) -> ScopeKey:
    """Return the scope that every comparison of a code concerns."""
    return (tenant_id, ScopeKind.WRONG_CODES, b"")


def credential_scopes(tenant_id: str, marks: Collection[bytes]) -> tuple[ScopeKey, ...]:
    """Return the scopes that say whose a device's key is."""
    return tuple((tenant_id, ScopeKind.CREDENTIAL, mark) for mark in marks)


def take_credential(work: Work, marks: Collection[bytes]) -> None:
    """
    Note that a key, known by its marks, is the customer's from now on.

    It stays theirs when the device is revoked: a key that was one customer's never proves anything for another.

    Raises:
        AlreadyExists: it is another customer's; whose is nobody's business.
    """
    tenant_id, customer_id = work.key
    scopes = credential_scopes(tenant_id, marks)
    if any((stored := work.scope(scope)) and owner_of(stored) != customer_id for scope in scopes):
        raise credential_exists()
    for scope in scopes:
        work.put_scope(scope, _encode(_Owner(customer_id)))


def owner_of(state: bytes) -> str:
    """Return the id of the customer whose a device's key is, from what is stored of it."""
    return _owner(state).customer_id


def credential_exists() -> AlreadyExists:
    """Return the refusal of a key that is enrolled already, for whomever."""
    return AlreadyExists("CREDENTIAL_EXISTS", "the device's key is enrolled already")


def offered_scope(tenant_id: str, mark: bytes) -> ScopeKey:
    """Return the scope that says whether somebody else offered a grant: few rows, which many grants share."""
    return (tenant_id, ScopeKind.OFFERED, mark[:1])


def note_offered(work: Work, mark: bytes) -> None:
    """Have a grant open nothing for whoever has it: a customer offered it who does not."""
    scope = offered_scope(work.key[0], mark)
    known = _seen(stored) if (stored := work.scope(scope)) else _Seen()
    worthless_us = work.now_us - work.bounds.proofs.grant_lifetime_us
    seen = {each: at_us for each, at_us in known.seen if at_us > worthless_us and each != mark}
    work.put_scope(scope, _encode(_Seen((*seen.items(), (mark, work.now_us))[-OFFERED_KEPT:])))


def was_offered(work: Work, mark: bytes) -> bool:
    """Whether a customer of the tenant offered a grant who does not have it."""
    stored = work.scope(offered_scope(work.key[0], mark))
    return bool(stored) and any(each == mark for each, _ in _seen(stored).seen)


def charge_send(work: Work, recipient: Recipient) -> None:
    """
    Count a message against every budget it concerns, or against none.

    Raises:
        ResourceExhausted: one of them is used up; which one is nobody's business.
    """
    limits, now_us = work.bounds.proofs, work.now_us
    number, prefix, country, tenant = send_scopes(work.key[0], recipient)
    sends = _number_sends(stored) if (stored := work.scope(number)) else _NumberSends()
    of_country = _budget(stored) if (stored := work.scope(country)) else UNSPENT
    of_tenant = _budget(stored) if (stored := work.scope(tenant)) else UNSPENT
    for budget, period_us, limit in (
        (work.identity.sends, SENDS_PERIOD_US, limits.sends_per_customer),
        (sends.recent, SENDS_PERIOD_US, limits.sends_per_number),
        (sends.day, DAY_US, limits.sends_per_number_day),
        (of_country, DAY_US, limits.sends_per_country_day),
        (of_tenant, DAY_US, limits.sends_per_tenant_day),
    ):
        if spent(budget, period_us=period_us, now_us=now_us) >= limit:
            raise _exhausted(frees_us(budget, period_us=period_us, limit=limit, now_us=now_us) - now_us)
    known = _seen(stored) if (stored := work.scope(prefix)) else _Seen()
    seen = {mark: at_us for mark, at_us in known.seen if at_us > now_us - DAY_US}
    if recipient.mark not in seen and len(seen) >= limits.numbers_per_prefix_day:
        raise _exhausted(min(seen.values()) + DAY_US - now_us)
    seen[recipient.mark] = now_us
    work.put_scope(prefix, _encode(_Seen(tuple(seen.items()))))
    counted = _NumberSends(
        spend(sends.recent, period_us=SENDS_PERIOD_US, now_us=now_us), spend(sends.day, period_us=DAY_US, now_us=now_us)
    )
    work.put_scope(number, _encode(counted))
    work.put_scope(country, _encode(spend(of_country, period_us=DAY_US, now_us=now_us)))
    work.put_scope(tenant, _encode(spend(of_tenant, period_us=DAY_US, now_us=now_us)))


def refund_send(work: Work, recipient: Recipient, sent_us: int) -> None:
    """Give back what a message of `sent_us` was counted for, that certainly reached nobody."""
    number, _, country, tenant = send_scopes(work.key[0], recipient)
    if stored := work.scope(number):
        sends = _number_sends(stored)
        less = _NumberSends(
            give_back(sends.recent, period_us=SENDS_PERIOD_US, at_us=sent_us),
            give_back(sends.day, period_us=DAY_US, at_us=sent_us),
        )
        work.put_scope(number, _encode(less))
    for scope in (country, tenant):
        if stored := work.scope(scope):
            work.put_scope(scope, _encode(give_back(_budget(stored), period_us=DAY_US, at_us=sent_us)))


def require_guesses(work: Work) -> None:
    """
    Let a code be compared only while the tenant's customers have not been guessed at too often.

    Raises:
        ResourceExhausted: they have; right codes too wait, for who guesses at all accounts is right now and then.
    """
    limit = work.bounds.proofs.wrong_codes_per_tenant_hour
    stored = work.scope(wrong_code_scope(work.key[0]))
    wrong = _budget(stored) if stored else UNSPENT
    if spent(wrong, period_us=HOUR_US, now_us=work.now_us) >= limit:
        frees = frees_us(wrong, period_us=HOUR_US, limit=limit, now_us=work.now_us)
        reason, message = "PROOF_LOCKED", "too many wrong proofs; try again later, or another factor"
        raise ResourceExhausted(reason, message, retry_after_seconds=(frees - work.now_us) / SECOND_US)


def charge_guess(work: Work) -> None:
    """Count a wrong code against the tenant's budget."""
    scope = wrong_code_scope(work.key[0])
    wrong = _budget(stored) if (stored := work.scope(scope)) else UNSPENT
    work.put_scope(scope, _encode(spend(wrong, period_us=HOUR_US, now_us=work.now_us)))


def _exhausted(wait_us: int) -> ResourceExhausted:
    reason, message = "SEND_BUDGET_SPENT", "too many messages were sent; try again later"
    return ResourceExhausted(reason, message, retry_after_seconds=max(wait_us, 0) / SECOND_US)
