"""
Every rule fires in its scenario and is silent just below; the cases are data beside this file.

The rules are those that come with Riskgate, or those of the file RULESET with the cases of the folder SCENARIOS:
`make scenarios`.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from riskgate_server.domain.fraud.features import LineFacts
from riskgate_server.domain.fraud.profile import EMPTY_PROFILE, PurchaseFacts, observe
from riskgate_server.domain.fraud.safety import Safety
from riskgate_server.rules.loader import load_ruleset
from riskgate_server.rules.reading import RulesetRefused, read_ruleset

Scenario = dict[str, Any]

RULESET = os.environ.get("RULESET", "")
FOLDER = Path(os.environ.get("SCENARIOS", "") or Path(__file__).parent)
START_US = 1_775_000_000_000_000
UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


class ScenariosRefused(Exception):
    """The files cannot be tried out; the message says why, in lines."""


def read_document() -> Scenario:
    try:
        _, source = read_ruleset(RULESET)
    except RulesetRefused as error:
        raise ScenariosRefused(str(error)) from error
    document: Scenario = yaml.safe_load(source)
    return document


def read_scenarios(rule_ids: set[str]) -> dict[str, Scenario]:
    scenarios: dict[str, Scenario] = {}
    paths = sorted(FOLDER.glob("*.yaml"))
    if not paths:
        raise ScenariosRefused(f"{FOLDER}: no scenarios, which are .yaml files")
    for path in paths:
        try:
            found = yaml.safe_load(path.read_text("utf-8"))
        except (yaml.YAMLError, ValueError) as error:
            raise ScenariosRefused(f"{path}: no YAML: {error}") from error
        if not isinstance(found, dict):
            raise ScenariosRefused(f"{path}: not a mapping from rules to their scenarios")
        for rule_id, scenario in found.items():
            if fault := _fault(rule_id, scenario, rule_ids, scenarios):
                raise ScenariosRefused(f"{path}: {rule_id}: {fault}")
            scenarios[rule_id] = scenario
    return scenarios


def _fault(rule_id: object, scenario: object, rule_ids: set[str], known: Scenario) -> str:
    if rule_id not in rule_ids:
        alike = get_close_matches(str(rule_id), rule_ids, 1)
        return "the ruleset has no such rule" + (f"; did you mean {alike[0]}?" if alike else "")
    if rule_id in known:
        return "it has two scenarios"
    given = scenario if isinstance(scenario, dict) else {}
    lacking = [part for part in ("purchase", "expect", "below") if part not in given]
    return f"it lacks {' and '.join(lacking)}" if lacking else ""


try:
    DOCUMENT = read_document()
    RULE_IDS = {rule["id"] for rule in DOCUMENT["rules"]}
    SCENARIOS = read_scenarios(RULE_IDS)
except ScenariosRefused as refused:
    # Which is shown without a trace: whoever writes rules wants to know what is wrong, and not how it was noticed.
    raise pytest.Collector.CollectError(str(refused)) from None


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
    assert not (lacking := RULE_IDS - set(SCENARIOS)), f"rules without a scenario: {', '.join(sorted(lacking))}"
    assert all("expect" in scenario["below"] for scenario in SCENARIOS.values())
