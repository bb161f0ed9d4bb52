"""The city: the same spec is the same city, people keep to their habits, thieves do what they are named for."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from scripts.city import City, CitySpec, Purchase, Scenario, build
from scripts.city.model import DAY_US, HOUR_US, TOWNS

SMALL = CitySpec(customers=120, days=14, merchants=80, stolen_cards=6, takeovers=6, card_tests=6, terminals=1)


@pytest.fixture(scope="module")
def city() -> City:
    return build(SMALL)


def incidents(city: City, scenario: Scenario) -> list[list[Purchase]]:
    found: dict[str, list[Purchase]] = defaultdict(list)
    for purchase in city.purchases:
        if purchase.scenario is scenario:
            found[purchase.episode].append(purchase)
    return list(found.values())


def test_the_same_spec_gives_the_same_city(city: City) -> None:
    assert build(SMALL) == city


def test_another_seed_gives_another_city(city: City) -> None:
    other = build(CitySpec(seed=1, customers=120, days=14, merchants=80))

    assert [p.amount_minor for p in other.purchases] != [p.amount_minor for p in city.purchases]


def test_a_customer_is_the_same_among_more_customers(city: City) -> None:
    larger = build(CitySpec(customers=150, days=14, merchants=80))

    assert larger.customers[:120] == city.customers


def test_the_demonstration_has_its_twenty_thousand_purchases() -> None:
    assert len(build(CitySpec()).purchases) >= 20_000


def test_purchases_are_numbered_in_order_of_time(city: City) -> None:
    times = [p.at_us for p in city.purchases]

    assert times == sorted(times)
    assert [p.transaction_id for p in city.purchases] == [f"t-{n:07}" for n in range(len(times))]


def test_ids_of_merchants_are_unique(city: City) -> None:
    assert len({m.merchant_id for m in city.merchants}) == len(city.merchants)


def test_amounts_are_positive_and_places_are_on_earth(city: City) -> None:
    for purchase in city.purchases:
        assert purchase.amount_minor > 0
        if purchase.place:
            assert abs(purchase.place.latitude_e6) <= 90_000_000
            assert abs(purchase.place.longitude_e6) <= 180_000_000


def test_fraud_is_rare(city: City) -> None:
    kinds = Counter(p.scenario for p in city.purchases)

    assert set(kinds) == set(Scenario)
    assert kinds[Scenario.GENUINE] / len(city.purchases) > 0.95


def test_genuine_customers_use_phones_of_their_own(city: City) -> None:
    for purchase in city.purchases:
        if purchase.scenario is Scenario.GENUINE:
            owner = city.customer(purchase.customer_id)
            assert purchase.device_id in {*owner.devices, owner.new_device}


def test_people_mostly_buy_at_their_usual_shops(city: City) -> None:
    shops: dict[str, Counter[str]] = defaultdict(Counter)
    for purchase in city.purchases:
        if purchase.scenario is Scenario.GENUINE and purchase.merchant.category.name == "groceries":
            shops[purchase.customer_id][purchase.merchant.merchant_id] += 1
    often = [found for found in shops.values() if found.total() >= 5]

    assert sum(sum(count for _, count in found.most_common(3)) for found in often) > 0.7 * sum(
        found.total() for found in often
    )


def test_nobody_travels_faster_than_people_do(city: City) -> None:
    last: dict[str, Purchase] = {}
    for purchase in city.purchases:
        if purchase.scenario is not Scenario.GENUINE or purchase.place is None:
            continue
        before = last.get(purchase.customer_id)
        last[purchase.customer_id] = purchase
        if before and before.place and abs(before.place.latitude_e6 - purchase.place.latitude_e6) > 2_000_000:
            assert purchase.at_us - before.at_us > 4 * HOUR_US


def test_a_stolen_card_is_spent_within_hours_and_from_the_victims_phone(city: City) -> None:
    for episode in incidents(city, Scenario.STOLEN_CARD):
        victim = city.customer(episode[0].customer_id)
        assert 4 <= len(episode) <= 8
        assert episode[-1].at_us - episode[0].at_us < 3 * HOUR_US
        assert {p.device_id for p in episode} <= {*victim.devices, victim.new_device}
        assert all(p.amount_minor > 2 * victim.typical_minor for p in episode)


def test_a_takeover_comes_from_a_phone_nobody_knew_and_mostly_from_afar(city: City) -> None:
    far = 0
    for episode in incidents(city, Scenario.TAKEOVER):
        victim = city.customer(episode[0].customer_id)
        assert {p.device_id for p in episode}.isdisjoint({*victim.devices, victim.new_device})
        assert episode[0].place is not None
        far += abs(episode[0].place.longitude_e6 - TOWNS[0].centre.longitude_e6) > 2_000_000

    assert far >= 2


def test_card_testing_tries_little_then_takes_much(city: City) -> None:
    for episode in incidents(city, Scenario.CARD_TESTING):
        victim = city.customer(episode[0].customer_id)
        amounts = [p.amount_minor for p in episode]
        assert len([a for a in amounts if a <= 400]) >= 6
        assert amounts[-1] >= 0.2 * victim.limit_minor
        assert episode[-1].at_us - episode[0].at_us < 2 * HOUR_US


def test_a_tampered_terminal_charges_many_customers_who_were_there_before(city: City) -> None:
    (episode,) = incidents(city, Scenario.TERMINAL)
    (merchant,) = {p.merchant.merchant_id for p in episode}
    victims = {p.customer_id for p in episode}
    visitors = {
        p.customer_id
        for p in city.purchases
        if p.scenario is Scenario.GENUINE and p.merchant.merchant_id == merchant and p.at_us < episode[-1].at_us
    }

    assert len(victims) >= 10
    assert victims <= visitors
    assert episode[-1].at_us - episode[0].at_us < 3 * DAY_US
