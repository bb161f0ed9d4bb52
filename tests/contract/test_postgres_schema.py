"""What a database must be like, what is made in it, and what the server is told to do with it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors

from riskgate_server.engine.failures import StoreUnreachable
from riskgate_server.stores.postgres import session, transaction
from riskgate_server.stores.postgres.arrays import Texts
from riskgate_server.stores.postgres.reads import PostgresSnapshot
from riskgate_server.stores.postgres.schema import SCHEMA, SCHEMA_VERSION, VAULT_SCHEMA, migrate, version_of
from riskgate_server.stores.postgres.store import PostgresSnapshots, PostgresStore
from riskgate_server.stores.refusals import SchemaTooNew, SettingsRefused
from tests import postgres
from tests.contract.rows import ADA, batch, commit, customer, entry
from tests.contract.sessions import Cut, ask, counted


@pytest.fixture
def store(dsn: str) -> Iterator[PostgresStore]:
    store = PostgresStore(dsn)
    yield store
    store.close()


# --- Settings. ---


def test_a_role_that_does_not_wait_for_the_disk_is_refused(dsn: str) -> None:
    ask(dsn, f"ALTER DATABASE {dsn.split('/')[3].split('?', maxsplit=1)[0]} SET synchronous_commit = off")

    with pytest.raises(SettingsRefused, match="synchronous_commit is off"):
        PostgresStore(dsn)


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
        "statement_timeout = 20",
        "search_path = public",
        "plan_cache_mode = force_custom_plan",
    ],
)
def test_what_a_role_would_have_otherwise_is_overridden_for_our_sessions(dsn: str, setting: str) -> None:
    ask(dsn, f"ALTER DATABASE {dsn.split('/')[3].split('?', maxsplit=1)[0]} SET {setting}")

    store = PostgresStore(dsn)

    commit(store, customer(), entry(), batch())
    assert counted(store) == 1
    with store.transaction() as tx:
        assert tx._db.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
        assert tx._db.execute("SHOW statement_timeout").fetchone() == ("0",)
    store.close()


def test_how_a_commit_is_made_durable_is_pinned_when_it_was_looked_at(store: PostgresStore) -> None:
    assert store._db is not None
    found = store._db.execute("SELECT setting, source FROM pg_settings WHERE name = 'synchronous_commit'").fetchone()

    assert found == ("on", "session")


def test_a_database_of_another_encoding_is_refused(dsn: str) -> None:
    name = f"latin_{os.getpid()}"
    postgres.admin(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")

    with pytest.raises(SettingsRefused, match="encoding is LATIN1: create it with ENCODING 'UTF8'"):
        PostgresStore(postgres.dsn_of(name))

    postgres.admin(f"DROP DATABASE {name}")


@pytest.mark.parametrize("seconds", [-60, 60])
def test_a_clock_that_is_far_from_the_databases_is_refused(dsn: str, seconds: int) -> None:
    with pytest.raises(SettingsRefused, match=rf"clock is \{-seconds:+}.0 seconds from this machine's"):
        PostgresStore(dsn, now=lambda: time.time() + seconds)


class Said:
    """Answers the probe with what a database might say that ours does not."""

    def __init__(self, place: int, value: object, version: int = 180_000) -> None:
        self._row: list[object] = ["UTF8", "on", "on", "", False, 0.0]
        self._row[place] = value
        if place == 2:
            self._row[3] = "a_standby"
        self.info = type("Info", (), {"server_version": version})

    def execute(self, *_: Any, **__: Any) -> Any:
        return self

    def fetchone(self) -> list[object]:
        return self._row


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said(1, "off"), "fsync is off"),
        (Said(2, "local"), "synchronous_commit is local although there are synchronous standbys"),
        (Said(4, True), "is a standby, which cannot be written"),
        (Said(0, "UTF8", version=140_010), "PostgreSQL 14 is too old: 15 or newer is needed"),
    ],
    ids=["no sync", "alone", "standby", "old"],
)
def test_a_database_that_could_lose_what_it_was_given_is_refused(said: Any, words: str) -> None:
    with pytest.raises(SettingsRefused, match=words):
        session.probe(said, lambda: 0.0)


def test_a_role_that_may_not_make_tables_is_refused_in_words(dsn: str) -> None:
    role = f"visitor_{os.getpid()}"
    postgres.admin(f"CREATE ROLE {role} LOGIN")

    with pytest.raises(SettingsRefused, match="the role may not do what it must: permission denied"):
        PostgresStore(f"{dsn}&user={role}")

    postgres.admin(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:secret@host/db?nonsense=1",
        "postgresql://user:secret%zz@host/db",
        "postgresql://user:top secret@host/db",
        "postgresql://user:secret/more@localhost/db",
        "postgresql://user:12@secret@localhost/db",
        "host=localhost port=secret",
    ],
)
def test_a_dsn_that_makes_no_sense_is_refused_without_being_repeated(dsn: str) -> None:
    """What is not encoded in a password makes the rest of it a host, a port or nothing: libpq quotes all three."""
    with pytest.raises(SettingsRefused, match="the DSN cannot be read") as refused:
        PostgresStore(dsn)

    assert "secret" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    "dsn", ["host=/nowhere port=", "postgresql:///db?host=/nowhere,/neither&port=5432,5433", "host=@nowhere dbname=x"]
)
def test_a_dsn_that_is_written_otherwise_than_most_is_read_all_the_same(dsn: str) -> None:
    with pytest.raises(StoreUnreachable):
        PostgresStore(dsn)


@pytest.mark.parametrize(("said", "goes_on"), [("", False), ("?sslmode=prefer", True)])
def test_nothing_goes_to_another_machine_in_clear_unless_that_is_asked_for(said: str, *, goes_on: bool) -> None:
    """Somebody on the way says that the database knows no TLS."""
    heard: list[bytes] = []

    def in_between(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(5)
            heard.append(connection.recv(8))
            connection.sendall(b"N")
            heard.append(connection.recv(1024))

    with socket.create_server(("127.0.0.2", 0)) as server, ThreadPoolExecutor(1) as threads:
        listening = threads.submit(in_between, server)
        with pytest.raises(StoreUnreachable):
            PostgresStore(f"postgresql://ada@127.0.0.2:{server.getsockname()[1]}/bank{said}")
        listening.result(5)

    assert heard[0] == SSL_REQUEST
    assert (b"ada" in heard[1]) == goes_on


SSL_REQUEST = bytes.fromhex("0000000804d2162f")


def test_a_database_that_is_not_there_is_out_of_reach() -> None:
    with pytest.raises(StoreUnreachable):
        PostgresStore("host=/nowhere dbname=x")


# --- The schema. ---


def test_every_id_is_compared_byte_by_byte(store: PostgresStore, dsn: str) -> None:
    found = ask(
        dsn,
        "SELECT table_name, column_name, collation_name FROM information_schema.columns"
        " WHERE table_schema IN (%s, %s) AND column_name LIKE '%%\\_id'",
        SCHEMA,
        VAULT_SCHEMA,
    )

    assert len(found) > 12
    assert {collation for _, _, collation in found} == {"C"}


def test_a_newer_schema_is_refused_and_left_as_it_is(store: PostgresStore, dsn: str) -> None:
    store.close()
    ask(dsn, "INSERT INTO migrations VALUES (%s, 'of the future', now())", SCHEMA_VERSION + 1)
    ask(dsn, "DROP TABLE payments")

    with pytest.raises(SchemaTooNew, match=f"schema {SCHEMA_VERSION + 1}; this program knows {SCHEMA_VERSION}"):
        PostgresStore(dsn)
    with pytest.raises(SchemaTooNew):
        PostgresSnapshots(dsn)

    assert ask(dsn, "SELECT to_regclass('payments')") == [(None,)]
    assert ask(dsn, "SELECT owner FROM writers") == [(None,)]


class Killed(Exception):
    pass


class Mortal:
    """A connection whose program is killed at its n-th statement."""

    def __init__(self, inner: session.Connection, statements: int) -> None:
        self._inner = inner
        self._left = statements

    def execute(self, *given: Any, **how: Any) -> Any:
        if not self._left:
            self._inner.close()
            raise Killed
        self._left -= 1
        return self._inner.execute(*given, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_migration_that_is_killed_at_any_step_is_finished_by_the_next(dsn: str) -> None:
    whole = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s ORDER BY 1, 2"
    PostgresStore(dsn).close()
    wanted = ask(dsn, whole, SCHEMA)
    steps = 0

    finished = False
    while not finished:
        ask(dsn, f"DROP SCHEMA {SCHEMA}, {VAULT_SCHEMA} CASCADE" if steps == 0 else f"DROP SCHEMA {SCHEMA} CASCADE")
        ask(dsn, f"DROP SCHEMA IF EXISTS {VAULT_SCHEMA} CASCADE")
        with session.connect(dsn) as connection:
            mortal: Any = Mortal(connection, steps)
            try:
                migrate(mortal)
                finished = True
            except Killed:
                pass
        PostgresStore(dsn).close()
        assert ask(dsn, whole, SCHEMA) == wanted
        steps += 1

    assert steps > 20


@pytest.mark.parametrize("at", ["CREATE SCHEMA IF NOT EXISTS", "CREATE TABLE IF NOT EXISTS"])
@pytest.mark.parametrize("error", [errors.UniqueViolation, errors.DuplicateObject, errors.DuplicateTable])
def test_who_finds_a_table_made_between_looking_and_making_goes_on(
    dsn: str, at: str, error: type[psycopg.Error]
) -> None:
    """What the database calls it depends on how far the other was: it has a name, a type and a row for each."""
    rivals: list[PostgresStore] = []

    def come_second(go: Callable[[], Any]) -> Any:
        if not rivals:
            rivals.append(PostgresStore(dsn))
            raise error
        return go()

    with session.connect(dsn) as connection:
        second: Any = Cut(connection, at, come_second)
        migrate(second)

        assert version_of(connection) == SCHEMA_VERSION
    rivals[0].close()


def test_servers_that_start_at_once_on_an_empty_database_all_serve(dsn: str) -> None:
    stores: list[PostgresStore] = []
    threads = [threading.Thread(target=lambda n=n: stores.append(PostgresStore(dsn, n))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(store.writer for store in stores) == list(range(6))
    for store in stores:
        commit(store, customer(("acme", f"of {store.writer}")))
        store.close()
    assert ask(dsn, "SELECT count(*) FROM customers") == [(6,)]


# --- How it works. ---


def test_a_change_of_a_customer_touches_no_index(store: PostgresStore, dsn: str) -> None:
    """A row of a kilobyte and a half that is written anew finds room on its page."""
    keys = [("acme", f"c{n}") for n in range(100)]
    for sequence in range(1, 11):
        commit(store, *(customer(key, sequence, 7, bytes(1_500)) for key in keys))

    assert store._db is not None
    store._db.execute("SELECT pg_stat_force_next_flush()")
    store._db.execute("SELECT 1")
    ((changed, in_place),) = ask(
        dsn, "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'customers'"
    )
    assert changed == 900
    assert in_place >= 0.9 * changed


@pytest.mark.parametrize(
    "sql",
    [
        transaction._CUSTOMERS,
        transaction._LOCK,
        transaction._LOCK_IF_FREE,
        transaction._REQUESTS,
        transaction._PURCHASES,
        transaction._UPDATE_CUSTOMERS.text,
    ],
)
def test_what_is_asked_about_many_goes_by_key_whatever_the_statistics_say(store: PostgresStore, sql: str) -> None:
    """They say that the tables are empty, and a plan made for that is kept while they grow."""
    arrays = [make([]) for make in transaction._UPDATE_CUSTOMERS.makers[: sql.count("::")]]
    if "requests" in sql or "purchases" in sql:
        arrays = [Texts()] * 3
    assert store._db is not None
    plan = "\n".join(row[0] for row in store._db.execute(f"EXPLAIN {sql}", arrays))

    assert "Index Scan" in plan
    assert "Seq Scan" not in plan
    assert "Hash" not in plan
    assert "Merge" not in plan


@pytest.mark.parametrize(
    ("question", "end"),
    [
        (lambda s: s.entries_before(0, position=10, limit=5, tenant_id="t", tag=2), "<"),
        (lambda s: s.entries_by_position(0, after=10, limit=5, tenant_id="t", tag=2), ">"),
    ],
    ids=["backwards", "forwards"],
)
def test_a_page_of_a_tenants_journal_reads_no_other_tenants_entries_and_sorts_nothing(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, question: Callable[[PostgresSnapshot], object], end: str
) -> None:
    asked: list[tuple[str, tuple[Any, ...]]] = []
    with store.snapshot() as snapshot:

        def note(sql: str, given: tuple[Any, ...]) -> list[tuple[Any, ...]]:
            asked.append((sql, given))
            return []

        monkeypatch.setattr(snapshot, "_all", note)
        question(snapshot)

        ((sql, given),) = asked
        plan = "\n".join(row[0] for row in snapshot._db.execute(f"EXPLAIN {sql}", given))

    assert "entries_by_tag" in plan
    assert f'"position" {end} ' in plan
    assert "Sort" not in plan
    assert "Filter" not in plan


def test_what_is_asked_of_one_tag_reads_no_other_entry(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every start would read the whole journal."""
    commit(store, customer(ADA), entry(1, 1, ADA), batch(1, 1, 1))
    asked: list[tuple[str, tuple[Any, ...]]] = []
    with store.snapshot() as snapshot:
        answer = snapshot._all

        def note(sql: str, given: tuple[Any, ...]) -> list[tuple[Any, ...]]:
            asked.append((sql, given))
            return answer(sql, given)

        monkeypatch.setattr(snapshot, "_all", note)
        list(snapshot.marked(2))

        plans = ["\n".join(row[0] for row in snapshot._db.execute(f"EXPLAIN {sql}", given)) for sql, given in asked]

    assert len(plans) == 3
    for plan in plans:
        assert "Index" in plan
        assert "Seq Scan" not in plan
        assert "Sort" not in plan
        assert "Filter" not in plan
