"""Turns a vault in a file to another master key, from a process of its own, beside the server that has it open."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import StoreInUse
from riskgate_server.stores.refusals import VaultUnusable
from riskgate_server.stores.sqlite.leftovers import holds_any
from riskgate_server.stores.sqlite.resync import alone
from riskgate_server.stores.sqlite.vault import connect, translated
from riskgate_server.stores.wrapping import HEADER_BYTES, Page, Unwrap, Wrap, proof_under_newest, renewed


class SqliteRewrapping:
    """
    Keeps `stores.wrapping.Rewrapping`.

    The file is opened for each commit and closed again: a server that starts meanwhile writes the log again, and must
    not find anybody else writing it.
    """

    def __init__(self, path: Path) -> None:
        """
        Take an existing vault.

        Raises:
            VaultUnusable: there is none at `path`.
        """
        if not path.is_file():
            raise VaultUnusable(f"{path} is missing: restore it from a backup")
        self._path = path

    def turn(self, wrap: Wrap, unwrap: Unwrap) -> bytes:
        """Have keys be wrapped under the newest master key from now on, and return its header."""
        with self._changing() as connection:
            stored = self._proof(connection)
            proof = proof_under_newest(stored, wrap, unwrap)
            connection.execute("UPDATE proof SET wrapped = ? WHERE wrapped = ?", (proof, stored))
        return proof[:HEADER_BYTES]

    def rewrap(self, wrap: Wrap, unwrap: Unwrap, *, header: bytes, after: CustomerKey, limit: int) -> Page:
        """Wrap the next customers' keys under the key of `header`, in one commit, unless they are already."""
        with self._changing() as connection:
            rows = connection.execute(
                "SELECT tenant_id, customer_id, wrapped FROM keys WHERE (tenant_id, customer_id) > (?, ?)"
                " ORDER BY tenant_id, customer_id LIMIT ?",
                (*after, limit),
            ).fetchall()
            changed, unreadable = renewed(rows, wrap, unwrap, header)
            connection.executemany(
                "UPDATE keys SET wrapped = ? WHERE tenant_id = ? AND customer_id = ? AND wrapped = ?",
                [(new, tenant_id, customer_id, old) for tenant_id, customer_id, old, new in changed],
            )
        last = (rows[-1][0], rows[-1][1]) if len(rows) == limit else None
        return Page(last, len(rows), len(changed), unreadable)

    def in_use(self) -> dict[bytes, int]:
        """Return header → how many customers' keys are wrapped so; that of the proof is always among them."""
        with self._opened() as connection:
            connection.execute("BEGIN")
            proof = self._proof(connection)
            found = connection.execute(
                "SELECT substr(wrapped, 1, ?), count(*) FROM keys"
                " WHERE wrapped != zeroblob(length(wrapped)) GROUP BY 1",
                (HEADER_BYTES,),
            ).fetchall()
            connection.execute("COMMIT")
        return {proof[:HEADER_BYTES]: 0} | {bytes(header): int(number) for header, number in found}

    def scrub(self, headers: Collection[bytes]) -> None:
        """Destroy what is left of values that began with these headers, and were replaced."""
        # Closed after the connection, as there.
        with self._path.open("rb") as file, self._opened() as connection:
            _empty_log(connection)
            if headers and holds_any(file, self._path, headers):
                # Made of what is in use alone. A header found afterwards is chance, or belongs to a damaged row.
                connection.execute("VACUUM")
                _empty_log(connection)

    def close(self) -> None:
        """Finish; nothing is open between the steps."""

    def _proof(self, connection: sqlite3.Connection) -> bytes:
        row = connection.execute("SELECT wrapped FROM proof").fetchone()
        if row is None:
            raise VaultUnusable(f"{self._path} does not prove which master key it belongs to")
        return bytes(row[0])

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with alone(self._path), translated():
            connection = connect(self._path, read_only=False)
            try:
                yield connection
            finally:
                connection.close()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._opened() as connection:
            connection.execute("BEGIN IMMEDIATE")
            # Whatever goes wrong, closing the connection undoes it.
            yield connection
            connection.execute("COMMIT")


def _empty_log(connection: sqlite3.Connection) -> None:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise StoreInUse("the vault's log cannot be emptied: a reader holds it")
