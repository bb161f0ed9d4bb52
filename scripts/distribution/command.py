"""The command line of `distribute_citus.py`: look at the database, say what goes where, do it in one transaction."""

from __future__ import annotations

from typing import Any, Final

import click
import psycopg
from scripts.distribution.plan import Placement, PlanRefused, Step, plan_for

from riskgate_server.stores.postgres.schema import SCHEMA, SCHEMA_VERSION, SHARD_KEYS, VAULT_SCHEMA, version_of

Connection = psycopg.Connection[tuple[Any, ...]]

_TABLES: Final = (
    "SELECT c.relname, n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p') AND n.nspname IN (%s, %s)"
)
_SERVED: Final = "SELECT holder FROM riskgate.writers WHERE owner IS NOT NULL AND lease_until > clock_timestamp()"
_CAUTION: Final = (
    "Do not serve from it yet: Citus locks rows for a batch only where all its customers are on one shard, and\n"
    "`riskgate serve` does not choose its batches so (docs/scale.md)."
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--store", "dsn", envvar="RISKGATE_STORE", required=True, metavar="DSN", help="postgresql://… of the store."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
def main(dsn: str, *, dry_run: bool) -> None:
    """
    Place the tables of a PostgreSQL store on a Citus cluster.

    Servers must be stopped. Tables that are placed already are left as they are, so it may be run again: after an
    upgrade that brought new tables too. All of it happens in one transaction, or nothing.
    """
    try:
        with psycopg.connect(dsn) as connection:
            steps = remaining(connection)
            version = citus_version(connection)
            for step in steps:
                click.echo(f"  {step}")
                if step.statement:
                    click.echo(f"    {step.statement};")
            if dry_run:
                click.echo(f"citus {version}; " if version else "No citus here; ", nl=False)
                click.echo("nothing was changed.")
                return
            distribute(connection, steps, version)
    except PlanRefused as refused:
        raise click.ClickException(f"{refused}; nothing was changed") from refused
    except psycopg.Error as error:
        # Where the database said it, without the place in its sources.
        said = error.diag.message_primary or str(error).strip()
        raise click.ClickException(f"{said}; nothing was changed") from error
    click.echo(_CAUTION)
    click.echo(f"{sum(bool(step.statement) for step in steps)} tables were placed by citus {version}.")


def remaining(connection: Connection) -> list[Step]:
    """
    Return what is left to be placed.

    Raises:
        PlanRefused: the tables are not those of this version of the program.
    """
    version = version_of(connection)
    if version != SCHEMA_VERSION:
        raise PlanRefused(f"the database has schema {version}, this program {SCHEMA_VERSION}: start its server once")
    steps = plan_for(SHARD_KEYS, dict(connection.execute(_TABLES, (SCHEMA, VAULT_SCHEMA)).fetchall()))
    placed = placed_tables(connection) if citus_version(connection) else set()
    return [step for step in steps if step.table not in placed]


def citus_version(connection: Connection) -> str:
    """Return the version of the extension; empty where the database does not have it."""
    found = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'citus'").fetchone()
    return str(found[0]) if found else ""


def placed_tables(connection: Connection) -> set[str]:
    """Return the names, with their schema, of tables that Citus knows."""
    found = connection.execute(
        "SELECT n.nspname || '.' || c.relname FROM pg_dist_partition AS d JOIN pg_class AS c ON c.oid = d.logicalrelid"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    )
    return {name for (name,) in found}


def distribute(connection: Connection, steps: list[Step], version: str) -> None:
    """
    Place the tables, within the transaction of the connection.

    Raises:
        PlanRefused: the extension is missing, or a server is writing.
    """
    if not version:
        raise PlanRefused(
            "the extension citus is not in this database: preload it on every node, and CREATE EXTENSION citus"
        )
    served = connection.execute(_SERVED).fetchall()
    if served:
        raise PlanRefused(f"the store is being served by {served[0][0]}: stop it first")
    # One statement after the other on one connection to each node, as one transaction over several tables needs.
    connection.execute("SET LOCAL citus.multi_shard_modify_mode TO 'sequential'")
    for step in steps:
        if step.placement is not Placement.LOCAL:
            connection.execute(step.statement)
