"""Use cases of a credit line: open, block, lift, close."""

from __future__ import annotations

from riskgate_server.domain.credit.line import (
    BLOCKS_MAX,
    CUSTOMER_LIFT,
    CUSTOMER_LIFT_LEVEL,
    LINES_MAX,
    SOFT_BLOCK_LIFETIME_US,
    Block,
    BlockKind,
    require_closable,
    require_liftable,
)
from riskgate_server.domain.errors import AlreadyExists, FieldViolation, InvalidRequest, PreconditionFailed
from riskgate_server.domain.events import BlockLifted, BlockPlaced, Happening, LineClosed, LineOpened, Note
from riskgate_server.domain.identity.grants import Purpose, Use
from riskgate_server.domain.ledger import postings
from riskgate_server.engine import grants
from riskgate_server.engine.commands import CloseCreditLine, LiftBlock, OpenCreditLine, PlaceBlock
from riskgate_server.engine.replies import LineReply, Refusal
from riskgate_server.engine.work import Work


def _reply(work: Work, line_id: str, block: Block | None = None, *, lifted: bool = False) -> LineReply:
    customer = work.customer
    line = work.as_of_now(customer.line(line_id))
    return LineReply(work.key, customer.sequence, work.now_us, line, block, lifted)


def open_credit_line(work: Work, command: OpenCreditLine) -> LineReply:
    """
    Grant a line with a limit.

    Raises:
        AlreadyExists: the customer has a line of this id.
        PreconditionFailed: the customer has as many lines as one may have.
    """
    lines = work.customer.lines
    if any(line.line_id == command.line_id for line in lines):
        reason, message = "LINE_EXISTS", f"the customer already has a line {command.line_id}"
        raise AlreadyExists(reason, message, line_id=command.line_id)
    if len(lines) >= LINES_MAX:
        reason, message = "BOUND_REACHED", f"a customer has at most {LINES_MAX} lines"
        raise PreconditionFailed(reason, message)
    event = LineOpened(
        line_id=command.line_id,
        currency=command.currency,
        limit_minor=command.limit_minor,
        product_id=command.product_id,
        time_zone=command.time_zone,
        decision_reference=command.decision_reference,
        actor_id=command.actor_id,
    )
    work.record(Happening(event, postings.grant_limit(command.limit_minor)))
    return _reply(work, command.line_id)


def place_block(work: Work, command: PlaceBlock) -> LineReply:
    """
    Stop new spending.

    Raises:
        InvalidRequest: it would lapse in the past.
        PreconditionFailed: as many blocks stand as may; the line is stopped already.
    """
    line = work.customer.line(command.line_id)
    if command.expires_us and command.expires_us <= work.now_us:
        reason, message = "FIELD_INVALID", "must be in the future"
        raise InvalidRequest(reason, message, FieldViolation("expire_time", message))
    if len(line.standing_blocks(work.now_us)) >= BLOCKS_MAX:
        reason, message = "BOUND_REACHED", f"{BLOCKS_MAX} blocks stand on this line already"
        raise PreconditionFailed(reason, message, line_id=line.line_id)
    expires_us = command.expires_us
    if not expires_us and command.kind is BlockKind.FRAUD_SOFT:
        expires_us = work.now_us + SOFT_BLOCK_LIFETIME_US
    block = Block(
        block_id=f"b-{work.customer.sequence + 1}",
        kind=command.kind,
        reason_code=command.reason_code,
        placed_by=command.actor_id,
        placed_us=work.now_us,
        expires_us=expires_us,
    )
    work.record(Happening(BlockPlaced(line.line_id, block), sealed=Note(command.note)))
    return _reply(work, line.line_id, block)


def lift_block(work: Work, command: LiftBlock) -> LineReply | Refusal:
    """
    Lift one named block, or agree to it as the first of two people.

    A customer with a grant for it lifts what they may lift themselves, whatever the caller may.

    Raises:
        PreconditionFailed: as `grants.spend`.
    """
    line = work.customer.line(command.line_id)
    block = line.block(command.block_id)
    liftable = CUSTOMER_LIFT if command.grant else command.liftable
    complete = require_liftable(block, actor_id=command.actor_id, liftable=liftable, now_us=work.now_us)
    if command.grant:
        spent = grants.spend(work, command.grant, Use(Purpose.UNLOCK), CUSTOMER_LIFT_LEVEL, grants.past_cool_down(work))
        if isinstance(spent, Refusal):
            return spent
        work.record(Happening(spent))
    event = BlockLifted(line.line_id, block.block_id, block.kind, command.actor_id, complete)
    work.record(Happening(event, sealed=Note(command.note)))
    left = work.customer.line(line.line_id)
    return _reply(work, line.line_id, block if complete else left.block(block.block_id), lifted=complete)


def close_credit_line(work: Work, command: CloseCreditLine) -> LineReply:
    """End a line that owes nothing, holds nothing and is owed nothing. Its limit goes back to the lender."""
    line = work.customer.line(command.line_id)
    require_closable(work.as_of_now(line))
    withdrawn = postings.limit(line.books)
    event = LineClosed(line.line_id, withdrawn, command.reason_code, command.actor_id)
    work.record(Happening(event, postings.withdraw_limit(withdrawn)))
    return _reply(work, line.line_id)
