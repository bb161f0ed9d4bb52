"""Makes sure that what is read from a write-ahead log is on the disk, and not in the kernel's memory alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PIECE_BYTES: Final = 1 << 18


def write_log_again(database: Path) -> None:
    """
    Write the log that an earlier process left beside `database` once more, in place, and sync it.

    That process may have ended because a sync failed. The kernel tells of that once, then holds the pages
    for written; SQLite would read commits from them and go on behind them, and all of it would end with the
    power. The bytes stay what they are, so a crash in the middle, or a reader, finds nothing changed. Only
    for who may write, and before SQLite opens the file.
    """
    try:
        descriptor = os.open(f"{database}-wal", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        at = 0
        while piece := os.pread(descriptor, _PIECE_BYTES, at):
            at += os.pwrite(descriptor, piece, at)
        if at:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
