"""
Codes, grants, seeds and recovery codes that are derived from a rotating key and never stored (`engine.ports`).

Each is HMAC-SHA-256 (RFC 2104) over what it is for and whose it is, under the key that was current when it was made:
who has the database has nothing to try codes against, and the same request is answered with the same secret.
"""

from __future__ import annotations

import base64
import datetime as dt
import hmac
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Final

import pyotp
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pyotp.exceptions import OTPVerificationError

from riskgate_server.crypto.rings import Ring, in_force
from riskgate_server.engine.ports import KeyRetired

CODE_DIGITS: Final = 6
SEED_BYTES: Final = 20
"""160 bits, as RFC 4226 section 4 recommends."""
RECOVERY_CODES: Final = 10
RECOVERY_CODE_BYTES: Final = 10
STEP_SECONDS: Final = 30
_BLOCK_BYTES: Final = 16
_FAIR: Final = 2**64 // 10**CODE_DIGITS * 10**CODE_DIGITS
"""Numbers below it, taken modulo a million, are all equally likely."""


class DerivedSecrets:
    """
    Keeps `engine.ports.ProofSecrets` over a ring of keys.

    Every method raises KeyRetired for a key that has left the ring: what was derived from it never comes again.
    """

    __slots__ = ("_now", "_ring")

    def __init__(self, keys: Ring | Mapping[int, bytes], *, now: Callable[[], float] = time.time) -> None:
        self._ring = keys if isinstance(keys, Ring) else Ring(keys)
        self._now = now

    def __repr__(self) -> str:
        return "DerivedSecrets(***)"

    def __reduce__(self) -> str:
        raise TypeError("derived secrets are not copied or sent elsewhere")

    @property
    def key_id(self) -> int:
        """The key in force."""
        return in_force(self._ring.secrets(), self._now())

    def _derive(self, purpose: bytes, key_id: int, customer: tuple[str, str], name: str) -> bytes:
        # Another process may use one already that was made a moment ago.
        key = self._ring.secrets().get(key_id) or self._ring.look().get(key_id)
        if key is None:
            raise KeyRetired(key_id)
        message = bytearray(purpose)
        for part in (*customer, name):
            encoded = part.encode()
            message += len(encoded).to_bytes(4, "big") + encoded
        return hmac.digest(key, bytes(message), "sha256")

    def code(self, key_id: int, customer: tuple[str, str], challenge_id: str) -> str:
        """Return the six digits of a challenge, each number equally likely."""
        digest = self._derive(b"code", key_id, customer, challenge_id)
        while True:
            for at in range(0, len(digest), 8):
                number = int.from_bytes(digest[at : at + 8], "big")
                if number < _FAIR:
                    return f"{number % 10**CODE_DIGITS:0{CODE_DIGITS}d}"
            digest = sha256(digest).digest()

    def token(self, key_id: int, customer: tuple[str, str], request_id: str) -> str:
        """Return the grant that a request was given."""
        return base64.urlsafe_b64encode(self._derive(b"grant", key_id, customer, request_id)).rstrip(b"=").decode()

    def seed(self, key_id: int, customer: tuple[str, str], request_id: str) -> bytes:
        """Return the seed of the authenticator app that a request enrolled."""
        return self._derive(b"seed", key_id, customer, request_id)[:SEED_BYTES]

    def recovery_codes(self, key_id: int, customer: tuple[str, str], request_id: str) -> tuple[str, ...]:
        """Return the recovery codes that a request was given."""
        made = (self._derive(b"recovery", key_id, customer, f"{request_id} {n}") for n in range(RECOVERY_CODES))
        return tuple(base64.b32encode(digest[:RECOVERY_CODE_BYTES]).decode() for digest in made)

    def recovery_mark(self, customer: tuple[str, str], code: str) -> bytes:
        """Return what is kept of a recovery code."""
        tenant_id, customer_id = customer
        return sha256(f"recovery {len(tenant_id)} {tenant_id}{customer_id} {code}".encode()).digest()

    def decoy(self, customer: tuple[str, str], at_us: int) -> str:
        """Return the id of a challenge that does not exist: a time and a tag in one enciphered block."""
        at, key_id = at_us.to_bytes(8, "big"), self.key_id
        cipher = self._decoy_cipher(key_id).encryptor()
        block = cipher.update(at + self._decoy_tag(key_id, customer, at)) + cipher.finalize()
        return f"c-{block.hex()}"

    def decoy_time(self, customer: tuple[str, str], challenge_id: str) -> int | None:
        """Return the time inside a decoy of this customer, under whichever key of the ring it was made."""
        try:
            block = bytes.fromhex(challenge_id.removeprefix("c-"))
        except ValueError:
            return None
        if len(block) != _BLOCK_BYTES or not challenge_id.startswith("c-"):
            return None
        for key_id in self._ring.secrets():
            cipher = self._decoy_cipher(key_id).decryptor()
            plain = cipher.update(block) + cipher.finalize()
            if hmac.compare_digest(plain[8:], self._decoy_tag(key_id, customer, plain[:8])):
                return int.from_bytes(plain[:8], "big")
        return None

    def decoy_digits(self, customer: tuple[str, str], which: int) -> int:
        """Return a number that is always the same for a customer, while the first key of the ring stays."""
        return int.from_bytes(self._derive(b"decoy digits", min(self._ring.secrets()), customer, str(which))[:8], "big")

    def _decoy_cipher(self, key_id: int) -> Cipher[modes.ECB]:
        # One block that is never the same twice: the mode that shows equal blocks has nothing to show.
        key = self._derive(b"decoy cipher", key_id, ("", ""), "")
        return Cipher(algorithms.AES256(key), modes.ECB())  # noqa: S305

    def _decoy_tag(self, key_id: int, customer: tuple[str, str], at: bytes) -> bytes:
        return self._derive(b"decoy tag", key_id, customer, at.hex())[:8]

    def otpauth_uri(self, seed: bytes, *, issuer: str, label: str) -> str:
        """Return a seed as authenticator apps read it from a QR code (Key Uri Format)."""
        return _totp(seed).provisioning_uri(name=label, issuer_name=issuer)

    def totp_step(self, seed: bytes, code: str, at_us: int) -> int | None:
        """Return the step a code is right for: the present one, or the one before or after it (RFC 6238)."""
        at = dt.datetime.fromtimestamp(at_us // 1_000_000, dt.UTC)
        try:
            return _totp(seed).verify_and_get_timecode(code, for_time=at, valid_window=1)
        except OTPVerificationError:
            return None


def _totp(seed: bytes) -> pyotp.TOTP:
    # What every app understands: SHA-1, six digits, 30 seconds.
    return pyotp.TOTP(base64.b32encode(seed).decode(), digits=CODE_DIGITS, interval=STEP_SECONDS)
