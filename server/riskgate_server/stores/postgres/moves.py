"""A store in a database as one end of a move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Final

import psycopg
from psycopg import conninfo, pq

from riskgate_server.stores.moves import KEYS, TABLES, Cursor, Mark, Page, Row, Rows, Table, encode_mark
from riskgate_server.stores.postgres.arrays import Blobs, Numbers, Texts
from riskgate_server.stores.postgres.schema import VAULT_SCHEMA
from riskgate_server.stores.postgres.session import reading
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.postgres.transaction import PostgresTransaction
from riskgate_server.stores.postgres.vault import PostgresVault, create_vault
from riskgate_server.stores.refusals import MoveRefused
from riskgate_server.stores.wrapping import Unwrap, Wrap, forget_destroyed

_TEXTS: Final = (
    "tenant_id", "customer_id", "transaction_id", "payment_id", "request_id", "message_id", "source",
)  # fmt: skip
_BLOBS: Final = (
    "hash", "root", "state", "profile", "fingerprint", "reply", "clear", "nonce", "sealed", "wrapped", "id",
)  # fmt: skip


class _Insert:
    """Adds any number of rows to a table, given as one array per column."""

    def __init__(self, name: str, table: Table) -> None:
        kinds = [
            (Texts, "text") if column in _TEXTS else (Blobs, "bytea") if column in _BLOBS else (Numbers, "bigint")
            for column in table.columns
        ]
        self._makers: list[Callable[[Any], Any]] = [make for make, _ in kinds]
        columns = ", ".join(table.columns)
        arrays = ", ".join(f"${number}::{kind}[]" for number, (_, kind) in enumerate(kinds, 1))
        self.text = f"INSERT INTO {_named(name)} ({columns}) SELECT * FROM unnest({arrays})"

    def columns(self, rows: Sequence[Row]) -> tuple[Any, ...]:
        """Return its parameters."""
        return tuple(make(values) for make, values in zip(self._makers, zip(*rows, strict=True), strict=True))


def _named(table: str) -> str:
    return f"{VAULT_SCHEMA}.{table}" if table == KEYS else table


_INTO: Final = {name: _Insert(name, table) for name, table in TABLES.items()}


class PostgresPlace:
    """Keeps `stores.moves.Place` over an opened store and the vault in the same database."""

    parts: Final = tuple(TABLES)

    def __init__(self, store: PostgresStore, dsn: str, *, wrap: Wrap, unwrap: Unwrap) -> None:
        self.store = store
        self.name = place_name(dsn)
        self._dsn = dsn
        self._wrap = wrap
        self._unwrap = unwrap
        self._lanes = ExitStack()

    def mark(self) -> Mark | None:
        """Return the mark."""
        return self.store.move

    def set_mark(self, mark: Mark | None) -> None:
        """Replace the mark."""
        with self.store.transaction() as tx:
            _put_mark(tx, mark)

    def counts(self) -> Mapping[str, int]:
        """Return how many rows there are of each kind."""
        asked = ", ".join(f"(SELECT count(*) FROM {_named(name)})" for name in TABLES)
        (counted,) = self._all(f"SELECT {asked}", ())
        return dict(zip(TABLES, counted, strict=True))

    def faults(self) -> Sequence[str]:
        """Return none: the tables hold their rows to what their kind is."""
        return ()

    def lanes(self) -> Mapping[int, tuple[int, bytes]]:
        """Return where every lane ends."""
        rows = self._all("SELECT DISTINCT ON (writer) writer, sequence, hash FROM batches ORDER BY 1, 2 DESC", ())
        return {writer: (sequence, last) for writer, sequence, last in rows}

    def take(self, lanes: Iterable[int]) -> None:
        """Nothing to refuse: a database has a lane for every writer."""

    def page(self, cursor: Cursor, limit: int) -> Page:
        """Return rows behind a cursor."""
        table = TABLES[cursor.part]
        after = cursor.key()
        key = ", ".join(table.key)
        given = ", ".join(f"${number}" for number in range(1, len(after) + 1))
        behind = f" WHERE ({key}) > ({given})" if after else ""
        rows = self._all(
            f"SELECT {', '.join(table.columns)} FROM {_named(cursor.part)}{behind}"
            f" ORDER BY {key} LIMIT ${len(after) + 1}",
            (*after, limit),
        )
        end = cursor.at(rows[-1][: len(table.key)]) if rows else cursor
        return Page({cursor.part: rows}, end, last=len(rows) < limit)

    def _all(self, sql: str, given: tuple[Any, ...]) -> list[Row]:
        with self.store.snapshot() as snapshot, reading():
            return snapshot.connection.execute(sql, given, binary=True).fetchall()

    def keep_others_away(self) -> None:
        """Take every other lane too: whoever has one is refused, or learns at its next commit that it lost it."""
        for (writer,) in self._all("SELECT writer FROM writers WHERE writer <> $1", (self.store.writer,)):
            self._lanes.callback(PostgresStore(self._dsn, writer, readers=1).close)

    def begin(self, mark: Mark) -> None:
        """Make the empty store a target."""
        if any(number for table, number in self.counts().items() if table != "rulesets"):
            raise MoveRefused(f"{self.name} is not empty: a copy goes where nothing is yet")
        create_vault(self._dsn, self._wrap)
        # One that was there already may be another master key's.
        PostgresVault(self._dsn, wrap=self._wrap, unwrap=self._unwrap).close()
        with self.store.transaction() as tx:
            # A server that only started here has left its ruleset.
            tx.change("DELETE FROM rulesets", ())
            _put_mark(tx, mark)

    def write(self, rows: Rows, mark: Mark) -> None:
        """Add rows and replace the mark."""
        with self.store.transaction() as tx:
            for table, some in rows.items():
                if some:
                    _insert(tx, table, some)
            _put_mark(tx, mark)

    def change_keys(self, rows: Sequence[Row]) -> None:
        """Have these keys as they are given."""
        if rows:
            with closing(PostgresVault(self._dsn, wrap=self._wrap, unwrap=self._unwrap)) as vault:
                forget_destroyed(rows, vault)
            with self.store.transaction() as tx:
                tx.change(f"{_INTO[KEYS].text} {_OR_CHANGE_KEY}", _INTO[KEYS].columns(rows))

    def finish(self, mark: Mark) -> None:
        """Say where every lane ends, for the servers that will write them, and replace the mark."""
        with self.store.transaction() as tx:
            tx.change(_LANES_END, ())
            _put_mark(tx, mark)

    def close(self) -> None:
        """Give the lanes back."""
        self._lanes.close()
        self.store.close()


def _insert(tx: PostgresTransaction, table: str, rows: Sequence[Row]) -> None:
    into = _INTO[table]
    try:
        tx.change(into.text, into.columns(rows))
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        raise MoveRefused(f"a row of {table} is not one a database can hold: {str(error).strip()}") from error


def _put_mark(tx: PostgresTransaction, mark: Mark | None) -> None:
    tx.change("DELETE FROM moves", ())
    if mark is not None:
        tx.change("INSERT INTO moves VALUES (1, $1)", (encode_mark(mark),))


_PORT: Final = "5432"
"""PostgreSQL's own, which need not be said."""


def place_name(dsn: str) -> str:
    """
    Return a DSN as people may read it, and use it: host, port and database, and neither user nor password.

    What it leaves open is said as libpq takes it, from the environment too: the name is read elsewhere, and later.
    """
    taken = {option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val}
    found = {**taken, **{name: str(value) for name, value in conninfo.conninfo_to_dict(dsn).items() if value}}
    host, port = found.get("host", ""), found.get("port", _PORT)
    name = found.get("dbname") or found.get("user", "")
    if host.startswith("/"):
        # The folder of a socket is no part of a URL's host.
        return f"postgresql:///{name}?host={host}" + (f"&port={port}" if port != _PORT else "")
    hosts, ports = host.split(","), port.split(",")
    ports = ports if len(ports) == len(hosts) else ports * len(hosts)
    where = (h if p in ("", _PORT) else f"{h}:{p}" for h, p in zip(hosts, ports, strict=False))
    return f"postgresql://{','.join(where)}/{name}"


_OR_CHANGE_KEY: Final = "ON CONFLICT (tenant_id, customer_id) DO UPDATE SET wrapped = excluded.wrapped"
_LANES_END: Final = """
INSERT INTO writers (writer, sequence, at_us, first_position, count, root, hash, position)
  SELECT DISTINCT ON (writer) writer, sequence, at_us, first_position, count, root, hash, first_position + count - 1
  FROM batches ORDER BY writer, sequence DESC
ON CONFLICT (writer) DO UPDATE SET sequence = excluded.sequence, at_us = excluded.at_us,
  first_position = excluded.first_position, count = excluded.count, root = excluded.root, hash = excluded.hash,
  position = excluded.position
"""
