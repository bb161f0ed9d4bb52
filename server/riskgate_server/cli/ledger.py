"""`riskgate ledger`: proves that the books are right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from riskgate_server.cli.common import Bars, checked_directory, counted, data_option, json_option, say, store_option

if TYPE_CHECKING:
    from riskgate_server.engine.report import Report


@click.group()
def ledger() -> None:
    """Look after the journal and the books made from it."""


@ledger.command()
@data_option
@store_option
@json_option
def verify(data: Path, store: str, as_json: bool) -> None:
    """
    Recompute everything from the journal and compare it with what is stored.

    Checks every hash chain, every writer's lane of commits with their Merkle roots, the signed heads, the schema,
    and that folding the journal gives the stored lines, holds, payments, request ids and profiles. Reads one snapshot:
    it may run beside live servers. Exit code 0 when clean, 1 when not.
    """
    from riskgate_server.opening import UNREADABLE, verify_directory

    directory = checked_directory(data, store_here=not store)
    with Bars(shown=not as_json) as progress:
        try:
            report = verify_directory(directory, progress, store)
        except UNREADABLE as error:
            raise click.ClickException(str(error)) from error
    say(_answer(report), _text(report), as_json=as_json)
    sys.exit(1 if report.faults else 0)


def _answer(report: Report) -> dict[str, Any]:
    return {
        "clean": not report.faults,
        "customers": report.customers,
        "entries": report.entries,
        "batches": report.batches,
        "heads": report.heads,
        "erased": report.erased,
        "outstanding_minor": report.outstanding_minor,
        "held_minor": report.held_minor,
        "lanes": [msgspec.structs.asdict(lane) | {"head": lane.head.hex()} for lane in report.lanes],
        "faults": report.faults,
    }


def _text(report: Report) -> str:
    def sums(by_currency: dict[str, int]) -> str:
        return ", ".join(f"{amount} {currency}" for currency, amount in sorted(by_currency.items())) or "0"

    verdict = "NOT CLEAN" if report.faults else "clean"
    lines = [
        f"{verdict}: {counted(report.entries, 'entry', plural='entries')} of {counted(report.customers, 'customer')}",
        f"{counted(report.batches, 'commit')}, {counted(report.heads, 'signed head')}",
        f"owed {sums(report.outstanding_minor)}; held {sums(report.held_minor)} (minor units)",
    ]
    if len(report.lanes) == 1:
        lines.append(f"head {report.lanes[0].head.hex()}")
    else:
        lines += [
            f"lane {lane.writer}: {counted(lane.batches, 'commit')}, {counted(lane.heads, 'signed head')},"
            f" head {lane.head.hex()}"
            for lane in report.lanes
        ]
    lines += [f"fault: {fault}" for fault in report.faults]
    return "\n".join(lines)
