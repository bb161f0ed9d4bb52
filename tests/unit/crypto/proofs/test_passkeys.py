"""Passkeys as Android, iOS and browsers answer with them, and every way in which an answer may be another's."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from riskgate_client.phone import Passkey
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    Fault,
    KeySignature,
    PasskeyRegistration,
    Platform,
)
from tests.unit.crypto.proofs.asking import (
    APP,
    ASKED,
    ENROLMENT,
    POLICY,
    PURCHASE,
    WEB,
    answered,
    creation,
    malformed,
    prove,
    refused,
    register,
)
from tests.unit.crypto.proofs.passkeys import (
    BE,
    BS,
    P256_ORDER,
    SIGN_IN,
    UP,
    UV,
    b64,
    changed,
    passkey,
    with_authenticator_data,
)

# --- what holds ---


@pytest.mark.parametrize("origin", [WEB, APP])
@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("escapes", [False, True])
def test_a_passkey_enrols_and_approves_a_purchase(origin: str, synced: bool, escapes: bool) -> None:  # noqa: FBT001
    made = Passkey(origin=origin, synced=synced, escapes=escapes)

    verdict = register(PasskeyRegistration(made.create(creation())), Platform.WEBAUTHN)
    proof = prove(answered(made), verdict.key)

    assert verdict.challenge == challenges.challenge(ENROLMENT)
    assert verdict.key.webauthn_id == made.webauthn_id
    assert verdict.key.backup_eligible == synced
    assert (verdict.assurance.device_bound, verdict.assurance.attested, verdict.assurance.level) == (
        not synced,
        False,
        2,
    )
    assert (proof.credential_id, proof.challenge, proof.digest) == (
        "k1",
        challenges.challenge(ASKED),
        challenges.transaction_digest("bank", PURCHASE),
    )
    assert (proof.user_verified, proof.device_bound, proof.backed_up) == (True, not synced, synced)


def test_names_that_nobody_knows_yet_are_read_over() -> None:
    """Android says which app asked, and browsers add names on purpose so that nobody relies on there being none."""
    made, key = passkey(origin=APP)
    answer = answered(made, androidPackageName="com.bank.app", other_keys_can_be_added_here="do not compare")

    assert prove(answer, key).user_verified


def test_the_counter_is_told_and_not_judged() -> None:
    made, key = passkey()
    made.sign_count = 41
    stored = msgspec.structs.replace(key, sign_count=1000)

    proof = prove(answered(made), stored)

    assert proof.sign_count == 42


def test_a_counter_that_stays_zero_is_no_fault() -> None:
    made, key = passkey(synced=True)

    assert [prove(answered(made), key).sign_count for _ in range(3)] == [0, 0, 0]


def test_the_key_that_answers_is_found_among_those_asked() -> None:
    (_, first), (second, second_key) = passkey(), passkey()

    assert prove(answered(second), first, second_key).credential_id == "k2"


def test_the_mirrored_signature_answers_the_same_challenge() -> None:
    """(r, n - s) holds as well as (r, s): what is spent once is the challenge, never the bytes of a signature."""
    made, key = passkey()
    answer = answered(made)
    signature = base64.urlsafe_b64decode(json.loads(answer.response_json)["response"]["signature"] + "==")
    r, s = decode_dss_signature(signature)

    mirrored = prove(changed(answer, response_signature=b64(encode_dss_signature(r, P256_ORDER - s))), key)

    assert mirrored == prove(answer, key)


# --- what was answered: challenge, purchase, ceremony ---


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(ASKED, nonce=bytes(32)),
        msgspec.structs.replace(ASKED, transaction=msgspec.structs.replace(PURCHASE, amount_minor=12_901)),
        msgspec.structs.replace(ASKED, transaction=msgspec.structs.replace(PURCHASE, payee_id="M2")),
        msgspec.structs.replace(ASKED, tenant_id="other"),
        SIGN_IN,
    ],
    ids=["nonce", "amount", "payee", "tenant", "purpose"],
)
def test_an_answer_to_another_question_is_refused(other: challenges.Asked) -> None:
    made, key = passkey()

    with refused(Fault.CHALLENGE_WRONG):
        prove(answered(made, other), key)


@pytest.mark.parametrize("kind", ["webauthn.create", "payment.get", "webauthn.GET", ""])
def test_an_answer_of_another_ceremony_is_refused(kind: str) -> None:
    made, key = passkey()

    with refused(Fault.TYPE_WRONG):
        prove(answered(made, SIGN_IN, type=kind), key, asked=SIGN_IN)


def test_an_assertion_is_no_registration() -> None:
    made = Passkey(origin=WEB)
    client_data = made.client_data("webauthn.get", b64(challenges.challenge(ENROLMENT)))
    data = made.authenticator_data(POLICY.rp_id, attested=True)
    attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})

    with refused(Fault.TYPE_WRONG):
        register(
            PasskeyRegistration(made.credential(clientDataJSON=client_data, attestationObject=attestation)),
            Platform.WEBAUTHN,
        )


def test_the_challenge_in_another_spelling_is_refused() -> None:
    made, key = passkey()

    with refused(Fault.CHALLENGE_WRONG):
        prove(answered(made, challenge=b64(challenges.challenge(ASKED)) + "="), key)


# --- where it was answered ---


@pytest.mark.parametrize(
    "origin",
    [
        "http://bank.example",
        "https://bank.example.evil.example",
        "https://evil-bank.example",
        "https://login.bank.example",
        "https://bank.example:8443",
        "https://bank.example/",
        "HTTPS://bank.example",
        "https://bаnk.example",
        "android:apk-key-hash:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "null",
        "",
    ],
)
def test_an_origin_that_is_not_in_the_list_is_refused(origin: str) -> None:
    made, key = passkey()

    with refused(Fault.ORIGIN_UNKNOWN):
        prove(answered(made, origin=origin), key)
    made.origin = origin
    with refused(Fault.ORIGIN_UNKNOWN):
        register(PasskeyRegistration(made.create(creation())), Platform.WEBAUTHN)


@pytest.mark.parametrize(
    "embedding",
    [
        {"crossOrigin": True},
        {"topOrigin": WEB},
        {"topOrigin": None},
        {"crossOrigin": False, "topOrigin": "https://shop.example"},
    ],
    ids=str,
)
def test_an_answer_from_inside_another_page_is_refused(embedding: dict[str, Any]) -> None:
    made, key = passkey()

    with refused(Fault.CROSS_ORIGIN):
        prove(answered(made, **embedding), key)


def test_an_answer_for_another_site_is_refused() -> None:
    made, key = passkey()

    with refused(Fault.RP_WRONG):
        prove(with_authenticator_data(made, made.authenticator_data("evil.example")), key)


# --- who answered ---


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (UV, Fault.USER_ABSENT),
        (0, Fault.USER_ABSENT),
        (UP, Fault.USER_NOT_VERIFIED),
        (UP | UV | BS, Fault.BACKUP_FLAGS_WRONG),
        (UP | UV | BE, Fault.BACKUP_FLAGS_WRONG),
        (UP | UV | BE | BS, Fault.BACKUP_FLAGS_WRONG),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: int, fault: Fault) -> None:
    made, key = passkey()

    with refused(fault):
        prove(with_authenticator_data(made, made.authenticator_data(POLICY.rp_id, flags=flags)), key)


def test_a_synced_key_that_says_it_is_not_any_more_is_refused() -> None:
    made, key = passkey(synced=True)

    with refused(Fault.BACKUP_FLAGS_WRONG):
        prove(with_authenticator_data(made, made.authenticator_data(POLICY.rp_id, flags=UP | UV)), key)


def test_a_synced_key_may_be_backed_up_later() -> None:
    made, key = passkey(synced=True)
    data = made.authenticator_data(POLICY.rp_id, flags=UP | UV | BE)

    assert not prove(with_authenticator_data(made, data), key).backed_up


def test_the_user_need_not_be_verified_where_the_policy_says_so() -> None:
    made, key = passkey()
    lenient = msgspec.structs.replace(POLICY, user_verification=False)
    answer = with_authenticator_data(made, made.authenticator_data(POLICY.rp_id, flags=UP))

    assert not prove(answer, key, policy=lenient).user_verified


def test_a_registration_without_the_user_verified_is_refused() -> None:
    made = Passkey(origin=WEB, verifies=False)

    with refused(Fault.USER_NOT_VERIFIED):
        register(PasskeyRegistration(made.create(creation())), Platform.WEBAUTHN)


def test_a_key_that_was_not_asked_is_refused() -> None:
    (_, key), (stranger, _) = passkey(), passkey()

    with refused(Fault.CREDENTIAL_UNKNOWN):
        prove(answered(stranger), key)


def test_the_id_of_a_key_does_not_replace_its_signature() -> None:
    (owner, key), (thief, _) = passkey(), passkey()
    thief.webauthn_id = owner.webauthn_id

    with refused(Fault.SIGNATURE_WRONG):
        prove(answered(thief), key)


def test_a_passkey_answers_only_as_a_passkey() -> None:
    made, key = passkey()
    plain = made.key.sign(challenges.signing_input(ASKED), ec.ECDSA(SHA256()))

    with refused(Fault.FORMAT_WRONG):
        prove(KeySignature("k1", plain), key)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda r, s: encode_dss_signature(0, s),
        lambda r, s: encode_dss_signature(r, 0),
        lambda r, s: encode_dss_signature(P256_ORDER, s),
        lambda r, s: encode_dss_signature(r, P256_ORDER),
        lambda r, s: encode_dss_signature(r, s) + b"\0",
        lambda r, s: b"\x30\x81" + encode_dss_signature(r, s)[1:],
        lambda r, s: r.to_bytes(32, "big") + s.to_bytes(32, "big"),
        lambda r, s: b"\0",
    ],
    ids=["r=0", "s=0", "r=n", "s=n", "extra byte", "BER", "r and s", "one byte"],
)
def test_a_spoilt_signature_is_refused(spoilt: Any) -> None:
    made, key = passkey()
    answer = answered(made)
    encoded = json.loads(answer.response_json)["response"]["signature"]
    r, s = decode_dss_signature(base64.urlsafe_b64decode(encoded + "=="))

    with refused(Fault.SIGNATURE_WRONG):
        prove(changed(answer, response_signature=b64(spoilt(r, s))), key)


# --- what is enrolled ---

P256: Final = {1: 2, 3: -7, -1: 1}
ON_CURVE: Final = ec.derive_private_key(1, ec.SECP256R1()).public_key().public_numbers()
X: Final = ON_CURVE.x.to_bytes(32, "big")
Y: Final = ON_CURVE.y.to_bytes(32, "big")


@pytest.mark.parametrize(
    "cose",
    [
        P256 | {-2: X, -3: X},
        P256 | {-2: bytes(32), -3: bytes(32)},
        P256 | {-2: X, -3: True},
        P256 | {-2: X, -3: Y[1:]},
        P256 | {-2: b"\0" + X, -3: Y},
        P256 | {-2: X},
        P256 | {-1: 2, -2: X, -3: Y},
        P256 | {1: 1, -2: X, -3: Y},
        P256 | {3: -35, -2: X, -3: Y},
        P256 | {3: -47, -2: X, -3: Y},
        P256 | {3: "ES256", -2: X, -3: Y},
        {1: 1, 3: -8, -1: 7, -2: bytes(57)},
        {1: 1, 3: -8, -1: 6, -2: bytes(31)},
        {1: 3, 3: -257, -1: b"\xff" * 128, -2: b"\1\0\1"},
        {1: 3, 3: -257, -1: b"\xff" * 256, -2: b"\xff" * 256},
        {1: 3, 3: -257, -1: b"\xff" * 256, -2: b"\2\0\0\0\1"},
        {1: 3, 3: -257, -1: b"\xff" * 1024, -2: b"\1\0\1"},
        {1: 3, 3: -65535, -1: b"\xff" * 256, -2: b"\1\0\1"},
        {1: 7, 3: -48, -1: bytes(1312)},
        {},
        [],
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_key_of_another_kind_or_off_its_curve_is_malformed(cose: Any) -> None:
    made = Passkey(origin=WEB)
    data = made.authenticator_data(POLICY.rp_id, attested=True).removesuffix(made.cose_key) + cbor2.dumps(cose)
    attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
    client_data = made.client_data("webauthn.create", b64(challenges.challenge(ENROLMENT)))

    with malformed("webauthn_registration_json"):
        register(
            PasskeyRegistration(made.credential(clientDataJSON=client_data, attestationObject=attestation)),
            Platform.WEBAUTHN,
        )


@pytest.mark.parametrize(
    ("attestation", "fault"),
    [
        ({"fmt": "none", "attStmt": {"sig": b"x"}}, Fault.ATTESTATION_WRONG),
        ({"fmt": "packed", "attStmt": {"alg": -7, "sig": b"x"}}, Fault.ATTESTATION_WRONG),
        ({"fmt": "packed", "attStmt": {"alg": -7, "sig": b"x", "x5c": [b"x"]}}, Fault.ATTESTATION_WRONG),
        ({"fmt": "packed", "attStmt": {"alg": [], "sig": {}, "x5c": 7}}, Fault.ATTESTATION_WRONG),
        ({"fmt": "tpm", "attStmt": {"ver": 1}}, Fault.ATTESTATION_WRONG),
        ({"fmt": "android-key", "attStmt": {}}, Fault.ATTESTATION_WRONG),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_statement_that_does_not_hold_is_refused(attestation: dict[str, Any], fault: Fault) -> None:
    made = Passkey(origin=WEB)
    encoded = cbor2.dumps(attestation | {"authData": made.authenticator_data(POLICY.rp_id, attested=True)})
    client_data = made.client_data("webauthn.create", b64(challenges.challenge(ENROLMENT)))

    with refused(fault):
        register(
            PasskeyRegistration(made.credential(clientDataJSON=client_data, attestationObject=encoded)),
            Platform.WEBAUTHN,
        )


def test_the_id_beside_a_new_key_must_be_the_one_that_is_signed() -> None:
    made, other = Passkey(origin=WEB), Passkey(origin=WEB)
    created = json.loads(made.create(creation()))
    created["id"] = created["rawId"] = b64(other.webauthn_id)

    with refused(Fault.FORMAT_WRONG):
        register(PasskeyRegistration(json.dumps(created)), Platform.WEBAUTHN)


def test_one_key_has_one_fingerprint_whatever_id_it_comes_with() -> None:
    made = Passkey(origin=WEB)
    again = Passkey(origin=WEB, key=made.key)

    first, second = (register(PasskeyRegistration(one.create(creation())), Platform.WEBAUTHN) for one in (made, again))

    assert first.key.webauthn_id != second.key.webauthn_id
    assert first.fingerprint == second.fingerprint
