"""64 callers of one line, who together ask for more than it can give."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from itertools import count
from typing import Final

from google.protobuf.message import Message

from riskgate.credit.v1 import ledger_service_pb2 as ledger
from riskgate.risk.v1 import risk_service_pb2 as risk
from tests.acceptance.calling import Backend, Told, check, connections, money, open_line
from tests.acceptance.deployment import Deployment

CALLERS: Final = 64
LIMIT_MINOR: Final = 100_000


class Crowd:
    """Callers of one line. What they know of it may be old by the time they call."""

    def __init__(self, deployment: Deployment, seconds: float, connections: int = 4) -> None:
        self.answers: list[Told] = []
        self.kills = 0
        self._deployment = deployment
        self._connections = connections
        self._until = time.monotonic() + seconds
        self._numbers = count(1)
        self._holds: set[str] = set()

    async def run(self, kill: Callable[[], bool] | None = None, *, seconds_per_kill: float = 3.0) -> None:
        """Call until the time is over; now and then `kill`, which says whether there was anybody to kill."""
        async with connections(self._deployment, self._connections, attempt_seconds=2) as backends:
            self.answers.append(await backends[0].settle(open_line("one", LIMIT_MINOR)))
            async with asyncio.TaskGroup() as everybody:
                for number in range(CALLERS):
                    everybody.create_task(self._call(backends[number % len(backends)]))
                if kill:
                    everybody.create_task(self._kill(kill, seconds_per_kill))

    async def _call(self, backend: Backend) -> None:
        while time.monotonic() < self._until:
            told = await backend.settle(self._request())
            self.answers.append(told)
            if told.done and isinstance(told.request, risk.CheckTransactionRequest):
                if risk.CheckTransactionResponse.FromString(told.reply).decision.HasField("held_amount"):
                    self._holds.add(told.request.transaction_id)
            elif not told.done and isinstance(told.request, ledger.CaptureHoldRequest | ledger.VoidHoldRequest):
                self._holds.discard(told.request.hold_id)

    def _request(self) -> Message:
        """Ask for more credit than the line can give, and give some back."""
        number = next(self._numbers)
        request_id = f"r{number}"
        doing = random.random()
        if self._holds and doing < 0.5:
            hold_id = random.choice(list(self._holds))
            if doing < 0.25:
                return ledger.VoidHoldRequest(customer_id="one", request_id=request_id, hold_id=hold_id)
            amount = money(random.randint(1, 5_000))
            return ledger.CaptureHoldRequest(
                customer_id="one", request_id=request_id, hold_id=hold_id, amount=amount, final=doing < 0.3
            )
        if doing < 0.6:
            return ledger.RecordPaymentRequest(
                customer_id="one",
                request_id=request_id,
                payment_id=f"p{number}",
                amount=money(random.randint(1, 9_000)),
            )
        return check("one", request_id, f"t{number}", random.randint(1, 30_000))

    async def _kill(self, kill: Callable[[], bool], seconds: float) -> None:
        while time.monotonic() + seconds < self._until:
            await asyncio.sleep(random.uniform(0.3, 1.0) * seconds)
            self.kills += kill()
