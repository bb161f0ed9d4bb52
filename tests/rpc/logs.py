"""What the server writes to its log while a test looks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from riskgate_server.cli.serve import configure_logs


class Lines:
    """The log as an operator gets it, one JSON object per line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, *_: object) -> Lines:
        return self

    def msg(self, line: str) -> None:
        self.lines.append(line)

    debug = info = warning = error = critical = exception = log = msg

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.lines)]

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return what was logged under one name."""
        return [found for found in self.events if found["event"] == event]


@contextmanager
def logs() -> Iterator[Lines]:
    """Take the log down to its smallest word."""
    before = structlog.get_config()
    lines = Lines()
    configure_logs("debug")
    structlog.configure(logger_factory=lines)
    try:
        yield lines
    finally:
        structlog.configure(**before)
