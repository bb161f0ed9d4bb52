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

from collections.abc import Sequence
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


_FINE_US: Final = 5 * MINUTE_US
_FINE_BUCKETS: Final = 13
_HOURLY_BUCKETS: Final = 25
_DAILY_BUCKETS: Final = 31

RESOLUTIONS: Final = (
    Resolution(_FINE_US, _FINE_BUCKETS),
    Resolution(HOUR_US, _HOURLY_BUCKETS),
    Resolution(DAY_US, _DAILY_BUCKETS),
)
"""One hour, one day, thirty days: fixed here and not by rulesets, so that history replays without them."""

_LOW_BITS: Final = 60
_LOW_MASK: Final = (1 << _LOW_BITS) - 1


class Totals(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    What is left of many amounts: enough for count, sum, mean, deviation, smallest and largest.

    A sum of squares outgrows 64 bits at amounts that occur (10^10 minor units of a small currency),
    which no stored integer may; it is therefore kept as `high * 2**60 + low`.
    """

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


class Columns(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    Closed buckets, oldest first, one column per figure of `Totals`.

    `squares_high` is empty while all of it would be 0, which is nearly always.
    """

    counts: tuple[int, ...] = ()
    sums: tuple[int, ...] = ()
    squares_low: tuple[int, ...] = ()
    squares_high: tuple[int, ...] = ()
    minima: tuple[int, ...] = ()
    maxima: tuple[int, ...] = ()


EMPTY_TOTALS: Final = Totals()
NO_COLUMNS: Final = Columns()


class Series(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    The buckets of one resolution: the newest still open, the others closed.

    Bit `i` of `present` says that bucket `newest - i` holds something: bit 0 stands for `open`, the
    higher ones for the entries of `closed`, counted from its end. Most events fall into the open
    bucket, and adding one there copies no column.
    """

    newest: int = 0
    present: int = 0
    open: Totals = EMPTY_TOTALS
    closed: Columns = NO_COLUMNS


EMPTY_SERIES: Final = Series()


class History(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The same events at the three resolutions of `RESOLUTIONS`, in that order."""

    fine: Series = EMPTY_SERIES
    hourly: Series = EMPTY_SERIES
    daily: Series = EMPTY_SERIES


EMPTY_HISTORY: Final = History()


class WindowSpec(msgspec.Struct, frozen=True, gc=False):
    """A declared velocity feature: which events, which aggregate, how far back."""

    name: str
    of: Kind
    aggregate: Aggregate
    span_us: int
    resolution: int
    buckets: int


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
    # Conditions instead of min() and max(), as in `features`.
    n = totals.n
    total = totals.sum_minor + amount_minor
    low = totals.squares_low + amount_minor * amount_minor
    smallest = totals.min_minor
    largest = totals.max_minor
    return Totals(
        n + 1,
        total if total < COUNTER_MAX_MINOR else COUNTER_MAX_MINOR,
        low & _LOW_MASK,
        totals.squares_high + (low >> _LOW_BITS),
        amount_minor if amount_minor < smallest or not n else smallest,
        amount_minor if amount_minor > largest else largest,
    )


def add_to_history(history: History, at_us: int, amount_minor: int) -> History:
    """Count one event in every series that still reaches back to it."""
    return History(
        _add(history.fine, at_us // _FINE_US, _FINE_BUCKETS, amount_minor),
        _add(history.hourly, at_us // HOUR_US, _HOURLY_BUCKETS, amount_minor),
        _add(history.daily, at_us // DAY_US, _DAILY_BUCKETS, amount_minor),
    )


def remove_from_history(history: History, at_us: int, amount_minor: int) -> History:
    """
    Take back an event counted earlier; where it already fell out of reach nothing changes.

    Smallest and largest of a bucket that keeps other events stay as they were: they cannot be undone.
    """
    return History(
        _remove(history.fine, at_us // _FINE_US, amount_minor),
        _remove(history.hourly, at_us // HOUR_US, amount_minor),
        _remove(history.daily, at_us // DAY_US, amount_minor),
    )


def deviation(n: int, total: int, squares: int) -> float:
    """
    Return the population standard deviation, 0 for fewer than two amounts.

    The variance is formed exactly and rounded once, so the result is the same on every machine.
    """
    spread = n * squares - total * total
    # Below 0 only where a sum was stopped at its maximum and no longer belongs to its squares.
    return sqrt(spread / (n * n)) if n > 1 and spread > 0 else 0.0


class WindowReader:
    """Evaluates the windows of one ruleset together: what several share is looked up once."""

    __slots__ = ("_empty", "_groups", "specs")

    def __init__(self, specs: Sequence[WindowSpec]) -> None:
        self.specs = tuple(specs)
        self._empty: tuple[int | float, ...] = tuple(
            0.0 if WINDOW_TYPES[spec.aggregate] == "double" else 0 for spec in specs
        )
        groups: dict[tuple[Kind, int, int], list[tuple[Aggregate, int]]] = {}
        for position, spec in enumerate(specs):
            groups.setdefault((spec.of, spec.resolution, spec.buckets), []).append((spec.aggregate, position))
        self._groups = tuple(
            (of != "unheld", of != "spend", resolution, buckets, tuple(wanted))
            for (of, resolution, buckets), wanted in groups.items()
        )

    def read(self, *, spend: History, unheld: History, as_of_us: int) -> list[int | float]:
        """
        Return the value of each window at `as_of_us`, which is not earlier than any event counted.

        `spend` holds the purchases that got a hold and `unheld` the others; attempts are both
        together. An empty window is 0.
        """
        values = list(self._empty)
        of_spend = (spend.fine, spend.hourly, spend.daily)
        of_unheld = (unheld.fine, unheld.hourly, unheld.daily)
        now = (as_of_us // _FINE_US, as_of_us // HOUR_US, as_of_us // DAY_US)
        for with_spend, with_unheld, resolution, buckets, wanted in self._groups:
            series = of_spend[resolution] if with_spend else of_unheld[resolution]
            reach = buckets - now[resolution] + series.newest
            inside = series.present & ((1 << reach) - 1) if reach > 0 else 0
            if with_spend and with_unheld:
                other = of_unheld[resolution]
                reach = buckets - now[resolution] + other.newest
                inside_other = other.present & ((1 << reach) - 1) if reach > 0 else 0
                if inside_other and inside:
                    total = _merged(_summed(series, inside), _summed(other, inside_other))
                    for aggregate, position in wanted:
                        values[position] = _figure(aggregate, total, NO_COLUMNS, 0)
                    continue
                if inside_other:
                    series = other
                    inside = inside_other
            if inside:
                entries = (inside >> 1).bit_count()
                newest = series.open
                closed = series.closed
                for aggregate, position in wanted:
                    values[position] = _figure(aggregate, newest, closed, entries)
        return values


def _figure(aggregate: Aggregate, newest: Totals, closed: Columns, entries: int) -> int | float:
    """Evaluate one aggregate over an open bucket, perhaps empty, and the last `entries` closed ones."""
    if aggregate == "count":
        return newest.n + sum(closed.counts[-entries:]) if entries else newest.n
    if aggregate == "sum":
        total = newest.sum_minor + sum(closed.sums[-entries:]) if entries else newest.sum_minor
        return total if total < COUNTER_MAX_MINOR else COUNTER_MAX_MINOR
    if aggregate == "max":
        return max(newest.max_minor, *closed.maxima[-entries:]) if entries else newest.max_minor
    if aggregate == "min":
        if not entries:
            return newest.min_minor
        smallest = min(closed.minima[-entries:])
        return min(newest.min_minor, smallest) if newest.n else smallest
    summed = _taken(newest, closed, entries)
    if aggregate == "mean":
        return summed.sum_minor / summed.n
    return deviation(summed.n, summed.sum_minor, summed.sum_squares)


def _summed(series: Series, inside: int) -> Totals:
    return _taken(series.open, series.closed, (inside >> 1).bit_count())


def _taken(newest: Totals, closed: Columns, entries: int) -> Totals:
    if not entries:
        return newest
    low = sum(closed.squares_low[-entries:])
    return _merged(
        newest,
        Totals(
            sum(closed.counts[-entries:]),
            sum(closed.sums[-entries:]),
            low & _LOW_MASK,
            sum(closed.squares_high[-entries:]) + (low >> _LOW_BITS),
            min(closed.minima[-entries:]),
            max(closed.maxima[-entries:]),
        ),
    )


def _merged(first: Totals, second: Totals) -> Totals:
    if not first.n:
        return second
    if not second.n:
        return first
    low = first.squares_low + second.squares_low
    return Totals(
        first.n + second.n,
        first.sum_minor + second.sum_minor,
        low & _LOW_MASK,
        first.squares_high + second.squares_high + (low >> _LOW_BITS),
        min(first.min_minor, second.min_minor),
        max(first.max_minor, second.max_minor),
    )


def _add(series: Series, index: int, kept: int, amount: int) -> Series:
    present = series.present
    if not present:
        return Series(index, 1, add_to_totals(EMPTY_TOTALS, amount), NO_COLUMNS)
    age = series.newest - index
    if age == 0:
        return Series(index, present | 1, add_to_totals(series.open, amount), series.closed)
    if age < 0:
        # A new open bucket; the one open so far is closed, and what no longer fits drops off the old end.
        older = (present << -age) & ((1 << kept) - 1) if -age < kept else 0
        closed = series.closed
        if present & 1:
            closed = _inserted(closed, len(closed.counts), series.open)
        closed = _last(closed, older.bit_count())
        return Series(index, older | 1, add_to_totals(EMPTY_TOTALS, amount), closed)
    if age >= kept:
        return series
    closed = series.closed
    at = len(closed.counts) - ((present & ((2 << age) - 1)) >> 1).bit_count()
    if not present >> age & 1:
        # A late event opens a bucket between others; entries from `at` on are newer than it.
        closed = _inserted(closed, at, add_to_totals(EMPTY_TOTALS, amount))
        return Series(series.newest, present | (1 << age), series.open, closed)
    bucket = add_to_totals(_entry(closed, at), amount)
    return Series(series.newest, present, series.open, _inserted(_without(closed, at), at, bucket))


def _remove(series: Series, index: int, amount: int) -> Series:
    age = series.newest - index
    present = series.present
    if age < 0 or not present >> age & 1:
        return series
    # The newest index stays even if its bucket is emptied, so that nothing comes back into reach.
    left = present & ~(1 << age)
    if age == 0:
        less = _less(series.open, amount)
        return Series(series.newest, present if less.n else left, less, series.closed)
    closed = series.closed
    at = len(closed.counts) - ((present & ((2 << age) - 1)) >> 1).bit_count()
    less = _less(_entry(closed, at), amount)
    closed = _without(closed, at)
    if less.n:
        return Series(series.newest, present, series.open, _inserted(closed, at, less))
    return Series(series.newest, left, series.open, closed)


def _less(totals: Totals, amount: int) -> Totals:
    if totals.n <= 1:
        return EMPTY_TOTALS
    squares = max(totals.sum_squares - amount * amount, 0)
    return Totals(
        totals.n - 1,
        max(totals.sum_minor - amount, 0),
        squares & _LOW_MASK,
        squares >> _LOW_BITS,
        totals.min_minor,
        totals.max_minor,
    )


def _entry(columns: Columns, at: int) -> Totals:
    return Totals(
        columns.counts[at],
        columns.sums[at],
        columns.squares_low[at],
        columns.squares_high[at] if columns.squares_high else 0,
        columns.minima[at],
        columns.maxima[at],
    )


def _inserted(columns: Columns, at: int, bucket: Totals) -> Columns:
    high = columns.squares_high
    if bucket.squares_high and not high:
        high = (0,) * len(columns.counts)
    return Columns(
        (*columns.counts[:at], bucket.n, *columns.counts[at:]),
        (*columns.sums[:at], bucket.sum_minor, *columns.sums[at:]),
        (*columns.squares_low[:at], bucket.squares_low, *columns.squares_low[at:]),
        (*high[:at], bucket.squares_high, *high[at:]) if high or bucket.squares_high else (),
        (*columns.minima[:at], bucket.min_minor, *columns.minima[at:]),
        (*columns.maxima[:at], bucket.max_minor, *columns.maxima[at:]),
    )


def _without(columns: Columns, at: int) -> Columns:
    return Columns(
        columns.counts[:at] + columns.counts[at + 1 :],
        columns.sums[:at] + columns.sums[at + 1 :],
        columns.squares_low[:at] + columns.squares_low[at + 1 :],
        _unless_zero(columns.squares_high[:at] + columns.squares_high[at + 1 :]),
        columns.minima[:at] + columns.minima[at + 1 :],
        columns.maxima[:at] + columns.maxima[at + 1 :],
    )


def _last(columns: Columns, entries: int) -> Columns:
    start = len(columns.counts) - entries
    if not start:
        return columns
    return Columns(
        columns.counts[start:],
        columns.sums[start:],
        columns.squares_low[start:],
        _unless_zero(columns.squares_high[start:]),
        columns.minima[start:],
        columns.maxima[start:],
    )


def _unless_zero(column: tuple[int, ...]) -> tuple[int, ...]:
    return column if any(column) else ()
