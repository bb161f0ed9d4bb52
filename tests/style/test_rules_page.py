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

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/scenarios"],
        cwd=ROOT,
        env={**os.environ, "RULESET": str(rules), "SCENARIOS": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^7 passed", done.stdout, re.MULTILINE), done.stdout


def test_every_key_a_ruleset_may_have_is_explained() -> None:
    ruleset = parse_ruleset(safe_load(RULESET), "")
    whole = load_ruleset(RULESET).ruleset
    keys = {*safe_load(RULESET), *(key for rule in safe_load(RULESET)["rules"] for key in rule)}

    assert ruleset.rules == whole.rules
    assert {key for key in keys if not re.search(rf"^\| .*`{key}`.* \|", PAGE, re.MULTILINE)} == set()
