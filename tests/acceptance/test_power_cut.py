"""
The power goes at any instant: what was acknowledged is on the disk.

An unmodified server is recorded by its system calls while callers note what they are told and when.
Afterwards the disk is rebuilt as it may have been at random instants, and opened by the engine.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from riskgate_server.crypto.keys import HEADS
from riskgate_server.crypto.signing import HeadLog, HeadSigner
from riskgate_server.datadir import DataDirectory
from riskgate_server.opening import open_store, secret, verify_directory
from riskgate_server.stores.sqlite.schema import Kind
from tests.acceptance import books, witness
from tests.acceptance.calling import Backend, Told, connections
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import PYTHON, Deployment
from tests.acceptance.planted import planted
from tests.acceptance.powercut import trace
from tests.acceptance.powercut.disk import Disk
from tests.acceptance.shopping import Wallet

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(bool(trace.unavailable()), reason=trace.unavailable() or "strace works"),
]

IMAGES = int(os.environ.get("IMAGES", "30"))
CALLS = int(os.environ.get("CALLS", "400"))
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
CONTROL_IMAGES = IMAGES
EVERY_IMAGE = "IMAGES" in os.environ
"""Whether a control counts its red images or is content with the first."""
CONTROL_CALLS = min(CALLS, 300)
CLIENTS = 16
CALLS_PER_CUSTOMER = 25
LIMIT_MINOR = 20_000
FAILS_AFTER = 25
"""Which sync of the writer's thread is the first to fail; the main thread makes fewer when it starts."""
RECORDED = {"riskgate.db-wal", "vault.db-wal", "heads.log"}


@dataclass
class Recording:
    """What happened: the disk before, every call on it since, and what every caller was told."""

    before: Path
    root: Path
    calls: list[trace.Call]
    answers: list[Told]

    @property
    def began(self) -> float:
        return min(told.asked_at for told in self.answers)

    @property
    def ended(self) -> float:
        return max(told.told_at for told in self.answers)


async def shop(deployment: Deployment, calls: int, seed: int) -> list[Told]:
    """Have 16 clients make about so many calls that change something."""
    answers: list[Told] = []

    async def client(number: int) -> None:
        chance = random.Random(seed * 1_000 + number)
        async with Backend(deployment, attempt_seconds=30) as backend:
            for customer in count():
                wallet = Wallet(f"c{number}-{customer}", LIMIT_MINOR, chance)
                for _ in range(CALLS_PER_CUSTOMER):
                    if len(answers) >= calls:
                        return
                    told = await backend.once(wallet.next_request())
                    assert told.settled, told
                    answers.append(told)
                    wallet.learn(told)

    async with asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(client(number))
    return answers


def record(deployment: Deployment, *, calls: int, program: tuple[str, ...] = PYTHON) -> Recording:
    """Record a server from its very start to the last reply."""
    before = deployment.work / "before"
    shutil.copytree(deployment.root, before)
    output = deployment.work / "calls"
    deployment.started(prefix=trace.recorder(output), program=program, settings={"heads_seconds": "0.3"})
    answers = asyncio.run(shop(deployment, calls, SEED))
    deployment.kill()
    return Recording(before, deployment.root, trace.read(output, deployment.root), answers)


def instants(recording: Recording, images: int, chance: random.Random, since: float) -> list[float]:
    """A third of them anywhere, a third right after somebody was told something, a third in the middle of a sync."""
    began = max(recording.began, since)
    found = [chance.uniform(began, recording.ended) for _ in range(images - 2 * (images // 3))]
    answers = [told for told in recording.answers if told.told_at >= began]
    found += [told.told_at + chance.uniform(0, 0.000_2) for told in chance.choices(answers, k=images // 3)]
    syncs = [call for call in recording.calls if call.name == "sync" and began < call.start < call.end]
    files = sorted({call.paths for call in syncs})
    if not syncs:
        # Whatever was asked for had been committed before: nothing is written, and any instant is as good.
        return sorted(found)
    for number in range(images // 3):
        # Every file in its turn: heads are signed far less often than commits are made.
        call = chance.choice([call for call in syncs if call.paths == files[number % len(files)]])
        found.append(chance.uniform(call.start, min(call.end, recording.ended)))
    return sorted(found)


@dataclass
class Verdict:
    """What is wrong with one image."""

    instant: float
    acknowledged: int = 0
    missing: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def red(self) -> bool:
        return bool(self.missing or self.faults)


def images(recording: Recording, number: int, work: Path, *, since: float = 0) -> Iterator[Verdict]:
    """Rebuild the disk at so many instants and judge each."""
    chance = random.Random(SEED)
    disk = Disk(recording.root, recording.before, recording.calls)
    for instant in instants(recording, number, chance, since):
        image = work / "image"
        shutil.rmtree(image, ignore_errors=True)
        shutil.copytree(recording.before, image)
        for path in image.iterdir():
            if path.is_file():
                path.unlink()
        for name, content in disk.at(instant, chance).items():
            descriptor = os.open(image / name, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        yield judge(image, instant, [told for told in recording.answers if told.told_at <= instant])


def judge(image: Path, instant: float, answers: Sequence[Told]) -> Verdict:
    """Open an image as the next server would, and compare it with what callers had been told."""
    verdict = Verdict(instant, acknowledged=len(answers))
    directory = DataDirectory(image)
    try:
        # Somebody may look before the next server has started.
        verdict.faults += verify_directory(directory, lambda *_: None).faults
    except Exception as error:  # noqa: BLE001 - whatever is said of an image is a finding
        verdict.faults.append(f"cannot be verified: {error!r}")
    try:
        directory.check()
        opened = open_store(directory)
        opened.close()
        HeadLog(directory.heads_of(0), HeadSigner(secret(HEADS, directory.heads_key))).close()
        report = verify_directory(directory, lambda *_: None)
        with closing(sqlite3.connect(directory.store)) as db:
            integrity = [row[0] for row in db.execute("PRAGMA integrity_check")]
            keys = db.execute(f"SELECT customer_id, id FROM records WHERE kind = {Kind.REQUEST:d}").fetchall()
        entries = books.read(directory.store)
    except Exception as error:  # noqa: BLE001 - as above
        verdict.faults.append(f"does not open: {error!r}")
        return verdict
    verdict.missing = witness.missing(answers, entries)
    verdict.faults += report.faults + books.breaches(entries)
    if integrity != ["ok"]:
        verdict.faults += integrity
    if report.erased:
        verdict.faults.append(f"{report.erased} customers without a key")
    if set(keys) != set(books.by_key(entries)) or witness.doubled(entries):
        verdict.faults.append("half a transaction: request ids and entries differ")
    return verdict


@pytest.mark.parametrize("program", [PYTHON, planted("small-log")], ids=["unmodified", "with-many-checkpoints"])
def test_nothing_acknowledged_is_lost_when_the_power_goes(
    deployment: Deployment, program: tuple[str, ...], figures: Figures
) -> None:
    recording = record(deployment, calls=CALLS, program=program)
    began = time.monotonic()
    verdicts = list(images(recording, IMAGES, deployment.work))
    red = [verdict for verdict in verdicts if verdict.red]
    syncs = [call for call in recording.calls if call.name == "sync"]
    figures(
        seed=SEED,
        calls=len(recording.answers),
        syncs=len(syncs),
        checkpoints=sum(call.paths == (str(deployment.store),) for call in syncs),
        images=len(verdicts),
        red=len(red),
        acknowledged_missing=sum(len(verdict.missing) for verdict in verdicts),
        seconds=round(time.monotonic() - began, 1),
    )

    assert red == []
    # The file itself is synced by a checkpoint, which the unmodified server is too young to make.
    wanted = RECORDED if program == PYTHON else RECORDED | {"riskgate.db"}
    assert {Path(path).name for call in syncs for path in call.paths} >= wanted


def test_what_a_failed_sync_left_behind_is_synced_before_anybody_relies_on_it(
    deployment: Deployment, figures: Figures
) -> None:
    """
    A commit whose sync failed is still in the kernel's memory, where the next server reads it.

    The kernel takes it for written. Were it not written again, everything said since would end with the power.
    """
    deployment.started()
    assert deployment.stop() == 0
    before = deployment.work / "before"
    shutil.copytree(deployment.root, before)
    failing, recovering = deployment.work / "failing", deployment.work / "recovering"
    answers: list[Told] = []

    async def until_it_fails() -> None:
        async def client(number: int, backend: Backend) -> None:
            wallet = Wallet(f"c{number}", LIMIT_MINOR, random.Random(number))
            while not answers or answers[-1].settled:
                told = await backend.once(wallet.next_request())
                answers.append(told)
                wallet.learn(told)

        async with connections(deployment, 1) as (backend,), asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(client(number, backend))

    async def ask_again() -> None:
        async with Backend(deployment) as backend:
            answers.extend([await backend.settle(told.request) for told in answers if not told.settled])

    failing_once = trace.recorder(failing, fail=f"fdatasync:error=EIO:when={FAILS_AFTER}")
    deployment.started(prefix=failing_once)
    asyncio.run(until_it_fails())
    # Closing in order would empty the log, disk willing. It may not get that far.
    deployment.kill()
    unknown = {told.request.request_id for told in answers if told.reason == "OUTCOME_UNKNOWN"}
    deployment.started(prefix=trace.recorder(recovering))
    recovered_at = time.time()
    asyncio.run(ask_again())
    deployment.kill()
    calls = trace.read(failing, deployment.root) + trace.read(recovering, deployment.root)
    settled = [told for told in answers if told.settled]
    recording = Recording(before, deployment.root, calls, settled)
    verdicts = list(images(recording, IMAGES, deployment.work, since=recovered_at))
    figures(
        settled=len(settled),
        unknown=len(unknown),
        images=len(verdicts),
        red=sum(verdict.red for verdict in verdicts),
        acknowledged_missing=sum(len(verdict.missing) for verdict in verdicts),
    )

    assert unknown
    assert [verdict for verdict in verdicts if verdict.red] == []


@pytest.mark.parametrize("bug", ["normal-sync", "early-reply"])
def test_the_power_cut_finds_a_planted_bug(deployment: Deployment, bug: str, figures: Figures) -> None:
    recording = record(deployment, calls=CONTROL_CALLS, program=planted(bug))
    seen, red = 0, 0
    for verdict in images(recording, CONTROL_IMAGES, deployment.work):
        seen += 1
        red += bool(verdict.missing)
        if red and not EVERY_IMAGE:
            break
    figures(bug=bug, seed=SEED, images=seen, red=red)

    assert red
