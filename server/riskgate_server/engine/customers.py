"""
The customers a batch is about: kept in memory between batches, loaded from the store, begun.

What is kept is what was last committed. Where other processes write too it counts only at the sequence
the row was locked at; what a batch that failed may have changed is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import structlog

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine import sealing
from riskgate_server.engine.commands import Command, OpenCreditLine
from riskgate_server.engine.ports import Sealer
from riskgate_server.engine.replies import ERASED, UNREADABLE
from riskgate_server.engine.rows import CustomerRow, Locked
from riskgate_server.engine.storing import NoKey, Transaction, Vault
from riskgate_server.engine.work import Batch, Kept

log = structlog.get_logger()

UNREADABLE_MAX: Final = 10_000
"""Customers whose damage is told once; that of more is not told."""


class Customers:
    """Those of one pipeline, of which at most `kept_max` stay in memory, about 1 KiB each."""

    def __init__(self, vault: Vault, sealer: Sealer, kept_max: int) -> None:
        self.kept: Final[OrderedDict[CustomerKey, Kept]] = OrderedDict()
        self._vault = vault
        self._sealer = sealer
        self._kept_max = kept_max
        self._unreadable: set[CustomerKey] = set()

    def remember(self, batch: Batch) -> None:
        """Keep what a batch made of its customers, now that it is durable, and no key of one who was erased."""
        kept = self.kept
        for key, customer in batch.kept.items():
            if customer.sequence and customer.data_key and not customer.erased:
                kept[key] = customer
                kept.move_to_end(key)
            elif kept.pop(key, None) or (customer.erased and customer.data_key):
                # It was used just now, perhaps for the first time since the start.
                self._sealer.forget()
        while len(kept) > self._kept_max:
            kept.popitem(last=False)

    def sequences(self, keys: Iterable[CustomerKey]) -> dict[CustomerKey, int]:
        """Return the sequences of those of the customers who are kept."""
        return {key: self.kept[key].sequence for key in keys if key in self.kept}

    def distrust(self, keys: Iterable[CustomerKey]) -> None:
        """Have customers read again whom a batch that failed may have changed."""
        for key in keys:
            self.kept.pop(key, None)

    def load(
        self,
        batch: Batch,
        tx: Transaction,
        commands: Sequence[Command],
        named: Collection[CustomerKey],
        locked: Locked | None,
    ) -> Collection[CustomerKey]:
        """Give a batch the customers that its commands name, and return whom the store may know."""
        # Whoever was not there to be locked has not begun, even if by now another writer began them.
        there: Collection[CustomerKey] = named if locked is None else locked.versions
        changed = {row.key for row in locked.changed} if locked else ()
        batch.kept.update((key, self.kept[key]) for key in there if key in self.kept and key not in changed)
        if len(batch.kept) < len(there):
            rows = locked.changed if locked else tx.customers(sorted(set(there) - batch.kept.keys()))
            self._open_all(batch, rows, locked.forgotten if locked else ())
        new = {
            command.key
            for command in commands
            if isinstance(command, OpenCreditLine)
            and command.key not in batch.kept
            and command.key not in batch.refused
        }
        if new:
            self._begin(batch, new)
        return there

    def _open_all(self, batch: Batch, rows: Sequence[CustomerRow], forgotten: Collection[CustomerKey]) -> None:
        """Load customers whose state came from the store."""
        # A key never changes, so whoever was kept brings theirs. The vault too may remember what another process had
        # forgotten; the customer's row does not.
        keys: dict[CustomerKey, bytes | NoKey] = dict.fromkeys(forgotten, NoKey.FORGOTTEN)
        keys |= {row.key: self.kept[row.key].data_key for row in rows if row.key in self.kept and row.key not in keys}
        unknown = [row.key for row in rows if row.key not in keys]
        if unknown:
            keys |= self._vault.keys(unknown)
        for row in rows:
            self._open(batch, row, keys[row.key])

    def _open(self, batch: Batch, row: CustomerRow, data_key: bytes | NoKey) -> None:
        """Load one customer, or have their commands refused: one who cannot be read must not fail the batch."""
        key = row.key
        try:
            if data_key is NoKey.FORGOTTEN:
                # Whose holds may still end: that needs no key.
                batch.kept[key] = Kept(row.sequence, row.next_lapse_us, row.state, row.profile, b"")
                batch.refused[key] = ERASED
                return
            if isinstance(data_key, NoKey):
                self._refuse_unreadable(batch, key, f"key {data_key.value}")
                return
            profile = sealing.unseal_profile(row, data_key, self._sealer)
            # What cannot be decoded must be found out here: later it would be the command's fault.
            erased = sealing.decode_customer(key, row.state, profile).erased
            batch.kept[key] = Kept(row.sequence, row.next_lapse_us, row.state, profile, data_key, erased)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a damaged row breaks, it is this customer's alone
            self._refuse_unreadable(batch, key, type(error).__name__)

    def _begin(self, batch: Batch, new: Collection[CustomerKey]) -> None:
        """Begin customers the store has not heard of, unless the vault has."""
        opened = set()
        for key, data_key in self._vault.keys(sorted(new)).items():
            if data_key is NoKey.FORGOTTEN:
                batch.refused[key] = ERASED
            elif data_key is NoKey.DAMAGED:
                self._refuse_unreadable(batch, key, "key damaged")
            else:
                opened.add(key)
        if opened:
            batch.add_customers(opened)

    def _refuse_unreadable(self, batch: Batch, key: CustomerKey, why: str) -> None:
        batch.refused[key] = UNREADABLE
        # Once, not for every command: verification names them.
        if key not in self._unreadable and len(self._unreadable) < UNREADABLE_MAX:
            self._unreadable.add(key)
            log.error("customer unreadable", why=why, customers=len(self._unreadable))
