"""
Distances on the globe from additions, multiplications and one square root.

The platform's `sin` and `cos` differ in the last bit from one C library to the next, and a decision
must be recomputed bit for bit years later on another machine. IEEE 754 fixes + - × ÷ and √, so the
two series below are written out here.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

EARTH_RADIUS_KM: Final = 6371.0088
"""Mean radius of the earth (IUGG)."""

_QUARTER_E6: Final = 90_000_000
_EIGHTH_E6: Final = 45_000_000
_RADIANS_PER_E6: Final = 1.7453292519943295e-08


def chord_km(latitude_a_e6: int, longitude_a_e6: int, latitude_b_e6: int, longitude_b_e6: int) -> float:
    """
    Return the straight-line distance through the globe between two points in millionths of a degree.

    Never longer than the way along the surface: 0.1 % shorter at 1,000 km, 4.6 % at 6,600 km, so a
    speed derived from it accuses nobody of more than they did.
    """
    sin_latitude_a, cos_latitude_a = _sin_cos(latitude_a_e6)
    sin_latitude_b, cos_latitude_b = _sin_cos(latitude_b_e6)
    sin_longitude_a, cos_longitude_a = _sin_cos(longitude_a_e6)
    sin_longitude_b, cos_longitude_b = _sin_cos(longitude_b_e6)
    x = cos_latitude_a * cos_longitude_a - cos_latitude_b * cos_longitude_b
    y = cos_latitude_a * sin_longitude_a - cos_latitude_b * sin_longitude_b
    z = sin_latitude_a - sin_latitude_b
    return EARTH_RADIUS_KM * sqrt(x * x + y * y + z * z)


def _sin_cos(angle_e6: int) -> tuple[float, float]:
    """
    Return sine and cosine of an angle in millionths of a degree, exact to about 1e-15.

    The angle is brought into ±45° in integers, where 8 terms of the Taylor series suffice.
    """
    quarters, rest = divmod(angle_e6 + _EIGHTH_E6, _QUARTER_E6)
    x = (rest - _EIGHTH_E6) * _RADIANS_PER_E6
    u = x * x
    sine = x * (
        1.0
        - u
        / 6.0
        * (1.0 - u / 20.0 * (1.0 - u / 42.0 * (1.0 - u / 72.0 * (1.0 - u / 110.0 * (1.0 - u / 156.0)))))
    )
    cosine = 1.0 - u / 2.0 * (
        1.0
        - u
        / 12.0
        * (1.0 - u / 30.0 * (1.0 - u / 56.0 * (1.0 - u / 90.0 * (1.0 - u / 132.0 * (1.0 - u / 182.0)))))
    )
    quarters &= 3
    if quarters == 0:
        return sine, cosine
    if quarters == 1:
        return cosine, -sine
    if quarters == 2:  # noqa: PLR2004 - the third quarter turn
        return -sine, -cosine
    return -cosine, sine
