"""
Distances on the globe from additions, multiplications and one square root.

The platform's `sin` and `cos` differ in the last bit from one C library to the next, and a decision
must be recomputed bit for bit years later on another machine. IEEE 754 fixes + - × ÷ and √, so the
two series below are written out here.
"""

from __future__ import annotations

from math import factorial, sqrt
from typing import Final

EARTH_RADIUS_KM: Final = 6371.0088
"""Mean radius of the earth (IUGG)."""

_RADIANS_PER_E6: Final = 1.7453292519943295e-08
_TURN_E6: Final = 360_000_000
_HALF_TURN_E6: Final = 180_000_000

# ±1 / 3!, 5! … 21! and ±1 / 2!, 4! … 22!, the smallest first: exact to about 1e-15 within ±90°.
_SINE: Final = tuple((-1) ** k / factorial(2 * k + 1) for k in range(10, 0, -1))
_COSINE: Final = tuple((-1) ** k / factorial(2 * k) for k in range(11, 0, -1))


def chord_km(latitude_a_e6: int, longitude_a_e6: int, latitude_b_e6: int, longitude_b_e6: int) -> float:
    """
    Return the straight-line distance through the globe between two points in millionths of a degree.

    Never longer than the way along the surface: 0.1 % shorter at 1,000 km, 4.4 % at 6,600 km, so a
    speed derived from it accuses nobody of more than they did. Latitudes are within ±90°.
    """
    north = _sine((latitude_a_e6 - latitude_b_e6) * (0.5 * _RADIANS_PER_E6))
    turn = (longitude_a_e6 - longitude_b_e6 + _HALF_TURN_E6) % _TURN_E6 - _HALF_TURN_E6
    if not turn:
        return 2.0 * EARTH_RADIUS_KM * abs(north)
    east = _sine(turn * (0.5 * _RADIANS_PER_E6))
    narrowing = _cosine(latitude_a_e6 * _RADIANS_PER_E6) * _cosine(latitude_b_e6 * _RADIANS_PER_E6)
    return 2.0 * EARTH_RADIUS_KM * sqrt(north * north + narrowing * east * east)


def _sine(x: float) -> float:
    u = x * x
    rest = 0.0
    for coefficient in _SINE:
        rest = (rest + coefficient) * u
    return x * (1.0 + rest)


def _cosine(x: float) -> float:
    u = x * x
    rest = 0.0
    for coefficient in _COSINE:
        rest = (rest + coefficient) * u
    return 1.0 + rest
