"""
What a move of a store is made of, whichever stores it is between: the tables, the mark, and the two places.

Rows are moved as they are: no state is decoded, no key unwrapped, no hash made anew. A new table is one line of
`TABLES`; a test compares them with the tables that each store has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Literal, Protocol

import msgspec

from riskgate_server.engine.storing import Store

FILES: Final = "sqlite:"
"""How the name of a place begins that is a store in files; any other is a database."""

Row = tuple[Any, ...]
Rows = Mapping[str, Sequence[Row]]
"""By table; each row has the table's columns in their order."""


class Table(msgspec.Struct, frozen=True):
    """One kind of row that every durable store has, under whatever name."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    """No two rows have the same; what is read in pieces is read in this order."""


def _table(key: str, others: str) -> Table:
    first = tuple(key.split())
    return Table((*first, *others.split()), first)


TABLES: Final[Mapping[str, Table]] = {
    "rulesets": _table("hash", "source at_us"),
    "keys": _table("tenant_id customer_id", "wrapped"),
    "customers": _table("tenant_id customer_id", "sequence next_lapse_us state profile"),
    "purchases": _table("tenant_id customer_id transaction_id", "lapses_us owed_since state"),
    "payments": _table("tenant_id customer_id payment_id", "state"),
    "requests": _table("tenant_id customer_id request_id", "fingerprint sequence at_us reply"),
    "identities": _table("tenant_id customer_id", "state"),
    "scopes": _table("tenant_id kind id", "state"),
    "messages": _table("tenant_id customer_id message_id", "due_us sealed"),
    "entries": _table(
        "writer position", "tenant_id customer_id sequence batch at_us tag request_id clear nonce sealed hash"
    ),
    "batches": _table("writer sequence", "at_us first_position count root hash"),
}
"""Every table that is copied. The journal comes last: a store with a batch has all that the batch speaks of."""

KEYS: Final = "keys"
"""The table, and part, of customers' wrapped keys."""

NOT_COPIED: Final[Mapping[str, str]] = {
    "proof": "made with the vault, under the same master key",
    "writers": "who serves a lane; where it ends is read from its batches",
    "migrations": "how this store's own tables came to be",
    "moves": "the mark of the move itself",
    "jobs": "which process does a periodic job just now",
}
"""Every other table, and why it stays."""

NOT_COPIED_COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "customers": {"forgotten": "told to processes that still hold the key; to all others the vault says it"},
    "messages": {"leased_until": "by which server's process a message is being sent just now"},
}
"""Columns that stay: those of no use to who was not there."""


class Tally(msgspec.Struct, frozen=True):
    """
    How many rows, and a sum of their hashes that does not depend on their order.

    Two tables with the same tally have the same rows. It tells faults, not forgers: of those the journal's chains tell.
    """

    rows: int = 0
    sum: str = "0" * 64
    """Hexadecimal, modulo 2^256."""

    def plus(self, rows: Iterable[Row]) -> Tally:
        """Return the tally of these rows too."""
        number, total = self.rows, int(self.sum, 16)
        encode = msgspec.msgpack.encode
        for row in rows:
            number += 1
            total += int.from_bytes(sha256(encode(row)).digest(), "big")
        return Tally(number, f"{total % (1 << 256):064x}")


class Cursor(msgspec.Struct, frozen=True):
    """How far a store was read: up to a key of one of its parts."""

    part: str
    after: str = ""
    """The key in MessagePack, in hexadecimal; empty before the first row."""

    def key(self) -> tuple[Any, ...]:
        """Return the key; empty before the first row."""
        return tuple(msgspec.msgpack.decode(bytes.fromhex(self.after))) if self.after else ()

    def at(self, key: Iterable[Any]) -> Cursor:
        """Return the cursor behind a row of the same part."""
        return Cursor(self.part, msgspec.msgpack.encode(tuple(key)).hex())


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a store says of the move it is an end of; kept in the store itself, as JSON, in the one row of `moves`."""

    move: str
    """Random: the two ends of one move have the same."""
    role: Literal["source", "target"]
    other: str
    """The other end, without its password."""
    at: str
    """When it was begun, or was finished: ISO 8601 in UTC."""
    finished: bool = False
    cursor: Cursor | None = None
    """Up to where the target has the source's rows; None before the first."""
    copied: dict[str, Tally] = {}
    """What the target was given, by table."""


def encode_mark(mark: Mark) -> str:
    """Write a mark as it is stored."""
    return msgspec.json.encode(mark).decode()


def decode_mark(text: str) -> Mark:
    """Read a stored mark back."""
    return msgspec.json.decode(text, type=Mark)


def date(now: float) -> str:
    """Write a Unix time in seconds as marks say it."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Page(msgspec.Struct, frozen=True):
    """Rows read from one part."""

    rows: Rows
    """Every table of the part is named, with no rows too."""
    cursor: Cursor
    """Behind its last row."""
    last: bool
    """Whether nothing is behind that."""


class Place(Protocol):
    """One end of a move: an opened store with its vault, which this process alone may write."""

    @property
    def name(self) -> str:
        """What people call it; without a password."""

    @property
    def store(self) -> Store:
        """The store."""

    @property
    def parts(self) -> Sequence[str]:
        """What it is read by, in order."""

    def mark(self) -> Mark | None:
        """Return its mark."""

    def set_mark(self, mark: Mark | None) -> None:
        """Replace its mark, durably."""

    def counts(self) -> Mapping[str, int]:
        """Return how many rows each of `TABLES` has."""

    def faults(self) -> Sequence[str]:
        """Return why it cannot be copied as it is: rows that no other store could hold."""

    def lanes(self) -> Mapping[int, tuple[int, bytes]]:
        """Return the sequence and hash of the last batch of every writer."""

    def take(self, lanes: Iterable[int]) -> None:
        """
        Refuse lanes that it could not hold.

        Raises:
            MoveRefused: with the writers' numbers.
        """

    def page(self, cursor: Cursor, limit: int) -> Page:
        """Return at most `limit` rows behind a cursor. Nobody else may write meanwhile (`keep_others_away`)."""

    def keep_others_away(self) -> None:
        """
        Make sure that nobody else has it open to write. Called with the mark set, which whoever comes later sees.

        Raises:
            StoreInUse: somebody has.
        """

    def begin(self, mark: Mark) -> None:
        """Make an empty store the target of a move: its vault is made, and the mark is set."""

    def write(self, rows: Rows, mark: Mark) -> None:
        """Add rows and replace the mark, in one step; whatever was cut off may be written again."""

    def change_keys(self, rows: Sequence[Row]) -> None:
        """Have these keys as they are given, durable on return; those destroyed there are destroyed here for good."""

    def finish(self, mark: Mark) -> None:
        """Let writers go on where the copied lanes end, and replace the mark, in one step."""

    def close(self) -> None:
        """Finish; use afterwards raises."""


def why_not_served(mark: Mark | None, name: str) -> str | None:
    """Return why a store with this mark must not be served; None when it may."""
    if mark is None or (mark.role == "target" and mark.finished):
        return None
    if mark.role == "target":
        return f"{name} is an unfinished copy of {mark.other}: finish it with the same `riskgate copy` again"
    if mark.finished:
        return (
            f"{name} was moved to {mark.other} on {mark.at[:10]} and is no longer the truth: go on with that one,"
            f" {'without' if mark.other.startswith(FILES) else 'with'} --store; the way back is `riskgate copy` from"
            " there into an empty store"
        )
    return (
        f"{name} is being copied to {mark.other}: finish it with the same `riskgate copy` again, or give the copy up"
        " with `riskgate copy --give-up`"
    )
