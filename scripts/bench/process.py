"""What every benchmark needs: a server under measurement, a directory for it, and how much is asked."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from riskgate_server.cli.init import initialise
from riskgate_server.stores.access.editor import CallerEditor

CUSTOMERS = 20_000
IN_FLIGHT = 64
BATCH = 100
SCOPES = ("risk:check", "line:open", "otp:enroll", "otp:send", "otp:verify", "device:enroll", "device:verify")
_TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A server under measurement, with the processes that it starts."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def first_line(self, stream: str) -> str:
        """Return the first line it printed."""
        pipe = self._process.stdout if stream == "stdout" else self._process.stderr
        assert pipe is not None
        return pipe.readline()

    def serving(self, processes: int = 1) -> int:
        """Wait until so many processes serve, and return the port for API keys."""
        said = [json.loads(self.first_line("stderr")) for _ in range(processes)]
        # Nobody reads what it says later, and a pipe that is full would hold it up.
        threading.Thread(target=self._process.stderr.read, daemon=True).start()  # type: ignore[union-attr]  # it is a pipe
        return int(said[0]["key_port"])

    def cpu_seconds(self) -> float:
        """Return user plus system time so far, of all threads of all its processes."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(map(_cpu_seconds, (str(pid), *children)))

    def stop(self) -> None:
        """End it in order."""
        self._process.terminate()
        self._process.wait(60)


def _cpu_seconds(pid: str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def prepare(root: Path) -> tuple[str, bytes]:
    """Make a data directory and a caller without a rate to speak of; return its key and the authority."""
    made = initialise(root, names=(), tenant="bench")
    editor = CallerEditor(root / "access.db", who="bench")
    try:
        key = editor.add(
            ("bench", "load"), scopes=SCOPES, rate_per_second=1_000_000, burst=1_000_000,
            with_key=True, certificates_allowed=False,
        )  # fmt: skip
    finally:
        editor.close()
    assert key is not None
    return key.text, Path(made.ca_certificate).read_bytes()


async def measure(work: Any, process: Process) -> tuple[float, float]:
    """Return the server's CPU seconds and the wall seconds that some work took."""
    cpu, wall = process.cpu_seconds(), time.perf_counter()
    await work
    return process.cpu_seconds() - cpu, time.perf_counter() - wall
