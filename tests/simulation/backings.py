"""Where a simulated process keeps its store, what is left of that when the process dies, and what can go wrong."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from riskgate_server.stores.memory import MemoryStore
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.sqlite.store import SQLiteStore
from tests import postgres
from tests.simulation.faults import DISK_FAULTS, NETWORK_FAULTS, Fault, FaultyStore

END_SECONDS: Final = 10.0
"""How long the database may take to see that a connection is gone."""


class Backing(Protocol):
    """Where a store lives on while processes come and go."""

    faults: tuple[Fault, ...]
    """What can go wrong with a transaction here."""

    def open(self, plan: Callable[[], Fault]) -> FaultyStore:
        """A process begins over what the last one left."""

    def close(self) -> None:
        """The seed is over."""


class Memory:
    """A store that outlives the process because it only plays dead."""

    faults = DISK_FAULTS

    def __init__(self, folder: Path) -> None:
        self._store = MemoryStore()

    def open(self, plan: Callable[[], Fault]) -> FaultyStore:
        return FaultyStore(self._store, plan)

    def close(self) -> None:
        self._store.close()


class File:
    """A SQLite file. At a death its files are copied as they lie; the next process opens the copy."""

    faults = DISK_FAULTS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._lives = 0
        self._path = folder / "0.db"
        shutil.copyfile(folder.parent / "template.db", self._path)
        self._store: SQLiteStore | None = None
        self._copied = False

    def open(self, plan: Callable[[], Fault]) -> FaultyStore:
        if self._store is not None and not self._copied:
            self._died()
        self._end()
        self._path = self._folder / f"{self._lives}.db"
        self._copied = False
        self._store = SQLiteStore(self._path)
        return FaultyStore(self._store, plan, died=self._died)

    def _died(self) -> None:
        self._lives += 1
        self._copied = True
        for suffix in ("", "-wal"):
            source = Path(f"{self._path}{suffix}")
            if source.exists():
                shutil.copyfile(source, self._folder / f"{self._lives}.db{suffix}")

    def _end(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def close(self) -> None:
        self._end()
        shutil.rmtree(self._folder)


class Database:
    """A PostgreSQL database. A process that dies leaves a connection that ends in the middle of whatever it did."""

    faults = NETWORK_FAULTS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: PostgresStore | None = None

    def open(self, plan: Callable[[], Fault]) -> FaultyStore:
        if self._store is not None:
            Wire(self._store).cut()
            self._store.close()
        self._store = PostgresStore(postgres.database(self._folder))
        wire = Wire(self._store)
        return FaultyStore(self._store, plan, died=wire.cut, wire=wire)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        postgres.give_back(self._folder)


class Wire:
    """Keeps `faults.Wire` over the connection on which a PostgreSQL store writes."""

    def __init__(self, store: PostgresStore) -> None:
        self._store: Any = store

    def connect(self) -> None:
        self._store._writing()

    def cut(self) -> None:
        """Lose the connection, as when a cable is pulled: neither side says goodbye."""
        db = self._store._db
        if db is None or db.closed:
            return
        with socket.socket(fileno=os.dup(db.pgconn.socket)) as ours:
            ours.shutdown(socket.SHUT_RDWR)
        # Else what comes next would depend on how fast the database notices.
        ends = time.monotonic() + END_SECONDS
        while postgres.admin("SELECT 1 FROM pg_stat_activity WHERE pid = %s", db.info.backend_pid):
            assert time.monotonic() < ends, "the database does not notice that a connection is gone"

    def cut_at(self, statement: str, *, done: bool) -> None:
        self._store._db = _Doomed(self._store._db, statement, self.cut, done=done)

    def mend(self) -> None:
        if isinstance(self._store._db, _Doomed):
            self._store._db = self._store._db.inner


class _Doomed:
    """A connection that is lost with a statement: before the database gets it, or before its answer comes."""

    def __init__(self, inner: Any, statement: str, cut: Callable[[], None], *, done: bool) -> None:
        self.inner = inner
        self._statement = statement
        self._cut = cut
        self._done = done

    def execute(self, sql: str, *given: Any, **how: Any) -> Any:
        if sql.startswith(self._statement):
            if self._done:
                self.inner.execute(sql, *given, **how)
            self._cut()
        return self.inner.execute(sql, *given, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


BACKINGS: Final[dict[str, Callable[[Path], Backing]]] = {"memory": Memory, "sqlite": File, "postgresql": Database}


def fast_folder() -> str | None:
    """Memory-backed files where the system has them: the simulator is about order, not about disks."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def workshop() -> Iterator[Path]:
    """A folder for SQLite files, with an empty, migrated one to copy."""
    with tempfile.TemporaryDirectory(prefix="riskgate-simulation-", dir=fast_folder()) as folder:
        SQLiteStore(Path(folder) / "template.db").close()
        yield Path(folder)
