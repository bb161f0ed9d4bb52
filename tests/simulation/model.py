"""
What a customer is, written a second time and plainly: no accounts, no journal, no database.

Shares nothing with the engine but the commands it is given. What stands is in plain lists and tuples, row by row as it
must be stored; what commands do to it is in `acts.py`, and what they must answer in `oracle.py`. Slow and obvious on
purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from riskgate_server.engine.bounds import Bounds

SMALL: Final = Bounds(open_holds=5, lapsed=1, credits=2, shares=3)
"""Small enough to be met in a short life."""

Answer = tuple[Any, ...]
Key = tuple[str, str]

APPROVE, STEP_UP, REVIEW, DECLINE = 1, 2, 3, 4
NONE, PENDING, CAPTURED, VOIDED, EXPIRED = 0, 1, 2, 3, 4
POSTED, REVERSED = 1, 2
ACTIVE, CLOSED = 1, 2
FRAUD_SOFT, FRAUD_HARD = 1, 2

DAY_US: Final = 86_400_000_000
HOLD_LIFETIME_US: Final = 7 * DAY_US
REVIEW_LIFETIME_US: Final = DAY_US
STEP_UP_LIFETIME_US: Final = 15 * 60 * 1_000_000
SOFT_BLOCK_LIFETIME_US: Final = DAY_US
REPLY_LIFETIME_US: Final = 7 * DAY_US
LINES_MAX, BLOCKS_MAX = 8, 64

OPENED, DECIDED, TAKEN, RAISED, GIVEN_UP, ENDED, REFUNDED, PAID, RETURNED = range(1, 10)
BLOCKED, LIFTED, SHUT, ANNOTATED, PASSED, REFUSED, USED = range(10, 17)
"""What an entry of the journal tells, by its number there."""

RISKS: Final = {
    "": (APPROVE, (), ""),
    "step_up": (STEP_UP, ("UNUSUAL",), ""),
    "strong_step_up": (STEP_UP, ("NEW_PHONE",), ""),
    "review": (REVIEW, ("STRANGE",), ""),
    "decline": (DECLINE, ("LISTED",), ""),
    "alarm": (REVIEW, ("ODD",), "ODD"),
    "flood": (DECLINE, ("FLOOD",), "FLOOD"),
}
"""What the rules of the tests make of a purchase: outcome, reasons, and why to suspend the line, if so."""

INTERNAL: Final = ("failed", "InternalError", "INTERNAL")
STORE_BUSY: Final = ("failed", "Conflict", "WRITE_CONFLICT")
STORE_UNREACHABLE: Final = ("failed", "Unavailable", "STORE_UNREACHABLE")
OUTCOME_UNKNOWN: Final = ("failed", "Unavailable", "OUTCOME_UNKNOWN")
STORE_FULL: Final = ("failed", "Unavailable", "STORE_FULL")


class No(Exception):
    """The model refuses."""

    def __init__(self, family: str, reason: str) -> None:
        super().__init__(reason)
        self.answer = (family, reason)


class Broken(Exception):
    """The rules blow up."""


def forbid(reason: str) -> No:
    return No("PreconditionFailed", reason)


@dataclass(slots=True)
class Purchase:
    """Field for field what is stored of a purchase."""

    transaction_id: str
    line_id: str
    terms: bytes
    decided_at: int
    state: int = NONE
    authorised: int = 0
    captured: int = 0
    released: int = 0
    expired: int = 0
    forced: int = 0
    refunded: int = 0
    owed: int = 0
    placed_us: int = 0
    expires_us: int = 0
    review_us: int = 0
    step_up_us: int = 0
    owed_since: int = 0
    event_us: int = 0
    step_up_level: int = 0

    @property
    def left(self) -> int:
        return self.authorised - self.captured - self.released - self.expired

    @property
    def lapses_us(self) -> int:
        return min(self.expires_us, self.review_us) if self.review_us else self.expires_us

    def row(self) -> list[Any]:
        return [getattr(self, name) for name in self.__slots__]


@dataclass(slots=True)
class Payment:
    """What is stored of a payment."""

    payment_id: str
    line_id: str
    amount: int
    shares: list[list[Any]]
    to_credit: int
    value_us: int
    recorded_us: int
    state: int = POSTED

    def row(self) -> list[Any]:
        return [getattr(self, name) for name in self.__slots__]


@dataclass(slots=True)
class Line:
    """A line as balances, not as accounts."""

    line_id: str
    currency: str
    opened_us: int
    limit: int
    held: int = 0
    due: int = 0
    """The part of `held` whose time was over when the last command came."""
    owed: int = 0
    credits: list[list[Any]] = field(default_factory=list)
    """Whose payment left how much for the customer, the oldest first; refunds, nobody's, together."""
    life: int = ACTIVE
    blocks: list[list[Any]] = field(default_factory=list)
    overdrawn: bool = False
    """Something was posted that may pass the limit: by force, or because a payment was returned."""

    @property
    def credit(self) -> int:
        return sum(credit[1] for credit in self.credits)

    def give(self, whose: str, amount: int) -> None:
        """Owe the customer more."""
        for credit in self.credits:
            if credit[0] == whose:
                amount += credit[1]
        self.credits = [credit for credit in self.credits if credit[0] != whose]
        self.credits.append([whose, amount])

    @property
    def available(self) -> int:
        return self.limit - self.owed - self.held + self.due

    def standing(self, now_us: int) -> list[list[Any]]:
        return [block for block in self.blocks if not block[5] or now_us < block[5]]

    def shown(self) -> Answer:
        """As answered: what is due counts as given back."""
        return replace(self, held=self.held - self.due).row()

    def row(self) -> Answer:
        return (
            self.line_id, self.currency, self.opened_us, self.life,
            self.limit, self.held, self.owed, self.credit, self.blocks,
        )  # fmt: skip


@dataclass(slots=True)
class Request:
    """What a request id came to."""

    fingerprint: bytes
    answer: Answer
    at_us: int
    forgotten: bool = False


class Customer:
    """One customer; commands act on a copy, which replaces the customer when they are kept."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.purchases: dict[str, Purchase] = {}
        self.payments: dict[str, Payment] = {}
        self.decisions: dict[int, str] = {}
        self.last_us = 0
        self.journal: list[tuple[int, int, str]] = []
        self.bounds = SMALL
        self.open = 0

    def copy(self) -> Customer:
        """Copy what a command may change. The journal is shared: entries are cut off when a command is dropped."""
        other = Customer()
        other.lines = {
            i: replace(line, blocks=[*map(list, line.blocks)], credits=[*map(list, line.credits)])
            for i, line in self.lines.items()
        }
        other.purchases = dict(self.purchases)
        other.payments = dict(self.payments)
        other.decisions = dict(self.decisions)
        other.last_us = self.last_us
        other.journal = list(self.journal)
        return other

    def note(self, kind: int, now_us: int, request_id: str) -> int:
        self.journal.append((kind, now_us, request_id))
        self.last_us = now_us
        return len(self.journal)

    def line(self, line_id: str) -> Line:
        if not line_id and len(self.lines) == 1:
            return next(iter(self.lines.values()))
        if not line_id and self.lines:
            raise No("InvalidRequest", "LINE_AMBIGUOUS")
        if line_id not in self.lines:
            raise No("NotFound", "LINE_NOT_FOUND")
        return self.lines[line_id]

    def hold(self, transaction_id: str) -> tuple[Purchase, Line]:
        """The purchase, to be changed, and its line."""
        purchase = self.purchases.get(transaction_id)
        if purchase is None or purchase.state == NONE:
            raise No("NotFound", "HOLD_NOT_FOUND")
        return self.touch(transaction_id), self.lines[purchase.line_id]

    def touch(self, transaction_id: str) -> Purchase:
        self.purchases[transaction_id] = replace(self.purchases[transaction_id])
        return self.purchases[transaction_id]

    def owing(self, line: Line) -> list[Purchase]:
        """What a line owes, the oldest first."""
        owing = [p for p in self.purchases.values() if p.owed and p.line_id == line.line_id]
        return sorted(owing, key=lambda p: (p.owed_since, p.transaction_id))

    def end_lapsed(self, now_us: int, request_id: str, named: str) -> int:
        """End some of the holds whose time is over. The others wait, but their credit is free."""
        over = [p for p in self.purchases.values() if p.state == PENDING and now_us >= p.lapses_us]
        over.sort(key=lambda p: (p.transaction_id != named, p.lapses_us, p.transaction_id))
        most = self.bounds.lapsed
        for purchase in over[:most]:
            self.give_back(self.touch(purchase.transaction_id), "expired")
            self.note(ENDED, now_us, request_id)
        for line in self.lines.values():
            line.due = sum(p.left for p in over[most:] if p.line_id == line.line_id)
        self.open = sum(p.state == PENDING for p in self.purchases.values()) - len(over[most:])
        return len(over[:most])

    def give_back(self, purchase: Purchase, how: str) -> None:
        self.lines[purchase.line_id].held -= purchase.left
        setattr(purchase, how, getattr(purchase, how) + purchase.left)
        ended = EXPIRED if how == "expired" else VOIDED
        purchase.state = CAPTURED if purchase.captured else ended
