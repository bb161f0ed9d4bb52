"""What follows a purchase: when it is captured, given up or given back, and when customers repay."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from scripts.streaming.mapping import Mapping, Repayment
from scripts.streaming.purchase import Purchase

_HOUR_US: Final = 3_600_000_000


class Fate(Enum):
    """What the merchant does with an approved purchase."""

    CAPTURE = auto()
    CAPTURE_LATER = auto()
    VOID = auto()
    REFUND = auto()
    """Captured, then given back in full."""
    LEAVE = auto()
    """The hold lapses."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What follows every purchase of a stream."""

    time_zone: str
    fate: Callable[[Purchase], Fate]
    delay_us: int = 0
    """How long after the purchase CAPTURE_LATER comes, in the data's time."""
    repayment: Repayment | None = None
    line_id: str = "main"
    actor_id: str = "stream-transactions"

    def next_due_us(self, at_us: int) -> int:
        """Return when the next repayment falls due after an instant; 0 when customers do not repay."""
        if self.repayment is None:
            return 0
        zone = ZoneInfo(self.time_zone)
        local = datetime.fromtimestamp(at_us / 1_000_000, UTC).astimezone(zone)
        due = local.replace(day=self.repayment.day_of_month, hour=0, minute=0, second=0, microsecond=0, fold=0)
        if due <= local:
            due = (due.replace(day=28) + timedelta(days=4)).replace(day=self.repayment.day_of_month)
        return int(due.timestamp()) * 1_000_000


def plan_of(mapping: Mapping) -> Plan:
    """Return the plan that a mapping asks for."""
    fate = {"at once": Fate.CAPTURE, "later": Fate.CAPTURE_LATER, "never": Fate.LEAVE}[mapping.captures.when]
    return Plan(
        time_zone=mapping.line.time_zone,
        fate=lambda _purchase: fate,
        delay_us=round(mapping.captures.delay_hours * _HOUR_US),
        repayment=mapping.repayment,
    )
