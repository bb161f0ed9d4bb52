"""Days and hours of a line, which begin in the line's own time zone."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US


def local_hour(at_us: int, time_zone: str) -> int:
    """Return the hour of the day (0 to 23) at `at_us` in an IANA time zone."""
    if time_zone == "UTC":
        return at_us // (3600 * SECOND_US) % 24
    return _local_hour(at_us // SECOND_US, time_zone)


@lru_cache(maxsize=600)
def _local_hour(at: int, time_zone: str) -> int:
    # Purchases come many in a second.
    return datetime.fromtimestamp(at, UTC).astimezone(_zone(time_zone)).hour


@lru_cache(maxsize=600)
def _zone(name: str) -> ZoneInfo:
    # The rules of a zone are data pinned with the program, so the answer depends on the arguments alone.
    return ZoneInfo(name)
