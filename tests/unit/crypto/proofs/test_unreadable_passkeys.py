"""Answers of passkeys that cannot be read: each is malformed, and names its field."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import cbor2
import pytest

from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    PasskeyAssertion,
    PasskeyRegistration,
    Platform,
)
from tests.unit.crypto.proofs.asking import (
    ASKED,
    POLICY,
    WEB,
    answered,
    malformed,
    prove,
    register,
)
from tests.unit.crypto.proofs.passkeys import (
    AT,
    ED,
    FIELD,
    UP,
    UV,
    b64,
    changed,
    passkey,
    with_authenticator_data,
    with_client_data,
)


def client_data_with(text: str) -> bytes:
    whole = json.dumps({"type": "webauthn.get", "challenge": b64(challenges.challenge(ASKED)), "origin": WEB})
    return whole.replace("{", "{" + text, 1).encode()


@pytest.mark.parametrize(
    "client_data",
    [
        client_data_with('"type":"webauthn.create",'),
        client_data_with('"origin":"https://evil.example",'),
        client_data_with('"a":' + "[" * 100_000 + "]" * 100_000 + ","),
        client_data_with('"a":' + "[" * 8 + "]" * 8 + ","),
        client_data_with('"a":NaN,'),
        client_data_with('"a":' + "9" * 5000 + ","),
        client_data_with('"a":"' + "x" * 4096 + '",'),
        client_data_with('"crossOrigin":1,'),
        client_data_with('"payment":[],'),
        b"\xff" + client_data_with(""),
        b"\xef\xbb\xbf" + client_data_with(""),
        client_data_with("").decode().encode("utf-16"),
        client_data_with("")[:-1],
        client_data_with("") + b"x",
        b"[]",
        b'"text"',
        b"null",
        b"",
        b"{}",
        b'{"type":1,"challenge":"","origin":""}',
        b'{"type":"webauthn.get","challenge":"","origin":"\\ud800"}',
    ],
    ids=lambda value: repr(value[:24]),
)
def test_client_data_that_is_not_strict_json_is_malformed(client_data: bytes) -> None:
    made, key = passkey()

    with malformed(FIELD):
        prove(with_client_data(made, client_data), key)


HEADER: Final = hashlib.sha256(POLICY.rp_id.encode()).digest()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEADER + bytes([UP | UV]) + bytes(3),
        HEADER + bytes([UP | UV]) + bytes(4) + b"\0",
        HEADER + bytes([UP | UV | AT]) + bytes(4),
        HEADER + bytes([UP | UV | ED]) + bytes(4),
        HEADER + bytes([UP | UV | ED]) + bytes(4) + b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        HEADER + bytes([UP | UV | ED]) + bytes(4) + b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
        HEADER + bytes([UP | UV | ED]) + bytes(4) + b"\xa1\x01" + b"\x81" * 5000 + b"\0",
        HEADER + bytes([UP | UV | ED]) + bytes(4) + b"\x9f\xff",
        HEADER + bytes([UP | UV | ED]) + bytes(4) + b"\xa2\x01\x01\x01\x02",
        HEADER + bytes([UP | UV | ED]) + bytes(4) + b"\xc2\x41\x01",
        HEADER + bytes([UP | UV | ED]) + bytes(4) + b"\x80",
        HEADER + bytes([UP | UV | ED]) + bytes(4) + b"\xa0\0",
    ],
    ids=lambda value: f"{len(value)}:{value[32:48].hex()}",
)
def test_authenticator_data_of_another_shape_is_malformed(data: bytes) -> None:
    made, key = passkey()

    with malformed(FIELD):
        prove(with_authenticator_data(made, data), key)


def test_extensions_are_read_over() -> None:
    made, key = passkey()
    data = HEADER + bytes([UP | UV | ED]) + bytes(4) + cbor2.dumps({"uvm": [[2, 4, 2]]})

    assert prove(with_authenticator_data(made, data), key).user_verified


@pytest.mark.parametrize(
    "change",
    [
        {"response_signature": ""},
        {"response_signature": "AA=="},
        {"response_signature": "AB"},
        {"response_signature": "+/8"},
        {"response_signature": None},
        {"response_signature": "A" * 2000},
        {"response_authenticatorData": 5},
        {"response_clientDataJSON": "Ä"},
        {"response_clientDataJSON": ["AA"]},
        {"rawId": ""},
        {"rawId": "AAAA"},
        {"id": "AAAA"},
        {"id": 7},
        {"type": "password"},
        {"type": None},
        {"response": []},
        {"response": None},
        {"extra": [[[[[[[[[]]]]]]]]]},
        {"extra": "x" * 16_384},
    ],
    ids=lambda change: repr(change)[:40],
)
def test_an_answer_of_another_form_is_malformed(change: dict[str, Any]) -> None:
    made, key = passkey()

    with malformed(FIELD):
        prove(changed(answered(made), **change), key)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"id":"a","id":"a"}', "\ud800", "[" * 10_000])
def test_text_that_is_no_answer_is_malformed(text: str) -> None:
    _, key = passkey()

    with malformed(FIELD):
        prove(PasskeyAssertion(text), key)
    with malformed("webauthn_registration_json"):
        register(PasskeyRegistration(text), Platform.WEBAUTHN)
