"""A migration is done or not done, whenever the process that does it is killed; and an old program touches nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from riskgate_server.stores.postgres import described, session
from riskgate_server.stores.postgres import schema as postgres_schema
from riskgate_server.stores.postgres.store import PostgresSnapshots, PostgresStore
from riskgate_server.stores.refusals import SchemaTooNew
from riskgate_server.stores.sqlite import schema as sqlite_schema
from riskgate_server.stores.sqlite.snapshots import SQLiteSnapshots
from riskgate_server.stores.sqlite.store import SQLiteStore
from tests import postgres
from tests.contract.expected import FILE
from tests.contract.expected import fresh as described_fresh
from tests.contract.rows import batch, commit, customer, entry, payment, purchase, request
from tests.contract.sessions import ask, until

FURTHER: Final = (
    (
        "made up",
        """CREATE TABLE made_up (id integer PRIMARY KEY, what text NOT NULL DEFAULT '');
        INSERT INTO made_up (id) VALUES (1), (2); UPDATE made_up SET what = 'changed' WHERE id = 2""",
    ),
    ("made up and changed", "ALTER TABLE made_up ADD COLUMN more text; CREATE INDEX made_up_what ON made_up (what)"),
)
"""Steps of a program that is not written yet."""

INSIDE, AFTER = "inside", "after"


def killed(work: Callable[[], None]) -> bool:
    """Do it in a process of its own; True if that was killed, False if it came to its end."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that knows more than this one."""
    for schema in (sqlite_schema, postgres_schema):
        steps = (*schema.MIGRATIONS, *FURTHER)
        monkeypatch.setattr(schema, "MIGRATIONS", steps)
        monkeypatch.setattr(schema, "SCHEMA_VERSION", len(steps))


# --- Files. ---


class MortalFile(sqlite3.Connection):
    """A connection whose process is killed inside its n-th statement, or right after it."""

    moment = AFTER
    left = 0

    def execute(self, *given: Any) -> Any:
        if self.left:
            self.left -= 1
            return super().execute(*given)
        if self.moment == INSIDE:
            self.set_progress_handler(die, 1)
        super().execute(*given)
        return die()


def objects(path: Path) -> tuple[int, list[Any]]:
    """The version of a file, and everything in it."""
    with closing(sqlite3.connect(path)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        schema = db.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2").fetchall()
        tables = [name for kind, name, _ in schema if kind == "table" and not name.startswith("_")]
        return version, [schema, [db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]]


def of_first_schema(path: Path) -> None:
    """A file as the first program left it, with rows that a later step moves elsewhere."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        sqlite_schema.migrate(old, upto=1)
        who = "'acme', 'ada'"
        old.execute(f"INSERT INTO purchases VALUES ({who}, 'open', 7, 0, x'01'), ({who}, 'owed', 0, 3, x'02')")
        old.execute(f"INSERT INTO payments VALUES ({who}, 'p1', x'03')")
        old.execute(f"INSERT INTO requests VALUES ({who}, 'r1', x'aa', 1, 10, x'bb')")


@pytest.mark.parametrize("begun", [False, True], ids=["from nothing", "from the first"])
@pytest.mark.parametrize("moment", [INSIDE, AFTER])
@pytest.mark.usefixtures("newer")
def test_a_file_whose_migration_is_killed_at_any_statement_has_each_step_whole_or_not_at_all(
    tmp_path: Path, moment: str, *, begun: bool
) -> None:
    path = tmp_path / "riskgate.db"
    steps = len(sqlite_schema.MIGRATIONS)
    whole: dict[int, list[Any]] = {}
    for version in range(begun, steps + 1):
        path.unlink(missing_ok=True)
        if begun:
            of_first_schema(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            sqlite_schema.migrate(db, upto=version)
        whole[version] = objects(path)[1]
    seen: list[int] = []

    while True:
        path.unlink()
        if begun:
            of_first_schema(path)

        def work() -> None:
            mortal = sqlite3.connect(path, isolation_level=None, factory=MortalFile)
            mortal.moment, mortal.left = moment, len(seen)
            sqlite_schema.migrate(mortal)

        if not killed(work):
            break
        version, found = objects(path)
        # What keeps count may be there before the first step is.
        assert version == 0 or found == whole[version], len(seen)
        seen.append(version)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            sqlite_schema.migrate(db)
        assert objects(path) == (steps, whole[steps]), len(seen)

    assert set(seen) >= set(range(begun, steps))
    assert len(seen) > 25


def make_newer_file(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        commit(store, customer(), purchase(), payment(), request(), entry(), batch())
        # Killed: what it wrote last is in the log alone.
        die()


def test_an_old_program_refuses_a_newer_file_and_leaves_every_byte_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "riskgate.db"
    known = sqlite_schema.MIGRATIONS
    for name, value in (("MIGRATIONS", (*known, *FURTHER)), ("SCHEMA_VERSION", len(known) + 2)):
        monkeypatch.setattr(sqlite_schema, name, value)
    assert killed(lambda: make_newer_file(path))
    monkeypatch.undo()

    def hashes() -> list[str]:
        return [sha256(Path(f"{path}{suffix}").read_bytes()).hexdigest() for suffix in ("", "-wal")]

    before = hashes()
    for opening in (SQLiteStore, SQLiteSnapshots):
        with pytest.raises(SchemaTooNew, match=f"schema {len(known) + 2}; this program knows {len(known)}"):
            opening(path)

    assert hashes() == before
    assert Path(f"{path}-wal").stat().st_size > 0


# --- A database. ---


class MortalSession:
    """As `MortalFile`. Inside a statement is when it was sent and nobody is there for its answer."""

    def __init__(self, inner: session.Connection, statements: int, moment: str) -> None:
        self._inner = inner
        self._left = statements
        self._moment = moment

    def execute(self, sql: str, given: tuple[Any, ...] = (), **how: Any) -> Any:
        if self._left:
            self._left -= 1
            return self._inner.execute(sql, given, **how)
        if self._moment == INSIDE:
            self._inner.pgconn.send_query_params(sql.encode(), [str(value).encode() for value in given])
        else:
            self._inner.execute(sql, given, **how)
        return die()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def everything(dsn: str) -> tuple[int, dict[str, str], list[Any]]:
    """The version of a database, its description, and every row of every table but who serves it."""
    with psycopg.connect(dsn, autocommit=True) as db:
        found = dict(described.describe(db))
        tables = sorted(name.split()[1] for name in found if name.startswith("table "))
        rows = [db.execute(f"SELECT t::text FROM {table} AS t ORDER BY 1").fetchall() for table in tables]
        return postgres_schema.version_of(db), found, rows


def gone(dsn: str) -> bool:
    name = dsn.split("/")[3].split("?", maxsplit=1)[0]
    return not postgres.admin("SELECT 1 FROM pg_stat_activity WHERE datname = %s", name)


def emptied(dsn: str) -> None:
    until(lambda: gone(dsn))
    ask(dsn, "SET client_min_messages = warning; DROP SCHEMA IF EXISTS riskgate, vault CASCADE")


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    return postgres.database(tmp_path)


@pytest.mark.parametrize("moment", [INSIDE, AFTER])
@pytest.mark.usefixtures("newer")
def test_a_database_whose_migration_is_killed_at_any_statement_has_each_step_whole_or_not_at_all(
    dsn: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = postgres_schema.MIGRATIONS
    whole: dict[int, dict[str, str]] = {}
    for version in range(1, len(steps) + 1):
        emptied(dsn)
        with pytest.MonkeyPatch.context() as patch, session.connect(dsn) as connection:
            patch.setattr(postgres_schema, "MIGRATIONS", steps[:version])
            postgres_schema.migrate(connection)
        whole[version] = everything(dsn)[1]
    seen: list[int] = []

    while True:
        emptied(dsn)

        def work() -> None:
            mortal: Any = MortalSession(session.connect(dsn), len(seen), moment)
            postgres_schema.migrate(mortal)

        if not killed(work):
            break
        until(lambda: gone(dsn))
        version, found, _ = everything(dsn)
        assert version == 0 or found == whole[version], len(seen)
        seen.append(version)
        with session.connect(dsn) as connection:
            postgres_schema.migrate(connection)
        assert everything(dsn)[:2] == (len(steps), whole[len(steps)]), len(seen)

    assert set(seen) >= set(range(len(steps)))
    assert len(seen) > 30


def test_an_old_program_refuses_a_newer_database_and_leaves_every_row_of_it(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = postgres_schema.MIGRATIONS
    for name, value in (("MIGRATIONS", (*known, *FURTHER)), ("SCHEMA_VERSION", len(known) + 2)):
        monkeypatch.setattr(postgres_schema, name, value)
    with closing(PostgresStore(dsn)) as store:
        commit(store, customer(), purchase(), payment(), request(), entry(), batch())
    monkeypatch.undo()

    before = everything(dsn)
    for opening in (PostgresStore, PostgresSnapshots):
        with pytest.raises(SchemaTooNew, match=f"schema {len(known) + 2}; this program knows {len(known)}"):
            opening(dsn)

    assert everything(dsn) == before


# --- What a database should be like. ---

TRIGGER: Final = (
    "CREATE TRIGGER x BEFORE UPDATE ON riskgate.entries FOR EACH ROW"
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
)


def test_what_is_expected_of_a_database_is_what_the_migrations_make(dsn: str) -> None:
    """Else: `make schema`."""
    assert described_fresh(dsn) == FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "broken", "foreign"),
    [
        ("SELECT", None, None),
        ("DROP TABLE riskgate.payments", "lacks table riskgate.payments", None),
        ("ALTER TABLE riskgate.customers DROP COLUMN profile", "lacks column riskgate.customers.profile", None),
        ("ALTER TABLE vault.keys ALTER wrapped DROP NOT NULL", "has another column vault.keys.wrapped", None),
        ("ALTER TABLE riskgate.entries ALTER at_us SET DEFAULT 0", "has another column riskgate.entries.at_us", None),
        ("ALTER TABLE riskgate.entries SET UNLOGGED", "has another table riskgate.entries", None),
        ("DROP INDEX riskgate.purchases_owed", "lacks index riskgate.purchases_owed", None),
        ("ALTER TABLE riskgate.batches DROP CONSTRAINT batches_pkey", "lacks index riskgate.batches_pkey", None),
        ("CREATE TABLE riskgate.notes (id int)", None, "table riskgate.notes"),
        ("CREATE VIEW riskgate.v AS SELECT 1", None, "table riskgate.v"),
        ("ALTER TABLE riskgate.customers ADD COLUMN more int", None, "column riskgate.customers.more"),
        (
            TRIGGER,
            None,
            "trigger riskgate.entries.x",
        ),
        ("CREATE RULE r AS ON DELETE TO riskgate.entries DO INSTEAD NOTHING", None, "rule riskgate.entries.r"),
        ("ALTER TABLE riskgate.customers SET (fillfactor = 90)", None, None),
        ("CREATE TABLE public.theirs (id int); DROP TABLE public.theirs", None, None),
    ],
)
def test_a_schema_that_is_another_than_it_should_be_is_described(
    dsn: str, change: str, broken: str | None, foreign: str | None
) -> None:
    PostgresStore(dsn).close()
    ask(dsn, change)

    with closing(PostgresSnapshots(dsn)) as snapshots:
        found = snapshots.schema_differences()

    for said, wanted in zip(found, (broken, foreign and f"has a foreign {foreign}"), strict=True):
        assert any(each == f"the schema {wanted}" for each in said) if wanted else not said, found
