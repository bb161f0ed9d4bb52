"""What the city is made of. Times are microseconds UTC, money is minor units of one currency."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US


class Scenario(StrEnum):
    """Who makes a purchase, and how they came to it."""

    GENUINE = "genuine"
    """The customer."""
    STOLEN_CARD = "stolen card"
    """A thief with the customer's own phone, in a hurry."""
    TAKEOVER = "takeover"
    """Somebody who got into the account, from a phone and mostly a place of their own."""
    CARD_TESTING = "card testing"
    """A program that tries small amounts, then takes a large one."""
    TERMINAL = "terminal"
    """A tampered terminal at one merchant that charges many of its customers."""


class CitySpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a city follows from."""

    seed: int = 2026
    customers: int = 420
    days: int = 28
    start: datetime = datetime(2026, 3, 1, tzinfo=UTC) - timedelta(hours=8)
    """Midnight of the first day in the city's own time, which is UTC+8 all year."""
    merchants: int = 260
    currency: str = "CNY"
    time_zone: str = "Asia/Shanghai"
    stolen_cards: int = 9
    takeovers: int = 10
    card_tests: int = 7
    terminals: int = 2


class Place(msgspec.Struct, frozen=True):
    """A position in millionths of a degree."""

    latitude_e6: int
    longitude_e6: int


class Town(msgspec.Struct, frozen=True):
    """A town that people live in or travel to."""

    name: str
    country: str
    centre: Place


class Category(msgspec.Struct, frozen=True):
    """A kind of shop and how people use it."""

    code: str
    """ISO 18245."""
    name: str
    share: float
    """Of an average person's purchases."""
    typical_minor: int
    """Half of an average person's purchases there cost less."""
    spread: float
    """Of the logarithm of the amount."""
    hours: tuple[tuple[int, int, float], ...]
    """When people buy there: from hour, to hour, weight."""
    online: bool = False
    merchants: float = 1.0
    """How many there are, relative to others."""


class Merchant(msgspec.Struct, frozen=True):
    """A shop with one terminal."""

    merchant_id: str
    category: Category
    town: Town
    place: Place


class Trip(msgspec.Struct, frozen=True):
    """Days away from home, the first and the last spent on the way."""

    town: Town
    first_day: int
    last_day: int


class Customer(msgspec.Struct, frozen=True):
    """A person, their habits and their phones."""

    customer_id: str
    home: Place
    wealth: float
    """1 spends what an average person spends."""
    purchases_per_day: float
    habits: tuple[float, ...]
    """Weight of every category, in the order of `CATEGORIES`."""
    late_hours: int
    """Hours by which their day is shifted."""
    devices: tuple[str, ...]
    new_device_day: int
    """From this day on they use a new phone; -1 when they keep the old."""
    new_device: str
    addresses: tuple[str, ...]
    trip: Trip | None
    limit_minor: int
    typical_minor: int
    """What they spend on an average purchase."""


class Purchase(msgspec.Struct, frozen=True):
    """One purchase, and the truth about it."""

    transaction_id: str
    customer_id: str
    at_us: int
    amount_minor: int
    merchant: Merchant
    device_id: str
    ip_address: str
    place: Place | None
    channel: str
    """As the contract names it, without its prefix."""
    scenario: Scenario
    episode: str = ""
    """Names the incident a fraudulent purchase belongs to; empty for a genuine one."""


class City(msgspec.Struct, frozen=True):
    """Everybody, every shop, and everything bought, in order of time."""

    spec: CitySpec
    customers: tuple[Customer, ...]
    merchants: tuple[Merchant, ...]
    purchases: tuple[Purchase, ...]

    def customer(self, customer_id: str) -> Customer:
        """Return a customer by id."""
        return self.customers[int(customer_id.removeprefix("c-"))]


TOWNS: Final = (
    Town("Hangzhou", "CN", Place(30_274_000, 120_155_000)),
    Town("Guangzhou", "CN", Place(23_129_000, 113_264_000)),
    Town("Chengdu", "CN", Place(30_572_000, 104_066_000)),
    Town("Urumqi", "CN", Place(43_825_000, 87_617_000)),
    Town("Bangkok", "TH", Place(13_756_000, 100_502_000)),
)
"""The first is the city itself."""

_DAYTIME: Final = ((9, 12, 1.0), (12, 14, 1.5), (14, 18, 1.2), (18, 21, 1.6), (21, 23, 0.4))
_MEALS: Final = ((7, 9, 0.8), (11, 14, 2.0), (17, 21, 2.0), (21, 24, 0.5))
_COMMUTE: Final = ((6, 9, 2.0), (9, 17, 0.8), (17, 20, 2.0), (20, 24, 0.6))
_EVENING: Final = ((12, 18, 0.6), (18, 24, 2.0), (0, 2, 0.2))

CATEGORIES: Final = (
    Category("5411", "groceries", 0.22, 6_500, 0.55, _DAYTIME, merchants=2.0),
    Category("5812", "restaurants", 0.20, 5_500, 0.50, _MEALS, merchants=3.0),
    Category("5814", "coffee and snacks", 0.15, 2_200, 0.40, _COMMUTE, merchants=2.5),
    Category("4111", "local transport", 0.12, 600, 0.45, _COMMUTE, merchants=0.4),
    Category("5541", "fuel", 0.04, 24_000, 0.25, _DAYTIME, merchants=0.7),
    Category("5912", "pharmacy", 0.04, 4_500, 0.60, _DAYTIME),
    Category("5651", "clothing", 0.05, 18_000, 0.55, _DAYTIME, merchants=1.5),
    Category("5311", "online department store", 0.11, 9_500, 0.70, _EVENING, online=True, merchants=0.6),
    Category("5732", "electronics", 0.015, 32_000, 0.60, _DAYTIME, merchants=0.7),
    Category("7832", "cinema", 0.03, 8_000, 0.30, _EVENING, merchants=0.4),
    Category("5816", "digital goods", 0.04, 3_000, 0.60, _EVENING, online=True, merchants=0.4),
    Category("5944", "jewellery", 0.005, 45_000, 0.50, _DAYTIME, merchants=0.4),
)
