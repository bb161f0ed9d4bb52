"""
A phone made of software: keys and answers as Android, iOS, a passkey and a JOSE app give them. For tests and demos.

    phone = AndroidPhone()
    registration = phone.enrol(begun.signing_input)        # raw_key of FinishEnrollment
    signature = phone.sign(challenge.signing_input)        # for VerifyChallenge

    passkey = Passkey(origin="https://bank.example")
    created = passkey.create(begun.creation_options_json)  # webauthn_registration_json
    answer = passkey.get(challenge.request_options_json)   # webauthn_assertion_json

It knows nothing of the engine, only what the contract says. Its keys lie in this process's memory and guard nothing:
never enrol one for a real customer. Needs `cryptography` and `cbor2`, which the client itself does not.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from riskgate_client.proofs import RawKeyAnswer

TOKEN_TYPE: Final = "riskgate-proof+jwt"  # noqa: S105  a media type
"""`typ` of a compact JWS that is a proof."""

_USER_PRESENT, _USER_VERIFIED, _BACKUP_ELIGIBLE, _BACKED_UP, _ATTESTED = 0x01, 0x04, 0x08, 0x10, 0x40
_AAGUID: Final = bytes(16)

Chain = Callable[[bytes, bytes], Sequence[bytes]]
"""From a public key (SubjectPublicKeyInfo) and a challenge to the certificates that vouch for it, leaf first."""


@dataclass(frozen=True)
class AndroidPhone:
    """A key in the Android Keystore, used after BiometricPrompt. `chain` makes its attestation, if it has one."""

    chain: Chain | None = None
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo in DER, 91 bytes."""
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def enrol(self, signing_input: bytes, challenge: bytes = b"") -> RawKeyAnswer:
        """Answer BeginEnrollment. `challenge` goes into the attestation."""
        chain = () if self.chain is None else tuple(self.chain(self.public_key, challenge))
        return RawKeyAnswer(self.public_key, self.sign(signing_input), chain)

    def sign(self, signing_input: bytes) -> bytes:
        """Answer BeginChallenge: ECDSA with SHA-256 over the exact bytes, DER."""
        return self.key.sign(signing_input, ec.ECDSA(SHA256()))


@dataclass(frozen=True)
class IPhone:
    """A key in the Secure Enclave of an iPhone."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def public_key(self) -> bytes:
        """The bare point, 65 bytes, as `SecKeyCopyExternalRepresentation` gives it (X9.63)."""
        return self.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def enrol(self, signing_input: bytes) -> RawKeyAnswer:
        """Answer BeginEnrollment."""
        return RawKeyAnswer(self.public_key, self.sign(signing_input))

    def sign(self, signing_input: bytes) -> bytes:
        """Answer BeginChallenge: ECDSA with SHA-256 over the exact bytes, DER."""
        return self.key.sign(signing_input, ec.ECDSA(SHA256()))


class JoseApp:
    """An app with a JOSE library, ES256 or EdDSA (Ed25519)."""

    def __init__(self, algorithm: Literal["ES256", "EdDSA"] = "ES256") -> None:
        self.algorithm = algorithm
        self.key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey = (
            Ed25519PrivateKey.generate() if algorithm == "EdDSA" else ec.generate_private_key(ec.SECP256R1())
        )

    @property
    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo in DER."""
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def enrol(self, signing_input: bytes) -> RawKeyAnswer:
        """Answer BeginEnrollment."""
        return RawKeyAnswer(self.public_key, self.sign_bytes(signing_input))

    def sign(self, signing_input: bytes, credential_id: str, **changes: Any) -> str:
        """Answer BeginChallenge with a compact JWS. `changes` replace claims, for tests of what must be refused."""
        asked = json.loads(signing_input)
        claims = {
            "aud": asked["audience"],
            "jti": asked["challenge_id"],
            "nonce": asked["challenge"],
            "digest": asked["digest"],
            "exp": asked["expires"],
        }
        return self.token({"alg": self.algorithm, "typ": TOKEN_TYPE, "kid": credential_id}, claims | changes)

    def token(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        """Return any header and claims, signed (RFC 7515, 3.1)."""
        signed = f"{_base64url(_json(header))}.{_base64url(_json(claims))}"
        return f"{signed}.{_base64url(self.sign_bytes(signed.encode()))}"

    def sign_bytes(self, message: bytes) -> bytes:
        """Return 64 bytes: r and s of ECDSA (RFC 7518, 3.4), or what Ed25519 gives."""
        if isinstance(self.key, Ed25519PrivateKey):
            return self.key.sign(message)
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@dataclass
class Passkey:
    r"""
    A passkey, as the credential managers of phones and browsers make it.

    Attributes:
        origin: the page's, or `android:apk-key-hash:…` of an app.
        synced: its maker keeps copies of it (Apple, Google): eligible for backup and backed up, and without a counter.
        escapes: writes `/` as `\/` in the client data, as iOS does.
        verifies: the user is verified by a fingerprint, a face or the PIN before it answers.
    """

    origin: str
    synced: bool = False
    escapes: bool = False
    verifies: bool = True
    sign_count: int = 0
    webauthn_id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def create(self, options_json: str) -> str:
        """Answer `navigator.credentials.create()`."""
        options = json.loads(options_json)
        client_data = self.client_data("webauthn.create", options["challenge"])
        data = self.authenticator_data(options["rp"]["id"], attested=True)
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        return self.credential(clientDataJSON=client_data, attestationObject=attestation)

    def get(self, options_json: str, **changes: Any) -> str:
        """Answer `navigator.credentials.get()`. `changes` replace client data, for tests of what must be refused."""
        options = json.loads(options_json)
        if not self.synced:
            self.sign_count += 1
        client_data = self.client_data("webauthn.get", options["challenge"], **changes)
        return self.assertion(client_data, self.authenticator_data(options["rpId"]))

    def client_data(self, type: str, challenge: str, /, **changes: Any) -> bytes:
        """Return what the browser says it was asked (WebAuthn Level 3, 5.8.1)."""
        fields = {"type": type, "challenge": challenge, "origin": self.origin, "crossOrigin": False} | changes
        text = _json(fields)
        return text.replace(b"/", b"\\/") if self.escapes else text

    def authenticator_data(self, rp_id: str, *, attested: bool = False, flags: int | None = None) -> bytes:
        """Return what the authenticator says of itself (WebAuthn Level 3, 6.1). `flags` replace its own."""
        if flags is None:
            flags = _USER_PRESENT | (_USER_VERIFIED if self.verifies else 0)
            flags |= (_BACKUP_ELIGIBLE | _BACKED_UP) if self.synced else 0
        header = hashlib.sha256(rp_id.encode()).digest()
        header += bytes([flags | (_ATTESTED if attested else 0)]) + self.sign_count.to_bytes(4, "big")
        if not attested:
            return header
        return header + _AAGUID + len(self.webauthn_id).to_bytes(2, "big") + self.webauthn_id + self.cose_key

    def assertion(self, client_data: bytes, authenticator_data: bytes) -> str:
        """Return both, signed, as JSON."""
        signed = authenticator_data + hashlib.sha256(client_data).digest()
        signature = self.key.sign(signed, ec.ECDSA(SHA256()))
        return self.credential(clientDataJSON=client_data, authenticatorData=authenticator_data, signature=signature)

    def credential(self, **response: bytes) -> str:
        """Return a PublicKeyCredential with this response, as `toJSON()` writes it."""
        name = _base64url(self.webauthn_id)
        return _json(
            {
                "id": name,
                "rawId": name,
                "type": "public-key",
                "authenticatorAttachment": "platform",
                "response": {part: _base64url(value) for part, value in response.items()},
                "clientExtensionResults": {},
            }
        ).decode()

    @property
    def cose_key(self) -> bytes:
        """The public key as COSE_Key (RFC 9052, 7): ES256 on P-256."""
        numbers = self.key.public_key().public_numbers()
        return cbor2.dumps({1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")})


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
