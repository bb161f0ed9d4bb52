"""Reads the file of a ruleset: what is wrong with it is told in lines, whoever asks."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from riskgate_server.domain.fraud.ruleset import RulesetInvalid
from riskgate_server.rules.loader import CompiledRuleset, load_ruleset


class RulesetRefused(Exception):
    """The ruleset cannot be read or must not be loaded: all its faults, one per line, each with file and line."""


def read_ruleset(path: str, named: str = "") -> tuple[CompiledRuleset, str]:
    """
    Return the ruleset to decide by, compiled, and its source text; an empty path is the built-in one.

    A file that cannot be read is told with `named` in front: where it was named.

    Raises:
        RulesetRefused: with everything that is wrong.
    """
    built_in = files("riskgate_server") / "rulesets" / "default.yaml"
    try:
        source = Path(path).read_text(encoding="utf-8") if path else built_in.read_text(encoding="utf-8")
    except OSError as error:
        raise RulesetRefused(f"{named}{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RulesetRefused(f"{named}{path}: not UTF-8 text (byte {error.start})") from error
    try:
        return load_ruleset(source), source
    except RulesetInvalid as error:
        faults = [f"{path or built_in}:{each.line}: {each.field}: {each.description}" for each in error.violations]
        raise RulesetRefused("\n".join(["the ruleset is refused", *faults])) from error
