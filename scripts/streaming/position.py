"""Where a stream stands, so that a later run goes on from there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
from scripts.streaming.tally import Counts


class PositionUnusable(Exception):
    """The file is not the position of this stream. The message says why and what to do."""


class Account(msgspec.Struct, array_like=True):
    """What a stream must remember of a customer whose line it opened."""

    next_due_us: int = 0
    """When they repay next; 0 never."""
    owed_minor: int = 0
    """Captured and not given or paid back."""
    currency: str = ""


class Due(msgspec.Struct, array_like=True, order=True):
    """A capture that is to come."""

    due_us: int
    number: int
    customer_id: str
    transaction_id: str
    amount_minor: int


class Position(msgspec.Struct):
    """Everything before `rows` is answered and followed up, except what is due later."""

    source: str
    """Names data and mapping; a position of other data is refused."""
    rows: int = 0
    accounts: dict[str, Account] = msgspec.field(default_factory=dict)
    due: list[Due] = msgspec.field(default_factory=list)
    held: list[str] = msgspec.field(default_factory=list)
    """Transaction ids among `due` that hold credit."""
    counts: Counts = msgspec.field(default_factory=Counts)


def source_of(data: Path, mapping: Path) -> str:
    """Name a history seen through a mapping, in a way that changes when either does."""
    digest = hashlib.sha256(mapping.read_bytes()).hexdigest()[:16]
    return f"{data.name}:{data.stat().st_size}:{digest}"


def load_position(path: Path, source: str) -> Position:
    """
    Return the position in a file, or the beginning when there is no file.

    Raises:
        PositionUnusable: it is damaged, or of another history.
    """
    try:
        position = msgspec.json.decode(path.read_bytes(), type=Position)
    except FileNotFoundError:
        return Position(source)
    except (OSError, msgspec.DecodeError) as error:
        raise PositionUnusable(f"{path} is not a position of a stream ({error}); remove it to begin anew") from error
    if position.source != source:
        raise PositionUnusable(f"{path} is the position in {position.source}, not in {source}; remove it to begin anew")
    return position


def save_position(path: Path, position: Position) -> None:
    """Replace the file as a whole and durably: a crash leaves the old or the new position."""
    staged = path.with_name(f".{path.name}.new")
    with staged.open("wb") as file:
        file.write(msgspec.json.encode(position))
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
