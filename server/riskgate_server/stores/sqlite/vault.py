"""
Customers' data keys in a SQLite file of their own, so that a key can be truly forgotten.

A key is stored wrapped (the wrapping is given by whoever opens the vault). Forgetting overwrites it
in place; `secure_delete` and a truncated log see to copies, and since copies may hide where we did
not think of, forgetting ends by searching the files for what was destroyed.

The proof names the master key that keys are wrapped under; who turns the vault to another one changes it first, so that
nothing is wrapped under the old one afterwards (`rewrapping`).

One connection writes and checkpoints; others, in this or another process, open the vault to read.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from riskgate_server.datadir import create_empty_private
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import StoreBroken, StoreBusy, StoreFull, StoreInUse
from riskgate_server.engine.storing import NoKey
from riskgate_server.stores.refusals import VaultUnusable
from riskgate_server.stores.sqlite.leftovers import holds_any
from riskgate_server.stores.sqlite.resync import alone, write_log_again
from riskgate_server.stores.wrapping import HEADER_BYTES, NOBODY, PROOF, Unwrap, Wrap, is_forgotten, wrapped_for

SCHEMA_VERSION: Final = 1
CACHED_MAX: Final = 65_536
"""About 20 MB of memory; spares a customer's next command a query and an unwrapping."""

_BUSY_SECONDS: Final = 5.0
_FRAGMENT_BYTES: Final = 8
"""What is searched for after forgetting: any 15 bytes left of a key contain one such piece."""

_SCHEMA: Final = """
CREATE TABLE proof (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    wrapped BLOB NOT NULL
) STRICT;

-- A forgotten key stays as a row of zeros of the same length.
CREATE TABLE keys (
    tenant_id TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    wrapped BLOB NOT NULL,
    PRIMARY KEY (tenant_id, customer_id)
) STRICT, WITHOUT ROWID;
"""


def create_vault(path: Path, wrap: Wrap, *, mark: int = 0) -> None:
    """Make an empty vault, with a proof of the master key it belongs to, and the mark of its store (31 bits)."""
    create_empty_private(path)
    connection = connect(path, read_only=False)
    try:
        connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};")
        connection.execute(f"PRAGMA application_id = {mark}")
        connection.execute("INSERT INTO proof VALUES (1, ?)", (wrap(NOBODY, PROOF),))
        connection.execute("COMMIT")
    finally:
        connection.close()


class SqliteVault:
    """Keeps the port `engine.storing.Vault`. Safe from any thread."""

    def __init__(self, path: Path, *, wrap: Wrap, unwrap: Unwrap, read_only: bool = False) -> None:
        """
        Open an existing vault, and finish a forgetting that a crash may have interrupted.

        Raises:
            VaultUnusable: there is no vault at `path`, or a newer version made it.
            Exception: what `unwrap` raises when the vault belongs to another master key.
        """
        self._path = path
        self._wrap = wrap
        self._unwrap = unwrap
        self._read_only = read_only
        self._cached: dict[CustomerKey, bytes] = {}
        self._lock = threading.Lock()
        # SQLite would make a new, empty vault of a missing one, and every customer unreadable.
        if not path.is_file():
            raise VaultUnusable(f"{path} is missing: restore it from a backup")
        self._file: BinaryIO | None = None
        self._connection = self._connect()
        try:
            self._verify()
            if not read_only:
                self._empty_log()
        except BaseException:
            self._connection.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        if self._read_only:
            return connect(self._path, read_only=True)
        with alone(self._path):
            write_log_again(self._path)
            return connect(self._path, read_only=False)

    def keys(self, customers: Sequence[CustomerKey]) -> dict[CustomerKey, bytes | NoKey]:
        """Return the data key of each customer, or why there is none; one customer's damage harms no other."""
        found: dict[CustomerKey, bytes | NoKey] = {}
        for customer in customers:
            cached: bytes | NoKey | None = self._cached.get(customer)
            if cached is None:
                with self._lock, translated():
                    cached = self._load(customer)
            found[customer] = cached
        return found

    def create(self, keys: Mapping[CustomerKey, bytes]) -> dict[CustomerKey, bytes]:
        """
        Keep new keys, durable on return, and return the keys that now stand (an older one wins).

        An older one is what a crash between this commit and the store's left behind; it is as good as new.

        Raises:
            ValueError: a customer's key was forgotten, or is damaged: it must not seem to be another one now.
            StoreBusy: this process does not know the master key yet that the vault was turned to.
        """
        standing: dict[CustomerKey, bytes] = {}
        with self._lock, translated():
            with self._transaction():
                # In the same transaction: from when the vault is turned to another master key nothing is kept under
                # the old one.
                (proof,) = self._connection.execute("SELECT wrapped FROM proof").fetchone()
                rows = wrapped_for(keys, self._wrap, proof[:HEADER_BYTES])
                self._connection.executemany("INSERT OR IGNORE INTO keys VALUES (?, ?, ?)", rows)
            for customer in keys:
                key = self._load(customer)
                if isinstance(key, NoKey):
                    raise ValueError(f"the key of this customer is {key.value}")  # noqa: TRY004  not its type
                standing[customer] = key
        return standing

    def forget(self, customer: CustomerKey) -> None:
        """
        Destroy one customer's key: on return it is in no file of the vault. Again is no effect.

        Raises:
            StoreInUse: the key is destroyed, but a reader still holds the log that has it: forget again.
        """
        with self._lock, translated():
            wrapped = self._wrapped(customer)
            self._cached.pop(customer, None)
            if wrapped is None or is_forgotten(wrapped):
                self._empty_log()
                return
            self._write(
                "UPDATE keys SET wrapped = zeroblob(length(wrapped)) WHERE tenant_id = ? AND customer_id = ?",
                [customer],
            )
            self._empty_log()
            if self._left_over(wrapped):
                self._connection.execute("VACUUM")
                self._empty_log()
                if self._left_over(wrapped):
                    raise StoreBroken("a forgotten key is still in the vault's files")

    @property
    def mark(self) -> int:
        """The mark of the store it belongs to; 0 for none."""
        with self._lock, translated():
            (mark,) = self._connection.execute("PRAGMA application_id").fetchone()
        return int(mark)

    def count(self) -> int:
        """Return how many customers have, or had, a key."""
        with self._lock, translated():
            (number,) = self._connection.execute("SELECT count(*) FROM keys").fetchone()
        return int(number)

    def wrapped(self, after: CustomerKey, limit: int) -> list[tuple[str, str, bytes]]:
        """Return tenant, customer and wrapped key as it is stored, by customer behind `after`, at most `limit`."""
        with self._lock, translated():
            return self._connection.execute(
                "SELECT tenant_id, customer_id, wrapped FROM keys WHERE (tenant_id, customer_id) > (?, ?)"
                " ORDER BY tenant_id, customer_id LIMIT ?",
                (*after, limit),
            ).fetchall()

    def keep_wrapped(self, rows: Sequence[Sequence[Any]]) -> None:
        """Keep keys that another vault of the same master key wrapped, durable on return. Again is no effect."""
        if rows:
            with self._lock, translated():
                self._write("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", [tuple(row) for row in rows])

    def close(self) -> None:
        """Finish; use afterwards raises."""
        with self._lock:
            self._cached.clear()
            self._connection.close()
            if self._file is not None:
                self._file.close()

    def _wrapped(self, customer: CustomerKey) -> bytes | None:
        row = self._connection.execute(
            "SELECT wrapped FROM keys WHERE tenant_id = ? AND customer_id = ?", customer
        ).fetchone()
        return None if row is None else bytes(row[0])

    def _load(self, customer: CustomerKey) -> bytes | NoKey:
        wrapped = self._wrapped(customer)
        if wrapped is None:
            return NoKey.ABSENT
        if is_forgotten(wrapped):
            return NoKey.FORGOTTEN
        try:
            key = self._unwrap(customer, wrapped)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever the wrapping says of it, it is of no use
            return NoKey.DAMAGED
        # A reader cannot see that another process forgets, so it keeps nothing.
        if not self._read_only:
            if len(self._cached) >= CACHED_MAX:
                self._cached.pop(next(iter(self._cached)))
            self._cached[customer] = key
        return key

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._transaction():
            self._connection.executemany(statement, rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _empty_log(self) -> None:
        """Bring everything into the main file and cut the log to nothing."""
        busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreInUse("the vault's log cannot be emptied: a reader holds it")

    def _left_over(self, wrapped: bytes) -> bool:
        pieces = [
            wrapped[start : start + _FRAGMENT_BYTES]
            for start in range(0, len(wrapped) - _FRAGMENT_BYTES + 1, _FRAGMENT_BYTES)
            # The first pieces name version and master key, and are in every row.
            if start >= _FRAGMENT_BYTES
        ]
        # Kept until the connection is closed: closing any descriptor of a file lets go of the process's locks on it.
        self._file = self._file or self._path.open("rb")
        return holds_any(self._file, self._path, pieces)

    def _verify(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            raise VaultUnusable(f"{self._path} has format {version}, this version knows {SCHEMA_VERSION}")
        row = self._connection.execute("SELECT wrapped FROM proof").fetchone()
        if row is None or self._unwrap(NOBODY, row[0]) != PROOF:
            raise VaultUnusable(f"{self._path} does not prove which master key it belongs to")


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """
    Open a vault's file, and make sure of how it is written.

    Raises:
        VaultUnusable: it cannot be read, or SQLite does not keep to what the vault needs.
    """
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        _set_up(connection, path, read_only=read_only)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise VaultUnusable(f"{path} cannot be read: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    # What is in force, not what was asked for: a build or a file system may refuse silently.
    needed = {"synchronous": 2, "secure_delete": 1} | ({} if read_only else {"journal_mode": "wal"})
    for setting, value in needed.items():
        (actual,) = connection.execute(f"PRAGMA {setting}").fetchone()
        if actual != value:
            raise VaultUnusable(f"{path}: SQLite has {setting} = {actual}, the vault needs {value}")


@contextmanager
def translated() -> Iterator[None]:
    """Say a driver's errors in the engine's words."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise StoreFull("the vault has no room") from error
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            raise StoreBusy("another process held the vault for too long") from error
        raise StoreBroken("the vault failed") from error
    except sqlite3.DatabaseError as error:
        raise StoreBroken("the vault failed") from error
