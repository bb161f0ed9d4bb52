"""Clients whose customers shop while something happens to the server, and what they know in the end."""

from __future__ import annotations

import asyncio
import random
from itertools import count
from typing import Final

from riskgate.credit.v1.credit_line_service_pb2 import GetCreditLineRequest
from tests.acceptance import books
from tests.acceptance.calling import PAUSE_SECONDS, Backend, Told
from tests.acceptance.deployment import Deployment
from tests.acceptance.shopping import Wallet

CLIENTS: Final = 8
CALLS_PER_CUSTOMER: Final = 40
LIMIT_MINOR: Final = 20_000


class Load:
    """Clients that retry with the same key until they know, and remember every answer."""

    def __init__(self, deployment: Deployment, seed: int) -> None:
        self._deployment = deployment
        self._seed = seed
        self._over = False
        self.answers: list[Told] = []
        self.wallets: list[Wallet] = []

    async def run(self) -> None:
        """Keep calling until told to stop; then let everybody finish the call at hand."""
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(self._client(number))

    def stop(self) -> None:
        self._over = True

    async def _client(self, number: int) -> None:
        chance = random.Random(self._seed * 1_000 + number)
        async with Backend(self._deployment, attempt_seconds=2) as backend:
            for customer in count():
                wallet = Wallet(f"c{number}-{customer}", LIMIT_MINOR, chance)
                self.wallets.append(wallet)
                for _ in range(CALLS_PER_CUSTOMER):
                    if self._over:
                        return
                    told = await backend.settle(wallet.next_request())
                    self.answers.append(told)
                    wallet.learn(told)


async def first_answer(deployment: Deployment) -> None:
    """Return once a call succeeds, over a connection of its own."""
    async with Backend(deployment, attempt_seconds=1) as backend:
        while not (await backend.once(GetCreditLineRequest(customer_id="probe"))).done:
            deployment.must_run()
            await asyncio.sleep(PAUSE_SECONDS)


def books_that_differ(wallets: list[Wallet], lines: dict[str, books.Line]) -> list[str]:
    """Return the customers whose line in the journal is not what the replies add up to."""
    return [
        f"{wallet.customer_id}: told held {wallet.held} drawn {wallet.drawn}, journal {lines[wallet.customer_id]}"
        for wallet in wallets
        if wallet.customer_id in lines
        and (wallet.held, wallet.drawn) != (lines[wallet.customer_id].held, lines[wallet.customer_id].drawn)
    ]
