"""However a server starts and ends: one at a time, nothing half made, and nobody left without an answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from riskgate.credit.v1.credit_line_service_pb2 import GetCreditLineRequest
from riskgate_client import DevicePlatform, Money, Riskgate, RiskgateError
from riskgate_client.phone import AndroidPhone
from tests.acceptance import books, witness
from tests.acceptance.calling import Backend, Told, check, connections, open_line
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import FREE_PORTS, PYTHON, Deployment, answer, environment, riskgate, until
from tests.acceptance.planted import planted
from tests.acceptance.shopping import Wallet
from tests.unit.crypto.proofs.makers import issue

pytestmark = pytest.mark.process

STARTS = int(os.environ.get("STARTS", "3"))
"""How many starts, and how many inits, are killed."""
START_SECONDS = 1.2
INIT_SECONDS = 0.1
CALLS_IN_FLIGHT = 100
CLIENTS = 16
CONNECTIONS = 4
LIMIT_MINOR = 1_000_000
DRAIN_SECONDS = 5.0
STOPPED_SECONDS = 1.5
DEADLINE_SECONDS = 1.0
NORMAL_AGAIN_SECONDS = 10.0


async def drained(deployment: Deployment, answers: list[Told]) -> list[Told]:
    """Have a hundred callers call without pause, ask the server to end, and go on until nobody answers."""
    last: list[Told] = []
    busy = asyncio.Event()

    async def caller(number: int, backend: Backend) -> None:
        for call in range(1_000_000):
            told = await backend.once(check("one", f"r{number}-{call}", f"t{number}-{call}", 1))
            answers.append(told)
            if len(answers) >= CALLS_IN_FLIGHT:
                busy.set()
            if not told.settled:
                last.append(told)
                return

    async with connections(deployment, CONNECTIONS) as backends:
        assert (await backends[0].settle(open_line("one", LIMIT_MINOR))).done
        async with asyncio.TaskGroup() as group:
            for number in range(CALLS_IN_FLIGHT):
                group.create_task(caller(number, backends[number % CONNECTIONS]))
            await busy.wait()
            deployment.send(signal.SIGTERM)
    return last


def test_sigterm_answers_every_call_in_flight(deployment: Deployment, figures: Figures) -> None:
    answers: list[Told] = []
    deployment.started(settings={"drain_seconds": str(DRAIN_SECONDS)})
    last = asyncio.run(drained(deployment, answers))
    began = time.monotonic()
    code = deployment.wait(DRAIN_SECONDS + 1)
    seconds = time.monotonic() - began
    entries = books.read(deployment.store)
    found = books.by_key(entries)
    # "Nothing was done" must be true.
    untrue = [
        told for told in last
        if told.reason == "SHUTTING_DOWN" and (told.request.customer_id, told.request.request_id) in found
    ]  # fmt: skip
    ends = Counter(f"{told.code.name} {told.reason or told.text[:40]}" for told in last)
    figures(answered=len(answers), ends=dict(ends), exit_code=code, exit_s=round(seconds, 2))

    assert code == 0
    assert {told.code for told in last} == {grpc.StatusCode.UNAVAILABLE}
    assert untrue == []
    assert witness.missing(answers, entries) == []
    assert deployment.verify()["faults"] == []


def test_a_second_server_is_refused_and_names_the_first(deployment: Deployment, figures: Figures) -> None:
    deployment.started()
    began = time.monotonic()
    second = riskgate("serve", "--data", deployment.root, *FREE_PORTS)
    seconds = time.monotonic() - began

    figures(refused_within_s=round(seconds, 2))
    assert second.returncode == 1
    assert f"is served by process {deployment.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert deployment.stop() == 0


def kill_soon_after(process: subprocess.Popen[bytes], appears: Path, within_seconds: float) -> None:
    """Take a process away a moment after it has made a file; if it never does, when it ends."""
    until(lambda: appears.exists() or process.poll() is not None, seconds=30, what=f"making {appears.name}")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(random.uniform(0, within_seconds))
    process.kill()
    process.wait(10)


def test_a_server_killed_while_it_starts_starts_the_next_time(deployment: Deployment, figures: Figures) -> None:
    """The first start signs where the journal begins; later ones find the log of the last commit, and recover it."""
    for start in range(STARTS):
        process = deployment.start()
        if start == 0:
            kill_soon_after(process, deployment.root / "heads.log", 0.05)
        else:
            kill_soon_after(process, deployment.root, START_SECONDS)
        if start == STARTS // 2:
            deployment.started()
            asyncio.run(_one_call(deployment, "half-way"))
            deployment.kill()
    deployment.started()
    asyncio.run(_one_call(deployment, "last"))
    figures(starts_killed=STARTS)

    assert deployment.stop() == 0
    report = deployment.verify()
    assert (report["faults"], report["customers"]) == ([], 2)


async def _one_call(deployment: Deployment, customer_id: str) -> None:
    async with Backend(deployment) as backend:
        assert (await backend.settle(open_line(customer_id, 1))).done


async def _asked_once(deployment: Deployment, customer_id: str) -> Told:
    async with Backend(deployment) as backend:
        return await backend.once(open_line(customer_id, 1))


def test_an_init_killed_at_any_point_is_finished_by_the_next(tmp_path: Path, figures: Figures) -> None:
    """Until it is finished nothing serves it, and once it is nothing is ever made anew."""
    unfinished = 0
    for number in range(STARTS):
        root = tmp_path / f"data-{number}"
        process = subprocess.Popen([*PYTHON, "init", str(root)], env=environment(), stdout=subprocess.DEVNULL)
        kill_soon_after(process, root, INIT_SECONDS)
        finished = (root / "access.db").exists() and not (root / "INITIALISING").exists()
        if root.exists() and not finished:
            unfinished += 1
            refused = riskgate("serve", "--data", root, *FREE_PORTS)
            assert refused.returncode == 1, refused.stderr
            assert "riskgate init" in refused.stderr
        again = riskgate("init", root, "--json")
        assert again.returncode == (2 if finished else 0), again.stderr
        shutil.rmtree(root)
    figures(inits_killed=STARTS, of_these_half_done=unfinished)


def test_a_server_that_stood_still_starts_nothing_whose_caller_has_gone(
    deployment: Deployment, figures: Figures
) -> None:
    wallets = [Wallet(f"c{customer}", LIMIT_MINOR, random.Random()) for customer in range(CLIENTS)]
    answers: list[Told] = []
    gone: list[Told] = []
    again: list[Told] = []

    async def scene() -> float:
        async with connections(deployment, CONNECTIONS, attempt_seconds=DEADLINE_SECONDS) as backends:
            pairs = list(zip(wallets, backends * CLIENTS, strict=False))
            answers.extend([await backend.settle(wallet.next_request()) for wallet, backend in pairs])
            deployment.send(signal.SIGSTOP)
            stopped = time.monotonic()
            gone.extend(await asyncio.gather(*(backend.once(wallet.next_request()) for wallet, backend in pairs)))
            await asyncio.sleep(max(0.0, STOPPED_SECONDS - (time.monotonic() - stopped)))
            deployment.send(signal.SIGCONT)
            began = time.monotonic()
            await backends[0].settle(GetCreditLineRequest(customer_id="c0"), patience=NORMAL_AGAIN_SECONDS)
            seconds = time.monotonic() - began
            again.extend([await backends[0].settle(told.request) for told in gone])
            return seconds

    deployment.started()
    seconds = asyncio.run(scene())
    assert deployment.stop() == 0
    entries = books.read(deployment.store)
    found = books.by_key(entries)
    late = [
        entry
        for told in gone
        for entry in found.get((told.request.customer_id, told.request.request_id), [])
        if told.told_at * 1_000_000 < entry.at_us < again[0].asked_at * 1_000_000
    ]
    figures(given_up=len(gone), done_after_the_deadline=len(late), normal_again_s=round(seconds, 2))

    assert {told.code for told in gone} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert late == []
    assert witness.missing([*answers, *again], entries) == []
    assert witness.doubled(entries) == []


def test_a_server_that_crashes_leaves_no_memory_behind_whatever_the_system_would_keep(deployment: Deployment) -> None:
    """A dump of its memory had the master key in it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        deployment.started()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    limits = Path(f"/proc/{deployment.pid}/limits").read_text()
    (core,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))

    assert core.split()[4] == "0"


def test_a_server_whose_disk_failed_ends_though_its_orderly_end_never_comes(deployment: Deployment) -> None:
    deployment.started(program=planted("endless-end"))

    told = asyncio.run(_asked_once(deployment, "ada"))

    assert told.reason == "OUTCOME_UNKNOWN"
    assert deployment.wait(10) == 1
    assert (deployment.events("stopping"), deployment.events("stopped")) == (1, 0)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_server_whose_standard_streams_are_closed_serves_and_ends_in_order(
    deployment: Deployment, closed: str
) -> None:
    # Of the log there may be nothing, so that only an answer tells that it serves.
    deployment.start(program=("sh", "-c", f'exec "$@" {closed}', "sh", *PYTHON))
    asyncio.run(_one_call(deployment, "ada"))

    deployment.send(signal.SIGTERM)

    assert deployment.wait(20) == 0


def test_no_thread_of_a_server_interrupts_another_when_it_wakes(deployment: Deployment) -> None:
    deployment.started()
    threads = [int(task.name) for task in Path(f"/proc/{deployment.pid}/task").iterdir()]

    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


def test_a_certificate_that_libraries_warn_of_leaves_lines_of_the_log_and_nothing_else(deployment: Deployment) -> None:
    """One with a serial number below 0. Anybody with a phone may send it, and who reads the log expects JSON."""
    caller = answer("callers", "add", "phones", "--data", deployment.root, "--scope", "admin", "--key")
    key = AndroidPhone().key
    plain = issue("Strange", key.public_key(), key=key, serial=0x11223344).public_bytes(Encoding.DER)
    phone = AndroidPhone(chain=lambda _spki, _challenge: [plain.replace(b"\x02\x04\x11", b"\x02\x04\x91")])
    deployment.started()
    with Riskgate(
        f"localhost:{deployment.port}", ca=deployment.root / "tls" / "ca.crt", api_key=caller["key"]["api_key"]
    ) as gate:
        gate.lines.open(
            customer_id="ada", line_id="main", limit=Money("CNY", 1), decision_reference="A", actor_id="ops"
        )
        begun = gate.devices.begin_enrollment(
            customer_id="ada", platform=DevicePlatform.ANDROID_KEYSTORE, display_name="phone"
        )
        with pytest.raises(RiskgateError):
            gate.devices.finish_enrollment(
                customer_id="ada",
                enrollment_id=begun.enrollment_id,
                raw_key=phone.enrol(begun.signing_input, begun.challenge),
            )
    deployment.stop()
    lines = deployment.log.read_text().splitlines()

    assert deployment.events("library warned") > 0
    assert [line for line in lines if not line.startswith("{")] == []
