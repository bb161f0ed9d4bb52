"""Passkeys over the wire that answer for somebody else, from somewhere else, or in no form there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from riskgate.identity.v1 import device_service_pb2 as pb
from riskgate_client.phone import Passkey
from tests.rpc.attacks import MALFORMED, WRONG
from tests.rpc.calling import refused
from tests.rpc.devices import SPOILT, WEB, asked, b64, begin, enrol, proof, registration, unb64
from tests.rpc.phones import TRANSACTION
from tests.rpc.requests import buy
from tests.rpc.serving import Tenant

SITE: Final = "localhost"
"""The relying party of a server that is not told otherwise."""
UP, UV, BE, BS, ED = 0x01, 0x04, 0x08, 0x10, 0x80


class Holder:
    """Ada, with a passkey, and a challenge that waits for it."""

    def __init__(self, tenant: Tenant, passkey: Passkey) -> None:
        self.tenant, self.passkey = tenant, passkey
        self.credential_id = enrol(tenant, passkey)
        self.ask()

    def ask(self, **how: Any) -> None:
        self.challenge = asked(self.tenant, **how)
        self.question: str = json.loads(self.challenge.request_options_json)["challenge"]

    def client_data(self, type: str = "webauthn.get", **said: Any) -> bytes:
        return self.passkey.client_data(type, self.question, **said)

    def meets(self, client_data: bytes = b"", data: bytes = b"") -> str:
        """Give an answer with this client data or authenticator data, signed as it should be; return the refusal."""
        data = data or self.passkey.authenticator_data(SITE)
        return self.given(self.passkey.assertion(client_data or self.client_data(), data))

    def given(self, answer: str) -> str:
        request = proof(self.passkey, self.challenge, self.credential_id, webauthn_assertion_json=answer)
        return refused(lambda: self.tenant.api.devices.VerifyChallenge(request)).name

    def is_let_in(self) -> bool:
        """Give the right answer to what is asked: all else was as it should be."""
        request = proof(self.passkey, self.challenge, self.credential_id)
        return self.tenant.api.devices.VerifyChallenge(request).grant.level == 2


@pytest.fixture
def ada(ada_at: Tenant) -> Holder:
    return Holder(ada_at, Passkey(WEB))


def enrolling(tenant: Tenant, passkey: Passkey, type: str = "webauthn.create", **said: Any) -> str:
    """Register with this client data and return the refusal."""
    begun = begin(tenant, passkey)
    request = registration(passkey, begun)
    whole = json.loads(request.webauthn_registration_json)
    question = json.loads(begun.creation_options_json)["challenge"]
    client_data = passkey.client_data(type, question, **said)
    whole["response"]["clientDataJSON"] = b64(client_data)
    request.webauthn_registration_json = json.dumps(whole)
    return refused(lambda: tenant.api.devices.FinishEnrollment(request)).name


# --- what it answers ---


@pytest.mark.attack("other-question")
def test_an_answer_to_another_challenge_or_purchase(ada: Holder) -> None:
    small, large = (buy(ada.tenant.api, phone="ask", amount=amount).transaction_id for amount in (100, 90_000))
    ada.ask(purpose=TRANSACTION, transaction_id=small)
    for_small = ada.passkey.assertion(ada.client_data(), ada.passkey.authenticator_data(SITE))
    ada.ask(purpose=TRANSACTION, transaction_id=large)

    assert ada.given(for_small) == WRONG
    assert ada.meets(ada.client_data(challenge=b64(bytes(32)))) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("wrong-ceremony")
@pytest.mark.parametrize("type", ["webauthn.create", "payment.get", "webauthn.GET", ""])
def test_an_answer_of_another_ceremony(ada: Holder, type: str) -> None:
    assert ada.meets(ada.client_data(type)) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("wrong-ceremony")
def test_a_payment_of_a_browsers_own_window_where_it_is_not_set_up(ada: Holder) -> None:
    ada.ask(purpose=TRANSACTION, transaction_id=buy(ada.tenant.api, phone="ask").transaction_id)
    shown = {"rpId": SITE, "topOrigin": WEB, "payeeName": "shop", "total": {"currency": "CNY", "value": "10.00"}}

    assert ada.meets(ada.client_data("payment.get", payment=shown)) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("wrong-ceremony")
@pytest.mark.parametrize("type", ["webauthn.get", "payment.get"])
def test_a_registration_that_is_an_assertion(ada_at: Tenant, type: str) -> None:
    assert enrolling(ada_at, Passkey(WEB), type=type) == WRONG


# --- where it was answered ---

ORIGINS: Final = (
    "http://localhost",
    "https://localhost:8080",
    "http://localhost:8080.evil.example",
    "http://evil-localhost:8080",
    "http://pay.localhost:8080",
    "http://localhost:8081",
    "http://localhost:8080/",
    "HTTP://localhost:8080",
    "android:apk-key-hash:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "null",
)


@pytest.mark.attack("wrong-origin")
@pytest.mark.parametrize("origin", ORIGINS)
def test_an_answer_from_a_page_or_app_that_is_not_named(ada: Holder, origin: str) -> None:
    assert ada.meets(ada.client_data(origin=origin)) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("wrong-origin")
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_registration_on_a_page_or_app_that_is_not_named(ada_at: Tenant, origin: str) -> None:
    assert enrolling(ada_at, Passkey(WEB), origin=origin) == WRONG


EMBEDDINGS: Final[tuple[dict[str, Any], ...]] = (
    {"crossOrigin": True},
    {"topOrigin": WEB},
    {"topOrigin": None},
    {"topOrigin": "https://shop.example"},
)


@pytest.mark.attack("framed")
@pytest.mark.parametrize("embedding", EMBEDDINGS, ids=str)
def test_an_answer_from_inside_another_page(ada: Holder, embedding: dict[str, Any]) -> None:
    assert ada.meets(ada.client_data(**embedding)) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("framed")
@pytest.mark.parametrize("embedding", EMBEDDINGS, ids=str)
def test_a_registration_from_inside_another_page(ada_at: Tenant, embedding: dict[str, Any]) -> None:
    assert enrolling(ada_at, Passkey(WEB), **embedding) == WRONG


@pytest.mark.attack("wrong-site")
def test_an_answer_for_another_site(ada: Holder) -> None:
    assert ada.meets(data=ada.passkey.authenticator_data("evil.example")) == WRONG
    assert ada.is_let_in()


# --- who answered ---


@pytest.mark.attack("user-unverified")
def test_a_user_who_was_not_verified(ada: Holder) -> None:
    assert ada.meets(data=ada.passkey.authenticator_data(SITE, flags=UP)) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("user-unverified")
def test_a_registration_by_a_user_who_was_not_verified(ada_at: Tenant) -> None:
    assert enrolling(ada_at, Passkey(WEB, verifies=False)) == WRONG


@pytest.mark.attack("wrong-flags")
@pytest.mark.parametrize(
    ("synced", "flags"),
    [
        (False, UV), (False, 0), (False, UP | UV | BS), (False, UP | UV | BE), (False, UP | UV | BE | BS),
        (True, UP | UV),
    ],
    ids=["absent", "nothing", "backed up, not eligible", "eligible now", "copied now", "not eligible any more"],
)  # fmt: skip
def test_flags_that_do_not_fit_each_other_or_the_key(ada_at: Tenant, *, synced: bool, flags: int) -> None:
    ada = Holder(ada_at, Passkey(WEB, synced=synced))

    assert ada.meets(data=ada.passkey.authenticator_data(SITE, flags=flags)) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("spoilt-signature")
@pytest.mark.parametrize("name", SPOILT)
def test_a_signature_in_any_other_spelling(ada: Holder, name: str) -> None:
    whole = json.loads(ada.passkey.assertion(ada.client_data(), ada.passkey.authenticator_data(SITE)))
    r, s = decode_dss_signature(unb64(whole["response"]["signature"]))
    whole["response"]["signature"] = b64(SPOILT[name](r, s))

    assert ada.given(json.dumps(whole)) == WRONG
    assert ada.is_let_in()


# --- what cannot be read ---


def with_name(text: str) -> Callable[[Holder], bytes]:
    """Client data with something more in front."""
    return lambda ada: ada.client_data().replace(b"{", b"{" + text.encode(), 1)


@pytest.mark.attack("unreadable-client-data")
@pytest.mark.parametrize(
    "client_data",
    [
        with_name('"type":"webauthn.create",'),
        with_name('"origin":"https://evil.example",'),
        with_name('"a":' + "[" * 2_000 + "]" * 2_000 + ","),
        with_name('"a":NaN,'),
        lambda ada: b"\xff" + ada.client_data(),
        lambda ada: ada.client_data().decode().encode("utf-16"),
        lambda ada: ada.client_data() + b"x",
        lambda ada: b"[]",
        lambda ada: b"null",
        lambda ada: b"{}",
    ],
    ids=["type twice", "origin twice", "brackets", "no number", "no UTF-8", "UTF-16", "more", "list", "null", "empty"],
)
def test_client_data_that_is_not_strict_json(ada: Holder, client_data: Callable[[Holder], bytes]) -> None:
    # More often than a challenge takes a wrong answer.
    assert {ada.meets(client_data(ada)) for _ in range(4)} == {MALFORMED}
    assert ada.is_let_in()


def test_a_hundred_thousand_brackets_do_not_come_as_far_as_being_read(ada: Holder) -> None:
    assert ada.meets(with_name('"a":' + "[" * 100_000 + ",")(ada)) == "INVALID_ARGUMENT MESSAGE_TOO_LARGE"
    assert ada.meets(with_name('"a":' + "[" * 20_000 + ",")(ada)) == "INVALID_ARGUMENT FIELD_INVALID"
    assert ada.is_let_in()


HEADER: Final = sha256(SITE.encode()).digest()
EXTENDED: Final = HEADER + bytes([UP | UV | ED]) + bytes(4)


@pytest.mark.attack("unreadable-authenticator-data")
@pytest.mark.parametrize(
    "data",
    [
        HEADER + bytes([UP | UV]) + bytes(3),
        HEADER + bytes([UP | UV]) + bytes(4) + b"\0",
        HEADER + bytes([UP | UV | 0x40]) + bytes(4),
        EXTENDED,
        EXTENDED + b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        EXTENDED + b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
        EXTENDED + b"\xa1\x01" + b"\x81" * 5_000 + b"\0",
        EXTENDED + b"\x9f\xff",
        EXTENDED + b"\xa0\0",
    ],
    ids=[
        "36 bytes", "trailing", "no key", "no extensions", "names without end", "bytes without end", "deep", "open",
        "more",
    ],
)  # fmt: skip
def test_authenticator_data_of_another_shape(ada: Holder, data: bytes) -> None:
    assert {ada.meets(data=data) for _ in range(4)} == {MALFORMED}
    assert ada.is_let_in()


@pytest.mark.attack("unreadable-authenticator-data")
def test_a_registration_whose_cbor_is_none(ada_at: Tenant) -> None:
    passkey = Passkey(WEB)
    request = registration(passkey, begin(ada_at, passkey))
    good = pb.FinishEnrollmentRequest()
    good.CopyFrom(request)
    for attestation in (b"", b"\xbb" + b"\xff" * 8, b"\x81" * 5_000, b"\xa0", b"\xf6"):
        whole = json.loads(good.webauthn_registration_json)
        whole["response"]["attestationObject"] = b64(attestation)
        request.webauthn_registration_json = json.dumps(whole)
        assert refused(partial(ada_at.api.devices.FinishEnrollment, request)).name == MALFORMED

    assert ada_at.api.devices.FinishEnrollment(good).credential.credential_id
