"""Two processes that deliver from one PostgreSQL database, to a webhook that misbehaves, over real HTTP."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from riskgate_server.crypto.derived import DerivedSecrets
from riskgate_server.crypto.keys import FingerprintKey
from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine import commands as c
from riskgate_server.engine.clocks import SystemClock
from riskgate_server.engine.delivery import Delivery, Terms
from riskgate_server.engine.envelopes import Envelopes
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.queries import Queries
from riskgate_server.engine.replies import Failed, Refusal, Reply, error_of
from riskgate_server.engine.verify import verify
from riskgate_server.notify.texts import own_texts
from riskgate_server.notify.webhook import Webhook
from riskgate_server.stores.memory import MemoryVault
from riskgate_server.stores.postgres.store import PostgresStore
from tests import factories as f
from tests import postgres
from tests.contract.sessions import ask
from tests.far_end import SECRET, FarEnd, listening
from tests.post import Counts

CUSTOMERS = 24
MISBEHAVIOURS = ("late", "late", "drop", "503", "500", "409", "ok", "ok", "ok")

_T = TypeVar("_T")


class Process:
    """What of a server delivers: a writer's thread over a store of its own, and a loop with a gateway."""

    def __init__(self, dsn: str, writer: int, vault: MemoryVault) -> None:
        self.store = PostgresStore(dsn, writer)
        self.vault = vault
        self.thread = ThreadPoolExecutor(1)
        self.secrets = DerivedSecrets({1: bytes(range(32))})
        self.counts = Counts()
        self.pipeline = self._pipeline()
        self.queries = Queries(
            self.store, vault=vault, sealer=Sealer(), clock=SystemClock(), rulesets=lambda _: f.ChosenRules()
        )
        self.delivery: Delivery

    def _pipeline(self, **parts: Any) -> Pipeline:
        return f.make_pipeline(self.store, vault=self.vault, clock=SystemClock(), secrets=self.secrets, **parts)

    def begin(self, url: str) -> None:
        """Begin to deliver."""
        envelopes = Envelopes(
            vault=self.vault,
            sealer=Sealer(),
            secrets=self.secrets,
            texts=own_texts(),
            fingerprint=FingerprintKey(bytes(32)).of_content,
            language="zh-Hans",
        )
        self.delivery = Delivery(
            Webhook(url, [SECRET], seconds=1.0),
            open_all=lambda rows: self.on_thread(envelopes.open, rows),
            submit=self._submit,
            recall=self._recall,
            ended=self._ended,
            clock=SystemClock(),
            observer=self.counts,
            terms=Terms(attempt=1.0, patience=2.0),
        )

    async def on_thread(self, work: Callable[..., _T], *given: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *given)

    async def _submit(self, command: c.Command) -> Reply:
        (reply,) = await self.on_thread(self.pipeline.run, [command])
        if isinstance(reply, Refusal | Failed):
            raise error_of(reply)
        return reply

    async def _recall(self, key: CustomerKey, message_id: str) -> str:
        pytest.fail(f"nobody waits for {message_id} of {key}, so nobody asks what it came to")

    async def _ended(self, key: CustomerKey, challenge_id: str) -> bool:
        return await self.on_thread(self.queries.code_ended, key, challenge_id)

    async def sweep(self) -> None:
        """What the writer's thread does every second."""
        since = time.monotonic()
        rows = await self.on_thread(self.store.lease_messages, SystemClock().now_us(), 4)
        self.delivery.leased(rows, since)
        await asyncio.sleep(0)

    def close(self) -> None:
        self.thread.shutdown()
        self.store.close()


def enrolling(customer: int) -> c.EnrollPhone:
    number = f"+86139{customer:04d}{customer:04d}"
    return c.EnrollPhone(
        tenant_id=f.TENANT,
        customer_id=f"c{customer}",
        request_id="enrol",
        fingerprint=b"enrol",
        number=number,
        masked="",
        mark=number.encode(),
        prefix=number[:-3].encode(),
        region="CN",
        grant=b"",
        language="",
    )


def test_two_processes_deliver_each_message_once_and_never_at_the_same_time(tmp_path: Path) -> None:
    dsn, vault = postgres.database(tmp_path), MemoryVault()
    processes = [Process(dsn, writer, vault) for writer in range(2)]
    # One that ends as soon as it has committed: nobody has sent anything.
    for customer in range(CUSTOMERS):
        processes[0].pipeline.run([f.open_line(customer_id=f"c{customer}"), enrolling(customer)])
    chance = random.Random(1)
    plan = [chance.choice(MISBEHAVIOURS) for _ in range(CUSTOMERS)]

    def waiting() -> int:
        (row,) = ask(dsn, "SELECT count(*) FROM messages")
        return int(row[0])

    async def deliver(url: str) -> None:
        for process in processes:
            process.begin(url)
        ends = time.monotonic() + 60
        while waiting():
            assert time.monotonic() < ends
            if not any(process.delivery.pending for process in processes):
                # Everybody's leases are over, and nobody has anything in hand.
                ask(dsn, "UPDATE messages SET due_us = 0, leased_until = '-infinity'")
            await asyncio.gather(*(process.sweep() for process in processes))
            await asyncio.sleep(0.01)
        for process in processes:
            await process.delivery.close(5.0)

    assert waiting() == CUSTOMERS
    with listening(FarEnd([*plan, "ok"])) as far_end:
        asyncio.run(deliver(far_end.url))
    for process in processes:
        process.close()
    outcomes = [process.counts.outcomes for process in processes]
    assert far_end.overlapping == 0
    assert far_end.faults == []
    assert set(far_end.keys) == set(far_end.delivered)
    assert len(far_end.delivered) == CUSTOMERS
    assert [sorted(set(found)) for found in outcomes] == [["DELIVERED"], ["DELIVERED"]]
    assert sum(map(len, outcomes)) == CUSTOMERS
    store = PostgresStore(dsn)
    assert verify(store, vault, Sealer()).faults == []
    store.close()
