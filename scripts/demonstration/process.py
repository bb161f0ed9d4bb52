"""A real server in a directory of its own, made and run through the command line that operators use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from scripts.streaming.connect import Connection

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.02
_LOG_LINES: Final = 12
_EXPECTED: Final = frozenset({"time is what events say", "codes in clear"})


class ServerFailed(Exception):
    """The server or its command line did not do what it was told. The message holds its last words."""


def riskgate(*arguments: str) -> dict[str, Any]:
    """
    Run a `riskgate` command that answers with JSON.

    Raises:
        ServerFailed: it did not succeed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "riskgate_server", *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    if done.returncode:
        raise ServerFailed(f"`riskgate {' '.join(arguments)}` ended with {done.returncode}: {done.stdout}{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _environment() -> dict[str, str]:
    """Return our environment without settings meant for another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RISKGATE_")}


class DemoServer:
    """A data directory, its callers, and the server on it. Leaving the block stops the server in good order."""

    def __init__(self, root: Path, store: str = "") -> None:
        """
        Plan a server.

        Args:
            store: DSN of a PostgreSQL database without tables of ours; empty for files in the directory.
        """
        self.data = root / "data"
        self._store = ("--store", store) if store else ()
        self._root = root
        self._log = root / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._listening: dict[str, Any] = {}

    def __enter__(self) -> Self:
        riskgate("init", str(self.data))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def add_caller_with_key(self, name: str, scopes: Sequence[str], *, rate: int) -> str:
        """Add a caller and return its API key."""
        made = riskgate("callers", "add", name, *self._rights(scopes, rate), "--key")
        return str(made["key"]["api_key"])

    def add_caller_with_certificate(self, name: str, scopes: Sequence[str], *, rate: int) -> tuple[Path, Path]:
        """Add a caller and return the paths of its certificate and private key."""
        out = self._root / name
        made = riskgate("callers", "add", name, *self._rights(scopes, rate), "--certificate", "--out", str(out))
        return Path(made["certificate"]["certificate_file"]), Path(made["certificate"]["key_file"])

    def _rights(self, scopes: Sequence[str], rate: int) -> list[str]:
        given = [part for scope in scopes for part in ("--scope", scope)]
        return ["--data", str(self.data), *given, "--rate", str(rate), "--burst", str(rate)]

    def start(self, *, clock: Literal["data", "system"] = "data", settings: Mapping[str, str] | None = None) -> None:
        """
        Start serving on free ports of this machine.

        Args:
            clock: driven by what is streamed, or this machine's.
            settings: settings of the server by name, such as {"origins": "http://localhost:8080"}.

        Raises:
            ServerFailed: it ended, or does not serve in time.
        """
        ports = ("--certificate-port", "0", "--key-port", "0", "--metrics-port", "-1")
        command = [
            sys.executable,
            "-m",
            "riskgate_server",
            "serve",
            "--data",
            str(self.data),
            "--clock",
            clock,
            *self._store,
            *ports,
        ]
        given = {f"RISKGATE_{name.upper()}": value for name, value in (settings or {}).items()}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment() | given)
        ends = time.monotonic() + START_SECONDS
        while not (listening := self._said("serving")):
            if self._process.poll() is not None:
                raise ServerFailed(f"the server ended with {self._process.returncode} at once:\n{self.last_words()}")
            if time.monotonic() > ends:
                raise ServerFailed(f"the server does not serve after {START_SECONDS:g} s:\n{self.last_words()}")
            time.sleep(_POLL_SECONDS)
        self._listening = listening

    def verify(self) -> dict[str, Any]:
        """Have the books recomputed, and return what `riskgate ledger verify` says."""
        return riskgate("ledger", "verify", "--data", str(self.data), *self._store)

    def by_key(self, api_key: str) -> Connection:
        """Return how a caller with an API key connects."""
        return Connection(address=f"localhost:{self._listening['key_port']}", ca=self._ca(), api_key=api_key)

    def by_certificate(self, certificate: Path, key: Path) -> Connection:
        """Return how a caller with a certificate connects."""
        return Connection(
            address=f"localhost:{self._listening['certificate_port']}",
            ca=self._ca(),
            certificate=certificate.read_bytes(),
            key=key.read_bytes(),
        )

    @property
    def inbox(self) -> Path:
        """Where the gateway for development leaves messages to customers."""
        return self.data / "messages-in-clear.jsonl"

    def stop(self) -> float:
        """
        Tell the server to finish its work and end; return how many seconds it took.

        Raises:
            ServerFailed: it does not end in time, or not in good order.
        """
        assert self._process is not None
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ServerFailed(
                f"the server did not end within {STOP_SECONDS:g} s of SIGTERM:\n{self.last_words()}"
            ) from None
        if code:
            raise ServerFailed(f"the server ended with {code}:\n{self.last_words()}")
        return time.monotonic() - began

    def last_words(self) -> str:
        """Return the end of the server's log."""
        if not self._log.exists():
            return "(no log)"
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])

    def complaints(self) -> list[str]:
        """Return what the server logged as a warning or worse."""
        return [line for line in self._log.read_text("utf-8").splitlines() if not _harmless(line)]

    def _ca(self) -> bytes:
        return (self.data / "tls" / "ca.crt").read_bytes()

    def _said(self, event: str) -> dict[str, Any]:
        for line in self._log.read_text("utf-8", "replace").splitlines():
            found = _parsed(line)
            if found.get("event") == event:
                return found
        return {}


def _harmless(line: str) -> bool:
    said = _parsed(line)
    # The thief of the story gives a wrong proof, its clock is a history's, and its phones are a file: the log says so,
    # as it should.
    expected = said.get("reason") == "PROOF_WRONG" or said.get("event") in _EXPECTED
    return expected or said.get("level") in {"info", "debug"}


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
