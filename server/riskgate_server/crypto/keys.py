"""The long-lived secrets of a data directory: what they do, and how they are kept in files."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from typing import Final

from riskgate_server.crypto.seal import KEY_BYTES, NONCE_BYTES, TAG_BYTES, SealBroken, Sealer

SECRET_BYTES: Final = 32
MASTER: Final = "master"
FINGERPRINT: Final = "fingerprint"
HEADS: Final = "heads"
PROOFS: Final = "proofs"

_WRAP_VERSION: Final = b"\x01"
HEADER_BYTES: Final = len(_WRAP_VERSION) + 4
_NONCE_END: Final = HEADER_BYTES + NONCE_BYTES
WRAPPED_BYTES: Final = _NONCE_END + KEY_BYTES + TAG_BYTES
_FILE_VERSION: Final = "riskgate-secret-1"

FINGERPRINT_BYTES: Final = 16


class SecretFileBroken(Exception):
    """A secret's file is not one, is another's, or is damaged. The message never quotes it."""


class MasterKeyMismatch(Exception):
    """The value was wrapped under another master key."""

    def __init__(self) -> None:
        super().__init__("wrapped under another master key than the one given")


def encode_secret(kind: str, secret: bytes) -> bytes:
    """Write a secret as the one line of its file: version, kind, hex, checksum."""
    assert len(secret) == SECRET_BYTES
    return f"{_FILE_VERSION}:{kind}:{secret.hex()}:{_checksum(kind, secret)}\n".encode()


def decode_secret(kind: str, content: bytes) -> bytes:
    """
    Read a secret back.

    Raises:
        SecretFileBroken: it is not a secret of this kind, whole and unchanged.
    """
    parts = content.decode("ascii", errors="replace").strip().split(":")
    if len(parts) != 4 or parts[0] != _FILE_VERSION:  # noqa: PLR2004  the four parts written above
        raise SecretFileBroken("not a Riskgate secret")
    if parts[1] != kind:
        raise SecretFileBroken(f"a secret of another kind than {kind}")
    try:
        secret = bytes.fromhex(parts[2])
    except ValueError:
        raise SecretFileBroken("damaged") from None
    # The checksum is for damage and mixed-up files; whoever can write the file can write it too.
    if len(secret) != SECRET_BYTES or not hmac.compare_digest(parts[3], _checksum(kind, secret)):
        raise SecretFileBroken("damaged")
    return secret


def encode_ring(kind: str, ring: Mapping[int, bytes]) -> bytes:
    """Write several secrets of one kind, each with its number, as the lines of one file."""
    return b"".join(encode_secret(f"{kind}.{number}", secret) for number, secret in sorted(ring.items()))


def decode_ring(kind: str, content: bytes) -> dict[int, bytes]:
    """
    Read a ring of secrets back: number → secret.

    Raises:
        SecretFileBroken: a line is not a secret of this kind, whole and unchanged; or there is none.
    """
    ring: dict[int, bytes] = {}
    for number, line in enumerate(content.splitlines(), 1):
        # They are numbered from the first that the file still has; the line says its own number.
        parts = line.split(b":")
        named = parts[1].decode("ascii", errors="replace") if len(parts) > 1 else ""
        digits = named.removeprefix(f"{kind}.")
        if not digits.isascii() or not digits.isdigit():
            raise SecretFileBroken(f"line {number} is not a secret of kind {kind}")
        ring[int(digits)] = decode_secret(named, line)
    if not ring:
        raise SecretFileBroken(f"no secret of kind {kind}")
    return ring


class MasterKey:
    """Wraps customers' data keys, each bound to its customer."""

    __slots__ = ("_entropy", "_sealer", "_secret", "header")

    def __init__(self, secret: bytes, *, entropy: Callable[[int], bytes] = os.urandom) -> None:
        assert len(secret) == SECRET_BYTES
        self._secret = secret
        self.header = _WRAP_VERSION + _derived_id(b"master key id", secret)
        self._entropy = entropy
        self._sealer = Sealer()

    def __repr__(self) -> str:
        return "MasterKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("a master key is not copied or sent elsewhere")

    def wrap(self, customer: tuple[str, str], key: bytes, under: bytes = b"") -> bytes:
        """
        Return `key` as it may be stored: a header of version and id of the master key, nonce, sealed key.

        Raises:
            MasterKeyMismatch: the header `under` is another key's.
        """
        if under and under != self.header:
            raise MasterKeyMismatch
        nonce = self._entropy(NONCE_BYTES)
        return self.header + nonce + self._sealer.seal(self._secret, nonce, self.header + _bound_to(customer), key)

    def unwrap(self, customer: tuple[str, str], wrapped: bytes) -> bytes:
        """
        Return the key that was wrapped for this customer.

        Raises:
            MasterKeyMismatch: another master key wrapped it.
            SealBroken: it was wrapped for another customer, or is damaged.
        """
        if len(wrapped) != WRAPPED_BYTES or wrapped[:1] != _WRAP_VERSION:
            raise SealBroken
        if wrapped[:HEADER_BYTES] != self.header:
            raise MasterKeyMismatch
        nonce, sealed = wrapped[HEADER_BYTES:_NONCE_END], wrapped[_NONCE_END:]
        return self._sealer.open_sealed(self._secret, nonce, self.header + _bound_to(customer), sealed)


class FingerprintKey:
    """Keyed hashes that stand for values which must not be stored in clear, yet must be found again."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == SECRET_BYTES
        self._secret = secret

    def __repr__(self) -> str:
        return "FingerprintKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("a fingerprint key is not copied or sent elsewhere")

    def fingerprint(self, tenant_id: str, kind: str, value: str) -> bytes:
        """Return 16 bytes that are equal for equal (tenant, kind, value) only: nothing links tenants."""
        return _marked(tenant_id, kind, value, key=self._secret, person=b"rg fingerprint")

    def of_content(self, customer: tuple[str, str], content: bytes) -> bytes:
        """Return 16 bytes that are equal for equal content of one (tenant, customer) only: nothing links customers."""
        tenant_id, customer_id = customer
        # In one go, for every purchase asks twice. The lengths say where the ids end.
        bound = f"{len(tenant_id)} {len(customer_id)} {tenant_id}{customer_id}".encode() + content
        return hashlib.blake2b(bound, key=self._secret, digest_size=FINGERPRINT_BYTES, person=b"rg content").digest()


def credential_mark(tenant_id: str, kind: str, value: str) -> bytes:
    """
    Return 16 bytes that are equal for equal (tenant, kind, value) only, for ever.

    For what nobody can guess, such as a public key or a credential's id: it needs no secret, and so none whose renewal
    would make a key unknown that is another customer's.
    """
    return _marked(tenant_id, kind, value, key=b"", person=b"rg credential")


def _marked(*parts: str, key: bytes, person: bytes) -> bytes:
    hashed = hashlib.blake2b(key=key, digest_size=FINGERPRINT_BYTES, person=person)
    for part in parts:
        encoded = part.encode()
        hashed.update(len(encoded).to_bytes(4, "big"))
        hashed.update(encoded)
    return hashed.digest()


def _bound_to(customer: tuple[str, str]) -> bytes:
    """Encode a customer so that no two customers share an encoding, whatever characters their ids have."""
    tenant, customer_id = customer[0].encode(), customer[1].encode()
    return len(tenant).to_bytes(4, "big") + tenant + customer_id


def _derived_id(purpose: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(purpose, key=secret, digest_size=4).digest()


def _checksum(kind: str, secret: bytes) -> str:
    return hashlib.blake2b(kind.encode(), key=secret, digest_size=4).hexdigest()
