"""
The server with one bug planted: `python -m tests.acceptance.planted BUG serve …`.

A test whose claim holds of every one of these proves nothing. Each is a mistake somebody makes. They
are planted under the engine, in the database connection, wherever that is possible: there they stay
what they are however the engine changes.
"""

from __future__ import annotations

import functools
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from riskgate_server import bootstrap, last_resort
from riskgate_server.cli import main
from riskgate_server.domain.credit import authorisation
from riskgate_server.domain.credit.line import CreditLine
from riskgate_server.engine import purchases
from riskgate_server.engine.writer import Ticket, Writer
from riskgate_server.rpc.gateway import Gateway
from riskgate_server.stores.sqlite import store
from riskgate_server.stores.sqlite.schema import Kind

NAP_SECONDS: Final = 0.02
"""A gap that a kill finds."""


class HonestConnection(sqlite3.Connection):
    """The connection that writes the store, with places to plant something."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run a statement."""
        if sql == "COMMIT":
            return self.commit_it()
        if sql.startswith("BEGIN"):
            self.before_begin()
        return super().execute(self.changed(sql), parameters)

    def commit_it(self) -> sqlite3.Cursor:
        """Commit."""
        return super().execute("COMMIT")

    def before_begin(self) -> None:
        """Do what is left to do before the next transaction."""

    def changed(self, sql: str) -> str:
        """Return the statement to run instead."""
        return sql


class EarlyReply(HonestConnection):
    """Says that it has committed, and then does."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._answers = False
        self._open = False
        self._lock = threading.Lock()

    def changed(self, sql: str) -> str:
        """Note whether somebody waits for this transaction."""
        self._answers = self._answers or sql.startswith("INSERT INTO entries")
        return sql

    def commit_it(self) -> sqlite3.Cursor:
        """Commit a moment later."""
        if not self._answers:
            return super().commit_it()
        self._answers, self._open = False, True
        threading.Timer(NAP_SECONDS, self.before_begin).start()
        return self.cursor()

    def before_begin(self) -> None:
        """Commit at last."""
        with self._lock:
            if self._open:
                self._open = False
                super().commit_it()


class ForgottenKeys(HonestConnection):
    """Never finds a request id again. Takes its time to answer, so that a kill finds a reply under way."""

    def commit_it(self) -> sqlite3.Cursor:
        """Commit, and rest."""
        done = super().commit_it()
        time.sleep(NAP_SECONDS)
        return done

    def changed(self, sql: str) -> str:
        """Look elsewhere, and write over what should have been found."""
        if sql.startswith("SELECT") and f"kind = {Kind.REQUEST:d}" in sql:
            return "SELECT 1 WHERE ? IS NULL"
        return sql.replace("INSERT INTO records", "INSERT OR REPLACE INTO records") if "fingerprint" in sql else sql


class IgnoredError(HonestConnection):
    """A COMMIT that fails is taken for one that did not."""

    def commit_it(self) -> sqlite3.Cursor:
        """Commit, whatever the disk says."""
        try:
            return super().commit_it()
        except sqlite3.OperationalError:
            if self.in_transaction:
                super().execute("ROLLBACK")
            return self.cursor()


def connect_by(factory: type[HonestConnection]) -> None:
    """Have the store opened for writing by another kind of connection."""
    connect = sqlite3.connect

    def connecting(database: Any, *arguments: Any, **named: Any) -> Any:
        if str(database).endswith("riskgate.db"):
            named["factory"] = factory
        return connect(database, *arguments, **named)

    sqlite3.connect = connecting


def normal_sync() -> None:
    """A commit returns before it is on the disk."""
    bootstrap.Server = functools.partial(bootstrap.Server, synchronous="NORMAL")  # type: ignore[assignment,misc]  # called alike


def stale_limit() -> None:
    """The limit is read from a cache that is a moment old."""
    judge = authorisation.judge
    known: dict[str, tuple[float, tuple[int, ...]]] = {}

    def judging(line: CreditLine, *arguments: Any, **named: Any) -> Any:
        at, books = known.get(line.line_id, (0.0, line.books))
        if time.monotonic() - at > NAP_SECONDS:
            at, books = known[line.line_id] = time.monotonic(), line.books
        return judge(msgspec.structs.replace(line, books=books), *arguments, **named)

    purchases.judge = judging  # type: ignore[attr-defined,assignment]  # imported there, and that is where it is called


class BrokenDisk(HonestConnection):
    """Fails at the first COMMIT of an entry."""

    def changed(self, sql: str) -> str:
        """Fail from now on."""
        if sql.startswith("INSERT INTO entries"):
            self.commit_it = self.fail  # type: ignore[method-assign]  # from now on
        return sql

    def fail(self) -> sqlite3.Cursor:
        """Say what SQLite says of a disk that is gone."""
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error


def endless_end() -> None:
    """The disk fails, and the orderly end that follows never comes: as where no thread can begin for want of memory."""
    connect_by(BrokenDisk)
    Writer.stop = lambda _: threading.Event().wait()  # type: ignore[assignment,method-assign]  # that is the bug
    # Only the patience is another.
    last_resort.LastResort = functools.partial(last_resort.LastResort, patience_seconds=1.0)  # type: ignore[assignment,misc]


def naive_futures() -> None:
    """Whoever delivers replies does not ask whether anybody still waits."""

    def resolve(self: Gateway, replies: Sequence[tuple[Ticket, Any]]) -> None:
        for ticket, reply in replies:
            wait, index = self._waiting.pop(ticket)
            wait.replies[index] = reply
            wait.missing -= 1
            if not wait.missing:
                wait.future.set_result(wait.replies)  # type: ignore[arg-type]  # none is missing any more

    Gateway._resolve = resolve  # type: ignore[method-assign]  # that is the bug


def small_log() -> None:
    """No bug: the same server, made to checkpoint all the time."""
    store.CHECKPOINT_PAGES = 50  # type: ignore[misc]  # final for everybody else


def lazy_commit() -> None:
    """PostgreSQL answers a COMMIT before it is on the disk."""
    from riskgate_server.stores.postgres import session  # noqa: PLC0415 - for who has a database

    probe = session.probe

    def probing(connection: session.Connection, *given: Any) -> None:
        probe(connection, *given)
        connection.execute("SET synchronous_commit = off")

    session.probe = probing  # type: ignore[assignment]  # called alike


def no_row_lock() -> None:
    """READ COMMITTED, and customers are read without being locked."""
    from riskgate_server.stores.postgres import transaction  # noqa: PLC0415 - as above

    for name in ("_LOCK", "_LOCK_IF_FREE"):
        statement = getattr(transaction, name)
        setattr(transaction, name, statement.removesuffix(" SKIP LOCKED").removesuffix(" FOR UPDATE OF c"))


BUGS: Final[dict[str, Callable[[], None]]] = {
    "normal-sync": normal_sync,
    "early-reply": functools.partial(connect_by, EarlyReply),
    "forgotten-keys": functools.partial(connect_by, ForgottenKeys),
    "ignored-error": functools.partial(connect_by, IgnoredError),
    "stale-limit": stale_limit,
    "naive-futures": naive_futures,
    "endless-end": endless_end,
    "lazy-commit": lazy_commit,
    "no-row-lock": no_row_lock,
    "small-log": small_log,
}


def planted(bug: str) -> tuple[str, ...]:
    """Return the program to start instead of the real one."""
    assert bug in BUGS
    return (sys.executable, "-m", "tests.acceptance.planted", bug)


if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
