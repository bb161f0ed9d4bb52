"""The page about proofs says what the settings are."""

from __future__ import annotations

import re

import msgspec

from riskgate_server.domain.identity.limits import ProofLimits
from tests.style.paths import ROOT


def test_the_page_names_every_setting_with_its_value() -> None:
    page = (ROOT / "docs/identity.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", page, re.MULTILINE))
    settings = {}
    for field in msgspec.structs.fields(ProofLimits):
        divisor = 1_000_000 if field.name.endswith("_us") else 1
        settings[field.name.removesuffix("_us")] = f"{field.default // divisor:,}"

    assert told == settings
