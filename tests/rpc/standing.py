"""A server whose clock stands until a test lets time pass: what comes too late can be shown without waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from riskgate_server import bootstrap
from riskgate_server.engine.clocks import SystemClock
from tests.rpc.serving import Deployment, Loop, Running, serving


class StandingClock(SystemClock):
    """The machine's clock, moved by hand from now on or from when a test says."""

    def __init__(self, now_us: int = 0) -> None:
        self.us = now_us or time.time_ns() // 1000

    def now_us(self) -> int:
        return self.us

    def wait(self, seconds: float) -> None:
        self.us += int(seconds * 1_000_000)


@contextmanager
def standing(loop: Loop, deployment: Deployment, clock: StandingClock, **settings: Any) -> Iterator[Running]:
    """Serve a deployment by a clock of the test's; other servers of the process keep the machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "SystemClock", lambda: clock)
        with serving(loop, deployment, **settings) as running:
            patch.undo()
            yield running
