"""Counts what came of a stream, and survives a restart."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec
from hdrh.histogram import HdrHistogram
from scripts.streaming.purchase import GENUINE, Purchase

from riskgate_client import Decision, Outcome

LATENCY_MAX_US: Final = 60_000_000
_DIGITS: Final = 3
SHOWN_MAX: Final = 20
"""Problems kept for showing; all are counted."""
PERCENTILES: Final = (50.0, 95.0, 99.0, 99.9)

SUSPENDED_REASON: Final = "LINE_BLOCKED"
LIMIT_REASON: Final = "CREDIT_LIMIT_EXCEEDED"


def new_histogram() -> Any:
    """Return an empty histogram of microseconds, exact to three digits."""
    return HdrHistogram(1, LATENCY_MAX_US, _DIGITS)


class Counts(msgspec.Struct):
    """The part of a tally that can be written down."""

    answered: int = 0
    outcomes: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    """Label → outcome → purchases."""
    amounts: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    """Label → outcome → minor units."""
    reasons: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    """Label → reason code → purchases that were not approved."""
    first_reasons: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    """Label → weightiest reason code → purchases that were not approved."""
    failed: dict[str, int] = msgspec.field(default_factory=dict)
    """Reason of an error → purchases that were answered with it."""
    ledger: dict[str, int] = msgspec.field(default_factory=dict)
    """What followed: captured, voided, refunded, repaid, opened, and errors by reason."""
    suspended: int = 0
    degraded: int = 0
    bad_rows: int = 0
    problems: list[str] = msgspec.field(default_factory=list)
    seconds: float = 0.0
    latencies: str = ""
    ledger_latencies: str = ""


class Tally:
    """Counts while a stream runs."""

    def __init__(self, counts: Counts | None = None) -> None:
        self.counts = counts or Counts()
        self.latencies = new_histogram()
        self.ledger_latencies = new_histogram()
        if self.counts.latencies:
            self.latencies.decode_and_add(self.counts.latencies)
        if self.counts.ledger_latencies:
            self.ledger_latencies.decode_and_add(self.counts.ledger_latencies)

    def decided(self, purchase: Purchase, decision: Decision) -> None:
        """Count an answer."""
        counts, label, outcome = self.counts, purchase.label, decision.outcome.value
        counts.answered += 1
        _add(counts.outcomes, label, outcome)
        _add(counts.amounts, label, outcome, purchase.amount_minor)
        counts.suspended += decision.line_suspended
        counts.degraded += decision.degraded
        if decision.outcome is not Outcome.APPROVE:
            for place, code in enumerate(decision.reason_codes):
                _add(counts.reasons, label, code)
                if not place:
                    _add(counts.first_reasons, label, code)

    def failed(self, purchase: Purchase, reason: str, problem: str) -> None:
        """Count an answer that is an error."""
        self.counts.answered += 1
        self.counts.failed[reason] = self.counts.failed.get(reason, 0) + 1
        self.problem(f"purchase {purchase.transaction_id} (row {purchase.number} of the stream): {problem}")

    def bad_row(self, problem: str) -> None:
        """Count a row that was never sent."""
        self.counts.bad_rows += 1
        self.problem(problem)

    def did(self, what: str) -> None:
        """Count something that followed a purchase."""
        self.counts.ledger[what] = self.counts.ledger.get(what, 0) + 1

    def problem(self, text: str) -> None:
        """Keep a problem for showing, if there are not too many yet."""
        if len(self.counts.problems) < SHOWN_MAX:
            self.counts.problems.append(text)

    def written(self) -> Counts:
        """Return everything counted so far in a form that can be stored."""
        encoded = [histogram.encode().decode() for histogram in (self.latencies, self.ledger_latencies)]
        self.counts.latencies, self.counts.ledger_latencies = encoded
        return self.counts

    # --- Questions ---

    def labels(self) -> list[str]:
        """Return the labels seen, genuine first."""
        return sorted(self.counts.outcomes, key=lambda label: (label != GENUINE, label))

    def number(self, label: str, outcome: str = "") -> int:
        """Return how many purchases of a label got an outcome, or any."""
        found = self.counts.outcomes.get(label, {})
        return found.get(outcome, 0) if outcome else sum(found.values())

    def amount(self, label: str, outcome: str = "") -> int:
        """Return how much money they were about."""
        found = self.counts.amounts.get(label, {})
        return found.get(outcome, 0) if outcome else sum(found.values())

    def outcomes(self) -> Counter[str]:
        """Return outcome → purchases, whatever their label."""
        total: Counter[str] = Counter()
        for found in self.counts.outcomes.values():
            total.update(found)
        return total

    def genuine_approved(self) -> float | None:
        """Return the share of genuine purchases that were approved; None when nothing says which are."""
        genuine = self.number(GENUINE)
        return self.number(GENUINE, Outcome.APPROVE) / genuine if genuine else None


def _add(table: dict[str, dict[str, int]], label: str, key: str, count: int = 1) -> None:
    row = table.setdefault(label, {})
    row[key] = row.get(key, 0) + count


def milliseconds(histogram: Any, percentile: float) -> float:
    """Return a percentile in milliseconds."""
    return float(histogram.get_value_at_percentile(percentile)) / 1000
