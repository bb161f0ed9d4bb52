"""
The life of a credit line, and the blocks that stop new spending on it.

A line has a life cycle (ACTIVE, then CLOSED or CHARGED_OFF for good) and, beside it, a set of
blocks. Spending is allowed when the line is ACTIVE and no block stands: the AND of all. What a
person sees is the worst of them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from riskgate_server.domain.errors import NotFound, PermissionRefused, PreconditionFailed
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.repayment import Credit


class LifeCycle(IntEnum):
    """Written into the store: numbers never change meaning."""

    ACTIVE = 1
    CLOSED = 2
    CHARGED_OFF = 3


class BlockKind(IntEnum):
    """Why a block stands. Written into the journal; equal to `riskgate.credit.v1.BlockKind`."""

    FRAUD_SOFT = 1
    FRAUD_HARD = 2
    CUSTOMER_LOCK = 3
    DELINQUENCY = 4
    COMPLIANCE = 5
    HARDSHIP = 6


class LineState(IntEnum):
    """The worst of life cycle and blocks, mildest first; equal to `riskgate.credit.v1.LineState`."""

    ACTIVE = 1
    REDUCED = 2
    SUSPENDED = 3
    FROZEN = 4
    CLOSED = 5
    CHARGED_OFF = 6


_STATE_OF_BLOCK: Final = {
    BlockKind.FRAUD_SOFT: LineState.SUSPENDED,
    BlockKind.FRAUD_HARD: LineState.SUSPENDED,
    BlockKind.CUSTOMER_LOCK: LineState.SUSPENDED,
    BlockKind.DELINQUENCY: LineState.FROZEN,
    BlockKind.COMPLIANCE: LineState.FROZEN,
    BlockKind.HARDSHIP: LineState.FROZEN,
}

TWO_PERSON_LIFT: Final = frozenset({BlockKind.FRAUD_HARD})
"""Kinds that only two different people lift together."""

CUSTOMER_LIFT: Final = frozenset({BlockKind.CUSTOMER_LOCK, BlockKind.FRAUD_SOFT})
"""Kinds that a customer who proves themselves lifts alone."""

CUSTOMER_LIFT_LEVEL: Final = 2
"""How strong that proof must be: whoever took over the phone reads its codes."""

SOFT_BLOCK_LIFETIME_US: Final = 24 * 3600 * 1_000_000
"""A soft fraud block that nobody looked at lapses after a day; the pattern that placed it can place it again."""

LINES_MAX: Final = 8
"""Lines one customer may have."""

BLOCKS_MAX: Final = 64
"""Blocks that may stand on one line at once; one more is refused, since the line is stopped anyway."""


class Block(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Something that stops new spending. Times in UTC µs; `expires_us` 0 means it never lapses."""

    block_id: str
    kind: BlockKind
    reason_code: str
    placed_by: str
    placed_us: int
    expires_us: int = 0
    lift_approved_by: str = ""

    def stands(self, now_us: int) -> bool:
        """Whether the block stops spending at `now_us`."""
        return not self.expires_us or now_us < self.expires_us


class CreditLine(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A line of credit: its books, its life cycle and blocks, its open holds counted, and whence its credit came."""

    line_id: str
    currency: str
    product_id: str
    time_zone: str
    opened_us: int
    decision_reference: str
    life_cycle: LifeCycle = LifeCycle.ACTIVE
    books: postings.Books = postings.EMPTY_BOOKS
    blocks: tuple[Block, ...] = ()
    open_holds: int = 0
    credits: tuple[Credit, ...] = ()

    def standing_blocks(self, now_us: int) -> tuple[Block, ...]:
        """Blocks that stop spending now, oldest first."""
        return tuple(block for block in self.blocks if block.stands(now_us)) if self.blocks else ()

    def state(self, now_us: int) -> LineState:
        """What a person sees: the worst of life cycle and blocks."""
        if self.life_cycle is LifeCycle.CLOSED:
            return LineState.CLOSED
        if self.life_cycle is LifeCycle.CHARGED_OFF:
            return LineState.CHARGED_OFF
        return max((_STATE_OF_BLOCK[block.kind] for block in self.standing_blocks(now_us)), default=LineState.ACTIVE)

    def block(self, block_id: str) -> Block:
        """
        Return the named block, lapsed or not.

        Raises:
            NotFound: the line has no such block.
        """
        for block in self.blocks:
            if block.block_id == block_id:
                return block
        reason, message = "BLOCK_NOT_FOUND", "the line has no such block"
        raise NotFound(reason, message)


def require_spendable(line: CreditLine, now_us: int) -> None:
    """Raise `PreconditionFailed` unless new credit may be reserved on the line."""
    if line.life_cycle is not LifeCycle.ACTIVE:
        reason, message = "LINE_NOT_ACTIVE", "the line is closed"
        raise PreconditionFailed(reason, message, line_id=line.line_id)
    if line.standing_blocks(now_us):
        reason, message = "LINE_BLOCKED", "a block stands against new spending"
        raise PreconditionFailed(reason, message, line_id=line.line_id)


def require_liftable(block: Block, *, actor_id: str, liftable: frozenset[BlockKind], now_us: int) -> bool:
    """
    Check that `actor_id` may lift the block, and return whether this lift completes.

    A kind in `TWO_PERSON_LIFT` completes only at the second, different person; one person stays one however they
    spell themselves.

    Raises:
        PermissionRefused: the caller may not lift this kind, or the same person tries twice.
        PreconditionFailed: the block lapsed before.
    """
    if block.kind not in liftable:
        reason, message = "BLOCK_LIFT_FORBIDDEN", "the caller may not lift this kind of block"
        raise PermissionRefused(reason, message, kind=block.kind.name)
    if not block.stands(now_us):
        reason, message = "BLOCK_NOT_STANDING", "the block lapsed before"
        raise PreconditionFailed(reason, message)
    if block.kind not in TWO_PERSON_LIFT:
        return True
    if block.lift_approved_by and _same_person(block.lift_approved_by, actor_id):
        reason, message = "SECOND_PERSON_REQUIRED", "a second, different person must lift it"
        raise PermissionRefused(reason, message)
    return bool(block.lift_approved_by)


def _same_person(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


def require_closable(line: CreditLine) -> None:
    """Raise `PreconditionFailed` unless the line owes nothing, holds nothing and is owed nothing."""
    if line.life_cycle is not LifeCycle.ACTIVE:
        reason, message = "LINE_NOT_ACTIVE", "the line is closed"
        raise PreconditionFailed(reason, message, line_id=line.line_id)
    books = line.books
    if postings.outstanding(books) or postings.held(books) or postings.customer_credit(books):
        reason, message = "LINE_IN_USE", "the line owes, holds or is owed money"
        raise PreconditionFailed(reason, message, line_id=line.line_id)
