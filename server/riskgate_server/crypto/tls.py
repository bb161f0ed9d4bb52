"""
The local certificate authority: issues the server's certificate and those of callers.

Everything is ECDSA on P-256. Times are arguments; certificates begin five minutes early for clocks that lag.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
SERVER_LIFETIME: Final = timedelta(days=825)
CLIENT_LIFETIME: Final = timedelta(days=90)
CLIENT_LIFETIME_MAX: Final = timedelta(days=825)
_LAG: Final = timedelta(minutes=5)

ALWAYS_NAMED: Final = ("localhost", "127.0.0.1", "::1")
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.+?-----END \1-----\n?", re.DOTALL)
_DNS_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_DNS_LABEL}(?:\.{_DNS_LABEL})*")


class Credential(msgspec.Struct, frozen=True):
    """A certificate and its private key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        return "Credential(***)"

    def certificate_sha256(self) -> bytes:
        """Return the hash by which the certificate is known."""
        return x509.load_pem_x509_certificate(self.certificate_pem).fingerprint(hashes.SHA256())

    def expires(self) -> datetime:
        """Return when the certificate stops being valid, in UTC."""
        return end_of(self.certificate_pem)


def new_authority(now: datetime) -> Credential:
    """Found an authority that may issue certificates, but no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Riskgate local authority")
    builder = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return _signed(builder, key, key)


def issue_server(authority: Credential, names: tuple[str, ...], now: datetime) -> Credential:
    """
    Issue a server certificate for localhost and `names` (DNS names or addresses).

    Raises:
        ValueError: a name is neither a DNS name nor an address.
    """
    # The names as the certificate carries them: one that was written in two ways is there once.
    alternatives = dict.fromkeys(alternative_name(name) for name in (*ALWAYS_NAMED, *names))
    return _issue(
        authority,
        common_name="Riskgate server",
        alternatives=x509.SubjectAlternativeName(list(alternatives)),
        purpose=ExtendedKeyUsageOID.SERVER_AUTH,
        now=now,
        lifetime=SERVER_LIFETIME,
    )


def issue_client(authority: Credential, uri: str, now: datetime, lifetime: timedelta = CLIENT_LIFETIME) -> Credential:
    """Issue a client certificate whose only identity is `uri`."""
    assert timedelta(0) < lifetime <= CLIENT_LIFETIME_MAX
    return _issue(
        authority,
        common_name="Riskgate caller",
        alternatives=x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]),
        purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
        now=now,
        lifetime=lifetime,
    )


def require_certificate(pem: bytes) -> None:
    """Raise ValueError unless `pem` begins with a certificate that can be read."""
    try:
        x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ValueError("not a certificate") from None


@lru_cache(maxsize=1)  # asked at every handshake
def key_of(certificate_pem: bytes, keys_pem: bytes) -> bytes:
    """
    Return, of the private keys in a file, the one that is the certificate's.

    Raises:
        ValueError: none is.
    """
    public_key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    found = [match[0] for match in _PRIVATE_KEY.finditer(keys_pem)]
    for key_pem in found:
        try:
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError("not a private key without a password") from None
        if key.public_key() == public_key:
            return key_pem
    raise ValueError("not the key of the certificate" if found else "not a private key without a password")


def end_of(certificate_pem: bytes) -> datetime:
    """Return when a certificate stops being valid, in UTC."""
    return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc


def names_of(certificate_pem: bytes) -> tuple[str, ...]:
    """Return the DNS names and addresses that a certificate carries, in its order."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress))


def was_issued_by(authority_pem: bytes, certificate_pem: bytes) -> bool:
    """Whether the authority signed the certificate."""
    try:
        x509.load_pem_x509_certificate(certificate_pem).verify_directly_issued_by(
            x509.load_pem_x509_certificate(authority_pem)
        )
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def alternative_name(name: str) -> x509.GeneralName:
    """
    Turn a DNS name or an address into the name a certificate carries.

    Raises:
        ValueError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        lowered = name.lower()
        if not _DNS_NAME.fullmatch(lowered):
            raise ValueError(f"{name!r} is neither a DNS name nor an IP address") from None
        return x509.DNSName(lowered)


def _issue(
    authority: Credential,
    *,
    common_name: str,
    alternatives: x509.SubjectAlternativeName,
    purpose: x509.ObjectIdentifier,
    now: datetime,
    lifetime: timedelta,
) -> Credential:
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem)
    issuer_key = load_pem_private_key(authority.key_pem, password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    # Nothing outlives its issuer.
    lifetime = min(lifetime, issuer.not_valid_after_utc - now)
    builder = (
        _builder(_name(common_name), issuer.subject, key.public_key(), now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    return _signed(builder, key, issuer_key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LAG)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Credential:
    return Credential(
        certificate_pem=builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Riskgate"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
