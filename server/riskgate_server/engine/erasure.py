"""
The use case that lets a person be forgotten: it says so in the journal; their key is destroyed after the commit.

What a crash kept from being destroyed is told from the journal at the next start (`erased`).
"""

from __future__ import annotations

from collections.abc import Iterator

from riskgate_server.domain.credit.line import LifeCycle
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.errors import PreconditionFailed
from riskgate_server.domain.events import CustomerErased, Happening
from riskgate_server.engine.commands import EraseCustomer
from riskgate_server.engine.replies import RevokedReply
from riskgate_server.engine.sealing import EVENT_TAGS
from riskgate_server.engine.storing import Snapshot
from riskgate_server.engine.work import Work


def erased(snapshot: Snapshot) -> Iterator[tuple[CustomerKey, int]]:
    """Yield who was erased and when (UTC µs), as the journal has it; costs as much as there were erasures."""
    return snapshot.marked(EVENT_TAGS[CustomerErased])


def erase_customer(work: Work, command: EraseCustomer) -> RevokedReply:
    """
    Record that a customer is to be forgotten, and drop what waits to be sent to them.

    Raises:
        PreconditionFailed: a line of theirs is not closed.
    """
    for line in work.customer.lines:
        if line.life_cycle is LifeCycle.ACTIVE:
            reason, message = "LINE_IN_USE", "close the customer's lines first"
            raise PreconditionFailed(reason, message, line_id=line.line_id)
    work.drop_messages()
    work.record(Happening(CustomerErased(command.reason_code, command.actor_id)))
    return RevokedReply(work.key, work.now_us, ())
