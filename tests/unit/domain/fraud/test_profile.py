from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from riskgate_server.domain.fraud.profile import (
    CATEGORIES_MAX,
    COUNTRIES_MAX,
    DEVICES_MAX,
    EMPTY_PROFILE,
    MERCHANTS_MAX,
    Profile,
    PurchaseFacts,
    observe,
    retract,
)
from riskgate_server.domain.fraud.windows import DAY_US, HOUR_US, MINUTE_US

START_US = 1_775_000_000_000_000

facts_of_any_kind = st.builds(
    PurchaseFacts,
    event_time_us=st.integers(START_US - 40 * DAY_US, START_US + 40 * DAY_US),
    amount_minor=st.integers(0, 10**15),
    currency=st.just("EUR"),
    merchant_id=st.sampled_from(["", *(f"m{n}" for n in range(40))]),
    merchant_category=st.sampled_from(["", *(f"{n:04}" for n in range(5000, 5050))]),
    country=st.sampled_from(["", *["DE", "FR", "CN", "US", "GB", "NL", "BE", "CH", "AT", "PL"]]),
    device_id=st.sampled_from(["", *(f"phone-{n}" for n in range(12))]),
    latitude_e6=st.none() | st.integers(-90_000_000, 90_000_000),
    longitude_e6=st.none() | st.integers(-180_000_000, 180_000_000),
)
pasts = st.lists(st.tuples(facts_of_any_kind, st.booleans()), max_size=60)


def purchase(at_us: int = START_US, amount_minor: int = 1_000, **more: object) -> PurchaseFacts:
    facts = PurchaseFacts(event_time_us=at_us, amount_minor=amount_minor, currency="EUR")
    return msgspec.structs.replace(facts, **more)


def remembered(past: list[tuple[PurchaseFacts, bool]]) -> Profile:
    profile = EMPTY_PROFILE
    for facts, spent in past:
        profile = observe(profile, facts, spent=spent)
    return profile


@settings(deadline=None)
@given(pasts)
def test_a_profile_survives_storage_and_is_built_the_same_twice(past: list[tuple[PurchaseFacts, bool]]) -> None:
    profile = remembered(past)
    stored = msgspec.msgpack.encode(profile)

    assert msgspec.msgpack.decode(stored, type=Profile) == profile
    assert msgspec.msgpack.encode(remembered(past)) == stored


@settings(deadline=None)
@given(pasts)
def test_nothing_in_a_profile_grows_without_bound(past: list[tuple[PurchaseFacts, bool]]) -> None:
    profile = remembered(past)

    assert len(profile.devices) <= DEVICES_MAX
    assert len(profile.categories) <= CATEGORIES_MAX
    assert len(profile.merchants) <= MERCHANTS_MAX
    assert len(profile.countries) <= COUNTRIES_MAX
    assert len({device.device_id for device in profile.devices}) == len(profile.devices)
    assert profile.lifetime.n == sum(spent for _, spent in past)


def test_an_ordinary_customer_fits_in_a_kilobyte() -> None:
    """Four purchases a day for months, one phone, a dozen categories, thirty merchants, a position each time."""
    profile = EMPTY_PROFILE
    for step in range(500):
        facts = purchase(
            START_US + step * 6 * HOUR_US,
            300 + step * 37 % 8_000,
            merchant_id=f"merchant-{step % 30}",
            merchant_category=f"{5400 + step % 12}",
            country="CN",
            device_id="3fa85f64-5717-4562-b3fc-2c963f66afa6",
            latitude_e6=31_230_400,
            longitude_e6=121_473_700,
        )
        profile = observe(profile, facts, spent=step % 40 != 0)

    assert len(msgspec.msgpack.encode(profile)) < 1024


def test_a_purchase_without_a_hold_makes_nothing_known() -> None:
    """A thief's phone must not become known by having been refused."""
    facts = purchase(
        device_id="stolen",
        merchant_id="m",
        merchant_category="5411",
        country="FR",
        latitude_e6=1,
        longitude_e6=1,
    )

    profile = observe(EMPTY_PROFILE, facts, spent=False)

    assert (profile.devices, profile.categories) == ((), ())
    assert (profile.merchants, profile.countries) == ((), ())
    assert profile.last_place is None
    assert profile.lifetime.n == 0
    assert profile.last_event_us == START_US


def test_the_device_used_longest_ago_is_forgotten_first() -> None:
    profile = EMPTY_PROFILE
    for n in (*range(DEVICES_MAX), 0, DEVICES_MAX):
        profile = observe(profile, purchase(device_id=f"phone-{n}"), spent=True)

    known = [device.device_id for device in profile.devices]
    assert "phone-0" in known
    assert "phone-1" not in known


def test_a_late_purchase_moves_neither_the_clock_nor_the_last_place_back() -> None:
    now = purchase(latitude_e6=10, longitude_e6=10)
    late = purchase(START_US - 3 * MINUTE_US, latitude_e6=20, longitude_e6=20)

    profile = remembered([(now, True), (late, True)])

    assert profile.last_event_us == START_US
    assert profile.first_seen_us == late.event_time_us
    assert profile.last_place is not None
    assert profile.last_place.latitude_e6 == 10


@settings(deadline=None)
@given(pasts, facts_of_any_kind)
def test_a_resumed_purchase_counts_once(past: list[tuple[PurchaseFacts, bool]], facts: PurchaseFacts) -> None:
    resumed = observe(retract(remembered([*past, (facts, False)]), facts), facts, spent=True)
    direct = remembered([*past, (facts, True)])

    assert resumed.spend == direct.spend
    assert resumed.lifetime == direct.lifetime
    counted = [
        [sum(series.closed.counts) + series.open.n for series in (history.fine, history.hourly, history.daily)]
        for history in (resumed.unheld, direct.unheld)
    ]
    # Emptied buckets may leave the newest index behind, which lets nothing older back in.
    assert all(a <= b for a, b in zip(*counted, strict=True))
