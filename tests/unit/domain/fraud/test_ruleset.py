from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from riskgate_server.domain.fraud.ruleset import PROBLEMS_MAX, Rule, RulesetInvalid, parse_ruleset
from riskgate_server.domain.fraud.windows import HOUR_US

Document = dict[str, Any]

DOCUMENT: Document = {
    "name": "small",
    "version": "1",
    "groups": {"amount": {"fallback": "REVIEW", "why": "How much."}},
    "lists": {"blocked_devices": ["phone-1"]},
    "windows": [{"name": "count_1h", "of": "spend", "aggregate": "count", "span": "1h"}],
    "reasons": {"AMOUNT_HIGH": {"en": "High.", "zh-Hans": "金额较高。"}},
    "rules": [
        {
            "id": "amount-high",
            "reason_code": "AMOUNT_HIGH",
            "group": "amount",
            "outcome": "STEP_UP",
            "weight": 300,
            "when": "amount_minor > 1000",
            "why": "More than ten.",
        }
    ],
}


def test_a_document_becomes_a_ruleset() -> None:
    ruleset = parse_ruleset(DOCUMENT, "ab" * 32)

    assert ruleset.rules == (
        Rule(
            id="amount-high",
            reason_code="AMOUNT_HIGH",
            when="amount_minor > 1000",
            outcome="STEP_UP",
            weight=300,
            suspend=False,
            group="amount",
            why="More than ten.",
            text={"en": "High.", "zh-Hans": "金额较高。"},
        ),
    )
    assert ruleset.windows[0].span_us == HOUR_US
    assert ruleset.lists == {"blocked_devices": ("phone-1",)}
    assert ruleset.hash == "ab" * 32


def put(*path: str | int, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        here: Any = document
        for step in path[:-1]:
            here = here[step]
        here[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        here: Any = document
        for step in path[:-1]:
            here = here[step]
        del here[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        (put("colour", value="red"), "colour", "unknown key"),
        (put("rules", 0, "treshold", value=1), "rules[0].treshold", "unknown key"),
        (drop("version"), "version", "missing"),
        (drop("rules", 0, "when"), "rules[0].when", "missing"),
        (drop("reasons", "AMOUNT_HIGH", "zh-Hans"), "reasons.AMOUNT_HIGH.zh-Hans", "missing"),
        (put("version", value=2026.11), "version", "quote it"),
        (put("rules", value={}), "rules", "expected a list"),
        (put("rules", 0, value="amount"), "rules[0]", "expected a mapping, got text"),
        (put("rules", 0, "id", value="Amount High"), "rules[0].id", "must match"),
        (put("rules", 0, "reason_code", value="OTHER"), "rules[0].reason_code", "not declared"),
        (put("rules", 0, "group", value="other"), "rules[0].group", "not declared"),
        (put("rules", 0, "outcome", value="ALLOW"), "rules[0].outcome", "expected one of APPROVE, STEP_UP"),
        (put("rules", 0, "weight", value=1001), "rules[0].weight", "from 0 to 1000"),
        (put("rules", 0, "weight", value=True), "rules[0].weight", "from 0 to 1000"),
        (put("rules", 0, "weight", value=0.5), "rules[0].weight", "from 0 to 1000"),
        (put("rules", 0, "suspend", value="yes"), "rules[0].suspend", "true or false"),
        (put("rules", 0, "suspend", value=True), "rules[0].suspend", "must DECLINE"),
        (put("rules", 0, "when", value=""), "rules[0].when", "must not be empty"),
        (put("rules", 0, "when", value="x" * 2_001), "rules[0].when", "at most 2000"),
        (put("groups", "amount", "fallback", value="APPROVE"), "groups.amount.fallback", "must not approve"),
        (put("groups", value=[]), "groups", "expected a mapping"),
        (put("lists", "blocked_devices", 0, value=False), "lists.blocked_devices[0]", "quote it"),
        (put("lists", "amount_minor", value=[]), "lists.amount_minor", "taken"),
        (put("lists", "size", value=[]), "lists.size", "taken"),
        (put("windows", 0, "name", value="blocked_devices"), "windows[0].name", "taken"),
        (put("windows", 0, "name", value="amount_minor"), "windows[0].name", "taken"),
        (put("windows", 0, "span", value="90m"), "windows[0].span", "a span is"),
        (put("windows", 0, "span", value="31d"), "windows[0].span", "a span is"),
        (put("windows", 0, "span", value=60), "windows[0].span", "a span is"),
        (put("windows", 0, "aggregate", value="median"), "windows[0].aggregate", "expected one of count"),
        (put("windows", 0, "of", value="declines"), "windows[0].of", "expected one of attempts"),
        (put("reasons", "UNUSED", value={"en": "A.", "zh-Hans": "乙。"}), "reasons.UNUSED", "no rule uses"),
    ],
)
def test_a_mistake_is_refused_by_its_path(change: Callable[[Document], None], path: str, words: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document)

    with pytest.raises(RulesetInvalid) as refusal:
        parse_ruleset(document, "")

    assert [(violation.field, words in violation.description) for violation in refusal.value.violations][:1] == [
        (path, True)
    ]
    assert refusal.value.reason == "RULESET_INVALID"


@pytest.mark.parametrize("document", [None, [], "rules", 7, {}, {1: 2}])
def test_what_is_no_ruleset_at_all_is_refused(document: object) -> None:
    with pytest.raises(RulesetInvalid):
        parse_ruleset(document, "")


def test_a_rule_id_is_used_once() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["rules"] *= 2

    with pytest.raises(RulesetInvalid, match=r"rules\[1\]\.id"):
        parse_ruleset(document, "")


def test_all_mistakes_are_reported_up_to_a_maximum() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["rules"] = [{"id": f"rule-{n}"} for n in range(100)]

    with pytest.raises(RulesetInvalid) as refusal:
        parse_ruleset(document, "")

    assert len(refusal.value.violations) == PROBLEMS_MAX
