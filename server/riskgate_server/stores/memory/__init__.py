"""Rows in dictionaries: for tests and the simulator. Nothing survives the process."""

from riskgate_server.stores.memory.store import MemoryStore
from riskgate_server.stores.memory.vault import MemoryVault

__all__ = ["MemoryStore", "MemoryVault"]
