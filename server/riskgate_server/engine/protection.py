"""What the engine does by itself when somebody tries to be somebody else."""

from __future__ import annotations

from typing import Final

from riskgate_server.domain.credit.line import BLOCKS_MAX, SOFT_BLOCK_LIFETIME_US, Block, BlockKind, LifeCycle
from riskgate_server.domain.events import BlockPlaced, Happening
from riskgate_server.domain.fraud.safety import UNTOUCHED, failed_since
from riskgate_server.domain.identity.limits import HOUR_US
from riskgate_server.engine.work import Work

BURST: Final = 8
"""Wrong proofs within an hour, over all factors and devices, that suspend the customer's lines."""


def suspend_on_burst(work: Work) -> None:
    """Suspend every active line of a customer whose proofs are being guessed at; once, while a suspension stands."""
    safety = work.customer.profile.safety or UNTOUCHED
    if failed_since(safety, work.now_us - HOUR_US) < BURST:
        return
    for line in work.customer.lines:
        standing = line.standing_blocks(work.now_us)
        suspended = any(block.kind is BlockKind.FRAUD_SOFT for block in standing)
        if line.life_cycle is not LifeCycle.ACTIVE or suspended or len(standing) >= BLOCKS_MAX:
            continue
        block = Block(
            block_id=f"b-{work.customer.sequence + 1}",
            kind=BlockKind.FRAUD_SOFT,
            reason_code="PROOF_BURST",
            placed_by="engine",
            placed_us=work.now_us,
            expires_us=work.now_us + SOFT_BLOCK_LIFETIME_US,
        )
        work.record(Happening(BlockPlaced(line.line_id, block)))
