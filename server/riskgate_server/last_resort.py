"""Ends a process that has to end and cannot: an orderly end asks for memory and threads, which there may be none of."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

PATIENCE_SECONDS: Final = 10.0
"""How long an orderly end may take, once a store has failed."""


class LastResort:
    """
    A thread that waits for `doom`, and then ends the process with 1 unless that happened by itself in time.

    It begins with the process, for when it is needed there may be no room for another thread.
    """

    def __init__(
        self,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        pause: Callable[[float], object] = time.sleep,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._doomed = threading.Event()
        self._patience_seconds = patience_seconds
        self._pause = pause
        self._end = end
        threading.Thread(target=self._wait, name="last resort", daemon=True).start()

    def doom(self) -> None:
        """Have the process end. Takes no memory, and may be said again."""
        self._doomed.set()

    def _wait(self) -> None:
        self._doomed.wait()
        self._pause(self._patience_seconds)
        self._end(1)
