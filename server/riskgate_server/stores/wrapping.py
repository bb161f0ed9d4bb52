"""How a vault knows wrapped keys, whichever store it is in: by the header that names the master key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.ports import StoreBusy

HEADER_BYTES: Final = 5
"""Version and id of the master key: what a wrapped key begins with."""

NOBODY: Final[CustomerKey] = ("", "")
PROOF: Final = bytes(32)
"""A key of nobody's: wrapped, it proves which master key a vault belongs to and says under which others are wrapped."""

Unwrap = Callable[[CustomerKey, bytes], bytes]


class Wrap(Protocol):
    """Wraps customers' keys."""

    def __call__(self, customer: CustomerKey, key: bytes, under: bytes = b"", /) -> bytes:
        """Return a customer's key wrapped under the master key that a header names, or the newest; raise if unknown."""


def wrapped_for(keys: Mapping[CustomerKey, bytes], wrap: Wrap, header: bytes) -> list[tuple[str, str, bytes]]:
    """
    Return tenant, customer and wrapped key of each.

    Raises:
        StoreBusy: the master key that the vault was turned to is not known in this process, or not yet.
    """
    try:
        return [(*customer, wrap(customer, key, header)) for customer, key in keys.items()]
    except MemoryError:
        raise
    except Exception as error:
        # Wrapped under any other key it would be lost as soon as that one is.
        message = "the vault was turned to a master key that is not known here: copy secrets/master.key from there"
        raise StoreBusy(message) from error


def is_forgotten(wrapped: bytes) -> bool:
    """Whether a row is what forgetting leaves: zeros."""
    return bool(wrapped) and not any(wrapped)
