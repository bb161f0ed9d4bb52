"""
Connections: how they are made, what must hold on them, and what their errors mean.

Everything a server asks while it writes goes by key, so the plan must never hang on statistics: a table that grew
since they were taken would be read whole. Sessions are told so once, and every statement is planned once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import conninfo, pq

from riskgate_server.engine.failures import (
    OutcomeUnknown,
    ReadFailed,
    StoreBroken,
    StoreBusy,
    StoreConflict,
    StoreFull,
    StoreUnreachable,
)
from riskgate_server.stores.postgres import arrays
from riskgate_server.stores.postgres.schema import SCHEMA
from riskgate_server.stores.refusals import SettingsRefused

# Of statements that were sent together it logs, in words of its own, that those behind the first error failed too.
logging.getLogger("psycopg").setLevel(logging.ERROR)

Connection = psycopg.Connection[tuple[Any, ...]]

SERVER_VERSION_MIN: Final = 150_000
CLOCK_OFFSET_SECONDS_MAX: Final = 2.0
"""
How far the database's clock may be from ours, whenever something is written: a customer's time never goes back, so one
server whose clock runs ahead would have the others stand still for all whom it touched.
"""
LOCK_SECONDS: Final = 2
"""How long a statement waits for another writer's row."""
IDLE_SECONDS: Final = 10
"""How long a transaction may stand still before the database ends it and frees its rows."""
READ_IDLE_SECONDS: Final = 600
READERS: Final = 6
"""Connections that read at once, unless whoever opens the store asks for another number."""
READER_WAIT_SECONDS: Final = 5.0
"""How long a question waits for a connection when all are lent."""

_DEFAULTS: Final[dict[str, str | int]] = {
    "connect_timeout": 5,
    "application_name": "riskgate",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""What a DSN may say otherwise."""

_LIBPQ_SSLMODE: Final = "prefer"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_SOCKETS: Final = "/@"
"""What the name of a host begins with when it is a socket's."""

_SETTINGS: Final = f"""
SET search_path = {SCHEMA};
SET default_transaction_isolation = 'read committed';
SET default_transaction_read_only = off;
SET lock_timeout = '{LOCK_SECONDS}s';
SET client_connection_check_interval = '1s';
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET jit = off;
SET client_min_messages = warning;
"""

_FULL: Final = ("53100",)
_CONFLICT: Final = ("40001", "40P01")
_FIRST_COME: Final = ("customers_pkey", "requests_pkey")
"""Keys that only another writer can have taken."""
_BUSY: Final = ("55P03", "57014", "53200")
"""No lock within the time, cancelled, out of memory."""
_GONE: Final = ("57P01", "57P02", "57P05", "25P03", "25P04", "25006", "53300", "57P03")
"""The server ended the session, is a standby now, takes no connection more, or is not ready."""
_DAMAGED: Final = ("XX001", "XX002", "58030", "58P01")


def connect(dsn: str) -> Connection:
    """
    Return a connection with our settings; nothing is begun on it.

    Raises:
        StoreUnreachable: the database cannot be reached, or takes no more connections.
        SettingsRefused: the DSN makes no sense.
    """
    given = _read(dsn)
    with translated():
        connection = psycopg.connect(
            conninfo.make_conninfo("", **(_DEFAULTS | _encrypted(given) | given | {"client_encoding": "UTF8"})),
            autocommit=True,
            cursor_factory=psycopg.RawCursor,
        )
    # Every statement has a fixed text and is asked again and again: planned at its first use, and kept.
    connection.prepare_threshold = 0
    connection.prepared_max = None
    arrays.register(connection)
    return connection


def _read(dsn: str) -> dict[str, str]:
    """Return what a DSN says, or raise `SettingsRefused` without repeating any of it: it may have a password in it."""
    try:
        given = {name: str(value) for name, value in conninfo.conninfo_to_dict(dsn).items() if value is not None}
        # A password with a mark in it that is not encoded: what follows would be taken for host and port, and told.
        whole = "@" not in given.get("host", "")[1:] and (given.get("port") or "0").replace(",", "0").isdigit()
    except psycopg.ProgrammingError:
        whole = False
    if not whole:
        message = (
            "the DSN cannot be read: its options must be libpq's, and whatever is no letter or digit in a user or a"
            " password must be percent-encoded; better, a password is in ~/.pgpass"
        )
        raise SettingsRefused(message)
    return given


def _encrypted(given: dict[str, str]) -> dict[str, str]:
    """
    Return what has TLS be used on the way to another machine, unless the operator says otherwise.

    Left alone, libpq goes on without it when whoever is on the way says that the database has none.
    """
    by_default = {option.keyword.decode(): (option.val or b"").decode() for option in pq.Conninfo.get_defaults()}
    said = "sslmode" in given or "service" in given or by_default["sslmode"] != _LIBPQ_SSLMODE
    host = given.get("hostaddr") or given.get("host") or by_default["hostaddr"] or by_default["host"]
    here = all(not one or one in _LOOPBACK or one[0] in _SOCKETS for one in host.split(","))
    return {} if said or here else {"sslmode": "require"}


def set_up(connection: Connection, *, idle_seconds: int) -> None:
    """Put our settings in force for the session."""
    # By itself and first: together the rest takes as long as a role's timeout may be short.
    connection.execute("SET statement_timeout = 0", prepare=False)
    connection.execute(f"{_SETTINGS} SET idle_in_transaction_session_timeout = '{idle_seconds}s'", prepare=False)
    connection.execute(
        "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'", prepare=False
    )


def probe(connection: Connection, now: Callable[[], float] = time.time) -> None:
    """
    Refuse a database that would lose or change what it was given, and pin how it commits for this session.

    Raises:
        SettingsRefused: in words an operator can act on.
    """
    version = connection.info.server_version
    if version < SERVER_VERSION_MIN:
        _refuse(f"PostgreSQL {version // 10_000} is too old: {SERVER_VERSION_MIN // 10_000} or newer is needed")
    before = now()
    row = connection.execute(
        "SELECT current_setting('server_encoding'), current_setting('fsync'), current_setting('synchronous_commit'),"
        " current_setting('synchronous_standby_names'), pg_is_in_recovery(),"
        " extract(epoch FROM clock_timestamp())::float8",
        prepare=False,
    ).fetchone()
    assert row is not None
    after = now()
    encoding, fsync, synchronous, standbys, standby, server_time = row
    if standby:
        _refuse("the database is a standby, which cannot be written: name the primary")
    if encoding != "UTF8":
        _refuse(f"the database's encoding is {encoding}: create it with ENCODING 'UTF8'")
    if fsync != "on":
        _refuse("fsync is off: what was answered would not survive a power cut; set fsync = on")
    if synchronous == "off":
        _refuse("synchronous_commit is off: what was answered would not survive a crash; set it to on for this role")
    if synchronous == "local" and standbys:
        _refuse(
            "synchronous_commit is local although there are synchronous standbys: what was answered would not survive"
            " the loss of the primary; set it to on for this role"
        )
    if fault := clock_fault(server_time, before, after):
        _refuse(fault)
    # A later change of the configuration must not reach a session that was probed.
    connection.execute(f"SET synchronous_commit = {synchronous}", prepare=False)


def clock_fault(server_time: float, before: float, after: float) -> str:
    """Return what is wrong with a time the database told between two of ours, all in seconds UTC; empty if nothing."""
    offset = server_time - (before + after) / 2
    if abs(offset) <= CLOCK_OFFSET_SECONDS_MAX + (after - before) / 2:
        return ""
    return (
        f"the database's clock is {offset:+.1f} seconds from this machine's;"
        f" at most {CLOCK_OFFSET_SECONDS_MAX:g} are accepted: synchronise the clocks"
    )


def _refuse(message: str) -> None:
    raise SettingsRefused(message)


def in_our_words(error: psycopg.Error) -> Exception:
    """
    Return what an error before the commit means to the engine; the error itself when it means nothing special.

    What it adds about a row is taken from it, which names customers: logs repeat its words, also as a cause's.
    """
    if error.diag.message_primary:
        error.args = (error.diag.message_primary,)
    state = error.sqlstate or ""
    text = str(error).strip()
    if state in _FULL:
        return StoreFull(text)
    if state in _DAMAGED:
        return StoreBroken(text)
    if state in _CONFLICT or (state == "23505" and error.diag.constraint_name in _FIRST_COME):
        return StoreConflict(text)
    # Without a state it was not the server who spoke: the connection is lost.
    lost = isinstance(error, psycopg.OperationalError) and not state
    if lost or state in _GONE or state.startswith("08"):
        return StoreUnreachable(text)
    if state in _BUSY:
        return StoreBusy(text)
    return error


@contextmanager
def translated() -> Iterator[None]:
    """Say the driver's errors in the port's words; the original stays as the cause."""
    try:
        yield
    except psycopg.Error as error:
        said = in_our_words(error)
        if said is error:
            raise
        raise said from error


@contextmanager
def reading() -> Iterator[None]:
    """Say the errors of a connection that reads in the port's words: nothing that was written depends on it."""
    try:
        yield
    except MemoryError as error:
        raise ReadFailed("out of memory") from error
    except StoreBusy as error:
        raise ReadFailed(str(error)) from error
    except psycopg.Error as error:
        if in_our_words(error) is error:
            raise
        raise ReadFailed(str(error).strip()) from error


def commit(connection: Connection, warnings: list[str]) -> None:
    """
    End a transaction so that what it wrote is durable.

    Raises:
        OutcomeUnknown: the connection was lost, or the server gave up waiting for a standby.
        StoreBusy, StoreConflict, StoreFull, StoreBroken: it was rolled back, or never sent.
    """
    _look_for_bad_news(connection)
    warnings.clear()
    try:
        done = connection.execute("COMMIT", prepare=False).statusmessage
    except psycopg.Error as error:
        said = in_our_words(error)
        if connection.closed or isinstance(said, StoreBusy) or error.sqlstate == "40003":
            raise OutcomeUnknown(str(error).strip()) from error
        if said is error:
            raise
        raise said from error
    if done != "COMMIT":
        raise StoreConflict("the transaction had failed before its commit")
    if warnings:
        # "canceling wait for synchronous replication": here it stands, on the standby perhaps not.
        raise OutcomeUnknown(warnings[0])


def _look_for_bad_news(connection: Connection) -> None:
    """Tell a session that has been ended from one that is lost while it commits: then nothing was sent."""
    pgconn = connection.pgconn
    try:
        # The first takes a server's last words, the second finds the end behind them.
        pgconn.consume_input()
        pgconn.consume_input()
    except psycopg.OperationalError as error:
        connection.close()
        raise StoreUnreachable(str(error).strip()) from error


def roll_back(connection: Connection) -> None:
    """Undo. Where the connection does not allow it, the server does so by itself."""
    try:
        connection.execute("ROLLBACK", prepare=False)
    except psycopg.Error:
        connection.close()


class Readers:
    """A bounded number of connections for reading. Safe from any thread."""

    def __init__(self, dsn: str, most: int) -> None:
        self._dsn = dsn
        self._idle: list[Connection] = []
        self._free = threading.BoundedSemaphore(most)
        self._closed = False

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """
        Give a connection within a transaction that sees one moment, and take it back.

        Raises:
            ReadFailed: none came back in time, or the database cannot be reached.
        """
        if not self._free.acquire(timeout=READER_WAIT_SECONDS):
            raise ReadFailed("every reading connection is lent")
        try:
            with reading():
                reader = self._begin()
            try:
                yield reader
            finally:
                roll_back(reader)
                self._take_back(reader)
        finally:
            self._free.release()

    def close(self) -> None:
        """Finish; those lent are closed when they come back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _begin(self) -> Connection:
        while True:
            if self._closed:
                raise RuntimeError("the store is closed")
            try:
                reader, kept = self._idle.pop(), True
            except IndexError:
                reader, kept = connect(self._dsn), False
            try:
                with translated():
                    if not kept:
                        set_up(reader, idle_seconds=READ_IDLE_SECONDS)
                    # A transaction begins to see at its first question, so that is asked at once.
                    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1", prepare=False)
            except BaseException as error:
                reader.close()
                # One that was kept may have been lost since: the next, or a new one, may do.
                if kept and isinstance(error, StoreBusy):
                    continue
                raise
            return reader

    def _take_back(self, reader: Connection) -> None:
        if reader.closed:
            return
        if self._closed:
            reader.close()
        else:
            self._idle.append(reader)
