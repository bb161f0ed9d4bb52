"""Turns a vault in a database to another master key, beside the servers that use it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, LiteralString

import psycopg

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import StoreInUse
from riskgate_server.stores.postgres import session
from riskgate_server.stores.postgres.arrays import Blobs, Texts
from riskgate_server.stores.postgres.session import translated
from riskgate_server.stores.postgres.vault import READERS_BEFORE
from riskgate_server.stores.refusals import VaultUnusable
from riskgate_server.stores.wrapping import HEADER_BYTES, Page, Unwrap, Wrap, proof_under_newest, renewed


class PostgresRewrapping:
    """Keeps `stores.wrapping.Rewrapping` on a connection of its own. A row that changes meanwhile is left as it is."""

    def __init__(self, dsn: str) -> None:
        """
        Connect to the database.

        Raises:
            SettingsRefused, StoreBusy: as for a server's connection.
        """
        self._ended = ""
        self._db = session.connect(dsn)
        try:
            with translated():
                session.set_up(self._db, idle_seconds=session.IDLE_SECONDS)
                session.probe(self._db)
        except BaseException:
            self._db.close()
            raise

    def turn(self, wrap: Wrap, unwrap: Unwrap) -> bytes:
        """Have keys be wrapped under the newest master key from now on, and return its header."""
        with translated(), self._db.transaction():
            # Waits for whoever is just keeping keys under the old one: they are found afterwards.
            stored = self._proof("SELECT wrapped FROM vault.proof FOR UPDATE")
            proof = proof_under_newest(stored, wrap, unwrap)
            if proof != stored:
                self._db.execute("UPDATE vault.proof SET wrapped = $1", (proof,))
        return proof[:HEADER_BYTES]

    def rewrap(self, wrap: Wrap, unwrap: Unwrap, *, header: bytes, after: CustomerKey, limit: int) -> Page:
        """Wrap the next customers' keys under the key of `header`, in one commit, unless they are already."""
        with translated():
            rows = [
                (tenant_id, customer_id, bytes(wrapped))
                for tenant_id, customer_id, wrapped in self._db.execute(_PAGE, (*after, limit), binary=True)
            ]
            changed, unreadable = renewed(rows, wrap, unwrap, header)
            if changed:
                tenants, customers, old, new = zip(*changed, strict=True)
                self._db.execute(_REWRAP, (Texts(tenants), Texts(customers), Blobs(old), Blobs(new)))
                self._ended = ""
        last = (rows[-1][0], rows[-1][1]) if len(rows) == limit else None
        return Page(last, len(rows), len(changed), unreadable)

    def in_use(self) -> dict[bytes, int]:
        """Return header → how many customers' keys are wrapped so; that of the proof is always among them."""
        with translated():
            proof = self._proof("SELECT wrapped FROM vault.proof")
            found = self._db.execute(_IN_USE, (HEADER_BYTES,), binary=True).fetchall()
        return {proof[:HEADER_BYTES]: 0} | {bytes(header): int(number) for header, number in found}

    def scrub(self, headers: Collection[bytes]) -> None:
        """Destroy what is left of values that were replaced: PostgreSQL leaves them on their pages."""
        del headers
        with translated():
            if not self._ended:
                # Once, and asked again until nobody from before is left: under load there is always somebody new.
                with self._db.transaction():
                    (self._ended,) = self._db.execute("SELECT pg_current_xact_id()::text").fetchone() or ("",)
            if self._db.execute(READERS_BEFORE, (self._ended,)).fetchone() != (0,):
                raise StoreInUse("what was replaced is still held by a reader")
            for table in ("vault.proof", "vault.keys"):
                self._db.execute(f"VACUUM (FULL) {table}", prepare=False)

    def _proof(self, statement: LiteralString) -> bytes:
        try:
            row = self._db.execute(statement, binary=True).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise VaultUnusable("there is no vault in the database") from error
        if row is None:
            raise VaultUnusable("the vault in the database does not prove which master key it belongs to")
        return bytes(row[0])

    def close(self) -> None:
        """Finish."""
        self._db.close()


_PAGE: Final = (
    "SELECT tenant_id, customer_id, wrapped FROM vault.keys WHERE (tenant_id, customer_id) > ($1::text, $2::text)"
    " ORDER BY tenant_id, customer_id LIMIT $3"
)
_REWRAP: Final = (
    "UPDATE vault.keys AS k SET wrapped = n.new"
    " FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[]) AS n (tenant_id, customer_id, old, new)"
    " WHERE k.tenant_id = n.tenant_id AND k.customer_id = n.customer_id AND k.wrapped = n.old"
)
_IN_USE: Final = (
    "SELECT substr(wrapped, 1, $1::int), count(*) FROM vault.keys"
    " WHERE wrapped <> decode(repeat('00', length(wrapped)), 'hex') GROUP BY 1"
)
