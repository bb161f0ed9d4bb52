"""
What attestations are held against: root keys of makers, and serial numbers they took back. Data, to be renewed.

Google publishes roots and revocations at https://android.googleapis.com/attestation/root and `…/attestation/status`,
Apple its root at https://www.apple.com/certificateauthority/. Public keys are shipped beside this file; an operator's
files replace them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Final, Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

_BEGIN: Final = b"-----BEGIN "
_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_REVOKED: Final = frozenset({"REVOKED", "SUSPENDED"})


class TrustFileBroken(Exception):
    """A file of roots or revocations is not what it must be. Says which, and why."""


class _Status(msgspec.Struct, frozen=True):
    status: str


class _StatusList(msgspec.Struct, frozen=True):
    entries: dict[str, _Status]


class AttestationTrust:
    """
    Roots and revocations, as they stand; another is made when they are renewed.

    Attributes:
        android_roots, apple_roots: root keys as SubjectPublicKeyInfo in DER.
        android_revoked: serial numbers of certificates that are revoked or suspended.
        passkey_roots: attestation format of WebAuthn to root certificates in PEM; a format without any is unattested.
    """

    def __init__(
        self,
        *,
        android_roots: bytes | None = None,
        android_status: bytes = b'{"entries":{}}',
        apple_roots: bytes | None = None,
        passkey_roots: Mapping[str, bytes] | None = None,
    ) -> None:
        """
        Read roots (PEM: certificates or public keys) and Google's status list (JSON).

        Without roots, those shipped are used; without a status list nothing is revoked.

        Raises:
            TrustFileBroken: one of them cannot be read.
        """
        self.android_roots = _keys("android roots", shipped("android.pem") if android_roots is None else android_roots)
        self.apple_roots = _keys("apple roots", shipped("apple_app_attest.pem") if apple_roots is None else apple_roots)
        self.android_revoked = _revoked(android_status)
        self.passkey_roots = {name: _certificates(name, pem) for name, pem in (passkey_roots or {}).items()}

    def now(self) -> AttestationTrust:
        """Return what an attestation is held against at this moment."""
        return self


class Trusting(Protocol):
    """Where a verifier finds what to hold an attestation against: the same for as long as it looks at one."""

    def now(self) -> AttestationTrust:
        """Return what an attestation is held against at this moment. Safe from any thread."""


def shipped(name: str) -> bytes:
    """Return a file of root keys that is part of this package."""
    return resources.files(__package__).joinpath("roots", name).read_bytes()


def _keys(what: str, pem: bytes) -> frozenset[bytes]:
    keys = []
    for block in _blocks(what, pem):
        try:
            certified = block.startswith(_CERTIFICATE)
            key: PublicKeyTypes = (
                x509.load_pem_x509_certificate(block).public_key() if certified else load_pem_public_key(block)
            )
        except (ValueError, UnsupportedAlgorithm) as error:
            raise TrustFileBroken(f"{what}: neither a certificate nor a public key in PEM") from error
        keys.append(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return frozenset(keys)


def _certificates(what: str, pem: bytes) -> tuple[bytes, ...]:
    blocks = _blocks(f"roots of {what}", pem)
    for block in blocks:
        try:
            x509.load_pem_x509_certificate(block)
        except ValueError as error:
            raise TrustFileBroken(f"roots of {what}: not a certificate in PEM") from error
    return blocks


def _blocks(what: str, pem: bytes) -> tuple[bytes, ...]:
    _, *blocks = pem.split(_BEGIN)
    if not blocks:
        # An empty file is a mistake: no roots at all would refuse every phone.
        raise TrustFileBroken(f"{what}: nothing in PEM")
    return tuple(_BEGIN + block for block in blocks)


def _revoked(status_list: bytes) -> frozenset[int]:
    try:
        read = msgspec.json.decode(status_list, type=_StatusList)
        return frozenset(int(serial, 16) for serial, entry in read.entries.items() if entry.status in _REVOKED)
    except (msgspec.MsgspecError, ValueError) as error:
        raise TrustFileBroken("android status list: not JSON of its form") from error
