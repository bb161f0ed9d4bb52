"""The README's ten lines do what the README says, against the server its commands start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.process


def _riskgate(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "riskgate_server", *arguments]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int, str]]:
    """A server made by the README's commands: where, its key port, and the shop's key."""
    data = tmp_path / "data"
    subprocess.run(_riskgate("init", str(data)), check=True, capture_output=True)
    (line,) = re.findall(r"^riskgate (callers add shop .*)$", README, re.MULTILINE)
    command = [str(data) if word == "data" else word for word in line.split()]
    added = subprocess.run(_riskgate(*command, "--json"), check=True, capture_output=True, text=True)
    ports = ("--key-port", "0", "--certificate-port", "0", "--metrics-port", "-1")
    with subprocess.Popen(_riskgate("serve", "--data", str(data), *ports), stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        port = json.loads(server.stderr.readline())["key_port"]
        try:
            yield tmp_path, port, json.loads(added.stdout)["key"]["api_key"]
        finally:
            server.terminate()
            server.communicate(timeout=30)


def test_the_example_works_as_pasted(served: tuple[Path, int, str]) -> None:
    where, port, key = served
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

    ran = subprocess.run(
        [sys.executable, "-c", example.replace("localhost:7444", f"localhost:{port}")],
        cwd=where,
        env={**os.environ, "SHOP_KEY": key},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stderr == ""
    assert ran.stdout == "APPROVE CNY 4,871.00\n"


def test_every_target_it_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert set(re.findall(r"\bmake ([a-z]+)", README)) - {"are"} <= targets
