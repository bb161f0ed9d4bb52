"""Connections to riskgate.db: what SQLite's errors mean, and the fixed set of connections that read."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from riskgate_server.engine.failures import ReadFailed, StoreBroken, StoreBusy, StoreFull

LEND_SECONDS_MAX: Final = 5.0
"""How long a question waits for a connection when all are lent."""

_OTHERS_IN_THE_WAY: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")
_FAULTS_OF_THE_DISK: Final = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN", "SQLITE_READONLY")
_NOT_NOW: Final = (*_OTHERS_IN_THE_WAY, *_FAULTS_OF_THE_DISK, "SQLITE_FULL", "SQLITE_NOMEM", "SQLITE_PROTOCOL")


@contextmanager
def writing() -> Iterator[None]:
    """Say the errors of the connection that writes in the port's words; the original stays as the cause."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_NOMEM"):
            raise MemoryError(str(error)) from error
        if name.startswith("SQLITE_FULL"):
            raise StoreFull(str(error)) from error
        if name.startswith(_OTHERS_IN_THE_WAY):
            raise StoreBusy(str(error)) from error
        if name.startswith(_FAULTS_OF_THE_DISK):
            raise StoreBroken(str(error)) from error
        raise


@contextmanager
def reading() -> Iterator[None]:
    """Say the errors of a connection that reads in the port's words: nothing that was written depends on it."""
    try:
        yield
    except MemoryError as error:
        raise ReadFailed("out of memory") from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith(_NOT_NOW):
            raise ReadFailed(str(error)) from error
        raise


class Readers:
    """
    A fixed number of connections that read, opened at once: none is missing when descriptors run out later.

    Safe from any thread.
    """

    def __init__(self, path: Path, number: int) -> None:
        self._free = threading.Condition()
        self._idle: list[sqlite3.Connection] = []
        self._number = number
        self._closed = False
        self._still = False
        try:
            with reading():
                for _ in range(number):
                    self._idle.append(_connect_to_read(path))
        except BaseException:
            self.close()
            raise

    @contextmanager
    def stillness(self, seconds: float) -> Iterator[bool]:
        """Lend nothing for the time of the block; True if everything lent came back within so many seconds."""
        with self._free:
            self._still = True
            try:
                yield self._free.wait_for(lambda: len(self._idle) == self._number, seconds)
            finally:
                self._still = False
                self._free.notify_all()

    def lend(self) -> sqlite3.Connection:
        """
        Return a connection of the caller's own until it is taken back, waiting for one when all are lent.

        Raises:
            ReadFailed: none came back in time.
        """
        with self._free:
            if not self._free.wait_for(lambda: self._closed or (self._idle and not self._still), LEND_SECONDS_MAX):
                raise ReadFailed("every reading connection is lent")
            if self._closed:
                raise RuntimeError("the store is closed")
            return self._idle.pop()

    def take_back(self, reader: sqlite3.Connection) -> None:
        """Have a connection back."""
        with self._free:
            if self._closed:
                reader.close()
                return
            self._idle.append(reader)
            # All, for one of those who wait may want stillness.
            self._free.notify_all()

    def close(self) -> None:
        """Close every connection, those that are lent when they come back."""
        with self._free:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            self._free.notify_all()


def _connect_to_read(path: Path) -> sqlite3.Connection:
    reader = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        # A reader must never move the WAL: it is the writer's alone.
        reader.execute("PRAGMA wal_autocheckpoint=0").fetchall()
        reader.execute("PRAGMA query_only=ON").fetchall()
        reader.execute("PRAGMA temp_store=MEMORY").fetchall()
        # SQLite opens the files at the first question only.
        reader.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
    except BaseException:
        reader.close()
        raise
    return reader
