"""A store's file as those see it who only read: a program that verifies it while its server writes."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from riskgate_server.stores.moves import Mark, decode_mark
from riskgate_server.stores.sqlite.connections import Readers, reading
from riskgate_server.stores.sqlite.reads import SQLiteSnapshot
from riskgate_server.stores.sqlite.schema import Kind, differences, refuse_newer


class SQLiteSnapshots:
    """Reads a file that a live server may be writing; keeps `engine.storing.Snapshots`."""

    def __init__(self, path: Path) -> None:
        """
        Open the file for one snapshot at a time.

        Raises:
            SchemaTooNew: a newer program wrote it.
            ReadFailed: it cannot be read.
        """
        with reading():
            refuse_newer(path)
        self._readers = Readers(path, 1)

    def snapshot(self) -> SQLiteSnapshot:
        """A consistent view of everything committed so far."""
        return SQLiteSnapshot(self._readers)

    def schema_differences(self) -> tuple[list[str], list[str]]:
        """Return how the schema differs from a fresh one: what is missing or altered, and what was added."""
        with self.snapshot() as snapshot, reading():
            return differences(snapshot.connection)

    def misfiled(self) -> int:
        """Return how many records are of no kind, filed under another one, or have a value their kind has not."""
        with self.snapshot() as snapshot:
            return misfiled(snapshot.connection)

    @property
    def mark(self) -> int:
        """The mark the store was made with; 0 for none."""
        with self.snapshot() as snapshot, reading():
            return mark_of(snapshot.connection)

    @property
    def move(self) -> Mark | None:
        """The mark of the move it is an end of; None for none."""
        with self.snapshot() as snapshot:
            return move_of(snapshot.connection)

    def close(self) -> None:
        """Finish."""
        self._readers.close()


_PURCHASE: Final = "lapses_us IS NOT NULL AND owed_since IS NOT NULL"
_NO_PURCHASE: Final = "lapses_us IS NULL AND owed_since IS NULL"
_REQUEST: Final = "fingerprint IS NOT NULL AND sequence IS NOT NULL AND at_us IS NOT NULL"
_NO_REQUEST: Final = "fingerprint IS NULL AND sequence IS NULL AND at_us IS NULL"
_FILED: Final = (
    f"CASE kind WHEN {Kind.REQUEST:d} THEN {_NO_PURCHASE} AND {_REQUEST}"
    f" WHEN {Kind.PAYMENT:d} THEN {_NO_PURCHASE} AND {_NO_REQUEST}"
    f" WHEN {Kind.OPEN_PURCHASE:d} THEN {_PURCHASE} AND lapses_us > 0 AND {_NO_REQUEST}"
    f" WHEN {Kind.PURCHASE:d} THEN {_PURCHASE} AND lapses_us = 0 AND {_NO_REQUEST} ELSE FALSE END"
)
"""Which values a record of each kind has: a request that seemed to owe something would stop its customer's payments."""


def misfiled(db: sqlite3.Connection) -> int:
    """Return how many records are of no kind, filed under another one, or lack or have a value their kind has not."""
    with reading():
        (number,) = db.execute(f"SELECT count(*) FROM records WHERE NOT ({_FILED})").fetchone()
    return int(number)


def move_of(db: sqlite3.Connection) -> Mark | None:
    """Return the mark of the move a file is an end of; None for none."""
    with reading():
        row = db.execute("SELECT mark FROM moves").fetchone()
    return decode_mark(row[0]) if row else None


def mark_of(db: sqlite3.Connection) -> int:
    """Return the mark a file was made with; 0 for none."""
    (mark,) = db.execute("PRAGMA application_id").fetchone()
    return int(mark)
