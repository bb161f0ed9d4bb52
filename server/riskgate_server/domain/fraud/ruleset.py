"""A ruleset as data: what it may contain, in which bounds, and everything that is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, TypeVar, get_args

import msgspec

from riskgate_server.domain.errors import FieldViolation, InvalidRequest
from riskgate_server.domain.fraud.features import FEATURES
from riskgate_server.domain.fraud.windows import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    Aggregate,
    Kind,
    WindowSpec,
    window,
)

_Choice = TypeVar("_Choice", bound=str)

Outcome = Literal["APPROVE", "STEP_UP", "REVIEW", "DECLINE"]
APPROVE: Final = "APPROVE"
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
"""In rising severity."""

SCORE_MAX: Final = 1000
LANGUAGES: Final = ("en", "zh-Hans")
"""Every reason is written in each of these."""

RULES_MAX: Final = 1_000
WINDOWS_MAX: Final = 64
LISTS_MAX: Final = 32
GROUPS_MAX: Final = 32
LIST_MEMBERS_MAX: Final = 10_000
EXPRESSION_CHARACTERS_MAX: Final = 2_000
TEXT_CHARACTERS_MAX: Final = 300
PROBLEMS_MAX: Final = 50
"""A ruleset with more mistakes than this is reported up to here."""

_RULE_ID: Final = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
_REASON: Final = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*")
_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.\-]*")
_SPAN: Final = re.compile(r"([1-9][0-9]{0,3})([mhd])")
_UNITS_US: Final = {"m": MINUTE_US, "h": HOUR_US, "d": DAY_US}
_NAME_CHARACTERS_MAX: Final = 64
_RESERVED: Final = frozenset(
    (
        *(
            "as",
            "break",
            "const",
            "continue",
            "else",
            "false",
            "for",
            "function",
            "if",
            "import",
            "in",
            "let",
        ),
        *("loop", "null", "package", "namespace", "return", "true", "var", "void", "while"),
        *("int", "uint", "double", "bool", "string", "bytes", "list", "map", "type", "dyn"),
        *("size", "timestamp", "duration"),
    )
)
"""Words CEL keeps for itself or already gives a meaning."""


class Group(msgspec.Struct, frozen=True, gc=False):
    """Rules that share a purpose, and what is answered when one of them cannot be evaluated."""

    name: str
    fallback: Outcome
    """Never APPROVE: a broken rule must not let a purchase pass in silence."""
    why: str


class Rule(msgspec.Struct, frozen=True, gc=False):
    """One condition and what follows from it."""

    id: str
    reason_code: str
    when: str
    """CEL, of type bool, over the features, windows and lists of its ruleset."""
    outcome: Outcome
    """APPROVE only adds its weight to the score."""
    weight: int
    suspend: bool
    group: str
    why: str
    """One line for the analyst."""
    text: dict[str, str]
    """Language → sentence for the customer; the same for all rules with this reason code."""


class Ruleset(msgspec.Struct, frozen=True, gc=False):
    """Everything a ruleset says, checked in form but not yet in its expressions."""

    name: str
    version: str
    hash: str
    """SHA-256 of the source text, in hex."""
    groups: dict[str, Group]
    lists: dict[str, tuple[str, ...]]
    windows: tuple[WindowSpec, ...]
    reasons: dict[str, dict[str, str]]
    rules: tuple[Rule, ...]


class RulesetInvalid(InvalidRequest):
    """A ruleset that must not be loaded; `violations` name each place and what is wrong there."""

    def __init__(self, *violations: FieldViolation) -> None:
        first = f": {violations[0].field}: {violations[0].description}" if violations else ""
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__("RULESET_INVALID", f"the ruleset is invalid{first}{more}", *violations)


def parse_ruleset(document: object, source_hash: str) -> Ruleset:
    """
    Turn a parsed document into a `Ruleset`, refusing anything it does not know.

    Raises:
        RulesetInvalid: with the path of everything that is wrong, such as `rules[3].outcome`.
    """
    return _Reader().ruleset(document, source_hash)


class _Reader:
    """Collects problems instead of stopping at the first, as an author wants to see them all."""

    def __init__(self) -> None:
        self.problems: list[FieldViolation] = []

    def ruleset(self, document: object, source_hash: str) -> Ruleset:
        top = self.mapping(
            document,
            "",
            required=("name", "version", "groups", "reasons", "rules"),
            optional=("lists", "windows"),
        )
        name = self.name(top.get("name"), "name", _NAME)
        version = self.name(top.get("version"), "version", _VERSION)
        groups = self.groups(top.get("groups"))
        lists = self.lists(top.get("lists", {}))
        windows = self.windows(top.get("windows", []), lists)
        reasons = self.reasons(top.get("reasons"))
        rules = self.rules(top.get("rules"), groups, reasons)
        used = {rule.reason_code for rule in rules}
        for code in reasons:
            if code not in used:
                self.problem(f"reasons.{code}", "no rule uses this reason")
        if self.problems:
            raise RulesetInvalid(*self.problems)
        return Ruleset(name, version, source_hash, groups, lists, windows, reasons, tuple(rules))

    def groups(self, value: object) -> dict[str, Group]:
        groups: dict[str, Group] = {}
        for key, body in self.named(value, "groups", _NAME, GROUPS_MAX).items():
            path = f"groups.{key}"
            fields = self.mapping(body, path, required=("fallback", "why"))
            fallback = self.outcome(fields.get("fallback"), f"{path}.fallback")
            if fallback == APPROVE:
                self.problem(f"{path}.fallback", "a rule that fails must not approve: STEP_UP, REVIEW or DECLINE")
            groups[key] = Group(key, fallback, self.text(fields.get("why"), f"{path}.why"))
        return groups

    def lists(self, value: object) -> dict[str, tuple[str, ...]]:
        lists: dict[str, tuple[str, ...]] = {}
        for key, body in self.named(value, "lists", _NAME, LISTS_MAX).items():
            path = f"lists.{key}"
            self.free_name(key, path, ())
            members = self.sequence(body, path, LIST_MEMBERS_MAX)
            for position, member in enumerate(members):
                if not isinstance(member, str):
                    self.problem(f"{path}[{position}]", f"expected text, got {_kind(member)}; quote it")
            lists[key] = tuple(member for member in members if isinstance(member, str))
        return lists

    def windows(self, value: object, lists: Mapping[str, object]) -> tuple[WindowSpec, ...]:
        windows: dict[str, WindowSpec] = {}
        for position, body in enumerate(self.sequence(value, "windows", WINDOWS_MAX)):
            path = f"windows[{position}]"
            fields = self.mapping(body, path, required=("name", "of", "aggregate", "span"))
            name = self.name(fields.get("name"), f"{path}.name", _NAME)
            self.free_name(name, f"{path}.name", (*lists, *windows))
            of = self.choice(fields.get("of"), f"{path}.of", get_args(Kind))
            aggregate = self.choice(fields.get("aggregate"), f"{path}.aggregate", get_args(Aggregate))
            span = fields.get("span")
            match = _SPAN.fullmatch(span) if isinstance(span, str) else None
            try:
                span_us = int(match[1]) * _UNITS_US[match[2]] if match else 0
                spec = window(name=name, of=of, aggregate=aggregate, span_us=span_us)
            except ValueError as error:
                self.problem(f"{path}.span", str(error))
            else:
                windows[name] = spec
        return tuple(windows.values())

    def reasons(self, value: object) -> dict[str, dict[str, str]]:
        reasons: dict[str, dict[str, str]] = {}
        for code, body in self.named(value, "reasons", _REASON, RULES_MAX).items():
            path = f"reasons.{code}"
            fields = self.mapping(body, path, required=LANGUAGES)
            reasons[code] = {language: self.text(fields.get(language), f"{path}.{language}") for language in LANGUAGES}
        return reasons

    def rules(self, value: object, groups: Mapping[str, Group], reasons: Mapping[str, dict[str, str]]) -> list[Rule]:
        rules: list[Rule] = []
        seen: set[str] = set()
        for position, body in enumerate(self.sequence(value, "rules", RULES_MAX)):
            path = f"rules[{position}]"
            fields = self.mapping(
                body,
                path,
                required=("id", "reason_code", "group", "outcome", "weight", "when", "why"),
                optional=("suspend",),
            )
            rule_id = self.name(fields.get("id"), f"{path}.id", _RULE_ID)
            if rule_id in seen:
                self.problem(f"{path}.id", f"{rule_id!r} is taken by an earlier rule")
            seen.add(rule_id)
            code = self.name(fields.get("reason_code"), f"{path}.reason_code", _REASON)
            if code and code not in reasons:
                self.problem(f"{path}.reason_code", f"{code} is not declared under reasons")
            group = self.name(fields.get("group"), f"{path}.group", _NAME)
            if group and group not in groups:
                self.problem(f"{path}.group", f"{group!r} is not declared under groups")
            weight = fields.get("weight")
            if type(weight) is not int or not 0 <= weight <= SCORE_MAX:
                self.problem(f"{path}.weight", f"expected a whole number from 0 to {SCORE_MAX}")
                weight = 0
            suspend = fields.get("suspend", False)
            outcome = self.outcome(fields.get("outcome"), f"{path}.outcome")
            if not isinstance(suspend, bool):
                self.problem(f"{path}.suspend", f"expected true or false, got {_kind(suspend)}")
            elif suspend and outcome != "DECLINE":
                self.problem(f"{path}.suspend", "a rule that suspends the line must DECLINE")
            rules.append(
                Rule(
                    id=rule_id,
                    reason_code=code,
                    when=self.text(fields.get("when"), f"{path}.when", EXPRESSION_CHARACTERS_MAX),
                    outcome=outcome,
                    weight=weight,
                    suspend=suspend is True,
                    group=group,
                    why=self.text(fields.get("why"), f"{path}.why"),
                    text=reasons.get(code, {}),
                )
            )
        return rules

    def problem(self, path: str, description: str) -> None:
        self.problems.append(FieldViolation(path or "(top)", description))
        if len(self.problems) >= PROBLEMS_MAX:
            raise RulesetInvalid(*self.problems)

    def mapping(
        self, value: object, path: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, object]:
        if not isinstance(value, dict):
            self.problem(path, f"expected a mapping, got {_kind(value)}")
            return {}
        dot = f"{path}." if path else ""
        for key in value:
            if key not in required and key not in optional:
                self.problem(f"{dot}{str(key)[:_NAME_CHARACTERS_MAX]}", "unknown key")
        for key in required:
            if key not in value:
                self.problem(f"{dot}{key}", "missing")
        # Only the missing ones differ: readers below report None as a wrong type, once is enough.
        return {key: value[key] for key in value if key in required or key in optional}

    def named(self, value: object, path: str, pattern: re.Pattern[str], most: int) -> dict[str, object]:
        if not isinstance(value, dict):
            if value is not None:
                self.problem(path, f"expected a mapping, got {_kind(value)}")
            return {}
        if len(value) > most:
            self.problem(path, f"{len(value)} entries, at most {most} are allowed")
            return {}
        named: dict[str, object] = {}
        for key, body in value.items():
            checked = self.name(key, f"{path}.{str(key)[:_NAME_CHARACTERS_MAX]}", pattern)
            if checked:
                named[checked] = body
        return named

    def sequence(self, value: object, path: str, most: int) -> list[object]:
        if not isinstance(value, list):
            if value is not None:
                self.problem(path, f"expected a list, got {_kind(value)}")
            return []
        if len(value) > most:
            self.problem(path, f"{len(value)} entries, at most {most} are allowed")
            return []
        return value

    def name(self, value: object, path: str, pattern: re.Pattern[str]) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            self.problem(path, f"expected text, got {_kind(value)}; quote it")
            return ""
        if len(value) > _NAME_CHARACTERS_MAX or not pattern.fullmatch(value):
            self.problem(path, f"must match {pattern.pattern} and have at most {_NAME_CHARACTERS_MAX} characters")
            return ""
        return value

    def free_name(self, name: str, path: str, taken: tuple[str, ...]) -> None:
        if name in FEATURES or name in taken or name in _RESERVED:
            self.problem(path, f"{name!r} is taken")

    def text(self, value: object, path: str, most: int = TEXT_CHARACTERS_MAX) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            self.problem(path, f"expected text, got {_kind(value)}")
            return ""
        if not value.strip():
            self.problem(path, "must not be empty")
        elif len(value) > most:
            self.problem(path, f"{len(value)} characters, at most {most} are allowed")
        return value.strip()

    def outcome(self, value: object, path: str) -> Outcome:
        chosen: Outcome = self.choice(value, path, OUTCOMES)
        return chosen

    def choice(self, value: object, path: str, choices: tuple[_Choice, ...]) -> _Choice:
        for choice in choices:
            if value == choice and isinstance(value, str):
                return choice
        if value is not None:
            self.problem(path, f"expected one of {', '.join(str(choice) for choice in choices)}")
        return choices[-1]


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", type(None): "nothing"}
    names |= {str: "text", list: "a list", dict: "a mapping"}
    return names.get(type(value), type(value).__name__)
