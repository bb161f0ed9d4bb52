"""App Attest vouches that the app is the tenant's and the phone is Apple's. Never for the customer."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any, Final

import cbor2
import msgspec
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from riskgate_client.phone import IPhone
from riskgate_server.crypto.proofs import AttestationTrust, ProofVerifier, app_attest
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    AppAttestKey,
    AppAttestObject,
    DeviceKey,
    Fault,
    KeySignature,
    Platform,
    RegistrationVerdict,
)
from tests.unit.crypto.proofs.asking import (
    ASKED,
    ENROLMENT,
    NOW_US,
    POLICY,
    key_of,
    malformed,
    prove,
    refused,
    register,
    registration_of,
)
from tests.unit.crypto.proofs.makers import APPLE_NONCE, ROOT, TEE, TRUST, AppleApp, Issuer, authority, issue
from tests.vectors import files, published

TO_ENROL: Final = challenges.signing_input(ENROLMENT)
TO_SIGN: Final = challenges.signing_input(ASKED)
CHALLENGE: Final = challenges.challenge(ENROLMENT)
APP: Final = AppleApp()
OURS: Final = msgspec.structs.replace(POLICY, apple_app_ids=("TEAM000000.com.bank.old", APP.app_id), app_attest=True)
VERIFIER: Final = ProofVerifier(TRUST)
DAY_US: Final = 24 * 3600 * 1_000_000


def enrolled(evidence: AppAttestObject | None, phone: IPhone | None = None, **options: Any) -> RegistrationVerdict:
    key = (phone or IPhone()).enrol(TO_ENROL)
    asked: dict[str, Any] = {"policy": OURS, "verifier": VERIFIER} | options
    return register(registration_of(key, evidence), Platform.IOS_SECURE_ENCLAVE, **asked)


def phone_and_key(app: AppleApp = APP) -> tuple[IPhone, DeviceKey]:
    phone = IPhone()
    return phone, enrolled(app.attest(CHALLENGE), phone).key


def changed(evidence: AppAttestObject, **parts: Any) -> AppAttestObject:
    whole = cbor2.loads(evidence.attestation_object)
    return AppAttestObject(evidence.key_id, cbor2.dumps(whole | parts))


# --- at enrolment ---


def test_an_app_of_the_tenant_is_vouched_for_beside_the_key_of_the_phone() -> None:
    verdict = enrolled(APP.attest(CHALLENGE))

    found = verdict.key.app_attest
    assert found is not None
    assert (found.app_id, found.sign_count) == (APP.app_id, 0)
    assert found.key_id == hashlib.sha256(APP.point).digest()
    # It says nothing about the key that signs for the customer.
    assert (verdict.assurance.attested, verdict.assurance.level) == (False, 2)


@pytest.mark.parametrize(
    ("app", "fault"),
    [
        (APP.with_(app_id="TEAM999999.com.bank.app"), Fault.APP_UNKNOWN),
        (APP.with_(app_id="TEAM123456.com.evil.app"), Fault.APP_UNKNOWN),
        (APP.with_(aaguid=b"appattestdevelop"), Fault.APP_ATTEST_DEVELOPMENT),
        (APP.with_(aaguid=bytes(16)), Fault.APP_ATTEST_WRONG),
        (APP.with_(sign_count=1), Fault.APP_ATTEST_WRONG),
        (APP.with_(key_id=bytes(32)), Fault.APP_ATTEST_WRONG),
        (APP.with_(credential_id=bytes(32)), Fault.APP_ATTEST_WRONG),
        (APP.with_(cose_of=AppleApp().key), Fault.APP_ATTEST_WRONG),
        (APP.with_(batch=authority("Apple App Attestation CA 1")), Fault.ATTESTATION_ROOT_UNKNOWN),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_evidence_about_anything_else_is_refused(app: AppleApp, fault: Fault) -> None:
    with refused(fault):
        enrolled(app.attest(CHALLENGE))


def test_evidence_of_a_development_build_is_taken_where_the_policy_says_so() -> None:
    lenient = msgspec.structs.replace(OURS, apple_development=True)

    assert enrolled(APP.with_(aaguid=b"appattestdevelop").attest(CHALLENGE), policy=lenient).key.app_attest


def test_evidence_of_another_enrolment_is_refused() -> None:
    with refused(Fault.ATTESTATION_CHALLENGE_WRONG):
        enrolled(APP.attest(b"another challenge"))
    with refused(Fault.ATTESTATION_CHALLENGE_WRONG):
        enrolled(APP.attest(CHALLENGE, nonce=bytes(32)))


def test_evidence_whose_leaf_has_the_root_s_own_key_is_refused() -> None:
    """Anybody can write such a certificate: where the chain is followed to a key, nobody signed it."""
    root = AppleApp(key=ROOT.key, batch=TEE)
    evidence = root.attest(CHALLENGE)
    whole = cbor2.loads(evidence.attestation_object)
    numb = issue(
        "nobody",
        ROOT.key.public_key(),
        key=ec.generate_private_key(ec.SECP256R1()),
        extensions=[(APPLE_NONCE, nonce_of(whole["attStmt"]["x5c"][0]))],
    )

    with refused(Fault.ATTESTATION_WRONG):
        enrolled(changed(evidence, attStmt={"x5c": [numb.public_bytes(Encoding.DER)], "receipt": b""}))


def nonce_of(der: bytes) -> bytes:
    value = x509.load_der_x509_certificate(der).extensions.get_extension_for_oid(x509.ObjectIdentifier(APPLE_NONCE))
    assert isinstance(value.value, x509.UnrecognizedExtension)
    return value.value.value


def test_evidence_counts_only_while_its_certificates_do() -> None:
    with refused(Fault.ATTESTATION_WRONG):
        enrolled(APP.attest(CHALLENGE), now_us=NOW_US + 400 * DAY_US)


def test_evidence_of_another_key_than_the_id_names_is_refused() -> None:
    other = AppleApp()
    evidence = APP.attest(CHALLENGE)

    with refused(Fault.APP_ATTEST_WRONG):
        enrolled(AppAttestObject(other.attest(CHALLENGE).key_id, evidence.attestation_object))


GOOD: Final = APP.attest(CHALLENGE)


@pytest.mark.parametrize(
    "evidence",
    [
        AppAttestObject("not base64", GOOD.attestation_object),
        AppAttestObject("AAAA", GOOD.attestation_object),
        AppAttestObject("Ä", GOOD.attestation_object),
        AppAttestObject(GOOD.key_id, b""),
        AppAttestObject(GOOD.key_id, bytes(16_385)),
        AppAttestObject(GOOD.key_id, GOOD.attestation_object + b"\0"),
        AppAttestObject(GOOD.key_id, b"\x9f" * 100),
        changed(GOOD, fmt="packed"),
        changed(GOOD, attStmt=None),
        changed(GOOD, attStmt={"x5c": b"x"}),
        changed(GOOD, attStmt={"x5c": []}),
        changed(GOOD, attStmt={"x5c": [1]}),
        changed(GOOD, attStmt={"x5c": [b"\x30\0"]}),
        changed(GOOD, authData=b"short"),
        changed(GOOD, authData="text"),
    ],
    ids=lambda _: "form",
)
def test_evidence_that_cannot_be_read_is_malformed(evidence: AppAttestObject) -> None:
    with malformed("raw_key.app_attest"):
        enrolled(evidence)


@pytest.mark.parametrize("nonce", [b"", b"\x30\0", b"\x04\x20" + bytes(32), b"\x30" * 100])
def test_a_leaf_without_its_nonce_is_malformed(nonce: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.crypto.proofs.makers.tlv", lambda *_: nonce)

    with malformed("raw_key.app_attest"):
        enrolled(APP.attest(CHALLENGE))


# --- at each proof ---


def test_an_assertion_stands_beside_the_signature_of_the_phone() -> None:
    phone, key = phone_and_key()

    proof = prove(KeySignature("k1", phone.sign(TO_SIGN), APP.vouch(TO_SIGN, 7)), key, policy=OURS)

    assert (proof.credential_id, proof.app_sign_count) == ("k1", 7)


def test_the_counter_is_told_and_not_judged() -> None:
    phone, key = phone_and_key()
    assert key.app_attest is not None
    later = msgspec.structs.replace(key, app_attest=msgspec.structs.replace(key.app_attest, sign_count=1000))
    answer = KeySignature("k1", phone.sign(TO_SIGN), APP.vouch(TO_SIGN, 7))

    assert prove(answer, later, policy=OURS).app_sign_count == 7


def test_an_assertion_alone_is_no_proof() -> None:
    phone, key = phone_and_key()
    other = IPhone()

    with malformed("device_signature.signature"):
        prove(KeySignature("k1", b"", APP.vouch(TO_SIGN)), key, policy=OURS)
    with refused(Fault.SIGNATURE_WRONG):
        prove(KeySignature("k1", APP.vouch(TO_SIGN), APP.vouch(TO_SIGN)), key, policy=OURS)
    with refused(Fault.SIGNATURE_WRONG):
        prove(KeySignature("k1", other.sign(TO_SIGN), APP.vouch(TO_SIGN)), key, policy=OURS)
    assert phone.public_key != other.public_key


@pytest.mark.parametrize(
    ("assertion", "fault"),
    [
        (b"", Fault.APP_ATTEST_MISSING),
        (APP.vouch(b"other bytes"), Fault.APP_ATTEST_WRONG),
        (AppleApp().vouch(TO_SIGN), Fault.APP_ATTEST_WRONG),
        (APP.with_(app_id="TEAM000000.com.bank.old").vouch(TO_SIGN), Fault.APP_UNKNOWN),
        (APP.vouch(TO_SIGN, 0), Fault.COUNTER_NOT_GROWN),
    ],
    ids=["none", "other bytes", "other key", "other app", "no counter"],
)
def test_an_assertion_of_anything_else_is_refused(assertion: bytes, fault: Fault) -> None:
    phone, key = phone_and_key()

    with refused(fault):
        prove(KeySignature("k1", phone.sign(TO_SIGN), assertion), key, policy=OURS)


def test_an_app_that_is_not_the_tenants_any_more_is_refused() -> None:
    phone, key = phone_and_key()
    policy = msgspec.structs.replace(OURS, apple_app_ids=())

    with refused(Fault.APP_UNKNOWN):
        prove(KeySignature("k1", phone.sign(TO_SIGN), APP.vouch(TO_SIGN)), key, policy=policy)


def test_an_assertion_for_a_key_that_has_no_app_is_refused() -> None:
    phone = IPhone()

    with refused(Fault.APP_ATTEST_WRONG):
        prove(KeySignature("k1", phone.sign(TO_SIGN), APP.vouch(TO_SIGN)), key_of(phone))


def test_a_phone_without_app_attest_proves_itself_where_the_policy_does_not_ask_for_it() -> None:
    phone, key = phone_and_key()
    lenient = msgspec.structs.replace(OURS, app_attest=False)

    assert prove(KeySignature("k1", phone.sign(TO_SIGN)), key, policy=lenient).app_sign_count == 0


@pytest.mark.parametrize(
    "assertion",
    [
        b"x",
        b"\xa0",
        bytes(4097),
        cbor2.dumps({"signature": b"x", "authenticatorData": bytes(36)}),
        cbor2.dumps({"signature": b"x", "authenticatorData": bytes(38)}),
        cbor2.dumps({"signature": "x", "authenticatorData": bytes(37)}),
        cbor2.dumps({"signature": b"x", "authenticatorData": bytes(37), "more": 1}),
    ],
    ids=lambda _: "form",
)
def test_an_assertion_that_cannot_be_read_is_malformed(assertion: bytes) -> None:
    phone, key = phone_and_key()

    with malformed("app_attest_assertion"):
        prove(KeySignature("k1", phone.sign(TO_SIGN), assertion), key, policy=OURS)


# --- recordings of iOS 14 ---


def recorded(kind: str) -> list[dict[str, Any]]:
    documents = [entry for path in files("apple_app_attest/*.yaml") for entry in yaml.safe_load_all(path.read_text())]
    return [entry for entry in documents if entry["type"] == kind]


def app_of(entry: dict[str, Any]) -> str:
    return f"{entry['teamIdentifier']}.{entry['bundleIdentifier']}"


def at_us(entry: dict[str, Any]) -> int:
    at = datetime.strptime(entry["timestamp"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    return int(at.timestamp() * 1_000_000)


def attested(entry: dict[str, Any], *, development: bool = True, challenge: bytes | None = None) -> AppAttestKey:
    policy = msgspec.structs.replace(POLICY, apple_app_ids=(app_of(entry),), apple_development=development)
    return app_attest.check_attestation(
        AppAttestObject(entry["keyIdBase64"], base64.b64decode(entry["attestationBase64"])),
        challenge=challenge or base64.b64decode(entry["clientDataBase64"]),
        policy=policy,
        root_keys=AttestationTrust().apple_roots,
        now_us=at_us(entry),
    )


@published
@pytest.mark.parametrize("entry", recorded("attestation"), ids=lambda entry: str(entry["iOSVersion"]))
def test_a_recorded_attestation_holds_up_to_apples_root(entry: dict[str, Any]) -> None:
    found = attested(entry)

    assert found.app_id == app_of(entry)
    with refused(Fault.APP_ATTEST_DEVELOPMENT):
        attested(entry, development=False)
    with refused(Fault.ATTESTATION_CHALLENGE_WRONG):
        attested(entry, challenge=b"other")
    with refused(Fault.ATTESTATION_WRONG):
        attested(entry | {"timestamp": "2026-01-01T00:00:00.000Z"})


@published
@pytest.mark.parametrize("entry", recorded("assertion"), ids=lambda entry: entry["timestamp"])
def test_a_recorded_assertion_holds(entry: dict[str, Any]) -> None:
    (attestation,) = (one for one in recorded("attestation") if one["keyIdBase64"] == entry["keyIdBase64"])
    policy = msgspec.structs.replace(POLICY, apple_app_ids=(app_of(entry),))
    evidence = base64.b64decode(entry["assertionBase64"])
    signed = base64.b64decode(entry["clientDataBase64"])

    found = app_attest.check_assertion(evidence, attested(attestation), signed=signed, policy=policy)

    assert found == entry["counter"]
    with refused(Fault.APP_ATTEST_WRONG):
        app_attest.check_assertion(evidence, attested(attestation), signed=b"other", policy=policy)


def test_there_is_no_certificate_of_the_root_in_the_evidence() -> None:
    """Apple leaves it out, so the chain is followed to a key and not to a certificate."""
    chain = cbor2.loads(GOOD.attestation_object)["attStmt"]["x5c"]
    stranger = Issuer(ec.generate_private_key(ec.SECP256R1()), APP.batch.certificate)

    assert len(chain) == 2
    with refused(Fault.ATTESTATION_WRONG):
        enrolled(APP.with_(batch=stranger).attest(CHALLENGE))
