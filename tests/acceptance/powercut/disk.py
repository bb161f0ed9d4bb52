"""
What a disk may hold when the power goes at an instant.

What was synced is there. A write that was not may be there, be gone, or be torn at any 512 bytes,
whatever came before or after it. A name that was made, moved or removed is so for certain once its
directory was synced; until then some first part of those changes is. A sync that failed forgets what
it was for: the kernel tells of it once, and the next sync succeeds without writing it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.acceptance.powercut.trace import Call

SECTOR: Final = 512


class File:
    """One file, whatever it is called."""

    def __init__(self, content: bytes = b"") -> None:
        self.durable = bytearray(content)
        self.pending: list[Call] = []
        self.size = len(content)
        """As the running program sees it, for what is written at the end."""


class Directory:
    """The names of one directory."""

    def __init__(self) -> None:
        self.durable: dict[str, File] = {}
        self.seen: dict[str, File] = {}
        """As the running program sees them."""
        self.pending: list[tuple[Call, str, File | None]] = []


class Disk:
    """
    The files of the directory `root`, from a copy made before the recording began, through the calls made since.

    Instants must be asked for in ascending order.
    """

    def __init__(self, root: Path, before: Path, calls: Sequence[Call]) -> None:
        self._root = root
        self._calls = calls
        self._next = 0
        self._open_syncs: list[tuple[Call, File | Directory]] = []
        self._directory = Directory()
        for path in before.iterdir():
            if path.is_file():
                self._directory.durable[path.name] = File(path.read_bytes())
        self._directory.seen = dict(self._directory.durable)

    def at(self, instant: float, chance: random.Random) -> dict[str, bytes]:
        """Return a content of the disk that the power may leave when it goes at `instant`."""
        while self._next < len(self._calls) and self._calls[self._next].start <= instant:
            self._begin(self._calls[self._next])
            self._next += 1
        still_open = []
        for call, what in self._open_syncs:
            if call.end <= instant:
                self._synced(call, what)
            else:
                still_open.append((call, what))
        self._open_syncs = still_open
        names = dict(self._directory.durable)
        kept = chance.randint(0, len(self._directory.pending))
        for _, name, file in self._directory.pending[:kept]:
            _rename(names, name, file)
        return {name: _content(file, chance) for name, file in names.items()}

    def _begin(self, call: Call) -> None:
        if call.failed and call.name != "sync":
            return
        if call.paths == (str(self._root),):
            assert call.name == "sync", call.name
            self._open_syncs.append((call, self._directory))
            return
        names = [Path(path).name for path in call.paths if Path(path).parent == self._root]
        if len(names) != len(call.paths):
            return
        seen = self._directory.seen
        match call.name:
            case "create":
                if names[0] not in seen:
                    self._name(call, names[0], File())
            case "rename":
                self._name(call, names[1], seen[names[0]])
                self._name(call, names[0], None)
            case "unlink":
                if names[0] in seen:
                    self._name(call, names[0], None)
            case "sync":
                self._open_syncs.append((call, seen[names[0]]))
            case "write" | "truncate":
                self._change(call, seen[names[0]])
            case _:
                message = f"{call.name} on {names[0]} is not understood"
                raise AssertionError(message)

    def _name(self, call: Call, name: str, file: File | None) -> None:
        _rename(self._directory.seen, name, file)
        self._directory.pending.append((call, name, file))

    @staticmethod
    def _change(call: Call, file: File) -> None:
        if call.name == "truncate":
            file.size = call.number
        else:
            offset = file.size if call.number < 0 else call.number
            call = Call(call.start, call.end, call.name, call.paths, call.data, offset)
            file.size = max(file.size, offset + len(call.data))
        file.pending.append(call)

    @staticmethod
    def _synced(call: Call, what: File | Directory) -> None:
        # A sync vouches for what had returned before it began.
        if isinstance(what, Directory):
            for change, name, file in what.pending:
                if change.end <= call.start:
                    _rename(what.durable, name, file)
            what.pending = [change for change in what.pending if change[0].end > call.start]
            return
        for change in what.pending:
            if change.end <= call.start and not call.failed:
                _apply(what.durable, change)
        what.pending = [change for change in what.pending if change.end > call.start]


def _rename(names: dict[str, File], name: str, file: File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file


def _content(file: File, chance: random.Random) -> bytes:
    content = bytearray(file.durable)
    for change in file.pending:
        fate = chance.random()
        if fate < 0.25:
            continue
        if fate < 0.5 or change.name == "truncate":
            _apply(content, change)
        else:
            _apply_torn(content, change, chance)
    return bytes(content)


def _apply(content: bytearray, change: Call) -> None:
    if change.name == "truncate":
        del content[change.number :]
        content.extend(bytes(change.number - len(content)))
        return
    end = change.number + len(change.data)
    content.extend(bytes(max(0, end - len(content))))
    content[change.number : end] = change.data


def _apply_torn(content: bytearray, change: Call, chance: random.Random) -> None:
    """Write some of the sectors that a write touches."""
    at, end = change.number, change.number + len(change.data)
    while at < end:
        border = min(end, at - at % SECTOR + SECTOR)
        if chance.random() < 0.5:
            piece = change.data[at - change.number : border - change.number]
            _apply(content, Call(0, 0, "write", (), piece, at))
        at = border
