"""The test vectors of WebAuthn Level 3: every one of them is found what our policy makes of it."""

from __future__ import annotations

import base64
import json
import ssl
from typing import Any, Final

import cbor2
import msgspec
import pytest

from riskgate_server.crypto.proofs import AttestationTrust, ProofVerifier
from riskgate_server.domain.identity.devices import (
    Algorithm,
    Credential,
    Fault,
    PasskeyAssertion,
    PasskeyRegistration,
    Platform,
    ProofAsked,
    ProofPolicy,
    ProofVerdict,
    RegistrationAsked,
    RegistrationVerdict,
)
from tests.unit.crypto.proofs.asking import NOW_US, malformed, refused
from tests.vectors import load, published

pytestmark = published

VECTORS: Final = load("webauthn/webauthn_l3_vectors.json")
CASES: Final[dict[str, Any]] = {case["id"]: case for case in VECTORS.get("cases", [])}
POLICY: Final = ProofPolicy(
    rp_id="example.org",
    rp_name="",
    origins=("https://example.org",),
    audience="",
    user_verification=False,
)
VERIFYING: Final = msgspec.structs.replace(POLICY, user_verification=True)

EMBEDDED: Final = {"none-es256-crossOrigin", "none-es256-topOrigin"}
"""Answers from inside another site's page, which our policy never takes."""
ALGORITHMS_NOT_VERIFIED: Final = {"packed-es384", "packed-ed448"}
"""ES384 and Ed448: the library does not verify them."""
STATEMENTS_NOT_BELIEVED: Final = {
    "tpm-es256": "names a TPM manufacturer that does not exist",
    "android-key-es256": "describes a key of no hardware, and leaves out the root",
    "fido-u2f-es256": "has an AAGUID, which U2F has not",
}
"""The statement is refused; where none is asked for, as we do, the client takes it away and the key is taken."""

TAKEN: Final = sorted(CASES.keys() - EMBEDDED - ALGORITHMS_NOT_VERIFIED)
VOUCHED: Final = {
    "packed-es256": Algorithm.ES256,
    "packed-es512": Algorithm.ES512,
    "packed-rs256": Algorithm.RS256,
    "packed-eddsa": Algorithm.EDDSA,
    "apple-es256": Algorithm.ES256,
}


def verifier(*formats: str) -> ProofVerifier:
    root = ssl.DER_cert_to_PEM_cert(bytes.fromhex(VECTORS["attestation_root"]["attestation_ca_cert"])).encode()
    return ProofVerifier(AttestationTrust(passkey_roots=dict.fromkeys(formats, root)))


def b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def answer(case: dict[str, Any], ceremony: str, **changes: bytes) -> str:
    parts = ("clientDataJSON", "attestationObject", "authenticatorData", "signature")
    response = {part: bytes.fromhex(case[ceremony][part]) for part in parts if part in case[ceremony]} | changes
    name = b64(bytes.fromhex(case["registration"]["credential_id"]))
    encoded = {part: b64(value) for part, value in response.items()}
    return json.dumps({"id": name, "rawId": name, "type": "public-key", "response": encoded})


def registered(name: str, *, stripped: bool, policy: ProofPolicy = POLICY) -> RegistrationVerdict:
    """Register the key of a vector, with the statement as published or without, as a client asked for none sends it."""
    case = CASES[name]
    attestation = cbor2.loads(bytes.fromhex(case["registration"]["attestationObject"]))
    if stripped:
        attestation |= {"fmt": "none", "attStmt": {}}
    return verifier("packed", "apple", "tpm", "fido-u2f", "android-key").verify_registration(
        PasskeyRegistration(answer(case, "registration", attestationObject=cbor2.dumps(attestation))),
        RegistrationAsked(
            platform=Platform.WEBAUTHN,
            challenge=bytes.fromhex(case["registration"]["challenge"]),
            signing_input=b"",
        ),
        policy,
        now_us=NOW_US,
    )


def proven(name: str, verdict: RegistrationVerdict, policy: ProofPolicy = POLICY) -> ProofVerdict:
    case = CASES[name]
    asked = ProofAsked(
        challenge_id="c",
        challenge=bytes.fromhex(case["authentication"]["challenge"]),
        signing_input=b"",
        digest=b"",
        transaction=None,
        credentials=(Credential("k", verdict.key),),
    )
    return verifier().verify_proof(PasskeyAssertion(answer(case, "authentication")), asked, policy, now_us=NOW_US)


def test_there_are_fifteen() -> None:
    assert len(CASES) == 15


@pytest.mark.parametrize("name", TAKEN)
def test_a_published_passkey_enrols_and_answers(name: str) -> None:
    flags = bytes.fromhex(CASES[name]["authentication"]["authenticatorData"])[32]

    verdict = registered(name, stripped=True)
    proof = proven(name, verdict)

    assert not verdict.assurance.attested
    assert (proof.user_verified, proof.device_bound, proof.backed_up) == (
        bool(flags & 4),
        not flags & 8,
        bool(flags & 16),
    )


@pytest.mark.parametrize("name", [name for name in TAKEN if name not in STATEMENTS_NOT_BELIEVED])
def test_a_published_statement_holds_up_to_its_root(name: str) -> None:
    verdict = registered(name, stripped=False)

    assert verdict.assurance.attested == (name in VOUCHED)
    assert verdict.key.algorithm == VOUCHED.get(name, Algorithm.ES256)


@pytest.mark.parametrize("name", sorted(STATEMENTS_NOT_BELIEVED))
def test_a_statement_that_nobody_can_stand_behind_is_refused(name: str) -> None:
    with refused(Fault.ATTESTATION_WRONG):
        registered(name, stripped=False)


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_an_answer_from_inside_another_page_is_refused(name: str) -> None:
    with refused(Fault.CROSS_ORIGIN):
        registered(name, stripped=False)


@pytest.mark.parametrize("name", sorted(ALGORITHMS_NOT_VERIFIED))
def test_an_algorithm_that_is_not_verified_is_refused_with_the_reason(name: str) -> None:
    with malformed("webauthn_registration_json: the key's algorithm is not verified here; use ES256, EdDSA"):
        registered(name, stripped=True)


@pytest.mark.parametrize("name", TAKEN)
def test_an_answer_without_the_user_verified_is_refused_where_that_is_asked(name: str) -> None:
    verdict = registered(name, stripped=True)
    verified = bytes.fromhex(CASES[name]["authentication"]["authenticatorData"])[32] & 4

    if verified:
        assert proven(name, verdict, VERIFYING).user_verified
    else:
        with refused(Fault.USER_NOT_VERIFIED):
            proven(name, verdict, VERIFYING)


@pytest.mark.parametrize("name", TAKEN)
def test_a_changed_signature_is_refused(name: str) -> None:
    verdict = registered(name, stripped=True)
    case = CASES[name]
    signature = bytearray.fromhex(case["authentication"]["signature"])
    signature[-1] ^= 1
    changed = case | {"authentication": case["authentication"] | {"signature": signature.hex()}}

    with pytest.MonkeyPatch.context() as patch, refused(Fault.SIGNATURE_WRONG):
        patch.setitem(CASES, name, changed)
        proven(name, verdict)
