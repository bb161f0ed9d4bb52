"""Passkeys that answer with anything, correctly signed."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import msgspec

from riskgate_client.phone import Passkey
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    DeviceKey,
    PasskeyAssertion,
)
from tests.unit.crypto.proofs.asking import (
    ASKED,
    POLICY,
    WEB,
    key_of,
)

SIGN_IN: Final = msgspec.structs.replace(ASKED, purpose="SIGN_IN", transaction=None)
FIELD: Final = "webauthn_assertion_json"
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

UP, UV, BE, BS, AT, ED = 0x01, 0x04, 0x08, 0x10, 0x40, 0x80


def passkey(origin: str = WEB, **options: Any) -> tuple[Passkey, DeviceKey]:
    made = Passkey(origin=origin, **options)
    return made, key_of(made)


def b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def with_client_data(made: Passkey, client_data: bytes) -> PasskeyAssertion:
    """An assertion over any client data, correctly signed."""
    return PasskeyAssertion(made.assertion(client_data, made.authenticator_data(POLICY.rp_id)))


def with_authenticator_data(made: Passkey, data: bytes) -> PasskeyAssertion:
    """An assertion over any authenticator data, correctly signed."""
    client_data = made.client_data("webauthn.get", b64(challenges.challenge(ASKED)))
    return PasskeyAssertion(made.assertion(client_data, data))


def changed(answer: PasskeyAssertion, **fields: Any) -> PasskeyAssertion:
    """The answer with parts of its JSON replaced; `response_x` replaces `x` of the response."""
    credential = json.loads(answer.response_json)
    for name, value in fields.items():
        inner = name.removeprefix("response_")
        (credential["response"] if inner != name else credential)[inner] = value
    return PasskeyAssertion(json.dumps(credential))
