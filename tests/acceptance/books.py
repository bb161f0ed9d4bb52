"""
Reads the journal's clear part without a line of the engine's own code, and keeps its own books.

What the engine says of itself is checked by `ledger verify`; this says it a second time, from the
bytes: columns by SQL, events and transfers as plain msgpack lists.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

OPENED, DECIDED, CAPTURED, INCREMENTED, VOIDED, EXPIRED, REFUNDED, PAID = range(1, 9)
REFUSED: Final = 15
COMMITMENT, UNUSED, DRAWN, PRINCIPAL = range(4)
PENDING, POSTED = 0, 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: whose, which, in which commit, and what it says."""

    position: int
    customer_id: str
    sequence: int
    batch: int
    tag: int
    request_id: str
    at_us: int
    event: list[Any]
    transfers: list[list[int]]


def read(store: Path) -> list[Entry]:
    """Return the whole journal in the order of its writing."""
    with closing(sqlite3.connect(store)) as db:
        return _entries(db.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY position"))


def read_database(dsn: str) -> list[Entry]:
    """Return every customer's journal in the order of its writing, whichever lanes it lies in."""
    with psycopg.connect(dsn) as db:
        order = "tenant_id, customer_id, sequence, writer, position"
        return _entries(db.execute(f"SELECT {_COLUMNS} FROM riskgate.entries ORDER BY {order}"))


_COLUMNS: Final = "position, customer_id, sequence, batch, tag, request_id, at_us, clear"


def _entries(rows: Iterable[tuple[Any, ...]]) -> list[Entry]:
    entries = []
    for position, customer_id, sequence, batch, tag, request_id, at_us, clear in rows:
        (written, *event), transfers, *_vouched = msgspec.msgpack.decode(clear)
        assert written == tag, position
        entries.append(Entry(position, customer_id, sequence, batch, tag, request_id, at_us, event, transfers))
    return entries


@dataclass(slots=True)
class Line:
    """What one customer's line comes to so far, in minor units."""

    limit: int = 0
    held: int = 0
    drawn: int = 0


def prefixes(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Line]]:
    """Yield every entry with its customer's line as it stands right after it."""
    found: defaultdict[str, Line] = defaultdict(Line)
    for entry in entries:
        line = found[entry.customer_id]
        for debit, credit, layer, amount in entry.transfers:
            assert amount > 0, entry
            if layer == PENDING:
                line.held += amount * ((debit == UNUSED) - (credit == UNUSED))
            else:
                line.limit += amount * ((debit == COMMITMENT) - (credit == COMMITMENT))
                line.drawn += amount * ((credit == DRAWN) - (debit == DRAWN))
        yield entry, line


def breaches(entries: Sequence[Entry]) -> list[str]:
    """Return every instant at which a line was over its limit, or below nothing."""
    return [
        f"entry {entry.position}: {line} of {entry.customer_id}"
        for entry, line in prefixes(entries)
        if not (line.held >= 0 <= line.drawn and line.held + line.drawn <= line.limit)
    ]


def overtaken(entries: Sequence[Entry]) -> list[str]:
    """Return every entry that took or gave back more of a hold than was left of it."""
    left: defaultdict[tuple[str, str], int] = defaultdict(int)
    faults = []
    for entry in entries:
        event, change = entry.event, 0
        if entry.tag == DECIDED:
            left[entry.customer_id, event[1]] = event[11]
        elif entry.tag == CAPTURED and not event[3]:
            change = event[1] + event[2]
        elif entry.tag in (VOIDED, EXPIRED):
            change = event[1]
        if change:
            left[entry.customer_id, event[0]] -= change
            if left[entry.customer_id, event[0]] < 0:
                faults.append(f"entry {entry.position}: {event}")
    return faults


def lines(entries: Sequence[Entry]) -> dict[str, Line]:
    """Return every customer's line as the journal leaves it."""
    return {entry.customer_id: line for entry, line in prefixes(entries)}


def by_key(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Return entries by customer and request id."""
    found: defaultdict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        # A hold that lapses, or a suspension, is recorded under the request that met it: not that request's effect.
        if entry.request_id and entry.tag in _EFFECTS:
            found[entry.customer_id, entry.request_id].append(entry)
    return found


_EFFECTS: Final = frozenset({OPENED, DECIDED, CAPTURED, VOIDED, REFUNDED, PAID, REFUSED})
