"""Finds `buf`, which speaks gRPC as a client nobody here wrote."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

import pytest

from tests.style.paths import load_script

BUF: Final[str] = load_script("protos").BUF


def find_buf() -> str:
    """Return where the program is; skip where it is not: it comes by npm, which is not everywhere."""
    if shutil.which("npx") is None:
        pytest.skip("npx is not installed")
    command = ["npx", "--yes", "--prefer-offline", "--package", BUF, "--call", "command -v buf"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("buf did not come by npx in time")
    if found.returncode:
        pytest.skip("buf cannot be fetched by npx")
    return found.stdout.strip()
