"""The commands of scripts/README.md do what it says, as pasted into a shell in the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.deployment import environment, free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.process


def test_a_history_is_streamed_as_pasted(tmp_path: Path) -> None:
    (commands,) = re.findall(r"## Streaming a history\n.*?```\n(.*?)```", README, re.DOTALL)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    for port in ("7453", "7454"):
        assert port in commands
        commands = commands.replace(port, str(free_port()))
    # The server is the shell's only job; it ends with the paste.
    paste = f"set -euo pipefail\ntrap 'kill $! && wait $!' EXIT\n{commands}"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    done = subprocess.run(
        ["bash", "-c", paste],
        cwd=tmp_path,
        env=environment() | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 purchases answered" in done.stdout
    assert "every row has exactly one decision" in done.stdout
