"""
Secure Payment Confirmation: a window of the browser that shows payee, amount and instrument, and is signed for.

https://www.w3.org/TR/secure-payment-confirmation/ (CollectedClientPaymentData). What was shown must be the purchase as
the engine stored it, every field of it; a field nobody knows might change what the customer saw, so it is refused.
Only `browserBoundPublicKey` is passed over: a second key of the browser, which shows nothing.
"""

from __future__ import annotations

from typing import Any, Final

import iso4217

from riskgate_server.domain.identity.challenges import Transaction
from riskgate_server.domain.identity.devices import Fault, ProofPolicy, ProofRefused

_EXPONENTS: Final[dict[str, int]] = {currency.code: currency.exponent or 0 for currency in iso4217.Currency}


def check(
    payment: dict[str, Any] | None, transaction: Transaction | None, policy: ProofPolicy, credential_id: str
) -> None:
    """
    Hold what the browser showed against the purchase.

    Raises:
        ProofRefused: any field differs, is missing or is one that was not asked for.
    """
    instrument = policy.payment_instrument
    if payment is None or transaction is None or instrument is None or payment.get("topOrigin") not in policy.origins:
        raise ProofRefused(Fault.PAYMENT_DIFFERS, credential_id)
    expected = {
        "rpId": policy.rp_id,
        "topOrigin": payment["topOrigin"],
        "payeeName": transaction.payee_id,
        "total": {"currency": transaction.currency, "value": shown_amount(transaction)},
        "instrument": {"displayName": instrument.display_name, "icon": instrument.icon},
    }
    if {name: shown for name, shown in payment.items() if name != "browserBoundPublicKey"} != expected:
        raise ProofRefused(Fault.PAYMENT_DIFFERS, credential_id)


def shown_amount(transaction: Transaction) -> str:
    """Return the amount as the window shows it: major units in decimal, with the digits its currency has (ISO 4217)."""
    digits = _EXPONENTS.get(transaction.currency, 0)
    minor = str(transaction.amount_minor).rjust(digits + 1, "0")
    return f"{minor[:-digits]}.{minor[-digits:]}" if digits else minor
