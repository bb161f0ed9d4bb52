"""
Passkeys: registrations and assertions of WebAuthn Level 3, checked here and then by the `webauthn` library.

Our own check comes first because the library is lenient where it matters: it takes an embedded page (`crossOrigin`),
names that occur twice, and any spelling of Base64. It judges attestation statements and signatures. It is given the
objects we read, never the text, so that it cannot see other things in it than we did. Counters are not judged here.
The dates of a statement's certificates it judges by the clock of the process: it has no other.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from webauthn import verify_authentication_response, verify_registration_response
from webauthn.helpers import decode_credential_public_key, decoded_public_key_to_cryptography, verify_signature
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AttestationFormat,
    AuthenticationCredential,
    AuthenticatorAssertionResponse,
    AuthenticatorAttestationResponse,
    PublicKeyCredentialType,
    RegistrationCredential,
)

from riskgate_server.crypto.proofs import android, authenticator_data, cbor, client_data, keys, payments
from riskgate_server.crypto.proofs.reading import Unreadable, base64url, json_object, malformed
from riskgate_server.crypto.proofs.trust import AttestationTrust
from riskgate_server.domain.identity.challenges import base64url as text_of_bytes
from riskgate_server.domain.identity.devices import (
    Algorithm,
    Assurance,
    BootState,
    Credential,
    DeviceKey,
    Fault,
    PasskeyAssertion,
    PasskeyRegistration,
    Platform,
    ProofAsked,
    ProofPolicy,
    ProofRefused,
    ProofVerdict,
    RegistrationAsked,
    RegistrationVerdict,
)

REGISTRATION_BYTES_MAX: Final = 32 * 1024
ASSERTION_BYTES_MAX: Final = 16 * 1024

_REGISTRATION_FIELD: Final = "webauthn_registration_json"
_ASSERTION_FIELD: Final = "webauthn_assertion_json"

_FORMATS: Final = frozenset({"none", "packed", "tpm", "android-key", "apple", "fido-u2f"})
"""Attestation formats that are read. SafetyNet is not: Google switched it off."""
_ANDROID: Final = "android-key"
_CERTIFIED_BY_LIBRARY: Final = frozenset({_ANDROID, "apple"})
"""Formats whose chain the library always holds against the makers' roots it carries."""


class _Assertion(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    webauthn_id: bytes
    client_bytes: bytes
    client: client_data.ClientData
    data_bytes: bytes
    data: authenticator_data.AuthenticatorData
    signature: bytes


def verify_registration(
    answer: PasskeyRegistration,
    asked: RegistrationAsked,
    policy: ProofPolicy,
    trust: AttestationTrust,
    *,
    now_us: int,
) -> RegistrationVerdict:
    """
    Check a new passkey. What its maker vouches for counts only up to a root that is trusted; else it is unattested.

    Raises:
        InvalidRequest: it cannot be read, or its key is of a kind that is not verified here.
        ProofRefused: it can, and does not hold.
    """
    try:
        fields, response = _credential(answer.response_json, bytes_max=REGISTRATION_BYTES_MAX)
        webauthn_id = _id(fields)
        client_bytes = base64url(response.get("clientDataJSON"), bytes_max=client_data.CLIENT_DATA_BYTES_MAX)
        client = client_data.read(client_bytes)
        attestation_bytes = base64url(response.get("attestationObject"), bytes_max=REGISTRATION_BYTES_MAX)
        attestation = _attestation(attestation_bytes)
        data = authenticator_data.read(attestation["authData"], registration=True)
        algorithm, spki = keys.cose_key(data.cose_key)
    except Unreadable as error:
        raise malformed(_REGISTRATION_FIELD, error.what) from None
    client_data.check(client, type=client_data.CREATE, challenge=asked.challenge, policy=policy)
    authenticator_data.check(data, rp_id=policy.rp_id, user_verification=policy.user_verification)
    if data.webauthn_id != webauthn_id:
        raise ProofRefused(Fault.FORMAT_WRONG)
    try:
        verify_registration_response(
            credential=RegistrationCredential(
                id=fields["id"],
                raw_id=webauthn_id,
                response=AuthenticatorAttestationResponse(
                    client_data_json=client_bytes, attestation_object=attestation_bytes
                ),
                type=PublicKeyCredentialType.PUBLIC_KEY,
            ),
            expected_challenge=asked.challenge,
            expected_rp_id=policy.rp_id,
            expected_origin=list(policy.origins),
            require_user_verification=policy.user_verification,
            supported_pub_key_algs=[COSEAlgorithmIdentifier(algorithm) for algorithm in Algorithm],
            pem_root_certs_bytes_by_fmt={
                AttestationFormat(name): list(pems) for name, pems in trust.passkey_roots.items()
            },
        )
    except Exception:  # noqa: BLE001  statements are an attacker's bytes; the library lets KeyError and more out
        raise ProofRefused(Fault.ATTESTATION_WRONG) from None
    made_by, statement = attestation["fmt"], attestation["attStmt"]
    boot_state, guarded = BootState.UNATTESTED, policy.user_verification
    if made_by == _ANDROID:
        found = _android(statement["x5c"], spki, sha256(client_bytes).digest(), trust, now_us=now_us)
        # Any app may make such a key and say by itself that it verified the user; only the hardware's word counts.
        boot_state, guarded = found.boot_state, guarded and found.guarded
    # A chain that no root was given for says nothing: whoever made the key may have made the chain.
    attested = "x5c" in statement and (made_by in _CERTIFIED_BY_LIBRARY or bool(trust.passkey_roots.get(made_by)))
    return RegistrationVerdict(
        key=DeviceKey(
            Platform.WEBAUTHN,
            algorithm,
            data.cose_key,
            webauthn_id=webauthn_id,
            backup_eligible=data.backup_eligible,
            sign_count=data.sign_count,
        ),
        assurance=Assurance(
            device_bound=not data.backup_eligible,
            hardware_backed=attested,
            attested=attested,
            user_verified_per_use=guarded,
            boot_state=boot_state,
        ),
        fingerprint=keys.fingerprint(spki),
        challenge=asked.challenge,
        attestation=made_by,
        aaguid=data.aaguid,
    )


def verify_assertion(answer: PasskeyAssertion, asked: ProofAsked, policy: ProofPolicy) -> ProofVerdict:
    """
    Check that one of the passkeys asked for answered what was asked.

    Raises:
        InvalidRequest: the answer cannot be read.
        ProofRefused: it can, and does not hold.
    """
    try:
        read = _assertion(answer.response_json)
    except Unreadable as error:
        raise malformed(_ASSERTION_FIELD, error.what) from None
    credential = _answering(read.webauthn_id, asked.credentials)
    name, key = credential.credential_id, credential.key
    # A payment's window shows amount and payee, a sign-in's does not: each only where it was asked for.
    paying = read.client.type == client_data.PAYMENT and asked.transaction is not None
    client_data.check(
        read.client,
        type=client_data.PAYMENT if paying else client_data.GET,
        challenge=asked.challenge,
        policy=policy,
        credential_id=name,
    )
    if paying:
        payments.check(read.client.payment, asked.transaction, policy, name)
    authenticator_data.check(
        read.data, rp_id=policy.rp_id, user_verification=policy.user_verification, credential_id=name
    )
    if read.data.backup_eligible != key.backup_eligible:
        raise ProofRefused(Fault.BACKUP_FLAGS_WRONG, name)
    try:
        _check_signature(read, key, asked, policy, paying=paying)
    except (WebAuthnException, InvalidSignature, ValueError):
        raise ProofRefused(Fault.SIGNATURE_WRONG, name) from None
    return ProofVerdict(
        credential_id=name,
        challenge=asked.challenge,
        digest=asked.digest,
        sign_count=read.data.sign_count,
        user_verified=read.data.user_verified,
        device_bound=not read.data.backup_eligible,
        backed_up=read.data.backed_up,
    )


def _android(
    chain: list[bytes], spki: bytes, challenge: bytes, trust: AttestationTrust, *, now_us: int
) -> android.KeyDescription:
    """Hold a chain to what raw keys are held to: the library knows no revocations and asks not how a phone started."""
    try:
        return android.check(
            chain,
            spki=spki,
            challenge=challenge,
            root_keys=trust.android_roots,
            revoked=trust.android_revoked,
            now_us=now_us,
        )
    except Unreadable as error:
        raise malformed(_REGISTRATION_FIELD, error.what) from None


def _check_signature(read: _Assertion, key: DeviceKey, asked: ProofAsked, policy: ProofPolicy, *, paying: bool) -> None:
    if paying:
        # The library knows no payment.get; all but the signature was checked above.
        decoded = decode_credential_public_key(key.public_key)
        verify_signature(
            public_key=decoded_public_key_to_cryptography(decoded),
            signature_alg=decoded.alg,
            signature=read.signature,
            data=read.data_bytes + sha256(read.client_bytes).digest(),
        )
        return
    verify_authentication_response(
        credential=AuthenticationCredential(
            id=text_of_bytes(read.webauthn_id),
            raw_id=read.webauthn_id,
            response=AuthenticatorAssertionResponse(
                client_data_json=read.client_bytes, authenticator_data=read.data_bytes, signature=read.signature
            ),
            type=PublicKeyCredentialType.PUBLIC_KEY,
        ),
        expected_challenge=asked.challenge,
        expected_rp_id=policy.rp_id,
        expected_origin=list(policy.origins),
        credential_public_key=key.public_key,
        # 0 switches its counter check off: what a counter that did not grow means depends on the key.
        credential_current_sign_count=0,
        require_user_verification=policy.user_verification,
    )


def _assertion(text: str) -> _Assertion:
    fields, response = _credential(text, bytes_max=ASSERTION_BYTES_MAX)
    client_bytes = base64url(response.get("clientDataJSON"), bytes_max=client_data.CLIENT_DATA_BYTES_MAX)
    data_bytes = base64url(response.get("authenticatorData"), bytes_max=ASSERTION_BYTES_MAX)
    signature = base64url(response.get("signature"), bytes_max=keys.SIGNATURE_BYTES_MAX)
    if not signature:
        raise Unreadable("the signature is empty")
    return _Assertion(
        webauthn_id=_id(fields),
        client_bytes=client_bytes,
        client=client_data.read(client_bytes),
        data_bytes=data_bytes,
        data=authenticator_data.read(data_bytes, registration=False),
        signature=signature,
    )


def _credential(text: str, *, bytes_max: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the object a browser's `toJSON()` gave, and its `response`."""
    fields = json_object(text.encode("utf-8", "surrogatepass"), bytes_max=bytes_max)
    response = fields.get("response")
    if type(response) is not dict:
        raise Unreadable("no response in it")
    if fields.get("type") != PublicKeyCredentialType.PUBLIC_KEY.value:
        raise Unreadable("type must be public-key")
    return fields, response


def _id(fields: dict[str, Any]) -> bytes:
    webauthn_id = base64url(fields.get("rawId"), bytes_max=authenticator_data.CREDENTIAL_ID_BYTES_MAX)
    if not webauthn_id or fields.get("id") != fields["rawId"]:
        raise Unreadable("id and rawId must be the same and not empty")
    return webauthn_id


def _attestation(data: bytes) -> dict[str, Any]:
    attestation = cbor.decode(data)
    if type(attestation) is not dict or attestation.keys() != {"fmt", "attStmt", "authData"}:
        raise Unreadable("not an attestation object")
    if type(attestation["authData"]) is not bytes or type(attestation["attStmt"]) is not dict:
        raise Unreadable("not an attestation object")
    if type(attestation["fmt"]) is not str or attestation["fmt"] not in _FORMATS:
        raise Unreadable("the attestation's format is not read here; ask for attestation none")
    return attestation


def _answering(webauthn_id: bytes, credentials: tuple[Credential, ...]) -> Credential:
    for credential in credentials:
        if credential.key.platform == Platform.WEBAUTHN and credential.key.webauthn_id == webauthn_id:
            return credential
    raise ProofRefused(Fault.CREDENTIAL_UNKNOWN)
