from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from riskgate_server.domain.fraud.decision import CHECK_INCOMPLETE, CLEAN, SEVERITY, combine
from riskgate_server.domain.fraud.ruleset import OUTCOMES, Group, Outcome, Rule, Ruleset


def rule(rule_id: str, outcome: Outcome, weight: int, *, reason: str = "", suspend: bool = False) -> Rule:
    return Rule(
        id=rule_id,
        reason_code=reason or rule_id.upper(),
        when="true",
        outcome=outcome,
        weight=weight,
        suspend=suspend,
        group="careful",
        why="",
        text={},
    )


def ruleset(*rules: Rule, fallback: Outcome = "REVIEW") -> Ruleset:
    return Ruleset("t", "1", "", {"careful": Group("careful", fallback, "")}, {}, (), {}, rules)


SOME = ruleset(
    rule("hint", "APPROVE", 100),
    rule("light", "STEP_UP", 300),
    rule("heavy", "STEP_UP", 500),
    rule("again", "STEP_UP", 500, reason="LIGHT"),
    rule("look", "REVIEW", 200),
    rule("stop", "DECLINE", 900, suspend=True),
)


def test_nothing_fired_approves_without_a_reason() -> None:
    assert combine(SOME, []) == CLEAN
    assert CLEAN.outcome == "APPROVE"
    assert CLEAN.risk_score == 0


def test_the_gravest_outcome_wins_and_reasons_follow_severity_then_weight() -> None:
    assessment = combine(SOME, [4, 0, 1, 2])

    assert assessment.outcome == "REVIEW"
    assert assessment.reasons == ("LOOK", "HEAVY", "LIGHT", "HINT")
    assert assessment.fired == ("hint", "light", "heavy", "look")
    assert not assessment.suspend
    assert not assessment.degraded


def test_a_reason_is_given_once() -> None:
    assert combine(SOME, [1, 2, 3]).reasons == ("HEAVY", "LIGHT")


def test_a_hint_alone_approves_with_a_score() -> None:
    assessment = combine(SOME, [0])

    assert (assessment.outcome, assessment.risk_score) == ("APPROVE", 100)


def test_suspension_names_its_reason() -> None:
    assessment = combine(SOME, [1, 5])

    assert (assessment.outcome, assessment.suspend, assessment.suspend_reason) == ("DECLINE", True, "STOP")


def test_a_failed_rule_answers_as_its_group_says() -> None:
    assessment = combine(SOME, [1], errors=[0])

    assert assessment.outcome == "REVIEW"
    assert assessment.reasons == (CHECK_INCOMPLETE, "LIGHT")
    assert assessment.degraded
    assert not assessment.suspend


def test_a_failed_rule_does_not_soften_a_graver_hit() -> None:
    assert combine(SOME, [5], errors=[0]).outcome == "DECLINE"


@given(
    st.lists(st.tuples(st.sampled_from(OUTCOMES), st.integers(0, 1000)), min_size=1, max_size=12),
    st.data(),
)
def test_one_more_hit_never_lowers_score_or_outcome(rules: list[tuple[Outcome, int]], data: st.DataObject) -> None:
    some = ruleset(*(rule(f"r{n}", outcome, weight) for n, (outcome, weight) in enumerate(rules)))
    hits = data.draw(st.sets(st.integers(0, len(rules) - 1)))
    more = hits | {data.draw(st.integers(0, len(rules) - 1))}

    fewer_hits, more_hits = combine(some, hits), combine(some, more)

    assert 0 <= fewer_hits.risk_score <= more_hits.risk_score <= 1000
    assert SEVERITY[fewer_hits.outcome] <= SEVERITY[more_hits.outcome]
    assert combine(some, sorted(more, reverse=True)) == more_hits
