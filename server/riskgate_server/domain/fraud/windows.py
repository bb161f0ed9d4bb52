"""
Counts and sums over the recent past of one customer, in whole numbers and bounded space.

A series is a run of equal time buckets, newest last. Only buckets in which something happened are
kept, as columns of integers, because a sum over a column runs at C speed and encodes in a byte or
two per entry. Means and deviations are derived at reading, so that a series rebuilt from the
journal is equal to the last bit.

A window of span S reads the bucket of "now" and the S / width buckets before it: it never covers
less than S and never more than S plus one bucket.
"""

from __future__ import annotations

from math import sqrt
from typing import Final, Literal, NamedTuple

import msgspec

from riskgate_server.domain.money import COUNTER_MAX_MINOR

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US

Kind = Literal["attempts", "spend", "unheld"]
Aggregate = Literal["count", "sum", "min", "max", "mean", "stddev"]


class Resolution(NamedTuple):
    """How finely a series cuts time, and how many buckets back it reaches."""

    width_us: int
    buckets: int


RESOLUTIONS: Final = (
    Resolution(5 * MINUTE_US, 13),
    Resolution(HOUR_US, 25),
    Resolution(DAY_US, 31),
)
"""One hour, one day, thirty days: fixed here and not by rulesets, so that the journal replays without them."""

_LOW_BITS: Final = 60
_LOW_MASK: Final = (1 << _LOW_BITS) - 1


class Series(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    The buckets of one resolution. Bit `i` of `present` says that bucket `newest - i` has a column entry.

    A sum of squares outgrows 64 bits at amounts that occur (10^10 minor units of a small currency),
    which no stored integer may; it is therefore kept as `high * 2**60 + low`.
    """

    newest: int = 0
    present: int = 0
    counts: tuple[int, ...] = ()
    sums: tuple[int, ...] = ()
    squares_low: tuple[int, ...] = ()
    squares_high: tuple[int, ...] = ()
    minima: tuple[int, ...] = ()
    maxima: tuple[int, ...] = ()


class History(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The same events at the three resolutions of `RESOLUTIONS`, in that order."""

    fine: Series = Series()
    hourly: Series = Series()
    daily: Series = Series()


class Totals(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is left of many amounts: enough for count, sum, mean, deviation, smallest and largest."""

    n: int = 0
    sum_minor: int = 0
    squares_low: int = 0
    squares_high: int = 0
    min_minor: int = 0
    max_minor: int = 0

    @property
    def sum_squares(self) -> int:
        """Return the exact sum of squared amounts."""
        return (self.squares_high << _LOW_BITS) + self.squares_low


class WindowSpec(msgspec.Struct, frozen=True):
    """A declared velocity feature: which events, which aggregate, how far back."""

    name: str
    of: Kind
    aggregate: Aggregate
    span_us: int
    resolution: int
    buckets: int


EMPTY_SERIES: Final = Series()
EMPTY_HISTORY: Final = History()
EMPTY_TOTALS: Final = Totals()

WINDOW_TYPES: Final[dict[str, str]] = {
    "count": "int",
    "sum": "int",
    "min": "int",
    "max": "int",
    "mean": "double",
    "stddev": "double",
}
"""The CEL type each aggregate has."""


def window(*, name: str, of: Kind, aggregate: Aggregate, span_us: int) -> WindowSpec:
    """
    Place a window on the finest series that reaches back far enough.

    Raises:
        ValueError: the span is not positive, not a whole number of buckets, or longer than 30 days.
    """
    for position, (width_us, buckets) in enumerate(RESOLUTIONS):
        if 0 < span_us <= width_us * (buckets - 1):
            whole, rest = divmod(span_us, width_us)
            if rest:
                break
            return WindowSpec(name, of, aggregate, span_us, position, whole + 1)
    message = "a span is 5m to 60m in steps of 5m, 1h to 24h in hours, or 1d to 30d in days"
    raise ValueError(message)


def add_to_totals(totals: Totals, amount_minor: int) -> Totals:
    """Count one more amount. Sums stop at the largest storable integer instead of passing it."""
    high, low = divmod(totals.sum_squares + amount_minor * amount_minor, 1 << _LOW_BITS)
    return Totals(
        totals.n + 1,
        min(totals.sum_minor + amount_minor, COUNTER_MAX_MINOR),
        low,
        high,
        min(totals.min_minor, amount_minor) if totals.n else amount_minor,
        max(totals.max_minor, amount_minor),
    )


def add_to_history(history: History, at_us: int, amount_minor: int) -> History:
    """Count one event in every series that still reaches back to it."""
    return History(
        _add(history.fine, at_us // RESOLUTIONS[0].width_us, RESOLUTIONS[0].buckets, amount_minor),
        _add(history.hourly, at_us // RESOLUTIONS[1].width_us, RESOLUTIONS[1].buckets, amount_minor),
        _add(history.daily, at_us // RESOLUTIONS[2].width_us, RESOLUTIONS[2].buckets, amount_minor),
    )


def remove_from_history(history: History, at_us: int, amount_minor: int) -> History:
    """
    Take back an event counted earlier; where it already fell out of reach nothing changes.

    Smallest and largest of its bucket stay as they were: they cannot be undone.
    """
    return History(
        _remove(history.fine, at_us // RESOLUTIONS[0].width_us, amount_minor),
        _remove(history.hourly, at_us // RESOLUTIONS[1].width_us, amount_minor),
        _remove(history.daily, at_us // RESOLUTIONS[2].width_us, amount_minor),
    )


def read_window(spec: WindowSpec, *, spend: History, unheld: History, as_of_us: int) -> int | float:
    """
    Evaluate a window at `as_of_us`, which is not earlier than any event counted. An empty window is 0.

    `spend` holds the purchases that got a hold and `unheld` the others; attempts are both together.
    """
    position = spec.resolution
    now = as_of_us // RESOLUTIONS[position].width_us
    of = spec.of
    taken: tuple[tuple[Series, int], ...] = ()
    if of != "unheld":
        series = spend.fine if position == 0 else spend.hourly if position == 1 else spend.daily
        entries = _entries(series, now, spec.buckets)
        if entries:
            taken = ((series, entries),)
    if of != "spend":
        series = unheld.fine if position == 0 else unheld.hourly if position == 1 else unheld.daily
        entries = _entries(series, now, spec.buckets)
        if entries:
            taken += ((series, entries),)
    aggregate = spec.aggregate
    if not taken:
        return 0.0 if aggregate in {"mean", "stddev"} else 0
    if aggregate == "count":
        return sum([sum(series.counts[-entries:]) for series, entries in taken])
    if aggregate == "sum":
        return min(sum([sum(series.sums[-entries:]) for series, entries in taken]), COUNTER_MAX_MINOR)
    if aggregate == "max":
        return max([max(series.maxima[-entries:]) for series, entries in taken])
    if aggregate == "min":
        return min([min(series.minima[-entries:]) for series, entries in taken])
    n = sum([sum(series.counts[-entries:]) for series, entries in taken])
    total = sum([sum(series.sums[-entries:]) for series, entries in taken])
    if aggregate == "mean":
        return total / n
    low = sum([sum(series.squares_low[-entries:]) for series, entries in taken])
    high = sum([sum(series.squares_high[-entries:]) for series, entries in taken])
    return deviation(n, total, (high << _LOW_BITS) + low)


def deviation(n: int, total: int, squares: int) -> float:
    """
    Return the population standard deviation, 0 for fewer than two amounts.

    The variance is formed exactly and rounded once, so the result is the same on every machine and
    cannot be the root of a negative number.
    """
    if n < 2:  # noqa: PLR2004 - one amount has no spread
        return 0.0
    # A saturated sum no longer belongs to its squares; the spread is then reported as none.
    return sqrt(max(n * squares - total * total, 0) / (n * n))


def _entries(series: Series, now: int, buckets: int) -> int:
    """Return how many column entries, counted from the newest, fall into the last `buckets` buckets."""
    reach = buckets - now + series.newest
    return (series.present & ((1 << reach) - 1)).bit_count() if reach > 0 else 0


def _add(series: Series, index: int, kept: int, amount: int) -> Series:
    square_high, square_low = divmod(amount * amount, 1 << _LOW_BITS)
    present = series.present
    ahead = index - series.newest if present else kept
    if ahead > 0:
        # A new newest bucket. What no longer fits drops off the old end.
        present = ((present << ahead) | 1) & ((1 << kept) - 1) if ahead < kept else 1
        staying = present.bit_count() - 1
        start = len(series.counts) - staying
        return Series(
            index,
            present,
            (*series.counts[start:], 1),
            (*series.sums[start:], amount),
            (*series.squares_low[start:], square_low),
            (*series.squares_high[start:], square_high),
            (*series.minima[start:], amount),
            (*series.maxima[start:], amount),
        )
    age = -ahead
    if age >= kept:
        return series
    at = len(series.counts) - (present & ((1 << (age + 1)) - 1)).bit_count()
    if not present >> age & 1:
        # A late event opens a bucket between others: `at` is the first entry newer than it.
        return Series(
            series.newest,
            present | (1 << age),
            (*series.counts[:at], 1, *series.counts[at:]),
            (*series.sums[:at], amount, *series.sums[at:]),
            (*series.squares_low[:at], square_low, *series.squares_low[at:]),
            (*series.squares_high[:at], square_high, *series.squares_high[at:]),
            (*series.minima[:at], amount, *series.minima[at:]),
            (*series.maxima[:at], amount, *series.maxima[at:]),
        )
    after = at + 1
    low = series.squares_low[at] + square_low
    return Series(
        series.newest,
        present,
        (*series.counts[:at], series.counts[at] + 1, *series.counts[after:]),
        (*series.sums[:at], min(series.sums[at] + amount, COUNTER_MAX_MINOR), *series.sums[after:]),
        (*series.squares_low[:at], low & _LOW_MASK, *series.squares_low[after:]),
        (
            *series.squares_high[:at],
            series.squares_high[at] + square_high + (low >> _LOW_BITS),
            *series.squares_high[after:],
        ),
        (*series.minima[:at], min(series.minima[at], amount), *series.minima[after:]),
        (*series.maxima[:at], max(series.maxima[at], amount), *series.maxima[after:]),
    )


def _remove(series: Series, index: int, amount: int) -> Series:
    age = series.newest - index
    present = series.present
    if age < 0 or not present >> age & 1:
        return series
    at = len(series.counts) - (present & ((1 << (age + 1)) - 1)).bit_count()
    after = at + 1
    if series.counts[at] == 1:
        # The bucket is empty now. The newest stays the newest, so that reach does not change.
        return Series(
            series.newest,
            present & ~(1 << age),
            series.counts[:at] + series.counts[after:],
            series.sums[:at] + series.sums[after:],
            series.squares_low[:at] + series.squares_low[after:],
            series.squares_high[:at] + series.squares_high[after:],
            series.minima[:at] + series.minima[after:],
            series.maxima[:at] + series.maxima[after:],
        )
    squares = (series.squares_high[at] << _LOW_BITS) + series.squares_low[at] - amount * amount
    high, low = divmod(max(squares, 0), 1 << _LOW_BITS)
    return Series(
        series.newest,
        present,
        (*series.counts[:at], series.counts[at] - 1, *series.counts[after:]),
        (*series.sums[:at], max(series.sums[at] - amount, 0), *series.sums[after:]),
        (*series.squares_low[:at], low, *series.squares_low[after:]),
        (*series.squares_high[:at], high, *series.squares_high[after:]),
        series.minima,
        series.maxima,
    )
