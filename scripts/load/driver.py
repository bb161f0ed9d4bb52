"""One process that makes its share of the calls and measures them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from typing import Any, Final

import msgspec
from scripts.load.schedule import Arrival, Load, planned
from scripts.streaming.connect import Connection
from scripts.streaming.tally import LATENCY_MAX_US, new_histogram

import riskgate_client
from riskgate_client import AlreadyExists, AsyncRiskgate, Call, Decision, Money, Outcome, Retry, RiskgateError

LIMIT_MINOR: Final = 10**12
HELD_MAX: Final = 50_000
"""Holds remembered to be captured later."""
OPENED_AT_ONCE: Final = 64
READY_SECONDS: Final = 30.0
STOP_SECONDS: Final = 0.2
"""How soon a wish to stop is heard by a driver that waits for its next call."""
_ONCE: Final = Retry(attempts_max=1)
"""A retry would hide an error, and is load that nobody planned."""


class Measured(msgspec.Struct):
    """What one process saw. Histograms are encoded: plain data crosses processes."""

    latencies: dict[str, str] = msgspec.field(default_factory=dict)
    lateness: str = ""
    """How late calls were sent: if not small, the driver was the bottleneck."""
    done: dict[str, int] = msgspec.field(default_factory=dict)
    errors: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    """Call → reason → calls."""
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    times: bytes = b""
    """Planned start of every call in ms after the warm-up, unsigned 32 bits."""
    durations: bytes = b""
    """Its latency in µs, likewise."""
    seconds: float = 0.0
    """From the beginning of what was measured to the last answer."""


def customer_id(number: int) -> str:
    """Name a customer of the load."""
    return f"load-{number:07}"


class Driver:
    """Drives one process's share of a load."""

    def __init__(
        self, load: Load, *, process: int, processes: int, run: str, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._load, self._process, self._processes, self._run = load, process, processes, run
        self._stopped = stopped
        self._number = 0
        self._held: deque[tuple[str, str]] = deque(maxlen=HELD_MAX)
        self._histograms: dict[str, Any] = {}
        self._lateness = new_histogram()
        self._done: Counter[str] = Counter()
        self._errors: dict[str, Counter[str]] = {}
        self._outcomes: Counter[str] = Counter()
        self._times, self._durations = array("I"), array("I")
        self._last = 0.0

    async def drive(self, client: AsyncRiskgate, begin: float) -> Measured:
        """
        Make the calls of a schedule that begins at `begin` on the monotonic clock of this machine.

        When told to stop it sends no more, waits for the answers under way and returns what it has measured.
        """
        under_way: set[asyncio.Task[None]] = set()
        measured_from = begin + self._load.warm_up_seconds
        for arrival in planned(self._load, process=self._process, processes=self._processes):
            start = begin + arrival.after_seconds
            while not (stopped := self._stopped()):
                wait = start - time.monotonic()
                # Behind its schedule a driver must still let calls out and answers in.
                await asyncio.sleep(min(STOP_SECONDS, max(0.0, wait)))
                if wait <= STOP_SECONDS:
                    break
            if stopped:
                break
            if len(under_way) >= self._load.in_flight_max:
                self._failed(arrival, "NOT_SENT_TOO_MANY_IN_FLIGHT")
                continue
            task = asyncio.create_task(self._make(client, arrival, start, measured_from))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if under_way:
            await asyncio.wait(under_way)
        return self._measured(measured_from)

    async def _make(self, client: AsyncRiskgate, arrival: Arrival, start: float, measured_from: float) -> None:
        sent = time.monotonic()
        call, make = self._chosen(client, arrival)
        try:
            await make()
        except RiskgateError as error:
            self._failed(arrival, error.reason or error.status.name, call=call)
            return
        finally:
            self._last = time.monotonic()
        if not arrival.warm:
            return
        self._done[call] += 1
        latency_us = min(LATENCY_MAX_US, max(1, round((time.monotonic() - start) * 1e6)))
        self._histogram(call).record_value(latency_us)
        self._lateness.record_value(min(LATENCY_MAX_US, max(1, round((sent - start) * 1e6))))
        self._times.append(max(0, round((start - measured_from) * 1000)))
        self._durations.append(latency_us)

    def _chosen(self, client: AsyncRiskgate, arrival: Arrival) -> tuple[str, Callable[[], Awaitable[Any]]]:
        """Return what is called; with nothing held yet, a capture becomes a purchase."""
        customer = customer_id(arrival.customer)
        match arrival.call:
            case "limit":
                return "limit", lambda: client.lines.get(customer)
            case "capture" if self._held:
                holder, hold_id = self._held.popleft()
                return "capture", lambda: client.ledger.capture(customer_id=holder, hold_id=hold_id)
            case "repay":
                named = self._named()
                amount = Money(self._load.currency, arrival.amount_minor)
                return "repay", lambda: client.ledger.record_payment(
                    customer_id=customer, payment_id=named, amount=amount
                )
            case "batch":
                calls = [
                    riskgate_client.check(**self._purchase(arrival, place)) for place in range(self._load.batch_size)
                ]
                return "batch", lambda: self._batch(client, calls)
            case _:
                return "check", lambda: self._check(client, arrival)

    async def _check(self, client: AsyncRiskgate, arrival: Arrival) -> None:
        self._decided(await client.risk.check(**self._purchase(arrival, 0)))

    def _purchase(self, arrival: Arrival, place: int) -> dict[str, Any]:
        number = (arrival.customer + place) % self._load.customers
        named = self._named()
        return {
            "customer_id": customer_id(number),
            "transaction_id": named,
            "amount": Money(self._load.currency, arrival.amount_minor + place),
            "merchant_id": f"shop-{number % 97}",
            "merchant_category_code": "5411",
            "merchant_country_code": "CN",
            "device_id": f"phone-{number}",
            "ip_address": "100.64.0.1",
            "request_id": named,
        }

    async def _batch(self, client: AsyncRiskgate, calls: list[Call[Decision]]) -> None:
        for result in await client.risk.check_batch(calls):
            self._decided(result.unwrap())

    def _decided(self, decision: Decision) -> None:
        self._outcomes[decision.outcome.value] += 1
        if decision.outcome is Outcome.APPROVE and decision.held_amount is not None:
            self._held.append((decision.customer_id, decision.transaction_id))

    def _named(self) -> str:
        self._number += 1
        return f"{self._run}-{self._process}-{self._number}"

    def _failed(self, arrival: Arrival, reason: str, *, call: str = "") -> None:
        if arrival.warm:
            self._errors.setdefault(call or arrival.call, Counter())[reason] += 1

    def _histogram(self, call: str) -> Any:
        found = self._histograms.get(call)
        if found is None:
            found = self._histograms[call] = new_histogram()
        return found

    def _measured(self, measured_from: float) -> Measured:
        return Measured(
            latencies={call: found.encode().decode() for call, found in self._histograms.items()},
            lateness=self._lateness.encode().decode(),
            done=dict(self._done),
            errors={call: dict(found) for call, found in self._errors.items()},
            outcomes=dict(self._outcomes),
            times=self._times.tobytes(),
            durations=self._durations.tobytes(),
            seconds=max(0.0, self._last - measured_from),
        )


_stop: Event | None = None
"""Set when this process and its fellows are to stop; they share it from their start."""


def begin_process(stop: Event) -> None:
    """Prepare a process for `drive`: whoever started it tells it to stop by `stop`."""
    global _stop  # noqa: PLW0603  it crosses processes only as they are made
    _stop = stop


def drive(connected: Connection, load: Load, process: int, processes: int, run: str, begin: float) -> Measured:  # noqa: PLR0917  called across processes
    """Drive one share of a load in this process."""

    async def main() -> Measured:
        async with connected.client(timeout_seconds=load.timeout_seconds, retry=_ONCE) as client:
            await client.wait_until_ready(READY_SECONDS)
            stopped = _stop.is_set if _stop else lambda: False
            driver = Driver(load, process=process, processes=processes, run=run, stopped=stopped)
            return await driver.drive(client, begin)

    return asyncio.run(main())


async def open_customers(connected: Connection, load: Load, progress: Callable[[int], None]) -> None:
    """Open the lines of all customers of a load; those of an earlier run stay."""
    room = asyncio.Semaphore(OPENED_AT_ONCE)
    done = 0
    limit = Money(load.currency, LIMIT_MINOR)

    async def open_one(client: AsyncRiskgate, number: int) -> None:
        nonlocal done
        name = customer_id(number)
        async with room:
            with contextlib.suppress(AlreadyExists):
                await client.lines.open(
                    customer_id=name,
                    line_id="main",
                    limit=limit,
                    decision_reference="load-test",
                    actor_id="load-test",
                    request_id=f"open-{name}",
                )
            done += 1
            progress(done)

    async with connected.client(retry=Retry(when_exhausted=True)) as client:
        await client.wait_until_ready(READY_SECONDS)
        for start in range(0, load.customers, 1000):
            end = min(start + 1000, load.customers)
            await asyncio.gather(*(open_one(client, number) for number in range(start, end)))


def run_name() -> str:
    """Name a run, so that its ids meet those of no other."""
    return f"load-{datetime.now(UTC):%Y%m%d%H%M%S%f}"
