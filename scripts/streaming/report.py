"""Says what came of a stream: to a person as tables, to a program as JSON."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.table import Table
from scripts.streaming.mapping import CURRENCIES
from scripts.streaming.tally import PERCENTILES, Tally, milliseconds

from riskgate_client import Outcome

OUTCOMES: Final = tuple(
    outcome.value for outcome in (Outcome.APPROVE, Outcome.STEP_UP, Outcome.REVIEW, Outcome.DECLINE)
)
_REASONS_SHOWN: Final = 12


def money(amount_minor: int, currency: str) -> str:
    """Write an amount in major units."""
    digits = CURRENCIES[currency]
    return f"{currency} {amount_minor / 10**digits:,.{digits}f}"


def share(part: int, whole: int) -> str:
    """Write a share of a whole."""
    return f"{100 * part / whole:.2f} %" if whole else "–"


def plain_table(title: str, *headings: str) -> Table:
    """Return an empty table: words to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", style=None)
    return table


def outcome_table(tally: Tally) -> Table:
    """Table outcomes against what the purchases truly were."""
    table = plain_table("Decisions", "", *OUTCOMES, "approved")
    for label in tally.labels():
        counts = [tally.number(label, outcome) for outcome in OUTCOMES]
        table.add_row(label or "all", *(f"{count:,}" for count in counts), share(counts[0], sum(counts)))
    return table


def latency_table(tally: Tally) -> Table:
    """Table how long answers took."""
    table = plain_table("Latency at full speed, ms", "", *(f"p{p:g}" for p in PERCENTILES), "max", "calls answered")
    for name, found in (("decisions, in batches", tally.latencies), ("other calls", tally.ledger_latencies)):
        if found.get_total_count():
            values = [f"{milliseconds(found, p):,.1f}" for p in PERCENTILES]
            table.add_row(name, *values, f"{found.get_max_value() / 1000:,.1f}", f"{found.get_total_count():,}")
    return table


def print_report(out: Console, tally: Tally, *, bytes_per_decision: float | None = None) -> None:
    """Print everything a stream has to tell."""
    counts = tally.counts
    decided = sum(tally.outcomes().values())
    out.print()
    out.print(outcome_table(tally))
    reasons = plain_table("Why not approved, weightiest reason", "", *(label or "all" for label in tally.labels()))
    codes = {code for found in counts.first_reasons.values() for code in found}
    ranked = sorted(codes, key=lambda code: (-sum(f.get(code, 0) for f in counts.first_reasons.values()), code))
    for code in ranked[:_REASONS_SHOWN]:
        found = (counts.first_reasons.get(label, {}).get(code, 0) for label in tally.labels())
        reasons.add_row(code, *(f"{count:,}" for count in found))
    if ranked:
        out.print()
        out.print(reasons)
    out.print()
    out.print(latency_table(tally))
    out.print()
    if counts.ledger:
        out.print("Besides: " + ", ".join(f"{count:,} {what}" for what, count in sorted(counts.ledger.items())) + ".")
    if counts.suspended:
        out.print(f"Lines suspended at once: {counts.suspended:,}.")
    for reason, count in sorted(counts.failed.items()):
        out.print(f"Answered with an error: {count:,} × {reason}.")
    if counts.bad_rows:
        out.print(f"Rows not sent because they are no purchases: {counts.bad_rows:,}.")
    for problem in counts.problems:
        out.print(f"  {problem}", markup=False)
    rate = f"{decided / counts.seconds:,.0f} decisions per second" if counts.seconds else ""
    out.print(f"{counts.answered:,} purchases answered in {counts.seconds:,.1f} s: {rate}.")
    genuine = tally.genuine_approved()
    if genuine is not None:
        out.print(f"Genuine purchases approved: {100 * genuine:.2f} %.")
    if bytes_per_decision is not None:
        out.print(f"Bytes on the server's disk per decision, everything included: {bytes_per_decision:,.0f}.")


def report_as_data(tally: Tally, *, bytes_per_decision: float | None = None) -> dict[str, Any]:
    """Return the same for programs."""
    counts = tally.counts
    return {
        "answered": counts.answered,
        "outcomes": counts.outcomes,
        "amounts_minor": counts.amounts,
        "first_reasons": counts.first_reasons,
        "reasons": counts.reasons,
        "errors": counts.failed,
        "besides": counts.ledger,
        "suspended": counts.suspended,
        "degraded": counts.degraded,
        "bad_rows": counts.bad_rows,
        "seconds": round(counts.seconds, 3),
        "decisions_per_second": round(sum(tally.outcomes().values()) / counts.seconds, 1) if counts.seconds else None,
        "latency_ms": {f"p{p:g}": milliseconds(tally.latencies, p) for p in PERCENTILES},
        "other_latency_ms": {f"p{p:g}": milliseconds(tally.ledger_latencies, p) for p in PERCENTILES},
        "genuine_approved": tally.genuine_approved(),
        "bytes_per_decision": bytes_per_decision,
    }
