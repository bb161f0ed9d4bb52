"""What commands share: the data directory, answers for people and programs, times, who asks."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from riskgate_server.datadir import DataDirectory, DataDirectoryError

_F = TypeVar("_F", bound=Callable[..., Any])


def data_option(function: _F) -> _F:
    """Add `--data DIR`, also read from RISKGATE_DATA."""
    return click.option(
        "--data",
        "data",
        metavar="DIR",
        envvar="RISKGATE_DATA",
        show_envvar=True,
        required=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="Data directory made by `riskgate init`.",
    )(function)


def store_option(function: _F) -> _F:
    """Add `--store DSN`, also read from RISKGATE_STORE."""
    return click.option(
        "--store",
        "store",
        metavar="DSN",
        envvar="RISKGATE_STORE",
        show_envvar=True,
        default="",
        help="postgresql://…: the database that holds journal and keys, instead of the directory.",
    )(function)


def json_option(function: _F) -> _F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Answer as one JSON object.")(function)


def checked_directory(root: Path, *, store_here: bool = True) -> DataDirectory:
    """Return the data directory, or leave with exit code 1 and the reason; `store_here` as for its `check`."""
    directory = DataDirectory(root.absolute())
    try:
        directory.check(store_here=store_here)
    except DataDirectoryError as error:
        raise click.ClickException(str(error)) from error
    return directory


def say(answer: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print an answer the way it was asked for."""
    click.echo(json.dumps(answer, ensure_ascii=False) if as_json else text)


def show_time(time_us: int) -> str | None:
    """Write a time as ISO 8601 in UTC; 0 is never, None."""
    if time_us == 0:
        return None
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def counted(number: int, what: str, *, plural: str = "") -> str:
    """Write a number with its noun: 1 customer, 2 customers."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def who() -> str:
    """Name the person at the keyboard, for logs of changes."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.geteuid()}"
    behind = os.environ.get("SUDO_USER")
    return f"{behind} as {user}" if behind and behind != user else user


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Lay out rows in columns as wide as they need."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)


class Bars:
    """Shows on a terminal how far each piece of a long work is; nothing where nobody watches."""

    def __init__(self, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not (shown and sys.stderr.isatty()),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Callable[[str, int, int], None]:
        self._bars.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _show(self, what: str, done: int, total: int) -> None:
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(task, completed=done)
