"""Who may call, kept in memory: for tests, and for programs that bring their own callers."""

from __future__ import annotations

from collections.abc import Iterable

from riskgate_server.engine.callers import (
    KEY_ID_LENGTH,
    CallerKey,
    CallerRecord,
    CallersSnapshot,
    CertificateRecord,
    KeyRecord,
    format_api_key,
    key_id_of,
    secret_digest,
)


class MemoryCallers:
    """Keeps the port `engine.callers.CallerDirectory`. A change shows at once."""

    def __init__(self) -> None:
        self._callers: dict[CallerKey, CallerRecord] = {}
        self._keys: dict[str, KeyRecord] = {}
        self._certificates: dict[bytes, CertificateRecord] = {}
        self._snapshot = CallersSnapshot(callers={}, keys={}, certificates={})

    def refresh(self) -> CallersSnapshot:
        """Return what is in force."""
        return self._snapshot

    def put(
        self,
        caller: CallerKey,
        *,
        scopes: Iterable[str],
        rate_per_second: int = 1_000_000,
        burst: int = 1_000_000,
        enabled: bool = True,
        certificates_allowed: bool = True,
    ) -> None:
        """Add a caller or replace its rights."""
        self._callers[caller] = CallerRecord(
            caller[0], caller[1], frozenset(scopes), rate_per_second, burst, enabled, certificates_allowed, 0
        )
        self._publish()

    def put_key(
        self, caller: CallerKey, secret: bytes, *, number: int = 0, expires_us: int = 0, active: bool = True
    ) -> str:
        """Give a caller the key with this secret and number, and return the key as its holder writes it."""
        key_id = key_id_of(number.to_bytes(KEY_ID_LENGTH, "big"))
        self._keys[key_id] = KeyRecord(key_id, caller[0], caller[1], secret_digest(secret), 0, expires_us, active)
        self._publish()
        return format_api_key(key_id, secret)

    def put_certificate(self, certificate: CertificateRecord) -> None:
        """Record an issued certificate, or its revocation."""
        self._certificates[certificate.sha256] = certificate
        self._publish()

    def _publish(self) -> None:
        self._snapshot = CallersSnapshot(
            callers=dict(self._callers), keys=dict(self._keys), certificates=dict(self._certificates)
        )
