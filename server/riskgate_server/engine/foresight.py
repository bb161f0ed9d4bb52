"""What a batch will read beside its customers, asked for before its first command: once for all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import structlog

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.commands import Command, PurchaseCommand
from riskgate_server.engine.decide import scopes_of, touches
from riskgate_server.engine.failures import ReadFailed, StoreBroken, StoreBusy, StoreConflict, StoreFull
from riskgate_server.engine.rows import ScopeKey
from riskgate_server.engine.work import Batch

log = structlog.get_logger()


def foresee(batch: Batch, commands: Sequence[Command], there: Collection[CustomerKey]) -> None:
    """Have requests, purchases and facts across customers at hand; the store may know only the customers `there`."""
    batch.ask(
        [(command.key, command.request_id) for command in commands if command.request_id],
        [(command.key, command.transaction_id) for command in commands if isinstance(command, PurchaseCommand)],
        there=there,
    )
    _take_scopes(batch, commands)


def _take_scopes(batch: Batch, commands: Sequence[Command]) -> None:
    """Take the facts across customers that the commands will touch: all at once, so that batches never deadlock."""
    touching = [command for command in commands if touches(command)]
    scopes: set[ScopeKey] = set()
    for command in touching:
        if command.key in batch.refused or command.key not in batch.kept:
            continue
        if command.request_id and batch.request(command.key, command.request_id) is not None:
            continue
        try:
            scopes.update(scopes_of(batch, command))
        except (MemoryError, ReadFailed, StoreBroken, StoreBusy, StoreConflict, StoreFull):
            raise
        except Exception as error:  # noqa: BLE001 - whatever damaged proofs break, it is this command's alone
            log.warning("scopes not foreseen", command=type(command).__name__, why=type(error).__name__)
    if scopes:
        batch.beside.take_scopes(scopes)
