"""
Who may call: the records of calling services, the text form of their keys, and the port that knows them.

A caller is a service, not a person, and belongs to one tenant. It proves itself with a client
certificate or with an API key; the secret of a key exists in clear only where it was issued.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

CallerKey = tuple[str, str]
"""(tenant id, caller id)."""

NAME_PATTERN: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
"""Names of tenants and callers appear in certificates and URIs: their alphabet is small and lower case."""
NAME_RULE: Final = "1 to 63 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit"

KEY_ID_LENGTH: Final = 12
KEY_ID_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Thirty-two characters without the look-alikes i, l, o and u: a key id is read out over the phone."""
SECRET_BYTES: Final = 32
KEYS_ACTIVE_MAX: Final = 2
"""Two, so that a key can be replaced without a moment in which none is valid."""

_KEY_PREFIX: Final = "rgk"
_KEY_PATTERN: Final = re.compile(rf"rgk_([{KEY_ID_ALPHABET}]{{{KEY_ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})")
_URI_PATTERN: Final = re.compile(rf"spiffe://riskgate/tenant/({NAME_PATTERN.pattern})/caller/({NAME_PATTERN.pattern})")


class CallerRecord(msgspec.Struct, frozen=True, gc=False):
    """A calling service and what it may do."""

    tenant_id: str
    caller_id: str
    scopes: frozenset[str]
    rate_per_second: int
    burst: int
    enabled: bool
    certificates_allowed: bool
    created_us: int


class KeyRecord(msgspec.Struct, frozen=True, gc=False):
    """An API key as stored: enough to recognise it, not to present it. `expires_us` is 0 for never."""

    key_id: str
    tenant_id: str
    caller_id: str
    secret_sha256: bytes
    created_us: int
    expires_us: int
    active: bool

    def usable(self, now_us: int) -> bool:
        """Whether the key opens the door at `now_us`."""
        return self.active and (self.expires_us == 0 or now_us < self.expires_us)


class CertificateRecord(msgspec.Struct, frozen=True, gc=False):
    """A client certificate issued here, named by the SHA-256 of its DER form."""

    sha256: bytes
    tenant_id: str
    caller_id: str
    created_us: int
    expires_us: int
    active: bool

    @property
    def certificate_id(self) -> str:
        """The name people use for it."""
        return certificate_id(self.sha256)


class CallersSnapshot(msgspec.Struct, frozen=True, gc=False):
    """Everything about who may call, at one instant. While nothing changes it stays the same object."""

    callers: Mapping[CallerKey, CallerRecord]
    keys: Mapping[str, KeyRecord]
    certificates: Mapping[bytes, CertificateRecord]


class CallerDirectory(Protocol):
    """Knows who may call."""

    def refresh(self) -> CallersSnapshot:
        """
        Return what is in force. Cheap on every call; a change must show within two seconds of its commit.

        Raises:
            InternalError: what is in force has not been known for too long: nobody may be let in.
        """


def key_id_of(random_bytes: bytes) -> str:
    """Name a new key by random bytes, one character each."""
    assert len(random_bytes) == KEY_ID_LENGTH
    return "".join(KEY_ID_ALPHABET[byte % len(KEY_ID_ALPHABET)] for byte in random_bytes)


def format_api_key(key_id: str, secret: bytes) -> str:
    """Write a key as it is handed over: `rgk_<key id>_<secret>`. The prefix lets scanners find leaks."""
    assert len(secret) == SECRET_BYTES
    return f"{_KEY_PREFIX}_{key_id}_{base64.urlsafe_b64encode(secret).decode().rstrip('=')}"


def parse_api_key(text: str) -> tuple[str, bytes] | None:
    """Split a presented key into its id and secret; None when it is not exactly of our form."""
    match = _KEY_PATTERN.fullmatch(text)
    if match is None:
        return None
    secret = base64.urlsafe_b64decode(match[2] + "=")
    # 43 characters carry two bits more than 32 bytes: only one spelling of a key may be valid.
    if format_api_key(match[1], secret) != text:
        return None
    return match[1], secret


def secret_digest(secret: bytes) -> bytes:
    """What is stored of a secret. A plain hash suffices: 256 random bits cannot be guessed, fast or slow."""
    return hashlib.sha256(secret).digest()


def secret_matches(secret: bytes, secret_sha256: bytes) -> bool:
    """Compare a presented secret with a stored one, in the same time wherever they differ."""
    return hmac.compare_digest(secret_digest(secret), secret_sha256)


def caller_uri(tenant_id: str, caller_id: str) -> str:
    """Name a caller as a client certificate does, in its only URI SAN."""
    return f"spiffe://riskgate/tenant/{tenant_id}/caller/{caller_id}"


def parse_caller_uri(uri: str) -> CallerKey | None:
    """Read the caller a certificate names; None when it is not exactly of our form."""
    match = _URI_PATTERN.fullmatch(uri)
    return None if match is None else (match[1], match[2])


def certificate_id(sha256: bytes) -> str:
    """Shorten a certificate's SHA-256 to the name people use."""
    return sha256.hex()[:16]
