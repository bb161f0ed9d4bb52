"""Says what a load test saw: table, JSON, plot."""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from scripts.load.driver import Measured
from scripts.load.schedule import Load
from scripts.streaming.report import plain_table
from scripts.streaming.tally import milliseconds, new_histogram

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
_PERCENT: Final = 100
LATE_MS: Final = 5.0
"""A driver later than this is itself part of what it measures."""
_PLOTTED_PERCENTILES: Final = tuple(100 * (1 - 10 ** (-place / 20)) for place in range(101))


class Result:
    """What all processes saw together."""

    def __init__(self, load: Load, measured: list[Measured], *, stopped: bool = False) -> None:
        self.load = load
        self.stopped = stopped
        """Somebody asked to stop before the end of the schedule."""
        self.latencies: dict[str, Any] = {}
        self.lateness = new_histogram()
        self.all = new_histogram()
        self.errors: dict[str, Counter[str]] = {}
        self.outcomes: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self.seconds = max((each.seconds for each in measured), default=0.0)
        self.times, self.durations = array("I"), array("I")
        for each in measured:
            for call, encoded in each.latencies.items():
                self.latencies.setdefault(call, new_histogram()).decode_and_add(encoded)
                self.all.decode_and_add(encoded)
            if each.lateness:
                self.lateness.decode_and_add(each.lateness)
            for call, reasons in each.errors.items():
                self.errors.setdefault(call, Counter()).update(reasons)
            self.outcomes.update(each.outcomes)
            self._done.update(each.done)
            self.times.frombytes(each.times)
            self.durations.frombytes(each.durations)

    def done(self, call: str = "") -> int:
        """Return how many calls succeeded."""
        return self._done[call] if call else self._done.total()

    def failed(self, call: str = "") -> int:
        """Return how many calls did not."""
        return self.errors.get(call, Counter()).total() if call else sum(map(Counter.total, self.errors.values()))

    def calls(self) -> list[str]:
        """Return the kinds of calls made."""
        return sorted(self.latencies.keys() | self.errors.keys())

    def by_second(self) -> list[tuple[int, float, float]]:
        """Return for every second of planned starts the median and the largest latency, in ms."""
        seconds: dict[int, list[int]] = {}
        for at_ms, latency_us in zip(self.times, self.durations, strict=True):
            seconds.setdefault(at_ms // 1000, []).append(latency_us)
        found = []
        for second, values in sorted(seconds.items()):
            values.sort()
            found.append((second, values[len(values) // 2] / 1000, values[-1] / 1000))
        return found


def print_result(out: Console, result: Result) -> None:
    """Print a result for people."""
    load = result.load
    headings = (*(f"p{p:g}" for p in PERCENTILES), "max")
    table = plain_table("Latency from the planned start, ms", "", "calls", "errors", *headings)
    rows = [(call, result.latencies.get(call), result.done(call), result.failed(call)) for call in result.calls()]
    for name, found, done, failed in (*rows, ("all", result.all, result.done(), result.failed())):
        values = ["–"] * len(headings)
        if found is not None and found.get_total_count():
            values = [f"{milliseconds(found, p):,.1f}" if _told(found, p) else "–" for p in PERCENTILES]
            values.append(f"{found.get_max_value() / 1000:,.1f}")
        table.add_row(name, f"{done:,}", f"{failed:,}", *values)
    out.print()
    out.print(table)
    if result.stopped:
        out.print(f"\nStopped after {result.seconds:,.1f} s of {load.seconds:g} s that were to be measured.")
    planned = round(load.rate * load.seconds)
    rate = result.done() / result.seconds if result.seconds else 0.0
    out.print(f"\n{planned:,} calls planned at {load.rate:g}/s; {result.done():,} succeeded, {rate:,.1f}/s.")
    for call, reasons in sorted(result.errors.items()):
        for reason, count in reasons.most_common():
            out.print(f"  {count:,} × {call}: {reason}")
    if result.outcomes:
        said = ", ".join(f"{count:,} {outcome}" for outcome, count in result.outcomes.most_common())
        out.print(f"Decisions, warm-up included: {said}.")
    late = milliseconds(result.lateness, 99.0)
    if late > LATE_MS:
        out.print(
            f"The driver itself was late: 1 % of the calls left {late:,.1f} ms or more after plan. Use more"
            " --processes, a lower --rate, or another machine for the driver; latencies above include it."
        )


def _told(found: Any, percentile: float) -> bool:
    """Whether there are calls enough to tell a percentile: at least one lies above it."""
    return bool(found.get_total_count() * (100 - percentile) >= _PERCENT)


def result_as_data(result: Result) -> dict[str, Any]:
    """Return a result for programs."""

    def figures(found: Any) -> dict[str, float]:
        return {f"p{p:g}": milliseconds(found, p) for p in PERCENTILES if _told(found, p)} | {
            "max": found.get_max_value() / 1000
        }

    return {
        "load": msgspec.to_builtins(result.load),
        "done": result.done(),
        "failed": result.failed(),
        "seconds": round(result.seconds, 3),
        "stopped": result.stopped,
        "latency_ms": {call: figures(found) for call, found in result.latencies.items()} | {"all": figures(result.all)},
        "lateness_ms": figures(result.lateness),
        "errors": {call: dict(reasons) for call, reasons in result.errors.items()},
        "outcomes": dict(result.outcomes),
    }


def plot(result: Result, path: Path) -> None:
    """Draw latency by percentile and over time."""
    import matplotlib as mpl  # noqa: PLC0415  takes a second to import, and only a plot needs it

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  as above
    from matplotlib.ticker import FuncFormatter  # noqa: PLC0415  as above

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    places = [place / 20 for place in range(len(_PLOTTED_PERCENTILES))]
    for call, found in (*sorted(result.latencies.items()), ("all", result.all)):
        # As far to the right as there are calls to tell it.
        told = [place for place in places if 10**place <= max(1, found.get_total_count())]
        values = [milliseconds(found, p) for p in _PLOTTED_PERCENTILES[: len(told)]]
        left.plot(told, values, label=call, color="black" if call == "all" else None)
    left.set_xticks([0, 1, 2, 3, 4, 5], ["0", "90", "99", "99.9", "99.99", "99.999"])
    left.set(xlabel="percentile", ylabel="ms from the planned start", yscale="log", title="Latency by percentile")
    left.grid(visible=True, alpha=0.3)
    left.legend()
    seconds = result.by_second()
    right.plot([second for second, _, _ in seconds], [median for _, median, _ in seconds], label="median")
    right.plot([second for second, _, _ in seconds], [largest for _, _, largest in seconds], label="largest")
    right.set(xlabel="second of the planned start", ylabel="ms", yscale="log", title="Latency over time")
    right.grid(visible=True, alpha=0.3)
    right.legend()
    for axes in (left, right):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    load = result.load
    mix = ", ".join(f"{100 * value:.0f} % {name}" for name, value in load.mix.items())
    figure.suptitle(f"{load.rate:g} calls/s for {load.seconds:g} s, {load.customers:,} customers: {mix}")
    figure.savefig(path, format="svg")
    plt.close(figure)
