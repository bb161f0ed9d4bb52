from __future__ import annotations

from math import cos, radians, sin, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskgate_server.domain.fraud.geometry import EARTH_RADIUS_KM, chord_km

latitudes = st.integers(-90_000_000, 90_000_000)
longitudes = st.integers(-180_000_000, 180_000_000)


def by_the_platform(latitude_a: int, longitude_a: int, latitude_b: int, longitude_b: int) -> float:
    def unit(latitude: int, longitude: int) -> tuple[float, float, float]:
        phi, theta = radians(latitude / 1e6), radians(longitude / 1e6)
        return cos(phi) * cos(theta), cos(phi) * sin(theta), sin(phi)

    a, b = unit(latitude_a, longitude_a), unit(latitude_b, longitude_b)
    return EARTH_RADIUS_KM * sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


@given(latitudes, longitudes, latitudes, longitudes)
def test_a_distance_agrees_with_the_platform_to_a_millimetre(a: int, b: int, c: int, d: int) -> None:
    assert chord_km(a, b, c, d) == pytest.approx(by_the_platform(a, b, c, d), abs=1e-6)


@given(latitudes, longitudes, latitudes, longitudes)
def test_a_distance_is_the_same_both_ways_and_inside_the_globe(a: int, b: int, c: int, d: int) -> None:
    there = chord_km(a, b, c, d)

    assert there == chord_km(c, d, a, b)
    assert 0.0 <= there <= 2 * EARTH_RADIUS_KM + 1e-9


@given(latitudes, longitudes)
def test_a_place_is_at_no_distance_from_itself(latitude: int, longitude: int) -> None:
    assert chord_km(latitude, longitude, latitude, longitude) == 0.0


def test_the_date_line_is_not_far_from_itself() -> None:
    assert chord_km(0, 179_999_999, 0, -179_999_999) < 0.001


def test_a_known_pair_of_cities_gives_the_same_bits_everywhere() -> None:
    """Shanghai to London, 9,200 km over ground; the literal is what any IEEE 754 machine must compute."""
    distance = chord_km(31_230_400, 121_473_700, 51_507_400, -127_800)

    assert distance == pytest.approx(8_419, abs=1)
    assert distance.hex() == "0x1.071656389fe03p+13"
