"""Looks for what was destroyed in the files of a database, where a copy may hide in a page that is free."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Final

_CHUNK_BYTES: Final = 1 << 20


def holds_any(main: BinaryIO, database: Path, pieces: Collection[bytes]) -> bool:
    """
    Tell whether any of the pieces lies in a database's file, its log or its journal.

    `main` is the file itself, opened by whoever has the database open: closing another descriptor of it would let go
    of that process's locks. Read, not mapped: another process may cut the log meanwhile.
    """
    overlap = max(map(len, pieces)) - 1
    if _found(main.fileno(), overlap, pieces):
        return True
    for suffix in ("-wal", "-journal"):
        try:
            with Path(f"{database}{suffix}").open("rb") as beside:
                if _found(beside.fileno(), overlap, pieces):
                    return True
        except FileNotFoundError:
            continue
    return False


def _found(descriptor: int, overlap: int, pieces: Collection[bytes]) -> bool:
    return any(chunk.find(piece) >= 0 for chunk in _chunks(descriptor, overlap) for piece in pieces)


def _chunks(descriptor: int, overlap: int) -> Iterator[bytes]:
    at = 0
    while content := os.pread(descriptor, _CHUNK_BYTES + overlap, at):
        yield content
        at += _CHUNK_BYTES
