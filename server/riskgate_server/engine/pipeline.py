"""
The one write path: a batch of commands becomes one durable commit, and only then replies.

`Pipeline.run` is synchronous and deterministic given its ports: the server drives it from its writer
thread (`writer.py`), the simulator from a loop with a seed.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple, Protocol

import structlog

from riskgate_server.domain import errors
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.events import CommandRefused, Happening
from riskgate_server.engine.bounds import Bounds
from riskgate_server.engine.commands import (
    CheckTransaction,
    Command,
    OpenCreditLine,
    PurchaseCommand,
    SettleLapsed,
    SettleMessage,
)
from riskgate_server.engine.customers import Customers
from riskgate_server.engine.decide import USE_CASES
from riskgate_server.engine.failures import (
    OutcomeUnknown,
    StoreBroken,
    StoreBusy,
    StoreConflict,
    StoreFull,
    StoreUnreachable,
)
from riskgate_server.engine.foresight import foresee
from riskgate_server.engine.ports import Clock, Entropy, EntrySink, Outgoing, ProofSecrets, RiskRules, Sealer
from riskgate_server.engine.repeats import remembered, repeated
from riskgate_server.engine.replies import ERASED, STICKY, Refusal, Reply, Settled, failure_of, refusal_of
from riskgate_server.engine.rows import BatchRow, Locked, RequestRow
from riskgate_server.engine.storing import Store, Transaction, Vault
from riskgate_server.engine.work import Batch, Work

log = structlog.get_logger()

CACHED_CUSTOMERS: Final = 100_000
"""Customers kept in memory, about 1 KiB each."""

CONFLICTS_MAX: Final = 5
"""How often a batch that another writer was in the way of is run again at once."""

QUARANTINE_MAX: Final = 10_000
"""Commands remembered as harmful; beyond it the oldest is forgotten."""


NO_MEMORY_SECONDS: Final = 1.0
"""When a command for which there was no memory may be sent again."""


_BUSY: Final = failure_of(errors.Conflict("WRITE_CONFLICT", "another program held the store; nothing was done"))


class _HeldTooLong(StoreBusy):
    """Another process held a customer for longer than one waits. Nothing happened."""


class _Done(NamedTuple):
    """What a command came to: its reply and, unless it left nothing, what is to be kept."""

    reply: Reply
    work: Work | None = None
    request: RequestRow | None = None


class BatchClock(Clock, Protocol):
    """A clock that what is recorded may drive. Inside a batch time is the batch's, so that a rollback takes it back."""

    def at(self, command: Command, now_us: int) -> int:
        """
        Return when a command happens in a batch that has come to `now_us`. Asked only of a command that is new.

        Raises:
            InvalidRequest: the command says that it happened when it cannot have.
        """

    def after(self, command: Command, now_us: int) -> int:
        """Return what a batch at `now_us` has come to once it has carried out `command`."""

    def reached(self, now_us: int) -> None:
        """A batch that came to `now_us` is durable."""


class RivalObserver(Protocol):
    """Hears what other writers of a shared store cost."""

    def put_back(self, reason: str, commands: int) -> None:
        """Note commands that nothing was done of: HELD are left for a later batch, CONFLICT run again at once."""


class Pipeline:
    """Decides, writes and remembers. Not thread-safe: exactly one thread runs it."""

    def __init__(
        self,
        *,
        store: Store,
        vault: Vault,
        sealer: Sealer,
        clock: BatchClock,
        entropy: Entropy,
        secrets: ProofSecrets,
        rules: RiskRules,
        sink: EntrySink | None = None,
        outgoing: Outgoing | None = None,
        rivals: RivalObserver | None = None,
        monotonic_us: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
        cached_customers: int = CACHED_CUSTOMERS,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    ) -> None:
        self.rules = rules
        self._store = store
        self._vault = vault
        self._sealer = sealer
        self._clock = clock
        self._entropy = entropy
        self._secrets = secrets
        self._sink = sink
        self._outgoing = outgoing
        self._rivals = rivals
        self._monotonic_us = monotonic_us
        self._bounds = bounds
        self._customers = Customers(vault, sealer, cached_customers)
        self._quarantine: OrderedDict[tuple[CustomerKey, str], None] = OrderedDict()
        self._tail: tuple[BatchRow | None, int] | None = None
        self._full = False

    def run(self, commands: Sequence[Command]) -> list[Reply]:
        """
        Run a batch in order, commit it, and return the replies in the same order.

        Customers whom another process holds are waited for.

        Raises:
            StoreBroken: the outcome of the whole batch is unknown, and nothing may be written any more.
        """
        replies = self.run_free(commands, wait={command.key for command in commands})
        return [reply for reply in replies if reply is not None]

    def run_free(self, commands: Sequence[Command], *, wait: Collection[CustomerKey]) -> list[Reply | None]:
        """
        Run a batch without the customers whom another process holds just now, and not in `wait`.

        Nothing was done of what has no reply: all the commands of a customer, or none.

        Raises:
            StoreBroken: as `run`.
        """
        try:
            return self._committed_at_last(commands, wait)
        except _HeldTooLong as held:
            # Who could not be had in time answers for it alone.
            log.warning("customers held", customers=len(wait), why=str(held))
            free = [command for command in commands if command.key not in wait]
            replies = iter(self.run_free(free, wait=()) if free else ())
            return [_BUSY if command.key in wait else next(replies) for command in commands]
        except StoreBroken:
            raise
        except OutcomeUnknown as doubt:
            log.warning("outcome unknown", commands=len(commands), why=str(doubt))
            unknown = errors.Unavailable("OUTCOME_UNKNOWN", "the outcome is unknown; repeat the same request id")
            return [failure_of(unknown)] * len(commands)
        except StoreFull:
            # Once, not for every batch: the log may be on the same disk.
            if not self._full:
                log.exception("store full", commands=len(commands))
            self._full = True
            full = errors.Unavailable("STORE_FULL", "the store has no room; nothing was done")
            return [failure_of(full)] * len(commands)
        except StoreUnreachable as lost:
            log.warning("store unreachable", commands=len(commands), why=str(lost))
            away = errors.Unavailable("STORE_UNREACHABLE", "the store is out of reach; nothing was done")
            return [failure_of(away)] * len(commands)
        except (StoreBusy, StoreConflict) as rival:
            log.warning("store busy", commands=len(commands), why=str(rival))
            return [_BUSY] * len(commands)
        except MemoryError:
            # It passes, and no command is to blame.
            log.exception("out of memory", commands=len(commands))
            self._distrust(commands)
            unknown = errors.Unavailable("OUTCOME_UNKNOWN", "the outcome is unknown; repeat the same request id")
            return [failure_of(unknown)] * len(commands)
        except Exception:
            # The commit failed and was rolled back. One command's fault must not fail the others.
            log.exception("batch failed", commands=len(commands))
            self._distrust(commands)
            if len(commands) > 1:
                return [reply for command in commands for reply in self.run_free([command], wait=wait)]
            return [self._quarantined(commands[0])]

    def _distrust(self, commands: Sequence[Command]) -> None:
        """Have read again what a batch that failed may have changed: it may have failed after its commit."""
        self._tail = None
        self._customers.distrust(command.key for command in commands)

    def _committed_at_last(self, commands: Sequence[Command], wait: Collection[CustomerKey]) -> list[Reply | None]:
        """Commit a batch; where another writer was first, run it again on what stands now."""
        for _ in range(CONFLICTS_MAX):
            try:
                return self._commit(commands, wait)
            except StoreConflict as conflict:
                log.info("write conflict", commands=len(commands), why=str(conflict))
                self._put_back("CONFLICT", len(commands))
        return self._commit(commands, wait)

    def _put_back(self, reason: str, commands: int) -> None:
        if self._rivals:
            self._rivals.put_back(reason, commands)

    def _commit(self, commands: Sequence[Command], wait: Collection[CustomerKey]) -> list[Reply | None]:
        began = self._monotonic_us() / 1e6
        with self._store.transaction() as tx:
            tail = self._tail or tx.tail()
            if tail[0]:
                # After a commit in doubt only the store knows how far time came.
                self._clock.reached(tail[0].at_us)
            named = {command.key for command in commands}
            locked = self._lock(tx, named, wait) if self._store.shared else None
            if locked and locked.elsewhere:
                named -= locked.elsewhere
            ours = commands if locked is None else [command for command in commands if command.key in named]
            batch = Batch(
                tx,
                tail,
                writer=self._store.writer,
                vault=self._vault,
                sealer=self._sealer,
                entropy=self._entropy,
                secrets=self._secrets,
                bounds=self._bounds,
                # Not before the customers are ours: whoever was waited for has gone on in time.
                now_us=self._clock.now_us(),
                commands=len(ours),
            )
            foresee(batch, ours, self._customers.load(batch, tx, ours, named, locked))
            done = [self._execute(batch, command) for command in ours]
            rows = batch.rows()
            if rows.customers or rows.requests or rows.entries or rows.messages or rows.settled:
                tx.write(rows)
        self._committed(batch, (rows.batch or batch.previous, batch.position))
        if rows.messages and self._outgoing:
            try:
                self._outgoing.written(rows.messages, began)
            except Exception:
                # As for the sink: the next lease has them.
                log.exception("messages not handed over")
        if len(done) == len(commands):
            return list(done)
        self._put_back("HELD", len(commands) - len(done))
        replies = iter(done)
        return [next(replies) if command.key in named else None for command in commands]

    def _lock(self, tx: Transaction, keys: Collection[CustomerKey], wait: Collection[CustomerKey]) -> Locked:
        """Take the customers of a batch from other writers."""
        try:
            locked = tx.lock(sorted(keys), wait=wait, known=self._customers.sequences(keys))
        except StoreBusy as busy:
            if not wait or isinstance(busy, StoreUnreachable):
                raise
            raise _HeldTooLong(str(busy)) from busy
        if any(key in wait for key in locked.elsewhere):
            raise StoreConflict("a customer began while the batch did")
        return locked

    def _committed(self, batch: Batch, tail: tuple[BatchRow | None, int]) -> None:
        # Only what is durable may be remembered, so the cache learns of a batch after its commit.
        # A shared store tells it anew with every transaction: where a commit in doubt left the lane, only it knows.
        self._tail = None if self._store.shared else tail
        self._clock.reached(batch.now_us)
        if self._full:
            log.info("store has room again")
        self._full = False
        self._customers.remember(batch)
        if self._sink and batch.changed:
            try:
                self._sink.committed(tail[1], batch.changed)
            except Exception:
                # The commit stands, whoever hears of it.
                log.exception("sink failed")

    def _execute(self, batch: Batch, command: Command) -> Reply:
        try:
            done = self._answer(batch, command)
        except errors.RiskgateError as error:
            return failure_of(error)
        except (StoreBroken, StoreBusy, StoreConflict, StoreFull):
            raise
        except MemoryError:
            log.exception("out of memory", command=type(command).__name__)
            reason, message = "OVERLOADED", "the server has no memory for it now; nothing was done"
            return failure_of(errors.ResourceExhausted(reason, message, retry_after_seconds=NO_MEMORY_SECONDS))
        except Exception:
            log.exception("command failed", command=type(command).__name__)
            return self._quarantined(command)
        if done.work:
            # What goes wrong here may leave half a command behind, so it is the batch that fails.
            batch.keep(done.work, done.request)
            if done.work.recorded and not isinstance(done.reply, Refusal):
                batch.now_us = self._clock.after(command, batch.now_us)
        return done.reply

    def _answer(self, batch: Batch, command: Command) -> _Done:
        """Carry out a command, and leave nothing of it in the batch yet."""
        key, request_id = command.key, command.request_id
        if command.deadline_us and self._monotonic_us() >= command.deadline_us:
            reason, message = "DEADLINE_PASSED", "the deadline passed before the command started"
            raise errors.DeadlinePassed(reason, message)
        remembers = bool(request_id) and not getattr(command, "validate_only", False)
        # First of all: what was done before is answered, whatever has become of the command or the customer since.
        if remembers and (known := batch.request(key, request_id)) is not None:
            return _Done(repeated(batch, known, command))
        if (key, request_id) in self._quarantine:
            return _Done(self._quarantined(command))
        kept = batch.kept.get(key)
        if key in batch.refused and (kept is None or not isinstance(command, SettleLapsed | SettleMessage)):
            raise errors.PreconditionFailed(*batch.refused[key])
        if kept is None or not (kept.sequence or isinstance(command, OpenCreditLine)):
            reason, message = "CUSTOMER_NOT_FOUND", "no such customer"
            raise errors.NotFound(reason, message)
        work = Work(batch, key, request_id=request_id, at_us=self._clock.at(command, batch.now_us))
        if work.customer.erased and not isinstance(command, SettleLapsed):
            # Whether or not their key is destroyed by now, in this process and in every other.
            raise errors.PreconditionFailed(*ERASED)
        settled = work.settle_lapsed(command.transaction_id if isinstance(command, PurchaseCommand) else "")
        before = len(work.recorded)
        reply: Reply
        try:
            reply = USE_CASES[type(command)](work, command, self.rules)
        except errors.RiskgateError as error:
            if len(work.recorded) != before:
                message = f"{type(command).__name__} was refused after it had recorded"
                raise AssertionError(message) from error
            if type(error).__name__ not in STICKY or not remembers:
                raise
            reply = refusal_of(error)
            work.record(Happening(CommandRefused(type(command).__name__, error.reason, reply.family)))
        if isinstance(command, SettleLapsed):
            reply = Settled(settled)
        if isinstance(command, CheckTransaction) and command.validate_only:
            return _Done(reply)
        row = None
        if remembers:
            # A request that left no entry could be taken out of the store unseen.
            assert work.recorded
            row = remembered(batch, command, reply, work)
        work.seal(command.fingerprint, row.reply if row else b"")
        return _Done(reply, work, row)

    def _quarantined(self, command: Command) -> Reply:
        """Refuse a command that broke us, now and whenever it comes back."""
        if command.request_id:
            self._quarantine[command.key, command.request_id] = None
            if len(self._quarantine) > QUARANTINE_MAX:
                self._quarantine.popitem(last=False)
        return failure_of(errors.InternalError("INTERNAL", "an internal error; it is logged"))
