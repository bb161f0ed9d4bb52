"""Changes who may call. Every change and its line in the log of changes commit together."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlite_utils import Database

from riskgate_server.engine.callers import (
    KEY_ID_LENGTH,
    KEYS_ACTIVE_MAX,
    NAME_PATTERN,
    NAME_RULE,
    SECRET_BYTES,
    CallerKey,
    CallerRecord,
    CallersSnapshot,
    KeyRecord,
    certificate_id,
    format_api_key,
    key_id_of,
    secret_digest,
)
from riskgate_server.scopes import SCOPES, unknown_scopes
from riskgate_server.stores.access.registry import RegistryUnusable, read_snapshot
from riskgate_server.stores.access.schema import open_database

RATE_MAX: Final = 1_000_000
RATE_DEFAULT: Final = 1_000
CHANGES_PAGE_MAX: Final = 10_000

_DEFAULT_TENANT: Final = "default_tenant"


class EditRefused(Exception):
    """The change cannot be made. `about` is at fault: tenant, new tenant, caller, scope, rate, burst, key or expiry."""

    def __init__(self, about: str, message: str) -> None:
        super().__init__(message)
        self.about = about


class IssuedKey(msgspec.Struct, frozen=True):
    """A new key, the only time its text is seen."""

    key_id: str
    text: str
    expires_us: int

    def __repr__(self) -> str:
        return f"IssuedKey({self.key_id}, ***)"


class IssuedCertificate(msgspec.Struct, frozen=True):
    """A client certificate made elsewhere, to be known here."""

    sha256: bytes
    expires_us: int


class Rotation(msgspec.Struct, frozen=True):
    """What a rotation did: the new key, the older one still accepted, and those that ended with it or were revoked."""

    issued: IssuedKey
    still_active: tuple[KeyRecord, ...]
    ended: tuple[str, ...]
    revoked: tuple[str, ...]


class Change(msgspec.Struct, frozen=True):
    """One line of the log of changes."""

    sequence: int
    at_us: int
    who: str
    what: str
    tenant_id: str
    caller_id: str
    details: dict[str, Any]


def now_us() -> int:
    """Return the time in microseconds UTC."""
    return time.time_ns() // 1_000


class CallerEditor:
    """Edits the registry for one person or program, `who`."""

    def __init__(
        self,
        path: Path,
        *,
        who: str,
        clock: Callable[[], int] = now_us,
        entropy: Callable[[int], bytes] = os.urandom,
        default_tenant_if_new: str | None = None,
    ) -> None:
        """
        Open the registry; with `default_tenant_if_new`, make it.

        Raises:
            RegistryUnusable: there is none, or this version cannot use it.
            EditRefused: the tenant's name is not allowed.
        """
        if default_tenant_if_new is not None:
            check_name("tenant", default_tenant_if_new)
        self._who = who
        self._clock = clock
        self._entropy = entropy
        try:
            self._db: Database = open_database(path, create=default_tenant_if_new is not None)
        except sqlite3.DatabaseError as error:
            raise RegistryUnusable(f"{path} is not a caller registry: {error}") from error
        if default_tenant_if_new is not None:
            with self._changing():
                self._db.table("settings").insert({"name": _DEFAULT_TENANT, "value": default_tenant_if_new})

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def default_tenant(self) -> str:
        """Return the tenant that is meant when none is named."""
        return str(self._db.table("settings").get(_DEFAULT_TENANT)["value"])

    def snapshot(self) -> CallersSnapshot:
        """Return everything about who may call."""
        return read_snapshot(self._db.conn)

    def add(
        self,
        caller: CallerKey,
        *,
        scopes: Iterable[str],
        rate_per_second: int = RATE_DEFAULT,
        burst: int | None = None,
        certificates_allowed: bool,
        with_key: bool,
        expires_us: int = 0,
        certificate: IssuedCertificate | None = None,
        tenant_may_be_new: bool = True,
    ) -> IssuedKey | None:
        """
        Add a caller, with a first key if asked for. `burst` is a second's worth unless given.

        A tenant is there from its first caller on. Whoever adds to one that should be there already says so by
        `tenant_may_be_new`, for a slip of the pen would be a tenant of its own, without customers.
        """
        check_name("tenant", caller[0])
        check_name("caller", caller[1])
        granted = _checked_scopes(scopes)
        burst = rate_per_second if burst is None else burst
        _check_rate(rate_per_second, burst)
        with self._changing() as at_us:
            known = self.snapshot().callers
            if caller in known:
                raise EditRefused("caller", f"caller {caller[1]!r} exists in tenant {caller[0]!r}")
            tenants = sorted({tenant for tenant, _ in known})
            if tenants and caller[0] not in tenants and not tenant_may_be_new:
                message = f"needed to begin tenant {caller[0]!r}: there is none of that name, only {', '.join(tenants)}"
                raise EditRefused("new tenant", message)
            self._db.table("callers").insert(
                {
                    "tenant_id": caller[0],
                    "caller_id": caller[1],
                    "scopes": json.dumps(granted),
                    "rate_per_second": rate_per_second,
                    "burst": burst,
                    "enabled": 1,
                    "certificates_allowed": int(certificates_allowed),
                    "created_us": at_us,
                }
            )
            issued = self._issue_key(caller, at_us, expires_us) if with_key else None
            if certificate is not None:
                self._insert_certificate(caller, at_us, certificate)
            self._note(
                at_us,
                "caller added",
                caller,
                scopes=granted,
                rate_per_second=rate_per_second,
                burst=burst,
                certificates_allowed=certificates_allowed,
                key_id=issued.key_id if issued else None,
                certificate_id=certificate_id(certificate.sha256) if certificate else None,
            )
        return issued

    def change(
        self,
        caller: CallerKey,
        *,
        scopes: Iterable[str] | None = None,
        rate_per_second: int | None = None,
        burst: int | None = None,
        certificates_allowed: bool | None = None,
    ) -> CallerRecord:
        """Replace what is given of a caller's rights, and return what now stands."""
        with self._changing() as at_us:
            before = self._enabled(caller)
            granted = sorted(before.scopes) if scopes is None else _checked_scopes(scopes)
            rate = before.rate_per_second if rate_per_second is None else rate_per_second
            # A burst nobody chose stays a second's worth.
            follows = before.burst == before.rate_per_second
            chosen = burst if burst is not None else (rate if follows else before.burst)
            _check_rate(rate, chosen)
            certificates = before.certificates_allowed if certificates_allowed is None else certificates_allowed
            self._db.table("callers").update(
                caller,
                {
                    "scopes": json.dumps(granted),
                    "rate_per_second": rate,
                    "burst": chosen,
                    "certificates_allowed": int(certificates),
                },
            )
            self._note(
                at_us,
                "caller changed",
                caller,
                scopes=granted,
                rate_per_second=rate,
                burst=chosen,
                certificates_allowed=certificates,
            )
            return self.snapshot().callers[caller]

    def rotate(self, caller: CallerKey, *, expires_us: int = 0, grace_us: int | None = None) -> Rotation:
        """Issue a new key. The newest older one stays, or ends `grace_us` from now if given; others are revoked."""
        with self._changing() as at_us:
            self._enabled(caller)
            _check_expiry(expires_us, at_us)
            older = [key for key in self._keys_of(caller) if key.usable(at_us)]
            kept = older[-(KEYS_ACTIVE_MAX - 1) :]
            revoked = self._retire(caller, {key.key_id for key in kept})
            if grace_us is not None:
                ends_us = at_us + grace_us
                for key in kept:
                    if key.expires_us == 0 or key.expires_us > ends_us:
                        self._db.table("keys").update(key.key_id, {"expires_us": ends_us})
            issued = self._issue_key(caller, at_us, expires_us)
            left = [key for key in self._keys_of(caller) if key.key_id in {k.key_id for k in kept}]
            still_active = tuple(key for key in left if key.usable(at_us))
            ended = tuple(key.key_id for key in left if not key.usable(at_us))
            self._note(
                at_us,
                "key rotated",
                caller,
                key_id=issued.key_id,
                kept=[key.key_id for key in still_active if key.expires_us == 0],
                kept_until={key.key_id: key.expires_us for key in still_active if key.expires_us},
                ended=list(ended),
                revoked=revoked,
            )
        return Rotation(issued=issued, still_active=still_active, ended=ended, revoked=tuple(revoked))

    def register_certificate(self, caller: CallerKey, certificate: IssuedCertificate) -> None:
        """Remember a certificate issued to a caller, so that it can be revoked, and allow certificates."""
        with self._changing() as at_us:
            self._enabled(caller)
            self._db.table("callers").update(caller, {"certificates_allowed": 1})
            self._insert_certificate(caller, at_us, certificate)
            self._note(at_us, "certificate issued", caller, certificate_id=certificate_id(certificate.sha256))

    def revoke_caller(self, caller: CallerKey) -> None:
        """Turn a caller away for good, whatever it presents. Its name stays taken. Again is no effect."""
        with self._changing() as at_us:
            if not self._known(caller).enabled:
                return
            self._db.table("callers").update(caller, {"enabled": 0})
            revoked = self._retire(caller, keep=set())
            self._db.execute("UPDATE certificates SET active = 0 WHERE tenant_id = ? AND caller_id = ?", list(caller))
            self._note(at_us, "caller revoked", caller, keys=revoked)

    def revoke_credential(self, credential_id: str) -> CallerKey:
        """Revoke one key or certificate by its id and return whose it was. Again is no effect."""
        with self._changing() as at_us:
            snapshot = self.snapshot()
            key = snapshot.keys.get(credential_id)
            if key is not None:
                caller = (key.tenant_id, key.caller_id)
                if key.active:
                    self._db.table("keys").update(key.key_id, {"active": 0})
                    self._note(at_us, "key revoked", caller, key_id=key.key_id)
                return caller
            for certificate in snapshot.certificates.values():
                if certificate.certificate_id == credential_id:
                    caller = (certificate.tenant_id, certificate.caller_id)
                    if certificate.active:
                        self._db.table("certificates").update((certificate.sha256,), {"active": 0})
                        self._note(at_us, "certificate revoked", caller, certificate_id=credential_id)
                    return caller
            raise EditRefused("key", f"no key or certificate has the id {credential_id!r}")

    def changes(self, limit: int) -> list[Change]:
        """Return the latest changes, oldest first."""
        assert 0 < limit <= CHANGES_PAGE_MAX
        rows = list(self._db.table("changes").rows_where(order_by="sequence desc", limit=limit))
        return [msgspec.convert({**row, "details": json.loads(row["details"])}, Change) for row in reversed(rows)]

    @contextmanager
    def _changing(self) -> Iterator[int]:
        """One atomic change. Begins immediate: a deferred one would fail, not wait, beside another."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._clock()
            self._db.execute("COMMIT")
        except BaseException:
            self._db.rollback()
            raise

    def _known(self, caller: CallerKey) -> CallerRecord:
        record = self.snapshot().callers.get(caller)
        if record is None:
            raise EditRefused("caller", f"tenant {caller[0]!r} has no caller {caller[1]!r}")
        return record

    def _enabled(self, caller: CallerKey) -> CallerRecord:
        record = self._known(caller)
        if not record.enabled:
            raise EditRefused("caller", f"caller {caller[1]!r} was revoked: add one under another name")
        return record

    def _keys_of(self, caller: CallerKey) -> list[KeyRecord]:
        """Return a caller's active keys, oldest first (equal times: in the order they were issued)."""
        rows = self._db.table("keys").rows_where(
            "tenant_id = ? AND caller_id = ? AND active = 1", list(caller), order_by="created_us, rowid"
        )
        return [
            KeyRecord(
                row["key_id"],
                row["tenant_id"],
                row["caller_id"],
                row["secret_sha256"],
                row["created_us"],
                row["expires_us"],
                row["active"] == 1,
            )
            for row in rows
        ]

    def _retire(self, caller: CallerKey, keep: set[str]) -> list[str]:
        retired = [key.key_id for key in self._keys_of(caller) if key.key_id not in keep]
        for key_id in retired:
            self._db.table("keys").update(key_id, {"active": 0})
        return retired

    def _issue_key(self, caller: CallerKey, at_us: int, expires_us: int) -> IssuedKey:
        _check_expiry(expires_us, at_us)
        taken = {
            row["slot"]
            for row in self._db.table("keys").rows_where("tenant_id = ? AND caller_id = ? AND active = 1", list(caller))
        }
        slot = next(slot for slot in range(1, KEYS_ACTIVE_MAX + 1) if slot not in taken)
        key_id = key_id_of(self._entropy(KEY_ID_LENGTH))
        secret = self._entropy(SECRET_BYTES)
        self._db.table("keys").insert(
            {
                "key_id": key_id,
                "tenant_id": caller[0],
                "caller_id": caller[1],
                "secret_sha256": secret_digest(secret),
                "created_us": at_us,
                "expires_us": expires_us,
                "active": 1,
                "slot": slot,
            }
        )
        return IssuedKey(key_id=key_id, text=format_api_key(key_id, secret), expires_us=expires_us)

    def _insert_certificate(self, caller: CallerKey, at_us: int, certificate: IssuedCertificate) -> None:
        self._db.table("certificates").insert(
            {
                "sha256": certificate.sha256,
                "tenant_id": caller[0],
                "caller_id": caller[1],
                "created_us": at_us,
                "expires_us": certificate.expires_us,
                "active": 1,
            }
        )

    def _note(self, at_us: int, what: str, caller: CallerKey, **details: object) -> None:
        self._db.table("changes").insert(
            {
                "at_us": at_us,
                "who": self._who,
                "what": what,
                "tenant_id": caller[0],
                "caller_id": caller[1],
                "details": json.dumps(details, sort_keys=True),
            }
        )


def check_name(about: str, name: str) -> None:
    """Refuse a tenant's or caller's name that could not appear in a certificate."""
    if not NAME_PATTERN.fullmatch(name):
        raise EditRefused(about, f"{name!r} is not allowed: {NAME_RULE}")


def _checked_scopes(scopes: Iterable[str]) -> list[str]:
    asked = sorted(set(scopes))
    if not asked:
        raise EditRefused("scope", "a caller without a scope could do nothing: name at least one")
    unknown = unknown_scopes(asked)
    if unknown:
        raise EditRefused("scope", f"unknown: {', '.join(unknown)}; known are {', '.join(SCOPES)}")
    return asked


def _check_rate(rate_per_second: int, burst: int) -> None:
    if not 1 <= rate_per_second <= RATE_MAX:
        raise EditRefused("rate", f"{rate_per_second} is not between 1 and {RATE_MAX} calls per second")
    if not 1 <= burst <= RATE_MAX:
        raise EditRefused("burst", f"{burst} is not between 1 and {RATE_MAX} calls")


def _check_expiry(expires_us: int, at_us: int) -> None:
    if expires_us != 0 and expires_us <= at_us:
        raise EditRefused("expiry", "the key would have expired already")
