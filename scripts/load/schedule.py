"""What to call and when: pure, so that the same options are the same load."""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Iterator
from typing import Final

import msgspec

CALLS: Final = ("check", "batch", "limit", "capture", "repay")
DURATION_SECONDS_MAX: Final = 3_600
RATE_MAX: Final = 100_000
ARRIVALS_MAX: Final = 5_000_000
CUSTOMERS_MAX: Final = 1_000_000
_PORT_MAX: Final = 65_535


class LoadInvalid(Exception):
    """The load that was asked for cannot or must not be made. The message says why."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A load. Plain data: it is handed to the processes that drive it."""

    rate: float
    """Calls per second, all processes together; a batch is one call."""
    seconds: float
    """Measured, after the warm-up."""
    warm_up_seconds: float
    mix: dict[str, float]
    """Call → share of the calls."""
    customers: int
    batch_size: int
    in_flight_max: int
    """Calls of one process under way at a time; beyond it an arrival is not sent, and counted."""
    timeout_seconds: float
    seed: int
    currency: str

    @property
    def arrivals(self) -> int:
        """How many calls are planned, warm-up included."""
        return int(self.rate * (self.seconds + self.warm_up_seconds))


class Arrival(msgspec.Struct, frozen=True):
    """One planned call."""

    after_seconds: float
    """From the beginning of the schedule."""
    call: str
    customer: int
    amount_minor: int
    warm: bool
    """Planned after the warm-up, and therefore measured."""


def planned(load: Load, *, process: int = 0, processes: int = 1) -> Iterator[Arrival]:
    """Yield the calls of one process in their order: every `processes`-th of a fixed schedule."""
    names = list(load.mix)
    shares = list(load.mix.values())
    for number in range(process, load.arrivals, processes):
        # Each call its own chance: how many processes share the load changes nothing about it.
        dice = random.Random(load.seed * ARRIVALS_MAX + number)
        after = number / load.rate
        yield Arrival(
            after_seconds=after,
            call=dice.choices(names, shares)[0],
            customer=dice.randrange(load.customers),
            amount_minor=round(dice.lognormvariate(8.3, 0.5)),
            warm=after >= load.warm_up_seconds,
        )


def read_mix(text: str) -> dict[str, float]:
    """
    Return the mix that text such as "check=70,limit=20,capture=10" asks for, as shares of one.

    Raises:
        LoadInvalid: naming the part that is wrong.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z]+)\s*=\s*([0-9]+(?:\.[0-9]+)?)\s*", part)
        if not match or match[1] not in CALLS:
            raise LoadInvalid(
                f"{part.strip()!r} is no part of a mix; a part is NAME=SHARE with one of {', '.join(CALLS)}"
            )
        if match[1] in found:
            raise LoadInvalid(f"{match[1]!r} is in the mix twice")
        found[match[1]] = float(match[2])
    total = sum(found.values())
    if not total:
        raise LoadInvalid("the shares of the mix add up to nothing")
    return {name: value / total for name, value in found.items() if value}


def is_loopback(address: str) -> bool:
    """
    Return whether an address is on this machine.

    Raises:
        LoadInvalid: it is not HOST:PORT.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", address)
    if not match or not 0 < int(match[3]) <= _PORT_MAX:
        raise LoadInvalid(f"{address!r} is not HOST:PORT")
    host = match[1] or match[2]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_load(load: Load) -> None:
    """
    Refuse a load without bounds.

    Raises:
        LoadInvalid: saying which bound it breaks.
    """
    if not 0 < load.rate <= RATE_MAX:
        raise LoadInvalid(f"the rate must be above 0 and at most {RATE_MAX:,} calls per second")
    if not 0 < load.seconds + load.warm_up_seconds <= DURATION_SECONDS_MAX:
        raise LoadInvalid(f"duration and warm-up must together be at most {DURATION_SECONDS_MAX:,} s")
    if not 0 < load.arrivals <= ARRIVALS_MAX:
        raise LoadInvalid(f"rate × duration must be 1 to {ARRIVALS_MAX:,} calls, not {load.arrivals:,}")
