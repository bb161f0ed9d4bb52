"""The same trace on several stores, batch by batch: the first difference, of a reply or of a row, ends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import msgspec
from structlog.testing import capture_logs

from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine import commands as c
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.replies import Failed, Refusal, Reply
from riskgate_server.engine.storing import Snapshot, Store, Vault
from riskgate_server.engine.verify import verify
from tests import factories as f
from tests.contract.backends import BACKENDS, VAULTS
from tests.traces.source import Trace

CACHED_CUSTOMERS: Final = {"memory": 1, "sqlite": 40, "postgres": 10_000}
"""What is remembered between batches must not matter, so each remembers another share."""
SWEEP_EVERY: Final = 7
"""Batches between two sweeps of what lapsed."""
REPLY_LIFETIME_US: Final = f.DAY_US
PAGE: Final = 500

_encode: Final = msgspec.msgpack.Encoder().encode


class Different(AssertionError):
    """Two stores came to different ends."""


@dataclass
class Course:
    """What a trace went through."""

    commands: int = 0
    batches: int = 0
    repeated: int = 0
    altered: int = 0
    lapsed: int = 0
    forgotten: int = 0
    entries: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    """By type; those that refuse by their reason too."""
    replies_hash: str = ""
    head: str = ""
    """Hash of the last batch row, which all before it are chained to."""


class Engine:
    """A pipeline over one store."""

    def __init__(self, name: str, store: Store, vault: Vault, trace: Trace, seed: int) -> None:
        self.name, self.store, self.vault = name, store, vault
        self.pipeline: Pipeline = f.make_pipeline(
            store,
            vault=vault,
            clock=trace.clock,
            entropy=f.SeededEntropy(seed),
            monotonic_us=lambda: trace.monotonic_us,
            cached_customers=CACHED_CUSTOMERS[name],
            bounds=trace.bounds,
        )

    def sweep(self, now_us: int) -> tuple[list[CustomerKey], int]:
        """Forget old replies, and return whose holds lapsed and how many replies were forgotten."""
        forgotten = self.store.forget_replies(now_us - REPLY_LIFETIME_US, 10**6)
        return list(self.store.customers_due(now_us, 200)), forgotten


class Lockstep:
    """Runs a trace on every store in a folder."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        commands: int,
        said: Callable[[int], None] = lambda _: None,
        changed: Mapping[str, Callable[[Engine], None]] | None = None,
    ) -> None:
        """
        Plan a run.

        Args:
            folder: where stores that need one keep their files.
            said: told how many commands are done, after every batch.
            changed: what is done to an engine before it starts, by its name.
        """
        self._folder = folder
        self._seed = seed
        self._commands = commands
        self._said = said
        self._changed = changed or {}
        self.course = Course()

    def run(self) -> Course:
        """Run to the end, or raise `Different`."""
        trace = Trace(self._seed, self._commands)
        course, told = self.course, sha256()
        with capture_logs(), ExitStack() as stack:
            engines = self._engines(trace, stack)
            while batch := trace.batch():
                if course.batches % SWEEP_EVERY == 0:
                    self._sweep(engines, trace)
                told.update(self._batch(engines, trace, batch))
                course.commands += len(batch)
                self._said(course.commands)
            course.repeated, course.altered = trace.repeated, trace.altered
            course.replies_hash = told.hexdigest()
            self._compare_rows(engines)
            self._verify(engines)
        return course

    def _engines(self, trace: Trace, stack: ExitStack) -> list[Engine]:
        engines = []
        for name, opened in BACKENDS.items():
            store, vault = opened(self._folder), VAULTS[name](self._folder)
            stack.callback(store.close)
            stack.callback(getattr(vault, "close", lambda: None))
            engines.append(Engine(name, store, vault, trace, self._seed))
            if change := self._changed.get(name):
                change(engines[-1])
        return engines

    def _batch(self, engines: list[Engine], trace: Trace, batch: list[c.Command]) -> bytes:
        course = self.course
        course.batches += 1
        course.kinds.update(type(command).__name__ for command in batch)
        replies = {engine.name: engine.pipeline.run(batch) for engine in engines}
        encoded = {name: _encode(answers) for name, answers in replies.items()}
        first, *others = engines
        for other in others:
            if encoded[other.name] != encoded[first.name]:
                self._tell_difference(batch, first.name, replies[first.name], other.name, replies[other.name])
        trace.heard(batch, replies[first.name])
        for reply in replies[first.name]:
            course.replies[type(reply).__name__] += 1
            if isinstance(reply, Refusal | Failed):
                course.replies[reply.reason] += 1
        return encoded[first.name]

    def _tell_difference(
        self, batch: list[c.Command], name: str, replies: list[Reply], other: str, others: list[Reply]
    ) -> None:
        for command, reply, answer in zip_longest(batch, replies, others):
            if reply != answer:
                what = f"{type(command).__name__} {command.request_id}"
                raise Different(f"batch {self.course.batches}, {what}: {name} {reply!r}, {other} {answer!r}")
        raise Different(f"batch {self.course.batches}: {name} and {other} encode equal replies differently")

    def _sweep(self, engines: list[Engine], trace: Trace) -> None:
        swept = {engine.name: engine.sweep(trace.clock.us) for engine in engines}
        due, forgotten = swept[engines[0].name]
        if any(other != (due, forgotten) for other in swept.values()):
            raise Different(f"before batch {self.course.batches + 1}: due and forgotten are {swept}")
        trace.forget(trace.clock.us - REPLY_LIFETIME_US)
        self.course.forgotten += forgotten
        if due:
            self.course.lapsed += len(due)
            self._batch(engines, trace, [f.settle(*key) for key in due])

    def _compare_rows(self, engines: list[Engine]) -> None:
        first, *others = engines
        for other in others:
            with first.store.snapshot() as ours, other.store.snapshot() as theirs:
                for row, twin in zip_longest(rows_of(ours), rows_of(theirs)):
                    if row != twin:
                        raise Different(f"{first.name} keeps {row!r}, {other.name} {twin!r}")
        with first.store.snapshot() as snapshot:
            (lane,) = snapshot.lanes()
            assert lane.batch
            self.course.entries, self.course.head = lane.position, lane.batch.hash.hex()

    @staticmethod
    def _verify(engines: list[Engine]) -> None:
        for engine in engines:
            report = verify(engine.store, engine.vault, Sealer())
            if report.faults:
                raise Different(f"{engine.name} does not verify: {report.faults[:3]}")


def rows_of(snapshot: Snapshot) -> Iterator[Any]:
    """Everything a store keeps, journal first, in an order of its own keys."""
    position = sequence = 0
    while entries := snapshot.entries_by_position(0, after=position, limit=PAGE):
        yield from entries
        position = entries[-1].position
    while batches := snapshot.batches(0, after=sequence, limit=PAGE):
        yield from batches
        sequence = batches[-1].sequence
    after = ("", "")
    while customers := snapshot.customers(after=after, limit=PAGE):
        for customer in customers:
            yield customer
            key = customer.key
            yield from snapshot.purchases(key, after="", limit=10**9, only_open=False)
            yield from snapshot.payments(key)
            yield from snapshot.requests(key, after="", limit=10**9)
            yield snapshot.identity(key)
            yield from sorted(snapshot.messages(key), key=lambda row: row.message_id)
        after = customers[-1].key
    yield sorted(snapshot.counts().items())
    yield sorted(snapshot.ruleset_sources().items())
