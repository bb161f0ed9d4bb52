"""
Who calls: from a verified certificate or an API key to a `Caller`, and how much it may.

On the port for certificates TLS has verified the chain, and the certificate's only URI SAN is the
identity; metadata counts for nothing there. On the other port the identity is the one API key in
`authorization`. All the ways in which a credential is no good get one and the same answer; which it was, the log says.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, NoReturn, Protocol

import msgspec

from riskgate_server.domain.errors import ResourceExhausted, Unauthenticated
from riskgate_server.engine.callers import (
    CallerDirectory,
    CallerKey,
    CallerRecord,
    CallersSnapshot,
    CertificateRecord,
    KeyRecord,
    certificate_id,
    parse_api_key,
    parse_caller_uri,
    secret_matches,
)
from riskgate_server.scopes import ADMIN

_NEVER_US: Final = 2**63 - 1
_REMEMBERED_MAX: Final = 10_000
_SLACK: Final = 1e-3
"""Of a token: whoever comes back exactly when told must not fail by a rounding."""
STREAMS_MAX: Final = 32
"""Streams one caller may keep open: each costs a little of everybody's time for as long as it stands."""
STREAMS_RETRY_SECONDS: Final = 1.0
_AUTHORIZATION: Final = "authorization"
_BEARER: Final = "bearer "
_PEM_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_PEM_END: Final = b"-----END CERTIFICATE-----"
_NO_KEY: Final = "not of a key's form"
_UNREADABLE: Final = "unreadable certificate"
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})

AuthContext = Mapping[str, Iterable[bytes]]
Metadata = Iterable[tuple[str, str | bytes]]


class Caller(msgspec.Struct, frozen=True):
    """A calling service that has proved itself. `credential_id` says with which key or certificate."""

    tenant_id: str
    caller_id: str
    scopes: frozenset[str]
    rate_per_second: int
    burst: int
    credential_id: str

    def may(self, scope: str) -> bool:
        """Whether the caller holds `scope`. Administrators hold every one; the empty scope nobody has."""
        return bool(scope) and (scope in self.scopes or ADMIN in self.scopes)


class CredentialInvalid(Unauthenticated):
    """
    A credential that is no good, in the words that every such caller hears.

    `facts` say which it is and why. They are for the log alone: ids and names, never a secret, and of what a stranger
    sent nothing but a key's id.
    """

    def __init__(self, why: str, facts: Mapping[str, str]) -> None:
        super().__init__("CREDENTIAL_INVALID", "the credential is unknown, wrong, expired or revoked")
        self.facts: Final = {"why": why, **facts}


class CallContext(Protocol):
    """The part of a `grpc.aio.ServicerContext` that tells who calls."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows of the peer."""

    def invocation_metadata(self) -> Any:
        """What the caller says of itself."""


class _Known(msgspec.Struct, frozen=True):
    caller: Caller
    expires_us: int


class Authenticator:
    """Turns a call's credential into the `Caller` it belongs to. For one thread: the event loop's."""

    def __init__(
        self, directory: CallerDirectory, *, clock: Callable[[], int] = lambda: time.time_ns() // 1_000
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._snapshot = directory.refresh()
        # Answers found before, valid for one snapshot. Keys by digest: no clear key outlives its call.
        self._by_key: dict[bytes, _Known] = {}
        self._by_certificate: dict[bytes, _Known] = {}

    def authenticate(self, context: CallContext) -> Caller:
        """
        Return who calls, by certificate if one was presented, else by key.

        Raises:
            Unauthenticated: nobody we know, for whatever reason.
        """
        auth_context = context.auth_context()
        if auth_context.get("transport_security_type") != [b"ssl"]:
            _refuse_missing()
        if auth_context.get("x509_pem_cert"):
            return self.by_certificate(auth_context)
        return self.by_key(context.invocation_metadata())

    def by_certificate(self, auth_context: AuthContext) -> Caller:
        """
        Return the caller that a certificate verified by TLS names.

        Raises:
            Unauthenticated: the certificate does not name exactly one known, enabled caller that may use it.
        """
        snapshot = self._current()
        presented = list(auth_context.get("x509_pem_cert", ()))
        if len(presented) != 1:
            _refuse_missing()
        pem = presented[0]
        known = self._by_certificate.get(pem)
        if known is None:
            known = _known_by_certificate(snapshot, pem, list(auth_context.get("peer_uri", ())))
            _remember(self._by_certificate, pem, known)
        if self._clock() >= known.expires_us:
            _refuse_invalid("expired", _certificate_of(known.caller))
        return known.caller

    def by_key(self, metadata: Metadata | None) -> Caller:
        """
        Return the caller whose API key is in `authorization: Bearer rgk_…`.

        Raises:
            Unauthenticated: there is no key, more than one, or it is no good.
        """
        snapshot = self._current()
        presented: str | bytes | None = None
        for name, value in metadata or ():
            if name == _AUTHORIZATION:
                # Neither the first nor the last wins: somebody added one on the way.
                if presented is not None:
                    raise Unauthenticated("CREDENTIAL_AMBIGUOUS", "more than one credential was sent")
                presented = value
        if presented is None:
            # Of a certificate nothing is seen here: this port asks for none.
            _refuse_missing("no API key was sent, and a certificate counts only on the port for certificates")
        if not isinstance(presented, str):
            _refuse_invalid(_NO_KEY)
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()
        known = self._by_key.get(digest)
        if known is None:
            known = _known_by_key(snapshot, presented)
            _remember(self._by_key, digest, known)
        if self._clock() >= known.expires_us:
            _refuse_invalid("expired", _key_of(known.caller))
        return known.caller

    def confirm(self, caller: Caller) -> Caller:
        """
        Return what a caller authenticated earlier may do now; for streams, which outlive changes.

        Raises:
            Unauthenticated: it or its credential was revoked or has expired since.
        """
        snapshot = self._current()
        key = snapshot.keys.get(caller.credential_id)
        facts = _certificate_of(caller) if key is None else _key_of(caller)
        record = _enabled(snapshot, (caller.tenant_id, caller.caller_id), facts)
        if key is None:
            _require_certificates(record, facts)
            for certificate in snapshot.certificates.values():
                if certificate.certificate_id == caller.credential_id:
                    self._require_standing(certificate, facts)
        else:
            self._require_standing(key, facts)
        return _caller(record, caller.credential_id)

    def _require_standing(self, credential: KeyRecord | CertificateRecord, facts: Mapping[str, str]) -> None:
        if not credential.active:
            _refuse_invalid("revoked", facts)
        if self._clock() >= (credential.expires_us or _NEVER_US):
            _refuse_invalid("expired", facts)

    def _current(self) -> CallersSnapshot:
        snapshot = self._directory.refresh()
        if snapshot is not self._snapshot:
            self._by_key.clear()
            self._by_certificate.clear()
            self._snapshot = snapshot
        return snapshot


class TokenBucket:
    """Lets through a steady rate, and a burst after a pause."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, burst: int, now: float) -> None:
        self._tokens = float(burst)
        self._at = now

    def take(self, cost: int, *, rate_per_second: int, burst: int, now: float, taken: int = 0) -> float:
        """
        Take `cost` and return 0.0, or take nothing and return the seconds after which trying again may help.

        A cost above the burst passes when the bucket is full, and is then worked off: otherwise
        it could never pass. `taken` of the cost were taken before, when it was not known yet; without them a full
        bucket would never be full enough.
        """
        # A clock that stands still or is shared out of order refills nothing and takes nothing away.
        elapsed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._tokens = min(float(burst), self._tokens + elapsed * rate_per_second)
        needed = min(cost, burst)
        if self._tokens < needed - taken - _SLACK:
            # Whoever comes back begins from nothing again.
            return (needed - self._tokens) / rate_per_second
        self._tokens -= cost - taken
        return 0.0


class RateLimits:
    """One bucket per caller, whichever of its credentials it uses. For one thread: the event loop's."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._buckets: dict[tuple[str, str], TokenBucket] = {}

    def take(self, caller: Caller, cost: int = 1, *, taken: int = 0) -> None:
        """
        Count a call of `cost` against its caller, of which `taken` were counted before.

        Raises:
            ResourceExhausted: the caller is above its rate. Nothing more was counted.
        """
        now = self._monotonic()
        key = (caller.tenant_id, caller.caller_id)
        bucket = self._buckets.get(key)
        if bucket is None:
            # Bounded by the number of callers, for only those who have proved themselves get here.
            bucket = self._buckets[key] = TokenBucket(caller.burst, now)
        wait = bucket.take(cost, rate_per_second=caller.rate_per_second, burst=caller.burst, now=now, taken=taken)
        if wait > 0:
            raise ResourceExhausted("RATE_LIMITED", "the caller is above its rate", retry_after_seconds=wait)


class OpenStreams:
    """How many streams each caller keeps open, whichever of its credentials it uses. For the event loop's thread."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], int] = {}

    @contextmanager
    def one_more(self, caller: Caller) -> Iterator[None]:
        """
        Keep a stream of this caller open.

        Raises:
            ResourceExhausted: it has as many as one may have.
        """
        key = (caller.tenant_id, caller.caller_id)
        others = self._open.get(key, 0)
        if others >= STREAMS_MAX:
            message = f"a caller has at most {STREAMS_MAX} streams open"
            raise ResourceExhausted("TOO_MANY_STREAMS", message, retry_after_seconds=STREAMS_RETRY_SECONDS)
        self._open[key] = others + 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]


def _known_by_key(snapshot: CallersSnapshot, presented: str) -> _Known:
    if presented[: len(_BEARER)].lower() != _BEARER:
        _refuse_invalid(_NO_KEY)
    parsed = parse_api_key(presented[len(_BEARER) :])
    if parsed is None:
        _refuse_invalid(_NO_KEY)
    key_id, secret = parsed
    key = snapshot.keys.get(key_id)
    if key is None:
        _refuse_invalid("unknown", {"key": key_id})
    if not secret_matches(secret, key.secret_sha256):
        # Whoever sends it need not be the caller that the key is of.
        _refuse_invalid("wrong secret", {"key": key_id})
    named = (key.tenant_id, key.caller_id)
    facts = _facts("key", key_id, named)
    if not key.active:
        _refuse_invalid("revoked", facts)
    return _Known(_caller(_enabled(snapshot, named, facts), key_id), key.expires_us or _NEVER_US)


def _known_by_certificate(snapshot: CallersSnapshot, pem: bytes, uris: Sequence[bytes]) -> _Known:
    sha256 = _certificate_sha256(pem)
    own_id = certificate_id(sha256)
    # A certificate with two names would let its holder choose whom to be.
    named = parse_caller_uri(uris[0].decode("ascii", "replace")) if len(uris) == 1 else None
    if named is None:
        _refuse_invalid("names no caller", {"certificate": own_id})
    facts = _facts("certificate", own_id, named)
    record = _enabled(snapshot, named, facts)
    _require_certificates(record, facts)
    issued = snapshot.certificates.get(sha256)
    if issued is not None and (issued.tenant_id, issued.caller_id) != named:
        _refuse_invalid("issued to another caller", facts)
    if issued is not None and not issued.active:
        _refuse_invalid("revoked", facts)
    # TLS looks at the dates only when a connection begins, and connections live long.
    expires_us = _NEVER_US if issued is None else issued.expires_us
    return _Known(_caller(record, own_id), expires_us)


def _enabled(snapshot: CallersSnapshot, named: CallerKey, facts: Mapping[str, str]) -> CallerRecord:
    record = snapshot.callers.get(named)
    if record is None:
        _refuse_invalid("unknown caller", facts)
    if not record.enabled:
        _refuse_invalid("revoked caller", facts)
    return record


def _require_certificates(record: CallerRecord, facts: Mapping[str, str]) -> None:
    if not record.certificates_allowed:
        _refuse_invalid("caller may use no certificates", facts)


def _certificate_sha256(pem: bytes) -> bytes:
    """Hash the DER form of the first certificate in `pem`."""
    start, end = pem.find(_PEM_BEGIN), pem.find(_PEM_END)
    if start < 0 or end < start:
        _refuse_invalid(_UNREADABLE)
    try:
        return hashlib.sha256(base64.b64decode(pem[start + len(_PEM_BEGIN) : end])).digest()
    except binascii.Error:
        _refuse_invalid(_UNREADABLE)


def _caller(record: CallerRecord, credential_id: str) -> Caller:
    return Caller(
        tenant_id=record.tenant_id,
        caller_id=record.caller_id,
        scopes=record.scopes,
        rate_per_second=record.rate_per_second,
        burst=record.burst,
        credential_id=credential_id,
    )


def _remember(answers: dict[bytes, _Known], presented: bytes, known: _Known) -> None:
    if len(answers) >= _REMEMBERED_MAX:
        answers.clear()
    answers[presented] = known


def _key_of(caller: Caller) -> Mapping[str, str]:
    return _facts("key", caller.credential_id, (caller.tenant_id, caller.caller_id))


def _certificate_of(caller: Caller) -> Mapping[str, str]:
    return _facts("certificate", caller.credential_id, (caller.tenant_id, caller.caller_id))


def _facts(kind: str, credential_id: str, named: CallerKey) -> Mapping[str, str]:
    return {kind: credential_id, "tenant": named[0], "caller": named[1]}


def _refuse_missing(message: str = "no credential was sent") -> NoReturn:
    raise Unauthenticated("CREDENTIAL_MISSING", message)


def _refuse_invalid(why: str, facts: Mapping[str, str] = _NOTHING) -> NoReturn:
    raise CredentialInvalid(why, facts)
