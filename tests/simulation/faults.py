"""A store that fails on command: at every point where a real one, or the process over it, can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.ports import BatchWrite, MessageRow, Snapshot, Store, StoreBroken, StoreBusy, StoreFull


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


COMMITTED = frozenset({Fault.NONE, Fault.CRASH_AFTER_COMMIT, Fault.KEPT})


class Crash(BaseException):
    """The process dies. Nothing in the process may catch it."""


class RejectedBySomething(Exception):
    """Stands for any failure of a transaction that is neither the disk's nor a lack of room."""


class FaultyStore:
    """Keeps `engine.ports.Store` over a real one. `plan` is asked once per transaction what goes wrong with it."""

    def __init__(
        self, inner: Store, plan: Callable[[], Fault] = lambda: Fault.NONE, died: Callable[[], None] = lambda: None
    ) -> None:
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
        committed = False
        try:
            with self.inner.transaction() as tx:
                yield _FaultyTransaction(tx, fault, self._die)
                if fault is Fault.LOST:
                    raise StoreBroken("the disk, before")
                if fault is Fault.FULL_AT_COMMIT:
                    raise StoreFull("no room")
                if fault in (Fault.CRASH_AFTER_WRITE, Fault.CRASH_BEFORE_WRITE):
                    # There was nothing to write, so it dies here.
                    self._die()
            committed = True
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

    def __init__(self, inner: Any, fault: Fault, die: Callable[[], None]) -> None:
        self._inner = inner
        self._fault = fault
        self._die = die

    def __getattr__(self, name: str) -> Any:
        if self._fault is Fault.BROKEN_READ:
            raise StoreBroken("the disk, reading")
        return getattr(self._inner, name)

    def write(self, batch: BatchWrite) -> None:
        if self._fault is Fault.CRASH_BEFORE_WRITE:
            self._die()
        if self._fault is Fault.FULL_AT_WRITE:
            raise StoreFull("no room")
        self._inner.write(batch)
        if self._fault is Fault.REJECTED:
            raise RejectedBySomething
        if self._fault is Fault.CRASH_AFTER_WRITE:
            self._die()
