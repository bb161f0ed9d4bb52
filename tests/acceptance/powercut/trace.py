"""Reads what strace wrote: every call that changed a file, by whichever thread, with its beginning and end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

CALLS: Final = (
    "pwrite64", "write", "fsync", "fdatasync", "ftruncate", "openat", "rename", "renameat", "renameat2", "unlink",
    "unlinkat",
)  # fmt: skip
UNREAD: Final = ("pwritev", "pwritev2", "writev", "fallocate", "copy_file_range", "sync_file_range", "sync", "syncfs")
"""Would change a file in a way that is not understood here: none may appear on one."""

FOR_EVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call on files. `paths` are absolute; `end` is infinite when it never returned."""

    start: float
    end: float
    name: str
    paths: tuple[str, ...]
    data: bytes = b""
    number: int = 0
    """Offset of a write, -1 at the end of the file; size of a truncation."""
    failed: bool = False


def recorder(output: Path, *, fail: str = "") -> tuple[str, ...]:
    """Return what to put before a command to have its system calls, and failures, written to `output`.<thread>."""
    calls = ",".join((*CALLS, *UNREAD))
    return (
        "strace", "--seccomp-bpf", "-ff", "-ttt", "-T", "-y", "-xx", "-s", "4000000", "-e", f"trace={calls}",
        "-e", "signal=none", *(("-e", f"inject={fail}") if fail else ()), "-o", str(output),
    )  # fmt: skip


@cache
def unavailable() -> str:
    """Return why system calls cannot be traced here, or nothing."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    trial = subprocess.run(
        ["strace", "--seccomp-bpf", "-f", "-e", "trace=openat", "-o", os.devnull, "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if trial.returncode == 0 else f"strace may not trace here: {trial.stderr.strip()[-200:]}"


def read(output: Path, root: Path) -> list[Call]:
    """Return every call on a file under `root`, in the order of their beginnings."""
    calls = []
    for thread in output.parent.glob(output.name + ".*"):
        with thread.open("r", encoding="ascii") as lines:
            calls += [call for line in lines if (call := _parse(line)) and _under(root, call.paths)]
    calls.sort(key=lambda call: call.start)
    return calls


def _under(root: Path, paths: Sequence[str]) -> bool:
    return any(path.startswith(f"{root}/") or path == str(root) for path in paths)


_LINE: Final = re.compile(r"(\d+\.\d+) (\w+)\((.*)\) += (-?\d+|\?)(.*)\n", re.DOTALL)
_UNFINISHED: Final = re.compile(r"(\d+\.\d+) (\w+)\((.*) <unfinished \.\.\.>\) += \?\n", re.DOTALL)
_TOOK: Final = re.compile(r"<(\d+\.\d+)>$")
_TEXT: Final = re.compile(r'(?:"((?:\\x[0-9a-f]{2})*)"|<((?:\\x[0-9a-f]{2})*)>)')


def _parse(line: str) -> Call | None:
    unfinished = _UNFINISHED.fullmatch(line)
    if unfinished:
        start, name, arguments = unfinished.groups()
        return _call(float(start), FOR_EVER, name, arguments, failed=False, opened="")
    whole = _LINE.fullmatch(line)
    if whole is None:
        return None
    start, name, arguments, result, rest = whole.groups()
    took = _TOOK.search(rest)
    end = float(start) + float(took[1]) if took else FOR_EVER
    call = _call(float(start), end, name, arguments, failed=result.startswith("-"), opened=rest)
    if call is not None and call.name == "write" and result.isdecimal():
        assert len(call.data) >= int(result), f"the recorder cut {name} short: raise its -s"
        return replace(call, data=call.data[: int(result)])
    return call


def _call(start: float, end: float, name: str, arguments: str, *, failed: bool, opened: str) -> Call | None:
    texts = list(_texts(arguments))
    if name == "openat":
        # Only what may have made a name is of interest; the path is where the kernel found the new file.
        if "O_CREAT" not in arguments or failed:
            return None
        found = list(_texts(opened))
        return Call(start, end, "create", (found[0].decode(),)) if found else None
    if name in ("rename", "renameat", "renameat2", "unlink", "unlinkat"):
        return Call(start, end, name[:6], tuple(text.decode() for text in texts if text[:1] == b"/"), failed=failed)
    if not texts:
        return None
    path = texts[0].decode(errors="replace")
    if name == "pwrite64":
        return Call(start, end, "write", (path,), texts[1], int(arguments.rsplit(", ", 1)[1]), failed)
    if name == "write":
        return Call(start, end, "write", (path,), texts[1], -1, failed)
    if name == "ftruncate":
        return Call(start, end, "truncate", (path,), b"", int(arguments.rsplit(", ", 1)[1]), failed)
    if name in ("fsync", "fdatasync"):
        return Call(start, end, "sync", (path,), failed=failed)
    return Call(start, end, name, (path,), failed=failed)


def _texts(arguments: str) -> Iterator[bytes]:
    for quoted, angled in _TEXT.findall(arguments):
        yield bytes.fromhex((quoted or angled).replace("\\x", ""))
