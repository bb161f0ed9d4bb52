"""
Tokens that callers keep for us: nobody can read or make one, and the same content is never the same token twice.

AES-256-SIV (RFC 5297), keyed from the fingerprint key, so that every server of a database opens what any of them
sealed. A random nonce is one of its associated strings: should two ever be equal, the tokens of equal content are
equal too, and that is all that shows. So there is no number of tokens after which the key must change.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from riskgate_server.crypto.keys import SECRET_BYTES
from riskgate_server.engine.ports import TokenRefused

NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 64


class SealedTokens:
    """Keeps `engine.ports.Tokens`. Safe from any thread."""

    __slots__ = ("_cipher", "_entropy")

    def __init__(self, secret: bytes, *, entropy: Callable[[int], bytes] = os.urandom) -> None:
        assert len(secret) == SECRET_BYTES
        self._cipher = AESSIV(hashlib.blake2b(key=secret, digest_size=_KEY_BYTES, person=b"rg tokens").digest())
        self._entropy = entropy

    def __repr__(self) -> str:
        return "SealedTokens(***)"

    def __reduce__(self) -> str:
        raise TypeError("a key of tokens is not copied or sent elsewhere")

    def seal(self, purpose: tuple[str, ...], content: bytes) -> str:
        """Return `content`, not empty, as URL-safe Base64 without padding that only the same purpose opens."""
        nonce = self._entropy(NONCE_BYTES)
        return _text(nonce + self._cipher.encrypt(content, [_bound(purpose), nonce]))

    def open_token(self, purpose: tuple[str, ...], token: str) -> bytes:
        """
        Return what was sealed.

        Raises:
            TokenRefused: it was not sealed here for this purpose, or is not spelled as it was.
        """
        try:
            whole = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raise TokenRefused from None
        # The decoder passes over what it does not know: a token has one spelling.
        if _text(whole) != token:
            raise TokenRefused
        nonce, sealed = whole[:NONCE_BYTES], whole[NONCE_BYTES:]
        try:
            return self._cipher.decrypt(sealed, [_bound(purpose), nonce])
        except (InvalidTag, ValueError):
            # The second for one that is too short to be any.
            raise TokenRefused from None


def _text(whole: bytes) -> str:
    return base64.urlsafe_b64encode(whole).rstrip(b"=").decode()


def _bound(purpose: tuple[str, ...]) -> bytes:
    """Encode a purpose so that no two share an encoding."""
    encoded = [part.encode() for part in purpose]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
