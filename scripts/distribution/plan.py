"""Which table goes where, made from the shard keys of the store's own schema, so that it is never out of date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

ShardKey = tuple[str, ...]

LANE: Final[ShardKey] = ("writer",)
"""A lane's tables stay on the coordinator: whether a writer lives is read from the sessions there."""

DECIDED_ONCE: Final = frozenset({"jobs", "migrations"})
"""Tables that one place decides in, by its own clock: Citus changes no copies by a clock's reading."""


class Placement(Enum):
    """What Citus makes of a table."""

    COPIED = "a copy on every node"
    SHARDED = "split by a column"
    LOCAL = "left on the coordinator"


class PlanRefused(Exception):
    """The database does not have the tables that this program knows. The message names them."""


@dataclass(frozen=True)
class Step:
    """Where one table goes. `beside` is the table whose rows of the same column lie on the same node."""

    table: str
    placement: Placement
    column: str = ""
    beside: str = ""

    @property
    def statement(self) -> str:
        """What does it; empty for a table that stays."""
        if self.placement is Placement.COPIED:
            return f"SELECT create_reference_table('{self.table}')"
        if self.placement is Placement.SHARDED:
            return f"SELECT create_distributed_table('{self.table}', '{self.column}', colocate_with => '{self.beside}')"
        return ""

    def __str__(self) -> str:
        if self.placement is not Placement.SHARDED:
            return f"{self.table}: {self.placement.value}"
        together = "" if self.beside == "none" else f", beside {self.beside}"
        return f"{self.table}: split by {self.column}{together}"


def plan_for(shard_keys: Mapping[str, ShardKey], schemas: Mapping[str, str]) -> list[Step]:
    """
    Return where each table goes, in the order in which they are placed.

    Citus splits by one column, and keeps a unique key only if that column is in it: it is the last of the shard key,
    which has the most values (a tenant may be half of all rows, a customer never). Tables with the same key lie side by
    side, so that what concerns one customer is one node's.

    Args:
        shard_keys: table → the columns it is placed by, none for a copy everywhere (`SHARD_KEYS` of the store).
        schemas: table → its schema, as found in the database.

    Raises:
        PlanRefused: tables are missing, or are there that nobody knows.
    """
    for what, names in (("does not have", set(shard_keys) - set(schemas)), ("has", set(schemas) - set(shard_keys))):
        if names:
            raise PlanRefused(f"the database {what} {', '.join(sorted(names))}: not the tables of this version")
    copied, sharded, local, first = [], [], [], dict[ShardKey, str]()
    for table, key in shard_keys.items():
        name = f"{schemas[table]}.{table}"
        if key == LANE or table in DECIDED_ONCE:
            local.append(Step(name, Placement.LOCAL))
        elif not key:
            copied.append(Step(name, Placement.COPIED))
        else:
            sharded.append(Step(name, Placement.SHARDED, key[-1], first.get(key, "none")))
            first.setdefault(key, name)
    return [*copied, *sharded, *local]
