"""
Chains of X.509 certificates up to a trusted root KEY.

A maker's root certificate is renewed and expires; its key stays. So trust is in the key, and the certificate that
carries it is not judged by its dates. All others are, by the time given: a chain is checked when the key is new.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from riskgate_server.crypto.proofs.reading import Unreadable
from riskgate_server.domain.identity.devices import Fault, ProofRefused

CERTIFICATES_MAX: Final = 10
CERTIFICATE_BYTES_MAX: Final = 8192
RSA_EXPONENT_MAX: Final = 2**32
"""
As of passkeys (`keys.cose_key`). Checking a signature takes time in its size: with one as long as the key, a chain of
anybody's making kept a processor for 150 ms.
"""


_NO_CERTIFICATE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What reading bytes that are none may raise."""


def read(ders: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    """
    Read certificates in DER, leaf first.

    Raises:
        Unreadable: there are too many, one is too long, or none.
    """
    if not 1 <= len(ders) <= CERTIFICATES_MAX or any(len(der) > CERTIFICATE_BYTES_MAX for der in ders):
        raise Unreadable("more or larger certificates than a chain has")
    try:
        certificates = tuple(x509.load_der_x509_certificate(der) for der in ders)
        for certificate in certificates:
            # Read lazily, and not before something asks for them.
            _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.signature_hash_algorithm
            _ = certificate.signature_algorithm_parameters
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.serial_number
            key = certificate.public_key()
            if isinstance(key, rsa.RSAPublicKey) and key.public_numbers().e > RSA_EXPONENT_MAX:
                raise Unreadable("a certificate whose RSA key has a large exponent")
    except _NO_CERTIFICATE:
        raise Unreadable("not a certificate in DER") from None
    return certificates


def check(
    certificates: Sequence[x509.Certificate],
    *,
    root_keys: Collection[bytes],
    revoked: Collection[int] = (),
    now_us: int,
) -> None:
    """
    Follow a chain from its leaf to a root key.

    The chain may end in a certificate of the root, or in one that the root signed: Apple leaves the root out.

    Args:
        certificates: leaf first.
        root_keys: SubjectPublicKeyInfo in DER of the keys that are trusted.
        revoked: serial numbers that are not.
        now_us: when, UTC µs.

    Raises:
        ProofRefused: a link does not hold, is revoked or out of date, or the end is not trusted.
    """
    for certificate, issuer in itertools.pairwise(certificates):
        if not _may_issue(issuer):
            raise ProofRefused(Fault.ATTESTATION_WRONG)
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise ProofRefused(Fault.ATTESTATION_WRONG) from None
    ends_in_root = spki_of(certificates[-1]) in root_keys
    if ends_in_root and len(certificates) == 1:
        # A root's certificate is known by its key alone: standing for itself it is one that anybody may have written.
        raise ProofRefused(Fault.ATTESTATION_WRONG)
    if not ends_in_root and not _signed_by(certificates[-1], root_keys):
        raise ProofRefused(Fault.ATTESTATION_ROOT_UNKNOWN)
    if any(certificate.serial_number in revoked for certificate in certificates):
        raise ProofRefused(Fault.ATTESTATION_REVOKED)
    now = datetime.fromtimestamp(now_us / 1_000_000, UTC)
    for certificate in certificates[:-1] if ends_in_root else certificates:
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise ProofRefused(Fault.ATTESTATION_WRONG)


def spki_of(certificate: x509.Certificate) -> bytes:
    """Return the certificate's key as SubjectPublicKeyInfo in DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def extension(certificate: x509.Certificate, oid: str) -> bytes | None:
    """Return the value of a private extension, or None if the certificate has none of that name."""
    for found in certificate.extensions:
        if found.oid.dotted_string == oid:
            value = found.value
            return value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    return None


def _may_issue(certificate: x509.Certificate) -> bool:
    """Whether it is one of an authority: without this the holder of any leaf could sign another below it."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and usage.key_cert_sign


def _signed_by(certificate: x509.Certificate, root_keys: Collection[bytes]) -> bool:
    algorithm = certificate.signature_algorithm_parameters
    for spki in root_keys:
        key = load_der_public_key(spki)
        try:
            if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(algorithm, ec.ECDSA):
                key.verify(certificate.signature, certificate.tbs_certificate_bytes, algorithm)
                return True
            if isinstance(key, rsa.RSAPublicKey) and isinstance(algorithm, padding.PKCS1v15):
                digest = certificate.signature_hash_algorithm
                assert digest is not None
                key.verify(certificate.signature, certificate.tbs_certificate_bytes, algorithm, digest)
                return True
        except InvalidSignature:
            continue
    return False
