"""One set of promises for every feature: typed, total, bounded, never NaN, silent on an empty past."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskgate_server.domain.fraud.features import FEATURES, NEVER_SECONDS, LineFacts, Value, feature_types, features
from riskgate_server.domain.fraud.profile import EMPTY_PROFILE, Profile, PurchaseFacts, observe
from riskgate_server.domain.fraud.windows import DAY_US, HOUR_US, WINDOW_TYPES, WindowReader, window
from tests.unit.domain.fraud.test_profile import START_US, facts_of_any_kind, pasts, purchase, remembered

WINDOWS = WindowReader(
    [
        window(name=f"w_{of}_{aggregate}", of=of, aggregate=aggregate, span_us=DAY_US)  # type: ignore[arg-type] # the table's keys are the aggregates
        for of in ("attempts", "spend", "unheld")
        for aggregate in WINDOW_TYPES
    ]
)
TYPES = feature_types(WINDOWS.specs)
PYTHON_TYPES = {"int": int, "double": float, "bool": bool, "string": str}
LINE = LineFacts(limit_minor=1_000_000, available_minor=800_000, opened_us=START_US - 30 * DAY_US)

lines = st.builds(
    LineFacts,
    limit_minor=st.integers(0, 2**63 - 1),
    available_minor=st.integers(-(2**63), 2**63 - 1),
    opened_us=st.integers(0, 2 * START_US),
)


def seen(profile: Profile, facts: PurchaseFacts, line: LineFacts = LINE) -> dict[str, Value]:
    return dict(zip(TYPES, features(profile, facts, line, WINDOWS), strict=True))


@settings(deadline=None)
@given(pasts, facts_of_any_kind, lines)
def test_every_feature_has_its_type_and_is_finite(
    past: list[tuple[PurchaseFacts, bool]], facts: PurchaseFacts, line: LineFacts
) -> None:
    values = seen(remembered(past), facts, line)

    for name, value in values.items():
        assert type(value) is PYTHON_TYPES[TYPES[name]], name
        if isinstance(value, float):
            assert math.isfinite(value), name
        if isinstance(value, int):
            assert -(2**63) <= value < 2**63, name


@settings(deadline=None)
@given(pasts, facts_of_any_kind, lines)
def test_features_depend_on_nothing_but_their_arguments(
    past: list[tuple[PurchaseFacts, bool]], facts: PurchaseFacts, line: LineFacts
) -> None:
    profile = remembered(past)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(profile), type=Profile)

    assert features(stored, facts, line, WINDOWS) == features(profile, facts, line, WINDOWS)


@settings(deadline=None)
@given(facts_of_any_kind)
def test_a_first_purchase_raises_no_alarm_about_a_past(facts: PurchaseFacts) -> None:
    values = seen(EMPTY_PROFILE, facts)

    for name in ("device_new", "category_new", "merchant_new", "country_new", "has_last_location"):
        assert values[name] is False
    for name in ("amount_ratio", "amount_zscore", "amount_to_largest", "distance_km", "speed_kmh", "history_count"):
        assert values[name] == 0
    assert values["seconds_since_last"] == NEVER_SECONDS
    assert all(values[spec.name] == 0 for spec in WINDOWS.specs)


@settings(deadline=None)
@given(pasts)
def test_what_is_not_given_is_never_new(past: list[tuple[PurchaseFacts, bool]]) -> None:
    values = seen(remembered(past), purchase(START_US + DAY_US))

    for name in ("device_new", "category_new", "merchant_new", "country_new", "has_last_location"):
        assert values[name] is False
    assert values["device_age_seconds"] == NEVER_SECONDS


def test_an_amount_is_compared_with_the_customers_own() -> None:
    profile = remembered([(purchase(START_US + n * DAY_US, amount), True) for n, amount in enumerate((800, 1200))])

    values = seen(profile, purchase(START_US + 2 * DAY_US, 3_000))

    assert values["amount_mean"] == 1_000.0
    assert values["amount_stddev"] == 200.0
    assert values["amount_ratio"] == 3.0
    assert values["amount_zscore"] == 10.0
    assert values["amount_to_largest"] == 2.5


def test_a_customer_who_always_pays_the_same_has_a_spread_of_a_tenth() -> None:
    profile = remembered([(purchase(START_US + n * DAY_US, 1_000), True) for n in range(5)])

    assert seen(profile, purchase(START_US + 5 * DAY_US, 1_100))["amount_zscore"] == 1.0


def test_speed_counts_from_the_last_purchase_with_a_position() -> None:
    profile = remembered(
        [
            (purchase(START_US, latitude_e6=31_230_400, longitude_e6=121_473_700), True),
            (purchase(START_US + HOUR_US), True),
        ]
    )

    values = seen(profile, purchase(START_US + 2 * HOUR_US, latitude_e6=39_904_200, longitude_e6=116_407_400))

    assert values["distance_km"] == pytest.approx(1_067, abs=2)
    assert values["speed_kmh"] == pytest.approx(533, abs=2)


def test_two_places_within_a_second_have_a_finite_speed() -> None:
    here = purchase(START_US, latitude_e6=0, longitude_e6=0)
    there = purchase(START_US, latitude_e6=0, longitude_e6=1_000_000)

    values = seen(observe(EMPTY_PROFILE, here, spent=True), there)

    assert values["speed_kmh"] == pytest.approx(values["distance_km"] * 60)


def test_a_known_device_ages_from_its_first_purchase() -> None:
    profile = remembered([(purchase(START_US + n * HOUR_US, device_id="phone"), True) for n in range(3)])

    values = seen(profile, purchase(START_US + 3 * HOUR_US, device_id="phone"))

    assert values["device_age_seconds"] == 3 * 3600
    assert values["device_known"] is True
    assert values["devices_added_7d"] == 1


def test_every_feature_says_what_it_means() -> None:
    assert all(meaning.endswith(".") and cel_type in PYTHON_TYPES for cel_type, meaning in FEATURES.values())
