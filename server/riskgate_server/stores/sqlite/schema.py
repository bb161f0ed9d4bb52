"""
The tables of riskgate.db, as numbered migrations.

Every key of a customer's row leads with (tenant_id, customer_id), the key a distributed database
would place it by. Rows of a few hundred bytes cluster under that key (WITHOUT ROWID), so that most of what one
decision changes lies on one page; bigger rows and the append-only journal have a rowid and an index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from riskgate_server.stores.refusals import SchemaTooNew

if TYPE_CHECKING:
    from sqlite_utils import Database

_COUNTED_IN: Final = "_sqlite_migrations"
_FIRST: Final = """
CREATE TABLE customers (
  tenant_id TEXT NOT NULL, customer_id TEXT NOT NULL,
  sequence INTEGER NOT NULL, next_lapse_us INTEGER NOT NULL,
  state BLOB NOT NULL, profile BLOB NOT NULL,
  PRIMARY KEY (tenant_id, customer_id)
) STRICT;
CREATE INDEX customers_by_lapse ON customers (next_lapse_us) WHERE next_lapse_us > 0;

CREATE TABLE purchases (
  tenant_id TEXT NOT NULL, customer_id TEXT NOT NULL, transaction_id TEXT NOT NULL,
  lapses_us INTEGER NOT NULL, owed_since INTEGER NOT NULL, state BLOB NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, transaction_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX purchases_by_lapse ON purchases (tenant_id, customer_id, lapses_us) WHERE lapses_us > 0;
CREATE INDEX purchases_owed ON purchases (tenant_id, customer_id, owed_since) WHERE owed_since > 0;

CREATE TABLE payments (
  tenant_id TEXT NOT NULL, customer_id TEXT NOT NULL, payment_id TEXT NOT NULL,
  state BLOB NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, payment_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE requests (
  tenant_id TEXT NOT NULL, customer_id TEXT NOT NULL, request_id TEXT NOT NULL,
  fingerprint BLOB NOT NULL, sequence INTEGER NOT NULL, at_us INTEGER NOT NULL, reply BLOB NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_with_reply ON requests (at_us) WHERE reply != x'';

CREATE TABLE entries (
  position INTEGER PRIMARY KEY,
  tenant_id TEXT NOT NULL, customer_id TEXT NOT NULL, sequence INTEGER NOT NULL,
  batch INTEGER NOT NULL, at_us INTEGER NOT NULL, tag INTEGER NOT NULL, request_id TEXT NOT NULL,
  clear BLOB NOT NULL, nonce BLOB NOT NULL, sealed BLOB NOT NULL, hash BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX entries_by_customer ON entries (tenant_id, customer_id, sequence);

CREATE TABLE batches (
  sequence INTEGER PRIMARY KEY, at_us INTEGER NOT NULL,
  first_position INTEGER NOT NULL, count INTEGER NOT NULL, root BLOB NOT NULL, hash BLOB NOT NULL
) STRICT;

CREATE TABLE rulesets (
  hash BLOB PRIMARY KEY, source TEXT NOT NULL, at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

_SECOND: Final = """
CREATE TABLE records (
  tenant_id TEXT NOT NULL, customer_id TEXT NOT NULL, kind INTEGER NOT NULL, id TEXT NOT NULL,
  lapses_us INTEGER, owed_since INTEGER,
  fingerprint BLOB, sequence INTEGER, at_us INTEGER,
  state BLOB NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, kind, id)
) STRICT, WITHOUT ROWID;
INSERT INTO records (tenant_id, customer_id, kind, id, fingerprint, sequence, at_us, state)
  SELECT tenant_id, customer_id, 0, request_id, fingerprint, sequence, at_us, reply FROM requests;
INSERT INTO records (tenant_id, customer_id, kind, id, lapses_us, owed_since, state)
  SELECT tenant_id, customer_id, iif(lapses_us > 0, 1, 2), transaction_id, lapses_us, owed_since, state FROM purchases;
INSERT INTO records (tenant_id, customer_id, kind, id, state)
  SELECT tenant_id, customer_id, 3, payment_id, state FROM payments;
DROP TABLE requests;
DROP TABLE purchases;
DROP TABLE payments;
CREATE INDEX records_owed ON records (tenant_id, customer_id, owed_since) WHERE owed_since > 0;
CREATE INDEX records_with_reply ON records (at_us) WHERE kind = 0 AND state != x'';
CREATE INDEX entries_by_tag ON entries (tenant_id, tag);
"""
"""
What a customer's ids stand for lies in one place (`Kind`), and open holds together: a decision writes a page of it.
And a tenant pages through its own decisions, however much others have written: rows of an index lie by position.
"""

_THIRD: Final = """
CREATE TABLE identities (
  tenant_id TEXT NOT NULL, customer_id TEXT NOT NULL, state BLOB NOT NULL,
  PRIMARY KEY (tenant_id, customer_id)
) STRICT;
CREATE TABLE scopes (
  tenant_id TEXT NOT NULL, kind INTEGER NOT NULL, id BLOB NOT NULL, state BLOB NOT NULL,
  PRIMARY KEY (tenant_id, kind, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE messages (
  tenant_id TEXT NOT NULL, customer_id TEXT NOT NULL, message_id TEXT NOT NULL,
  due_us INTEGER NOT NULL, sealed BLOB NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, message_id)
) STRICT;
CREATE INDEX messages_by_due ON messages (due_us);
"""
"""What a customer proves themselves with, apart: a purchase without a proof reads none of it."""

_FOURTH: Final = """
CREATE TABLE moves (id INTEGER PRIMARY KEY CHECK (id = 1), mark TEXT NOT NULL) STRICT;
"""
"""Whether the store is being copied, was moved away, or is a copy itself (`stores/moves.py`)."""

MIGRATIONS: Final = (
    ("m001_first", _FIRST),
    ("m002_records_of_a_customer", _SECOND),
    ("m003_identities", _THIRD),
    ("m004_moves", _FOURTH),
)

SCHEMA_VERSION: Final = len(MIGRATIONS)
"""The number of the last migration this program knows; stored as PRAGMA user_version."""


class Kind(IntEnum):
    """What an id of a customer's records stands for."""

    REQUEST = 0
    OPEN_PURCHASE = 1
    """With an open hold. Few at a time, so that the next to lapse is found without an index of its own."""
    PURCHASE = 2
    PAYMENT = 3


def refuse_newer(path: Path) -> None:
    """
    Look at the file without a trace: opening it to write would already tidy up after a newer program's crash.

    Raises:
        SchemaTooNew: the file is newer than this program.
    """
    if not path.exists():
        return
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    finally:
        connection.close()
    if version > SCHEMA_VERSION:
        message = f"the database has schema {version}; this program knows {SCHEMA_VERSION}"
        raise SchemaTooNew(message)


def differences(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """
    Compare the schema with the one a fresh file gets.

    Returns what is missing or altered, so that nothing can be said of the rows, and what was added: a trigger acts
    in the writer's name.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        return [f"the schema is of version {version}, not {SCHEMA_VERSION}"], []
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        migrate(fresh)
        wanted = _objects(fresh)
    found = _objects(connection)
    broken = [f"the schema lacks {_named(o)}" for o in sorted(wanted.keys() - found.keys())]
    broken += [f"the schema has another {_named(o)}" for o in sorted(wanted) if found.get(o, wanted[o]) != wanted[o]]
    return broken, [f"the schema has a foreign {_named(o)}" for o in sorted(found.keys() - wanted.keys())]


def _objects(connection: sqlite3.Connection) -> dict[tuple[str, str], str | None]:
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()
    # Who keeps count of the migrations writes its own table as it likes.
    return {(kind, name): None if name == _COUNTED_IN else sql for kind, name, sql in rows}


def _named(schema_object: tuple[str, str]) -> str:
    return " ".join(schema_object)


def migrate(connection: sqlite3.Connection, *, upto: int | None = None) -> None:
    """Bring the tables up to a version, the last unless given; each step commits with its record or leaves no trace."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    wanted = MIGRATIONS[:upto]
    if version >= len(wanted):
        return
    # sqlite-utils takes a fifth of a second to import: only a migration pays for it.
    from sqlite_utils import Database, Migrations  # noqa: PLC0415

    migrations = Migrations("riskgate")
    for number, (name, statements) in enumerate(wanted, 1):
        migrations(name=name)(_step(statements, version=number))
    db = Database(connection)
    # By itself it would make a table, and then its index: a kill in between would leave the table alone for good.
    with db.atomic():
        migrations.ensure_migrations_table(db)
    migrations.apply(db)


def _step(statements: str, *, version: int) -> Callable[[Database], None]:
    def run(db: Database) -> None:
        for statement in statements.split(";"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {version}")

    return run
