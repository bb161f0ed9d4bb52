"""What a move copies, and what it does not for a reason; how places are named and compared."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from riskgate_server.cli.init import initialise
from riskgate_server.datadir import DataDirectory
from riskgate_server.stores.moves import NOT_COPIED, NOT_COPIED_COLUMNS, TABLES, Tally
from riskgate_server.stores.postgres import moves as postgres_moves
from riskgate_server.stores.postgres.moves import place_name
from riskgate_server.stores.postgres.schema import SCHEMA, VAULT_SCHEMA
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.sqlite import moves as sqlite_moves
from tests import postgres
from tests.contract.sessions import ask


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    """A database without a table."""
    return postgres.database(tmp_path)


def test_every_table_of_a_database_is_copied_with_all_its_columns_or_stays_for_a_reason(dsn: str) -> None:
    PostgresStore(dsn).close()
    found = ask(
        dsn,
        "SELECT table_name, array_agg(column_name::text ORDER BY column_name), "
        " array_agg(data_type::text ORDER BY column_name)"
        " FROM information_schema.columns WHERE table_schema IN (%s, %s) GROUP BY 1",
        SCHEMA,
        VAULT_SCHEMA,
    )

    assert {name for name, _, _ in found} == {*TABLES, *NOT_COPIED}
    kinds = {"text": postgres_moves._TEXTS, "bytea": postgres_moves._BLOBS}
    for name, columns, types in found:
        if name in TABLES:
            assert {*TABLES[name].columns, *NOT_COPIED_COLUMNS.get(name, ())} == set(columns), name
            for column, kind in zip(columns, types, strict=True):
                assert column in kinds.get(kind, (column,)), (name, column, kind)


def test_every_table_of_files_is_copied_with_all_its_columns_or_stays_for_a_reason(tmp_path: Path) -> None:
    initialise(tmp_path / "data", names=(), tenant="acme")
    directory = DataDirectory(tmp_path / "data")
    found: dict[str, list[str]] = {}
    for path in (directory.store, directory.vault):
        with closing(sqlite3.connect(path)) as db:
            for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                found[name] = [column[1] for column in db.execute(f"PRAGMA table_info({name})")]
    del found["_sqlite_migrations"]

    assert {*sqlite_moves.PARTS} <= set(found) <= {*sqlite_moves.PARTS, *NOT_COPIED}
    for name, part in sqlite_moves.PARTS.items():
        assert sorted(part.columns) == sorted(found[name]), name


def test_a_tally_tells_other_rows_and_does_not_ask_for_an_order() -> None:
    rows = [("a", 1, b"x"), ("b", 2, b"y"), ("b", 2, b"y")]

    assert Tally().plus(rows) == Tally().plus(rows[:1]).plus(reversed(rows[1:]))
    assert Tally().plus(rows) != Tally().plus([rows[0], rows[0], rows[1]])
    assert Tally().plus([("a", "b")]) != Tally().plus([("ab", "")])


def test_the_name_of_a_database_keeps_its_password() -> None:
    assert place_name("postgresql://ada:secret@db.example:6432/credit") == "postgresql://db.example:6432/credit"


def test_the_name_of_a_database_is_where_it_is_whatever_said_so(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read elsewhere, or with another environment, it still names that one."""
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER"):
        monkeypatch.delenv(name, raising=False)
    assert place_name("postgresql://db.example:5432/credit") == "postgresql://db.example/credit"
    assert place_name("postgresql://a:6432,b/credit") == place_name("host=a,b port=6432,5432 dbname=credit")
    assert place_name("postgresql://a:6432,b/credit") == "postgresql://a:6432,b/credit"
    assert place_name("postgresql:///credit?host=/run/db&port=6432") == "postgresql:///credit?host=/run/db&port=6432"

    with psycopg.connect(dsn) as db:
        socket, port, database = db.info.host, db.info.port, db.info.dbname
    monkeypatch.setenv("PGHOST", socket)
    monkeypatch.setenv("PGPORT", str(port))
    with psycopg.connect(f"{place_name(f'postgresql:///{database}')}&user=postgres") as db:
        assert (db.info.host, db.info.port, db.info.dbname) == (socket, port, database)
