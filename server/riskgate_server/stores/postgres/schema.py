"""
The tables, as numbered migrations.

Every primary or unique key leads with the key its table is placed by: (tenant_id, customer_id) for what belongs to a
customer, the writer for what belongs to a lane; two small tables are the same everywhere (`SHARD_KEYS`). Nothing here
needs one machine to hold all rows: no sequence, trigger, foreign key or deferred constraint.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import errors

from riskgate_server.stores.refusals import SchemaTooNew

SCHEMA: Final = "riskgate"
VAULT_SCHEMA: Final = "vault"

_FIRST: Final = """
CREATE TABLE customers (
  tenant_id text COLLATE "C" NOT NULL, customer_id text COLLATE "C" NOT NULL,
  sequence bigint NOT NULL, next_lapse_us bigint NOT NULL,
  state bytea NOT NULL, profile bytea NOT NULL,
  PRIMARY KEY (tenant_id, customer_id)
) WITH (fillfactor = 60, toast_tuple_target = 4000, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE customers ALTER state SET STORAGE EXTERNAL, ALTER profile SET STORAGE EXTERNAL;
CREATE INDEX customers_by_lapse ON customers (next_lapse_us, tenant_id, customer_id) WHERE next_lapse_us > 0;

CREATE TABLE purchases (
  tenant_id text COLLATE "C" NOT NULL, customer_id text COLLATE "C" NOT NULL,
  transaction_id text COLLATE "C" NOT NULL,
  lapses_us bigint NOT NULL, owed_since bigint NOT NULL, state bytea NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, transaction_id)
) WITH (fillfactor = 90);
CREATE INDEX purchases_by_lapse ON purchases (tenant_id, customer_id, lapses_us) WHERE lapses_us > 0;
CREATE INDEX purchases_owed ON purchases (tenant_id, customer_id, owed_since) WHERE owed_since > 0;

CREATE TABLE payments (
  tenant_id text COLLATE "C" NOT NULL, customer_id text COLLATE "C" NOT NULL, payment_id text COLLATE "C" NOT NULL,
  state bytea NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, payment_id)
);

CREATE TABLE requests (
  tenant_id text COLLATE "C" NOT NULL, customer_id text COLLATE "C" NOT NULL, request_id text COLLATE "C" NOT NULL,
  fingerprint bytea NOT NULL, sequence bigint NOT NULL, at_us bigint NOT NULL, reply bytea NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, request_id)
);
CREATE INDEX requests_with_reply ON requests (at_us) WHERE reply <> '';

CREATE TABLE entries (
  tenant_id text COLLATE "C" NOT NULL, customer_id text COLLATE "C" NOT NULL, sequence bigint NOT NULL,
  writer smallint NOT NULL, position bigint NOT NULL, batch bigint NOT NULL,
  at_us bigint NOT NULL, tag integer NOT NULL, request_id text COLLATE "C" NOT NULL,
  clear bytea NOT NULL, nonce bytea NOT NULL, sealed bytea NOT NULL, hash bytea NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, sequence)
) WITH (toast_tuple_target = 8000);
ALTER TABLE entries ALTER clear SET STORAGE EXTERNAL, ALTER sealed SET STORAGE EXTERNAL;
CREATE INDEX entries_by_position ON entries (writer, position);
CREATE INDEX entries_by_tag ON entries (tenant_id, tag, writer, position);

CREATE TABLE batches (
  writer smallint NOT NULL, sequence bigint NOT NULL, at_us bigint NOT NULL,
  first_position bigint NOT NULL, count bigint NOT NULL, root bytea NOT NULL, hash bytea NOT NULL,
  PRIMARY KEY (writer, sequence)
);

CREATE TABLE writers (
  writer smallint PRIMARY KEY,
  sequence bigint NOT NULL DEFAULT 0, at_us bigint NOT NULL DEFAULT 0, first_position bigint NOT NULL DEFAULT 0,
  count bigint NOT NULL DEFAULT 0, root bytea NOT NULL DEFAULT '', hash bytea NOT NULL DEFAULT '',
  position bigint NOT NULL DEFAULT 0,
  owner uuid, holder text NOT NULL DEFAULT '', lease_until timestamptz NOT NULL DEFAULT '-infinity',
  backend_pid integer NOT NULL DEFAULT 0, backend_start timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10);

CREATE TABLE rulesets (
  hash bytea PRIMARY KEY, source text NOT NULL, at_us bigint NOT NULL
);

CREATE SCHEMA vault;
CREATE TABLE vault.proof (
  id smallint PRIMARY KEY CHECK (id = 1), wrapped bytea NOT NULL
);
CREATE TABLE vault.keys (
  tenant_id text COLLATE "C" NOT NULL, customer_id text COLLATE "C" NOT NULL, wrapped bytea NOT NULL,
  PRIMARY KEY (tenant_id, customer_id)
)
"""
"""
A customer's row is written anew by every decision: the page keeps room for it, so that no index changes. What is sealed
is not worth compressing. `writers` is one row per lane, changed by every commit.
"""

_SECOND: Final = """
CREATE TABLE identities (
  tenant_id text COLLATE "C" NOT NULL, customer_id text COLLATE "C" NOT NULL, state bytea NOT NULL,
  PRIMARY KEY (tenant_id, customer_id)
);
ALTER TABLE identities ALTER state SET STORAGE EXTERNAL;
CREATE TABLE scopes (
  tenant_id text COLLATE "C" NOT NULL, kind smallint NOT NULL, id bytea NOT NULL, state bytea NOT NULL,
  PRIMARY KEY (tenant_id, kind, id)
) WITH (fillfactor = 60);
CREATE TABLE messages (
  tenant_id text COLLATE "C" NOT NULL, customer_id text COLLATE "C" NOT NULL, message_id text COLLATE "C" NOT NULL,
  due_us bigint NOT NULL, sealed bytea NOT NULL,
  PRIMARY KEY (tenant_id, customer_id, message_id)
);
CREATE INDEX messages_by_due ON messages (due_us, tenant_id, customer_id, message_id)
"""
"""What a customer proves themselves with, apart; and what concerns several customers, placed by a key of its own."""

_LEASES: Final = "ALTER TABLE messages ADD leased_until timestamptz NOT NULL DEFAULT '-infinity'"
"""Which process sends a message, by the database's clock."""

_PROCESSES: Final = """
ALTER TABLE customers ADD forgotten boolean NOT NULL DEFAULT false;
CREATE TABLE jobs (
  job text COLLATE "C" PRIMARY KEY, owner uuid NOT NULL, lease_until timestamptz NOT NULL
) WITH (fillfactor = 10)
"""
"""What processes tell each other: whose key was destroyed, and who does a periodic job."""

_MOVES: Final = "CREATE TABLE moves (id smallint PRIMARY KEY CHECK (id = 1), mark text NOT NULL)"
"""Whether the store is being copied, was moved away, or is a copy itself (`stores/moves.py`)."""

MIGRATIONS: Final = (
    ("first", _FIRST),
    ("identities", _SECOND),
    ("leases of messages", _LEASES),
    ("processes", _PROCESSES),
    ("moves", _MOVES),
)

SCHEMA_VERSION: Final = len(MIGRATIONS)
"""The number of the last migration this program knows."""

_CUSTOMERS_KEY: Final = ("tenant_id", "customer_id")
SHARD_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "customers": _CUSTOMERS_KEY,
    "purchases": _CUSTOMERS_KEY,
    "payments": _CUSTOMERS_KEY,
    "requests": _CUSTOMERS_KEY,
    "entries": _CUSTOMERS_KEY,
    "keys": _CUSTOMERS_KEY,
    "identities": _CUSTOMERS_KEY,
    "messages": _CUSTOMERS_KEY,
    "scopes": ("tenant_id", "kind", "id"),
    "batches": ("writer",),
    "writers": ("writer",),
    "jobs": ("job",),
    "rulesets": (),
    "proof": (),
    "migrations": (),
    "moves": (),
}
"""By which columns a distributed database would place each table; a copy everywhere of those without."""

_RECORD: Final = "(version integer PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL)"
_RACES: Final = (errors.UniqueViolation, errors.DuplicateSchema, errors.DuplicateTable, errors.DuplicateObject)
"""What is found made that was not there a moment ago. The last is the type that comes with a table."""


def version_of(connection: psycopg.Connection[Any]) -> int:
    """Return the number of the last migration that was done; 0 before the first."""
    try:
        row = connection.execute(f"SELECT coalesce(max(version), 0) FROM {SCHEMA}.migrations").fetchone()
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return 0
    return int(row[0]) if row else 0


def refuse_newer(connection: psycopg.Connection[Any]) -> int:
    """
    Return `version_of`, if it is one of ours.

    Raises:
        SchemaTooNew: a newer program made the tables.
    """
    version = version_of(connection)
    if version > SCHEMA_VERSION:
        message = f"the database has schema {version}; this program knows {SCHEMA_VERSION}"
        raise SchemaTooNew(message)
    return version


def migrate(connection: psycopg.Connection[Any]) -> None:
    """
    Bring the tables up to this program's version; each step commits with its record or leaves no trace.

    Programs that start at once take turns: whoever comes second finds the step done.

    Raises:
        SchemaTooNew: a newer program made the tables; they are left untouched.
    """
    if refuse_newer(connection) == SCHEMA_VERSION:
        return
    _begin_records(connection)
    for number, (name, statements) in enumerate(MIGRATIONS, 1):
        with connection.transaction():
            connection.execute(f"LOCK TABLE {SCHEMA}.migrations IN ACCESS EXCLUSIVE MODE")
            if version_of(connection) >= number:
                continue
            connection.execute(f"SET LOCAL search_path = {SCHEMA}")
            for statement in statements.split(";"):
                connection.execute(statement)
            connection.execute(
                f"INSERT INTO {SCHEMA}.migrations (version, name, at) VALUES ($1, $2, clock_timestamp())",
                (number, name),
            )


def _begin_records(connection: psycopg.Connection[Any]) -> None:
    """Make the table of migrations. Who loses a race for it finds it made."""
    for statement in (
        f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}",
        f"CREATE TABLE IF NOT EXISTS {SCHEMA}.migrations {_RECORD}",
    ):
        try:
            connection.execute(statement)
        except _RACES:
            connection.execute(statement)
