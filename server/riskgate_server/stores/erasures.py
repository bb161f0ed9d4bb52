"""
Who was erased, in a file outside every database: a backup that still has their key must not bring them back.

One JSON line per customer, appended and synced before the key is destroyed. Whom a crash kept out of it the journal
names, which is compared at every start.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from riskgate_server.datadir import create_empty_private
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import StoreInUse
from riskgate_server.engine.storing import NoKey, Vault


class _Line(msgspec.Struct):
    tenant_id: str
    customer_id: str
    at_us: int


class Erasures:
    """Destroys customers' keys in one vault, and writes each down in one file. Safe from any thread."""

    def __init__(self, path: Path, vault: Vault) -> None:
        self._path = path
        self._vault = vault
        self._lock = threading.Lock()
        create_empty_private(path)

    def erase(self, customer: CustomerKey, at_us: int) -> None:
        """
        Destroy a customer's key for good; again is no effect.

        Raises:
            StoreInUse: the key is destroyed, but a reader still holds a copy: erase again.
        """
        with self._lock:
            if customer not in set(self._erased()):
                self._append(_Line(*customer, at_us))
            self._vault.forget(customer)

    def finish(self, journalled: Iterable[tuple[CustomerKey, int]]) -> int:
        """
        Destroy every key that a crash left or a restored backup brought back; return how many there were.

        Of everybody in the file, and of those the journal says were erased, with the time (UTC µs): they are in the
        file from then on.

        Raises:
            OSError: the file cannot be written.
        """
        with self._lock:
            erased = dict.fromkeys(self._erased())
            for customer, at_us in journalled:
                if customer not in erased:
                    erased[customer] = None
                    self._append(_Line(*customer, at_us))
            keys = self._vault.keys(list(erased))
            back = [customer for customer, key in keys.items() if key not in {NoKey.FORGOTTEN, NoKey.ABSENT}]
            for customer in back:
                self._forget(customer)
        return len(back)

    def _forget(self, customer: CustomerKey) -> None:
        try:
            self._vault.forget(customer)
        except StoreInUse:
            # It is destroyed; what a reader holds goes with the reader.
            return

    def _erased(self) -> Iterator[CustomerKey]:
        for line in self._path.read_bytes().splitlines():
            try:
                found = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError:
                # Torn by a crash before anything was destroyed: the journal still says it.
                continue
            yield (found.tenant_id, found.customer_id)

    def _append(self, line: _Line) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            # Behind a torn line, a line of its own.
            os.write(descriptor, b"\n" + msgspec.json.encode(line) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
