"""The sender: in order for each customer, each purchase once, and what follows as planned."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from scripts.streaming import sender as sender_module
from scripts.streaming.mapping import Repayment
from scripts.streaming.plan import Fate, Plan
from scripts.streaming.position import (
    Account,
    Due,
    Position,
    PositionUnusable,
    load_position,
    save_position,
)
from scripts.streaming.purchase import GENUINE, Purchase, request_id
from scripts.streaming.sender import Sender, chunked
from scripts.streaming.tally import Tally

from riskgate_client import (
    AlreadyExists,
    AsyncRiskgate,
    Call,
    CheckResult,
    Decision,
    FailedPrecondition,
    InvalidRequest,
    Money,
    Outcome,
    ResourceExhausted,
    RiskgateError,
    Unauthenticated,
    Unavailable,
)

DAY_US = 86_400_000_000
START_US = 1_772_323_200_000_000
"""2026-03-01 00:00 UTC."""


def purchase(number: int, customer_id: str, *, day: float = 0.0, amount: int = 1000) -> Purchase:
    return Purchase(
        number=number,
        transaction_id=f"t-{number}",
        customer_id=customer_id,
        at_us=START_US + round(day * DAY_US) + number,
        amount_minor=amount,
        currency="EUR",
        merchant_id="shop",
        limit_minor=100_000,
        label=GENUINE,
    )


def decision_on(call: Call[Decision], outcome: Outcome = Outcome.APPROVE) -> Decision:
    asked = call.request
    now = datetime(2026, 3, 1, tzinfo=UTC)
    amount = Money(asked.amount.currency_code, asked.amount.amount_minor)
    return Decision(
        decision_id="d-1",
        customer_id=asked.customer_id,
        transaction_id=asked.transaction_id,
        request_id=asked.request_id,
        line_id="main",
        outcome=outcome,
        risk_score=0,
        reasons=(),
        ruleset_version="1",
        ruleset_hash="",
        requested_amount=amount,
        held_amount=amount if outcome is Outcome.APPROVE and amount.amount_minor else None,
        hold_expire_time=None,
        step_up=None,
        review_deadline=None,
        line_suspended=False,
        block_id="",
        available_after=None,
        degraded=False,
        decide_time=now,
        event_time=now,
        engine_version="",
    )


class FakeEngine:
    """Answers everything after a wait of chance, and writes down what it was asked, by customer."""

    def __init__(self) -> None:
        self.asked: dict[str, list[str]] = defaultdict(list)
        self.order: list[str] = []
        self.outcomes: dict[str, Outcome] = {}
        self.failures: list[RiskgateError] = []
        """Raised by the next batches, one each."""
        self.item_errors: dict[str, list[RiskgateError]] = {}
        self.refusals: dict[str, RiskgateError] = {}
        self.largest_batch = 0
        self._dice = random.Random(7)
        self.risk = self.lines = self.ledger = self

    async def _wait(self) -> None:
        for _ in range(self._dice.randrange(6)):
            await asyncio.sleep(0)

    async def check_batch(self, calls: Sequence[Call[Decision]]) -> tuple[CheckResult, ...]:
        await self._wait()
        if self.failures:
            raise self.failures.pop(0)
        self.largest_batch = max(self.largest_batch, len(calls))
        found = []
        for call in calls:
            name = call.request.transaction_id
            errors = self.item_errors.get(name)
            if errors:
                found.append(CheckResult(call.request.request_id, None, errors.pop(0)))
                continue
            self.asked[call.request.customer_id].append(f"check {name}")
            self.order.append(f"check {name}")
            decision = decision_on(call, self.outcomes.get(name, Outcome.APPROVE))
            found.append(CheckResult(call.request.request_id, decision, None))
        await self._wait()
        return tuple(found)

    async def _note(self, customer_id: str, what: str) -> object:
        await self._wait()
        if what in self.refusals:
            raise self.refusals[what]
        self.asked[customer_id].append(what)
        self.order.append(what)
        await self._wait()
        return object()

    async def open(self, **given: Any) -> object:
        return await self._note(given["customer_id"], "open")

    async def capture(self, **given: Any) -> object:
        return await self._note(given["customer_id"], f"capture {given['hold_id']}")

    async def void(self, **given: Any) -> object:
        return await self._note(given["customer_id"], f"void {given['hold_id']}")

    async def refund(self, **given: Any) -> object:
        return await self._note(given["customer_id"], f"refund {given['hold_id']}")

    async def record_payment(self, **given: Any) -> object:
        return await self._note(given["customer_id"], f"repay {given['amount'].amount_minor}")


def plan(fate: Fate = Fate.LEAVE, **changes: Any) -> Plan:
    return Plan(**{"time_zone": "UTC", "fate": lambda _purchase: fate, **changes})


def stream(engine: FakeEngine, what: Plan, *chunks: Sequence[Purchase], **options: Any) -> Sender:
    async def main() -> Sender:
        made = Sender(cast("AsyncRiskgate", engine), what, options.pop("tally", Tally()), **options)
        for chunk in chunks:
            await made.send(chunk)
        return made

    return asyncio.run(main())


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_PAUSE_SECONDS", 0.001)


def test_every_purchase_is_asked_once_and_in_order_for_its_customer(engine: FakeEngine) -> None:
    dice = random.Random(1)
    purchases = [purchase(n, f"c-{dice.randrange(20)}") for n in range(1000)]

    sent = stream(engine, plan(), purchases[:600], purchases[600:], batch=17)

    assert sent.answered == 1000
    assert engine.largest_batch == 17
    for customer in {p.customer_id for p in purchases}:
        own = [f"check {p.transaction_id}" for p in purchases if p.customer_id == customer]
        assert engine.asked[customer] == ["open", *own]


def test_an_approved_purchase_is_captured_and_another_is_not(engine: FakeEngine) -> None:
    engine.outcomes = {"t-2": Outcome.STEP_UP, "t-3": Outcome.REVIEW}

    sent = stream(engine, plan(Fate.CAPTURE), [purchase(n, "c") for n in (1, 2, 3)])

    assert engine.asked["c"] == ["open", "check t-1", "check t-2", "check t-3", "capture t-1"]
    assert sent.accounts["c"].owed_minor == 1000


def test_an_account_check_is_not_captured(engine: FakeEngine) -> None:
    stream(engine, plan(Fate.CAPTURE), [purchase(1, "c", amount=0)])

    assert engine.asked["c"] == ["open", "check t-1"]


def test_voids_and_refunds_leave_nothing_owed(engine: FakeEngine) -> None:
    sent = stream(engine, plan(Fate.VOID), [purchase(1, "a")])
    refunded = stream(engine, plan(Fate.REFUND), [purchase(2, "b")])

    assert engine.asked["a"] == ["open", "check t-1", "void t-1"]
    assert engine.asked["b"] == ["open", "check t-2", "capture t-2", "refund t-2"]
    assert sent.accounts["a"].owed_minor == refunded.accounts["b"].owed_minor == 0


def test_a_late_capture_comes_when_its_time_has_come(engine: FakeEngine) -> None:
    days = [purchase(n, "c", day=n * 0.5) for n in range(4)]

    sent = stream(engine, plan(Fate.CAPTURE_LATER, delay_us=DAY_US), days[:2], days[2:])

    assert engine.asked["c"] == [
        "open", "check t-0", "check t-1", "capture t-0", "check t-2", "capture t-1", "check t-3",
    ]  # fmt: skip
    assert [due.transaction_id for due in sorted(sent.due)] == ["t-2", "t-3"]


def test_what_is_owed_is_repaid_before_the_next_purchase_after_payday(engine: FakeEngine) -> None:
    repayment = Repayment(day_of_month=3, share=0.5)
    purchases = [purchase(1, "c", day=0), purchase(2, "c", day=1), purchase(3, "c", day=4), purchase(4, "c", day=5)]

    sent = stream(engine, plan(Fate.CAPTURE, repayment=repayment), purchases)

    assert engine.asked["c"] == [
        "open", "check t-1", "check t-2", "capture t-1", "capture t-2",
        "repay 1000", "check t-3", "capture t-3", "check t-4", "capture t-4",
    ]  # fmt: skip
    assert sent.accounts["c"].owed_minor == 3000


def test_an_overloaded_server_is_asked_again(engine: FakeEngine) -> None:
    busy = ResourceExhausted("busy", status=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED")
    engine.failures = [busy, Unavailable("down", status=grpc.StatusCode.UNAVAILABLE)]
    engine.item_errors = {"t-1": [busy]}

    sent = stream(engine, plan(), [purchase(n, "c") for n in range(3)])

    assert sent.answered == 3
    assert sorted(engine.asked["c"]) == ["check t-0", "check t-1", "check t-2", "open"]


class TornDown(FakeEngine):
    """Refuses one customer; the calls of the others are under way then, and break when they are cancelled."""

    async def open(self, **given: Any) -> object:
        if given["customer_id"] == "c-0":
            await asyncio.sleep(0)
            raise Unauthenticated("who?", status=grpc.StatusCode.UNAUTHENTICATED, reason="CREDENTIAL_INVALID")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("the call was torn down") from None
        raise AssertionError


def test_a_server_that_refuses_the_stream_is_heard_above_what_breaks_with_it() -> None:
    with pytest.raises(Unauthenticated):
        stream(TornDown(), plan(), [purchase(n, f"c-{n}") for n in range(40)], lanes=4, batch=3)


def test_a_refused_purchase_is_counted_and_the_others_go_on(engine: FakeEngine) -> None:
    engine.item_errors = {
        "t-1": [InvalidRequest("no", status=grpc.StatusCode.INVALID_ARGUMENT, reason="FIELD_INVALID")]
    }
    tally = Tally()

    stream(engine, plan(), [purchase(n, "c") for n in range(3)], tally=tally)

    assert tally.counts.answered == 3
    assert tally.counts.failed == {"FIELD_INVALID": 1}
    assert "t-1" in tally.counts.problems[0]


def test_what_an_earlier_run_did_counts_as_done(engine: FakeEngine) -> None:
    engine.refusals = {
        "open": AlreadyExists("line", status=grpc.StatusCode.ALREADY_EXISTS, reason="LINE_EXISTS"),
        "capture t-1": FailedPrecondition("x", status=grpc.StatusCode.FAILED_PRECONDITION, reason="REPLY_FORGOTTEN"),
        "capture t-2": FailedPrecondition("x", status=grpc.StatusCode.FAILED_PRECONDITION, reason="HOLD_EXPIRED"),
    }
    tally = Tally()

    sent = stream(engine, plan(Fate.CAPTURE), [purchase(1, "c"), purchase(2, "c")], tally=tally)

    assert sent.accounts["c"].owed_minor == 1000
    assert tally.counts.ledger == {"opened before": 1, "captured before": 1, "not captured: HOLD_EXPIRED": 1}


def test_request_ids_depend_on_the_purchase_alone() -> None:
    assert request_id("check", "c", "t") == request_id("check", "c", "t")
    assert request_id("check", "ab", "c") != request_id("check", "a", "bc")
    assert len(request_id("capture", "x" * 64)) <= 64


@pytest.mark.parametrize(
    ("day_of_month", "at", "due"),
    [
        (1, "2026-03-15T10:00+00:00", "2026-04-01T00:00+00:00"),
        (15, "2026-03-15T00:00+00:00", "2026-04-15T00:00+00:00"),
        (20, "2026-03-15T10:00+00:00", "2026-03-20T00:00+00:00"),
        (28, "2026-12-31T10:00+00:00", "2027-01-28T00:00+00:00"),
    ],
)
def test_payday_is_the_next_of_its_day(day_of_month: int, at: str, due: str) -> None:
    monthly = plan(repayment=Repayment(day_of_month=day_of_month))

    found = monthly.next_due_us(round(datetime.fromisoformat(at).timestamp() * 1e6))

    assert found == round(datetime.fromisoformat(due).timestamp() * 1e6)


def test_a_position_survives_writing(tmp_path: Path, engine: FakeEngine) -> None:
    tally = Tally()
    stream(engine, plan(Fate.CAPTURE), [purchase(n, "c") for n in range(5)], tally=tally)
    path = tmp_path / "position.json"
    position = Position(
        "history",
        rows=5,
        accounts={"c": Account(1, 2, "EUR")},
        due=[Due(3, 4, "c", "t-4", 1000)],
        held=["t-4"],
        counts=tally.written(),
    )

    save_position(path, position)

    again = load_position(path, "history")
    assert again == position
    assert Tally(again.counts).latencies.get_total_count() == 5
    assert list(tmp_path.iterdir()) == [path]


def test_a_position_of_another_history_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "position.json"
    save_position(path, Position("this"))

    with pytest.raises(PositionUnusable, match="not in that"):
        load_position(path, "that")


def test_a_damaged_position_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "position.json"
    path.write_text("{")

    with pytest.raises(PositionUnusable, match="remove it"):
        load_position(path, "this")


def test_overdue_captures_come_before_a_purchase_moves_the_clock(engine: FakeEngine) -> None:
    first = [purchase(n, f"c-{n}") for n in range(20)]
    much_later = [purchase(99, "c-99", day=30)]

    stream(engine, plan(Fate.CAPTURE_LATER, delay_us=DAY_US), first, much_later)

    assert engine.order.index("check t-99") > max(engine.order.index(f"capture t-{n}") for n in range(20))


def test_chunks_end_by_number_and_by_time() -> None:
    rows = [purchase(n, "c", day=day) for n, day in enumerate((0, 0.1, 0.2, 0.3, 0.4, 2, 2.4, 9))]

    found = [[row.number for row in chunk] for chunk in chunked(rows, 4, lambda row: row.at_us)]

    assert found == [[0, 1, 2, 3], [4], [5, 6], [7]]
