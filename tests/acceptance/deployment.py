"""A data directory and the server process that serves it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

CALM: Final = Path(__file__).with_name("calm.yaml")
START_SECONDS: Final = 30.0
PORTS: Final = range(20_000, 32_000)
"""Below the range of outgoing connections: while the server is down nobody may find himself at its port."""

SCOPES: Final = (
    "risk:check", "risk:read", "limit:read", "line:open", "line:close", "ledger:write", "ledger:read",
    "otp:enroll", "otp:send", "otp:verify", "device:enroll", "device:verify", "customer:erase",
)  # fmt: skip

PYTHON: Final = (sys.executable, "-m", "riskgate_server")

FREE_PORTS: Final = ("--certificate-port", "0", "--key-port", "0", "--metrics-port", "-1")
"""Any that are free, and none for metrics: what stands by default may be taken on the machine that tests."""


def until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Wait for something a process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


def environment() -> dict[str, str]:
    """The environment without what an operator may have set."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RISKGATE_")}


def riskgate(*arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [*PYTHON, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=timeout, check=False)


def answer(*arguments: str | Path) -> dict[str, Any]:
    """Run the command line and return what it answers."""
    done = riskgate(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def free_port() -> int:
    """Return a port nobody listens on."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def gone(pid: int) -> bool:
    """Whether a process has ended, although nobody may have asked yet how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


class Deployment:
    """One data directory, one caller with a key, and at most one server process at a time."""

    def __init__(self, root: Path, api_key: str, work: Path) -> None:
        self.root = root
        self.api_key = api_key
        self.work = work
        self.port = free_port()
        self.metrics_port = free_port()
        self.dsn = ""
        """The database that holds rows and keys instead of the directory, if any."""
        self.log = work / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.started_at = 0.0

    @property
    def ca_certificate(self) -> bytes:
        """What callers verify the server with."""
        return (self.root / "tls" / "ca.crt").read_bytes()

    @property
    def store(self) -> Path:
        """Journal and state."""
        return self.root / "riskgate.db"

    def start(
        self, *, prefix: Sequence[str] = (), program: Sequence[str] = PYTHON, settings: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a server on the same ports as before; it is not ready yet."""
        assert self.process is None or self.process.poll() is not None, "a server runs already"
        command = [
            *prefix, *program, "serve", "--data", self.root, "--ruleset", CALM,
            "--certificate-port", "0", "--key-port", str(self.port), "--metrics-port", str(self.metrics_port),
        ]  # fmt: skip
        store = {"store": self.dsn} if self.dsn else {}
        given = {f"RISKGATE_{name.upper()}": value for name, value in (store | (settings or {})).items()}
        with self.log.open("ab") as output:
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=output,
                stderr=output,
                env=environment() | given,
                cwd=Path(__file__).parents[2],
            )
        self.pid = self.process.pid
        return self.process

    def started(self, *, processes: int = 1, **how: Any) -> Deployment:
        """Start a server, or one of several processes, and wait until it says that it serves."""
        event = "serving" if processes == 1 else "processes serving"
        seen = self.events(event)
        if processes > 1:
            how["settings"] = {"processes": str(processes)} | how.get("settings", {})
        self.start(**how)

        def serving() -> bool:
            self.must_run()
            return self.events(event) > seen

        until(serving, seconds=START_SECONDS * processes, what="start")
        if how.get("prefix"):
            self.pid = _only_child(self.pid)
        return self

    def children(self) -> list[int]:
        """The processes that serve, where there are several; those that have just died not counted."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in found if not gone(int(pid))]

    def must_run(self) -> None:
        """Fail, with what it said last, when the server has ended."""
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"the server ended with {code}: {self.log.read_text()[-2000:]}"

    def events(self, name: str) -> int:
        """How often the log names an event."""
        return self.log.read_bytes().count(b'"event":"%b"' % name.encode()) if self.log.exists() else 0

    def kill(self) -> None:
        """Take the process away between two instructions."""
        self.send(signal.SIGKILL)
        self.wait(30)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Wait for the process, and whoever watches it, to end and return its exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self, seconds: float = 30) -> int:
        """Ask for an orderly end and return the exit code."""
        self.send(signal.SIGTERM)
        return self.wait(seconds)

    def cleanup(self) -> None:
        """Leave no process behind, whatever happened."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            self.process.kill()
            self.process.wait(10)

    def verify(self) -> dict[str, Any]:
        """Have the books recomputed from the journal and return the report."""
        store = ("--store", self.dsn) if self.dsn else ()
        done = riskgate("ledger", "verify", "--data", self.root, *store, "--json")
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (0 if report["clean"] else 1)
        return report


class Template:
    """What `riskgate init` and one `callers add` make, once, to be copied for every test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        answer("init", root)
        scopes = [part for scope in SCOPES for part in ("--scope", scope)]
        self.api_key: str = answer(
            "callers", "add", "backend", "--data", root, *scopes, "--rate", "1000000", "--key"
        )["key"]["api_key"]  # fmt: skip

    def deployment(self, work: Path) -> Deployment:
        """Return a directory of its own under `work`."""
        root = work / "data"
        shutil.copytree(self.root, root)
        return Deployment(root, self.api_key, work)
