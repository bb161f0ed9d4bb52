"""What tests do to a PostgreSQL database behind a store's back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg

from riskgate_server.stores.postgres.schema import SCHEMA
from riskgate_server.stores.postgres.store import PostgresStore
from tests import postgres


def ask(dsn: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Ask the database something from outside, in the store's schema."""
    with psycopg.connect(dsn, autocommit=True, options=f"-c search_path={SCHEMA}") as connection:
        done = connection.execute(statement, parameters)
        return done.fetchall() if done.description else []


def counted(store: PostgresStore) -> int:
    with store.snapshot() as snapshot:
        return snapshot.counts()["customers"]


def kill(store: PostgresStore) -> None:
    """End the session that writes, as an operator or a server that stops would."""
    assert store._db is not None
    postgres.admin("SELECT pg_terminate_backend(%s, 5000)", store._db.info.backend_pid)


def until(met: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not met():
        assert time.monotonic() < ends


class Cut:
    """A connection on which something happens at a statement."""

    def __init__(self, inner: Any, at: str, happen: Callable[[Callable[[], Any]], Any]) -> None:
        self._inner = inner
        self._at = at
        self._happen = happen
        self.asked: list[str] = []

    def execute(self, sql: str, *given: Any, **how: Any) -> Any:
        self.asked.append(sql)

        def go() -> Any:
            return self._inner.execute(sql, *given, **how)

        return self._happen(go) if sql.startswith(self._at) else go()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def fail_with(error: psycopg.Error) -> Callable[[Callable[[], Any]], Any]:
    def happen(_: Callable[[], Any]) -> Any:
        raise error

    return happen
