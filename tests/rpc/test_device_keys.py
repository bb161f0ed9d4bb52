"""Keys and signatures of phones and apps over the wire: one form of each, and nothing that only looks like it."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from riskgate.identity.v1 import device_service_pb2 as pb
from riskgate_client.phone import TOKEN_TYPE, AndroidPhone, IPhone, JoseApp, Passkey
from tests.rpc.attacks import INVALID, MALFORMED, WRONG
from tests.rpc.calling import refused
from tests.rpc.devices import (
    P256_ORDER,
    SPOILT,
    WEB,
    AnyDevice,
    asked,
    b64,
    begin,
    devices_of,
    enrol,
    jwk,
    proof,
    registration,
    unb64,
)
from tests.rpc.requests import open_line
from tests.rpc.serving import Tenant
from tests.unit.crypto.proofs.makers import integer, octets, tlv

P256_PRIME: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1


# --- keys ---


def spki(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def explicit(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key on P-256 with its curve spelled out (RFC 3279, 2.3.5), so that a reader may be given another."""
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    one = ec.derive_private_key(1, ec.SECP256R1()).public_key()
    base = one.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    field = tlv(0x30, bytes.fromhex("06072a8648ce3d0101"), integer(P256_PRIME))
    curve = tlv(0x30, octets((P256_PRIME - 3).to_bytes(32, "big")), octets(b.to_bytes(32, "big")))
    parameters = tlv(0x30, integer(1), field, curve, octets(base), integer(P256_ORDER), integer(1))
    return tlv(0x30, tlv(0x30, bytes.fromhex("06072a8648ce3d0201"), parameters), tlv(3, b"\0", point))


PHONE: Final = AndroidPhone()
GOOD: Final = PHONE.public_key
NO_KEYS: Final = {
    "zeros": bytes(91),
    "cut": GOOD[:-1],
    "longer": GOOD + b"\0",
    "off the curve": GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
    "the point at 0": GOOD[:27] + bytes(64),
    "hybrid": GOOD[:26] + b"\x06" + GOOD[27:],
    "compressed": b"\x30\x39" + GOOD[2:24] + b"\x22\0\x02" + GOOD[27:59],
    "compressed and bare": b"\x02" + GOOD[27:59],
    "explicit parameters": explicit(PHONE.key),
    "P-384": spki(ec.generate_private_key(ec.SECP384R1())),
    "secp256k1": spki(ec.generate_private_key(ec.SECP256K1())),
    "RSA": spki(rsa.generate_private_key(65537, 2048)),
}
INFINITY: Final = b"\x30\x19" + GOOD[2:23] + b"\x03\x02\0\0"


@pytest.mark.attack("no-key")
@pytest.mark.parametrize("make", [AndroidPhone, IPhone, JoseApp], ids=["Android", "iOS", "JOSE"])
def test_what_is_no_key_of_the_one_kind_there_is(ada_at: Tenant, make: Any) -> None:
    device: AnyDevice = make()
    request = registration(device, begin(ada_at, device))
    # Too short to be one, so that its bytes are not read.
    met = {name: meets(ada_at, request, key) for name, key in (NO_KEYS | {"infinity": INFINITY, "none": b""}).items()}

    assert met == dict.fromkeys(NO_KEYS, MALFORMED) | {"infinity": INVALID, "none": INVALID}
    assert devices_of(ada_at) == []
    assert ada_at.api.devices.FinishEnrollment(registration(device, begin(ada_at, device))).credential.credential_id


def meets(tenant: Tenant, request: pb.FinishEnrollmentRequest, public_key: bytes) -> str:
    changed = pb.FinishEnrollmentRequest()
    changed.CopyFrom(request)
    changed.raw_key.public_key = public_key
    return refused(lambda: tenant.api.devices.FinishEnrollment(changed)).name


@pytest.mark.attack("unpossessed-key")
@pytest.mark.parametrize("make", [AndroidPhone, IPhone, JoseApp, partial(JoseApp, "EdDSA")])
def test_a_registration_signed_by_another_key_or_over_other_bytes(ada_at: Tenant, make: Any) -> None:
    device, other = make(), make()
    begun = begin(ada_at, device)
    first = registration(device, begun)
    first.raw_key.signature = other.enrol(begun.signing_input).signature
    second = registration(device, begun)
    second.raw_key.signature = device.enrol(begun.signing_input + b" ").signature

    for request in (first, second):
        assert refused(partial(ada_at.api.devices.FinishEnrollment, request)).name == WRONG
    assert ada_at.api.devices.FinishEnrollment(registration(device, begun)).credential.credential_id


@pytest.mark.attack("taken-key")
def test_the_id_of_a_passkey_is_one_customers_whatever_its_key(ada_at: Tenant) -> None:
    passkey = Passkey(WEB)
    enrol(ada_at, passkey)
    open_line(ada_at.api, "bo")
    namesake = Passkey(WEB, webauthn_id=passkey.webauthn_id)
    request = registration(namesake, begin(ada_at, namesake, "bo"), "bo")

    found = refused(lambda: ada_at.api.devices.FinishEnrollment(request))
    assert (found.name, found.metadata) == ("ALREADY_EXISTS CREDENTIAL_EXISTS", {})


# --- signatures ---


@pytest.mark.attack("spoilt-signature")
@pytest.mark.parametrize("make", [AndroidPhone, IPhone], ids=["Android", "iOS"])
@pytest.mark.parametrize("name", SPOILT)
def test_a_signature_in_any_other_spelling(ada_at: Tenant, make: Any, name: str) -> None:
    phone = make()
    credential_id = enrol(ada_at, phone)
    challenge = asked(ada_at)
    request = proof(phone, challenge, credential_id)
    request.device_signature.signature = SPOILT[name](*decode_dss_signature(request.device_signature.signature))

    assert refused(lambda: ada_at.api.devices.VerifyChallenge(request)).name == WRONG
    assert ada_at.api.devices.VerifyChallenge(proof(phone, challenge, credential_id)).grant.level == 2


@pytest.mark.attack("no-signature")
def test_an_empty_signature_is_malformed_and_counts_as_no_try(ada_at: Tenant) -> None:
    phone = AndroidPhone()
    credential_id = enrol(ada_at, phone)
    challenge = asked(ada_at)
    for _ in range(4):
        request = proof(phone, challenge, credential_id)
        request.device_signature.signature = b""
        found = refused(partial(ada_at.api.devices.VerifyChallenge, request))
        assert (found.name, set(found.fields)) == (INVALID, {"device_signature.signature"})

    assert ada_at.api.devices.VerifyChallenge(proof(phone, challenge, credential_id)).grant.level == 2


# --- tokens ---


class Teller:
    """Ada, whose app with a JOSE library is asked for a proof."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant, self.app = tenant, JoseApp()
        self.credential_id = enrol(tenant, self.app)
        self.ask()

    def ask(self) -> None:
        self.challenge = asked(self.tenant)

    @property
    def good(self) -> str:
        return self.app.sign(self.challenge.signing_input, self.credential_id)

    def with_header(self, **said: Any) -> str:
        """The token with another header, signed as it should be."""
        whole = {"alg": "ES256", "typ": TOKEN_TYPE, "kid": self.credential_id} | said
        header = {name: value for name, value in whole.items() if value is not None}
        return self.app.token(header, json.loads(unb64(self.good.split(".")[1])))

    def meets(self, token: str) -> str:
        request = proof(self.app, self.challenge, self.credential_id, compact_jws=token)
        return refused(lambda: self.tenant.api.devices.VerifyChallenge(request)).name

    def is_let_in(self) -> bool:
        request = proof(self.app, self.challenge, self.credential_id)
        return self.tenant.api.devices.VerifyChallenge(request).grant.level == 2


@pytest.fixture
def ada(ada_at: Tenant) -> Teller:
    return Teller(ada_at)


def hmacked(ada: Teller, secret: bytes) -> str:
    header = {"alg": "HS256", "typ": TOKEN_TYPE, "kid": ada.credential_id}
    signed = f"{b64(json.dumps(header).encode())}.{ada.good.split('.')[1]}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), sha256))}"


def jwk_of(app: JoseApp) -> dict[str, str]:
    assert isinstance(app.key, ec.EllipticCurvePrivateKey)
    return jwk(app.key.public_key())


CONFUSED: Final[dict[str, Callable[[Teller], str]]] = {
    "none": lambda ada: ada.with_header(alg="none"),
    "none, with any signature": lambda ada: ada.with_header(alg="none").rsplit(".", 1)[0] + ".AA",
    "no algorithm": lambda ada: ada.with_header(alg=None),
    "HMAC with the PEM": lambda ada: hmacked(
        ada, ada.app.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    ),
    "HMAC with the DER": lambda ada: hmacked(ada, ada.app.public_key),
    "HMAC with the JWK": lambda ada: hmacked(ada, json.dumps(jwk_of(ada.app)).encode()),
    "HMAC with nothing": lambda ada: hmacked(ada, b""),
    "another curve": lambda ada: ada.with_header(alg="ES384"),
    "a key of another kind": lambda ada: ada.with_header(alg="EdDSA"),
    "another's key": lambda ada: JoseApp().sign(ada.challenge.signing_input, ada.credential_id),
}


@pytest.mark.attack("confused-token")
@pytest.mark.parametrize("name", CONFUSED)
def test_a_token_that_is_not_signed_as_its_key_signs(ada: Teller, name: str) -> None:
    assert ada.meets(CONFUSED[name](ada)) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("token-with-a-key")
@pytest.mark.parametrize(
    "said",
    [
        {"jwk": {"kty": "EC"}}, {"jku": "https://evil.example/keys"}, {"x5c": ["AA=="]}, {"x5u": "https://evil.example"},
        {"crit": ["exp"]}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"zip": "DEF"}, {"typ": "JWT"}, {"typ": None},
        {"typ": TOKEN_TYPE.upper()}, {"kid": "k-1"},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_says_anything_else(ada: Teller, said: dict[str, Any]) -> None:
    assert ada.meets(ada.with_header(**said)) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("token-with-a-key")
def test_a_token_that_brings_the_key_it_is_signed_with(ada: Teller) -> None:
    stranger = JoseApp()
    header = {"alg": "ES256", "typ": TOKEN_TYPE, "kid": ada.credential_id, "jwk": jwk_of(stranger)}

    assert ada.meets(stranger.token(header, json.loads(unb64(ada.good.split(".")[1])))) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("token-with-a-key")
@pytest.mark.parametrize(
    "said", [{"aud": "riskgate:other"}, {"aud": ["riskgate"]}, {"jti": "c-1"}, {"digest": b64(bytes(32))}], ids=str
)
def test_a_token_for_somebody_else(ada: Teller, said: dict[str, Any]) -> None:
    assert ada.meets(ada.app.sign(ada.challenge.signing_input, ada.credential_id, **said)) == WRONG
    assert ada.is_let_in()


@pytest.mark.attack("padded-token")
def test_a_used_token_in_another_spelling(ada: Teller) -> None:
    good = ada.good
    request = proof(ada.app, ada.challenge, ada.credential_id, compact_jws=good)
    header, claims, signature = good.split(".")
    assert ada.tenant.api.devices.VerifyChallenge(request).grant.level == 2

    spellings = (
        good + "=", good + "==", f"{header}=.{claims}.{signature}", f"{header}.{claims}=.{signature}", good + "\n",
        " " + good,
    )  # fmt: skip
    assert {ada.meets(token) for token in spellings} == {INVALID}
    assert ada.meets(good) == "FAILED_PRECONDITION CHALLENGE_USED"


@pytest.mark.attack("other-question")
@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_a_token_for_another_challenge(ada_at: Tenant, algorithm: Any) -> None:
    app = JoseApp(algorithm)
    credential_id = enrol(ada_at, app)
    first, second = asked(ada_at), asked(ada_at)
    request = proof(app, second, credential_id, compact_jws=app.sign(first.signing_input, credential_id))

    assert refused(lambda: ada_at.api.devices.VerifyChallenge(request)).name == WRONG
    assert ada_at.api.devices.VerifyChallenge(proof(app, second, credential_id)).grant.level == 2
