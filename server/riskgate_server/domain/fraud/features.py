"""
What the rules may look at: a fixed, typed list of values computed from one purchase and one past.

Every feature is defined for every input, an empty history included, and is never NaN or infinite.
Absence is explicit (`has_device`, `history_count`): a feature whose input is missing takes the
value that makes rules silent. Floating point is limited to + - x / and square root of exact integers,
which IEEE 754 fixes to the last bit, so that a stored decision can be recomputed anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from riskgate_server.domain.fraud.geometry import chord_km
from riskgate_server.domain.fraud.profile import Profile, PurchaseFacts, merchant_mark
from riskgate_server.domain.fraud.safety import Safety, failed_since
from riskgate_server.domain.fraud.windows import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    SECOND_US,
    WINDOW_TYPES,
    WindowReader,
    WindowSpec,
    deviation,
)

Value = int | float | bool | str
FeatureValues = tuple[Value, ...]

NEVER_SECONDS: Final = 10_000_000_000
"""Stands for "it never happened" where a small number of seconds means danger (317 years)."""

RATIO_MAX: Final = 1_000_000.0
"""Ratios and deviations stop here: beyond it nothing is learnt, and no value is unbounded."""

DEVIATION_FLOOR: Final = 10.0
"""A customer's spread counts as at least a tenth of the mean: who always pays 9.99 may once pay 11."""

NIGHT_ENDS_HOUR: Final = 6
"""Night is 00:00 to 05:59 on the line's own clock."""

TRAVEL_US_MIN: Final = MINUTE_US
"""Speed is measured over at least a minute: two purchases in one second say little about travel."""

_WEEK_US: Final = 7 * DAY_US

FEATURES: Final[dict[str, tuple[str, str]]] = {
    # The purchase.
    "amount_minor": ("int", "Amount of this purchase in minor units of the line's currency."),
    "currency": ("string", "ISO 4217 code of the amount."),
    "merchant_id": ("string", "The merchant, as the caller names it; empty if not given."),
    "merchant_category": ("string", "ISO 18245 code, four digits; empty if not given."),
    "channel": ("string", "How the purchase is made, as the caller names it; empty if not given."),
    "country": ("string", "ISO 3166-1 alpha-2 code of the merchant's country; empty if not given."),
    "device_id": ("string", "The phone, as the caller names it; empty if not given."),
    "ip": ("string", "The network address the request came from; empty if not given."),
    "local_hour": ("int", "Hour of the purchase, 0 to 23, on the line's own clock."),
    "is_night": ("bool", "local_hour is 0 to 5."),
    "has_device": ("bool", "A device is given."),
    "has_category": ("bool", "A merchant category is given."),
    "has_country": ("bool", "A merchant country is given."),
    "has_location": ("bool", "A position is given."),
    # The line.
    "limit_minor": ("int", "The line's limit."),
    "available_minor": ("int", "Credit still available before this purchase."),
    "line_age_days": ("int", "Whole days since the line was opened."),
    "amount_to_limit": ("double", "Amount / limit; 0 without a limit."),
    "amount_to_available": ("double", "Amount / available credit; 0 if nothing is available."),
    "utilisation_after": ("double", "Share of the limit in use after this purchase; 0 without a limit."),
    # The customer's own past: purchases that got a hold, this one not included.
    "history_count": ("int", "Purchases ever."),
    "customer_age_days": ("int", "Whole days since the first purchase seen; 0 on the first."),
    "seconds_since_last": ("int", "Since the last purchase seen; 10,000,000,000 on the first."),
    "amount_mean": ("double", "Mean amount of all purchases in minor units; 0 on the first."),
    "amount_stddev": ("double", "Population standard deviation of all amounts; 0 below two purchases."),
    "amount_ratio": ("double", "Amount / mean; 0 on the first."),
    "amount_zscore": (
        "double",
        "(Amount - mean) / spread of at least a tenth of the mean; 0 below two.",
    ),
    "amount_to_largest": ("double", "Amount / largest amount ever; 0 on the first."),
    # Devices, categories, merchants and countries that have paid before.
    "known_devices": ("int", "Devices remembered, at most 8."),
    "device_known": ("bool", "This device has paid before."),
    "device_new": ("bool", "A device is given, others have paid before, this one has not."),
    "device_age_seconds": (
        "int",
        "Since it first paid; 0 if it has not; 10,000,000,000 without device.",
    ),
    "devices_added_7d": ("int", "Remembered devices that first paid within 7 days."),
    "known_categories": ("int", "Merchant categories remembered, at most 32."),
    "category_known": ("bool", "The customer has bought in this category."),
    "category_new": ("bool", "A category is given, the customer has bought in others, not in this one."),
    "known_merchants": ("int", "Merchants remembered, the latest 10."),
    "merchant_known": ("bool", "The merchant is among those remembered."),
    "merchant_new": ("bool", "A merchant is given, others are remembered, this one is not."),
    "known_countries": ("int", "Countries remembered, at most 8."),
    "country_new": ("bool", "A country is given, others are remembered, this one is not."),
    # Travel since the last purchase whose position is known.
    "has_last_location": ("bool", "This purchase and an earlier one have a position."),
    "distance_km": ("double", "Straight line through the globe from there to here; 0 without both."),
    "speed_kmh": ("double", "distance_km over the time between, at least a minute; 0 without both."),
    # Proofs of the customer.
    "factor_change_seconds": (
        "int",
        "Since a factor or device joined others or was revoked; 10,000,000,000 if never.",
    ),
    "proof_seconds": ("int", "Since the customer last proved who they are; 10,000,000,000 if never."),
    "failed_proofs_1h": ("int", "Wrong proofs within an hour, at most 10."),
    "failed_proofs_24h": ("int", "Wrong proofs within 24 hours, at most 10."),
    "step_ups_unanswered": ("int", "Purchases that asked for a proof since one was last given for a purchase."),
    "counter_back_seconds": (
        "int",
        "Since a device's counter went back, as a copied key's does; 10,000,000,000 if never.",
    ),
}
"""Name → (CEL type, meaning), in the order of `features`. Windows declared by a ruleset follow."""


class LineFacts(msgspec.Struct, frozen=True, gc=False):
    """What the rules may know of the credit line before the purchase."""

    limit_minor: int
    available_minor: int
    opened_us: int


def feature_types(windows: Sequence[WindowSpec]) -> dict[str, str]:
    """Return name → CEL type of everything `features` returns, in its order."""
    types = {name: cel_type for name, (cel_type, _) in FEATURES.items()}
    for spec in windows:
        types[spec.name] = WINDOW_TYPES[spec.aggregate]
    return types


def features(
    profile: Profile, facts: PurchaseFacts, line: LineFacts, windows: WindowReader | None = None
) -> FeatureValues:
    """
    Return the values of `FEATURES`, then of `windows`, for a purchase not yet observed.

    Windows are read at the newest event seen, so that a late purchase meets everything decided before it.
    """
    # This runs for every purchase: conditions instead of min() and max(), which cost four times as much.
    now_us = facts.event_time_us
    amount = facts.amount_minor
    limit = line.limit_minor
    available = line.available_minor

    lifetime = profile.lifetime
    n = lifetime.n
    mean = spread = ratio = zscore = to_largest = 0.0
    if n and lifetime.sum_minor:
        mean = lifetime.sum_minor / n
        spread = deviation(n, lifetime.sum_minor, lifetime.sum_squares)
        ratio = amount / mean
        to_largest = amount / lifetime.max_minor
        if n > 1:
            floor = mean / DEVIATION_FLOOR
            zscore = (amount - mean) / (spread if spread > floor else floor)
            if zscore > RATIO_MAX:
                zscore = RATIO_MAX
        if ratio > RATIO_MAX:
            ratio = RATIO_MAX
        if to_largest > RATIO_MAX:
            to_largest = RATIO_MAX

    to_limit = to_available = utilisation = 0.0
    if limit > 0:
        to_limit = amount / limit
        utilisation = (limit - available + amount) / limit
        if to_limit > RATIO_MAX:
            to_limit = RATIO_MAX
        if utilisation > RATIO_MAX:
            utilisation = RATIO_MAX
        elif utilisation < 0.0:
            utilisation = 0.0
    if available > 0:
        to_available = amount / available
        if to_available > RATIO_MAX:
            to_available = RATIO_MAX

    device_id = facts.device_id
    devices = profile.devices
    device_known = False
    device_age = NEVER_SECONDS
    devices_added = 0
    if device_id:
        device_age = 0
        for device in devices:
            age_us = now_us - device.first_seen_us
            if age_us <= _WEEK_US:
                devices_added += 1
            if device.device_id == device_id:
                device_known = True
                device_age = age_us // SECOND_US if age_us > 0 else 0

    category = facts.merchant_category
    categories = profile.categories
    category_known = False
    if category:
        for known in categories:
            if known.merchant_category == category:
                category_known = True
                break

    merchant_id = facts.merchant_id
    merchants = profile.merchants
    merchant_known = merchant_id != "" and merchant_mark(merchant_id) in merchants
    country = facts.country
    countries = profile.countries

    latitude = facts.latitude_e6
    longitude = facts.longitude_e6
    has_location = latitude is not None and longitude is not None
    place = profile.last_place
    has_last_location = False
    distance = speed = 0.0
    if place is not None and latitude is not None and longitude is not None:
        has_last_location = True
        distance = chord_km(place.latitude_e6, place.longitude_e6, latitude, longitude)
        travel_us = abs(now_us - place.event_time_us)
        speed = distance * HOUR_US / (travel_us if travel_us > TRAVEL_US_MIN else TRAVEL_US_MIN)

    last_us = profile.last_event_us
    line_days = (now_us - line.opened_us) // DAY_US
    customer_days = (now_us - profile.first_seen_us) // DAY_US if last_us else 0
    since_last = (now_us - last_us) // SECOND_US if last_us else NEVER_SECONDS
    values: FeatureValues = (
        amount,
        facts.currency,
        merchant_id,
        category,
        facts.channel,
        country,
        device_id,
        facts.ip,
        facts.local_hour,
        facts.local_hour < NIGHT_ENDS_HOUR,
        device_id != "",
        category != "",
        country != "",
        has_location,
        limit,
        available,
        line_days if line_days > 0 else 0,
        to_limit,
        to_available,
        utilisation,
        n,
        customer_days if customer_days > 0 else 0,
        since_last if since_last > 0 else 0,
        mean,
        spread,
        ratio,
        zscore,
        to_largest,
        len(devices),
        device_known,
        device_id != "" and not device_known and len(devices) > 0,
        device_age,
        devices_added,
        len(categories),
        category_known,
        category != "" and not category_known and len(categories) > 0,
        len(merchants),
        merchant_known,
        merchant_id != "" and not merchant_known and len(merchants) > 0,
        len(countries),
        country != "" and len(countries) > 0 and country not in countries,
        has_last_location,
        distance,
        speed,
    )
    # Tuples are added up, which costs half of spreading them in a new one.
    values += _NO_PROOFS if profile.safety is None else _proofs(profile.safety, now_us)
    if windows is None:
        return values
    as_of_us = last_us if last_us > now_us else now_us
    return values + tuple(windows.read(spend=profile.spend, unheld=profile.unheld, as_of_us=as_of_us))


_NO_PROOFS: Final = (NEVER_SECONDS, NEVER_SECONDS, 0, 0, 0, NEVER_SECONDS)


def _proofs(safety: Safety, now_us: int) -> FeatureValues:
    return (
        _since(safety.changed_us, now_us),
        _since(safety.passed_us, now_us),
        failed_since(safety, now_us - HOUR_US),
        failed_since(safety, now_us - DAY_US),
        safety.unanswered,
        _since(safety.regressed_us, now_us),
    )


def _since(at_us: int, now_us: int) -> int:
    return max(now_us - at_us, 0) // SECOND_US if at_us else NEVER_SECONDS
