"""From a spec to a city: people, shops, and what they genuinely buy."""

from __future__ import annotations

import math
import random
from typing import Final

import msgspec
from scripts.city.fraud import thefts
from scripts.city.model import (
    CATEGORIES,
    DAY_US,
    HOUR_US,
    MINUTE_US,
    SECOND_US,
    TOWNS,
    Category,
    City,
    CitySpec,
    Customer,
    Merchant,
    Place,
    Purchase,
    Scenario,
    Town,
    Trip,
)

FAVOURITE_SHARE: Final = 0.85
"""Of a person's purchases go to one of their usual shops."""
WEEKEND_FACTOR: Final = 1.25
_SILENT_SHARE: Final = 0.1
"""Of purchases come without a position."""
_TABLET_SHARE: Final = 0.15
_TRAVELLER_SHARE: Final = 0.12
_NEW_PHONE_SHARE: Final = 0.08
"""Of customers have a second device, go on a trip, change their phone."""
_MAIN_DEVICE_SHARE: Final = 0.85
_WEEK: Final = 7
_AWAY_MERCHANTS: Final = 40
"""Shops in every town that people travel to."""
_LIMIT_STEP_MINOR: Final = 50_000
_BILL_MONTHS: Final = 1.6
"""A limit covers this many months of the customer's usual spending, and one big purchase on top."""


def chance(spec: CitySpec, *names: object) -> random.Random:
    """Return a source of chance of its own for everything that is named: nothing shifts when a neighbour changes."""
    return random.Random(":".join(map(str, (spec.seed, *names))))


def build(spec: CitySpec) -> City:
    """Return the city that follows from `spec`."""
    merchants = _merchants(spec)
    shops = _Shops(merchants)
    customers = tuple(_customer(spec, number) for number in range(spec.customers))
    genuine = [purchase for customer in customers for purchase in _shopping(spec, customer, shops)]
    stolen = thefts(spec, customers, shops.at_home, genuine, chance)
    everything = sorted((*genuine, *stolen), key=lambda p: (p.at_us, p.customer_id, p.merchant.merchant_id))
    numbered = tuple(
        msgspec.structs.replace(purchase, transaction_id=f"t-{number:07}") for number, purchase in enumerate(everything)
    )
    return City(spec, customers, merchants, numbered)


class _Shops:
    """Merchants by town and category."""

    def __init__(self, merchants: tuple[Merchant, ...]) -> None:
        self._found: dict[tuple[str, str], list[Merchant]] = {}
        for merchant in merchants:
            self._found.setdefault((merchant.town.name, merchant.category.code), []).append(merchant)
        self.at_home = tuple(merchant for merchant in merchants if merchant.town is TOWNS[0])

    def of(self, town: Town, category: Category) -> list[Merchant]:
        """Return the shops of a category; those online are the same everywhere."""
        return self._found[TOWNS[0].name if category.online else town.name, category.code]


def _merchants(spec: CitySpec) -> tuple[Merchant, ...]:
    dice = chance(spec, "merchants")
    weights = [category.merchants for category in CATEGORIES]
    found: list[Merchant] = []
    for town in TOWNS:
        # At least one of every kind in every town, then as chance has it.
        count = spec.merchants if town is TOWNS[0] else _AWAY_MERCHANTS
        kinds = (*CATEGORIES, *dice.choices(CATEGORIES, weights, k=max(0, count - len(CATEGORIES))))
        first = len(found)
        found += [Merchant(f"m-{n:04}", kind, town, _near(dice, town)) for n, kind in enumerate(kinds, first)]
    return tuple(found)


def _near(dice: random.Random, town: Town, spread_e6: int = 60_000) -> Place:
    """Return a place in a town: most within seven kilometres of its centre."""
    latitude = town.centre.latitude_e6 + round(dice.gauss(0, spread_e6))
    longitude = town.centre.longitude_e6 + round(dice.gauss(0, spread_e6))
    return Place(latitude, longitude)


def _customer(spec: CitySpec, number: int) -> Customer:
    dice = chance(spec, "customer", number)
    wealth = math.exp(dice.gauss(0, 0.45))
    per_day = min(6.0, max(0.5, dice.gauss(1.75, 0.55)))
    habits = tuple(category.share * math.exp(dice.gauss(0, 0.6)) for category in CATEGORIES)
    typical = _typical_minor(wealth, habits)
    limit = _BILL_MONTHS * 30 * per_day * typical + 5 * CATEGORIES[8].typical_minor * wealth
    devices = [f"phone-{number:05}-a"]
    if dice.random() < _TABLET_SHARE:
        devices.append(f"tablet-{number:05}")
    trip = None
    if spec.days > _WEEK and dice.random() < _TRAVELLER_SHARE:
        first = dice.randrange(_WEEK, spec.days)
        trip = Trip(dice.choice(TOWNS[1:]), first, first + dice.randint(3, 5))
    return Customer(
        customer_id=f"c-{number:05}",
        home=_near(dice, TOWNS[0]),
        wealth=wealth,
        purchases_per_day=per_day,
        habits=habits,
        late_hours=dice.choice((-1, 0, 0, 0, 1, 2)),
        devices=tuple(devices),
        new_device_day=dice.randrange(1, spec.days) if spec.days > 1 and dice.random() < _NEW_PHONE_SHARE else -1,
        new_device=f"phone-{number:05}-b",
        addresses=tuple(f"100.{dice.randint(64, 127)}.{dice.randint(0, 255)}.{dice.randint(1, 254)}" for _ in range(3)),
        trip=trip,
        limit_minor=math.ceil(limit / _LIMIT_STEP_MINOR) * _LIMIT_STEP_MINOR,
        typical_minor=typical,
    )


def _typical_minor(wealth: float, habits: tuple[float, ...]) -> int:
    """Return the mean of a customer's purchases; that of a log-normal amount lies above its median."""
    means = (category.typical_minor * math.exp(category.spread**2 / 2) for category in CATEGORIES)
    return round(wealth * sum(map(float.__mul__, habits, means)) / sum(habits))


def _shopping(spec: CitySpec, customer: Customer, shops: _Shops) -> list[Purchase]:
    """Return everything a customer genuinely buys."""
    favourites = _favourites(spec, customer, shops)
    start_us = int(spec.start.timestamp()) * SECOND_US
    found = []
    for day in range(spec.days):
        dice = chance(spec, "day", customer.customer_id, day)
        trip = customer.trip if customer.trip and customer.trip.first_day <= day <= customer.trip.last_day else None
        if trip and day in {trip.first_day, trip.last_day}:
            continue
        town = trip.town if trip else TOWNS[0]
        rate = customer.purchases_per_day * (WEEKEND_FACTOR if day % _WEEK in {0, 6} else 0.9)
        for category in dice.choices(CATEGORIES, customer.habits, k=_poisson(dice, rate)):
            usual = favourites[category.code] if town is TOWNS[0] else []
            merchant = dice.choice(usual if usual and dice.random() < FAVOURITE_SHARE else shops.of(town, category))
            at_us = start_us + day * DAY_US + _time_of_day(dice, category, customer.late_hours)
            found.append(_purchase(dice, customer, merchant, at_us=at_us, day=day, town=town))
    return found


def _favourites(spec: CitySpec, customer: Customer, shops: _Shops) -> dict[str, list[Merchant]]:
    dice = chance(spec, "favourites", customer.customer_id)
    chosen = {}
    for category in CATEGORIES:
        near = shops.of(TOWNS[0], category)
        # A person goes to shops close to home; distance counts more than anything else.
        weights = [1 / (1 + _distance_e6(customer.home, shop.place) / 20_000) ** 2 for shop in near]
        chosen[category.code] = dice.choices(near, weights, k=3)
    return chosen


def _distance_e6(one: Place, other: Place) -> float:
    return math.hypot(one.latitude_e6 - other.latitude_e6, one.longitude_e6 - other.longitude_e6)


def _time_of_day(dice: random.Random, category: Category, late_hours: int) -> int:
    first, last, _ = _weighted(dice, category.hours)
    time_us = dice.randrange(first * HOUR_US, last * HOUR_US, SECOND_US) + late_hours * 20 * MINUTE_US
    return time_us + dice.randrange(SECOND_US // 1000) * 1000


def _weighted(dice: random.Random, choices: tuple[tuple[int, int, float], ...]) -> tuple[int, int, float]:
    return dice.choices(choices, [weight * (last - first) for first, last, weight in choices])[0]


def _poisson(dice: random.Random, mean: float) -> int:
    """Return a count whose mean is `mean` (Knuth's way; means here are small)."""
    limit, count, product = math.exp(-mean), 0, dice.random()
    while product > limit:
        count += 1
        product *= dice.random()
    return count


def _purchase(
    dice: random.Random, customer: Customer, merchant: Merchant, *, at_us: int, day: int, town: Town
) -> Purchase:
    category = merchant.category
    amount = category.typical_minor * customer.wealth * math.exp(dice.gauss(0, category.spread))
    changed = 0 <= customer.new_device_day <= day
    phones = (customer.new_device, *customer.devices[1:]) if changed else customer.devices
    return Purchase(
        transaction_id="",
        customer_id=customer.customer_id,
        at_us=at_us,
        amount_minor=max(100, round(amount)),
        merchant=merchant,
        device_id=phones[0] if len(phones) == 1 or dice.random() < _MAIN_DEVICE_SHARE else phones[1],
        ip_address=dice.choice(customer.addresses),
        place=_here(dice, customer, merchant, town),
        channel="MOBILE_APP" if category.online else "IN_STORE",
        scenario=Scenario.GENUINE,
    )


def _here(dice: random.Random, customer: Customer, merchant: Merchant, town: Town) -> Place | None:
    """Return where the phone says it is: at the shop, at home, in the hotel; one purchase in ten does not say."""
    if dice.random() < _SILENT_SHARE:
        return None
    place = merchant.place
    if merchant.category.online:
        place = customer.home if town is TOWNS[0] else town.centre
    return Place(place.latitude_e6 + dice.randint(-800, 800), place.longitude_e6 + dice.randint(-800, 800))
