"""Every attack of the table has a test that shows its answer, and no test shows one that is not in the table."""

from __future__ import annotations

import subprocess
import sys

from tests.rpc.attacks import ATTACKS
from tests.style.paths import ROOT


def test_every_attack_has_a_test_that_shows_what_it_meets() -> None:
    # Apart from this run: what is collected must not depend on which tests were asked for.
    listed = subprocess.run(
        [sys.executable, "-m", "tests.rpc.attacks"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (listed.stderr, listed.returncode) == ("", 0)
    assert all(f"{name}: " in listed.stdout for name in ATTACKS)
