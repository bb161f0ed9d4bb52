from __future__ import annotations

import re
import tomllib

import pytest

from tests.style.paths import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["requirements.in", "requirements.lock", "pyproject.toml"])
def test_no_file_says_where_packages_come_from(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")

    assert not re.search(r"https?://|git\+|file:|--(extra-)?index-url|--find-links|--trusted-host", text)


def test_every_locked_package_is_exact_and_hashed() -> None:
    requirements = LOCK.replace("\\\n", " ").strip().splitlines()

    assert requirements
    for requirement in requirements:
        assert re.match(r"^[a-z0-9._-]+==\S+ ", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_everything_the_distribution_needs_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = {line.split("==")[0] for line in LOCK.splitlines() if "==" in line and not line.startswith(" ")}

    needed = {re.split(r"[ <>=!~\[;]", requirement)[0].lower() for requirement in project["dependencies"]}

    assert needed <= locked
