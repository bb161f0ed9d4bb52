"""
Makers of phones, for tests: authorities of our own that vouch for keys as Google and Apple do.

No recording of a real phone has a key that needs the user for every use; the good case can only be made.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import NameOID

from riskgate_server.crypto.proofs import AttestationTrust
from riskgate_server.domain.identity.devices import AppAttestObject
from tests.unit.crypto.proofs.asking import NOW_US

NOW: Final = datetime.fromtimestamp(NOW_US / 1_000_000, UTC)
KEY_DESCRIPTION: Final = "1.3.6.1.4.1.11129.2.1.17"
APPLE_NONCE: Final = "1.2.840.113635.100.8.2"
EVERY_YEAR: Final = (NOW - timedelta(days=30), NOW + timedelta(days=365))


# --- DER, written by hand: the reader under test is another's ---


def tlv(tag: bytes | int, *content: bytes) -> bytes:
    value = b"".join(content)
    length = len(value)
    long = length.to_bytes((length.bit_length() + 7) // 8, "big")
    size = bytes([length]) if length < 128 else bytes([0x80 | len(long)]) + long
    return (bytes([tag]) if isinstance(tag, int) else tag) + size + value


def explicit(number: int, content: bytes) -> bytes:
    """[number] EXPLICIT content."""
    if number < 31:
        return tlv(0xA0 | number, content)
    low = bytes([number & 0x7F])
    return tlv(b"\xbf" + (bytes([0x80 | number >> 7]) + low if number > 127 else low), content)


def integer(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def octets(value: bytes) -> bytes:
    return tlv(4, value)


def enumerated(value: int) -> bytes:
    return tlv(10, bytes([value]))


def set_of(*items: bytes) -> bytes:
    return tlv(0x31, *sorted(items))


NULL: Final = tlv(5)


@dataclass(frozen=True)
class Described:
    """What the hardware is made to say of a key. Entries of a list by tag; None leaves one out."""

    attestation_level: int = 1
    keymint_level: int = 1
    version: int = 300
    challenge: bytes | None = None
    hardware: dict[int, bytes | None] = field(default_factory=dict)
    software: dict[int, bytes | None] = field(default_factory=dict)
    boot_state: int = 0
    locked: bytes = b"\xff"

    def encoded(self, challenge: bytes) -> bytes:
        root_of_trust = tlv(
            0x30, octets(bytes(32)), tlv(1, self.locked), enumerated(self.boot_state), octets(bytes(32))
        )
        hardware: dict[int, bytes | None] = {
            1: set_of(integer(2)),
            2: integer(3),
            3: integer(256),
            5: set_of(integer(4)),
            10: integer(1),
            504: integer(3),
            702: integer(0),
            704: root_of_trust,
            705: integer(150000),
        }
        application = tlv(
            0x30,
            set_of(tlv(0x30, octets(b"com.bank.app"), integer(7))),
            set_of(octets(hashlib.sha256(b"signer").digest())),
        )
        software: dict[int, bytes | None] = {701: integer(NOW_US // 1000), 709: octets(application)}
        return tlv(
            0x30,
            integer(self.version),
            enumerated(self.attestation_level),
            integer(self.version),
            enumerated(self.keymint_level),
            octets(challenge if self.challenge is None else self.challenge),
            octets(b""),
            _listed(software | self.software),
            _listed(hardware | self.hardware),
        )


def _listed(entries: dict[int, bytes | None]) -> bytes:
    return tlv(0x30, *(explicit(tag, value) for tag, value in sorted(entries.items()) if value is not None))


# --- authorities ---


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True)
class Issuer:
    """A key and its certificate, which signs others."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def issue(
    subject: str,
    public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    issuer: Issuer | None = None,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    authority: bool = False,
    signs_certificates: bool | None = None,
    extensions: Sequence[tuple[str, bytes]] = (),
    valid: tuple[datetime, datetime] = EVERY_YEAR,
    serial: int | None = None,
) -> x509.Certificate:
    """Sign a certificate by `issuer`, or by `key` for itself. Its two marks of an authority may be told apart."""
    name = _name(subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(public_key)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(_usage(authority=authority if signs_certificates is None else signs_certificates), critical=True)
    )
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    signer = issuer.key if issuer else key
    assert signer is not None
    return builder.sign(signer, SHA256())


def authority(
    subject: str,
    issuer: Issuer | None = None,
    *,
    valid: tuple[datetime, datetime] = EVERY_YEAR,
    serial: int | None = None,
    extensions: Sequence[tuple[str, bytes]] = (),
) -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issue(
        subject, key.public_key(), issuer, key=key, authority=True, valid=valid, serial=serial, extensions=extensions
    )
    return Issuer(key, certificate)


ROOT: Final = authority("Root of a maker")
TEE: Final = authority("Batch of phones", ROOT, serial=0xC0FFEE)
TRUST: Final = AttestationTrust(android_roots=ROOT.key_pem, apple_roots=ROOT.key_pem)


def android_chain(
    described: Described | None = None,
    *,
    batch: Issuer = TEE,
    root: Issuer = ROOT,
    valid: tuple[datetime, datetime] = EVERY_YEAR,
) -> Callable[[bytes, bytes], list[bytes]]:
    """What the Keystore of a phone answers when an app asks it to vouch for a new key."""
    said = described or Described()

    def made(spki: bytes, challenge: bytes) -> list[bytes]:
        key = load_der_public_key(spki)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        extensions = [(KEY_DESCRIPTION, said.encoded(challenge))]
        leaf = issue("Android Keystore Key", key, batch, extensions=extensions, valid=valid)
        return [leaf.public_bytes(Encoding.DER), batch.der, root.der]

    return made


@dataclass(frozen=True)
class AppleApp:
    """An instance of an app on an iPhone, with its App Attest key."""

    app_id: str = "TEAM123456.com.bank.app"
    aaguid: bytes = b"appattest" + bytes(7)
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    key_id: bytes | None = None
    credential_id: bytes | None = None
    cose_of: ec.EllipticCurvePrivateKey | None = None
    sign_count: int = 0
    batch: Issuer = TEE

    @property
    def point(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def with_(self, **changes: object) -> AppleApp:
        return replace(self, **changes)  # type: ignore[arg-type]  # the fields of this class

    def attest(self, challenge: bytes, *, nonce: bytes | None = None) -> AppAttestObject:
        key_id = self.key_id or hashlib.sha256(self.point).digest()
        credential_id = self.credential_id or key_id
        numbers = (self.cose_of or self.key).public_key().public_numbers()
        cose = cbor2.dumps({1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")})
        data = (
            hashlib.sha256(self.app_id.encode()).digest()
            + b"\x40"
            + self.sign_count.to_bytes(4, "big")
            + self.aaguid
            + len(credential_id).to_bytes(2, "big")
            + credential_id
            + cose
        )
        seen = nonce or hashlib.sha256(data + hashlib.sha256(challenge).digest()).digest()
        leaf = issue(
            key_id.hex(),
            self.key.public_key(),
            self.batch,
            extensions=[(APPLE_NONCE, tlv(0x30, explicit(1, octets(seen))))],
        )
        statement = {"x5c": [leaf.public_bytes(Encoding.DER), self.batch.der], "receipt": b"receipt"}
        encoded = cbor2.dumps({"fmt": "apple-appattest", "attStmt": statement, "authData": data})
        return AppAttestObject(base64.b64encode(key_id).decode(), encoded)

    def vouch(self, signed: bytes, sign_count: int = 1) -> bytes:
        data = hashlib.sha256(self.app_id.encode()).digest() + b"\x40" + sign_count.to_bytes(4, "big")
        nonce = hashlib.sha256(data + hashlib.sha256(signed).digest()).digest()
        return cbor2.dumps({"signature": self.key.sign(nonce, ec.ECDSA(SHA256())), "authenticatorData": data})
