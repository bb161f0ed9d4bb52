"""Customers' keys in a dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from riskgate_server.domain.customer import CustomerKey


class MemoryVault:
    """Keeps `engine.ports.Vault` for as long as the process lives."""

    def __init__(self) -> None:
        self._keys: dict[CustomerKey, bytes] = {}

    def keys(self, customers: Sequence[CustomerKey]) -> dict[CustomerKey, bytes | None]:
        """Return the data key of each customer, None where there is none."""
        return {customer: self._keys.get(customer) for customer in customers}

    def create(self, keys: Mapping[CustomerKey, bytes]) -> dict[CustomerKey, bytes]:
        """Keep new keys and return the keys that now stand (an older one wins)."""
        return {customer: self._keys.setdefault(customer, key) for customer, key in keys.items()}

    def forget(self, customer: CustomerKey) -> None:
        """Destroy one customer's key."""
        self._keys.pop(customer, None)
