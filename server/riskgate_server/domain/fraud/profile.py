"""What the engine remembers of one customer's purchases, in about a kilobyte."""

from __future__ import annotations

from typing import Final, TypeVar
from zlib import crc32

import msgspec

from riskgate_server.domain.fraud.safety import Safety
from riskgate_server.domain.fraud.windows import (
    EMPTY_HISTORY,
    EMPTY_TOTALS,
    History,
    Totals,
    add_to_history,
    add_to_totals,
    remove_from_history,
)

_Item = TypeVar("_Item")

DEVICES_MAX: Final = 8
CATEGORIES_MAX: Final = 32
MERCHANTS_MAX: Final = 10
COUNTRIES_MAX: Final = 8
CATEGORY_COUNT_MAX: Final = 1_000_000
"""Counting purchases of one category stops here, so that a counter never outgrows its place."""


class PurchaseFacts(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a caller said about one purchase. Empty text and None mean "not given"."""

    event_time_us: int
    amount_minor: int
    currency: str
    merchant_id: str = ""
    merchant_category: str = ""
    """ISO 18245, four digits."""
    channel: str = ""
    country: str = ""
    """ISO 3166-1 alpha-2 of the merchant."""
    device_id: str = ""
    ip: str = ""
    latitude_e6: int | None = None
    longitude_e6: int | None = None
    """Millionths of a degree; a location counts only if both are given."""
    local_hour: int = 12
    """0 to 23 in the line's own time zone."""
    sim_changed_us: int = 0
    """When the SIM in the phone was last changed, UTC; 0 when nobody says."""


class KnownDevice(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A device that has paid before, and since when."""

    device_id: str
    first_seen_us: int


class KnownCategory(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A merchant category bought from before, and how often."""

    merchant_category: str
    count: int


class Place(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Where and when the customer last paid."""

    latitude_e6: int
    longitude_e6: int
    event_time_us: int


class Profile(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    The customer's own past. New fields go to the end and have a default, since profiles are stored.

    Attempts are `spend` and `unheld` together: kept apart because nearly all purchases of an honest
    customer get a hold, and storing those twice would double the row.
    """

    spend: History = EMPTY_HISTORY
    """Purchases that got a hold (APPROVE, REVIEW)."""
    unheld: History = EMPTY_HISTORY
    """Purchases decided without one (STEP_UP, DECLINE)."""
    lifetime: Totals = EMPTY_TOTALS
    """All spend ever."""
    first_seen_us: int = 0
    last_event_us: int = 0
    """Both 0 until the first purchase."""
    devices: tuple[KnownDevice, ...] = ()
    categories: tuple[KnownCategory, ...] = ()
    merchants: tuple[int, ...] = ()
    countries: tuple[str, ...] = ()
    """All four: least recently used first, the oldest forgotten when full."""
    last_place: Place | None = None
    safety: Safety | None = None
    """None until the customer proved, or failed to prove, who they are."""


EMPTY_PROFILE: Final = Profile()


def observe(profile: Profile, facts: PurchaseFacts, *, spent: bool) -> Profile:
    """
    Remember one decided purchase; called once per transaction. `spent` says that it got a hold.

    A purchase without a hold counts as an attempt and teaches nothing else: a thief's device, place
    or merchant must not become "known" by having been refused. Events may come late; those older
    than a series reaches are left out of it.
    """
    at_us = facts.event_time_us
    amount = facts.amount_minor
    first_seen_us = min(profile.first_seen_us, at_us) if profile.last_event_us else at_us
    last_event_us = max(profile.last_event_us, at_us)
    if not spent:
        return Profile(
            profile.spend,
            add_to_history(profile.unheld, at_us, amount),
            profile.lifetime,
            first_seen_us,
            last_event_us,
            profile.devices,
            profile.categories,
            profile.merchants,
            profile.countries,
            profile.last_place,
            profile.safety,
        )
    place = profile.last_place
    if (
        facts.latitude_e6 is not None
        and facts.longitude_e6 is not None
        and (place is None or at_us >= place.event_time_us)
    ):
        place = Place(facts.latitude_e6, facts.longitude_e6, at_us)
    return Profile(
        add_to_history(profile.spend, at_us, amount),
        profile.unheld,
        add_to_totals(profile.lifetime, amount),
        first_seen_us,
        last_event_us,
        _with_device(profile.devices, facts.device_id, at_us) if facts.device_id else profile.devices,
        _with_category(profile.categories, facts.merchant_category) if facts.merchant_category else profile.categories,
        _most_recent(profile.merchants, merchant_mark(facts.merchant_id), MERCHANTS_MAX)
        if facts.merchant_id
        else profile.merchants,
        _most_recent(profile.countries, facts.country, COUNTRIES_MAX) if facts.country else profile.countries,
        place,
        profile.safety,
    )


def retract(profile: Profile, facts: PurchaseFacts) -> Profile:
    """
    Take back the attempt that `observe(profile, facts, spent=False)` counted.

    For an attempt that replaces another, as a resume with a proof does: both together count once.
    `facts` are those of the first.
    """
    return msgspec.structs.replace(
        profile, unheld=remove_from_history(profile.unheld, facts.event_time_us, facts.amount_minor)
    )


def merchant_mark(merchant_id: str) -> int:
    """
    Return the 32 bits by which a merchant is remembered.

    A stranger meets one of ten marks by chance once in 429 million, and then is not called new.
    """
    return crc32(merchant_id.encode())


def _most_recent(known: tuple[_Item, ...], item: _Item, most: int) -> tuple[_Item, ...]:
    if known and known[-1] == item:
        return known
    if item in known:
        return (*(other for other in known if other != item), item)
    return (*known, item)[-most:]


def _with_device(devices: tuple[KnownDevice, ...], device_id: str, at_us: int) -> tuple[KnownDevice, ...]:
    for device in devices:
        if device.device_id == device_id:
            if at_us < device.first_seen_us:
                return (*(other for other in devices if other is not device), KnownDevice(device_id, at_us))
            return _most_recent(devices, device, DEVICES_MAX)
    return (*devices, KnownDevice(device_id, at_us))[-DEVICES_MAX:]


def _with_category(categories: tuple[KnownCategory, ...], merchant_category: str) -> tuple[KnownCategory, ...]:
    for position, category in enumerate(categories):
        if category.merchant_category == merchant_category:
            count = category.count
            more = KnownCategory(merchant_category, count + 1 if count < CATEGORY_COUNT_MAX else count)
            return (*categories[:position], *categories[position + 1 :], more)
    return (*categories, KnownCategory(merchant_category, 1))[-CATEGORIES_MAX:]
