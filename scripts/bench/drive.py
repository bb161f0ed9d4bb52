"""The load: a closed loop of unary calls, or of batches, from a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc

from riskgate.common.v1 import money_pb2
from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.credit.v1 import credit_line_service_pb2_grpc as line_grpc
from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate.risk.v1 import risk_service_pb2_grpc as pb_grpc

Metadata = tuple[tuple[str, str], ...]
CATEGORIES = ("5411", "5812", "5541", "5912", "4111")


class Load:
    """Calls one server as one caller, over its connections in turn. Customers are drawn uniformly."""

    def __init__(
        self, address: str, ca: bytes, api_key: str, *, customers: int, run: str, seed: int = 1, connections: int = 1
    ) -> None:
        own = (("grpc.use_local_subchannel_pool", 1),)
        self._channels = [
            grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca), own) for _ in range(connections)
        ]
        self._metadata: Metadata = (("authorization", f"Bearer {api_key}"),)
        self._risk: Any = itertools.cycle([pb_grpc.RiskServiceStub(channel) for channel in self._channels])
        self._lines: Any = line_grpc.CreditLineServiceStub(self._channels[0])
        self._customers = customers
        self._random = random.Random(seed)
        self._run = run
        self._count = itertools.count()
        self.outcomes: Counter[str] = Counter()

    async def close(self) -> None:
        """Hang up."""
        for channel in self._channels:
            await channel.close()

    def requests(self, total: int) -> Iterator[pb.CheckTransactionRequest]:
        """Yield ordinary purchases."""
        for _ in range(total):
            number = next(self._count)
            customer = self._random.randrange(self._customers)
            yield pb.CheckTransactionRequest(
                request_id=f"{self._run}-{number}",
                customer_id=f"customer-{customer}",
                transaction_id=f"t-{self._run}-{number}",
                amount=money_pb2.Money(currency_code="CNY", amount_minor=self._random.randrange(1_000, 9_000)),
                merchant=pb.Merchant(
                    merchant_id=f"merchant-{self._random.randrange(500)}",
                    category_code=self._random.choice(CATEGORIES),
                    country_code="CN",
                ),
                device=pb.Device(device_id=f"phone-{customer}", ip_address="10.1.2.3"),
                location=pb.Location(latitude=31.2 + customer % 10 / 1000, longitude=121.5),
                channel=pb.CHANNEL_MOBILE_APP,
            )

    async def open_lines(self, *, in_flight: int = 64) -> None:
        """Give every customer a line that nothing here exhausts."""
        numbers = iter(range(self._customers))

        async def work() -> None:
            for number in numbers:
                await self._lines.OpenCreditLine(
                    line_pb.OpenCreditLineRequest(
                        request_id="open",
                        customer_id=f"customer-{number}",
                        line_id="main",
                        limit=money_pb2.Money(currency_code="CNY", amount_minor=50_000_000),
                        time_zone="Asia/Shanghai",
                        decision_reference="bench",
                        actor_id="bench",
                    ),
                    metadata=self._metadata,
                    timeout=30,
                )

        await asyncio.gather(*(work() for _ in range(in_flight)))

    async def unary(self, total: int, *, in_flight: int) -> None:
        """Keep `in_flight` calls in flight until `total` are answered."""
        requests = self.requests(total)

        async def work() -> None:
            risk = next(self._risk)
            for request in requests:
                answer = await risk.CheckTransaction(request, metadata=self._metadata, timeout=9)
                self.outcomes[pb.Outcome.Name(answer.decision.outcome)] += 1

        await asyncio.gather(*(work() for _ in range(in_flight)))

    async def paced(self, total: int, *, rate: float) -> None:
        """Begin `rate` calls a second, whatever becomes of the others, until `total` are answered."""

        async def one(request: pb.CheckTransactionRequest) -> None:
            answer = await next(self._risk).CheckTransaction(request, metadata=self._metadata, timeout=9)
            self.outcomes[pb.Outcome.Name(answer.decision.outcome)] += 1

        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as calls:
            for number, request in enumerate(self.requests(total)):
                await asyncio.sleep(began + number / rate - loop.time())
                calls.create_task(one(request))

    async def batches(self, total: int, *, size: int, in_flight: int) -> None:
        """The same in batches of `size`."""
        requests = self.requests(total)

        async def work() -> None:
            risk = next(self._risk)
            while chunk := list(itertools.islice(requests, size)):
                answer = await risk.BatchCheckTransactions(
                    pb.BatchCheckTransactionsRequest(checks=chunk), metadata=self._metadata, timeout=9
                )
                for result in answer.results:
                    if result.HasField("error"):
                        self.outcomes[result.error.message] += 1
                    else:
                        self.outcomes[pb.Outcome.Name(result.decision.outcome)] += 1

        await asyncio.gather(*(work() for _ in range(in_flight)))
