"""
What is in the two schemas, said in lines that can be compared with what the migrations make.

What they make is written down in `expected.txt` (`make schema`), for who proves the books may not be allowed to make
tables, and a standby makes none. How a table is laid out on the disk (fill factors, storage, vacuum) is the operator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

import psycopg

from riskgate_server.stores.postgres.schema import SCHEMA, SCHEMA_VERSION, VAULT_SCHEMA, version_of

EXPECTED: Final = "expected.txt"

Described = Mapping[str, str]
"""By kind and name of each object, what it is."""

_OURS: Final = (
    f"(SELECT oid, nspname FROM pg_catalog.pg_namespace WHERE nspname IN ('{SCHEMA}', '{VAULT_SCHEMA}')) AS s"
)
_DESCRIBED: Final = f"""
SELECT 'table ' || s.nspname || '.' || c.relname,
  CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table in partitions' WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence'
    WHEN 'm' THEN 'materialised view' WHEN 'f' THEN 'foreign table' ELSE c.relkind::text END
  || CASE c.relpersistence WHEN 'p' THEN '' WHEN 'u' THEN ', not logged' ELSE ', temporary' END
  || CASE WHEN c.relrowsecurity THEN ', with row security' ELSE '' END
FROM pg_catalog.pg_class AS c JOIN {_OURS} ON s.oid = c.relnamespace WHERE c.relkind NOT IN ('i', 'I', 't', 'c')
UNION ALL
SELECT 'column ' || s.nspname || '.' || c.relname || '.' || a.attname,
  pg_catalog.format_type(a.atttypid, a.atttypmod) || coalesce(' ' || l.collname, '')
  || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
  || coalesce(' DEFAULT ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid), '')
  || CASE WHEN a.attidentity <> '' THEN ' IDENTITY' ELSE '' END
  || CASE WHEN a.attgenerated <> '' THEN ' GENERATED' ELSE '' END
FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
  JOIN {_OURS} ON s.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  LEFT JOIN pg_catalog.pg_collation AS l ON l.oid = a.attcollation AND l.collname <> 'default'
WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'index ' || s.nspname || '.' || c.relname,
  pg_catalog.pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid AND i.indisready THEN '' ELSE ', not valid' END
FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
  JOIN {_OURS} ON s.oid = c.relnamespace
UNION ALL
SELECT 'constraint ' || s.nspname || '.' || c.relname || '.' || k.conname, pg_catalog.pg_get_constraintdef(k.oid)
FROM pg_catalog.pg_constraint AS k JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
  JOIN {_OURS} ON s.oid = c.relnamespace
WHERE k.contype <> 'n'
UNION ALL
SELECT 'trigger ' || s.nspname || '.' || c.relname || '.' || t.tgname, pg_catalog.pg_get_triggerdef(t.oid)
FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
  JOIN {_OURS} ON s.oid = c.relnamespace
WHERE NOT t.tgisinternal
UNION ALL
SELECT 'rule ' || s.nspname || '.' || c.relname || '.' || r.rulename, pg_catalog.pg_get_ruledef(r.oid)
FROM pg_catalog.pg_rewrite AS r JOIN pg_catalog.pg_class AS c ON c.oid = r.ev_class AND c.relkind IN ('r', 'p')
  JOIN {_OURS} ON s.oid = c.relnamespace
UNION ALL
SELECT 'policy ' || s.nspname || '.' || c.relname || '.' || p.polname, 'policy'
FROM pg_catalog.pg_policy AS p JOIN pg_catalog.pg_class AS c ON c.oid = p.polrelid
  JOIN {_OURS} ON s.oid = c.relnamespace
UNION ALL
SELECT 'function ' || s.nspname || '.' || p.oid::pg_catalog.regprocedure, 'function'
FROM pg_catalog.pg_proc AS p JOIN {_OURS} ON s.oid = p.pronamespace
"""
"""Catalogues are named in full: a function or an operator of the same name elsewhere must not answer for them."""


def describe(connection: psycopg.Connection[Any]) -> Described:
    """Return everything in the two schemas that decides what their rows can be, and who acts when they change."""
    return dict(connection.execute(_DESCRIBED).fetchall())


def as_text(described: Described) -> str:
    """Write a description, one line per object."""
    return "".join(f"{name}: {what}\n" for name, what in sorted(described.items()))


def expected() -> Described:
    """Return the description of what the migrations make."""
    text = (files(__package__) / EXPECTED).read_text(encoding="utf-8")
    return dict(line.split(": ", 1) for line in text.splitlines())


def differences(connection: psycopg.Connection[Any]) -> tuple[list[str], list[str]]:
    """
    Compare the schema with the one a fresh database gets.

    Returns what is missing or altered, so that nothing can be said of the rows, and what was added: a trigger acts
    in the writer's name.
    """
    version = version_of(connection)
    if version != SCHEMA_VERSION:
        return [f"the schema is of version {version}, not {SCHEMA_VERSION}"], []
    wanted, found = expected(), describe(connection)
    broken = [f"the schema lacks {name}" for name in sorted(wanted.keys() - found.keys())]
    broken += [
        f"the schema has another {name}" for name in sorted(wanted) if found.get(name, wanted[name]) != wanted[name]
    ]
    return broken, [f"the schema has a foreign {name}" for name in sorted(found.keys() - wanted.keys())]
