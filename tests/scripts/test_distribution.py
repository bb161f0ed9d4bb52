"""
The tables on Citus, as far as it goes without Citus: the plan, and what is done, against a real PostgreSQL.

Where the extension would be, functions of its names refuse what it refuses, and write down the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from scripts.distribution import command
from scripts.distribution.command import main
from scripts.distribution.plan import DECIDED_ONCE, Placement, PlanRefused, plan_for

from riskgate_server.stores.postgres.schema import SHARD_KEYS
from riskgate_server.stores.postgres.store import PostgresStore
from tests import postgres
from tests.contract.sessions import ask

STAND_IN = """
CREATE TABLE public.pg_dist_partition (logicalrelid regclass PRIMARY KEY, col text, beside text);
CREATE FUNCTION public.create_reference_table(t regclass) RETURNS void LANGUAGE sql AS
  $$INSERT INTO public.pg_dist_partition VALUES (t, '', '')$$;
CREATE FUNCTION public.create_distributed_table(t regclass, col text, colocate_with text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE kind oid := (SELECT atttypid FROM pg_attribute WHERE attrelid = t AND attname = col AND attnotnull);
BEGIN
  IF kind IS NULL THEN RAISE 'column % of % is not there, or may be null', col, t; END IF;
  IF EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = t AND i.indisunique AND NOT EXISTS (
    SELECT FROM pg_attribute AS a WHERE a.attrelid = t AND a.attname = col AND a.attnum = ANY (i.indkey)))
  THEN RAISE 'cannot create constraint on % that does not include partition column', t; END IF;
  IF colocate_with <> 'none' AND NOT EXISTS (
    SELECT FROM public.pg_dist_partition AS d
    JOIN pg_attribute AS a ON a.attrelid = d.logicalrelid AND a.attname = d.col
    WHERE d.logicalrelid = colocate_with::regclass AND a.atttypid = kind)
  THEN RAISE 'cannot colocate tables % and %', t, colocate_with; END IF;
  INSERT INTO public.pg_dist_partition VALUES (t, col, colocate_with);
END$$
"""


@pytest.fixture
def dsn(tmp_path: Path) -> Iterator[str]:
    """A store's database that nobody serves."""
    dsn = postgres.database(tmp_path)
    PostgresStore(dsn).close()
    yield dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    postgres.give_back(tmp_path)


@pytest.fixture
def citus(dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, on something that refuses like Citus."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(STAND_IN)
    monkeypatch.setattr(command, "citus_version", lambda _: "13.2")
    return dsn


def run(dsn: str, *more: str) -> Result:
    return CliRunner().invoke(main, ["--store", dsn, *more])


def placed(dsn: str) -> dict[str, tuple[str, str]]:
    found = ask(dsn, "SELECT logicalrelid::text, col, beside FROM public.pg_dist_partition")
    return {table.rpartition(".")[2]: (column, beside) for table, column, beside in found}


def test_what_is_a_customers_lies_side_by_side_and_the_rest_where_it_fits(citus: str) -> None:
    done = run(citus)

    assert done.exit_code == 0, done.output
    where = placed(citus)
    customers = {table for table, key in SHARD_KEYS.items() if key == SHARD_KEYS["customers"]}
    assert {table for table, (column, _) in where.items() if column == "customer_id"} == customers
    assert {where[table] for table in customers} == {("customer_id", "none"), ("customer_id", "riskgate.customers")}
    assert where["customers"] == ("customer_id", "none")
    assert where["scopes"] == ("id", "none")
    everywhere = {table for table, key in SHARD_KEYS.items() if not key} - DECIDED_ONCE
    assert {table for table, (column, _) in where.items() if not column} == everywhere
    assert set(SHARD_KEYS) - set(where) == {"writers", "batches", *DECIDED_ONCE}


def test_a_second_run_finds_nothing_to_do_and_a_later_table_is_added(citus: str) -> None:
    run(citus)
    ask(citus, "DELETE FROM public.pg_dist_partition WHERE logicalrelid = 'messages'::regclass")

    done = run(citus)

    assert "1 tables were placed" in done.output
    assert placed(citus)["messages"] == ("customer_id", "riskgate.customers")
    assert "0 tables were placed" in run(citus).output


def test_a_key_that_citus_would_refuse_undoes_everything(citus: str) -> None:
    ask(citus, "CREATE UNIQUE INDEX anywhere ON messages (message_id)")

    done = run(citus)

    assert done.exit_code == 1
    assert "does not include partition column; nothing was changed" in done.output
    assert placed(citus) == {}


def test_a_store_that_is_served_is_left_alone(citus: str) -> None:
    server = PostgresStore(citus)

    done = run(citus)

    assert done.exit_code == 1
    assert "is being served by process" in done.output
    assert placed(citus) == {}
    server.close()


def test_without_the_extension_it_says_so_and_changes_nothing(dsn: str) -> None:
    done = run(dsn)

    assert done.exit_code == 1
    assert "the extension citus is not in this database" in done.output
    assert "nothing was changed" in done.output
    PostgresStore(dsn).close()


def test_a_dry_run_says_every_statement_and_changes_nothing(dsn: str) -> None:
    done = run(dsn, "--dry-run")

    assert done.exit_code == 0, done.output
    assert (
        "SELECT create_distributed_table('riskgate.customers', 'customer_id', colocate_with => 'none');" in done.output
    )
    assert done.output.count("create_") == len(SHARD_KEYS) - done.output.count("left on the coordinator")
    assert "riskgate.writers: left on the coordinator" in done.output
    assert done.output.endswith("No citus here; nothing was changed.\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("CREATE TABLE riskgate.extra (id bigint)", "the database has extra"),
        ("DROP TABLE riskgate.payments", "the database does not have payments"),
        ("DROP SCHEMA riskgate CASCADE", "the database has schema 0"),
    ],
)
def test_another_versions_tables_are_refused(dsn: str, change: str, told: str) -> None:
    ask(dsn, change)

    done = run(dsn, "--dry-run")

    assert done.exit_code == 1
    assert told in done.output


def test_every_table_has_its_place() -> None:
    steps = plan_for(SHARD_KEYS, dict.fromkeys(SHARD_KEYS, "s"))
    order: list[Any] = [step.placement for step in steps]

    assert {step.table for step in steps} == {f"s.{table}" for table in SHARD_KEYS}
    assert order == sorted(order, key=list(Placement).index)
    with pytest.raises(PlanRefused):
        plan_for(SHARD_KEYS, {})
