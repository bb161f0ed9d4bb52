"""
One seed, one history: customers, their clients, the clock, the store's faults and the process's deaths.

The pipeline and the stores are the real ones; everything that could differ between two runs comes
from the seed, so a failing seed replays to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
from structlog.testing import capture_logs

from riskgate_server.crypto.seal import Sealer
from riskgate_server.engine import commands as c
from riskgate_server.engine.failures import StoreBroken
from riskgate_server.engine.pipeline import CONFLICTS_MAX, Pipeline
from riskgate_server.engine.replies import Reply
from riskgate_server.engine.verify import verify
from riskgate_server.stores.memory import MemoryVault
from tests import factories as f
from tests.simulation import model as m
from tests.simulation.backings import BACKINGS, Backing
from tests.simulation.commands import CommandSource
from tests.simulation.faults import COMMITTED, Crash, Fault
from tests.simulation.oracle import Model
from tests.simulation.world import Auditor, Discrepancy, expect, plain

STEPS: Final = (20, 50)
"""Fewest and most batches of one seed."""
BATCH_MAX: Final = 9
SQLITE_EVERY: Final = 4
"""Unless a store is named, every so many seeds run on a SQLite file, the others in memory."""

CLOCK_JUMPS: Final = (
    *(f.SECOND_US,) * 6,
    *(f.MINUTE_US,) * 4,
    *(f.HOUR_US,) * 3,
    *(f.DAY_US, 2 * f.DAY_US, 8 * f.DAY_US),
    *(-f.SECOND_US, -f.HOUR_US, -2 * f.DAY_US),
)
ANSWERS: Final = {
    Fault.FULL_AT_WRITE: m.STORE_FULL,
    Fault.FULL_AT_COMMIT: m.STORE_FULL,
    Fault.BUSY: m.STORE_BUSY,
    Fault.CONFLICT: m.STORE_BUSY,
    Fault.CUT_BEFORE_BEGIN: m.STORE_UNREACHABLE,
    Fault.CUT_AT_BEGIN: m.STORE_UNREACHABLE,
    Fault.CUT_BEFORE_WRITE: m.STORE_UNREACHABLE,
    Fault.CUT_AFTER_WRITE: m.STORE_UNREACHABLE,
    Fault.CUT_BEFORE_COMMIT: m.OUTCOME_UNKNOWN,
}
"""What everybody in a batch is told, when nothing of it happened and the process stays."""
TRIED: Final = frozenset(
    {
        Fault.FULL_AT_WRITE, Fault.FULL_AT_COMMIT, Fault.REJECTED, Fault.CONFLICT,
        Fault.CUT_BEFORE_WRITE, Fault.CUT_AFTER_WRITE, Fault.CUT_BEFORE_COMMIT,
    }
)  # fmt: skip
"""The commands were run, and then rolled back."""

MakePipeline = Callable[..., Pipeline]


class SeedFailed(Exception):
    """One line: which seed, at which step, and what was wrong."""

    def __init__(self, seed: int, step: int, what: str) -> None:
        super().__init__(f"seed {seed} step {step}: {' '.join(what.split())[:600]}")


@dataclass
class Tally:
    """What a run went through; equal runs have equal digests."""

    commands: int = 0
    batches: int = 0
    restarts: int = 0
    unknown: int = 0
    repeated: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    digest: str = ""


class Simulation:
    """Runs one seed."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        *,
        store: str = "",
        make: MakePipeline = f.make_pipeline,
    ) -> None:
        """
        Prepare a seed.

        Args:
            folder: a `workshop`.
            store: a name of `backings.BACKINGS`; empty for one by the seed.
        """
        self.seed = seed
        self.tally = Tally()
        self.step = 0
        self._make = make
        self._random = random = Random(seed)
        self._folder = folder
        self._kind = store or ("memory" if seed % SQLITE_EVERY else "sqlite")
        self._clock = f.FixedClock(f.NOW_US + random.randint(0, f.DAY_US))
        self._monotonic_us = 1_000
        self._vault = MemoryVault()
        self._entropy = f.SeededEntropy(seed)
        self._model = Model()
        self._source = CommandSource(random, self._model)
        self._auditor = Auditor()
        keys = [("acme", "ada"), ("acme", "Ada"), ("acme", "bo"), ("zeta", "ada")]
        self._keys = keys[: random.randint(1, len(keys))]
        self._fault_share = random.choice((0.0, 0.05, 0.2, 0.4))
        self._sent: list[c.Command] = []
        self._unknown: list[c.Command] = []
        self._answered: dict[tuple[m.Key, str, bytes], m.Answer] = {}
        self._digest = sha256()

    def run(self) -> Tally:
        """Live through the seed; raise `SeedFailed` at the first thing that is wrong."""
        with capture_logs(), ExitStack() as stack:
            self._backing = self._begin()
            stack.callback(self._backing.close)
            try:
                self._live()
            except Discrepancy as error:
                raise SeedFailed(self.seed, self.step, str(error)) from error
            except Exception as error:
                raise SeedFailed(self.seed, self.step, f"{type(error).__name__}: {error}") from error
        self.tally.digest = self._digest.hexdigest()
        return self.tally

    def _begin(self) -> Backing:
        return BACKINGS[self._kind](self._folder / str(self.seed))

    def _live(self) -> None:
        self._start()
        for _ in range(self._random.randint(*STEPS)):
            self.step += 1
            self._tick()
            if self._random.random() < 0.08:
                self._sweep()
            if self._random.random() < 0.03:
                self._start()
            self._batch([self._command() for _ in range(self._random.randint(1, BATCH_MAX))])
        self._fault_share = 0.0
        self.step += 1
        # Whoever never heard asks again: every unknown outcome must now turn out to be exactly one.
        for command in [*self._unknown]:
            self._batch([command])
        self._sweep()
        self._audit(self._keys)
        self._check_acknowledged()
        report = verify(self._store, self._vault, Sealer())
        expect(not report.faults, "verify found", report.faults[:3])
        for lane in report.lanes:
            self._digest.update(lane.head)

    def _start(self) -> None:
        """A process begins over what the last one left."""
        self.tally.restarts += 1
        self._store = self._backing.open(self._fault)
        self._model.harmful.clear()
        self._pipeline = self._make(
            self._store,
            vault=self._vault,
            clock=self._clock,
            entropy=self._entropy,
            monotonic_us=lambda: self._monotonic_us,
            cached_customers=2,
            bounds=self._model.bounds,
        )
        self._audit(self._keys)

    def _fault(self) -> Fault:
        if self._random.random() >= self._fault_share:
            return Fault.NONE
        return self._random.choice(self._backing.faults)

    def _tick(self) -> None:
        self._clock.wait(self._random.choice(CLOCK_JUMPS))
        self._monotonic_us += self._random.randint(0, 50)

    def _command(self) -> c.Command:
        """Something new; or a retry of what nobody answered; or an old id, with its own content or with other."""
        chance = self._random.random()
        if self._unknown and chance < 0.3:
            return self._random.choice(self._unknown)
        if self._sent and chance < 0.42:
            again = self._random.choice(self._sent)
            self.tally.repeated += 1
            if self._random.random() < 0.25:
                return msgspec.structs.replace(again, fingerprint=b"another content")
            return again
        command = self._source.next(self._random.choice(self._keys))
        if self._random.random() < 0.05:
            late_us = self._monotonic_us + self._random.randint(-20, 20)
            command = msgspec.structs.replace(command, deadline_us=late_us)
        if command.request_id:
            self._sent.append(command)
        return command

    def _sweep(self) -> None:
        """What the writer's thread does every second."""
        now_us = self._clock.now_us()
        due = [(tenant, customer) for tenant, customer in self._store.customers_due(now_us, 200)]
        expect(self._model.due(now_us) <= set(due), "a lapsed hold goes unnoticed", due)
        if due:
            self._batch([f.settle(*key) for key in due])
        before_us = now_us - m.REPLY_LIFETIME_US
        self._store.forget_replies(before_us, 10**6)
        self._model.forget(before_us)

    def _batch(self, commands: Sequence[c.Command]) -> None:
        self.tally.batches += 1
        self.tally.commands += len(commands)
        self._store.log.clear()
        replies: Sequence[Reply | None] | None = None
        died: BaseException | None = None
        try:
            replies = self._run(commands)
        except (StoreBroken, Crash) as error:
            died = error
        expected = self._expected(commands, iter(self._store.log))
        for fault in self._store.log:
            self.tally.faults[fault.name] = self.tally.faults.get(fault.name, 0) + 1
        expect(expected.survives is (died is None), "answered, or died, at the wrong time", self._store.log, died)
        if replies is not None:
            for command, reply, answer in zip(commands, replies, expected.answers, strict=True):
                self._hear(command, reply, answer)
        else:
            self._unknown.extend(command for command in commands if command.request_id)
            self.tally.unknown += len(commands)
            self._start()
        self._audit(dict.fromkeys(command.key for command in commands))

    def _run(self, commands: Sequence[c.Command]) -> Sequence[Reply | None]:
        return self._pipeline.run(commands)

    def _hear(self, command: c.Command, told: Reply | None, answer: m.Answer) -> None:
        assert told is not None
        reply = plain(told)
        expect(reply == answer, f"{type(command).__name__} {command.request_id} was answered", reply, "not", answer)
        self._digest.update(repr(reply).encode())
        if reply == m.OUTCOME_UNKNOWN:
            self.tally.unknown += 1
        if reply == m.OUTCOME_UNKNOWN or self._random.random() < 0.05:
            # It is not known what happened, or the caller has gone. It may ask again, or never.
            if command.request_id:
                self._unknown.append(command)
            return
        if command in self._unknown:
            self._unknown.remove(command)
        if command.request_id and reply[0] != "failed":
            self._answered.setdefault((command.key, command.request_id, command.fingerprint), reply)

    def _expected(self, commands: Sequence[c.Command], log: Iterator[Fault], conflicts: int = 0) -> Expected:
        """What the model answers, given which transactions committed."""
        first = next(log)
        if first in COMMITTED:
            answers = [self._ask(command) for command in commands]
            if first is Fault.CUT_AFTER_COMMIT:
                answers = [m.OUTCOME_UNKNOWN] * len(commands)
            return Expected(answers, survives=first in (Fault.NONE, Fault.CUT_AFTER_COMMIT))
        if first in TRIED:
            self._try(commands)
        if first is Fault.CONFLICT and conflicts < CONFLICTS_MAX:
            return self._expected(commands, log, conflicts + 1)
        if first in ANSWERS:
            return Expected([ANSWERS[first]] * len(commands), survives=True)
        if first is not Fault.REJECTED:
            return Expected([], survives=False)
        if len(commands) == 1:
            return Expected([self._model.quarantine(commands[0])], survives=True)
        # Rolled back, then one by one.
        answers = []
        for command in commands:
            alone = self._expected([command], log)
            if not alone.survives:
                return Expected([], survives=False)
            answers += alone.answers
        return Expected(answers, survives=True)

    def _try(self, commands: Sequence[c.Command]) -> None:
        """Note what breaks the engine in a batch that is then rolled back."""
        tried = self._model.trial()
        for command in commands:
            self._ask(command, tried)

    def _ask(self, command: c.Command, model: Model | None = None) -> m.Answer:
        late = bool(command.deadline_us) and self._monotonic_us >= command.deadline_us
        return (model or self._model).answer(command, self._clock.now_us(), late=late)

    def _audit(self, keys: Any) -> None:
        with self._store.snapshot() as snapshot:
            for key in keys:
                for entry in self._auditor.audit(snapshot, key, self._model):
                    self._digest.update(entry.hash)

    def _check_acknowledged(self) -> None:
        """Everything anybody was told is in the journal, once."""
        found: dict[tuple[m.Key, str], int] = {}
        for key, chain in self._auditor.chains.items():
            for entry in chain.entries:
                # A command may also end lapsed holds, suspend the line and use credit; its own entry is another kind.
                if entry.request_id and entry.tag not in (m.ENDED, m.BLOCKED, m.USED):
                    found[key, entry.request_id] = found.get((key, entry.request_id), 0) + 1
        twice = [where for where, times in found.items() if times > 1]
        expect(not twice, "effects that stand twice", twice)
        for (key, request_id, _), answer in self._answered.items():
            if answer[0] in ("line", "hold") or (answer[0] == "decision" and not answer[1]):
                continue
            expect((key, request_id) in found, "an acknowledged effect is missing", key, request_id, answer)


@dataclass
class Expected:
    """What a batch must come to."""

    answers: list[m.Answer]
    survives: bool
