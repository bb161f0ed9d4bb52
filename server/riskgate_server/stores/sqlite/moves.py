"""A store in files as one end of a move."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from riskgate_server.stores.moves import KEYS, TABLES, Cursor, Mark, Page, Row, Rows, encode_mark
from riskgate_server.stores.refusals import MoveRefused, VaultUnusable
from riskgate_server.stores.sqlite.connections import reading, writing
from riskgate_server.stores.sqlite.schema import Kind
from riskgate_server.stores.sqlite.snapshots import misfiled
from riskgate_server.stores.sqlite.store import SQLiteStore, create_store
from riskgate_server.stores.sqlite.transaction import Insert, SQLiteTransaction
from riskgate_server.stores.sqlite.vault import SqliteVault, create_vault
from riskgate_server.stores.wrapping import Wrap, forget_destroyed

ONE_LANE: Final = "writer"
"""A file has one lane: its rows do not say whose they are."""

RECORD: Final = ("tenant_id", "customer_id", "kind", "id")
_FACTS: Final = ("lapses_us", "owed_since", "fingerprint", "sequence", "at_us", "state")


class Part(msgspec.Struct, frozen=True):
    """A table of the file, and which of `TABLES` its rows belong to."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    sort: Callable[[Sequence[Row]], Rows]


def _sort_records(rows: Sequence[Row]) -> Rows:
    """Tell apart what is filed together: three tables, each with its own columns."""
    sorted_: dict[str, list[Row]] = {"requests": [], "purchases": [], "payments": []}
    for tenant, customer, kind, name, lapses, owed, fingerprint, sequence, at, state in rows:
        match kind:
            case Kind.REQUEST:
                sorted_["requests"].append((tenant, customer, name, fingerprint, sequence, at, state))
            case Kind.PAYMENT:
                sorted_["payments"].append((tenant, customer, name, state))
            case _:
                sorted_["purchases"].append((tenant, customer, name, lapses, owed, state))
    return sorted_


def _as_record(table: str, row: Row) -> Row:
    """Return a row of one of those tables as it is filed."""
    tenant, customer, name, *others = row
    if table == "requests":
        return (tenant, customer, Kind.REQUEST, name, None, None, *others)
    if table == "payments":
        return (tenant, customer, Kind.PAYMENT, name, None, None, None, None, None, *others)
    lapses, owed, state = others
    kind = Kind.OPEN_PURCHASE if lapses else Kind.PURCHASE
    return (tenant, customer, kind, name, lapses, owed, None, None, None, state)


RECORDS: Final = ("purchases", "payments", "requests")


def _part(name: str) -> Part:
    """Return the part that is a table of the same name."""
    table = TABLES[name]
    if table.columns[0] == ONE_LANE:
        return Part(table.columns[1:], table.key[1:], lambda rows: {name: [(0, *row) for row in rows]})
    return Part(table.columns, table.key, lambda rows: {name: rows})


PARTS: Final[Mapping[str, Part]] = {
    **{name: _part(name) for name in TABLES if name not in (*RECORDS, "entries", "batches")},
    "records": Part((*RECORD, *_FACTS), RECORD, _sort_records),
    **{name: _part(name) for name in ("entries", "batches")},
}

_INTO: Final = {
    name: Insert(name, ", ".join(part.columns)) for name, part in PARTS.items() if name not in (KEYS, "records")
}
_INTO_RECORDS: Final = Insert("records", ", ".join(PARTS["records"].columns))
_INTO_MOVES: Final = Insert("moves", "id, mark")


class SQLitePlace:
    """Keeps `stores.moves.Place` over an opened store and its vault."""

    parts: Final = tuple(PARTS)

    def __init__(self, store: SQLiteStore, vault: SqliteVault, name: str) -> None:
        self.store = store
        self.name = name
        self._vault = vault

    def mark(self) -> Mark | None:
        """Return the mark."""
        return self.store.move

    def set_mark(self, mark: Mark | None) -> None:
        """Replace the mark."""
        self._write({}, mark)

    def counts(self) -> Mapping[str, int]:
        """Return how many rows there are of each kind."""
        with self.store.snapshot() as snapshot:
            db = snapshot.connection
            with reading():
                kinds = dict(db.execute("SELECT kind, count(*) FROM records GROUP BY kind").fetchall())
                counted = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in _INTO}
        return counted | {
            KEYS: self._vault.count(),
            "requests": kinds.get(Kind.REQUEST, 0),
            "payments": kinds.get(Kind.PAYMENT, 0),
            "purchases": kinds.get(Kind.PURCHASE, 0) + kinds.get(Kind.OPEN_PURCHASE, 0),
        }

    def faults(self) -> Sequence[str]:
        """Return what is filed under no kind, or as another one."""
        with self.store.snapshot() as snapshot:
            number = misfiled(snapshot.connection)
        return [f"{number} records are of no kind, or are not what their kind is"] if number else []

    def lanes(self) -> Mapping[int, tuple[int, bytes]]:
        """Return where the one lane ends."""
        with self.store.snapshot() as snapshot:
            return {lane.writer: (lane.batch.sequence, lane.batch.hash) for lane in snapshot.lanes() if lane.batch}

    def take(self, lanes: Iterable[int]) -> None:
        """Refuse lanes beside the one."""
        require_one_lane(lanes)

    def page(self, cursor: Cursor, limit: int) -> Page:
        """Return rows behind a cursor."""
        part = PARTS[cursor.part]
        after = cursor.key()
        if cursor.part == KEYS:
            rows: Sequence[Row] = self._vault.wrapped(after or ("", ""), limit)
        else:
            key = ", ".join(part.key)
            behind = f" WHERE ({key}) > ({', '.join('?' * len(after))})" if after else ""
            asked = f"SELECT {', '.join(part.columns)} FROM {cursor.part}{behind} ORDER BY {key} LIMIT ?"
            with self.store.snapshot() as snapshot, reading():
                rows = snapshot.connection.execute(asked, (*after, limit)).fetchall()
        places = [part.columns.index(column) for column in part.key]
        end = cursor.at(rows[-1][place] for place in places) if rows else cursor
        return Page(part.sort(rows), end, last=len(rows) < limit)

    def keep_others_away(self) -> None:
        """Nothing to do: the file is locked as long as it is open."""

    def begin(self, mark: Mark) -> None:
        """Make the empty store a target."""
        if any(number for table, number in self.counts().items() if table != "rulesets"):
            raise MoveRefused(f"{self.name} is not empty: a copy goes where nothing is yet")
        with self.store.transaction() as tx:
            # A server that only started here has left its ruleset.
            tx.change("DELETE FROM rulesets")
            _put_mark(tx, mark)

    def write(self, rows: Rows, mark: Mark) -> None:
        """
        Add rows and replace the mark.

        Keys are durable before the mark says so, in a file of their own: they may be written again.
        """
        self._vault.keep_wrapped(rows.get(KEYS, ()))
        self._write(rows, mark)

    def _write(self, rows: Rows, mark: Mark | None) -> None:
        with self.store.transaction() as tx, writing():
            for table, some in rows.items():
                if table in RECORDS:
                    tx.insert(_INTO_RECORDS, [_as_record(table, row) for row in some])
                elif table != KEYS:
                    tx.insert(_INTO[table], [row[1:] for row in some] if TABLES[table].columns[0] == ONE_LANE else some)
            _put_mark(tx, mark)

    def change_keys(self, rows: Sequence[Row]) -> None:
        """Have these keys as they are given."""
        forget_destroyed(rows, self._vault)
        self._vault.keep_wrapped(rows)

    def finish(self, mark: Mark) -> None:
        """Replace the mark: where the lane ends is read from the journal."""
        self.set_mark(mark)

    def close(self) -> None:
        """Close both files."""
        self._vault.close()
        self.store.close()


def _put_mark(tx: SQLiteTransaction, mark: Mark | None) -> None:
    tx.change("DELETE FROM moves")
    if mark is not None:
        tx.insert(_INTO_MOVES, [(1, encode_mark(mark))])


def make_files(store: Path, vault: Path, wrap: Wrap) -> None:
    """
    Make the two files of an empty store where they are not; what a crash left of one is made anew.

    Raises:
        VaultUnusable: the store has customers, and its vault is gone.
    """
    made = [path for path in (store, vault) if _is_made(path)]
    # On both, so that neither is taken for another's.
    mark = _mark_in(made[0]) if made else int.from_bytes(os.urandom(4), "big") >> 1 or 1
    if store not in made:
        _remove(store)
        create_store(store, mark=mark)
    if vault not in made:
        if store in made and _has_customers(store):
            raise VaultUnusable(f"{vault} is missing: restore it from a backup")
        _remove(vault)
        create_vault(vault, wrap, mark=mark)


def _ask(path: Path, statement: str) -> int:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db, reading():
        (found,) = db.execute(statement).fetchone()
    return int(found)


def _is_made(path: Path) -> bool:
    return path.exists() and _ask(path, "PRAGMA user_version") > 0


def _mark_in(path: Path) -> int:
    return _ask(path, "PRAGMA application_id")


def _has_customers(path: Path) -> bool:
    return bool(_ask(path, "SELECT EXISTS (SELECT 1 FROM customers)"))


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def require_one_lane(lanes: Iterable[int]) -> None:
    """Raise `MoveRefused` for lanes beside the one that a store in files has."""
    if others := sorted(set(lanes) - {0}):
        numbers = ", ".join(map(str, others))
        raise MoveRefused(f"a store in files has one lane, and the journal has those of writers {numbers} too")
