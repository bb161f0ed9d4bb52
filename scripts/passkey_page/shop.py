"""
What the backend of the page does: it asks Riskgate, and passes on what Riskgate asks and what the browser answers.

Who the customer is, what things cost and who is paid are the backend's own to know; nothing of it is taken from the
page. What is signed covers the purchase as Riskgate stored it, so approving one approves no other.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from riskgate_client import AlreadyExists, Decision, DevicePlatform, Money, Outcome, ProofPurpose, Riskgate

LIMIT: Final = Money("CNY", 800_000)
SCOPES: Final = ("risk:check", "line:open", "device:enroll", "device:verify")
"""All that the backend's key is for."""


@dataclass(frozen=True)
class Article:
    """Something to buy: what it is called, who is paid, and how much."""

    name: str
    payee_id: str
    amount: Money


ARTICLES: Final[Mapping[str, Article]] = {
    "coffee": Article("Coffee", "corner-cafe", Money("CNY", 1_800)),
    "camera": Article("Camera", "harbour-photo", Money("CNY", 519_900)),
    "laptop": Article("Laptop", "north-electronics", Money("CNY", 599_900)),
}
"""The first is approved at once; the others are most of a new line, and so ask for a proof."""


class Shop:
    """Passkeys and purchases of logged-in customers. Its methods may be called by many threads at once."""

    def __init__(self, gate: Riskgate, articles: Mapping[str, Article] = ARTICLES) -> None:
        self._gate = gate
        self.articles = articles
        self._bought: dict[tuple[str, str], Article] = {}
        """By customer and transaction."""

    def open_line(self, customer_id: str) -> None:
        """
        Give a customer a line, once.

        Raises:
            RiskgateError: the server refused.
        """
        try:
            self._gate.lines.open(
                customer_id=customer_id, line_id="main", limit=LIMIT, decision_reference="demo", actor_id="demo"
            )
        except AlreadyExists:
            return

    def passkeys(self, customer_id: str) -> list[dict[str, Any]]:
        """
        List a customer's passkeys.

        Raises:
            RiskgateError: the server refused, as in every method below.
        """
        return [
            {"name": device.display_name, "level": device.assurance.level}
            for device in self._gate.devices.list_devices(customer_id)
        ]

    def begin_enrolment(self, customer_id: str) -> dict[str, Any]:
        """Return what the browser must be asked to make a passkey."""
        begun = self._gate.devices.begin_enrollment(
            customer_id=customer_id,
            platform=DevicePlatform.WEBAUTHN,
            display_name=f"{customer_id}'s passkey",
            account_name=customer_id,
        )
        return {"enrollment_id": begun.enrollment_id, "options": begun.creation_options_json}

    def finish_enrolment(self, customer_id: str, enrollment_id: str, registration: str) -> dict[str, Any]:
        """Register the passkey that the browser made."""
        device = self._gate.devices.finish_enrollment(
            customer_id=customer_id, enrollment_id=enrollment_id, webauthn_registration_json=registration
        )
        return {"name": device.display_name, "level": device.assurance.level}

    def buy(self, customer_id: str, article_id: str) -> dict[str, Any]:
        """
        Ask for a decision about a purchase.

        Raises:
            KeyError: there is no such article.
        """
        article = self.articles[article_id]
        transaction_id = f"web-{secrets.token_hex(8)}"
        self._bought[customer_id, transaction_id] = article
        decision = self._gate.risk.check(
            customer_id=customer_id,
            transaction_id=transaction_id,
            amount=article.amount,
            merchant_id=article.payee_id,
        )
        return self._shown(decision)

    def begin_approval(self, customer_id: str, transaction_id: str) -> dict[str, Any]:
        """Return what the browser must be asked to approve one purchase."""
        challenge = self._gate.devices.begin_challenge(
            customer_id=customer_id, purpose=ProofPurpose.TRANSACTION, transaction_id=transaction_id
        )
        return {"challenge_id": challenge.challenge_id, "options": challenge.request_options_json}

    def finish_approval(self, customer_id: str, challenge_id: str, assertion: str) -> dict[str, Any]:
        """Check what the browser signed, and resume the purchase that it is for: Riskgate says which that is."""
        grant = self._gate.devices.verify_challenge(
            customer_id=customer_id, challenge_id=challenge_id, webauthn_assertion_json=assertion
        )
        # The grant is spent here and now; it never gets to the page.
        decision = self._gate.risk.check(
            customer_id=customer_id, transaction_id=grant.transaction_id, grant=grant.token
        )
        return self._shown(decision)

    def _shown(self, decision: Decision) -> dict[str, Any]:
        article = self._bought[decision.customer_id, decision.transaction_id]
        return {
            "transaction_id": decision.transaction_id,
            "article": article.name,
            "payee": article.payee_id,
            "amount": str(decision.requested_amount),
            "outcome": decision.outcome.value,
            "needs_proof": decision.outcome is Outcome.STEP_UP,
            "reasons": [text for reason in decision.reasons if (text := reason.text())],
            "available": str(decision.available_after) if decision.available_after else "",
        }
