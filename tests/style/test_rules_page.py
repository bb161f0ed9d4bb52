"""What docs/rules.md says of rulesets is so: its features are those there are, its ruleset and scenarios work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from yaml import safe_load

from riskgate_server.domain.fraud.features import FEATURES
from riskgate_server.domain.fraud.ruleset import parse_ruleset
from riskgate_server.rules.loader import load_ruleset
from tests.style.paths import ROOT

PAGE = (ROOT / "docs" / "rules.md").read_text("utf-8")
RULESET, SCENARIOS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_features_are_those_there_are() -> None:
    (table,) = re.findall(r"\| feature \| type \| meaning \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE)

    assert table.splitlines() == [f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in FEATURES.items()]


@pytest.mark.process
def test_its_scenarios_hold_for_its_ruleset(tmp_path: Path) -> None:
    rules, folder = tmp_path / "rules.yaml", tmp_path / "scenarios"
    folder.mkdir()
    rules.write_text(RULESET, "utf-8")
    (folder / "cases.yaml").write_text(SCENARIOS, "utf-8")

    code, said = tried(rules, folder)

    assert code == 0, said
    assert re.search(r"^7 passed", said, re.MULTILINE), said


def tried(ruleset: Path, folder: Path) -> tuple[int, str]:
    """What `make scenarios` comes to."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/scenarios"],
        cwd=ROOT,
        env={**os.environ, "RULESET": str(ruleset), "SCENARIOS": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nihgt: {}", "nihgt: the ruleset has no such rule; did you mean night?"),
        ("[]", "not a mapping from rules to their scenarios"),
        ("{", "no YAML"),
        ("night: {purchase: {after: 1h}}", "night: it lacks expect and below"),
        (None, "no scenarios, which are .yaml files"),
    ],
)
def test_scenarios_that_are_none_are_refused_in_a_line(tmp_path: Path, text: str | None, told: str) -> None:
    rules, folder = tmp_path / "rules.yaml", tmp_path / "scenarios"
    folder.mkdir()
    rules.write_text(RULESET, "utf-8")
    if text is not None:
        (folder / "cases.yaml").write_text(text, "utf-8")

    code, said = tried(rules, folder)

    assert code != 0
    assert f"{told}\n" in said or f"{told}: " in said
    assert ".py:" not in said


@pytest.mark.process
def test_a_ruleset_that_is_none_is_refused_to_who_tries_it_as_by_serve(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(RULESET.replace("version:", "versoin:", 1), "utf-8")

    absent, refused = tried(tmp_path / "none.yaml", tmp_path)[1], tried(bad, tmp_path)[1]

    assert f"\n{tmp_path}/none.yaml: No such file or directory\n" in absent
    assert f"\nthe ruleset is refused\n{bad}:" in refused
    assert ".py:" not in absent + refused


def test_every_key_a_ruleset_may_have_is_explained() -> None:
    ruleset = parse_ruleset(safe_load(RULESET), "")
    whole = load_ruleset(RULESET).ruleset
    keys = {*safe_load(RULESET), *(key for rule in safe_load(RULESET)["rules"] for key in rule)}

    assert ruleset.rules == whole.rules
    assert {key for key in keys if not re.search(rf"^\| .*`{key}`.* \|", PAGE, re.MULTILINE)} == set()
