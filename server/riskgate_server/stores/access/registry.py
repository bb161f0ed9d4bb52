"""Reads who may call, beside whoever edits it. Plain SQLite: sqlite-utils would double the server's start."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from riskgate_server.domain.errors import InternalError
from riskgate_server.engine.callers import CallerRecord, CallersSnapshot, CertificateRecord, KeyRecord

CHECK_SECONDS: Final = 1.0
"""How often the file is looked at. With the time of a reload it keeps a revocation under two seconds."""
RETRY_SECONDS: Final = 0.2
STALE_SECONDS_MAX: Final = 10.0
"""How long the last known state may stand in for a file that cannot be read; then nobody is let in."""
_BUSY_SECONDS: Final = 0.05
"""The reader may be an event loop: it rather comes again than waits."""


class RegistryUnusable(Exception):
    """The file is not a caller registry this version can use. The message says why."""


class CallerRegistry:
    """Keeps the port `engine.callers.CallerDirectory` over the file. Safe from any thread."""

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """
        Open and read the registry.

        Raises:
            RegistryUnusable: there is none, or it cannot be read.
        """
        self._path = path
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, int, int] | None = None
        try:
            self._snapshot = self._load()
        except (OSError, sqlite3.Error, ValueError) as error:
            self.close()
            raise RegistryUnusable(f"{path} cannot be read: {error}") from error
        self._read_at = monotonic()
        self._check_at = self._read_at + CHECK_SECONDS

    def refresh(self) -> CallersSnapshot:
        """
        Return what is in force, looking at the file at most once a second.

        Raises:
            InternalError: the file could not be read for ten seconds.
        """
        if self._monotonic() < self._check_at:
            return self._snapshot
        with self._lock:
            now = self._monotonic()
            if now < self._check_at:
                return self._snapshot
            try:
                if self._version() != self._seen:
                    self._snapshot = self._load()
            except (OSError, sqlite3.Error, ValueError) as error:
                if now - self._read_at > STALE_SECONDS_MAX:
                    raise InternalError("INTERNAL", "who may call is not known at the moment") from error
                self._check_at = now + RETRY_SECONDS
            else:
                self._read_at = now
                self._check_at = now + CHECK_SECONDS
            return self._snapshot

    def snapshot(self) -> CallersSnapshot:
        """Return what was in force when last looked at."""
        return self._snapshot

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _version(self) -> tuple[int, int, int]:
        """Name the state of the file: which file it is, and how often others committed to it."""
        status = os.stat(self._path)  # noqa: PTH116  runs every second on the event loop; a Path costs more than the call
        identity = (status.st_dev, status.st_ino)
        if self._connection is None or self._seen is None or self._seen[:2] != identity:
            # A restored backup is another file under the same name.
            self._connect()
        assert self._connection is not None
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return (*identity, version)

    def _connect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._seen = None
        # Opened for writing though nothing is written: only so can it undo what a killed editor left.
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA query_only = ON")
        self._connection = connection

    def _load(self) -> CallersSnapshot:
        # Before the rows: a commit in between is then seen as a change next time.
        version = self._version()
        assert self._connection is not None
        snapshot = read_snapshot(self._connection)
        self._seen = version
        return snapshot


def read_snapshot(connection: sqlite3.Connection) -> CallersSnapshot:
    """Read everything about who may call, as of one instant."""
    nested = connection.in_transaction
    if not nested:
        connection.execute("BEGIN")
    try:
        callers = {
            (row[0], row[1]): CallerRecord(
                row[0],
                row[1],
                frozenset(json.loads(row[2])),
                row[3],
                row[4],
                row[5] == 1,
                row[6] == 1,
                row[7],
            )
            for row in connection.execute(
                "SELECT tenant_id, caller_id, scopes, rate_per_second, burst, enabled, certificates_allowed,"
                " created_us FROM callers ORDER BY tenant_id, caller_id"
            )
        }
        keys = {
            row[0]: KeyRecord(row[0], row[1], row[2], row[3], row[4], row[5], row[6] == 1)
            for row in connection.execute(
                "SELECT key_id, tenant_id, caller_id, secret_sha256, created_us, expires_us, active FROM keys"
                " ORDER BY created_us, key_id"
            )
        }
        certificates = {
            row[0]: CertificateRecord(row[0], row[1], row[2], row[3], row[4], row[5] == 1)
            for row in connection.execute(
                "SELECT sha256, tenant_id, caller_id, created_us, expires_us, active FROM certificates"
                " ORDER BY created_us, sha256"
            )
        }
    finally:
        if not nested:
            connection.execute("ROLLBACK")
    return CallersSnapshot(callers=callers, keys=keys, certificates=certificates)
