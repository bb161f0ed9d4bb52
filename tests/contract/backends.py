"""Every back end of the engine's ports. A new one joins the whole suite by a line here, and writes no tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from riskgate_server.crypto.keys import MasterKey
from riskgate_server.engine.storing import Store, Vault
from riskgate_server.stores.memory import MemoryStore, MemoryVault
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.postgres.vault import PostgresVault
from riskgate_server.stores.postgres.vault import create_vault as create_postgres_vault
from riskgate_server.stores.sqlite.store import SQLiteStore
from riskgate_server.stores.sqlite.vault import SqliteVault, create_vault
from tests import postgres

OpenStore = Callable[[Path], Store]
OpenVault = Callable[[Path], Vault]


def _sqlite_vault(folder: Path) -> SqliteVault:
    master = MasterKey(bytes(range(32)))
    if not (folder / "vault.db").exists():
        create_vault(folder / "vault.db", master.wrap)
    return SqliteVault(folder / "vault.db", wrap=master.wrap, unwrap=master.unwrap)


def _postgres_vault(folder: Path) -> PostgresVault:
    master = MasterKey(bytes(range(32)))
    create_postgres_vault(postgres.database(folder), master.wrap)
    return PostgresVault(postgres.database(folder), wrap=master.wrap, unwrap=master.unwrap)


BACKENDS: Final[dict[str, OpenStore]] = {
    "memory": lambda _folder: MemoryStore(),
    "sqlite": lambda folder: SQLiteStore(folder / "riskgate.db"),
    "postgres": lambda folder: PostgresStore(postgres.database(folder)),
}

VAULTS: Final[dict[str, OpenVault]] = {
    "memory": lambda _folder: MemoryVault(),
    "sqlite": _sqlite_vault,
    "postgres": _postgres_vault,
}

OPTED_OUT: Final[dict[str, dict[str, str]]] = {
    "survives": {"memory": "nothing of it outlives the process, and nothing is promised"},
    "commits beside snapshots": {
        "memory": "an open snapshot holds the lock: what it sees is stable since nobody commits"
    },
}
"""What a back end cannot do, by the name of the mark, and why."""
