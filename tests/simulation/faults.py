"""A store that fails on command: at every point where a real one, or the process over it, can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Protocol

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import OutcomeUnknown, StoreBroken, StoreBusy, StoreConflict, StoreFull
from riskgate_server.engine.rows import BatchWrite, MessageRow
from riskgate_server.engine.storing import Snapshot, Store


class Fault(Enum):
    """What goes wrong with one transaction."""

    NONE = "none"
    CRASH_AT_BEGIN = "the process dies before the transaction begins"
    CRASH_BEFORE_WRITE = "the process dies before anything is written"
    CRASH_AFTER_WRITE = "the process dies after the rows are written, before the commit"
    CRASH_AFTER_COMMIT = "the process dies after the commit, before any reply"
    REJECTED = "the rows are refused and the transaction rolled back"
    FULL_AT_WRITE = "no room while writing"
    FULL_AT_COMMIT = "no room while committing"
    BUSY = "another program is in the way"
    BROKEN_READ = "reading fails"
    LOST = "the commit fails, and did not happen"
    KEPT = "the commit fails, and did happen"
    CONFLICT = "another writer was first, and the transaction is to be run again"
    CUT_BEFORE_BEGIN = "the connection is lost before the transaction begins"
    CUT_AT_BEGIN = "the connection is lost as soon as it has begun"
    CUT_BEFORE_WRITE = "the connection is lost before anything is written"
    CUT_AFTER_WRITE = "the connection is lost after the rows are written, before the commit is sent"
    CUT_BEFORE_COMMIT = "the connection is lost before the commit arrives"
    CUT_AFTER_COMMIT = "the connection is lost before the commit is confirmed"


COMMITTED = frozenset({Fault.NONE, Fault.CRASH_AFTER_COMMIT, Fault.KEPT, Fault.CUT_AFTER_COMMIT})

DISK_FAULTS = tuple(list(Fault)[1:12])
"""What can go wrong over a store in files, or in memory: the commit itself may fail, and then writing ends."""

NETWORK_FAULTS = (
    Fault.CRASH_AT_BEGIN,
    Fault.CRASH_BEFORE_WRITE,
    Fault.CRASH_AFTER_WRITE,
    Fault.CRASH_AFTER_COMMIT,
    Fault.REJECTED,
    Fault.FULL_AT_WRITE,
    Fault.BUSY,
    *list(Fault)[12:],
)
"""What can go wrong over a database: the connection is lost at any point, and others write too. The process stays."""


class Crash(BaseException):
    """The process dies. Nothing in the process may catch it."""


_CUT_AT = {
    Fault.CUT_AT_BEGIN: ("BEGIN", True),
    Fault.CUT_BEFORE_COMMIT: ("COMMIT", False),
    Fault.CUT_AFTER_COMMIT: ("COMMIT", True),
}


class RejectedBySomething(Exception):
    """Stands for any failure of a transaction that is neither the disk's nor a lack of room."""


class Wire(Protocol):
    """The connection between a store and its database, to be lost at a moment of the test's choosing."""

    def connect(self) -> None:
        """Have a connection, made anew where it was lost."""

    def cut(self) -> None:
        """Lose it now."""

    def cut_at(self, statement: str, *, done: bool) -> None:
        """Lose it at a statement: when the database has `done` it and not said so, or before it arrives there."""

    def mend(self) -> None:
        """Let the connection be, if it still stands."""


class FaultyStore:
    """Keeps `engine.storing.Store` over a real one. `plan` is asked once per transaction what goes wrong with it."""

    def __init__(
        self,
        inner: Store,
        plan: Callable[[], Fault] = lambda: Fault.NONE,
        died: Callable[[], None] = lambda: None,
        wire: Wire | None = None,
    ) -> None:
        self._wire = wire
        self.inner = inner
        self.plan = plan
        self.died = died
        self.log: list[Fault] = []
        """What went wrong with each transaction so far."""

    @property
    def shared(self) -> bool:
        return self.inner.shared

    @property
    def writer(self) -> int:
        return self.inner.writer

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        fault = self.plan()
        self.log.append(fault)
        if fault is Fault.CRASH_AT_BEGIN:
            self._die()
        if fault is Fault.BUSY:
            raise StoreBusy("in the way")
        if fault is Fault.CUT_BEFORE_BEGIN:
            self._cut()
        committed = False
        try:
            with self._doomed(fault), self.inner.transaction() as tx:
                yield _FaultyTransaction(tx, fault, self._die, self._cut)
                if fault is Fault.CONFLICT:
                    raise StoreConflict("another writer was first")
                if fault in (Fault.CUT_AFTER_WRITE, Fault.CUT_BEFORE_WRITE):
                    # There was nothing to write, so it is lost here.
                    self._cut()
                if fault is Fault.LOST:
                    raise StoreBroken("the disk, before")
                if fault is Fault.FULL_AT_COMMIT:
                    raise StoreFull("no room")
                if fault in (Fault.CRASH_AFTER_WRITE, Fault.CRASH_BEFORE_WRITE):
                    # There was nothing to write, so it dies here.
                    self._die()
            committed = True
        except OutcomeUnknown:
            committed = fault is Fault.CUT_AFTER_COMMIT
            raise
        finally:
            if not committed and fault in COMMITTED:
                # Something else went wrong before this fault's turn came.
                self.log[-1] = Fault.REJECTED
        if fault is Fault.CRASH_AFTER_COMMIT:
            self._die()
        if fault is Fault.KEPT:
            raise StoreBroken("the disk, after")
        if fault is not Fault.NONE:
            # Its turn never came: nothing was written or read.
            self.log[-1] = Fault.NONE

    def _die(self) -> None:
        self.died()
        raise Crash

    def _cut(self) -> None:
        assert self._wire
        self._wire.connect()
        self._wire.cut()

    @contextmanager
    def _doomed(self, fault: Fault) -> Iterator[None]:
        """Have the connection lost at a statement of the transaction, if that is its fault."""
        where = _CUT_AT.get(fault)
        if where is None:
            yield
            return
        assert self._wire
        self._wire.connect()
        self._wire.cut_at(where[0], done=where[1])
        try:
            yield
        finally:
            self._wire.mend()

    def snapshot(self) -> Snapshot:
        return self.inner.snapshot()

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        return self.inner.customers_due(now_us, limit)

    def lease_messages(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        return self.inner.lease_messages(now_us, limit)

    def lease(self, job: str) -> bool:
        return self.inner.lease(job)

    def forget_replies(self, before_us: int, limit: int) -> int:
        return self.inner.forget_replies(before_us, limit)

    def remember_ruleset(self, ruleset_hash: bytes, source: str, at_us: int) -> None:
        self.inner.remember_ruleset(ruleset_hash, source, at_us)

    def close(self) -> None:
        self.inner.close()


class _FaultyTransaction:
    """Passes everything on, and fails where its fault says."""

    def __init__(self, inner: Any, fault: Fault, die: Callable[[], None], cut: Callable[[], None]) -> None:
        self._inner = inner
        self._fault = fault
        self._die = die
        self._cut = cut

    def __getattr__(self, name: str) -> Any:
        if self._fault is Fault.BROKEN_READ:
            raise StoreBroken("the disk, reading")
        return getattr(self._inner, name)

    def write(self, batch: BatchWrite) -> None:
        if self._fault is Fault.CRASH_BEFORE_WRITE:
            self._die()
        if self._fault is Fault.FULL_AT_WRITE:
            raise StoreFull("no room")
        if self._fault is Fault.CUT_BEFORE_WRITE:
            self._cut()
        self._inner.write(batch)
        if self._fault is Fault.REJECTED:
            raise RejectedBySomething
        if self._fault is Fault.CRASH_AFTER_WRITE:
            self._die()
        if self._fault is Fault.CUT_AFTER_WRITE:
            self._cut()
