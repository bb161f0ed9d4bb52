"""Nothing in the schema or the statements needs one machine to hold all rows: read from a real database."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from riskgate_server.stores import postgres as room
from riskgate_server.stores.postgres.schema import SCHEMA, SHARD_KEYS, VAULT_SCHEMA
from riskgate_server.stores.postgres.store import PostgresStore
from tests import postgres
from tests.contract.sessions import ask

OURS: Final = f"(SELECT oid FROM pg_namespace WHERE nspname IN ('{SCHEMA}', '{VAULT_SCHEMA}'))"

FORBIDDEN: Final = {
    "a sequence": f"SELECT relname FROM pg_class WHERE relkind = 'S' AND relnamespace IN {OURS}",
    "an identity column": "SELECT attname FROM pg_attribute WHERE attidentity <> ''",
    "a trigger": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
    "an event trigger": "SELECT evtname FROM pg_event_trigger",
    "a foreign key": "SELECT conname FROM pg_constraint WHERE contype = 'f'",
    "an exclusion constraint": "SELECT conname FROM pg_constraint WHERE contype = 'x'",
    "a deferred constraint": "SELECT conname FROM pg_constraint WHERE condeferrable",
    "a function": f"SELECT proname FROM pg_proc WHERE pronamespace IN {OURS}",
    "a rule": f"SELECT relname FROM pg_class WHERE relhasrules AND relkind = 'r' AND relnamespace IN {OURS}",
    "a table that a crash empties": f"SELECT relname FROM pg_class WHERE relpersistence <> 'p' AND relkind = 'r'"
    f" AND relnamespace IN {OURS}",
    "a default made by the database": "SELECT attname FROM pg_attribute AS a JOIN pg_attrdef AS d"
    " ON d.adrelid = a.attrelid AND d.adnum = a.attnum WHERE strpos(pg_get_expr(d.adbin, d.adrelid), '(') > 0",
}
"""What a distributed database cannot have, or keeps in one place, by the question that finds it."""

UNIQUE_KEYS: Final = (
    "SELECT t.relname, i.indexrelid::regclass::text, array_agg(a.attname::text ORDER BY k.place)"
    " FROM pg_index AS i JOIN pg_class AS t ON t.oid = i.indrelid,"
    " unnest(i.indkey) WITH ORDINALITY AS k (number, place)"
    " LEFT JOIN pg_attribute AS a ON a.attnum = k.number"
    f" WHERE a.attrelid = i.indrelid AND i.indisunique AND t.relnamespace IN {OURS} GROUP BY 1, 2"
)
TABLES: Final = f"SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'f', 'm') AND relnamespace IN {OURS}"

FUNCTION: Final = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"

NEEDS_ONE_PLACE: Final = re.compile(
    r"\b(pg_(try_)?advisory\w*|(UN)?LISTEN|NOTIFY|pg_notify|nextval|currval|setval|SERIAL|BIGSERIAL|"
    r"GENERATED\s+(ALWAYS|BY)|AS\s+IDENTITY|CREATE\s+(\w+\s+)?(TRIGGER|SEQUENCE|RULE|FUNCTION)|REFERENCES|FOREIGN\s+KEY|"
    r"DEFERRABLE|EXCLUDE\s+USING|PREPARE\s+TRANSACTION|pg_export_snapshot|ctid|UNLOGGED|TEMP(ORARY)?\s+TABLE)\b",
    re.IGNORECASE,
)


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    """A database with the store's tables."""
    dsn = postgres.database(tmp_path)
    PostgresStore(dsn).close()
    return dsn


def misplaced(dsn: str) -> list[str]:
    """What about tables and unique keys a distributed database could not place."""
    tables = {table for (table,) in ask(dsn, TABLES)}
    found = ask(dsn, UNIQUE_KEYS)
    wrong = [f"{table} has no shard key" for table in sorted(tables - set(SHARD_KEYS))]
    wrong += [f"{table} has no unique key" for table in sorted(tables - {table for table, _, _ in found})]
    for table, index, columns in found:
        key = SHARD_KEYS.get(table, ())
        if tuple(columns[: len(key)]) != key:
            wrong.append(f"{index} does not lead with {', '.join(key)}")
    return wrong


def needing_one_machine(dsn: str) -> dict[str, list[str]]:
    found = {what: [name for (name,) in ask(dsn, question)] for what, question in FORBIDDEN.items()}
    return {what: names for what, names in found.items() if names}


def test_every_unique_key_leads_with_its_tables_shard_key(dsn: str) -> None:
    """Else a distributed database could not keep it: it looks for a double in one place only."""
    assert misplaced(dsn) == []
    assert {table for (table,) in ask(dsn, TABLES)} == set(SHARD_KEYS)


def test_nothing_in_the_schema_needs_one_machine(dsn: str) -> None:
    assert needing_one_machine(dsn) == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("CREATE UNIQUE INDEX anywhere ON purchases (transaction_id)", "anywhere does not lead with tenant_id, cust"),
        ("CREATE UNIQUE INDEX turned ON requests (customer_id, tenant_id)", "turned does not lead with tenant_id"),
        ("ALTER TABLE scopes ADD UNIQUE (id)", "scopes_id_key does not lead with tenant_id, kind, id"),
        ("CREATE TABLE extra (id bigint PRIMARY KEY)", "extra has no shard key"),
        ("ALTER TABLE payments DROP CONSTRAINT payments_pkey", "payments has no unique key"),
        ("CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM entries", "totals has no shard key"),
    ],
)
def test_a_key_that_could_not_be_placed_is_found(dsn: str, change: str, told: str) -> None:
    ask(dsn, change)

    assert any(what.startswith(told) for what in misplaced(dsn))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("CREATE SEQUENCE numbers", "a sequence"),
        ("ALTER TABLE entries ADD n bigserial", "a sequence"),
        ("ALTER TABLE entries ADD n bigint GENERATED ALWAYS AS IDENTITY", "an identity column"),
        (f"{FUNCTION}; CREATE TRIGGER t BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION f()", "a trigger"),
        (FUNCTION, "a function"),
        ("ALTER TABLE entries ADD FOREIGN KEY (writer) REFERENCES writers", "a foreign key"),
        ("ALTER TABLE purchases ADD FOREIGN KEY (tenant_id, customer_id) REFERENCES customers", "a foreign key"),
        ("ALTER TABLE entries ADD UNIQUE (tenant_id, customer_id, position) DEFERRABLE", "a deferred constraint"),
        ("CREATE RULE r AS ON DELETE TO entries DO INSTEAD NOTHING", "a rule"),
        ("ALTER TABLE payments SET UNLOGGED", "a table that a crash empties"),
        ("ALTER TABLE payments ADD made timestamptz DEFAULT now()", "a default made by the database"),
    ],
)
def test_what_needs_one_machine_is_found(dsn: str, change: str, told: str) -> None:
    ask(dsn, change)

    assert told in needing_one_machine(dsn)


def said_by(source: str) -> Iterator[str]:
    """Every text in a module but its docstrings: what may become a statement."""
    tree = ast.parse(source)
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
            yield node.value


def test_no_statement_needs_one_place() -> None:
    folder = Path(next(iter(room.__path__)))
    texts = [text for path in folder.glob("**/*.py") for text in said_by(path.read_text(encoding="utf-8"))]

    assert sum("customer_id" in text for text in texts) > 10
    assert [text for text in texts if NEEDS_ONE_PLACE.search(text)] == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_advisory_xact_lock($1)",
        "SELECT pg_try_advisory_lock(1, 2)",
        "LISTEN changes",
        "NOTIFY changes, 'x'",
        "SELECT nextval('numbers')",
        "CREATE TABLE t (id bigserial)",
        "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON entries",
        "PREPARE TRANSACTION 'x'",
    ],
)
def test_a_statement_that_needs_one_place_is_found(statement: str) -> None:
    (text,) = said_by(f'"""A docstring may say NOTIFY."""\nASKED = """{statement}"""')

    assert NEEDS_ONE_PLACE.search(text)
