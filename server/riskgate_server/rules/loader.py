"""Reads a ruleset's text; refuses it with the place of every mistake, or returns what decides by it."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Final, Literal

import msgspec
import yaml

from riskgate_server.domain.errors import FieldViolation
from riskgate_server.domain.fraud.decision import CHECK_INCOMPLETE, CLEAN, Assessment, combine
from riskgate_server.domain.fraud.features import FeatureValues, LineFacts, Value, feature_types, features
from riskgate_server.domain.fraud.profile import EMPTY_PROFILE, Profile, PurchaseFacts
from riskgate_server.domain.fraud.ruleset import PROBLEMS_MAX, Ruleset, RulesetInvalid, parse_ruleset
from riskgate_server.domain.fraud.windows import WindowReader
from riskgate_server.rules.checker import Checked, Checker, ExpressionInvalid
from riskgate_server.rules.compiler import compile_rules

SOURCE_CHARACTERS_MAX: Final = 512 * 1024
KEY_CHARACTERS_MAX: Final = 100
COMBINED_KEPT: Final = 1_000
"""Sets of rules that hit together whose assessment is kept."""

TOP: Final = "(top)"
"""Where a fault stands that is the whole text's."""

_UNREADABLE: Final = "it cannot be read"
_UNKNOWN_NAME: Final = re.compile(r"undeclared reference to '([^']*)'")
_NEAR: Final = 0.6
"""How alike two names must be to be taken for each other; difflib's own measure, 1 for equal."""
DEPTH_MAX: Final = 8
"""No part of a ruleset nests deeper; checked before the text is turned into values."""

_FALLBACK_TEXT: Final = {
    CHECK_INCOMPLETE: {
        "en": "We could not complete our checks for this purchase.",
        "zh-Hans": "我们暂时无法完成对这笔交易的核验。",
    },
}
_UNKNOWN_TEXT: Final = {
    "en": "This purchase could not be approved.",
    "zh-Hans": "这笔交易未能通过。",
}


_NO_PURCHASE: Final = PurchaseFacts(event_time_us=0, amount_minor=0, currency="XXX")
_NO_LINE: Final = LineFacts(limit_minor=0, available_minor=0, opened_us=0)


class RuleTrace(msgspec.Struct, frozen=True):
    """What one rule made of one set of feature values."""

    rule_id: str
    reason_code: str
    outcome: str
    weight: int
    when: str
    result: Literal["HIT", "MISS", "ERROR"]
    error: str
    """Why it could not be evaluated; empty unless `result` is ERROR."""
    features: tuple[tuple[str, Value], ...]
    """Name and value of every feature the expression mentions; a list is shown by its number of members."""
    why: str


class CompiledRuleset:
    """A ruleset ready to decide. Immutable; may be used from several threads."""

    def __init__(self, ruleset: Ruleset, checker: Checker, checked: Sequence[Checked]) -> None:
        types = feature_types(ruleset.windows)
        self.ruleset: Final = ruleset
        self.version: Final = ruleset.version
        self.hash: Final = ruleset.hash
        self.feature_names: Final = tuple(types)
        """Names of the values that `features` returns, in their order."""
        self._checker = checker
        self._checked = tuple(checked)
        self._windows = WindowReader(ruleset.windows)
        self._evaluate, self.left_to_engine = compile_rules([rule.tree for rule in checked], types, ruleset.lists)
        # Most purchases hit nothing, or the same few hints as many others.
        self._combined = lru_cache(maxsize=COMBINED_KEPT)(partial(combine, ruleset))

    def features(self, profile: Profile, facts: PurchaseFacts, line: LineFacts) -> FeatureValues:
        """Return what the rules will see of this purchase, in the order of `feature_names`."""
        return features(profile, facts, line, self._windows)

    def assess(self, values: Sequence[Value]) -> Assessment:
        """Decide from feature values alone: the same values always give the same answer."""
        hits, undecided = self._evaluate(values)
        if self.left_to_engine or undecided:
            hits, errors = self._ask_engine(hits, undecided, values)
            return combine(self.ruleset, hits, errors)
        return self._combined(tuple(hits)) if hits else CLEAN

    def explain(self, values: Sequence[Value]) -> tuple[RuleTrace, ...]:
        """Return what every rule made of these values and which of them it looked at."""
        hits, undecided = self._evaluate(values)
        hits, errors = self._ask_engine(hits, undecided, values)
        seen: dict[str, Value] = dict(zip(self.feature_names, values, strict=True))
        seen |= {name: len(members) for name, members in self.ruleset.lists.items()}
        return tuple(
            RuleTrace(
                rule_id=rule.id,
                reason_code=rule.reason_code,
                outcome=rule.outcome,
                weight=rule.weight,
                when=rule.when,
                result="ERROR" if position in errors else "HIT" if position in hits else "MISS",
                error=errors.get(position, ""),
                features=tuple((name, seen[name]) for name in checked.names if name in seen),
                why=rule.why,
            )
            for position, (rule, checked) in enumerate(zip(self.ruleset.rules, self._checked, strict=True))
        )

    def reason_text(self, code: str, language: str) -> str:
        """
        Return the sentence for the customer, in English where the language is not known.

        Chinese is matched by its first part, so that `zh`, `zh-CN` and `zh-Hans-CN` find `zh-Hans`.
        """
        texts = self.ruleset.reasons.get(code) or _FALLBACK_TEXT.get(code, _UNKNOWN_TEXT)
        return texts["zh-Hans" if language.lower().split("-")[0] == "zh" else "en"]

    def _ask_engine(
        self, hits: Sequence[int], undecided: Sequence[int], values: Sequence[Value]
    ) -> tuple[list[int], dict[int, str]]:
        final = list(hits)
        errors: dict[int, str] = {}
        for position in sorted((*undecided, *self.left_to_engine)):
            verdict = self._checker.run(self._checked[position].program, tuple(values))
            if verdict.hit is None:
                errors[position] = verdict.error
            elif verdict.hit:
                final.append(position)
        return final, errors


def load_ruleset(source: str) -> CompiledRuleset:
    """
    Parse, check and compile a ruleset.

    Raises:
        RulesetInvalid: naming path, line and, within expressions, line and column of everything wrong. What is wrong
            in form hides what is wrong in expressions, which cannot be read without it.
    """
    if len(source) > SOURCE_CHARACTERS_MAX:
        description = f"{len(source)} characters, at most {SOURCE_CHARACTERS_MAX} are allowed"
        raise RulesetInvalid(FieldViolation(TOP, description, 1))
    document, lines = _read_yaml(source)
    try:
        ruleset = parse_ruleset(document, hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest())
    except RulesetInvalid as error:
        raise RulesetInvalid(*[_with_line(violation, lines) for violation in error.violations]) from None
    known = (*feature_types(ruleset.windows), *ruleset.lists)
    checker = Checker(feature_types(ruleset.windows), ruleset.lists)
    probe = features(EMPTY_PROFILE, _NO_PURCHASE, _NO_LINE, WindowReader(ruleset.windows))
    checked: list[Checked] = []
    violations: list[FieldViolation] = []
    for position, rule in enumerate(ruleset.rules):
        path = f"rules[{position}].when"
        try:
            expression = checker.check(rule.when)
        except ExpressionInvalid as error:
            violations.append(_with_line(FieldViolation(path, f"rule {rule.id}: {_in_words(error, known)}"), lines))
        else:
            verdict = checker.run(expression.program, probe)
            if verdict.hit is None:
                description = f"rule {rule.id}: fails on a first purchase: {verdict.error}"
                violations.append(_with_line(FieldViolation(path, description), lines))
            checked.append(expression)
        if len(violations) >= PROBLEMS_MAX:
            break
    if violations:
        raise RulesetInvalid(*violations)
    return CompiledRuleset(ruleset, checker, checked)


def declared_version(source: str) -> tuple[str, str] | None:
    """Return the name and version a ruleset gives itself; None where the text cannot be read any more."""
    try:
        document, _ = _read_yaml(source)
    except RulesetInvalid:
        return None
    if not isinstance(document, dict):
        return None
    return str(document.get("name")), str(document.get("version"))


class _Constructor(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # C where it is built
    """Plain YAML data, as safe_load has it."""


def _read_yaml(source: str) -> tuple[object, Mapping[str, int]]:
    """Return the document and, per path, the line it stands on."""
    lines: dict[str, int] = {}
    try:
        _guard(source)
        loader = _Constructor(source)
        try:
            root = loader.get_single_node()
            if root is None:
                return None, lines
            _record(root, "", lines)
            return loader.construct_document(root), lines
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        text = str(getattr(error, "problem", None) or "").strip() or _UNREADABLE
        line, place = (mark.line + 1, f"column {mark.column + 1}: ") if mark else (1, "")
        raise RulesetInvalid(FieldViolation(TOP, f"not valid YAML: {place}{text}", line)) from None


def _guard(source: str) -> None:
    """
    Refuse what plain data has no use for: deep nesting, aliases, tags.

    Runs over the flat stream of events first, because the composer behind it recurses in C and ends
    the process on a text that is nested deeply enough.
    """
    depth = 0
    for event in yaml.parse(source, Loader=_Constructor):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        refused = ""
        if depth > DEPTH_MAX:
            refused = f"nested deeper than {DEPTH_MAX}"
        elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            refused = "anchors and aliases are not allowed"
        elif getattr(event, "tag", None):
            refused = "tags are not allowed"
        if refused:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise RulesetInvalid(FieldViolation(TOP, refused, line))


def _record(node: yaml.Node, path: str, lines: dict[str, int]) -> None:
    """Note the line of every path; refuse repeated keys, of which YAML would keep the last in silence."""
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            _record(child, f"{path}[{position}]", lines)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, child in node.value:
            name = str(key.value)[:KEY_CHARACTERS_MAX] if isinstance(key, yaml.ScalarNode) else ""
            here = f"{path}.{name}" if path else name
            if name in keys or not name:
                problem = "the key is repeated" if name else "a key must be plain text"
                raise RulesetInvalid(FieldViolation(here or TOP, problem, key.start_mark.line + 1))
            keys.add(name)
            _record(child, here, lines)


def _with_line(violation: FieldViolation, lines: Mapping[str, int]) -> FieldViolation:
    path = violation.field
    while path and path not in lines:
        # A missing key has no line of its own: its mapping has.
        path = path.rpartition(".")[0] if "." in path else ""
    return msgspec.structs.replace(violation, line=lines.get(path, 1))


def _in_words(error: ExpressionInvalid, known: Sequence[str]) -> str:
    """Write an expression's fault, and for a name nobody knows the nearest that is known."""
    unknown = _UNKNOWN_NAME.search(error.message)
    if unknown is None:
        return str(error)
    near = difflib.get_close_matches(unknown[1], known, n=1, cutoff=_NEAR)
    hint = f"; did you mean {near[0]}?" if near else "; docs/rules.md lists the features there are"
    place = str(error).removesuffix(error.message)
    return f"{place}nothing is called {unknown[1]}{hint}"
