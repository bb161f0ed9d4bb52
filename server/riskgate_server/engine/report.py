"""What verification finds."""

from __future__ import annotations

from typing import Final

import msgspec

from riskgate_server.engine.lanes import LaneReport

FAULTS_MAX: Final = 100
"""Faults that are told one by one; a store with more is broken as a whole."""


class Report(msgspec.Struct):
    """What verification found. Clean when `faults` is empty."""

    customers: int = 0
    entries: int = 0
    batches: int = 0
    heads: int = 0
    erased: int = 0
    outstanding_minor: dict[str, int] = msgspec.field(default_factory=dict)
    held_minor: dict[str, int] = msgspec.field(default_factory=dict)
    lanes: list[LaneReport] = msgspec.field(default_factory=list)
    faults: list[str] = msgspec.field(default_factory=list)

    def fault(self, text: str) -> None:
        """Note a fault."""
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)
