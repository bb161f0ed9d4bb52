from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import msgspec
import pytest
import yaml
from hypothesis import given, settings

from riskgate_server.domain.errors import FieldViolation
from riskgate_server.domain.fraud.decision import CHECK_INCOMPLETE, CLEAN
from riskgate_server.domain.fraud.features import FEATURES, LineFacts
from riskgate_server.domain.fraud.profile import EMPTY_PROFILE, PurchaseFacts, observe
from riskgate_server.domain.fraud.ruleset import RulesetInvalid
from riskgate_server.rules.loader import CompiledRuleset, load_ruleset
from tests.unit.domain.fraud.test_features import lines
from tests.unit.domain.fraud.test_profile import facts_of_any_kind, pasts, remembered
from tests.unit.rules.documents import ruleset_document, ruleset_source

DEFAULT_SOURCE = files("riskgate_server").joinpath("rulesets/default.yaml").read_text("utf-8")
FACTS = PurchaseFacts(event_time_us=1_775_000_000_000_000, amount_minor=500, currency="EUR")
LINE = LineFacts(limit_minor=10_000, available_minor=10_000, opened_us=1_775_000_000_000_000)


@pytest.fixture(scope="module")
def default() -> CompiledRuleset:
    return load_ruleset(DEFAULT_SOURCE)


def load(*whens: str, fallback: str = "REVIEW") -> CompiledRuleset:
    return load_ruleset(yaml.safe_dump(ruleset_document(*whens, fallback=fallback)))


def profile_of(count: int) -> object:
    profile = EMPTY_PROFILE
    for _ in range(count):
        profile = observe(profile, FACTS, spent=True)
    return profile


def test_a_mistake_is_reported_with_rule_line_and_column() -> None:
    source = ruleset_source(when="amount_minor > 1 && amount_rati > 2.0")
    line = next(n for n, text in enumerate(source.splitlines(), 1) if "amount_rati" in text)

    with pytest.raises(RulesetInvalid) as refusal:
        load_ruleset(source)

    (violation,) = refusal.value.violations
    assert violation.field == "rules[0].when"
    assert violation.description == (
        "rule rule-0: line 1, column 21: nothing is called amount_rati; did you mean amount_ratio?"
    )
    assert violation.line == line


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [
        ("device_nu", "did you mean device_new?"),
        ("cout_1h", "did you mean count_1h?"),
        ("blocked_device", "did you mean blocked_devices?"),
        ("moon_phase", "docs/rules.md lists the features there are"),
    ],
)
def test_the_nearest_of_features_windows_and_lists_is_named(unknown: str, hint: str) -> None:
    with pytest.raises(RulesetInvalid) as refusal:
        load(f"string({unknown}) == 'x'")

    assert refusal.value.violations[0].description.endswith(f"nothing is called {unknown}; {hint}")


def test_every_broken_rule_is_reported_at_once() -> None:
    with pytest.raises(RulesetInvalid) as refusal:
        load("amount_minor > 1.0", "is_night", "currency > 1")

    assert [violation.field for violation in refusal.value.violations] == ["rules[0].when", "rules[2].when"]


def test_a_missing_key_is_reported_on_the_line_of_its_rule() -> None:
    document = ruleset_document("is_night")
    del document["rules"][0]["why"]
    source = yaml.safe_dump(document, sort_keys=False)
    line = next(n for n, text in enumerate(source.splitlines(), 1) if "rule-0" in text)

    with pytest.raises(RulesetInvalid) as refusal:
        load_ruleset(source)

    assert refusal.value.violations[0] == FieldViolation("rules[0].why", "missing", line)


@pytest.mark.parametrize("fallback", ["STEP_UP", "REVIEW", "DECLINE"])
@pytest.mark.parametrize(
    "when",
    [
        "100 / (history_count - 3) > 0",
        "9223372036854775807 - amount_minor * (history_count - 4) > 0",
        "merchant_id.matches(device_id)",
        "int(1e18 * double(history_count * history_count * 10)) > 0",
    ],
)
def test_a_rule_that_fails_answers_as_its_group_says(when: str, fallback: str) -> None:
    """Never an approval, never a hit, and the answer says that it is degraded."""
    compiled = load(when, "is_night", fallback=fallback)
    facts = msgspec.structs.replace(FACTS, device_id="(", merchant_id="m")
    values = compiled.features(profile_of(3), facts, LINE)  # type: ignore[arg-type] # helper is loose

    assessment = compiled.assess(values)

    assert assessment.outcome == fallback
    assert assessment.reasons == (CHECK_INCOMPLETE,)
    assert assessment.fired == ()
    assert assessment.degraded
    trace, other = compiled.explain(values)
    assert (trace.result, other.result) == ("ERROR", "MISS")
    assert trace.error


def test_one_failing_rule_leaves_the_others_alone() -> None:
    compiled = load("100 / (history_count - 3) > 0", "amount_minor == 500", "amount_minor == 501")
    values = compiled.features(profile_of(3), FACTS, LINE)  # type: ignore[arg-type] # helper is loose

    assessment = compiled.assess(values)

    assert assessment.fired == ("rule-1",)
    assert assessment.degraded


def test_a_rule_the_compiler_cannot_translate_decides_all_the_same() -> None:
    compiled = load("currency.matches('^E[UW]R$')", "string(amount_minor) == '501'")
    values = compiled.features(EMPTY_PROFILE, FACTS, LINE)

    assert compiled.left_to_engine == (0, 1)
    assert compiled.assess(values).fired == ("rule-0",)


def test_an_explanation_shows_each_rule_and_what_it_looked_at() -> None:
    compiled = load("amount_minor > 400 && device_id in blocked_devices || is_night", "count_1h >= 1")
    values = compiled.features(profile_of(2), FACTS, LINE)  # type: ignore[arg-type] # helper is loose

    first, second = compiled.explain(values)

    assert (first.rule_id, first.result) == ("rule-0", "MISS")
    assert first.features == (
        ("amount_minor", 500),
        ("device_id", ""),
        ("blocked_devices", 1),
        ("is_night", False),
    )
    assert (second.result, second.features) == ("HIT", (("count_1h", 2),))
    assert second.when == "count_1h >= 1"


def test_the_hash_is_of_the_text_as_written() -> None:
    source = ruleset_source(when="is_night")

    assert load_ruleset(source).hash == hashlib.sha256(source.encode()).hexdigest()
    assert load_ruleset(source + "\n# a remark\n").hash != load_ruleset(source).hash


def test_reason_texts_are_found_by_language_and_never_missing(default: CompiledRuleset) -> None:
    assert default.reason_text("DEVICE_NEW", "en").startswith("You are using a new phone")
    assert default.reason_text("DEVICE_NEW", "zh-CN") == default.reason_text("DEVICE_NEW", "zh-Hans")
    assert default.reason_text("DEVICE_NEW", "fr") == default.reason_text("DEVICE_NEW", "en-GB")
    assert default.reason_text(CHECK_INCOMPLETE, "zh")
    assert default.reason_text("NO_SUCH_REASON", "") == "This purchase could not be approved."


def test_the_shipped_rules_run_in_generated_code_alone(default: CompiledRuleset) -> None:
    assert default.left_to_engine == ()
    assert default.feature_names[: len(FEATURES)] == tuple(FEATURES)


def test_the_shipped_texts_are_in_their_languages(default: CompiledRuleset) -> None:
    for code, text in default.ruleset.reasons.items():
        assert text["en"].isascii(), code
        assert any("\u4e00" <= character <= "\u9fff" for character in text["zh-Hans"]), code


@settings(deadline=None)
@given(facts_of_any_kind)
def test_nothing_but_the_limit_speaks_on_a_first_purchase(default: CompiledRuleset, facts: PurchaseFacts) -> None:
    plain = msgspec.structs.replace(facts, merchant_category="", amount_minor=min(facts.amount_minor, 1000))
    values = default.features(EMPTY_PROFILE, plain, LINE)

    assert default.assess(values) == CLEAN


@settings(deadline=None)
@given(pasts, facts_of_any_kind, lines)
def test_the_shipped_rules_never_fail_and_agree_with_the_engine(
    default: CompiledRuleset, past: list[tuple[PurchaseFacts, bool]], facts: PurchaseFacts, line: LineFacts
) -> None:
    values = default.features(remembered(past), facts, line)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(values))

    assessment = default.assess(values)
    engine = [default._checker.run(checked.program, values) for checked in default._checked]

    assert not assessment.degraded
    assert default.assess(again) == assessment
    assert (
        tuple(rule.id for rule, verdict in zip(default.ruleset.rules, engine, strict=True) if verdict.hit)
        == assessment.fired
    )


def test_several_threads_get_the_answers_of_one(default: CompiledRuleset) -> None:
    compiled = load("100 / (history_count - 3) > 0", "currency.matches('E.*')", "amount_minor > 400")
    profiles = [profile_of(count) for count in range(8)]

    def answers(_: int) -> list[object]:
        return [compiled.assess(compiled.features(profile, FACTS, LINE)) for profile in profiles]  # type: ignore[arg-type] # helper is loose

    with ThreadPoolExecutor(4) as pool:
        rounds = list(pool.map(answers, range(200)))

    assert all(given == rounds[0] for given in rounds)
