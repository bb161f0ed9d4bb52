"""The keys of a ring at work: which of them wraps, opens, marks, seals and is compared."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from riskgate_server.crypto.keys import HEADER_BYTES, FingerprintKey, MasterKey, MasterKeyMismatch
from riskgate_server.crypto.rings import Ring, in_force
from riskgate_server.crypto.tokens import SealedTokens
from riskgate_server.engine.ports import TokenRefused


class MasterKeys:
    """Wraps customers' data keys as `MasterKey` does, and opens what any key of the ring has wrapped."""

    def __init__(self, ring: Ring, *, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._ring = ring
        self._entropy = entropy
        self._known: tuple[Mapping[int, bytes], dict[bytes, MasterKey]] = ({}, {})

    def __repr__(self) -> str:
        return "MasterKeys(***)"

    @property
    def newest(self) -> MasterKey:
        """The key that new vaults begin with and others are turned to."""
        secrets = self._ring.look()
        return MasterKey(secrets[max(secrets)], entropy=self._entropy)

    def wrap(self, customer: tuple[str, str], key: bytes, under: bytes = b"") -> bytes:
        """
        Return `key` as it may be stored, under the key whose header is given, or the newest.

        Raises:
            MasterKeyMismatch: the header is of no key of the ring.
        """
        master = self._by_header(under) if under else self.newest
        return master.wrap(customer, key)

    def unwrap(self, customer: tuple[str, str], wrapped: bytes) -> bytes:
        """
        Return the key that was wrapped for this customer.

        Raises:
            MasterKeyMismatch: no key of the ring wrapped it.
            SealBroken: it was wrapped for another customer, or is damaged.
        """
        return self._by_header(wrapped[:HEADER_BYTES]).unwrap(customer, wrapped)

    def _by_header(self, header: bytes) -> MasterKey:
        # The second look is at the file itself: it may just have been turned to a key that was made a moment ago.
        for secrets in (self._ring.secrets, self._ring.look):
            found = self._masters(secrets()).get(header)
            if found is not None:
                return found
        raise MasterKeyMismatch

    def _masters(self, secrets: Mapping[int, bytes]) -> dict[bytes, MasterKey]:
        known, masters = self._known
        if known is not secrets:
            made = (MasterKey(secret, entropy=self._entropy) for secret in secrets.values())
            masters = {master.header: master for master in made}
            self._known = (secrets, masters)
        return masters


class FingerprintKeys:
    """Marks values as `FingerprintKey` does, and says what they are under the other keys of the ring."""

    def __init__(self, ring: Ring, *, now: Callable[[], float] = time.time) -> None:
        self._ring = ring
        self._now = now
        self._known: tuple[Mapping[int, bytes], dict[int, FingerprintKey]] = ({}, {})

    def __repr__(self) -> str:
        return "FingerprintKeys(***)"

    def fingerprint(self, tenant_id: str, kind: str, value: str) -> bytes:
        """Return what `FingerprintKey.fingerprint` does with the key in force."""
        return self.fingerprints(tenant_id, kind, value)[0]

    def fingerprints(self, tenant_id: str, kind: str, value: str) -> tuple[bytes, ...]:
        """Return what `FingerprintKey.fingerprint` does with the key in force, then with every other."""
        keys = self._keys()
        current = in_force(keys, self._now())
        ordered = (current, *(number for number in keys if number != current))
        return tuple(keys[number].fingerprint(tenant_id, kind, value) for number in ordered)

    def of_content(self, customer: tuple[str, str], content: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        """Return what `FingerprintKey.of_content` does with the key in force, and with every other."""
        keys = self._keys()
        if len(keys) == 1:
            (only,) = keys.values()
            return only.of_content(customer, content), ()
        number = in_force(keys, self._now())
        others = tuple(key.of_content(customer, content) for each, key in keys.items() if each != number)
        return keys[number].of_content(customer, content), others

    def of_content_for_long(self, customer: tuple[str, str], content: bytes) -> bytes:
        """Return what `FingerprintKey.of_content` does with the oldest key: the same until that one leaves the ring."""
        keys = self._keys()
        return keys[min(keys)].of_content(customer, content)

    def _keys(self) -> dict[int, FingerprintKey]:
        secrets = self._ring.secrets()
        known, keys = self._known
        if known is not secrets:
            keys = {number: FingerprintKey(secret) for number, secret in secrets.items()}
            self._known = (secrets, keys)
        return keys


class RingTokens:
    """Keeps `engine.ports.Tokens`: seals as `SealedTokens` with the key in force, and opens with any of the ring."""

    def __init__(self, ring: Ring, *, now: Callable[[], float] = time.time) -> None:
        self._ring = ring
        self._now = now
        self._known: tuple[Mapping[int, bytes], dict[int, SealedTokens]] = ({}, {})

    def __repr__(self) -> str:
        return "RingTokens(***)"

    def seal(self, purpose: tuple[str, ...], content: bytes) -> str:
        """Return `content`, not empty, as a token that only the same purpose opens."""
        tokens = self._tokens()
        return tokens[in_force(tokens, self._now())].seal(purpose, content)

    def open_token(self, purpose: tuple[str, ...], token: str) -> bytes:
        """
        Return what was sealed.

        Raises:
            TokenRefused: it was not sealed here for this purpose, or with a key that has left the ring.
        """
        for _, tokens in sorted(self._tokens().items(), reverse=True):
            try:
                return tokens.open_token(purpose, token)
            except TokenRefused:
                continue
        raise TokenRefused

    def _tokens(self) -> dict[int, SealedTokens]:
        secrets = self._ring.secrets()
        known, tokens = self._known
        if known is not secrets:
            tokens = {number: SealedTokens(secret) for number, secret in secrets.items()}
            self._known = (secrets, tokens)
        return tokens
