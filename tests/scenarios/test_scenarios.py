"""
Every rule fires in its scenario and is silent just below; the cases are data beside this file.

The rules are those that come with Riskgate, or those of the file RULESET with the cases of the folder SCENARIOS:
`make scenarios`.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from riskgate_server.domain.fraud.features import LineFacts
from riskgate_server.domain.fraud.profile import EMPTY_PROFILE, PurchaseFacts, observe
from riskgate_server.domain.fraud.safety import Safety
from riskgate_server.rules.loader import load_ruleset

Scenario = dict[str, Any]

BUILT_IN = files("riskgate_server").joinpath("rulesets/default.yaml")
RULESET = os.environ.get("RULESET", "")
FOLDER = Path(os.environ.get("SCENARIOS", "") or Path(__file__).parent)
START_US = 1_775_000_000_000_000
UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
DOCUMENT: Scenario = yaml.safe_load((Path(RULESET) if RULESET else BUILT_IN).read_text("utf-8"))


def read_scenarios() -> dict[str, Scenario]:
    scenarios: dict[str, Scenario] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for rule_id, scenario in yaml.safe_load(path.read_text("utf-8")).items():
            assert rule_id not in scenarios, f"{rule_id} has two scenarios"
            scenarios[rule_id] = scenario
    return scenarios


SCENARIOS = read_scenarios()


def span_us(text: str) -> int:
    return int(text[:-1]) * UNITS_US[text[-1]]


def purchase(step: Scenario, at_us: int) -> PurchaseFacts:
    place = step.get("at")
    known = {"times", "every", "after", "amount", "spent", "device", "category", "merchant", "country", "ip", "at"}
    assert set(step) <= known | {"hour"}, step
    return PurchaseFacts(
        event_time_us=at_us,
        amount_minor=step.get("amount", 1000),
        currency="CNY",
        merchant_id=step.get("merchant", ""),
        merchant_category=step.get("category", ""),
        country=step.get("country", ""),
        device_id=step.get("device", ""),
        ip=step.get("ip", ""),
        latitude_e6=round(place[0] * 1e6) if place else None,
        longitude_e6=round(place[1] * 1e6) if place else None,
        local_hour=step.get("hour", 12),
    )


def safety(proofs: Scenario, now_us: int) -> Safety:
    def ago(name: str) -> int:
        return now_us - span_us(proofs[name]) if name in proofs else 0

    failed = tuple(now_us - span_us(each) for each in proofs.get("failed", ()))
    return Safety(ago("changed"), ago("passed"), failed, proofs.get("unanswered", 0), ago("regressed"))


def run(rule_id: str, scenario: Scenario) -> None:
    document = {**DOCUMENT, "lists": {**DOCUMENT.get("lists", {}), **scenario.get("lists", {})}}
    ruleset = load_ruleset(yaml.safe_dump(document))
    line = {"limit": 1_000_000, "available": 1_000_000, "opened": "60d"} | scenario.get("line", {})
    at_us = START_US
    profile = EMPTY_PROFILE
    for step in scenario.get("history", []):
        for _ in range(step.get("times", 1)):
            at_us += span_us(step["every"])
            profile = observe(profile, purchase(step, at_us), spent=step.get("spent", True))
    facts = purchase(scenario["purchase"], at_us + span_us(scenario["purchase"]["after"]))
    if proofs := scenario.get("proofs"):
        profile = msgspec.structs.replace(profile, safety=safety(proofs, facts.event_time_us))
    line_facts = LineFacts(line["limit"], line["available"], START_US - span_us(line["opened"]))

    values = ruleset.features(profile, facts, line_facts)
    assessment = ruleset.assess(values)

    expected = scenario["expect"]
    looked_at = next(trace for trace in ruleset.explain(values) if trace.rule_id == rule_id)
    assert (rule_id in assessment.fired) is scenario["fires"], looked_at
    assert assessment.outcome == expected["outcome"], assessment
    assert list(assessment.reasons) == expected["reasons"], assessment
    assert assessment.suspend is expected.get("suspend", False)
    assert not assessment.degraded


def below(scenario: Scenario) -> Scenario:
    change = scenario["below"]
    merged = {**scenario, **change, "fires": False}
    for part in ("purchase", "line"):
        merged[part] = {**scenario.get(part, {}), **change.get(part, {})}
    return merged


@pytest.mark.parametrize("rule_id", SCENARIOS)
def test_the_rule_fires(rule_id: str) -> None:
    run(rule_id, {**SCENARIOS[rule_id], "fires": True})


@pytest.mark.parametrize("rule_id", SCENARIOS)
def test_the_rule_is_silent_just_below(rule_id: str) -> None:
    run(rule_id, below(SCENARIOS[rule_id]))


def test_every_rule_has_a_scenario_of_both_kinds() -> None:
    assert set(SCENARIOS) == {rule["id"] for rule in DOCUMENT["rules"]}
    assert all({"purchase", "expect", "below"} <= set(scenario) for scenario in SCENARIOS.values())
    assert all("expect" in scenario["below"] for scenario in SCENARIOS.values())
