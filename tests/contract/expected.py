"""Writes down what the migrations make in a fresh database: `make schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg

from riskgate_server.stores.postgres import described
from riskgate_server.stores.postgres.store import PostgresStore
from tests import postgres

FILE: Final = Path(described.__file__).with_name(described.EXPECTED)


def fresh(dsn: str) -> str:
    """Make the tables in an empty database and return their description."""
    PostgresStore(dsn).close()
    with psycopg.connect(dsn) as connection:
        return described.as_text(described.describe(connection))


if __name__ == "__main__":
    FILE.write_text(fresh(postgres.database(Path("expected"))), encoding="utf-8")
