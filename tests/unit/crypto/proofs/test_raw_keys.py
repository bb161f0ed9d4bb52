"""Keys of phones' own stores: one form of key, one form of signature, over the exact bytes the engine made."""

from __future__ import annotations

from typing import Any, Final

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from riskgate_client import RawKeyAnswer
from riskgate_client.phone import AndroidPhone, IPhone, JoseApp, Passkey
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    Algorithm,
    AppAttestObject,
    CompactJWS,
    Fault,
    KeySignature,
    PasskeyRegistration,
    Platform,
    RawKeyRegistration,
)
from tests.unit.crypto.proofs.asking import (
    ASKED,
    ENROLMENT,
    POLICY,
    PURCHASE,
    WEB,
    answered,
    creation,
    key_of,
    malformed,
    prove,
    refused,
    register,
    registration_of,
)

TO_ENROL: Final = challenges.signing_input(ENROLMENT)
TO_SIGN: Final = challenges.signing_input(ASKED)
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
RAW: Final = {
    AndroidPhone: Platform.ANDROID_KEYSTORE,
    IPhone: Platform.IOS_SECURE_ENCLAVE,
    JoseApp: Platform.JOSE,
}


@pytest.mark.parametrize("phone", [AndroidPhone(), IPhone()], ids=["Android", "iOS"])
def test_a_phone_enrols_its_key_and_approves_a_purchase(phone: AndroidPhone | IPhone) -> None:
    verdict = register(registration_of(phone.enrol(TO_ENROL)), RAW[type(phone)])
    proof = prove(KeySignature("k1", phone.sign(TO_SIGN)), verdict.key)

    assert (verdict.key.platform, verdict.key.algorithm) == (RAW[type(phone)], Algorithm.ES256)
    assert len(verdict.key.public_key) == 91
    assert (verdict.assurance.device_bound, verdict.assurance.level, verdict.attestation) == (True, 2, "none")
    assert (proof.credential_id, proof.device_bound, proof.sign_count) == ("k1", True, 0)
    assert proof.challenge == challenges.challenge(ASKED)
    assert proof.digest == challenges.transaction_digest("bank", PURCHASE)


def test_the_point_of_ios_and_the_full_key_are_one_key() -> None:
    phone = IPhone()
    spki = phone.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signature = phone.sign(TO_ENROL)

    short = register(RawKeyRegistration(phone.public_key, signature), Platform.IOS_SECURE_ENCLAVE)
    full = register(RawKeyRegistration(spki, signature), Platform.IOS_SECURE_ENCLAVE)
    android = register(RawKeyRegistration(spki, signature), Platform.ANDROID_KEYSTORE)

    assert short.key == full.key
    assert short.fingerprint == full.fingerprint == android.fingerprint


def test_a_passkey_and_a_raw_key_of_the_same_key_have_one_fingerprint() -> None:
    phone = AndroidPhone()
    passkey = Passkey(origin=WEB, key=phone.key)

    raw = register(registration_of(phone.enrol(TO_ENROL)), Platform.ANDROID_KEYSTORE)
    other = register(PasskeyRegistration(passkey.create(creation())), Platform.WEBAUTHN)

    assert raw.fingerprint == other.fingerprint


@pytest.mark.parametrize("change", [b" ", b"\n"], ids=["blank", "line"])
def test_only_the_exact_bytes_count(change: bytes) -> None:
    phone = AndroidPhone()
    key = key_of(phone)

    with refused(Fault.SIGNATURE_WRONG):
        prove(KeySignature("k1", phone.sign(TO_SIGN + change)), key)


@pytest.mark.parametrize(
    "changes",
    [{"amount_minor": 1_290}, {"payee_id": "M2"}, {"currency": "USD"}, {"account_id": "x"}, {"instalment_count": 12}],
    ids=str,
)
def test_a_signature_for_another_purchase_is_refused(changes: dict[str, Any]) -> None:
    phone = IPhone()
    key = key_of(phone)
    other = msgspec.structs.replace(ASKED, transaction=msgspec.structs.replace(PURCHASE, **changes))

    with refused(Fault.SIGNATURE_WRONG):
        prove(KeySignature("k1", phone.sign(challenges.signing_input(other))), key)


@pytest.mark.parametrize("phone", [AndroidPhone(), IPhone(), JoseApp(), JoseApp("EdDSA")])
def test_a_key_without_proof_that_its_holder_has_it_is_refused(phone: AndroidPhone | IPhone | JoseApp) -> None:
    other = type(phone)()
    wrong = [phone.enrol(b"other bytes").signature, other.enrol(TO_ENROL).signature, bytes(64), b"\x30\0"]

    for signature in wrong:
        with refused(Fault.SIGNATURE_WRONG):
            register(RawKeyRegistration(phone.public_key, signature), RAW[type(phone)])


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda r, s: encode_dss_signature(0, s),
        lambda r, s: encode_dss_signature(r, 0),
        lambda r, s: encode_dss_signature(P256_ORDER, s),
        lambda r, s: encode_dss_signature(r, P256_ORDER),
        lambda r, s: encode_dss_signature(r + P256_ORDER, s),
        lambda r, s: encode_dss_signature(r, s) + b"\0",
        lambda r, s: b"\x30\x81" + encode_dss_signature(r, s)[1:],
        lambda r, s: b"\x30\x80" + encode_dss_signature(r, s)[2:] + b"\0\0",
        lambda r, s: r.to_bytes(32, "big") + s.to_bytes(32, "big"),
    ],
    ids=["r=0", "s=0", "r=n", "s=n", "r+n", "extra byte", "long length", "open length", "r and s"],
)
def test_a_spoilt_signature_is_refused(spoilt: Any) -> None:
    phone = AndroidPhone()
    key = key_of(phone)
    r, s = decode_dss_signature(phone.sign(TO_SIGN))

    with refused(Fault.SIGNATURE_WRONG):
        prove(KeySignature("k1", spoilt(r, s)), key)


@pytest.mark.parametrize("length", [0, 513])
def test_a_signature_of_no_length_or_too_much_is_malformed(length: int) -> None:
    phone = AndroidPhone()

    with malformed("device_signature.signature"):
        prove(KeySignature("k1", bytes(length)), key_of(phone))
    with malformed("raw_key.signature"):
        register(RawKeyRegistration(phone.public_key, bytes(length)), Platform.ANDROID_KEYSTORE)


def spki(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


GOOD: Final = AndroidPhone().public_key
ED25519: Final = spki(Ed25519PrivateKey.generate())


@pytest.mark.parametrize("platform", [Platform.ANDROID_KEYSTORE, Platform.IOS_SECURE_ENCLAVE, Platform.JOSE])
@pytest.mark.parametrize(
    "key",
    [
        b"",
        bytes(91),
        GOOD[:-1],
        GOOD + b"\0",
        GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
        GOOD[:27] + bytes(64),
        GOOD[:26] + b"\x06" + GOOD[27:],
        b"\x30\x39" + GOOD[2:24] + b"\x22\0\x02" + GOOD[27:59],
        spki(ec.generate_private_key(ec.SECP384R1())),
        spki(ec.generate_private_key(ec.SECP256K1())),
        spki(rsa.generate_private_key(65537, 2048)),
        GOOD[27:],
        b"\x02" + GOOD[27:59],
        b"\0",
    ],
    ids=lambda _: "form",
)
def test_a_key_in_another_form_or_off_its_curve_is_malformed(platform: Platform, key: bytes) -> None:
    with malformed("raw_key.public_key"):
        register(RawKeyRegistration(key, b"x" * 70), platform)


SMALL: Final = (
    bytes(32),
    b"\x01" + bytes(31),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
)
"""Heights of points whose order is at most 8; the last two are the first two, written as numbers above the prime."""
ANYBODYS: Final = b"\x01" + bytes(63)
"""A signature that holds for every message under the second of them, and no private key is needed for it."""


@pytest.mark.parametrize("sign", [0, 0x80])
@pytest.mark.parametrize("height", SMALL, ids=lambda height: height[:2].hex())
def test_a_key_under_which_anybody_can_sign_is_malformed(height: bytes, sign: int) -> None:
    point = height[:31] + bytes([height[31] | sign])
    passkey = Passkey(origin=WEB)
    cose = cbor2.dumps({1: 1, 3: -8, -1: 6, -2: point})
    data = passkey.authenticator_data(POLICY.rp_id, attested=True).removesuffix(passkey.cose_key) + cose
    created = passkey.credential(
        clientDataJSON=passkey.client_data("webauthn.create", challenges.base64url(challenges.challenge(ENROLMENT))),
        attestationObject=cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data}),
    )

    with malformed("raw_key.public_key"):
        register(RawKeyRegistration(ED25519[:12] + point, ANYBODYS), Platform.JOSE)
    with malformed("webauthn_registration_json"):
        register(PasskeyRegistration(created), Platform.WEBAUTHN)


@pytest.mark.parametrize(
    ("platform", "key"),
    [
        (Platform.ANDROID_KEYSTORE, ED25519),
        (Platform.IOS_SECURE_ENCLAVE, ED25519),
        (Platform.ANDROID_KEYSTORE, GOOD[26:]),
        (Platform.JOSE, GOOD[26:]),
    ],
    ids=lambda value: getattr(value, "name", "key"),
)
def test_each_platform_has_its_own_forms_of_key(platform: Platform, key: bytes) -> None:
    with malformed("raw_key.public_key"):
        register(RawKeyRegistration(key, b"x" * 70), platform)


def test_the_form_of_a_proof_is_fixed_at_enrolment() -> None:
    phone, app, passkey = AndroidPhone(), JoseApp(), Passkey(origin=WEB)
    keys = (key_of(phone), key_of(app), key_of(passkey))
    as_app = JoseApp()
    as_app.key = phone.key

    with refused(Fault.FORMAT_WRONG):
        prove(CompactJWS(as_app.sign(TO_SIGN, "k1")), *keys)
    with refused(Fault.FORMAT_WRONG):
        prove(KeySignature("k2", app.key.sign(TO_SIGN, ec.ECDSA(SHA256()))), *keys)  # type: ignore[call-arg]  # ES256
    with refused(Fault.FORMAT_WRONG):
        prove(CompactJWS(app.token({"alg": "ES256", "typ": "riskgate-proof+jwt", "kid": "k3"}, {})), *keys)
    with refused(Fault.CREDENTIAL_UNKNOWN):
        prove(answered(Passkey(origin=WEB, key=phone.key)), *keys)


def test_the_form_of_a_registration_is_that_of_the_platform_asked() -> None:
    phone, passkey = AndroidPhone(), Passkey(origin=WEB)

    with refused(Fault.FORMAT_WRONG):
        register(PasskeyRegistration(passkey.create(creation())), Platform.ANDROID_KEYSTORE)
    with refused(Fault.FORMAT_WRONG):
        register(registration_of(phone.enrol(TO_ENROL)), Platform.WEBAUTHN)


def test_a_key_that_was_not_asked_is_refused() -> None:
    phone = AndroidPhone()

    with refused(Fault.CREDENTIAL_UNKNOWN):
        prove(KeySignature("k2", phone.sign(TO_SIGN)), key_of(phone))


def test_evidence_belongs_to_its_platform() -> None:
    ios, app = IPhone().enrol(TO_ENROL), JoseApp().enrol(TO_ENROL)

    with malformed("raw_key.android_chain"):
        register(RawKeyRegistration(ios.public_key, ios.signature, (b"x",)), Platform.IOS_SECURE_ENCLAVE)
    with malformed("raw_key.app_attest"):
        register(registration_of(app, AppAttestObject("AA==", b"x")), Platform.JOSE)


def test_evidence_that_a_policy_asks_for_must_be_there() -> None:
    android, ios = AndroidPhone().enrol(TO_ENROL), IPhone().enrol(TO_ENROL)
    asked: list[tuple[RawKeyAnswer, Platform, dict[str, Any], Fault]] = [
        (android, Platform.ANDROID_KEYSTORE, {"attestation": True}, Fault.ATTESTATION_MISSING),
        (android, Platform.ANDROID_KEYSTORE, {"guarded_use": True}, Fault.ATTESTATION_MISSING),
        (ios, Platform.IOS_SECURE_ENCLAVE, {"app_attest": True}, Fault.APP_ATTEST_MISSING),
    ]

    for key, platform, demands, fault in asked:
        with refused(fault):
            register(registration_of(key), platform, policy=msgspec.structs.replace(POLICY, **demands))
