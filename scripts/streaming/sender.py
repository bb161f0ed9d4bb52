"""
Sends purchases at full speed: many in flight, and in order for each customer.

Customers are spread over lanes. A lane works on one part of its purchases at a time: what must come
before them (opening a line, a repayment, a capture that has fallen due), the purchases themselves in
one batch, then what follows them. So a customer's history arrives in its order, while lanes overlap.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from zlib import crc32

from scripts.streaming.plan import Fate, Plan
from scripts.streaming.position import Account, Due
from scripts.streaming.purchase import Purchase, request_id
from scripts.streaming.tally import LATENCY_MAX_US, Tally

import riskgate_client
from riskgate_client import (
    AlreadyExists,
    AsyncRiskgate,
    Call,
    Channel,
    CheckResult,
    Conflict,
    Decision,
    FailedPrecondition,
    Location,
    Money,
    Outcome,
    ResourceExhausted,
    RiskgateError,
    Unavailable,
)

T = TypeVar("T")
Row = TypeVar("Row")

LANES: Final = 6
BATCH: Final = 100
"""Purchases in one call; the contract takes 500."""
FOLLOW_UPS: Final = 96
"""Calls other than batches that may be under way at a time."""
CHUNK_SPAN_US: Final = 12 * 3_600_000_000
"""Data time that one chunk may span: customers of a chunk are ahead of each other by at most so much on the server's
clock, and a hold must not lapse by it."""
PATIENCE_SECONDS: Final = 60.0
"""How long an overloaded or restarting server is waited for before the stream gives up."""
_PAUSE_SECONDS: Final = 0.2
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Seen = Callable[[Purchase, Decision], None]


class Sender:
    """Streams purchases through a client. For one event loop."""

    def __init__(
        self,
        client: AsyncRiskgate,
        plan: Plan,
        tally: Tally,
        *,
        accounts: dict[str, Account] | None = None,
        due: Iterable[Due] = (),
        held: Iterable[str] = (),
        seen: Seen | None = None,
        lanes: int = LANES,
        batch: int = BATCH,
        follow_ups: int = FOLLOW_UPS,
    ) -> None:
        self.accounts = accounts if accounts is not None else {}
        self.due = list(due)
        heapq.heapify(self.due)
        self.held = set(held)
        self._client, self._plan, self._tally = client, plan, tally
        self._seen = seen
        self._lanes, self._batch = lanes, batch
        self._room = asyncio.Semaphore(follow_ups)
        self._unopened: set[str] = set()
        self.answered = 0
        """By this sender, for showing progress while a chunk is under way."""

    async def send(self, purchases: Sequence[Purchase]) -> None:
        """
        Send a chunk of a history and everything that falls due in its time; return when all of it is answered.

        Raises:
            RiskgateError: the server cannot be reached, or refuses the stream as a whole.
        """
        lanes: list[list[Purchase | Due]] = [[] for _ in range(self._lanes)]
        if purchases:
            await self._capture_all_due(purchases[0].at_us)
        for purchase in purchases:
            while self.due and self.due[0].due_us <= purchase.at_us:
                capture = heapq.heappop(self.due)
                lanes[self._lane(capture.customer_id)].append(capture)
            lanes[self._lane(purchase.customer_id)].append(purchase)
            if self._plan.fate(purchase) is Fate.CAPTURE_LATER:
                heapq.heappush(self.due, _due(purchase, self._plan.delay_us))
        try:
            async with asyncio.TaskGroup() as group:
                for items in lanes:
                    group.create_task(self._work_through(items))
        except ExceptionGroup as failures:
            refused, others = failures.split(RiskgateError)
            if refused is None:
                raise
            # What else went wrong did so while the refusal ended the other lanes, some of them half way in a call.
            raise _first(refused) from others

    async def _capture_all_due(self, before_us: int) -> None:
        """Make the captures that are older than a chunk: its purchases may move the clock past their holds."""
        overdue = []
        while self.due and self.due[0].due_us <= before_us:
            overdue.append(heapq.heappop(self.due))
        for start in range(0, len(overdue), self._batch):
            await asyncio.gather(*map(self._capture_due, overdue[start : start + self._batch]))

    def _lane(self, customer_id: str) -> int:
        return crc32(customer_id.encode()) % self._lanes

    async def _work_through(self, items: Sequence[Purchase | Due]) -> None:
        part: list[Purchase | Due] = []
        customers: set[str] = set()
        for item in items:
            # What must come before an item must come after the customer's earlier ones: end the part there.
            if len(part) == self._batch or (item.customer_id in customers and self._needs_something_first(item)):
                await self._do(part)
                part, customers = [], set()
            if isinstance(item, Purchase) and item.customer_id not in self.accounts:
                self._unopened.add(item.customer_id)
                self.accounts[item.customer_id] = Account(self._plan.next_due_us(item.at_us), 0, item.currency)
            part.append(item)
            customers.add(item.customer_id)
        if part:
            await self._do(part)

    def _needs_something_first(self, item: Purchase | Due) -> bool:
        if isinstance(item, Due):
            return True
        account = self.accounts.get(item.customer_id)
        return account is not None and 0 < account.next_due_us <= item.at_us

    async def _do(self, part: Sequence[Purchase | Due]) -> None:
        by_customer: dict[str, list[Purchase | Due]] = defaultdict(list)
        for item in part:
            by_customer[item.customer_id].append(item)
        await asyncio.gather(*map(self._prepare, by_customer.values()))
        purchases = [item for item in part if isinstance(item, Purchase)]
        if not purchases:
            return
        decisions = await self._check(purchases)
        await asyncio.gather(*(self._follow(purchase, decision) for purchase, decision in decisions))

    # --- Before ---

    async def _prepare(self, items: Sequence[Purchase | Due]) -> None:
        for item in items:
            if isinstance(item, Due):
                await self._capture_due(item)
            elif item.customer_id in self._unopened:
                self._unopened.discard(item.customer_id)
                await self._open(item)
            elif self._needs_something_first(item):
                await self._repay(item)

    async def _open(self, purchase: Purchase) -> None:
        plan = self._plan
        await self._call(
            "opened",
            lambda: self._client.lines.open(
                customer_id=purchase.customer_id,
                line_id=plan.line_id,
                limit=Money(purchase.currency, purchase.limit_minor),
                decision_reference="history-import",
                actor_id=plan.actor_id,
                time_zone=plan.time_zone,
                event_time=instant(purchase.at_us),
                request_id=request_id("open", purchase.customer_id),
            ),
        )

    async def _repay(self, purchase: Purchase) -> None:
        account, plan = self.accounts[purchase.customer_id], self._plan
        assert plan.repayment is not None
        due_us, account.next_due_us = account.next_due_us, plan.next_due_us(purchase.at_us)
        paid = round(account.owed_minor * plan.repayment.share)
        if paid <= 0:
            return
        named = request_id("pay", purchase.customer_id, str(due_us))
        receipt = await self._call(
            "repaid",
            lambda: self._client.ledger.record_payment(
                customer_id=purchase.customer_id,
                payment_id=named,
                amount=Money(account.currency, paid),
                value_time=instant(due_us),
                request_id=named,
            ),
        )
        if receipt is not None:
            account.owed_minor -= paid

    # --- The purchases ---

    async def _check(self, purchases: Sequence[Purchase]) -> list[tuple[Purchase, Decision]]:
        calls = [self._described(purchase) for purchase in purchases]
        results = await self._batch_call(calls)
        decided = []
        for purchase, call, first in zip(purchases, calls, results, strict=True):
            result = first
            while result.error is not None and _passing(result.error):
                (result,) = await self._batch_call([call])
            self.answered += 1
            if result.error is not None:
                self._tally.failed(purchase, _reason(result.error), str(result.error))
                continue
            assert result.decision is not None
            self._tally.decided(purchase, result.decision)
            if self._seen:
                self._seen(purchase, result.decision)
            decided.append((purchase, result.decision))
        return decided

    async def _batch_call(self, calls: Sequence[Call[Decision]]) -> tuple[CheckResult, ...]:
        began = time.perf_counter()
        results = await self._patiently(lambda: self._client.risk.check_batch(calls))
        self._tally.latencies.record_value(_elapsed_us(began), len(calls))
        return results

    def _described(self, purchase: Purchase) -> Call[Decision]:
        place = None
        if purchase.latitude is not None and purchase.longitude is not None:
            place = Location(purchase.latitude, purchase.longitude)
        return riskgate_client.check(
            customer_id=purchase.customer_id,
            transaction_id=purchase.transaction_id,
            amount=Money(purchase.currency, purchase.amount_minor),
            merchant_id=purchase.merchant_id,
            merchant_category_code=purchase.category_code,
            merchant_country_code=purchase.country_code,
            device_id=purchase.device_id,
            ip_address=purchase.ip_address,
            location=place,
            channel=Channel(purchase.channel) if purchase.channel else Channel.UNSPECIFIED,
            event_time=instant(purchase.at_us),
            request_id=request_id("check", purchase.customer_id, purchase.transaction_id),
        )

    # --- After ---

    async def _follow(self, purchase: Purchase, decision: Decision) -> None:
        if decision.outcome is not Outcome.APPROVE or decision.held_amount is None:
            return
        fate = self._plan.fate(purchase)
        amount = decision.held_amount.amount_minor
        customer_id, transaction_id = purchase.customer_id, purchase.transaction_id
        if fate is Fate.VOID:
            await self._call(
                "voided",
                lambda: self._client.ledger.void(
                    customer_id=customer_id, hold_id=transaction_id, request_id=request_id("void", transaction_id)
                ),
            )
        elif fate is Fate.CAPTURE_LATER:
            self.held.add(transaction_id)
        elif fate is not Fate.LEAVE:
            await self._capture(customer_id, transaction_id, amount)
            if fate is Fate.REFUND:
                await self._refund(customer_id, transaction_id, decision.held_amount)

    async def _capture_due(self, due: Due) -> None:
        if due.transaction_id in self.held:
            self.held.discard(due.transaction_id)
            await self._capture(due.customer_id, due.transaction_id, due.amount_minor)

    async def _capture(self, customer_id: str, hold_id: str, amount_minor: int) -> None:
        hold = await self._call(
            "captured",
            lambda: self._client.ledger.capture(
                customer_id=customer_id, hold_id=hold_id, request_id=request_id("capture", hold_id)
            ),
        )
        if hold is not None:
            self.accounts[customer_id].owed_minor += amount_minor

    async def _refund(self, customer_id: str, hold_id: str, amount: Money) -> None:
        refund = await self._call(
            "refunded",
            lambda: self._client.ledger.refund(
                customer_id=customer_id, hold_id=hold_id, amount=amount, request_id=request_id("refund", hold_id)
            ),
        )
        if refund is not None:
            self.accounts[customer_id].owed_minor -= amount.amount_minor

    async def _call(self, what: str, make: Callable[[], Awaitable[Any]]) -> object | None:
        """Make a call that changes a line or its books; a refusal of this one thing is counted, not raised."""
        async with self._room:
            began = time.perf_counter()
            try:
                answer: object = await self._patiently(make)
            except (FailedPrecondition, AlreadyExists) as error:
                if error.reason in {"REPLY_FORGOTTEN", "LINE_EXISTS"}:
                    # Done in an earlier run, which is as good.
                    self._tally.did(f"{what} before")
                    return error
                self._tally.did(f"not {what}: {error.reason}")
                return None
            self._tally.ledger_latencies.record_value(_elapsed_us(began))
        self._tally.did(what)
        return answer

    async def _patiently(self, make: Callable[[], Awaitable[T]]) -> T:
        """Make a call, and again while the server asks to come back later; ids make that safe."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await make()
            except (ResourceExhausted, Unavailable, Conflict) as error:
                if time.monotonic() > ends:
                    raise
                wait = error.retry_after if isinstance(error, ResourceExhausted) else None
                await asyncio.sleep(wait or _PAUSE_SECONDS)


def chunked(rows: Iterable[Row], most: int, time_of: Callable[[Row], int | None]) -> Iterator[list[Row]]:
    """Cut rows in order of time into chunks of at most `most` rows and `CHUNK_SPAN_US`. A row without time fits any."""
    chunk: list[Row] = []
    ends_us = None
    for row in rows:
        at_us = time_of(row)
        if len(chunk) == most or (at_us is not None and ends_us is not None and at_us > ends_us):
            yield chunk
            chunk, ends_us = [], None
        if ends_us is None and at_us is not None:
            ends_us = at_us + CHUNK_SPAN_US
        chunk.append(row)
    if chunk:
        yield chunk


def instant(at_us: int) -> datetime:
    """Return a time as the client takes it; exact to the microsecond."""
    return _EPOCH + timedelta(microseconds=at_us)


def _due(purchase: Purchase, delay_us: int) -> Due:
    return Due(
        purchase.at_us + delay_us,
        purchase.number,
        purchase.customer_id,
        purchase.transaction_id,
        purchase.amount_minor,
    )


def _passing(error: RiskgateError) -> bool:
    return isinstance(error, ResourceExhausted | Unavailable | Conflict)


def _reason(error: RiskgateError) -> str:
    return error.reason or error.status.name


def _elapsed_us(began: float) -> int:
    return min(LATENCY_MAX_US, max(1, round((time.perf_counter() - began) * 1_000_000)))


def _first(failures: ExceptionGroup[RiskgateError]) -> RiskgateError:
    """Return the first error of a group, however deep."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
