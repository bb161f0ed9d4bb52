"""The page about proofs says what the bounds are."""

from __future__ import annotations

import re

import msgspec

from riskgate_server.domain.calendar import SECOND_US
from riskgate_server.domain.credit.authorisation import STEP_UP_LIFETIME_US
from riskgate_server.domain.credit.line import SOFT_BLOCK_LIFETIME_US
from riskgate_server.domain.identity.limits import ProofLimits
from riskgate_server.engine.protection import BURST
from tests.style.paths import ROOT


def test_the_page_names_every_bound_with_its_value() -> None:
    page = (ROOT / "docs/identity.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", page, re.MULTILINE))
    bounds = {
        "step_up": STEP_UP_LIFETIME_US // SECOND_US,
        "burst": BURST,
        "burst_block": SOFT_BLOCK_LIFETIME_US // SECOND_US,
    }
    for field in msgspec.structs.fields(ProofLimits):
        divisor = SECOND_US if field.name.endswith("_us") else 1
        bounds[field.name.removesuffix("_us")] = field.default // divisor

    assert told == {name: f"{value:,}" for name, value in bounds.items()}
