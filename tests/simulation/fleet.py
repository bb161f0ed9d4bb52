"""
The simulation with several processes on one database: their batches run into each other, as one seed says.

A batch may begin at four instants of another's: before that has locked its customers, when it has, before it writes,
and before it commits. It runs to its end there, on the same thread, so that a seed replays to the last bit, and between
real transactions: who is locked is passed over, and who begins a customer second loses a real race.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine import commands as c
from riskgate_server.engine.failures import StoreConflict
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.replies import Reply
from riskgate_server.engine.rows import BatchWrite, Locked
from riskgate_server.stores.postgres.store import PostgresStore
from tests import postgres
from tests.simulation import model as m
from tests.simulation.backings import Backing, Wire
from tests.simulation.faults import NETWORK_FAULTS, Fault, FaultyStore
from tests.simulation.oracle import Model
from tests.simulation.simulator import Simulation
from tests.simulation.world import Discrepancy, expect

PROCESSES: Final = (2, 2, 3)
MEANWHILE_SHARE: Final = 0.25
"""How often a batch begins at each of the instants."""
MEANWHILE_MAX: Final = 4
"""Commands in such a batch."""
RACE_SHARE: Final = 0.5
"""How often such a batch is out to begin a customer whom the other is about to begin."""

NEWCOMERS: Final = [("acme", f"new{number}") for number in range(3)]
"""More who may be begun by two processes at once."""

LEFT: Final[m.Answer] = ("left for a later batch",)


class Process:
    """One of the processes, and what its batch under way has got hold of."""

    def __init__(self, backing: Backing) -> None:
        self.backing = backing
        self.store: Any = None
        self.pipeline: Any = None
        self.harmful: set[tuple[m.Key, str]] = set()
        self.commands: Sequence[c.Command] = ()
        self.passed_over: frozenset[CustomerKey] = frozenset()
        """Whom others held when the batch began."""
        self.held: frozenset[CustomerKey] = frozenset()
        self.unheard_of: frozenset[CustomerKey] = frozenset()
        """Named by the batch, and not there when it locked its customers."""
        self.beginning: frozenset[CustomerKey] = frozenset()
        """Those of them whose rows it may have written."""
        self.to_break: set[tuple[m.Key, str]] = set()
        """Requests that will break the engine in the batch under way, and did not in one before it."""
        self.begun_meanwhile: set[CustomerKey] = set()
        """Those of the unheard of whom others have begun since."""


class Lane:
    """Keeps `backings.Backing`: one writer's number in the database that all share."""

    faults = NETWORK_FAULTS

    def __init__(self, dsn: str, writer: int, weave: Callable[[FaultyStore], Any]) -> None:
        self._dsn = dsn
        self._writer = writer
        self._weave = weave
        self._store: PostgresStore | None = None

    def open(self, plan: Callable[[], Fault]) -> Any:
        """A process begins over what the last one left."""
        self.close()
        self._store = PostgresStore(self._dsn, self._writer, readers=1)
        wire = Wire(self._store)
        return self._weave(FaultyStore(self._store, plan, died=wire.cut, wire=wire))

    def close(self) -> None:
        """The process is gone; it gives nothing back."""
        if self._store is not None:
            Wire(self._store).cut()
            self._store.close()
            self._store = None


class Lanes:
    """Keeps `backings.Backing` for the whole fleet, which is closed as one and opened one by one."""

    faults = NETWORK_FAULTS

    def __init__(self, folder: Path, processes: Sequence[Process]) -> None:
        self._folder = folder
        self._processes = processes

    def open(self, plan: Callable[[], Fault]) -> Any:
        raise AssertionError("each process opens its own lane")

    def close(self) -> None:
        """The seed is over."""
        for process in self._processes:
            process.backing.close()
        postgres.give_back(self._folder)


class Woven:
    """Keeps `engine.storing.Store`: others' batches begin in the middle of its transactions."""

    def __init__(self, inner: FaultyStore, fleet: FleetSimulation) -> None:
        self._inner = inner
        self._fleet = fleet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """One transaction, in the midst of the others' batches."""
        try:
            with self._inner.transaction() as tx:
                yield _WovenTransaction(tx, self._fleet)
                self._fleet.meanwhile()
        except StoreConflict:
            self._inner.log[-1] = self._fleet.lost_race(self._inner.log[-1])
            raise
        finally:
            self._fleet.let_go()


class _WovenTransaction:
    def __init__(self, inner: Any, fleet: FleetSimulation) -> None:
        self._inner = inner
        self._fleet = fleet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def lock(self, keys: Sequence[CustomerKey], **how: Any) -> Locked:
        self._fleet.meanwhile()
        locked: Locked = self._inner.lock(keys, **how)
        self._fleet.locked(keys, locked)
        self._fleet.meanwhile()
        return locked

    def write(self, batch: BatchWrite) -> None:
        self._fleet.meanwhile()
        self._inner.write(batch)
        self._fleet.wrote()


class FleetSimulation(Simulation):
    """Runs one seed with several processes."""

    def __init__(self, seed: int, folder: Path, **named: Any) -> None:
        super().__init__(seed, folder, **named)
        self._keys += NEWCOMERS
        self.processes: list[Process] = []
        self.woven = 0
        """Batches that ran in the middle of another's."""
        self.left = 0
        """Commands that were left, since their customer was another process's."""
        self.races = 0
        """Batches that lost a real race."""
        self._at_work: list[Process] = []
        self._wrong: list[str] = []

    # --- Which process it is. ---

    def _begin(self) -> Backing:
        folder = self._folder / f"fleet-{self.seed}"
        dsn = postgres.database(folder)
        number = self._random.choice(PROCESSES)
        self.processes = [Process(Lane(dsn, writer, lambda store: Woven(store, self))) for writer in range(number)]
        return Lanes(folder, self.processes)

    def _start(self) -> None:
        """Begin the process at work anew; all of them when none is."""
        if self._at_work:
            super()._start()
            return
        for process in self.processes:
            with self._as(process):
                super()._start()

    @contextmanager
    def _as(self, process: Process) -> Iterator[None]:
        """Be one of the processes: whatever a simulation does is done by it."""
        self._keep()
        self._at_work.append(process)
        self._become(process)
        try:
            yield
        finally:
            self._keep()
            self._at_work.pop()
            self._become(self._at_work[-1] if self._at_work else self.processes[0])

    def _keep(self) -> None:
        if self._at_work:
            now = self._at_work[-1]
            now.store, now.pipeline = self._store, self._pipeline

    def _become(self, process: Process) -> None:
        self._backing = process.backing
        self._store, self._pipeline = process.store, process.pipeline
        self._model.harmful = process.harmful

    # --- Batches, and batches in the middle of them. ---

    def _batch(self, commands: Sequence[c.Command]) -> None:
        idle = [process for process in self.processes if process not in self._at_work]
        process = self._random.choice(idle)
        process.commands = commands
        process.passed_over = frozenset[CustomerKey]().union(*(other.held for other in self._at_work))
        with self._as(process):
            super()._batch(commands)
        if not self._at_work and self._wrong:
            raise Discrepancy(self._wrong[0])

    def _run(self, commands: Sequence[c.Command]) -> Sequence[Reply | None]:
        pipeline: Pipeline = self._pipeline
        # Nobody else is at work: to wait is to wait for nothing.
        wait = () if len(self._at_work) > 1 else {command.key for command in commands}
        return pipeline.run_free(commands, wait=wait)

    def meanwhile(self) -> None:
        """Perhaps have another process run a batch of its own, here and now."""
        now = self._at_work[-1]
        if len(self._at_work) == len(self.processes) or self._random.random() >= MEANWHILE_SHARE:
            return
        if Fault.REJECTED in self._store.log:
            # Its commands are run one by one, and the model is told of all of them together.
            return
        commands = [self._command() for _ in range(self._random.randint(1, MEANWHILE_MAX))]
        if now.unheard_of and self._random.random() < RACE_SHARE:
            commands.append(self._source.next(self._random.choice(sorted(now.unheard_of))))
        # Who begins a customer that a transaction under way begins waits for its end: here it would wait for ever.
        begun = frozenset[CustomerKey]().union(*(process.beginning for process in self._at_work))
        commands = [command for command in commands if command.key not in begun]
        if not commands:
            return
        self.woven += 1
        before = set(self._model.customers)
        try:
            self._batch(commands)
        except Exception as error:  # noqa: BLE001 - the engine in whose batch this happens would take it for its own
            self._wrong.append(str(error) if isinstance(error, Discrepancy) else repr(error))
        for process in self._at_work:
            process.begun_meanwhile |= (set(self._model.customers) - before) & process.unheard_of

    def locked(self, keys: Sequence[CustomerKey], locked: Locked) -> None:
        """Note whom the batch under way has, and what will break the engine in it, whatever becomes of the batch."""
        now = self._at_work[-1]
        now.held = frozenset(locked.versions)
        now.unheard_of = frozenset(keys) - now.held - locked.elsewhere
        now.begun_meanwhile = set()
        if locked.elsewhere != now.passed_over & frozenset(keys):
            self._wrong.append(f"passed over {sorted(locked.elsewhere)}, held are {sorted(now.passed_over)}")
        before = set(self._model.harmful)
        super()._try(now.commands)
        now.to_break = self._model.harmful - before

    def lost_race(self, planned: Fault) -> Fault:
        """Tell a real race from one that was planned."""
        now = self._at_work[-1]
        if planned is not Fault.CONFLICT:
            self.races += 1
            if not now.begun_meanwhile:
                self._wrong.append("a race was lost to nobody")
        return Fault.CONFLICT

    def wrote(self) -> None:
        """Note that others who begin the same customers would wait from here on."""
        now = self._at_work[-1]
        now.beginning = now.unheard_of
        if self._store.log[-1] is Fault.CUT_AFTER_WRITE:
            # Nobody here knows yet, but the database does: what was locked is free.
            self.let_go()

    def let_go(self) -> None:
        """A transaction has ended, or lost its connection."""
        now = self._at_work[-1]
        now.held = now.beginning = frozenset()

    # --- What must come of them. ---

    def _try(self, commands: Sequence[c.Command]) -> None:
        """Nothing more: it was tried on what stood when the batch had its customers."""

    def _ask(self, command: c.Command, model: Model | None = None) -> m.Answer:
        now = self._at_work[-1]
        if command.key in now.passed_over:
            return LEFT
        if model is None and (mark := (command.key, command.request_id)) in now.to_break:
            # It will: an earlier copy of the same request need not.
            now.to_break.discard(mark)
            self._model.harmful.discard(mark)
        if command.key not in now.begun_meanwhile:
            return super()._ask(command, model)
        # Decided before they were begun: whoever begins them as well cannot commit.
        blank = Model(self._model.bounds)
        blank.harmful = self._model.harmful
        answer = super()._ask(command, blank)
        expect(not blank.customers, "a customer was begun twice", command.key)
        return answer

    def _hear(self, command: c.Command, told: Reply | None, answer: m.Answer) -> None:
        expect((told is None) is (answer is LEFT), "left, or not left", command.key, told, answer)
        if told is not None:
            super()._hear(command, told, answer)
            return
        self.left += 1
        if command.request_id and command not in self._unknown:
            self._unknown.append(command)
