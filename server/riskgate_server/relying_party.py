"""
What is taken for a customer's proof: settings and files, checked whole before the first call; files are renewed later.

A relying party that is set up wrongly refuses every device, or takes some it should not; so it is not started at all.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from riskgate_server.crypto.proofs import AttestationTrust
from riskgate_server.crypto.proofs.trust import TrustFileBroken
from riskgate_server.crypto.rings import LOOK_SECONDS, version_of
from riskgate_server.domain.identity.devices import AndroidApp, Platform, ProofPolicy
from riskgate_server.settings import PREFIX, Settings

log = structlog.get_logger()

LOCAL: Final = "localhost"
"""Where browsers allow passkeys on pages that are not encrypted (W3C Secure Contexts, 3.1)."""

_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN: Final = re.compile(rf"(?!.*\.[0-9]+$){_LABEL}(\.{_LABEL})+", re.ASCII)
"""Not an address: its last label is no number."""
_APK: Final = re.compile(r"android:apk-key-hash:[A-Za-z0-9_-]{43}", re.ASCII)
_ANDROID_APP: Final = re.compile(r"([A-Za-z0-9_.]+)=([0-9a-f]{64})", re.ASCII)
_APPLE_APP: Final = re.compile(r"[A-Z0-9]{10}\.[A-Za-z0-9.-]+", re.ASCII)
ANDROID: Final = "android"
IOS: Final = "ios"
PLATFORMS: Final = {
    "webauthn": Platform.WEBAUTHN,
    ANDROID: Platform.ANDROID_KEYSTORE,
    IOS: Platform.IOS_SECURE_ENCLAVE,
    "jose": Platform.JOSE,
}
"""As settings name them."""

_TRUST: Final = {
    "android_roots": "android_roots",
    "android_revocations": "android_status",
    "apple_roots": "apple_roots",
}
"""From the setting that names a file to what it is for `AttestationTrust`."""


class RelyingPartyRefused(Exception):
    """A setting of the relying party, or a file it names, is not what it must be. Names the setting's variable."""

    def __init__(self, setting: str, what: str) -> None:
        super().__init__(f"{PREFIX}{setting.upper()}: {what}")


def read_policy(settings: Settings) -> ProofPolicy:
    """
    Return what is taken for a proof.

    Raises:
        RelyingPartyRefused: a setting is malformed, or two do not go together.
    """
    rp_id = settings.rp_id
    if rp_id != LOCAL and not _DOMAIN.fullmatch(rp_id):
        raise RelyingPartyRefused("rp_id", f"{rp_id} is not a domain in lower case")
    origins = _listed(settings.origins)
    if not origins:
        raise RelyingPartyRefused("origins", "at least one is needed")
    for origin in origins:
        _check_origin(origin, rp_id)
    platforms = _listed(settings.platforms)
    if not platforms:
        raise RelyingPartyRefused("platforms", "at least one is needed")
    if unknown := set(platforms) - PLATFORMS.keys():
        raise RelyingPartyRefused("platforms", f"{unknown.pop()} is none of {', '.join(PLATFORMS)}")
    attested = _listed(settings.attestation)
    if unknown := set(attested) - {ANDROID, IOS}:
        raise RelyingPartyRefused("attestation", f"{unknown.pop()} is neither {ANDROID} nor {IOS}")
    if IOS in attested and not _listed(settings.apple_app_ids):
        raise RelyingPartyRefused("attestation", "for ios apple_app_ids must name the app")
    if unasked := set(attested) - set(platforms):
        raise RelyingPartyRefused("attestation", f"{unasked.pop()} is not one of the platforms")
    if not settings.proof_audience:
        raise RelyingPartyRefused("proof_audience", "must not be empty")
    return ProofPolicy(
        rp_id=rp_id,
        rp_name=settings.rp_name,
        origins=origins,
        audience=settings.proof_audience,
        platforms=frozenset(PLATFORMS[name] for name in platforms),
        attestation=ANDROID in attested,
        guarded_use=settings.guarded_use,
        android_apps=tuple(map(_android_app, _listed(settings.android_apps))),
        app_attest=IOS in attested,
        apple_app_ids=tuple(map(_apple_app, _listed(settings.apple_app_ids))),
        apple_development=settings.apple_development,
    )


def read_trust(settings: Settings) -> AttestationTrust:
    """
    Return the roots and revocations that attestations are held against.

    Raises:
        RelyingPartyRefused: a file cannot be read, or is not what it must be.
    """
    read: dict[str, Any] = {}
    for setting, argument in _TRUST.items():
        path = getattr(settings, setting)
        if not path:
            continue
        read[argument] = _file(setting, path)
        try:
            AttestationTrust(**{argument: read[argument]})
        except TrustFileBroken as error:
            raise RelyingPartyRefused(setting, f"{path}: {error}") from error
    return AttestationTrust(**read)


class TrustFiles:
    """Roots and revocations in files, read again when one of them was replaced. Safe from any thread."""

    def __init__(self, settings: Settings, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """
        Read the files.

        Raises:
            RelyingPartyRefused: as `read_trust`.
        """
        self._settings = settings
        self._paths = tuple(Path(path) for setting in _TRUST if (path := getattr(settings, setting)))
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._look_at = monotonic() + LOOK_SECONDS
        self._seen = self._versions()
        self._trust = read_trust(settings)
        self._refused = False

    def now(self) -> AttestationTrust:
        """Return what the files say, looking at them at most once a second; what they last said while one is broken."""
        with self._lock:
            if self._monotonic() >= self._look_at:
                self._look_at = self._monotonic() + LOOK_SECONDS
                # Before they are read: a change in between is then seen next time.
                versions = self._versions()
                if versions != self._seen:
                    self._seen = versions
                    self._renew()
            return self._trust

    @property
    def refused(self) -> bool:
        """Whether a file is broken or missing, so that what it last said still counts."""
        self.now()
        return self._refused

    def _renew(self) -> None:
        try:
            self._trust = read_trust(self._settings)
        except RelyingPartyRefused as error:
            # Better to trust as before than to refuse every phone, or to take back no revocation.
            self._refused = True
            log.error("attestation trust not renewed", why=str(error))  # noqa: TRY400  the operator's file, no fault of ours
            return
        self._refused = False
        trust = self._trust
        roots = {"android_roots": len(trust.android_roots), "apple_roots": len(trust.apple_roots)}
        log.info("attestation trust renewed", **roots, android_revoked=len(trust.android_revoked))

    def _versions(self) -> tuple[object, ...]:
        found: list[object] = []
        for path in self._paths:
            try:
                found.append(version_of(path))
            except OSError as error:
                found.append(error.errno)
        return tuple(found)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for item in text.split(",") if (part := item.strip()))


def _check_origin(origin: str, rp_id: str) -> None:
    """Require an origin as browsers and phones spell it, of a page that may use the domain's passkeys."""
    if _APK.fullmatch(origin):
        return
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise RelyingPartyRefused("origins", f"{origin} is no origin") from error
    plain = host if port is None else f"{host}:{port}"
    if origin != f"{parts.scheme}://{plain}" or (parts.scheme, port) in {("https", 443), ("http", 80)}:
        raise RelyingPartyRefused("origins", f"{origin} must be as a browser writes it, such as https://bank.example")
    if parts.scheme != "https" and (parts.scheme, host) != ("http", LOCAL):
        raise RelyingPartyRefused("origins", f"{origin} must begin with https://")
    if host != rp_id and not host.endswith(f".{rp_id}"):
        raise RelyingPartyRefused("origins", f"{origin} is no page of {rp_id}, whose passkeys it would never be given")


def _android_app(text: str) -> AndroidApp:
    found = _ANDROID_APP.fullmatch(text)
    if found is None:
        raise RelyingPartyRefused("android_apps", f"{text} is not PACKAGE=SHA256 in 64 hexadecimal digits")
    return AndroidApp(found[1], bytes.fromhex(found[2]))


def _apple_app(text: str) -> str:
    if not _APPLE_APP.fullmatch(text):
        raise RelyingPartyRefused("apple_app_ids", f"{text} is not TEAMID.bundle.id")
    return text


def _file(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RelyingPartyRefused(setting, f"{path}: {error.strerror}") from error
