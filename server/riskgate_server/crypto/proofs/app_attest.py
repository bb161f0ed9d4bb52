"""
Apple App Attest: a key of an app instance, which vouches that the app is the tenant's and the phone is Apple's.

https://developer.apple.com/documentation/devicecheck/validating-apps-that-connect-to-your-server. It says nothing
about who holds the phone, so it stands beside a device key and is never a proof by itself.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Collection
from hashlib import sha256
from typing import Annotated, Final

from cryptography.hazmat import asn1

from riskgate_server.crypto.proofs import authenticator_data, cbor, chains, keys
from riskgate_server.crypto.proofs.reading import Unreadable
from riskgate_server.domain.identity.devices import (
    Algorithm,
    AppAttestKey,
    AppAttestObject,
    Fault,
    Platform,
    ProofPolicy,
    ProofRefused,
)

ATTESTATION_BYTES_MAX: Final = 16 * 1024
ASSERTION_BYTES_MAX: Final = 4096
KEY_ID_BYTES: Final = 32

_FORMAT: Final = "apple-appattest"
_NONCE: Final = "1.2.840.113635.100.8.2"
_PRODUCTION: Final = b"appattest" + bytes(7)
_DEVELOPMENT: Final = b"appattestdevelop"


@asn1.sequence
class _Nonce:
    nonce: Annotated[bytes, asn1.Explicit(1)]


def check_attestation(
    evidence: AppAttestObject,
    *,
    challenge: bytes,
    policy: ProofPolicy,
    root_keys: Collection[bytes],
    now_us: int,
) -> AppAttestKey:
    """
    Check the first evidence of an App Attest key. The app hashed `challenge` with SHA-256 for it.

    Raises:
        Unreadable: the object is not what it must be.
        ProofRefused: it is, and does not hold.
    """
    if len(evidence.attestation_object) > ATTESTATION_BYTES_MAX:
        raise Unreadable(f"more than {ATTESTATION_BYTES_MAX} bytes")
    key_id = _key_id(evidence.key_id)
    attestation = cbor.decode(evidence.attestation_object)
    chain, data_bytes = _parts(attestation)
    data = authenticator_data.read(data_bytes, registration=True)
    certificates = chains.read(chain)
    chains.check(certificates, root_keys=root_keys, now_us=now_us)
    leaf = certificates[0]
    expected = sha256(data_bytes + sha256(challenge).digest()).digest()
    if not hmac.compare_digest(_nonce(chains.extension(leaf, _NONCE)), expected):
        raise ProofRefused(Fault.ATTESTATION_CHALLENGE_WRONG)
    algorithm, spki = keys.raw_key(Platform.IOS_SECURE_ENCLAVE, chains.spki_of(leaf))
    # The id is the hash of the key's point, and both the app and the authenticator name it.
    if sha256(spki[-keys.P256_POINT_BYTES :]).digest() != key_id or data.webauthn_id != key_id:
        raise ProofRefused(Fault.APP_ATTEST_WRONG)
    if keys.cose_key(data.cose_key) != (algorithm, spki) or algorithm != Algorithm.ES256:
        raise ProofRefused(Fault.APP_ATTEST_WRONG)
    app_id = _app_of(data.rp_id_hash, policy)
    if data.aaguid == _DEVELOPMENT and not policy.apple_development:
        raise ProofRefused(Fault.APP_ATTEST_DEVELOPMENT)
    if data.aaguid not in {_PRODUCTION, _DEVELOPMENT} or data.sign_count != 0:
        raise ProofRefused(Fault.APP_ATTEST_WRONG)
    return AppAttestKey(key_id=key_id, public_key=spki, app_id=app_id, sign_count=0)


def check_assertion(evidence: bytes, key: AppAttestKey, *, signed: bytes, policy: ProofPolicy) -> int:
    """
    Check that the app instance saw the bytes `signed`; return its counter, 1 or more, whose growth the engine judges.

    Raises:
        Unreadable: it is not an assertion.
        ProofRefused: it is, and does not hold.
    """
    if len(evidence) > ASSERTION_BYTES_MAX:
        raise Unreadable(f"more than {ASSERTION_BYTES_MAX} bytes")
    assertion = cbor.decode(evidence)
    if type(assertion) is not dict or assertion.keys() != {"signature", "authenticatorData"}:
        raise Unreadable("not an App Attest assertion")
    signature, data = assertion["signature"], assertion["authenticatorData"]
    # Apple sets the flag of an attested key in here too, and sends none: only the header is fixed.
    if type(signature) is not bytes or type(data) is not bytes or len(data) != authenticator_data.HEADER_BYTES:
        raise Unreadable("not an App Attest assertion")
    if key.app_id not in policy.apple_app_ids or data[:32] != sha256(key.app_id.encode()).digest():
        raise ProofRefused(Fault.APP_UNKNOWN)
    nonce = sha256(data + sha256(signed).digest()).digest()
    if not keys.verify_der(key.public_key, signature, nonce):
        raise ProofRefused(Fault.APP_ATTEST_WRONG)
    sign_count = int.from_bytes(data[33:], "big")
    if not sign_count:
        # The first assertion shows 1. The engine takes 0 for no evidence at all, and would not look at it.
        raise ProofRefused(Fault.COUNTER_NOT_GROWN)
    return sign_count


def _key_id(text: str) -> bytes:
    try:
        key_id = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Unreadable("key_id is not Base64") from None
    if len(key_id) != KEY_ID_BYTES:
        raise Unreadable(f"key_id is not {KEY_ID_BYTES} bytes")
    return key_id


def _parts(attestation: object) -> tuple[list[bytes], bytes]:
    if type(attestation) is not dict or attestation.get("fmt") != _FORMAT:
        raise Unreadable("not an App Attest object")
    statement, data = attestation.get("attStmt"), attestation.get("authData")
    chain = statement.get("x5c") if type(statement) is dict else None
    if type(data) is not bytes or type(chain) is not list or any(type(der) is not bytes for der in chain):
        raise Unreadable("not an App Attest object")
    return chain, data


def _nonce(extension: bytes | None) -> bytes:
    if extension is None:
        raise Unreadable("the leaf names no nonce")
    try:
        return asn1.decode_der(_Nonce, extension).nonce
    except ValueError:
        raise Unreadable("the nonce of the leaf is not DER of its form") from None


def _app_of(rp_id_hash: bytes, policy: ProofPolicy) -> str:
    for app_id in policy.apple_app_ids:
        if sha256(app_id.encode()).digest() == rp_id_hash:
            return app_id
    raise ProofRefused(Fault.APP_UNKNOWN)
