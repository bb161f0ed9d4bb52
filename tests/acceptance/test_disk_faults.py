"""The disk fails or fills up under a running server: nobody is told what is not so, and everything resolves by key."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from tests.acceptance import books, witness
from tests.acceptance.calling import Backend, Told, connections, open_line
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import PYTHON, Deployment, until
from tests.acceptance.planted import planted
from tests.acceptance.powercut import trace
from tests.acceptance.shopping import Wallet

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(bool(trace.unavailable()), reason=trace.unavailable() or "strace works"),
]

FAULTS = int(os.environ.get("FAULTS", "2"))
"""How many times the disk fails; each time at another sync of the writer."""
CLIENTS = 16
CONNECTIONS = 4
LIMIT_MINOR = 20_000
EXIT_SECONDS_MAX = 5.0
FULL_SECONDS = 1.5
"""Longer than the sweep and the signing of heads take to come round."""
HONEST = {"OUTCOME_UNKNOWN", "SHUTTING_DOWN"}


@dataclass
class Fault:
    """What callers were told around one failure of the disk."""

    before: list[Told] = field(default_factory=list)
    """While the disk was good."""
    during: list[Told] = field(default_factory=list)
    """From the moment the trap was set, to the end."""
    good_commits: int = 0
    """Sequence of the last commit whose sync succeeded."""
    exit_code: int = 0
    exit_seconds: float = 0.0

    @property
    def settled(self) -> list[Told]:
        return [told for told in self.during if told.settled]

    @property
    def open(self) -> list[Told]:
        return [told for told in self.during if not told.settled]


@contextmanager
def trap(deployment: Deployment, *arguments: str) -> Iterator[Path]:
    """Have strace at the running server, and take it away again."""
    output = deployment.work / "trap"
    output.unlink(missing_ok=True)
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(deployment.pid), "-y", "-ttt", "-e", "signal=none", "-o", str(output), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: _traced(deployment.pid) or tracer.poll() is not None, seconds=10, what="trap")
        if tracer.poll() is not None:
            pytest.skip("strace may not attach to a running process here")
        yield output
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)


def _traced(pid: int) -> bool:
    """Whether every thread of a process has a tracer."""
    with contextlib.suppress(FileNotFoundError):
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return all("\nTracerPid:\t0\n" not in (task / "status").read_text() for task in tasks)
    return False


def commits(store: Path) -> int:
    """Return the sequence of the last commit."""
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as db:
        (last,) = db.execute("SELECT max(sequence) FROM batches").fetchone()
    return int(last)


async def shop(wallets: Sequence[Wallet], backends: Sequence[Backend], answers: list[Told], seconds: float) -> None:
    """Let every customer go on until the time is over or an outcome is open."""
    until_time = time.monotonic() + seconds

    async def customer(wallet: Wallet, backend: Backend) -> None:
        while time.monotonic() < until_time:
            told = await backend.once(wallet.next_request())
            answers.append(told)
            if not told.settled:
                return
            wallet.learn(told)

    async with asyncio.TaskGroup() as group:
        for number, wallet in enumerate(wallets):
            group.create_task(customer(wallet, backends[number % CONNECTIONS]))


def struck(
    deployment: Deployment, number: int, when: str, *, seconds: float = 30, program: tuple[str, ...] = PYTHON
) -> Fault:
    """Serve, let the writer's sync number `when` fail, and watch."""
    fault = Fault()
    wallets = [Wallet(f"f{number}-{customer}", LIMIT_MINOR, random.Random()) for customer in range(CLIENTS)]
    deployment.started(program=program)

    async def scene() -> None:
        async with connections(deployment, CONNECTIONS) as backends:
            for wallet, backend in zip(wallets, backends * CLIENTS, strict=False):
                fault.before.append(await backend.settle(wallet.next_request()))
            fault.good_commits = commits(deployment.store)
            inject = ("-e", "trace=fdatasync", "-e", f"inject=fdatasync:error=EIO:when={when}")
            with trap(deployment, *inject) as output:
                await shop(wallets, backends, fault.during, seconds)
                if fault.open:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        fault.exit_code = await asyncio.to_thread(deployment.wait, EXIT_SECONDS_MAX)
                    fault.exit_seconds = time.time() - min(told.told_at for told in fault.open)
            synced = [line for line in output.read_text().splitlines() if "riskgate.db-wal" in line]
            fault.good_commits += sum(line.endswith(" = 0") for line in synced)

    asyncio.run(scene())
    deployment.cleanup()
    return fault


def told_too_much(fault: Fault, entries: Sequence[books.Entry]) -> list[Told]:
    """Return answers that say for certain what was in a commit whose sync had failed."""
    found = books.by_key(entries)
    return [
        told
        for told in fault.settled
        for entry in found.get((told.request.customer_id, told.request.request_id), [])
        if entry.batch > fault.good_commits
    ]


async def settle_all(deployment: Deployment, answers: Sequence[Told]) -> list[Told]:
    """Repeat calls with their keys until each outcome is known."""
    async with Backend(deployment) as backend:
        return [await backend.settle(told.request) for told in answers]


def test_a_sync_that_fails_is_nobodys_yes_and_nobodys_no(deployment: Deployment, figures: Figures) -> None:
    """What was in a commit whose sync failed may be on the disk or not: only the next process can say."""
    faults, resolved, too_much = [], [], []
    for number in range(FAULTS):
        # Once, and for good; from the very next sync on.
        when = f"{1 + 3 * number}{'+' if number % 2 else ''}"
        fault = struck(deployment, number, when)
        entries = books.read(deployment.store)
        too_much += told_too_much(fault, entries)
        deployment.started()
        resolved += asyncio.run(settle_all(deployment, fault.open))
        assert deployment.stop() == 0
        faults.append(fault)

    entries = books.read(deployment.store)
    reasons = {told.reason or told.text for fault in faults for told in fault.open}
    figures(
        faults=len(faults),
        answered=sum(len(fault.settled) for fault in faults),
        unknown=sum(told.reason == "OUTCOME_UNKNOWN" for fault in faults for told in fault.open),
        not_started=sum(told.reason == "SHUTTING_DOWN" for fault in faults for told in fault.open),
        told_too_much=len(too_much),
        exit_max_s=round(max(fault.exit_seconds for fault in faults), 2),
    )
    assert too_much == []
    assert reasons <= HONEST
    assert all(any(told.reason == "OUTCOME_UNKNOWN" for told in fault.open) for fault in faults)
    assert [fault.exit_code for fault in faults] == [1] * FAULTS
    assert max(fault.exit_seconds for fault in faults) < EXIT_SECONDS_MAX
    certain = [told for fault in faults for told in (*fault.before, *fault.settled)]
    assert witness.missing([*certain, *resolved], entries) == []
    assert witness.doubled(entries) == []
    assert deployment.verify()["faults"] == []


def test_the_fault_finds_a_server_that_ignores_it(deployment: Deployment, figures: Figures) -> None:
    fault = struck(deployment, 0, "3+", seconds=1, program=planted("ignored-error"))
    figures(told_in_spite_of_it=len(fault.settled), unknown=len(fault.open), exit_code=fault.exit_code)

    assert fault.exit_code != 1
    assert fault.settled


def test_a_full_disk_refuses_cleanly_and_is_over_when_there_is_room(deployment: Deployment, figures: Figures) -> None:
    """The server's own log is on the same disk: that a line cannot be written there must not stop anything else."""
    wallets = [Wallet(f"c{customer}", LIMIT_MINOR, random.Random()) for customer in range(CLIENTS)]
    before: list[Told] = []
    full: list[Told] = []
    after: list[Told] = []
    deployment.started(settings={"heads_seconds": "0.2"})

    async def scene() -> None:
        async with connections(deployment, CONNECTIONS) as backends:
            await shop(wallets, backends, before, 0.3)
            full_files = (deployment.root / "riskgate.db-wal", deployment.root / "heads.log", deployment.log)
            files = [part for path in full_files for part in ("-P", str(path))]
            inject = ("-e", "trace=pwrite64,write", "-e", "inject=pwrite64,write:error=ENOSPC")
            with trap(deployment, *files, *inject):
                ends = time.monotonic() + FULL_SECONDS
                while time.monotonic() < ends:
                    full.append(await backends[0].once(open_line(f"new-{len(full)}", 1)))
                    await backends[1].line("c0")
            deployment.must_run()
            await shop(wallets, backends, after, 0.3)
            after.extend([await backends[0].settle(told.request) for told in full])

    asyncio.run(scene())
    assert deployment.stop() == 0
    entries = books.read(deployment.store)
    with closing(sqlite3.connect(deployment.store)) as db:
        integrity = [row[0] for row in db.execute("PRAGMA integrity_check")]
    figures(refused=len(full), answered=len(before) + len(after))

    assert {(told.code, told.reason) for told in full} == {(grpc.StatusCode.UNAVAILABLE, "STORE_FULL")}
    assert all(told.settled for told in after)
    assert witness.missing([*before, *after], entries) == []
    assert witness.doubled(entries) == []
    assert integrity == ["ok"]
    assert deployment.verify()["faults"] == []
