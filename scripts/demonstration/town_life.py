"""The city's purchases on their way through the server, and what became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final
from zlib import crc32

import msgspec
from scripts.city import City, Scenario
from scripts.city import Purchase as CityPurchase
from scripts.streaming.mapping import Repayment
from scripts.streaming.plan import Fate, Plan
from scripts.streaming.purchase import Purchase
from scripts.streaming.tally import LIMIT_REASON, SUSPENDED_REASON

from riskgate_client import Decision, Outcome

PAYDAY: Final = 15
_HUNDRED: Final = 100
_VOIDED, _REFUNDED = 3, 5
"""Of a hundred purchases three are given up before capture, and two are given back after it."""


def fate_of(purchase: Purchase) -> Fate:
    """Say what the merchant does with a purchase; the same every time."""
    chance = crc32(purchase.transaction_id.encode()) % _HUNDRED
    if chance < _VOIDED:
        return Fate.VOID
    return Fate.REFUND if chance < _REFUNDED else Fate.CAPTURE


def plan_for(city: City) -> Plan:
    """Return what follows a purchase in this city: everybody pays back all they owe once a month."""
    return Plan(
        time_zone=city.spec.time_zone,
        fate=fate_of,
        repayment=Repayment(day_of_month=PAYDAY, share=1.0),
        actor_id="demo",
    )


def purchases_of(city: City) -> list[Purchase]:
    """Return the city's purchases in the contract's terms."""
    return [_as_row(city, number, bought) for number, bought in enumerate(city.purchases, 1)]


def _as_row(city: City, number: int, bought: CityPurchase) -> Purchase:
    place, merchant = bought.place, bought.merchant
    return Purchase(
        number=number,
        transaction_id=bought.transaction_id,
        customer_id=bought.customer_id,
        at_us=bought.at_us,
        amount_minor=bought.amount_minor,
        currency=city.spec.currency,
        merchant_id=merchant.merchant_id,
        category_code=merchant.category.code,
        country_code=merchant.town.country,
        device_id=bought.device_id,
        ip_address=bought.ip_address,
        latitude=place.latitude_e6 / 1e6 if place else None,
        longitude=place.longitude_e6 / 1e6 if place else None,
        channel=bought.channel,
        limit_minor=city.customer(bought.customer_id).limit_minor,
        label=bought.scenario.value,
    )


class Verdict(msgspec.Struct, frozen=True):
    """What became of one purchase."""

    outcome: Outcome
    amount_minor: int
    scenario: Scenario
    episode: str
    reasons: tuple[str, ...]
    suspended: bool


class Record:
    """Remembers what became of every purchase."""

    def __init__(self, city: City) -> None:
        self._city = {bought.transaction_id: bought for bought in city.purchases}
        self.verdicts: list[Verdict] = []

    def seen(self, purchase: Purchase, decision: Decision) -> None:
        """Note an answer."""
        bought = self._city[purchase.transaction_id]
        self.verdicts.append(
            Verdict(
                decision.outcome,
                purchase.amount_minor,
                bought.scenario,
                bought.episode,
                decision.reason_codes,
                decision.line_suspended,
            )
        )

    def scenarios(self) -> list[ScenarioResult]:
        """Return how every kind of fraud went."""
        kinds = [scenario for scenario in Scenario if scenario is not Scenario.GENUINE]
        return [scenario_result(kind, [v for v in self.verdicts if v.scenario is kind]) for kind in kinds]

    def false_alarms(self) -> Counter[str]:
        """Return what genuine customers met instead of an approval."""
        met: Counter[str] = Counter()
        for verdict in self.verdicts:
            if verdict.scenario is Scenario.GENUINE and verdict.outcome is not Outcome.APPROVE:
                met[_met(verdict)] += 1
        return met


class ScenarioResult(msgspec.Struct, frozen=True):
    """How one kind of fraud went."""

    name: str
    incidents: int
    noticed: int
    """Incidents of which at least one purchase was not approved."""
    purchases: int
    stopped: int
    amount_minor: int
    stopped_minor: int


def scenario_result(scenario: Scenario, verdicts: Iterable[Verdict]) -> ScenarioResult:
    """Sum up the purchases of one kind of fraud. Whatever was not approved is money the thief did not get."""
    found = list(verdicts)
    stopped = [verdict for verdict in found if verdict.outcome is not Outcome.APPROVE]
    return ScenarioResult(
        name=scenario.value,
        incidents=len({verdict.episode for verdict in found}),
        noticed=len({verdict.episode for verdict in stopped}),
        purchases=len(found),
        stopped=len(stopped),
        amount_minor=sum(verdict.amount_minor for verdict in found),
        stopped_minor=sum(verdict.amount_minor for verdict in stopped),
    )


ASKED: Final = "asked for a proof that it is them (STEP_UP)"
WAITED: Final = "waited for a reviewer (REVIEW)"
REFUSED: Final = "refused by a rule (DECLINE)"
LIMIT: Final = "above their limit (no alarm)"
AFTER: Final = "refused while their line was suspended after a theft"


def _met(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.STEP_UP:
        return ASKED
    if verdict.outcome is Outcome.REVIEW:
        return WAITED
    if SUSPENDED_REASON in verdict.reasons:
        return AFTER
    return LIMIT if LIMIT_REASON in verdict.reasons else REFUSED
