"""Signatures, tokens and public keys that Wycheproof made to be mistaken for good ones."""

from __future__ import annotations

from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from riskgate_server.crypto.proofs import keys, tokens
from riskgate_server.crypto.proofs.reading import Unreadable
from riskgate_server.domain.identity.devices import Algorithm, Platform, ProofRefused
from tests.vectors import published, wycheproof

pytestmark = published

EXPECTED: Final = {"valid": True, "invalid": False}


def wrong(cases: list[tuple[int, bool, str]]) -> list[int]:
    """Ids of the cases that were not found what they are."""
    return [number for number, found, result in cases if found != EXPECTED[result]]


def test_every_der_signature_on_p256_is_found_what_it_is() -> None:
    cases = [
        (
            case["tcId"],
            keys.verify_der(
                bytes.fromhex(group["publicKeyDer"]), bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"])
            ),
            case["result"],
        )
        for group, case in wycheproof("ecdsa_secp256r1_sha256_test")
    ]

    assert len(cases) == 484
    assert wrong(cases) == []


@pytest.mark.parametrize(
    ("name", "algorithm", "count"),
    [("ecdsa_secp256r1_sha256_p1363_test", Algorithm.ES256, 262), ("ed25519_test", Algorithm.EDDSA, 151)],
)
def test_every_signature_of_64_bytes_is_found_what_it_is(name: str, algorithm: Algorithm, count: int) -> None:
    cases = [
        (
            case["tcId"],
            keys.verify_pair(
                algorithm,
                bytes.fromhex(group["publicKeyDer"]),
                bytes.fromhex(case["sig"]),
                bytes.fromhex(case["msg"]),
            ),
            case["result"],
        )
        for group, case in wycheproof(name)
    ]

    assert len(cases) == count
    assert wrong(cases) == []


def jose_key(jwk: dict[str, Any]) -> tuple[Algorithm, bytes] | None:
    """The key of a JWK if it is one that an app may enrol for signing, as it would enrol it."""
    enrolled = {("EC", "P-256"): Algorithm.ES256, ("OKP", "Ed25519"): Algorithm.EDDSA}
    algorithm = enrolled.get((jwk.get("kty", ""), jwk.get("crv", "")))
    if algorithm is None:
        return None
    key = jwt.PyJWK({name: value for name, value in jwk.items() if name != "d"}).key
    return algorithm, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


UNSAID: Final = {("json_web_signature_test", 354), ("json_web_signature_test", 356)}
"""Good signatures by keys whose JWK says they are for encryption: devices enrol SubjectPublicKeyInfo, which cannot."""


def jws_cases(name: str) -> list[tuple[int, bool, bool]]:
    """Id, whether it was taken, and whether it is valid, for every case with a key that an app may enrol."""
    cases = []
    for group, case in wycheproof(name):
        found = jose_key(group.get("public", {}))
        if found is None or (name, case["tcId"]) in UNSAID or "jws" not in case:
            continue
        algorithm, spki = found
        cases.append((case["tcId"], taken(case["jws"], algorithm, spki), EXPECTED[case["result"]]))
    return cases


def taken(token: object, algorithm: Algorithm, spki: bytes) -> bool:
    """Whether the token passes both what is read before the signature, and the signature."""
    try:
        assert isinstance(token, str)
        tokens.parts(token)
        tokens.verify_signature(token, algorithm, spki)
    except (AssertionError, Unreadable, ProofRefused):
        return False
    return True


@pytest.mark.parametrize(("name", "count"), [("json_web_signature_test", 39), ("json_web_crypto_test", 3)])
def test_every_token_by_a_key_of_ours_is_found_what_it_is(name: str, count: int) -> None:
    cases = jws_cases(name)

    assert len(cases) >= count
    assert [number for number, found, valid in cases if found != valid] == []


@pytest.mark.parametrize("name", ["json_web_signature_test", "json_web_key_test", "json_web_crypto_test"])
def test_no_token_by_another_kind_of_key_is_ever_taken(name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    cases = [case["jws"] for _, case in wycheproof(name) if "jws" in case]

    assert cases
    assert not any(taken(token, Algorithm.ES256, spki) for token in cases)


def accepted(platform: Platform, public_key: bytes) -> bool:
    try:
        keys.raw_key(platform, public_key)
    except Unreadable:
        return False
    return True


def test_every_hostile_p256_key_is_found_what_it_is() -> None:
    """Those that may be taken or not (odd DER, described curves, compressed points) are not."""
    cases = [case for _, case in wycheproof("ecdh_secp256r1_test")]

    taken_ids = {case["tcId"] for case in cases if accepted(Platform.ANDROID_KEYSTORE, bytes.fromhex(case["public"]))}

    assert len(taken_ids) == 330
    assert taken_ids == {case["tcId"] for case in cases if case["result"] == "valid"}


def test_every_hostile_bare_point_is_found_what_it_is() -> None:
    cases = [case for _, case in wycheproof("ecdh_secp256r1_ecpoint_test")]

    taken_ids = {case["tcId"] for case in cases if accepted(Platform.IOS_SECURE_ENCLAVE, bytes.fromhex(case["public"]))}

    assert len(taken_ids) == 330
    assert taken_ids == {case["tcId"] for case in cases if case["result"] == "valid"}
