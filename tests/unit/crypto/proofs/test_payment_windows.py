"""Secure Payment Confirmation: what a browser showed before a passkey signed."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest

from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    Fault,
    PaymentInstrument,
)
from tests.unit.crypto.proofs.asking import (
    ASKED,
    POLICY,
    PURCHASE,
    WEB,
    answered,
    prove,
    refused,
    request,
)
from tests.unit.crypto.proofs.passkeys import (
    SIGN_IN,
    b64,
    passkey,
)

PAYING: Final = msgspec.structs.replace(
    POLICY, payment_instrument=PaymentInstrument("Bank credit", "https://bank.example/i.png")
)
SHOWN: Final[dict[str, Any]] = {
    "rpId": "bank.example",
    "topOrigin": WEB,
    "payeeName": "M1",
    "total": {"currency": "CNY", "value": "129.00"},
    "instrument": {"displayName": "Bank credit", "icon": "https://bank.example/i.png"},
}


def test_a_payment_window_that_showed_the_purchase_holds() -> None:
    made, key = passkey()

    proof = prove(answered(made, type="payment.get", payment=SHOWN), key, policy=PAYING)

    assert proof.digest == challenges.transaction_digest("bank", PURCHASE)


@pytest.mark.parametrize(
    "shown",
    [
        SHOWN | {"total": {"currency": "CNY", "value": "12.90"}},
        SHOWN | {"total": {"currency": "CNY", "value": "129.0"}},
        SHOWN | {"total": {"currency": "USD", "value": "129.00"}},
        SHOWN | {"payeeName": "M2"},
        SHOWN | {"rpId": "evil.example"},
        SHOWN | {"topOrigin": "https://evil.example"},
        SHOWN | {"topOrigin": []},
        SHOWN | {"instrument": {"displayName": "Bank credit", "icon": "https://evil.example/i.png"}},
        SHOWN | {"payeeOrigin": "https://shop.example"},
        {name: value for name, value in SHOWN.items() if name != "instrument"},
        {},
        None,
    ],
    ids=lambda shown: repr(shown)[-40:],
)
def test_a_payment_window_that_showed_anything_else_is_refused(shown: Any) -> None:
    made, key = passkey()

    with refused(Fault.PAYMENT_DIFFERS):
        prove(answered(made, type="payment.get", payment=shown), key, policy=PAYING)


def test_a_payment_is_no_sign_in_and_is_taken_only_where_it_was_set_up() -> None:
    made, key = passkey()

    with refused(Fault.TYPE_WRONG):
        prove(answered(made, SIGN_IN, type="payment.get", payment=SHOWN), key, asked=SIGN_IN, policy=PAYING)
    with refused(Fault.PAYMENT_DIFFERS):
        prove(answered(made, type="payment.get", payment=SHOWN), key)


@pytest.mark.parametrize(
    ("currency", "minor", "value"), [("CNY", 5, "0.05"), ("JPY", 129, "129"), ("KWD", 12_900, "12.900")]
)
def test_the_amount_shown_has_the_digits_of_its_currency(currency: str, minor: int, value: str) -> None:
    made, key = passkey()
    purchase = msgspec.structs.replace(PURCHASE, currency=currency, amount_minor=minor)
    asked = msgspec.structs.replace(ASKED, transaction=purchase)
    shown = SHOWN | {"total": {"currency": currency, "value": value}}

    proof = prove(answered(made, asked, type="payment.get", payment=shown), key, asked=asked, policy=PAYING)

    assert proof.digest == challenges.transaction_digest("bank", purchase)


def test_a_payment_needs_its_signature_too() -> None:
    (owner, key), (thief, _) = passkey(), passkey()
    thief.webauthn_id = owner.webauthn_id

    with refused(Fault.SIGNATURE_WRONG):
        prove(answered(thief, type="payment.get", payment=SHOWN), key, policy=PAYING)


def test_the_request_names_the_challenge_that_is_answered() -> None:
    assert json.loads(request())["challenge"] == b64(challenges.challenge(ASKED))
