"""What one of several server processes owes the one that supervises them: a word when it serves, and no life after."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_supervisor(ready_fd: int) -> None:
    """
    Have the kernel kill this process when its supervisor ends, however that ends; exit if it has ended already.

    Killed and not told: a successor may be starting, and wants the ports. What was answered is durable. Linux only.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The reading end of the pipe is the supervisor's alone.
    pipe = select.poll()
    pipe.register(ready_fd, 0)
    if pipe.poll(0):
        sys.exit(1)


def say_ready(ready_fd: int) -> None:
    """Tell the supervisor that this process serves."""
    with contextlib.suppress(BrokenPipeError):
        os.write(ready_fd, b"\n")
    os.close(ready_fd)
