"""An event loop on which waiting takes no time: when nothing is left to do, its clock moves on to what comes next."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class _Impatient(selectors.SelectSelector):
    """Never waits: tells how long the loop would have."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: Callable[[float], None] = lambda _seconds: None

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout != 0:
            assert timeout is not None, "everybody waits, and for nothing that will ever happen"
            self.passed(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`passed` hears of every step of its clock, in seconds."""

    def __init__(self, passed: Callable[[float], None] = lambda _seconds: None) -> None:
        selector = _Impatient()
        super().__init__(selector)
        self._now = 0.0
        self._told = passed
        selector.passed = self._pass

    def time(self) -> float:
        return self._now

    def _pass(self, seconds: float) -> None:
        self._now += seconds
        self._told(seconds)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.run_until_complete(work)
