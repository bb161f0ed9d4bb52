"""One seed, one trace: every kind of command, and everything that comes of asking twice, too late or too much."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Final

import msgspec

from riskgate_server.engine import commands as c
from riskgate_server.engine.replies import Reply
from tests import factories as f
from tests.simulation import model as m
from tests.simulation.acts import ACTS
from tests.simulation.commands import CommandSource
from tests.simulation.oracle import Model
from tests.traces.proofs import Key, ProofSource

BATCH_SIZES: Final = (1, 1, 2, 5, 9, 17, 40, 100, 250)
COMMANDS_PER_CUSTOMER: Final = 250
SENT_KEPT: Final = 3_000
CLOCK_JUMPS: Final = (
    *(f.SECOND_US,) * 24,
    *(10 * f.SECOND_US,) * 16,
    *(f.MINUTE_US,) * 6,
    *(f.HOUR_US, 5 * f.HOUR_US, f.DAY_US, 3 * f.DAY_US),
    -f.SECOND_US,
    -f.HOUR_US,
)
"""Mostly short, for codes live five minutes; often enough long, for holds live a week."""


class Trace:
    """Makes batches. What stands, and is worth aiming at, it knows from a model and from the replies it is told."""

    def __init__(self, seed: int, commands: int) -> None:
        self._random = random = Random(seed)
        self.clock = f.FixedClock()
        self.monotonic_us = 1_000
        self.bounds = m.SMALL
        self.repeated = self.altered = 0
        self._left = commands
        self._model = Model()
        self._purchases = CommandSource(random, self._model)
        self._proofs = ProofSource(random, self.clock)
        self._sent: deque[c.Command] = deque(maxlen=SENT_KEPT)
        number = 6 + commands // COMMANDS_PER_CUSTOMER
        self._keys: list[Key] = [("acme" if n % 5 else "zeta", f"c{n}") for n in range(number)]
        self._busy = self._keys[:5]

    def batch(self) -> list[c.Command]:
        """The next commands; none at the end."""
        self.clock.wait(self._random.choice(CLOCK_JUMPS))
        self.monotonic_us += self._random.randint(0, 50)
        size = min(self._random.choice(BATCH_SIZES), self._left)
        self._left -= size
        return [self._command() for _ in range(size)]

    def _command(self) -> c.Command:
        if self._sent and self._random.random() < 0.1:
            again = self._random.choice(self._sent)
            self.repeated += 1
            if self._random.random() < 0.25:
                self.altered += 1
                return msgspec.structs.replace(again, fingerprint=b"another content")
            return again
        key = self._random.choice(self._busy if self._random.random() < 0.1 else self._keys)
        # Every third customer proves themselves, and buys like the others in between.
        proves = int(key[1][1:]) % 3 == 0 and key in self._model.customers and self._random.random() < 0.7
        command = self._proofs.next(key) if proves else self._purchases.next(key)
        if self._random.random() < 0.02:
            late_us = self.monotonic_us + self._random.randint(-20, 20)
            command = msgspec.structs.replace(command, deadline_us=late_us)
        if command.request_id:
            self._sent.append(command)
        return command

    def heard(self, commands: Sequence[c.Command], replies: Sequence[Reply]) -> None:
        """Learn what a batch came to."""
        for command, reply in zip(commands, replies, strict=True):
            self._proofs.heard(command, reply)
            if type(command) in ACTS and not getattr(command, "grant", b""):
                late = bool(command.deadline_us) and self.monotonic_us >= command.deadline_us
                self._model.answer(command, self.clock.us, late=late)

    def forget(self, before_us: int) -> None:
        """Learn that replies are not kept any more."""
        self._model.forget(before_us)
