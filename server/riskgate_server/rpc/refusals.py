"""What the log says of refused calls and proofs: enough to notice, never as much as a stranger cares to cause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

import structlog

log = structlog.get_logger()

LINES_MAX: Final = 10
"""Lines about one reason in one window; what else is refused for it is only counted."""

WINDOW_SECONDS: Final = 1.0

Later = Callable[[float, Callable[[], None]], object]


def _on_the_loop(seconds: float, then: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(seconds, then)


class RefusalLog:
    """
    Logs refusals, one reason at a time. For one event loop.

    Args:
        what: is refused; a noun that an s makes plural.
        level: of its lines.
        later: calls back after so many seconds.
    """

    def __init__(self, what: str, level: Literal["info", "warning"], later: Later = _on_the_loop) -> None:
        self._what = what
        self._level = level
        self._later = later
        # By reason, in the window that is open; bounded by the number of reasons.
        self._refused: dict[str, int] = {}

    def note(self, *, reason: str, **facts: str) -> None:
        """Log a refusal, or count it when its reason had its lines."""
        refused = self._refused.get(reason, 0)
        if not refused:
            self._later(WINDOW_SECONDS, lambda: self._close(reason))
        self._refused[reason] = refused + 1
        if refused < LINES_MAX:
            getattr(log, self._level)(f"{self._what} refused", reason=reason, **facts)

    def _close(self, reason: str) -> None:
        left_out = self._refused.pop(reason) - LINES_MAX
        if left_out > 0:
            getattr(log, self._level)(f"{self._what}s refused", reason=reason, left_out=left_out)
