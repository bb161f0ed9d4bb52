"""`riskgate rules check`: a ruleset is looked at as `serve` would, and nothing is served."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from riskgate_server.cli import main
from riskgate_server.cli.init import initialise
from tests.acceptance.deployment import FREE_PORTS
from tests.unit.rules.documents import ruleset_document


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["rules", "check", *map(str, arguments)])


def test_a_sound_ruleset_is_told_with_version_and_hash(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(ruleset_document("amount_minor > 1"), sort_keys=False))
    told = hashlib.sha256(rules.read_bytes()).hexdigest()

    result = check(rules)

    assert result.exit_code == 0
    assert result.output.startswith(f"{rules} may be served: ")
    assert result.output.endswith(f"1 rule, hash {told}\n")
    assert json.loads(check(rules, "--json").stdout)["hash"] == told


def test_faults_are_told_as_serve_tells_them(tmp_path: Path) -> None:
    initialise(tmp_path / "data", names=(), tenant="default")
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(ruleset_document("amount_minr > 1", "currency > 1"), sort_keys=False))

    result = check(rules)
    serve = ["serve", "--data", str(tmp_path / "data"), "--ruleset", str(rules), *FREE_PORTS]
    served = CliRunner().invoke(main, serve)

    assert (result.exit_code, result.output) == (1, served.output)
    assert len(result.output.splitlines()) == 3


def test_a_file_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    result = check(tmp_path / "none.yaml")

    assert (result.exit_code, result.output) == (1, f"Error: {tmp_path}/none.yaml: No such file or directory\n")
