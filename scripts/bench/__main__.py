"""`make bench`: server CPU per decision, unary and in batches, beside a bare echo. Ratios of one run only."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from scripts.bench.drive import Load

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_server.cli.init import initialise
from riskgate_server.stores.access.editor import CallerEditor

CUSTOMERS = 20_000
ROUNDS = 5
UNARY_PER_ROUND = 4_000
BATCHED_PER_ROUND = 10_000
IN_FLIGHT = 64
BATCH = 100
RESULTS = Path("bench-results")
_TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A server under measurement."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def first_line(self, stream: str) -> str:
        """Return the first line it printed."""
        pipe = self._process.stdout if stream == "stdout" else self._process.stderr
        assert pipe is not None
        return pipe.readline()

    def cpu_seconds(self) -> float:
        """Return user plus system time of all its threads so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def stop(self) -> None:
        """End it in order."""
        self._process.terminate()
        self._process.communicate(timeout=60)


def _prepare(root: Path) -> tuple[str, bytes]:
    """Make a data directory and a caller without a rate to speak of; return its key and the authority."""
    made = initialise(root, names=(), tenant="bench")
    editor = CallerEditor(root / "access.db", who="bench")
    try:
        key = editor.add(
            ("bench", "load"), scopes=["risk:check", "line:open"], rate_per_second=1_000_000, burst=1_000_000,
            with_key=True, certificates_allowed=False,
        )  # fmt: skip
    finally:
        editor.close()
    assert key is not None
    return key.text, Path(made.ca_certificate).read_bytes()


def _answer() -> bytes:
    """An approval as large as a real one, for the echo to send."""
    decision = pb.Decision(
        decision_id="d-12",
        customer_id="customer-123",
        transaction_id="t-u1-1234",
        request_id="u1-1234",
        line_id="main",
        outcome=pb.OUTCOME_APPROVE,
        ruleset_version="2026.11.1",
        ruleset_hash="0" * 64,
        engine_version="0.1.0",
    )
    for money in (decision.requested_amount, decision.held_amount, decision.available_after):
        money.currency_code, money.amount_minor = "CNY", 4_321_000
    for stamp in (decision.hold_expire_time, decision.decide_time, decision.event_time):
        stamp.seconds, stamp.nanos = 1_790_000_000, 123_456_000
    return pb.CheckTransactionResponse(decision=decision).SerializeToString()


async def _measure(work: Any, process: Process) -> tuple[float, float]:
    """Return the server's CPU seconds and the wall seconds that some work took."""
    cpu, wall = process.cpu_seconds(), time.perf_counter()
    await work
    return process.cpu_seconds() - cpu, time.perf_counter() - wall


async def _run(echo: Process, echo_load: Load, gate: Process, gate_load: Load) -> dict[str, Any]:
    await gate_load.open_lines()
    await gate_load.unary(500, in_flight=IN_FLIGHT)
    await echo_load.unary(500, in_flight=IN_FLIGHT)
    gate_load.outcomes.clear()
    rounds = []
    for number in range(ROUNDS):
        echo_cpu, _ = await _measure(echo_load.unary(UNARY_PER_ROUND, in_flight=IN_FLIGHT), echo)
        unary_cpu, unary_wall = await _measure(gate_load.unary(UNARY_PER_ROUND, in_flight=IN_FLIGHT), gate)
        batch_cpu, batch_wall = await _measure(gate_load.batches(BATCHED_PER_ROUND, size=BATCH, in_flight=4), gate)
        one = {
            "echo_us_per_call": 1e6 * echo_cpu / UNARY_PER_ROUND,
            "unary_us_per_call": 1e6 * unary_cpu / UNARY_PER_ROUND,
            "unary_to_echo_ratio": echo_cpu / unary_cpu,
            "unary_per_second": UNARY_PER_ROUND / unary_wall,
            "batch100_decisions_per_core_second": BATCHED_PER_ROUND / batch_cpu,
            "batch100_per_second": BATCHED_PER_ROUND / batch_wall,
        }
        rounds.append(one)
        click.echo(
            f"round {number + 1}: echo {one['echo_us_per_call']:.0f} us, check {one['unary_us_per_call']:.0f} us,"
            f" ratio {one['unary_to_echo_ratio']:.3f}; batches"
            f" {one['batch100_decisions_per_core_second']:.0f} decisions per core-second"
        )
    await gate_load.close()
    await echo_load.close()
    total = sum(gate_load.outcomes.values())
    return {
        **{name: statistics.median(one[name] for one in rounds) for name in rounds[0]},
        "rounds": rounds,
        "approved_share": gate_load.outcomes["OUTCOME_APPROVE"] / total,
        "outcomes": dict(gate_load.outcomes),
    }


async def _compare(
    echo: Process, echo_port: int, gate: Process, gate_port: int, *, key: str, ca: bytes
) -> dict[str, Any]:
    gate_load = Load(f"localhost:{gate_port}", ca, key, customers=CUSTOMERS, run="u")
    echo_load = Load(f"localhost:{echo_port}", ca, key, customers=CUSTOMERS, run="e")
    return await _run(echo, echo_load, gate, gate_load)


@click.command()
@click.option("--keep", is_flag=True, help="Keep the data directory.")
def main(*, keep: bool) -> None:
    """Measure, print a table, and write bench-results/latest.json."""
    where = Path(tempfile.mkdtemp(prefix="riskgate-bench-"))
    root = where / "data"
    key, ca = _prepare(root)
    gate = Process(
        sys.executable, "-m", "riskgate_server", "serve", "--data", str(root), "--certificate-port", "0",
        "--key-port", "0", "--metrics-port", "-1", "--cpu", str(max(os.sched_getaffinity(0))),
    )  # fmt: skip
    echo = Process(sys.executable, "-m", "scripts.bench.echo", str(root), _answer().hex())
    try:
        gate_port = json.loads(gate.first_line("stderr"))["key_port"]
        echo_port = int(echo.first_line("stdout"))
        figures = asyncio.run(_compare(echo, echo_port, gate, gate_port, key=key, ca=ca))
    finally:
        gate.stop()
        echo.stop()
    figures["bytes_per_decision"] = (root / "riskgate.db").stat().st_size / (
        ROUNDS * (UNARY_PER_ROUND + BATCHED_PER_ROUND) + 500 + CUSTOMERS / 2
    )
    figures["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        if isinstance(value, float):
            click.echo(f"{name:38} {value:12.3f}")
    if keep:
        click.echo(f"data kept in {root}")
    else:
        shutil.rmtree(where)


if __name__ == "__main__":
    main()
