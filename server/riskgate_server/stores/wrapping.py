"""How a vault knows wrapped keys, whichever store it is in: by the header that names the master key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import msgspec

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import StoreBusy, StoreInUse
from riskgate_server.engine.storing import Vault
from riskgate_server.stores.refusals import VaultUnusable

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


def forget_destroyed(rows: Iterable[Sequence[Any]], vault: Vault) -> None:
    """Destroy the keys that rows of another vault, each of tenant, customer and wrapped key, say are destroyed."""
    for tenant_id, customer_id, wrapped in rows:
        if is_forgotten(wrapped):
            # It is destroyed; what a reader holds goes with the reader.
            with suppress(StoreInUse):
                vault.forget((tenant_id, customer_id))


class Page(msgspec.Struct, frozen=True):
    """What was done to some customers' keys, in their order: `last` is where to go on, None at the end."""

    last: CustomerKey | None
    seen: int
    changed: int
    unreadable: int


class Rewrapping(Protocol):
    """
    Turns a vault to another master key, beside servers that go on with it. Whatever is repeated has no second effect.

    Every method raises StoreBusy when others hold the vault too long.
    """

    def turn(self, wrap: Wrap, unwrap: Unwrap) -> bytes:
        """
        Have keys be wrapped under the newest master key from now on, and return its header.

        Raises:
            VaultUnusable: it does not prove which master key it belongs to.
        """

    def rewrap(self, wrap: Wrap, unwrap: Unwrap, *, header: bytes, after: CustomerKey, limit: int) -> Page:
        """Wrap the next customers' keys under the key of `header`, in one commit, unless they are already."""

    def in_use(self) -> dict[bytes, int]:
        """Return header → how many customers' keys are wrapped so; that of the proof is always among them."""

    def scrub(self, headers: Collection[bytes]) -> None:
        """
        Destroy what is left of values that began with these headers, and were replaced.

        Raises:
            StoreInUse: a reader may still see them: scrub again.
        """

    def close(self) -> None:
        """Finish."""


def renewed(
    rows: Sequence[tuple[str, str, bytes]], wrap: Wrap, unwrap: Unwrap, header: bytes
) -> tuple[list[tuple[str, str, bytes, bytes]], int]:
    """Return tenant, customer, old and new value of the rows to be changed, and how many cannot be read."""
    changed: list[tuple[str, str, bytes, bytes]] = []
    unreadable = 0
    for tenant_id, customer_id, wrapped in rows:
        if wrapped[:HEADER_BYTES] == header or is_forgotten(wrapped):
            continue
        customer = (tenant_id, customer_id)
        try:
            key = unwrap(customer, wrapped)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever is wrong with it, no master key mends it
            unreadable += 1
            continue
        changed.append((*customer, wrapped, wrap(customer, key, header)))
    return changed, unreadable


def proof_under_newest(wrapped: bytes, wrap: Wrap, unwrap: Unwrap) -> bytes:
    """
    Return the proof as the newest master key wraps it; unchanged if it did.

    Raises:
        VaultUnusable: it proves nothing.
        Exception: what `unwrap` raises when the vault belongs to a master key that is not known.
    """
    if unwrap(NOBODY, wrapped) != PROOF:
        raise VaultUnusable("the vault does not prove which master key it belongs to")
    newest = wrap(NOBODY, PROOF)
    return wrapped if newest[:HEADER_BYTES] == wrapped[:HEADER_BYTES] else newest
