"""
Challenges for customers who do not exist, or have no phone: whoever tries out ids learns nothing from SendCode.

A decoy has the shape of a real challenge, is answered as a real one that nobody can answer, and takes as long. It
carries its time inside, enciphered, so that it outlives a restart; how often it was tried is only remembered here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import msgspec

from riskgate_server.domain.calendar import SECOND_US
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.errors import (
    NotFound,
    PermissionRefused,
    PreconditionFailed,
    ResourceExhausted,
    Unavailable,
)
from riskgate_server.domain.identity.budgets import UNSPENT, Budget, frees_us, give_back, spend, spent
from riskgate_server.domain.identity.factors import FOR_GOOD, lock_after
from riskgate_server.domain.identity.identity import EMPTY_IDENTITY, SENDS_PERIOD_US, Identity
from riskgate_server.domain.identity.limits import PROOF_LIMITS
from riskgate_server.engine.commands import Command
from riskgate_server.engine.ports import Clock, ProofSecrets
from riskgate_server.engine.proofs import wrong
from riskgate_server.engine.replies import CodeView, request_id_reused
from riskgate_server.rpc.phones import masked_by

CUSTOMER_NOT_FOUND: Final = "CUSTOMER_NOT_FOUND"
GATEWAY_DOWN: Final = "GATEWAY_DOWN"

REMEMBERED_MAX: Final = 10_000
"""Decoys whose tries, and customers whose messages, are remembered; the oldest is forgotten first."""
DURATIONS: Final = 64

_T = TypeVar("_T")


def gateway_down(challenge_id: str) -> Unavailable:
    """Return how a caller is told that a code could not be sent."""
    return Unavailable(GATEWAY_DOWN, "the code could not be sent; the challenge stands", challenge_id=challenge_id)


class _Decoy(msgspec.Struct):
    challenge_id: str
    sent_us: int
    tried: dict[str, int] = msgspec.field(default_factory=dict)
    """Ids of requests that brought a wrong code, and how many more each was told of; a repeated one counts once."""
    resend_us: int = 0

    @property
    def checks_left(self) -> int:
        return PROOF_LIMITS.code_checks - len(self.tried)


class _Phone(msgspec.Struct):
    """What would be known of the phone that decoys of a customer were sent to."""

    latest: str
    failures: int = 0
    locked_until_us: int = 0


class Decoys:
    """For one event loop."""

    def __init__(self, secrets: ProofSecrets, clock: Clock) -> None:
        self._secrets = secrets
        self._clock = clock
        self._answers: OrderedDict[tuple[CustomerKey, str], tuple[CodeView, bool]] = OrderedDict()
        """What each request was told, and whether the code would have been sent."""
        self._by_id: OrderedDict[tuple[CustomerKey, str], _Decoy] = OrderedDict()
        self._sends: OrderedDict[CustomerKey, Budget] = OrderedDict()
        self._phones: OrderedDict[CustomerKey, _Phone] = OrderedDict()
        self._lately: deque[tuple[float, bool]] = deque([(0.005, True)], maxlen=DURATIONS)

    async def timed(self, real: Awaitable[_T]) -> _T:
        """Await what a real challenge takes, and remember how long it took and whether its code was sent."""
        began = time.monotonic()
        try:
            result = await real
        except Unavailable as error:
            if error.reason == GATEWAY_DOWN:
                self._lately.append((time.monotonic() - began, False))
            raise
        self._lately.append((time.monotonic() - began, True))
        return result

    def factor_id(self, key: CustomerKey) -> str:
        """Return the id of the phone that a customer's decoys are sent to, always the same."""
        return f"f-{self._secrets.decoy_digits(key, 1):016x}{self._secrets.decoy_digits(key, 3):016x}"

    async def send(self, key: CustomerKey, request_id: str) -> CodeView:
        """
        Return a challenge that nobody can answer, after as long as a real one would have taken.

        Raises:
            ResourceExhausted: as often as a real customer would be refused for too many messages, or wrong codes.
            Unavailable: as often as the code of a real one could not be sent of late.
        """
        where = (key, request_id)
        if where not in self._answers:
            now_us = self._clock.now_us()
            self._require_unlocked(key, now_us)
            self._charge(key, now_us)
            decoy = _Decoy(self._secrets.decoy(key, now_us), now_us)
            phone = self._phones.get(key) or _Phone("")
            phone.latest = decoy.challenge_id
            _remember(self._phones, key, phone)
            _remember(self._by_id, (key, decoy.challenge_id), decoy)
            await self._deliver(where, decoy, now_us)
        return self._answer(where)

    async def resend(self, key: CustomerKey, challenge_id: str, request_id: str) -> CodeView:
        """
        Answer as a real challenge would that is sent again, and as late.

        Raises:
            NotFound: it is no decoy of this customer's.
            PreconditionFailed, ResourceExhausted: as a real one.
            Unavailable: as `send`.
        """
        where = (key, request_id)
        if where not in self._answers:
            decoy, now_us = self._open(key, challenge_id)
            self._require_unlocked(key, now_us)
            if now_us < decoy.resend_us:
                wait = (decoy.resend_us - now_us) / SECOND_US
                raise ResourceExhausted("RESEND_TOO_EARLY", "the code was just sent", retry_after_seconds=wait)
            self._charge(key, now_us)
            await self._deliver(where, decoy, now_us)
        return self._answer(where)

    async def _deliver(self, where: tuple[CustomerKey, str], decoy: _Decoy, now_us: int) -> None:
        """Settle what a request is told from now on, and wait for what would be the gateway."""
        seconds, was_sent = random.choice(self._lately)  # noqa: S311 - not a secret
        decoy.resend_us = now_us + (PROOF_LIMITS.resend_us if was_sent else 0)
        if not was_sent:
            # It counts for nothing, as that of a real one.
            key, _ = where
            budget = give_back(self._sends.get(key, UNSPENT), period_us=SENDS_PERIOD_US, at_us=now_us)
            _remember(self._sends, key, budget)
        _remember(self._answers, where, (self._view(where[0], decoy), was_sent))
        await asyncio.sleep(seconds)

    def _answer(self, where: tuple[CustomerKey, str]) -> CodeView:
        view, was_sent = self._answers[where]
        if not was_sent:
            raise gateway_down(view.challenge_id)
        return view

    def refusal(self, key: CustomerKey, challenge_id: str, request_id: str) -> PermissionRefused:
        """
        Return how a code for a decoy is refused: as a wrong one.

        Raises:
            NotFound: it is no decoy of this customer's.
            PreconditionFailed: it ended, as a real one would have.
            ResourceExhausted: so many were wrong that a real phone would be locked.
        """
        known = self._by_id.get((key, challenge_id))
        if known is not None and request_id in known.tried:
            return wrong(known.tried[request_id])
        decoy, now_us = self._open(key, challenge_id)
        self._require_unlocked(key, now_us)
        phone = self._phones.get(key) or _Phone(challenge_id)
        left = decoy.tried[request_id] = decoy.checks_left - 1
        phone.failures += 1
        phone.locked_until_us = lock_after(phone.failures, now_us=now_us, limits=PROOF_LIMITS)
        _remember(self._phones, key, phone)
        return wrong(left)

    def _open(self, key: CustomerKey, challenge_id: str) -> tuple[_Decoy, int]:
        sent_us = self._secrets.decoy_time(key, challenge_id)
        if sent_us is None:
            raise NotFound("CHALLENGE_NOT_FOUND", "the customer has no such challenge")
        decoy = self._by_id.get((key, challenge_id))
        if decoy is None:
            decoy = _Decoy(challenge_id, sent_us, resend_us=sent_us + PROOF_LIMITS.resend_us)
            _remember(self._by_id, (key, challenge_id), decoy)
        now_us = self._clock.now_us()
        worthless = "the code is worthless; have a new one sent"
        if not decoy.checks_left:
            raise PreconditionFailed("CHALLENGE_BURNED", worthless)
        phone = self._phones.get(key)
        if phone is not None and phone.latest != challenge_id:
            raise PreconditionFailed("CHALLENGE_SUPERSEDED", worthless)
        if now_us >= decoy.sent_us + PROOF_LIMITS.code_lifetime_us:
            raise PreconditionFailed("CHALLENGE_EXPIRED", "the code came too late; have a new one sent")
        return decoy, now_us

    def _require_unlocked(self, key: CustomerKey, now_us: int) -> None:
        phone = self._phones.get(key)
        if phone is not None and now_us < phone.locked_until_us:
            wait = 0 if phone.locked_until_us == FOR_GOOD else (phone.locked_until_us - now_us) / SECOND_US
            reason, message = "PROOF_LOCKED", "too many wrong proofs; try again later, or another factor"
            raise ResourceExhausted(reason, message, retry_after_seconds=wait)

    def _charge(self, key: CustomerKey, now_us: int) -> None:
        budget, limit = self._sends.get(key, UNSPENT), PROOF_LIMITS.sends_per_customer
        if spent(budget, period_us=SENDS_PERIOD_US, now_us=now_us) >= limit:
            frees = frees_us(budget, period_us=SENDS_PERIOD_US, limit=limit, now_us=now_us)
            reason, message = "SEND_BUDGET_SPENT", "too many messages were sent; try again later"
            raise ResourceExhausted(reason, message, retry_after_seconds=(frees - now_us) / SECOND_US)
        _remember(self._sends, key, spend(budget, period_us=SENDS_PERIOD_US, now_us=now_us))

    def _view(self, key: CustomerKey, decoy: _Decoy) -> CodeView:
        return CodeView(
            challenge_id=decoy.challenge_id,
            factor_id=self.factor_id(key),
            masked=masked_by(f"{self._secrets.decoy_digits(key, 2) % 10_000:04d}"),
            expires_us=decoy.sent_us + PROOF_LIMITS.code_lifetime_us,
            resend_us=decoy.resend_us,
            checks_left=decoy.checks_left,
            message_id="",
        )


class Nobody:
    """
    Customers who do not exist, where that is not told: they are answered as those who have nothing to prove themselves.

    Which request ids were used for them is only remembered here.
    """

    def __init__(self) -> None:
        self._used: OrderedDict[tuple[CustomerKey, str], bytes] = OrderedDict()

    def require_new(self, command: Command) -> None:
        """
        Note the request id of a command for somebody who does not exist.

        Raises:
            AlreadyExists: it was used with other content.
        """
        where = (command.key, command.request_id)
        known = self._used.get(where, command.fingerprint)
        if known not in {command.fingerprint, *command.other_fingerprints}:
            raise request_id_reused(command.request_id)
        _remember(self._used, where, known)

    @contextmanager
    def answered(self, command: Command, look: Callable[[Identity], object]) -> Iterator[None]:
        """
        Refuse a command as `look` refuses an identity with nothing in it, should its customer not exist.

        Raises:
            RiskgateError: as `look`; as `require_new`.
        """
        try:
            yield
        except NotFound as error:
            if error.reason == CUSTOMER_NOT_FOUND:
                self.require_new(command)
                look(EMPTY_IDENTITY)
            raise


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _remember(where: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    where[key] = value
    where.move_to_end(key)
    if len(where) > REMEMBERED_MAX:
        where.popitem(last=False)
