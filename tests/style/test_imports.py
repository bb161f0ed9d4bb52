from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.style.paths import ROOT


def test_every_import_keeps_the_rules_of_the_rooms() -> None:
    command = Path(sys.executable).parent / "lint-imports"

    done = subprocess.run(
        [command, "--config", "pyproject.toml"], cwd=ROOT, check=False, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
