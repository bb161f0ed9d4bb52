"""A PostgreSQL server for the tests: started at its first use, one for the whole session, a clean database per test."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final

import psycopg
from scripts.own_postgres import start

from riskgate_server.stores.postgres.schema import SCHEMA, VAULT_SCHEMA

_numbers: Final = count(1)
_given: Final[dict[Path, str]] = {}
_clean: Final[list[str]] = []


@cache
def _server() -> Any:
    # A socket's path may have about a hundred characters: pytest's own folders are longer.
    folder = tempfile.mkdtemp(prefix="rgpg")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return start(Path(folder) / "data")


@cache
def _admin() -> psycopg.Connection[Any]:
    connection = psycopg.connect(_server().get_uri(), autocommit=True)
    atexit.register(connection.close)
    return connection


def admin(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Ask the server something as its superuser, outside every test's database."""
    done = _admin().execute(statement, parameters)
    return done.fetchall() if done.description else []


def dsn_of(name: str) -> str:
    return str(_server().get_uri(name))


def database(folder: Path) -> str:
    """Return the DSN of the database that stands for a folder: an empty one at first, the same one ever after."""
    name = _given.get(folder)
    if name is None:
        if not _clean:
            _clean.append(f"test_{os.getpid()}_{next(_numbers)}")
            admin(f"CREATE DATABASE {_clean[-1]} ENCODING 'UTF8' TEMPLATE template0")
        name = _given[folder] = _clean.pop()
    return dsn_of(name)


def give_back(folder: Path) -> None:
    """Empty a folder's database for the next test: a tenth of the work of making another."""
    name = _given.pop(folder, None)
    if name is None:
        return
    admin("SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname = %s", name)
    admin(f"ALTER DATABASE {name} RESET ALL")
    with psycopg.connect(dsn_of(name), autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA}, {VAULT_SCHEMA} CASCADE")
    _clean.append(name)
