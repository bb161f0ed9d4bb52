"""
Published test vectors, which lie outside the checkout: in $RISKGATE_VECTORS, or in `shared/vectors` beside it.

Nobody here wrote them, so nobody here bent them. Tests that need them skip, saying so, where they are absent.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest

from tests.style.paths import ROOT

FOLDER: Final = Path(os.environ.get("RISKGATE_VECTORS") or ROOT.parent / "shared" / "vectors")

published = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no published vectors in {FOLDER} ($RISKGATE_VECTORS)")


def load(name: str) -> Any:
    """Return a JSON file of vectors; an empty object where they are absent, so that a module can be collected."""
    path = FOLDER / name
    if not path.is_file():
        return {}
    # One of them has lines of comment, which JSON has not.
    lines = path.read_text().splitlines()
    return json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))


def files(pattern: str) -> list[Path]:
    """Return the files of that pattern, in order of their names."""
    return sorted(FOLDER.glob(pattern))


def wycheproof(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the cases of one file of Wycheproof, each with its group."""
    groups = load(f"wycheproof/{name}.json").get("testGroups", [])
    return [(group, case) for group in groups for case in group["tests"]]
