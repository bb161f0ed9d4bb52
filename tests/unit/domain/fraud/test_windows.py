"""Windows against a list of all events: the same answer for every aggregate, at bucket granularity."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskgate_server.domain.fraud.windows import (
    DAY_US,
    EMPTY_HISTORY,
    HOUR_US,
    MINUTE_US,
    RESOLUTIONS,
    WINDOW_TYPES,
    History,
    WindowReader,
    WindowSpec,
    add_to_history,
    deviation,
    remove_from_history,
    window,
)
from riskgate_server.domain.money import AMOUNT_MAX_MINOR

START_US = 1_775_000_000_000_000
SPANS_US = (5 * MINUTE_US, 30 * MINUTE_US, HOUR_US, 2 * HOUR_US, DAY_US, 2 * DAY_US, 7 * DAY_US, 30 * DAY_US)
SPECS = tuple(
    window(name=f"{of}_{aggregate}_{span_us}", of=of, aggregate=aggregate, span_us=span_us)  # type: ignore[arg-type] # the table's keys are the aggregates
    for of, aggregate, span_us in itertools.product(("attempts", "spend", "unheld"), WINDOW_TYPES, SPANS_US)
)


class Event(NamedTuple):
    """One decided purchase."""

    at_us: int
    amount: int
    spent: bool


steps_us = st.one_of(
    st.integers(-10 * MINUTE_US, 10 * MINUTE_US),
    st.integers(-HOUR_US, 3 * HOUR_US),
    st.integers(-3 * DAY_US, 10 * DAY_US),
    st.integers(-40 * DAY_US, 40 * DAY_US),
)
amounts = st.one_of(st.integers(0, 10_000), st.integers(0, AMOUNT_MAX_MINOR))


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events that wander through time, often forward, sometimes late."""
    at_us = START_US
    events = []
    for step_us, amount, spent in draw(st.lists(st.tuples(steps_us, amounts, st.booleans()), max_size=40)):
        at_us += step_us
        events.append(Event(at_us, amount, spent))
    return events


def fold(events: list[Event]) -> tuple[History, History]:
    spend, unheld = EMPTY_HISTORY, EMPTY_HISTORY
    for event in events:
        if event.spent:
            spend = add_to_history(spend, event.at_us, event.amount)
        else:
            unheld = add_to_history(unheld, event.at_us, event.amount)
    return spend, unheld


def by_hand(spec: WindowSpec, events: list[Event], as_of_us: int) -> int | float:
    width_us = RESOLUTIONS[spec.resolution].width_us
    oldest = as_of_us // width_us - spec.span_us // width_us
    amounts = [
        event.amount
        for event in events
        if event.at_us // width_us >= oldest and spec.of in {"attempts", "spend" if event.spent else "unheld"}
    ]
    n, total, squares = len(amounts), sum(amounts), sum(amount * amount for amount in amounts)
    if not n:
        return 0
    return {
        "count": n,
        "sum": total,
        "min": min(amounts),
        "max": max(amounts),
        "mean": total / n,
        "stddev": deviation(n, total, squares),
    }[spec.aggregate]


@settings(deadline=None)
@given(histories(), st.integers(0, 40 * DAY_US))
def test_every_window_equals_the_sum_over_all_events(events: list[Event], later_us: int) -> None:
    as_of_us = max([START_US, *(event.at_us for event in events)]) + later_us
    spend, unheld = fold(events)

    values = WindowReader(SPECS).read(spend=spend, unheld=unheld, as_of_us=as_of_us)

    assert values == [by_hand(spec, events, as_of_us) for spec in SPECS]
    assert [type(value).__name__ for value in values] == [
        {"int": "int", "double": "float"}[WINDOW_TYPES[spec.aggregate]] for spec in SPECS
    ]


@settings(deadline=None)
@given(histories(), st.data())
def test_an_event_taken_back_counts_in_no_window(events: list[Event], data: st.DataObject) -> None:
    gone = Event(START_US + data.draw(st.integers(-DAY_US, DAY_US)), data.draw(amounts), spent=False)
    position = data.draw(st.integers(0, len(events)))
    spend, unheld = fold([*events[:position], gone, *events[position:]])
    as_of_us = max([gone.at_us, *(event.at_us for event in events)])
    # What was smallest or largest of a bucket cannot be undone, as the docstring says.
    specs = tuple(spec for spec in SPECS if spec.aggregate not in {"min", "max"})

    unheld = remove_from_history(unheld, gone.at_us, gone.amount)

    values = WindowReader(specs).read(spend=spend, unheld=unheld, as_of_us=as_of_us)
    assert values == [by_hand(spec, events, as_of_us) for spec in specs]


@settings(deadline=None)
@given(histories())
def test_a_history_survives_storage(events: list[Event]) -> None:
    spend, _ = fold(events)

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spend), type=History) == spend


def test_a_history_keeps_no_more_buckets_than_its_resolutions_have() -> None:
    spend, _ = fold([Event(START_US + step * 4 * MINUTE_US, 100, spent=True) for step in range(20_000)])

    kept = [len(series.closed.counts) + 1 for series in (spend.fine, spend.hourly, spend.daily)]
    assert kept == [resolution.buckets for resolution in RESOLUTIONS]


def test_one_hour_never_covers_less_than_an_hour_nor_more_than_a_bucket_more() -> None:
    spec = window(name="count_1h", of="spend", aggregate="count", span_us=HOUR_US)
    reader = WindowReader([spec])
    seen = {}
    for offset_us in range(0, 5 * MINUTE_US, MINUTE_US):
        for age_us in range(0, 70 * MINUTE_US, MINUTE_US):
            now_us = START_US + offset_us
            spend = add_to_history(EMPTY_HISTORY, now_us - age_us, 1)
            seen[offset_us, age_us] = reader.read(spend=spend, unheld=EMPTY_HISTORY, as_of_us=now_us) == [1]

    assert all(counted for (_, age_us), counted in seen.items() if age_us <= HOUR_US)
    assert not any(counted for (_, age_us), counted in seen.items() if age_us >= HOUR_US + 5 * MINUTE_US)


@pytest.mark.parametrize("span_us", [0, -HOUR_US, 7 * MINUTE_US, 90 * MINUTE_US, 36 * HOUR_US, 31 * DAY_US])
def test_a_span_that_no_series_can_answer_is_refused(span_us: int) -> None:
    with pytest.raises(ValueError, match="a span is"):
        window(name="odd", of="spend", aggregate="count", span_us=span_us)


def test_squares_beyond_64_bits_stay_exact() -> None:
    spec = window(name="spread", of="spend", aggregate="stddev", span_us=HOUR_US)
    spend, unheld = fold([Event(START_US, amount, spent=True) for amount in (10**15, 10**15, 10**15 - 3)])

    assert WindowReader([spec]).read(spend=spend, unheld=unheld, as_of_us=START_US) == [2.0**0.5]
