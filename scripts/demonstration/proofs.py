"""
How the customer proves who she is, and how a thief fails to: codes, a phone's key, and a step-up carried through.

As in the rest of the story, every sentence is something the server answered.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from riskgate_client import (
    AsyncRiskgate,
    Decision,
    DevicePlatform,
    FailedPrecondition,
    Grant,
    Outcome,
    PermissionDenied,
    ProofPurpose,
    RiskgateError,
)
from riskgate_client.phone import AndroidPhone

NUMBER: Final = "+86 138 1234 5678"
Say = Callable[[str], None]
Told = Callable[[datetime], str]
"""How an instant is written where she lives."""


class Expect(Protocol):
    """Breaks the story unless something is so."""

    def __call__(self, kept: bool, what: str, /) -> None:  # noqa: FBT001  reads as a sentence
        """`what` is what was expected."""


class Prover:
    """
    The customer's phone: it receives messages, and its key answers after a fingerprint.

    `inbox` is where the server's gateway for development leaves messages.
    """

    def __init__(
        self, shop: AsyncRiskgate, customer_id: str, *, inbox: Path, say: Say, told: Told, expect: Expect
    ) -> None:
        self._shop, self._customer = shop, customer_id
        self._inbox, self._say, self._told, self._expect = inbox, say, told, expect
        self._key = AndroidPhone()
        self._credential_id = ""

    async def enrol(self) -> None:
        """Confirm her number by a code, then bind her phone's key with a second one."""
        phone = await self._shop.otp.enroll_phone(customer_id=self._customer, phone_number=NUMBER, language_code="en")
        text, code = self._message()
        factor = await self._shop.otp.confirm_factor(
            customer_id=self._customer, factor_id=phone.factor.factor_id, code=code
        )
        self._say(
            f"She confirms her number {phone.challenge.masked_destination} by the code in “{text}”: {factor.state}."
        )
        sent = await self._shop.otp.send_code(
            customer_id=self._customer, purpose=ProofPurpose.BINDING, language_code="zh-Hans"
        )
        text, code = self._message()
        grant = await self._shop.otp.verify_code(customer_id=self._customer, challenge_id=sent.challenge_id, code=code)
        begun = await self._shop.devices.begin_enrollment(
            customer_id=self._customer,
            platform=DevicePlatform.ANDROID_KEYSTORE,
            display_name="Lin Mei's phone",
            binding_grant=grant.token,
        )
        made = self._key.enrol(begun.signing_input, begun.challenge)
        credential = await self._shop.devices.finish_enrollment(
            customer_id=self._customer,
            enrollment_id=begun.enrollment_id,
            raw_key=made,
        )
        self._credential_id = credential.credential_id
        full = credential.full_strength_time
        self._expect(full > credential.enroll_time, "what joins a factor has a cool-down")
        self._say(
            f"A second one, in Chinese: “{text}” It lets her bind the key in her phone: level"
            f" {credential.assurance.level}, and from {self._told(full)} on a fingerprint on it answers where a code"
            " is not enough."
        )

    async def withstand(self, asked: Decision) -> None:
        """Let a thief who knows her password try what thieves try."""
        step_up = asked.step_up
        assert step_up is not None
        self._say(
            f"It takes a proof of level {step_up.required_level} by {' or '.join(step_up.allowed_factors)}; she has the"
            " key in her phone, and he has not."
        )
        refusal = await self._refused(
            self._shop.otp.send_code(
                customer_id=self._customer, purpose=ProofPurpose.TRANSACTION, transaction_id=asked.transaction_id
            )
        )
        self._say(f"He asks for a code: {refusal.reason}; none goes to a number that may be his by now.")
        challenge = await self._shop.devices.begin_challenge(
            customer_id=self._customer, purpose=ProofPurpose.TRANSACTION, transaction_id=asked.transaction_id
        )
        forged = AndroidPhone().sign(challenge.signing_input)
        refusal = await self._refused(
            self._shop.devices.verify_challenge(
                customer_id=self._customer,
                challenge_id=challenge.challenge_id,
                credential_id=self._credential_id,
                signature=forged,
            )
        )
        self._expect(isinstance(refusal, PermissionDenied), "a forged signature is refused")
        self._say(f"He signs with a key of his own: {refusal.reason}. The purchase waits, and nothing is held.")

    async def approve(self, asked: Decision) -> Decision:
        """Let her answer the demand on her own phone, and the purchase go on."""
        step_up = asked.step_up
        assert step_up is not None
        challenge = await self._shop.devices.begin_challenge(
            customer_id=self._customer, purpose=ProofPurpose.TRANSACTION, transaction_id=asked.transaction_id
        )
        shown = json.loads(challenge.signing_input)["transaction"]
        self._expect(shown["amount_minor"] == asked.requested_amount.amount_minor if asked.requested_amount else False,
                     "the phone shows the amount that was asked for")  # fmt: skip
        grant = await self._shop.devices.verify_challenge(
            customer_id=self._customer,
            challenge_id=challenge.challenge_id,
            credential_id=self._credential_id,
            signature=self._key.sign(challenge.signing_input),
        )
        self._say(
            f"Her phone shows amount and payee ({_money(asked)} to {shown['payee_id']}); her fingerprint signs exactly"
            f" that: a grant of level {grant.level} for this purchase, for one use."
        )
        decision = await self._resumed(asked, grant)
        self._expect(decision.outcome is Outcome.APPROVE, "the proof lets the purchase go on")
        self._say(
            f"The purchase goes on with the grant: {decision.outcome}, {', '.join(decision.reason_codes)};"
            f" {_money(decision)} is held in the same step."
        )
        refusal = await self._refused(self._resumed(asked, grant))
        self._expect(isinstance(refusal, FailedPrecondition), "a grant is spent once")
        self._say(f"The same grant a second time is refused ({refusal.reason}): the purchase no longer waits.")
        return decision

    def _resumed(self, asked: Decision, grant: Grant) -> Awaitable[Decision]:
        return self._shop.risk.check(customer_id=self._customer, transaction_id=asked.transaction_id, grant=grant.token)

    async def _refused(self, call: Awaitable[Any]) -> RiskgateError:
        try:
            await call
        except RiskgateError as error:
            return error
        self._expect(False, "the attempt is refused")
        raise AssertionError

    def _message(self) -> tuple[str, str]:
        """Read the last message as the phone shows it, and the code in it."""
        message = json.loads(self._inbox.read_text(encoding="utf-8").splitlines()[-1])
        text = str(message["text"])
        code = next(word for word in _words(text) if len(word) == 6)  # noqa: PLR2004  a code's digits
        return text, code


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isascii() and letter.isdigit() else " " for letter in text).split()


def _money(decision: Decision) -> str:
    amount = decision.held_amount or decision.requested_amount
    return str(amount)
