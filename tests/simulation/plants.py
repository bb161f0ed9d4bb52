"""Bugs planted on purpose, to show that the simulator would notice: a green that cannot turn red says nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import msgspec
import pytest

from riskgate_server.domain.credit import authorisation
from riskgate_server.domain.events import Happening, HoldExpired
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.holds import HoldState
from riskgate_server.engine import commands as c
from riskgate_server.engine import pipeline as pipeline_module
from riskgate_server.engine import purchases, sealing, work
from riskgate_server.engine.customers import Customers
from riskgate_server.engine.failures import OutcomeUnknown, StoreBroken, StoreUnreachable
from riskgate_server.engine.replies import Reply
from riskgate_server.engine.rows import Locked
from riskgate_server.stores.postgres import session, transaction

Plant = Callable[[pytest.MonkeyPatch], None]


def reply_before_commit(patch: pytest.MonkeyPatch) -> None:
    """The caller is answered although the commit then fails."""
    execute, run = pipeline_module.Pipeline._execute, pipeline_module.Pipeline.run

    def remembering(self: Any, batch: Any, command: c.Command) -> Reply:
        reply = execute(self, batch, command)
        told.append(reply)
        return reply

    told: list[Reply] = []

    def eager(self: Any, commands: Sequence[c.Command]) -> list[Reply]:
        told.clear()
        try:
            return run(self, commands)
        except StoreBroken:
            if len(told) == len(commands):
                return list(told)
            raise

    patch.setattr(pipeline_module.Pipeline, "_execute", remembering)
    patch.setattr(pipeline_module.Pipeline, "run", eager)


def lost_idempotency_row(patch: pytest.MonkeyPatch) -> None:
    """What a request id came to is not kept, once in a while."""
    rows = work.Batch.rows

    def forgetful(self: Any) -> Any:
        written = rows(self)
        if len(written.requests) > 2:
            written.requests.pop()
        return written

    patch.setattr(work.Batch, "rows", forgetful)


def limit_read_outside_the_batch(patch: pytest.MonkeyPatch) -> None:
    """The limit is read before the batch, so its second purchase does not see the first."""
    load, judge = Customers.load, authorisation.judge
    stale: dict[tuple[int, str], postings.Books] = {}

    def reading_early(self: Any, batch: Any, *rest: Any) -> Any:
        there = load(self, batch, *rest)
        stale.clear()
        for key, kept in batch.kept.items():
            customer = sealing.decode_customer(key, kept.state)
            stale.update({(line.opened_us, line.line_id): line.books for line in customer.lines})
        return there

    def judging_late(line: Any, *rest: Any, **more: Any) -> Any:
        if line is not None and (line.opened_us, line.line_id) in stale:
            line = msgspec.structs.replace(line, books=stale[line.opened_us, line.line_id])
        return judge(line, *rest, **more)

    patch.setattr(Customers, "load", reading_early)
    patch.setattr(purchases, "judge", judging_late)


def expiry_counted_twice(patch: pytest.MonkeyPatch) -> None:
    """A hold that lapsed gives its credit back a second time."""
    settle = work.Work.settle_lapsed

    def twice(self: Any, named: str = "") -> int:
        count = settle(self, named)
        for purchase in list(self.aggregate.purchases.values()):
            if purchase.state is HoldState.EXPIRED:
                back = purchase.expired_minor
                self.record(Happening(HoldExpired(purchase.transaction_id, back), postings.release(back)))
        return count

    patch.setattr(work.Work, "settle_lapsed", twice)


def commit_forgotten_by_the_cache(patch: pytest.MonkeyPatch) -> None:
    """A batch that was rolled back is remembered as if it had been committed."""
    keep = work.Batch.keep

    def leaking(self: Any, done: Any, request: Any) -> None:
        keep(self, done, request)
        caches[-1][done.key] = self.kept[done.key]

    caches: list[Any] = []
    load = Customers.load

    def noting(self: Any, *given: Any) -> Any:
        caches[:] = [self.kept]
        return load(self, *given)

    patch.setattr(work.Batch, "keep", leaking)
    patch.setattr(Customers, "load", noting)


def doubt_told_as_nothing_done(patch: pytest.MonkeyPatch) -> None:
    """A commit whose confirmation was lost with the connection is answered as if it had not been sent."""
    commit = session.commit

    def confident(*given: Any) -> None:
        try:
            commit(*given)
        except OutcomeUnknown as doubt:
            raise StoreUnreachable(str(doubt)) from doubt

    patch.setattr(session, "commit", confident)


def customers_not_locked(patch: pytest.MonkeyPatch) -> None:
    """A batch reads its customers' rows and leaves them to whoever comes along."""
    for name in ("_LOCK", "_LOCK_IF_FREE"):
        read = getattr(transaction, name).removesuffix(" SKIP LOCKED").removesuffix(" FOR UPDATE OF c")
        patch.setattr(transaction, name, read)


def memory_trusted_over_the_row(patch: pytest.MonkeyPatch) -> None:
    """What a process remembers of a customer is used whatever another has written since."""
    load: Any = Customers.load

    def trusting(self: Any, *given: Any) -> Any:
        *others, locked = given
        assert isinstance(locked, Locked)
        news = [row for row in locked.changed if row.key not in self.kept]
        locked = msgspec.structs.replace(locked, changed=news)
        return load(self, *others, locked)

    patch.setattr(Customers, "load", trusting)


FLEET_PLANTS: Final[dict[str, Plant]] = {
    plant.__name__: plant for plant in (customers_not_locked, memory_trusted_over_the_row)
}
"""Those that show where several processes write."""

NETWORK_PLANTS: Final[dict[str, Plant]] = {
    plant.__name__: plant for plant in (lost_idempotency_row, doubt_told_as_nothing_done)
}
"""Those that show over a database."""

PLANTS: Final[dict[str, Plant]] = {
    plant.__name__: plant
    for plant in (
        reply_before_commit,
        lost_idempotency_row,
        limit_read_outside_the_batch,
        expiry_counted_twice,
        commit_forgotten_by_the_cache,
    )
}


@contextmanager
def _planted(name: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        (PLANTS | NETWORK_PLANTS | FLEET_PLANTS)[name](patch)
        yield


def planted(name: str) -> AbstractContextManager[None]:
    """The engine with one bug in it."""
    return _planted(name)
