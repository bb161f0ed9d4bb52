"""Small rulesets for tests, as YAML text."""

from __future__ import annotations

from typing import Any

import yaml


def ruleset_document(*whens: str, fallback: str = "REVIEW", outcome: str = "STEP_UP") -> dict[str, Any]:
    """Return a ruleset with one rule per expression, called rule-0, rule-1 …"""
    return {
        "name": "test",
        "version": "1",
        "groups": {"all": {"fallback": fallback, "why": "Everything."}},
        "lists": {"blocked_devices": ["stolen"]},
        "windows": [{"name": "count_1h", "of": "spend", "aggregate": "count", "span": "1h"}],
        "reasons": {"SOME_REASON": {"en": "Some reason.", "zh-Hans": "某个原因。"}},
        "rules": [
            {
                "id": f"rule-{position}",
                "reason_code": "SOME_REASON",
                "group": "all",
                "outcome": outcome,
                "weight": 100,
                "when": when,
                "why": "A test.",
            }
            for position, when in enumerate(whens)
        ],
    }


def ruleset_source(*, when: str) -> str:
    """Return the text of a ruleset with one rule."""
    return yaml.safe_dump(ruleset_document(when), allow_unicode=True)
