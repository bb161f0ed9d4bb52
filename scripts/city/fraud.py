"""
Thieves, and what they do with other people's credit.

Not all of it can be seen in one customer's own past, and not all is meant to be: a careful thief who
spends like the victim, or a terminal that charges many people a little, passes rules that look at one
customer. The summary of a demonstration should say so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Protocol

from scripts.city.model import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    SECOND_US,
    TOWNS,
    CitySpec,
    Customer,
    Merchant,
    Place,
    Purchase,
    Scenario,
)

_RESOLD: Final = ("5732", "5944", "5651", "5311")
"""What is easily sold on."""
_QUIET_SHARE: Final = 0.3
"""Of takeovers stay in town and spend like the victim: the hard ones."""
_FIRST_DAYS: Final = 3
"""Nobody is robbed before they have used their line for some days."""


class Chance(Protocol):
    """Gives everything that is named a source of chance of its own."""

    def __call__(self, spec: CitySpec, *names: object) -> random.Random:
        """Return the source."""


def thefts(
    spec: CitySpec,
    customers: Sequence[Customer],
    merchants: Sequence[Merchant],
    genuine: Sequence[Purchase],
    chance: Chance,
) -> list[Purchase]:
    """Return every fraudulent purchase. A customer is robbed in one way at most, terminals aside."""
    dice = chance(spec, "victims")
    incidents = (
        *[Scenario.STOLEN_CARD] * spec.stolen_cards,
        *[Scenario.TAKEOVER] * spec.takeovers,
        *[Scenario.CARD_TESTING] * spec.card_tests,
    )
    victims = dice.sample(customers, min(len(incidents), len(customers)))
    located: dict[str, list[int]] = {victim.customer_id: [] for victim in victims}
    for purchase in genuine:
        if purchase.place is not None and purchase.customer_id in located:
            located[purchase.customer_id].append(purchase.at_us)
    found: list[Purchase] = []
    for number, (scenario, victim) in enumerate(zip(incidents, victims, strict=False)):
        source = chance(spec, "theft", number)
        theft = _Theft(spec, source, victim, merchants, scenario=scenario, episode=f"{scenario} {number}")
        theft.located_us = tuple(located[victim.customer_id])
        found.extend(_SCENARIOS[scenario](theft))
    for number in range(spec.terminals):
        found.extend(_terminal(spec, chance(spec, "terminal", number), customers, genuine, f"terminal {number}"))
    return found


class _Theft:
    """One incident: whom it befalls, when it begins, and how its purchases are written down."""

    def __init__(
        self,
        spec: CitySpec,
        dice: random.Random,
        victim: Customer,
        merchants: Sequence[Merchant],
        *,
        scenario: Scenario,
        episode: str,
    ) -> None:
        self.dice, self.victim, self.merchants = dice, victim, merchants
        self.scenario, self.episode = scenario, episode
        self._start_us = int(spec.start.timestamp()) * SECOND_US
        self._days = spec.days
        self.located_us: tuple[int, ...] = ()
        """When the victim's own phone said where it was."""

    def begin_us(self, first_hour: int, last_hour: int) -> int:
        """Choose a day and an hour, both hours included, on the city's own clock."""
        day = self.dice.randrange(min(_FIRST_DAYS, self._days - 1), self._days)
        second = self.dice.randrange(first_hour * 3600, (last_hour + 1) * 3600)
        return self._start_us + day * DAY_US + second * SECOND_US

    def soon_after_victim_us(self) -> int:
        """Choose a time within some hours of a purchase the victim made where they are."""
        later = [at_us for at_us in self.located_us if at_us >= self._start_us + _FIRST_DAYS * DAY_US]
        if not later:
            return self.begin_us(0, 23)
        return self.dice.choice(later) + self.dice.randrange(10 * MINUTE_US, 4 * HOUR_US)

    def shop(self, *codes: str) -> Merchant:
        """Choose a shop of one of the categories."""
        return self.dice.choice([merchant for merchant in self.merchants if merchant.category.code in codes])

    def own_device(self, at_us: int) -> str:
        """Return the phone the victim carries at that time."""
        day = (at_us - self._start_us) // DAY_US
        return self.victim.new_device if 0 <= self.victim.new_device_day <= day else self.victim.devices[0]

    def purchase(
        self, at_us: int, amount: float, merchant: Merchant, *, device: str, address: str, place: Place | None
    ) -> Purchase:
        """Write down one purchase of the incident."""
        return Purchase(
            transaction_id="",
            customer_id=self.victim.customer_id,
            at_us=at_us,
            amount_minor=max(50, round(amount)),
            merchant=merchant,
            device_id=device,
            ip_address=address,
            place=place,
            channel="MOBILE_APP" if merchant.category.online else "IN_STORE",
            scenario=self.scenario,
            episode=self.episode,
        )


def _stolen_card(theft: _Theft) -> list[Purchase]:
    """Four to eight large purchases within two hours, on the victim's own phone, in shops of the town."""
    dice, victim = theft.dice, theft.victim
    at_us = theft.begin_us(10, 22)
    address = dice.choice(victim.addresses)
    found = []
    for _ in range(dice.randint(4, 8)):
        shop = theft.shop(*_RESOLD)
        amount = victim.typical_minor * dice.uniform(3, 9)
        device = theft.own_device(at_us)
        found.append(theft.purchase(at_us, amount, shop, device=device, address=address, place=_around(dice, shop)))
        at_us += dice.randrange(4 * MINUTE_US, 22 * MINUTE_US)
    return found


def _takeover(theft: _Theft) -> list[Purchase]:
    """Two to five purchases from an unknown phone; most from far away and large, some in town and modest."""
    dice, victim = theft.dice, theft.victim
    quiet = dice.random() < _QUIET_SHARE
    at_us = theft.begin_us(9, 21) if quiet else theft.soon_after_victim_us()
    device = f"phone-x{dice.randrange(10**6):06}"
    address = f"198.18.{dice.randint(0, 255)}.{dice.randint(1, 254)}"
    town = TOWNS[0] if quiet else dice.choice(TOWNS[1:])
    found = []
    for _ in range(dice.randint(2, 5)):
        shop = theft.shop("5311", "5816") if not quiet else theft.shop("5411", "5651", "5311")
        amount = victim.typical_minor * (dice.uniform(0.7, 1.7) if quiet else dice.uniform(4, 14))
        latitude, longitude = town.centre.latitude_e6, town.centre.longitude_e6
        place = Place(latitude + dice.randint(-30_000, 30_000), longitude + dice.randint(-30_000, 30_000))
        found.append(theft.purchase(at_us, amount, shop, device=device, address=address, place=place))
        at_us += dice.randrange(2 * HOUR_US, 20 * HOUR_US) if quiet else dice.randrange(MINUTE_US, 15 * MINUTE_US)
    return found


def _card_testing(theft: _Theft) -> list[Purchase]:
    """Six to twelve tiny amounts within half an hour, then one to three that take a good part of the limit."""
    dice, victim = theft.dice, theft.victim
    at_us = theft.begin_us(0, 22)
    device = f"farm-{dice.randrange(10**6):06}"
    address = f"198.19.{dice.randint(0, 255)}.{dice.randint(1, 254)}"
    found = []
    for _ in range(dice.randint(6, 12)):
        shop, amount = theft.shop("5816"), dice.uniform(50, 400)
        found.append(theft.purchase(at_us, amount, shop, device=device, address=address, place=None))
        at_us += dice.randrange(20 * SECOND_US, 3 * MINUTE_US)
    for _ in range(dice.randint(1, 3)):
        shop, amount = theft.shop("5311"), victim.limit_minor * dice.uniform(0.2, 0.4)
        found.append(theft.purchase(at_us, amount, shop, device=device, address=address, place=None))
        at_us += dice.randrange(MINUTE_US, 6 * MINUTE_US)
    return found


def _terminal(
    spec: CitySpec, dice: random.Random, customers: Sequence[Customer], genuine: Sequence[Purchase], episode: str
) -> list[Purchase]:
    """Charge fifteen to thirty people who bought at one merchant before, once or twice each, within three days."""
    start_us = int(spec.start.timestamp()) * SECOND_US
    from_us = start_us + dice.randrange(spec.days // 2, max(spec.days // 2 + 1, spec.days - 3)) * DAY_US
    visitors: dict[str, list[str]] = {}
    shops: dict[str, Merchant] = {}
    for purchase in genuine:
        if purchase.at_us < from_us and not purchase.merchant.category.online:
            merchant_id = purchase.merchant.merchant_id
            visitors.setdefault(merchant_id, []).append(purchase.customer_id)
            shops[merchant_id] = purchase.merchant
    if not visitors:
        return []
    # A thief chooses a busy shop.
    busiest = sorted(visitors, key=lambda merchant_id: (-len(set(visitors[merchant_id])), merchant_id))[:20]
    shop = shops[dice.choice(busiest)]
    known = sorted(set(visitors[shop.merchant_id]))
    by_id = {customer.customer_id: customer for customer in customers}
    found = []
    for customer_id in dice.sample(known, min(dice.randint(15, 30), len(known))):
        victim = by_id[customer_id]
        theft = _Theft(spec, dice, victim, [shop], scenario=Scenario.TERMINAL, episode=episode)
        for _ in range(dice.randint(1, 2)):
            at_us = from_us + dice.randrange(3) * DAY_US + dice.randrange(9 * HOUR_US, 21 * HOUR_US, SECOND_US)
            amount = victim.typical_minor * dice.uniform(0.8, 3)
            found.append(theft.purchase(at_us, amount, shop, device="", address="", place=shop.place))
    return found


def _around(dice: random.Random, shop: Merchant) -> Place:
    return Place(shop.place.latitude_e6 + dice.randint(-800, 800), shop.place.longitude_e6 + dice.randint(-800, 800))


_SCENARIOS: Final = {
    Scenario.STOLEN_CARD: _stolen_card,
    Scenario.TAKEOVER: _takeover,
    Scenario.CARD_TESTING: _card_testing,
}
