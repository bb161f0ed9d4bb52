"""`make bench`: server CPU per decision, unary and in batches, beside a bare echo. Ratios of one run only."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from scripts.bench import postgres, proofs
from scripts.bench.drive import Load
from scripts.bench.process import BATCH, CUSTOMERS, IN_FLIGHT, Process, measure, prepare

from riskgate.risk.v1 import risk_service_pb2 as pb

ROUNDS = 5
UNARY_PER_ROUND = 4_000
BATCHED_PER_ROUND = 10_000
RESULTS = Path("bench-results")


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


async def _run(echo: Process, echo_load: Load, gate: Process, gate_load: Load) -> dict[str, Any]:
    await gate_load.open_lines()
    await gate_load.unary(500, in_flight=IN_FLIGHT)
    await echo_load.unary(500, in_flight=IN_FLIGHT)
    gate_load.outcomes.clear()
    rounds = []
    for number in range(ROUNDS):
        echo_cpu, _ = await measure(echo_load.unary(UNARY_PER_ROUND, in_flight=IN_FLIGHT), echo)
        unary_cpu, unary_wall = await measure(gate_load.unary(UNARY_PER_ROUND, in_flight=IN_FLIGHT), gate)
        batch_cpu, batch_wall = await measure(gate_load.batches(BATCHED_PER_ROUND, size=BATCH, in_flight=4), gate)
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
@click.option("--store", type=click.Choice(["files", "postgresql"]), default="files", help="Where the journal is.")
@click.option("--keep", is_flag=True, help="Keep the data directory.")
def main(*, store: str, keep: bool) -> None:
    """Measure, print a table, and write bench-results/latest.json, or latest-postgresql.json."""
    figures = postgres.run() if store == "postgresql" else _over_files(keep=keep)
    figures["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    RESULTS.mkdir(exist_ok=True)
    name = "latest-postgresql.json" if store == "postgresql" else "latest.json"
    (RESULTS / name).write_text(json.dumps(figures, indent=2) + "\n")
    _tell(figures)


def _tell(figures: dict[str, Any], of: str = "") -> None:
    for name, value in figures.items():
        if isinstance(value, float):
            click.echo(f"{of + name:50} {value:12.3f}")
        elif name.startswith("processes"):
            _tell(value, f"{name.replace('_', ' ')}: ")


def _over_files(*, keep: bool) -> dict[str, Any]:
    where = Path(tempfile.mkdtemp(prefix="riskgate-bench-"))
    root = where / "data"
    key, ca = prepare(root)
    gate = Process(
        sys.executable, "-m", "riskgate_server", "serve", "--data", str(root), "--certificate-port", "0",
        "--key-port", "0", "--metrics-port", "-1", "--cpu", str(max(os.sched_getaffinity(0))),
    )  # fmt: skip
    echo = Process(sys.executable, "-m", "scripts.bench.echo", str(root), _answer().hex())
    try:
        gate_port = gate.serving()
        echo_port = int(echo.first_line("stdout"))
        figures = asyncio.run(_compare(echo, echo_port, gate, gate_port, key=key, ca=ca))
        # What a decision takes on disk, before anything else is written.
        figures["bytes_per_decision"] = (root / "riskgate.db").stat().st_size / (
            ROUNDS * (UNARY_PER_ROUND + BATCHED_PER_ROUND) + 500 + CUSTOMERS / 2
        )
        outbox = root / "messages-in-clear.jsonl"
        figures |= asyncio.run(proofs.run(gate, f"localhost:{gate_port}", key=key, ca=ca, outbox=outbox))
    finally:
        gate.stop()
        echo.stop()
    if keep:
        click.echo(f"data kept in {root}")
    else:
        shutil.rmtree(where)
    return figures


if __name__ == "__main__":
    main()
