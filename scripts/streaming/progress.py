"""Shows how far a stream is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import IO, Final, Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_BLANKS: Final = re.compile(r" +\n")

PLAIN_SECONDS: Final = 5.0
_TICK_SECONDS: Final = 0.2
PLAIN_WIDTH: Final = 110


def console() -> Console:
    """Return where scripts speak to: as wide as the terminal, or of one width and without blanks at ends of lines."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=PLAIN_WIDTH, force_terminal=False, file=cast("IO[str]", Trimmed(sys.stdout)))


class Trimmed:
    """A stream without blanks before the ends of lines: tables are laid out with them, files are better off without."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._blanks = ""
        self.encoding = stream.encoding

    def write(self, text: str) -> None:
        """Write, but blanks only once something follows them on their line."""
        text = self._blanks + text
        kept = text.rstrip(" ")
        self._blanks = text[len(kept) :]
        self._stream.write(_BLANKS.sub("\n", kept))

    def flush(self) -> None:
        """Have it written."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Say that nobody is watching."""
        return False


class StreamProgress:
    """Progress of one stream. `state` is asked what to say besides; without it not even the rate is told."""

    def __init__(self, out: Console, what: str, total: int, *, state: Callable[[], str] | None = None) -> None:
        self._out, self._what, self._total, self._state = out, what, total, state
        self._began = time.monotonic()
        self._first = 0
        self._done = 0
        self._said = self._began
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._out, transient=True)
            self._task = self._bar.add_task(self._what, total=self._total, rate="", state="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def begin_at(self, done: int) -> None:
        """Say what an earlier run has done; it does not count for the rate."""
        self._first = self._done = done

    def show(self, done: int) -> None:
        """Show how far it is."""
        self._done = done
        now = time.monotonic()
        rate = f"{(done - self._first) / max(now - self._began, 1e-3):,.0f}/s" if self._state else ""
        state = self._state() if self._state else ""
        if self._bar:
            self._bar.update(self._task, completed=done, rate=rate, state=state)
        elif now - self._said >= PLAIN_SECONDS:
            self._said = now
            said = ", ".join(part for part in (f"{done:,} of {self._total:,}", rate, state) if part)
            self._out.print(f"{self._what}: {said}")

    @contextlib.asynccontextmanager
    async def following(self, done: Callable[[], int]) -> AsyncIterator[None]:
        """Show `done` again and again while the block runs."""

        async def follow() -> None:
            while True:
                self.show(done())
                await asyncio.sleep(_TICK_SECONDS)

        following = asyncio.create_task(follow())
        try:
            yield
        finally:
            following.cancel()
            self.show(done())
