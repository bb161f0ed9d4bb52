"""Customers' keys in a dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.storing import NoKey


class MemoryVault:
    """Keeps `engine.storing.Vault` for as long as the process lives."""

    def __init__(self) -> None:
        self._keys: dict[CustomerKey, bytes | NoKey] = {}

    def keys(self, customers: Sequence[CustomerKey]) -> dict[CustomerKey, bytes | NoKey]:
        """Return the data key of each customer, or why there is none."""
        return {customer: self._keys.get(customer, NoKey.ABSENT) for customer in customers}

    def create(self, keys: Mapping[CustomerKey, bytes]) -> dict[CustomerKey, bytes]:
        """
        Keep new keys and return the keys that now stand (an older one wins).

        Raises:
            ValueError: a customer's key was forgotten.
        """
        standing: dict[CustomerKey, bytes] = {}
        for customer, new in keys.items():
            key = self._keys.setdefault(customer, new)
            if isinstance(key, NoKey):
                raise ValueError(f"the key of this customer is {key.value}")  # noqa: TRY004  not its type
            standing[customer] = key
        return standing

    def forget(self, customer: CustomerKey) -> None:
        """Destroy one customer's key."""
        if customer in self._keys:
            self._keys[customer] = NoKey.FORGOTTEN
