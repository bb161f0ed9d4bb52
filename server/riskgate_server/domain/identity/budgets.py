"""How much of something may happen in a time that slides: counts in a few buckets, so that a row stays small."""

from __future__ import annotations

from typing import Final

import msgspec

BUCKETS: Final = 10
"""Parts of a period. What happened leaves the count between one period and a tenth more after it happened."""


class Budget(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What happened lately: (number of the bucket, count), oldest first."""

    buckets: tuple[tuple[int, int], ...] = ()


UNSPENT: Final = Budget()


def spent(budget: Budget, *, period_us: int, now_us: int) -> int:
    """Return how often it happened within `period_us` before `now_us`."""
    first = (now_us - period_us) // (period_us // BUCKETS)
    return sum(count for bucket, count in budget.buckets if bucket >= first)


def spend(budget: Budget, *, period_us: int, now_us: int) -> Budget:
    """Return the budget after it happened once more; what no longer counts is dropped."""
    width = period_us // BUCKETS
    now, first = now_us // width, (now_us - period_us) // width
    counts = {bucket: count for bucket, count in budget.buckets if bucket >= first}
    counts[now] = counts.get(now, 0) + 1
    return Budget(tuple(sorted(counts.items())))


def give_back(budget: Budget, *, period_us: int, at_us: int) -> Budget:
    """Return the budget as if what happened at `at_us` had not."""
    bucket = at_us // (period_us // BUCKETS)
    return Budget(tuple((b, count - (b == bucket)) for b, count in budget.buckets if count > (b == bucket)))


def frees_us(budget: Budget, *, period_us: int, limit: int, now_us: int) -> int:
    """Return when it may happen again in UTC µs; `now_us` if it may now."""
    width = period_us // BUCKETS
    left = spent(budget, period_us=period_us, now_us=now_us) - limit
    first = (now_us - period_us) // width
    for bucket, count in budget.buckets:
        if left < 0:
            break
        if bucket >= first:
            left -= count
            if left < 0:
                # Counted until the whole bucket is older than the period.
                return (bucket + 1) * width + period_us
    return now_us
