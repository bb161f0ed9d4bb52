"""
Signed biometric tokens: compact JWS (RFC 7515) by ES256 or EdDSA, of apps that have a JOSE library.

PyJWT checks the signature, with a key object and the one algorithm that was fixed at enrolment. Everything else is
checked here: it takes any `typ` and names that occur twice. The header may say `alg`, `typ` and `kid`, and nothing that
tells a verifier where to find a key or how else to read.

Claims: `aud` as set for the tenant, `jti` the challenge's id, `nonce` the challenge and `digest` what was asked for,
both in Base64url, `exp` at most two minutes ahead of the server's clock. All are in the signing input, to be copied.
"""

from __future__ import annotations

import re
from typing import Any, Final

import jwt

from riskgate_server.crypto.proofs import keys
from riskgate_server.crypto.proofs.reading import Unreadable, base64url, json_object, malformed, text_of
from riskgate_server.domain.identity.challenges import base64url as text_of_bytes
from riskgate_server.domain.identity.devices import (
    PROOF_LIFETIME_MAX_SECONDS,
    Algorithm,
    CompactJWS,
    Credential,
    Fault,
    Platform,
    ProofAsked,
    ProofPolicy,
    ProofRefused,
    ProofVerdict,
)

TYPE: Final = "riskgate-proof+jwt"
"""`typ` of a token, so that no other JWT signed with the same key is taken for a proof (RFC 8725, 3.11)."""
TOKEN_BYTES_MAX: Final = 4096

_FIELD: Final = "compact_jws"
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_HEADER_NAMES: Final = {"alg", "typ", "kid"}
_NAMES: Final = {Algorithm.ES256: "ES256", Algorithm.EDDSA: "EdDSA"}
_READER: Final = jwt.PyJWS(algorithms=list(_NAMES.values()))


def verify_token(answer: CompactJWS, asked: ProofAsked, policy: ProofPolicy, *, now_us: int) -> ProofVerdict:
    """
    Check that one of the keys asked for signed what was asked.

    Raises:
        InvalidRequest: it is no compact JWS, in one spelling, of two JSON objects.
        ProofRefused: it is, and does not hold.
    """
    try:
        header, claims = _read(answer.token)
    except Unreadable as error:
        raise malformed(_FIELD, error.what) from None
    credential = _signing(header, asked.credentials)
    name = credential.credential_id
    if header.get("typ") != TYPE:
        raise ProofRefused(Fault.TYPE_WRONG, name)
    if header.keys() != _HEADER_NAMES or header["alg"] != _NAMES[credential.key.algorithm]:
        raise ProofRefused(Fault.FORMAT_WRONG, name)
    verify_signature(answer.token, credential.key.algorithm, credential.key.public_key, credential_id=name)
    _check_claims(claims, asked, policy, now_us=now_us, credential_id=name)
    return ProofVerdict(
        credential_id=name, challenge=asked.challenge, digest=asked.digest, user_verified=True, device_bound=False
    )


def verify_signature(token: str, algorithm: Algorithm, spki: bytes, *, credential_id: str = "") -> bytes:
    """
    Return what a compact JWS says, if this key signed it by this algorithm.

    Raises:
        ProofRefused: anything else.
    """
    try:
        payload: bytes = _READER.decode(token, key=keys.load(spki), algorithms=[_NAMES[algorithm]])  # type: ignore[arg-type]  # it takes the two kinds of key that an enrolled one can be
    except (jwt.PyJWTError, ValueError):
        raise ProofRefused(Fault.SIGNATURE_WRONG, credential_id) from None
    return payload


def parts(token: str) -> tuple[bytes, bytes, bytes]:
    """
    Return header, payload and signature of a compact JWS, which has one spelling: no padding, no stray bits.

    Raises:
        Unreadable: it is another serialisation, in another spelling, or of more than 4 KiB.
    """
    if len(token) > TOKEN_BYTES_MAX:
        raise Unreadable(f"more than {TOKEN_BYTES_MAX} bytes")
    if not _COMPACT.fullmatch(token):
        raise Unreadable("not a compact JWS without padding")
    header, payload, signature = (base64url(part, bytes_max=TOKEN_BYTES_MAX) for part in token.split("."))
    return header, payload, signature


def _read(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, payload, _ = parts(token)
    said = json_object(header, bytes_max=TOKEN_BYTES_MAX)
    text_of(said.get("kid"), "kid")
    return said, json_object(payload, bytes_max=TOKEN_BYTES_MAX)


def _signing(header: dict[str, Any], credentials: tuple[Credential, ...]) -> Credential:
    for credential in credentials:
        if credential.credential_id == header["kid"]:
            if credential.key.platform != Platform.JOSE:
                raise ProofRefused(Fault.FORMAT_WRONG, credential.credential_id)
            return credential
    raise ProofRefused(Fault.CREDENTIAL_UNKNOWN)


def _check_claims(
    claims: dict[str, Any], asked: ProofAsked, policy: ProofPolicy, *, now_us: int, credential_id: str
) -> None:
    if claims.get("aud") != policy.audience:
        raise ProofRefused(Fault.AUDIENCE_WRONG, credential_id)
    if claims.get("jti") != asked.challenge_id or claims.get("nonce") != text_of_bytes(asked.challenge):
        raise ProofRefused(Fault.CHALLENGE_WRONG, credential_id)
    if claims.get("digest") != text_of_bytes(asked.digest):
        raise ProofRefused(Fault.TRANSACTION_DIFFERS, credential_id)
    expires, not_before = claims.get("exp"), claims.get("nbf", 0)
    if type(expires) is not int or type(not_before) is not int:
        raise ProofRefused(Fault.EXPIRED, credential_id)
    lifetime_us = expires * 1_000_000 - now_us
    # By the server's clock: the phone's is nobody's evidence.
    if not 0 < lifetime_us <= PROOF_LIFETIME_MAX_SECONDS * 1_000_000 or not_before * 1_000_000 > now_us:
        raise ProofRefused(Fault.EXPIRED, credential_id)
