"""Signed biometric tokens: a compact JWS that says one thing in one way, or is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any, Final

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from riskgate_client.phone import AndroidPhone, JoseApp
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import Algorithm, CompactJWS, Fault, Platform
from tests.unit.crypto.proofs.asking import (
    ASKED,
    ENROLMENT,
    NOW_US,
    PURCHASE,
    SECOND_US,
    key_of,
    malformed,
    prove,
    refused,
    register,
    registration_of,
)

TO_SIGN: Final = challenges.signing_input(ASKED)
NOW: Final = NOW_US // SECOND_US
HEADER: Final = {"alg": "ES256", "typ": "riskgate-proof+jwt", "kid": "k1"}


def b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    asked = json.loads(TO_SIGN)
    said = {
        "aud": asked["audience"],
        "jti": "CH1",
        "nonce": asked["challenge"],
        "digest": asked["digest"],
        "exp": NOW + 60,
    }
    return {name: value for name, value in (said | changes).items() if value is not None}


def spki(app: JoseApp) -> bytes:
    return app.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(("name", "algorithm"), [("ES256", Algorithm.ES256), ("EdDSA", Algorithm.EDDSA)])
def test_an_app_enrols_its_key_and_approves_a_purchase(name: Any, algorithm: Algorithm) -> None:
    app = JoseApp(name)

    verdict = register(registration_of(app.enrol(challenges.signing_input(ENROLMENT))), Platform.JOSE)
    proof = prove(CompactJWS(app.sign(TO_SIGN, "k1")), verdict.key)

    assert (verdict.key.platform, verdict.key.algorithm) == (Platform.JOSE, algorithm)
    assert (verdict.assurance.device_bound, verdict.assurance.level) == (False, 2)
    assert (proof.credential_id, proof.challenge) == ("k1", challenges.challenge(ASKED))
    assert proof.digest == challenges.transaction_digest("bank", PURCHASE)
    assert not proof.device_bound


def test_a_token_of_another_jose_library_holds() -> None:
    app = JoseApp()
    token = jwt.encode(claims(), app.key, algorithm="ES256", headers={"typ": HEADER["typ"], "kid": "k1"})

    assert prove(CompactJWS(token), key_of(app)).credential_id == "k1"


def test_claims_that_nobody_asked_for_are_read_over() -> None:
    app = JoseApp()

    assert prove(CompactJWS(app.token(HEADER, claims(iat=NOW + 3600, amr=["fpt"], nbf=NOW))), key_of(app)).user_verified


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"aud": "riskgate:other"}, Fault.AUDIENCE_WRONG),
        ({"aud": ["riskgate:bank"]}, Fault.AUDIENCE_WRONG),
        ({"aud": None}, Fault.AUDIENCE_WRONG),
        ({"jti": "CH2"}, Fault.CHALLENGE_WRONG),
        ({"jti": None}, Fault.CHALLENGE_WRONG),
        ({"nonce": b64(bytes(32))}, Fault.CHALLENGE_WRONG),
        ({"nonce": None}, Fault.CHALLENGE_WRONG),
        ({"digest": b64(bytes(32))}, Fault.TRANSACTION_DIFFERS),
        ({"digest": None}, Fault.TRANSACTION_DIFFERS),
        ({"exp": NOW}, Fault.EXPIRED),
        ({"exp": NOW - 1}, Fault.EXPIRED),
        ({"exp": NOW + 121}, Fault.EXPIRED),
        ({"exp": None}, Fault.EXPIRED),
        ({"exp": str(NOW + 60)}, Fault.EXPIRED),
        ({"exp": NOW + 60.5}, Fault.EXPIRED),
        ({"exp": True}, Fault.EXPIRED),
        ({"nbf": NOW + 1}, Fault.EXPIRED),
        ({"nbf": "now"}, Fault.EXPIRED),
    ],
    ids=str,
)
def test_a_token_that_says_something_else_is_refused(changes: dict[str, Any], fault: Fault) -> None:
    app = JoseApp()

    with refused(fault):
        prove(CompactJWS(app.token(HEADER, claims(**changes))), key_of(app))


def test_two_minutes_ahead_is_the_furthest_a_token_may_expire() -> None:
    app = JoseApp()

    assert prove(CompactJWS(app.token(HEADER, claims(exp=NOW + 120))), key_of(app)).user_verified


def test_a_token_for_another_purchase_is_refused() -> None:
    app = JoseApp()
    other = msgspec.structs.replace(ASKED, transaction=msgspec.structs.replace(PURCHASE, amount_minor=1))

    with refused(Fault.CHALLENGE_WRONG):
        prove(CompactJWS(app.sign(challenges.signing_input(other), "k1")), key_of(app))
    with refused(Fault.TRANSACTION_DIFFERS):
        prove(CompactJWS(app.sign(TO_SIGN, "k1", digest=b64(challenges.digest(other)))), key_of(app))


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ({"typ": "JWT"}, Fault.TYPE_WRONG),
        ({"typ": None}, Fault.TYPE_WRONG),
        ({"typ": "RISKGATE-PROOF+JWT"}, Fault.TYPE_WRONG),
        ({"alg": "none"}, Fault.FORMAT_WRONG),
        ({"alg": "EdDSA"}, Fault.FORMAT_WRONG),
        ({"alg": "ES384"}, Fault.FORMAT_WRONG),
        ({"alg": ["ES256"]}, Fault.FORMAT_WRONG),
        ({"alg": None}, Fault.FORMAT_WRONG),
        ({"crit": ["exp"]}, Fault.FORMAT_WRONG),
        ({"crit": []}, Fault.FORMAT_WRONG),
        ({"b64": False, "crit": ["b64"]}, Fault.FORMAT_WRONG),
        ({"b64": True}, Fault.FORMAT_WRONG),
        ({"jwk": {"kty": "EC"}}, Fault.FORMAT_WRONG),
        ({"jku": "https://evil.example/keys"}, Fault.FORMAT_WRONG),
        ({"x5c": ["AA=="]}, Fault.FORMAT_WRONG),
        ({"x5u": "https://evil.example/x"}, Fault.FORMAT_WRONG),
        ({"zip": "DEF"}, Fault.FORMAT_WRONG),
        ({"cty": "JWT"}, Fault.FORMAT_WRONG),
        ({"kid": "k2"}, Fault.CREDENTIAL_UNKNOWN),
    ],
    ids=str,
)
def test_a_header_that_says_anything_else_is_refused(header: dict[str, Any], fault: Fault) -> None:
    app = JoseApp()
    said = {name: value for name, value in (HEADER | header).items() if value is not None}

    with refused(fault):
        prove(CompactJWS(app.token(said, claims())), key_of(app))


def test_a_token_is_never_keyed_with_the_public_key() -> None:
    """HS256 over bytes that everybody knows: the oldest trick against a verifier that believes the header."""
    app = JoseApp()
    key = key_of(app)
    pem = app.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{b64(json.dumps(HEADER | {'alg': 'HS256'}).encode())}.{b64(json.dumps(claims()).encode())}"

    for secret in (pem, spki(app), b""):
        token = f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
        with refused(Fault.FORMAT_WRONG):
            prove(CompactJWS(token), key)


def test_a_token_of_another_key_is_refused() -> None:
    owner, thief = JoseApp(), JoseApp()
    phone = AndroidPhone()

    with refused(Fault.SIGNATURE_WRONG):
        prove(CompactJWS(thief.sign(TO_SIGN, "k1")), key_of(owner))
    with refused(Fault.FORMAT_WRONG):
        prove(CompactJWS(thief.sign(TO_SIGN, "k1")), key_of(phone))


def test_the_signature_is_the_pair_and_nothing_else() -> None:
    app = JoseApp()
    signed = app.sign(TO_SIGN, "k1").rsplit(".", 1)[0]
    der = AndroidPhone(key=app.key).sign(signed.encode())  # type: ignore[arg-type]  # ES256

    for signature in (der, bytes(64), app.sign_bytes(signed.encode()) + b"\0", b"\0"):
        with refused(Fault.SIGNATURE_WRONG):
            prove(CompactJWS(f"{signed}.{b64(signature)}"), key_of(app))


def raw(header: bytes, payload: bytes) -> str:
    """A token over any bytes, correctly signed by the app."""
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(APP.sign_bytes(signed.encode()))}"


APP: Final = JoseApp()
GOOD_HEADER: Final = json.dumps(HEADER).encode()
GOOD_CLAIMS: Final = json.dumps(claims()).encode()
GOOD: Final = raw(GOOD_HEADER, GOOD_CLAIMS)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        GOOD + "=",
        GOOD + "==",
        GOOD.replace(".", "=.", 1),
        GOOD + ".",
        GOOD + ".AA",
        GOOD.rsplit(".", 1)[0] + ".",
        GOOD.rsplit(".", 1)[0],
        " " + GOOD,
        GOOD + "\n",
        GOOD.replace(".", ". ", 1),
        GOOD[:-1] + ("B" if GOOD[-1] != "B" else "C"),
        "+" + GOOD[1:],
        raw(GOOD_HEADER, GOOD_CLAIMS[:-1] + b',"exp":1}'),
        raw(GOOD_HEADER[:-1] + b',"alg":"none"}', GOOD_CLAIMS),
        raw(GOOD_HEADER, b"[]"),
        raw(GOOD_HEADER, b"[" * 1000),
        raw(GOOD_HEADER, b"\xff"),
        raw(GOOD_HEADER, b"x" * 4096),
        raw(b"null", GOOD_CLAIMS),
        raw(b"{}", GOOD_CLAIMS),
        raw(b'{"kid":1}', GOOD_CLAIMS),
        json.dumps({"payload": b64(GOOD_CLAIMS), "protected": b64(GOOD_HEADER), "signature": GOOD.split(".")[2]}),
        "\ud800",
        "Ａ.Ａ.Ａ",
    ],
    ids=lambda _: "spelling",
)
def test_a_token_in_any_other_spelling_is_malformed(token: str) -> None:
    with malformed("compact_jws"):
        prove(CompactJWS(token), key_of(APP))
