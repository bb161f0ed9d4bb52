"""
The simulation over a real PostgreSQL, with what a network and a database with rivals do to a transaction.

Connections are cut by a proxy (`wire.py`). 40001 and 40P01 come from the server itself: a trigger raises them while
the transaction writes or at its COMMIT, and some deadlocks are real, with a rival's session.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, Self

import psycopg

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine import commands as c
from riskgate_server.engine.failures import OutcomeUnknown, StoreConflict, StoreUnreachable
from riskgate_server.engine.pipeline import CONFLICTS_MAX
from riskgate_server.engine.rows import BatchWrite, Locked
from riskgate_server.engine.storing import Snapshot, Store
from riskgate_server.stores.postgres.store import PostgresStore
from tests import postgres
from tests.simulation import model as m
from tests.simulation.backings import Backing
from tests.simulation.simulator import Expected, Simulation
from tests.simulation.wire import AT_COMMIT, Cut, Wire
from tests.simulation.world import expect

FAULT_SHARES: Final = (0.2, 0.4, 0.6)
STATEMENTS_MAX: Final = 8
"""More than one batch writes with."""
STORM: Final = CONFLICTS_MAX + 1
"""Conflicts in a row: as often as a batch is run."""
STORM_SHARE: Final = 0.05


class Raised(Enum):
    """What the server says in the middle of a transaction."""

    NOT_SERIALIZABLE_WRITING = ("write", "40001")
    NOT_SERIALIZABLE_COMMITTING = ("commit", "40001")
    DEADLOCK_WRITING = ("write", "40P01")
    DEADLOCK_COMMITTING = ("commit", "40P01")
    REAL_DEADLOCK = ("lock", "40P01")


Fault = Cut | Raised
FAULTS: Final[tuple[Fault, ...]] = (*Cut, *Raised)


class Ending(NamedTuple):
    """How one transaction ended, and whether its commands had been decided by then."""

    name: str
    decided: bool
    why: str = ""


COMMITTED, CONFLICT, UNREACHABLE, UNKNOWN_DONE, UNKNOWN_LOST, OTHERWISE = (
    "committed", "conflict", "unreachable", "unknown, done", "unknown, lost", "otherwise",
)  # fmt: skip

ANSWERS: Final = {CONFLICT: m.STORE_BUSY, UNREACHABLE: m.STORE_UNREACHABLE, UNKNOWN_LOST: m.OUTCOME_UNKNOWN}
"""What everybody in a batch is told, when nothing of it happened."""

_TRAP: Final = """
CREATE SCHEMA trap;
CREATE TABLE trap.plan (at text PRIMARY KEY, state text NOT NULL);
CREATE FUNCTION trap.fall() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE wanted text;
BEGIN
  SELECT state INTO wanted FROM trap.plan WHERE at = TG_ARGV[0];
  IF wanted IS NOT NULL THEN RAISE EXCEPTION 'as planned' USING ERRCODE = wanted; END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER while_writing AFTER INSERT ON riskgate.batches
  FOR EACH ROW EXECUTE FUNCTION trap.fall('write');
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON riskgate.batches
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION trap.fall('commit');
SET synchronous_commit = off;
"""
_OPTIONS: Final = "-c deadlock_timeout=5ms"
"""The store, not its rival, finds itself in a deadlock and is the one to give way."""


class Database:
    """A database of a test's own, with its traps, and the proxy before it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        dsn = postgres.database(folder)
        PostgresStore(dsn).close()
        self.admin = psycopg.connect(dsn, autocommit=True)
        self.rival = psycopg.connect(dsn, autocommit=True, options="-c deadlock_timeout=60s")
        for statement in (_TRAP, "SET search_path = trap"):
            self.admin.execute(statement)
        info = self.admin.info
        self.wire = Wire(f"{info.host}/.s.PGSQL.{info.port}")
        self.dsn = self.wire.dsn(info.user, info.dbname, _OPTIONS)

    def close(self) -> None:
        self.wire.close()
        self.rival.close()
        self.admin.execute("DROP SCHEMA trap CASCADE")
        self.admin.close()
        postgres.give_back(self._folder)

    def clear(self) -> None:
        """Begin anew with empty tables."""
        kept = ("migrations", "rulesets")
        tables = self.admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'riskgate'").fetchall()
        self.admin.execute("TRUNCATE " + ", ".join(f"riskgate.{name}" for (name,) in tables if name not in kept))

    def trap(self, fault: Raised) -> None:
        self.admin.execute("INSERT INTO plan VALUES (%s, %s)", fault.value)

    def disarm(self) -> None:
        self.admin.execute("DELETE FROM plan")


class Endangering:
    """Keeps `backings.Backing`. A process that ends gives its number back, or takes its connection away and no more."""

    faults: tuple[Any, ...] = ()
    """Those of `faults.Fault` are others; what there is here is `SharedSimulation`'s to pick."""

    def __init__(self, database: Database, random: Random) -> None:
        self._database = database
        self._random = random
        self._opened: PostgresStore | None = None
        self._hours = 0.0

    def open(self, plan: Callable[[], Any]) -> Any:
        self._database.wire.arm(None)
        self.close()
        # A store that has lost its database tries again only after a while: here every look at the clock is one.
        self._opened = PostgresStore(self._database.dsn, readers=1, monotonic=self._later)
        return Endangered(self._opened, self._database, plan)

    def _later(self) -> float:
        self._hours += 3_600
        return self._hours

    def close(self) -> None:
        self._database.wire.deliver()
        if self._opened is None:
            return
        if self._opened._db is not None and self._random.random() < 0.5:
            # Killed: it gives nothing back.
            self._opened._db.close()
        self._opened.close()
        self._opened = None


class Endangered:
    """Keeps `engine.storing.Store` over the real one. `plan` is asked once per transaction what happens to it."""

    def __init__(self, inner: Store, database: Database, plan: Callable[[], tuple[Fault | None, int]]) -> None:
        self.inner = inner
        self.log: list[Ending] = []
        self.fired: list[Fault] = []
        self._database = database
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        fault, after = self._plan()
        wire, database = self._database.wire, self._database
        at_once = isinstance(fault, Cut) and fault is not Cut.WHILE_WRITING
        wire.arm(fault if at_once else None, after)  # type: ignore[arg-type]  # as at_once says
        trapped = isinstance(fault, Raised) and fault is not Raised.REAL_DEADLOCK
        if trapped:
            # It would fall in as well.
            wire.deliver()
            database.trap(fault)  # type: ignore[arg-type]  # as trapped says
        seen = _Seen(None)
        how, why = OTHERWISE, ""
        try:
            with ExitStack() as rivals, self.inner.transaction() as tx:
                seen = _Seen(tx)
                if fault is Cut.WHILE_WRITING:
                    seen.before_write = lambda: wire.arm(fault, after)
                if fault is Raised.REAL_DEADLOCK:
                    rival = rivals.enter_context(Rival(database))
                    seen.before_lock = rival.ask_for_the_writer
                yield seen
            how = COMMITTED
            expect(wire.fired is None, "a transaction that was cut seems to have committed", wire.fired)
        except StoreConflict:
            how = CONFLICT
            expect(isinstance(fault, Raised), "a conflict out of nowhere")
            self.fired.append(fault)  # type: ignore[arg-type]  # as just said
            raise
        except StoreUnreachable:
            how = UNREACHABLE
            expect(wire.fired and wire.fired not in AT_COMMIT, "the database out of reach for no reason", wire.fired)
            self.fired.append(wire.fired)  # type: ignore[arg-type]  # as just said
            raise
        except OutcomeUnknown:
            how = UNKNOWN_DONE if wire.committed else UNKNOWN_LOST
            expect(wire.fired in AT_COMMIT, "an outcome unknown for no reason", wire.fired)
            self.fired.append(wire.fired)  # type: ignore[arg-type]  # as just said
            raise
        except BaseException as error:
            why = repr(error)
            raise
        finally:
            if trapped:
                database.disarm()
            if not wire.late:
                wire.cut = None
            self.log.append(Ending(how, seen.decided, why))

    def snapshot(self) -> Snapshot:
        return self.inner.snapshot()


class _Seen:
    """A transaction that tells when it locks and when it writes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.decided = False
        self.before_lock: Callable[[], object] = lambda: None
        self.before_write: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def lock(self, keys: Sequence[CustomerKey], **how: Any) -> Locked:
        self.before_lock()
        locked: Locked = self._inner.lock(keys, **how)
        return locked

    def write(self, batch: BatchWrite) -> None:
        self.decided = True
        self.before_write()
        self._inner.write(batch)


class Rival:
    """A session that has every customer and wants the writer's row, which the store has, who wants a customer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asking = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._database.rival.execute("BEGIN")
        self._database.rival.execute("SELECT 1 FROM riskgate.customers FOR UPDATE")
        return self

    def __exit__(self, *_: object) -> None:
        if self._asking.ident is not None:
            self._asking.join()
        self._database.rival.execute("ROLLBACK")

    def ask_for_the_writer(self) -> None:
        """Return when the rival waits for what the store has."""
        self._asking.start()
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %s"
        pid = self._database.rival.info.backend_pid
        while self._database.admin.execute(waits, (pid,)).fetchone() == (0,):
            pass

    def _ask(self) -> None:
        with suppress(psycopg.Error):
            self._database.rival.execute("SELECT 1 FROM riskgate.writers FOR UPDATE")


class SharedSimulation(Simulation):
    """Runs one seed over a database. `fired` counts what was injected and came."""

    def __init__(self, seed: int, database: Database, **named: Any) -> None:
        super().__init__(seed, Path(), **named)
        self.fired: list[Fault] = []
        self._database = database
        self._fault_share = self._random.choice(FAULT_SHARES)
        self._storm: tuple[Fault, int] | None = None

    def _begin(self) -> Backing:
        self._database.clear()
        return Endangering(self._database, self._random)

    def _fault(self) -> Any:
        """Pick what happens to the next transaction; now and then it is the same for as often as a batch is run."""
        if self._storm:
            fault, left = self._storm
            self._storm = (fault, left - 1) if left > 1 else None
            return fault, 0
        if self._random.random() >= self._fault_share:
            return None, 0
        fault = self._random.choice(FAULTS)
        stormy = fault in (Raised.NOT_SERIALIZABLE_WRITING, Raised.DEADLOCK_COMMITTING)
        if stormy and self._random.random() < STORM_SHARE:
            self._storm = (fault, STORM - 1)
        most = 2 if fault is Cut.WHILE_LOCKING else STATEMENTS_MAX
        return fault, self._random.randrange(most)

    def _sweep(self) -> None:
        self._database.wire.deliver()
        super()._sweep()

    def _batch(self, commands: Sequence[c.Command]) -> None:
        super()._batch(commands)
        self._storm = None
        store: Any = self._store
        self.fired += store.fired
        store.fired.clear()

    def _expected(self, commands: Sequence[c.Command], log: Iterator[Any], conflicts: int = 0) -> Expected:
        endings = tuple(log)
        *lost, last = endings
        expect(all(ending.name == CONFLICT for ending in lost), "a batch was run again that must not be", endings)
        done = last.name in (COMMITTED, UNKNOWN_DONE)
        if any(ending.decided for ending in (lost if done else endings)):
            # What broke the engine is remembered, whatever became of its batch.
            tried = self._model.trial()
            for command in commands:
                self._ask(command, tried)
        if done:
            answers = [self._ask(command) for command in commands]
            return Expected(answers if last.name == COMMITTED else [m.OUTCOME_UNKNOWN] * len(commands), survives=True)
        answer = {CONFLICT: m.STORE_BUSY, UNREACHABLE: m.STORE_UNREACHABLE, UNKNOWN_LOST: m.OUTCOME_UNKNOWN}.get(
            last.name
        )
        expect(answer, "a transaction failed in a way nobody planned", endings)
        return Expected([answer or m.OUTCOME_UNKNOWN] * len(commands), survives=True)

    def _audit(self, keys: Any) -> None:
        # What is still under way to the server is told by the model already.
        if not self._database.wire.late:
            super()._audit(keys)
