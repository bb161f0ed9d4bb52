"""From rules that fired to one answer: the gravest outcome, ranked reasons, a score rising with danger."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from riskgate_server.domain.fraud.ruleset import APPROVE, OUTCOMES, SCORE_MAX, Outcome, Rule, Ruleset

CHECK_INCOMPLETE: Final = "CHECK_INCOMPLETE"
"""Reason of the fallback that applies when a rule of a group could not be evaluated."""

_PARTS: Final = 1_000_000_000
SEVERITY: Final = {outcome: severity for severity, outcome in enumerate(OUTCOMES)}


class Assessment(msgspec.Struct, frozen=True, gc=False):
    """What the rules make of one purchase, limits and blocks aside."""

    outcome: Outcome
    risk_score: int
    """0 (ordinary) to 1000. Compare only within one ruleset version."""
    reasons: tuple[str, ...]
    """Reason codes, gravest first: by outcome, then weight, then order in the ruleset."""
    fired: tuple[str, ...]
    """Ids of the rules that hit, in the order of the ruleset."""
    suspend: bool = False
    """The line must be suspended at once, whatever happens to this purchase."""
    suspend_reason: str = ""
    """Reason code of the gravest rule that asks for it."""
    degraded: bool = False
    """A rule could not be evaluated and its group's fallback was applied."""


CLEAN: Final = Assessment(outcome=APPROVE, risk_score=0, reasons=(), fired=())
"""Nothing fired."""


def combine(ruleset: Ruleset, hits: Collection[int], errors: Collection[int] = ()) -> Assessment:
    """
    Merge the rules that hit, and the fallbacks of those that failed, given by position in the ruleset.

    Weights combine like independent probabilities (1 - Π(1 - weight / 1000)), in whole numbers: more
    evidence always means more risk, and no number of weak hints reaches certainty.
    """
    if not hits and not errors:
        return CLEAN
    rules = ruleset.rules
    hit = [rules[position] for position in sorted(hits)]
    severity = 0
    left = _PARTS
    for rule in hit:
        severity = max(severity, SEVERITY[rule.outcome])
        left = left * (SCORE_MAX - rule.weight) // SCORE_MAX
    # sorted() is stable: equal rules keep the order in which the ruleset names them.
    ranked = [(-SEVERITY[rule.outcome], -rule.weight, rule.reason_code) for rule in sorted(hit, key=_gravest_first)]
    for position in errors:
        fallback = ruleset.groups[rules[position].group].fallback
        severity = max(severity, SEVERITY[fallback])
        ranked.append((-SEVERITY[fallback], 0, CHECK_INCOMPLETE))
    if errors:
        ranked.sort(key=lambda entry: entry[:2])
    suspending = [rule for rule in sorted(hit, key=_gravest_first) if rule.suspend]
    return Assessment(
        outcome=OUTCOMES[severity],
        risk_score=SCORE_MAX - left * SCORE_MAX // _PARTS,
        reasons=tuple(dict.fromkeys(reason for _, _, reason in ranked)),
        fired=tuple([rule.id for rule in hit]),
        suspend=bool(suspending),
        suspend_reason=suspending[0].reason_code if suspending else "",
        degraded=bool(errors),
    )


def _gravest_first(rule: Rule) -> tuple[int, int]:
    return -SEVERITY[rule.outcome], -rule.weight
