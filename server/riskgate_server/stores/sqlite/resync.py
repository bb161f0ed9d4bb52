"""Makes sure that what is read from a write-ahead log is on the disk, and not in the kernel's memory alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from riskgate_server.datadir import create_empty_private

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


@contextmanager
def alone(database: Path) -> Iterator[None]:
    """
    Keep out whoever else writes a log again, or writes `database` for a moment beside its server.

    What is written while a log is written again would be overwritten with what was there before.
    """
    name = Path(f"{database}.lock")
    create_empty_private(name)
    with name.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
