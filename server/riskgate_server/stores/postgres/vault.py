"""
Customers' data keys in a schema of their own, wrapped under the master key.

Forgetting writes zeros over a key and then the whole table anew, for PostgreSQL leaves what was replaced on its page.
What it cannot reach is what left the table before: the write-ahead log until it is recycled or in an archive, a
standby, a backup. There the master key is the lock, and their age the bound.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Final

import psycopg

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import StoreInUse
from riskgate_server.engine.storing import NoKey
from riskgate_server.stores.postgres import session
from riskgate_server.stores.postgres.arrays import Blobs, Texts
from riskgate_server.stores.postgres.schema import migrate
from riskgate_server.stores.postgres.session import Connection, translated
from riskgate_server.stores.refusals import VaultUnusable
from riskgate_server.stores.wrapping import HEADER_BYTES, NOBODY, PROOF, Unwrap, Wrap, is_forgotten, wrapped_for

CACHED_MAX: Final = 65_536
"""About 20 MB of memory; spares a customer's next command a query and an unwrapping."""

CACHED_SECONDS: Final = 10.0
"""How long a key is remembered: what another process has forgotten is read with for so long at most."""


def create_vault(dsn: str, wrap: Wrap) -> None:
    """Make an empty vault, with a proof of the master key it belongs to. One that exists is left as it is."""
    db = session.connect(dsn)
    try:
        with translated():
            session.set_up(db, idle_seconds=session.IDLE_SECONDS)
            migrate(db)
            db.execute("INSERT INTO vault.proof VALUES (1, $1) ON CONFLICT DO NOTHING", (wrap(NOBODY, PROOF),))
    finally:
        db.close()


class PostgresVault:
    """Keeps the port `engine.storing.Vault`. Safe from any thread, beside other servers' vaults."""

    def __init__(
        self,
        dsn: str,
        *,
        wrap: Wrap,
        unwrap: Unwrap,
        read_only: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Open an existing vault.

        Raises:
            VaultUnusable: there is no vault in the database.
            Exception: what `unwrap` raises when the vault belongs to another master key.
        """
        self._dsn = dsn
        self._wrap = wrap
        self._unwrap = unwrap
        self._read_only = read_only
        self._monotonic = monotonic
        self._cached: dict[CustomerKey, bytes] = {}
        self._cached_since = 0.0
        self._lock = threading.Lock()
        self._closed = False
        self._db: Connection | None = None
        try:
            with self._connected() as db:
                self._verify(db)
        except BaseException:
            self.close()
            raise

    def keys(self, customers: Sequence[CustomerKey]) -> dict[CustomerKey, bytes | NoKey]:
        """Return the data key of each customer, or why there is none; one customer's damage harms no other."""
        if self._monotonic() - self._cached_since >= CACHED_SECONDS:
            # All at once: each is asked for again with those that come along.
            self._cached, self._cached_since = {}, self._monotonic()
        cached = self._cached
        missing = [customer for customer in customers if customer not in cached]
        found: dict[CustomerKey, bytes | NoKey] = {
            customer: cached.get(customer, NoKey.ABSENT) for customer in customers
        }
        if missing:
            with self._connected() as db:
                found.update(self._load(db, missing))
        return found

    def create(self, keys: Mapping[CustomerKey, bytes]) -> dict[CustomerKey, bytes]:
        """
        Keep new keys, durable on return, and return the keys that now stand (an older one wins).

        An older one is another server's, or what a crash between this commit and the store's left behind.

        Raises:
            ValueError: a customer's key was forgotten, or is damaged: it must not seem to be another one now.
            StoreBusy: this process does not know the master key yet that the vault was turned to.
        """
        ordered = sorted(keys)
        with self._connected() as db:
            with db.transaction():
                # Held until the keys are in: whoever turns the vault to another master key waits, and finds them.
                (proof,) = db.execute(_PROOF_HELD, binary=True).fetchone() or (b"",)
                rows = wrapped_for({customer: keys[customer] for customer in ordered}, self._wrap, proof[:HEADER_BYTES])
                db.execute(_CREATE, (*_columns(ordered), Blobs(wrapped for _, _, wrapped in rows)))
            standing = self._load(db, ordered)
        found: dict[CustomerKey, bytes] = {}
        for customer, key in standing.items():
            if isinstance(key, NoKey):
                raise ValueError(f"the key of this customer is {key.value}")  # noqa: TRY004  not its type
            found[customer] = key
        return found

    def forget(self, customer: CustomerKey) -> None:
        """
        Destroy one customer's key. Again is no effect, but finishes what was left over.

        The customer's row is told in the same step: whoever locks it later uses no key that is remembered elsewhere.

        Raises:
            StoreBusy: another process held the customer for too long; nothing happened.
            StoreInUse: the key is destroyed, but a reader from before may still see it: forget again.
        """
        if self._closed:
            raise RuntimeError("the vault is closed")
        # On a connection of its own: a writer that holds the customer may just be asking for keys.
        with closing(self._connect()) as db, translated():
            if not db.execute(_WRAPPED, _columns([customer])).fetchone():
                return
            with db.transaction():
                db.execute(_TELL, customer)
                db.execute(_FORGET, customer)
                (ended,) = db.execute("SELECT pg_current_xact_id()::text").fetchone() or ("",)
            self._cached.pop(customer, None)
            held = db.execute(READERS_BEFORE, (ended,)).fetchone() != (0,)
            try:
                db.execute("VACUUM (FULL) vault.keys", prepare=False)
            except psycopg.errors.LockNotAvailable:
                held = True
        if held:
            raise StoreInUse("the key is destroyed, but what was replaced is still held by a reader: forget again")

    def count(self) -> int:
        """Return how many customers have, or had, a key."""
        with self._connected() as db:
            (number,) = db.execute("SELECT count(*) FROM vault.keys").fetchone() or (0,)
        return int(number)

    def close(self) -> None:
        """Finish; use afterwards raises."""
        with self._lock:
            self._closed = True
            self._cached.clear()
            if self._db is not None:
                self._db.close()

    def _load(self, db: Connection, customers: Sequence[CustomerKey]) -> dict[CustomerKey, bytes | NoKey]:
        found: dict[CustomerKey, bytes | NoKey] = dict.fromkeys(customers, NoKey.ABSENT)
        for tenant_id, customer_id, wrapped in db.execute(_WRAPPED, _columns(customers), binary=True):
            customer = (tenant_id, customer_id)
            found[customer] = key = self._opened(customer, wrapped)
            if isinstance(key, NoKey):
                continue
            # A reader cannot see that a server forgets, so it keeps nothing.
            if not self._read_only:
                cached = self._cached
                if len(cached) >= CACHED_MAX:
                    cached.pop(next(iter(cached)))
                cached[customer] = key
        return found

    def _opened(self, customer: CustomerKey, wrapped: bytes) -> bytes | NoKey:
        if is_forgotten(wrapped):
            return NoKey.FORGOTTEN
        try:
            return self._unwrap(customer, wrapped)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever the wrapping says of it, it is of no use
            return NoKey.DAMAGED

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Lend the connection, made anew where it was lost; a statement that was lost with it had no effect or one."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the vault is closed")
            if self._db is None or self._db.closed:
                self._db = self._connect()
            with translated():
                yield self._db

    def _connect(self) -> Connection:
        db = session.connect(self._dsn)
        try:
            with translated():
                session.set_up(db, idle_seconds=session.IDLE_SECONDS)
                # A standby will do for who only reads.
                if not self._read_only:
                    session.probe(db)
        except BaseException:
            db.close()
            raise
        return db

    def _verify(self, db: Connection) -> None:
        try:
            row = db.execute("SELECT wrapped FROM vault.proof", binary=True).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise VaultUnusable("there is no vault in the database") from error
        if row is None or self._unwrap(NOBODY, row[0]) != PROOF:
            raise VaultUnusable("the vault in the database does not prove which master key it belongs to")


def _columns(customers: Sequence[CustomerKey]) -> tuple[Texts, Texts]:
    return Texts(tenant for tenant, _ in customers), Texts(customer for _, customer in customers)


_ASKED: Final = "unnest($1::text[], $2::text[]) AS asked (tenant_id, customer_id)"
_WRAPPED: Final = (
    f"SELECT k.tenant_id, k.customer_id, k.wrapped FROM {_ASKED}"
    " JOIN vault.keys AS k ON k.tenant_id = asked.tenant_id AND k.customer_id = asked.customer_id"
)
_PROOF_HELD: Final = "SELECT wrapped FROM vault.proof FOR SHARE"
_CREATE: Final = (
    "INSERT INTO vault.keys SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[])"
    " ON CONFLICT (tenant_id, customer_id) DO NOTHING"
)
_ZEROS: Final = "decode(repeat('00', length(wrapped)), 'hex')"
_FORGET: Final = (
    f"UPDATE vault.keys SET wrapped = {_ZEROS} WHERE tenant_id = $1 AND customer_id = $2 AND wrapped <> {_ZEROS}"
)
_TELL: Final = "UPDATE customers SET forgotten = true WHERE tenant_id = $1 AND customer_id = $2 AND NOT forgotten"
READERS_BEFORE: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
    " AND age(backend_xmin) >= age($1::text::xid)"
)
"""Whoever began before a transaction ended still sees what it replaced: the table written anew keeps it for them."""
