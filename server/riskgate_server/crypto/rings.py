"""
Rings: the secrets of one kind, each with a number, in one file that may be replaced while servers run.

A number is the time in whole seconds UTC from which its secret is in force. It lies a little ahead when the secret is
made, so that every process knows a secret before anyone uses it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from riskgate_server.crypto.keys import SecretFileBroken, decode_ring

LOOK_SECONDS: Final = 1.0
"""How often a file is looked at: a change is known within two seconds."""


def in_force(ring: Mapping[int, object], now: float) -> int:
    """Return the number of the newest secret whose time has come; of the oldest when none has."""
    return max((number for number in ring if number <= now), default=min(ring))


def version_of(path: Path) -> tuple[int, int, int]:
    """Return what is another once a file was replaced or written to; OSError when there is none."""
    status = os.stat(path)  # noqa: PTH116  runs every second on the event loop
    return (status.st_ino, status.st_mtime_ns, status.st_size)


class Ring:
    """Secrets that stand for as long as the process lives."""

    def __init__(self, secrets: Mapping[int, bytes]) -> None:
        assert secrets
        self._secrets = MappingProxyType(dict(secrets))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"

    def __reduce__(self) -> str:
        raise TypeError("a ring is not copied or sent elsewhere")

    def secrets(self) -> Mapping[int, bytes]:
        """Return number → secret; the same object until it changes."""
        return self._secrets

    def look(self) -> Mapping[int, bytes]:
        """Return what stands at this moment: for who was asked for a secret that is not known."""
        return self._secrets


class RingFile(Ring):
    """The secrets of a file, read again when it was replaced. Safe from any thread."""

    def __init__(self, kind: str, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """
        Read the file.

        Raises:
            OSError: there is none.
            SecretFileBroken: it is no ring of this kind, whole and unchanged.
        """
        self._kind = kind
        self._path = path
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen = self._version()
        self._look_at = monotonic() + LOOK_SECONDS
        super().__init__(decode_ring(kind, path.read_bytes()))

    def secrets(self) -> Mapping[int, bytes]:
        """Return number → secret, looking at the file at most once a second."""
        return self._secrets if self._monotonic() < self._look_at else self.look()

    def look(self) -> Mapping[int, bytes]:
        """Return what the file says at this moment; what it last said while it cannot be read."""
        with self._lock:
            self._look_at = self._monotonic() + LOOK_SECONDS
            try:
                # Before it is read: a change in between is then seen next time.
                version = self._version()
                if version != self._seen:
                    self._secrets = MappingProxyType(decode_ring(self._kind, self._path.read_bytes()))
                    self._seen = version
            except (OSError, SecretFileBroken):
                # The next start refuses it; until then nothing is gained by knowing less.
                pass
            return self._secrets

    def _version(self) -> tuple[int, int, int]:
        return version_of(self._path)
