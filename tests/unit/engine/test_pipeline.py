from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from riskgate_server.domain.credit.line import BlockKind
from riskgate_server.domain.events import Outcome
from riskgate_server.domain.fraud.features import FeatureValues, LineFacts
from riskgate_server.domain.fraud.profile import Profile, PurchaseFacts
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.money import AMOUNT_MAX_MINOR, TURNOVER_MAX_MINOR
from riskgate_server.engine.commands import Command
from riskgate_server.engine.failures import StoreBroken
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.replies import DecisionReply, Failed, HoldReply, LineReply, Refusal, Reply
from riskgate_server.stores.memory import MemoryStore
from tests import factories as f
from tests.simulation.faults import Fault, FaultyStore

KEY = (f.TENANT, f.CUSTOMER)


class Desk:
    """A pipeline with one customer, whose replies are named."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.memory = MemoryStore()
        self.store = FaultyStore(self.memory, lambda: self.faults.pop(0) if self.faults else Fault.NONE)
        self.clock = f.FixedClock()
        self.pipeline: Pipeline = f.make_pipeline(self.store, clock=self.clock)
        self.run(f.open_line())

    def run(self, *commands: Command) -> list[Reply]:
        return self.pipeline.run(commands)

    def reasons(self, *commands: Command) -> list[str]:
        return [reply.reason if isinstance(reply, Failed | Refusal) else "" for reply in self.run(*commands)]

    def decide(self, command: Command) -> DecisionReply:
        (reply,) = self.run(command)
        assert isinstance(reply, DecisionReply)
        return reply

    def line(self) -> LineReply:
        """The line as an idle command sees it."""
        (reply,) = self.run(f.place_block(f"look {self.clock.us} {self.entries()}", BlockKind.HARDSHIP))
        assert isinstance(reply, LineReply)
        return reply

    def entries(self) -> int:
        with self.store.snapshot() as snapshot:
            return snapshot.counts()["entries"]

    def available(self) -> int:
        dry = self.decide(f.check(f"look {self.entries()}", 0, validate_only=True))
        return dry.decided.available_minor


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- Batches. ---


def test_a_command_sees_what_the_commands_before_it_in_the_batch_did(desk: Desk) -> None:
    replies = desk.run(
        f.check("t1", 60_000), f.check("t2", 60_000), f.capture("c1", "t1"), f.pay("p1", 60_000), f.check("t3", 60_000)
    )

    outcomes = [reply.decided.outcome for reply in replies if isinstance(reply, DecisionReply)]
    assert outcomes == [Outcome.APPROVE, Outcome.DECLINE, Outcome.APPROVE]


def test_a_command_that_breaks_us_harms_nobody_else_in_its_batch(desk: Desk) -> None:
    assert desk.reasons(f.check("t1"), f.check("t2", risk="broken"), f.check("t3")) == ["", "INTERNAL", ""]


def test_a_command_that_broke_us_is_not_tried_again(desk: Desk) -> None:
    assert desk.reasons(f.check("t1", risk="broken", request_id="r")) == ["INTERNAL"]
    before = desk.entries()

    assert desk.reasons(f.check("t1", request_id="r")) == ["INTERNAL"]
    assert desk.entries() == before


def test_a_rejected_commit_is_run_again_one_by_one_and_only_the_guilty_fails(desk: Desk) -> None:
    desk.faults = [Fault.REJECTED, Fault.NONE, Fault.REJECTED, Fault.NONE]

    assert desk.reasons(f.check("t1"), f.check("t2"), f.check("t3")) == ["", "INTERNAL", ""]


def test_what_a_failed_commit_did_is_not_remembered(desk: Desk) -> None:
    desk.faults = [Fault.FULL_AT_COMMIT]
    assert desk.reasons(f.check("t1", 100_000)) == ["STORE_FULL"]

    assert desk.available() == 100_000


def test_a_broken_commit_is_not_answered(desk: Desk) -> None:
    desk.faults = [Fault.KEPT]

    with pytest.raises(StoreBroken):
        desk.run(f.check("t1"))


def test_an_unknown_customer_and_another_tenants_are_told_alike(desk: Desk) -> None:
    nobody, another = desk.run(f.check("t1", customer_id="nobody"), f.check("t1", tenant_id="zeta"))

    assert nobody == another
    assert isinstance(nobody, Failed)
    assert nobody.reason == "CUSTOMER_NOT_FOUND"


def test_the_watcher_hears_of_what_changed_after_the_commit_and_of_nothing_else() -> None:
    heard: list[Any] = []
    store = MemoryStore()

    class Sink:
        def committed(self, position: int, keys: Sequence[tuple[str, str]]) -> None:
            with store.snapshot() as snapshot:
                heard.append((position, sorted(keys), snapshot.lanes()[0].position))

    pipeline = f.make_pipeline(store, sink=Sink())
    pipeline.run([f.open_line(), f.open_line(customer_id="bo")])
    pipeline.run([f.open_line(), f.check("t1", validate_only=True), f.check("t1", currency="USD")])

    assert heard == [(2, [KEY, ("acme", "bo")], 2)]


# --- Purchases. ---


def test_a_purchase_sent_again_is_decided_again_and_held_once(desk: Desk) -> None:
    first = desk.decide(f.check("t1", 500, "decline", request_id="first"))
    second = desk.decide(f.check("t1", 500, request_id="second"))

    assert [reply.decided.outcome for reply in (first, second)] == [Outcome.DECLINE, Outcome.APPROVE]
    assert desk.reasons(f.check("t1", 500, request_id="third")) == ["TRANSACTION_ID_REUSED"]
    assert desk.available() == 100_000 - 500


def test_a_step_up_is_not_dodged_by_sending_the_purchase_from_elsewhere(desk: Desk) -> None:
    risks = ("strong_step_up", "", "decline", "", "step_up", "")
    outcomes = [
        desk.decide(f.check("t1", 500, risk, request_id=f"r{n}")).decided.outcome for n, risk in enumerate(risks)
    ]
    last = desk.decide(f.check("t1", 500, request_id="last")).decided

    step_up, decline = Outcome.STEP_UP, Outcome.DECLINE
    assert outcomes == [step_up, step_up, decline, step_up, step_up, step_up]
    assert (last.reasons, last.step_up_level) == (("STEP_UP_UNANSWERED",), 2)
    desk.clock.wait(15 * f.MINUTE_US)
    assert desk.decide(f.check("t1", 500, request_id="after")).decided.outcome is Outcome.APPROVE


@pytest.mark.parametrize("risk", ["decline", "step_up"])
def test_every_attempt_on_one_purchase_counts(risk: str) -> None:
    seen = []

    class Counting(f.ChosenRules):
        def features(self, profile: Profile, facts: PurchaseFacts, line: LineFacts) -> FeatureValues:
            seen.append(profile.unheld.fine.open.n + sum(profile.unheld.fine.closed.counts))
            return super().features(profile, facts, line)

    pipeline = f.make_pipeline(rules=Counting())
    f.make_customer(pipeline)
    pipeline.run([f.check("t1", 500, risk, request_id=f"r{n}") for n in range(40)])

    assert seen == list(range(40))


def test_a_transaction_id_never_changes_its_terms(desk: Desk) -> None:
    desk.run(f.check("t1", 500, "step_up", request_id="first"))
    desk.run(f.check("t2", 500, request_id="held"))

    desk.run(f.check("t3", 500, "decline", request_id="declined"))

    assert desk.reasons(f.check("t1", 501, request_id="second")) == ["TRANSACTION_CHANGED"]
    held, other = desk.run(f.check("t2", 501, request_id="third"), f.check("t3", 501, request_id="fourth"))
    assert isinstance(held, Refusal)
    assert isinstance(other, Refusal)
    assert held.reason == other.reason == "TRANSACTION_ID_REUSED"
    assert ("held credit before" in held.message, "has other terms" in other.message) == (True, True)


def test_a_severe_anomaly_suspends_the_line_at_once_and_the_answer_says_so(desk: Desk) -> None:
    alarm = desk.decide(f.check("t1", 500, "flood"))
    after = desk.decide(f.check("t2", 1))

    assert alarm.decided.outcome is Outcome.DECLINE
    assert alarm.decided.block_id == "b-3"
    assert after.decided.reasons == ("LINE_BLOCKED",)


def test_a_soft_suspension_lapses_after_a_day(desk: Desk) -> None:
    desk.run(f.check("t1", 500, "flood"))
    desk.clock.wait(f.DAY_US - 1)
    assert desk.decide(f.check("t2", 1)).decided.outcome is Outcome.DECLINE
    desk.clock.wait(1)

    assert desk.decide(f.check("t3", 1)).decided.outcome is Outcome.APPROVE


def test_a_second_alarm_does_not_pile_up_blocks(desk: Desk) -> None:
    desk.run(f.check("t1", 5, "flood"))

    assert desk.decide(f.check("t2", 5, "flood")).decided.block_id == ""


def test_a_review_is_decided_once(desk: Desk) -> None:
    desk.run(f.check("t1", 500, "review"), f.check("t2", 500, "review"))
    assert desk.reasons(f.capture("c1", "t1")) == ["HOLD_UNDER_REVIEW"]
    assert desk.reasons(f.resolve("r1", "t1", approve=True), f.resolve("r2", "t2", approve=False)) == ["", ""]

    assert desk.reasons(f.resolve("r3", "t1", approve=False)) == ["CASE_NOT_FOUND"]
    assert desk.reasons(f.resolve("r4", "t2", approve=True)) == ["HOLD_EXPIRED"]
    assert desk.reasons(f.capture("c2", "t1"), f.capture("c3", "t2")) == ["", "HOLD_EXPIRED"]


def test_a_review_nobody_decides_gives_the_credit_back(desk: Desk) -> None:
    desk.run(f.check("t1", 100_000, "review"))
    desk.clock.wait(f.DAY_US)

    assert desk.decide(f.check("t2", 100_000)).decided.outcome is Outcome.APPROVE


@pytest.mark.parametrize("wait_us", [7 * f.DAY_US - 1, 7 * f.DAY_US])
def test_the_credit_of_a_hold_is_back_in_the_very_next_decision_after_its_time(desk: Desk, wait_us: int) -> None:
    """Invariant 16, without any sweeper."""
    desk.run(f.check("t1", 100_000))
    desk.clock.wait(wait_us)

    expected = Outcome.APPROVE if wait_us == 7 * f.DAY_US else Outcome.DECLINE
    assert desk.decide(f.check("t2", 1)).decided.outcome is expected


def test_time_never_goes_back_for_a_customer(desk: Desk) -> None:
    desk.clock.wait(7 * f.DAY_US)
    at = desk.decide(f.check("t1")).at_us
    desk.clock.wait(-7 * f.DAY_US)

    assert desk.decide(f.check("t2")).at_us == at


@pytest.mark.parametrize("off_us", [-1, 0])
def test_of_a_capture_a_void_and_the_clock_exactly_one_ends_a_hold(desk: Desk, off_us: int) -> None:
    """Invariant 16, a thousand races in every order."""
    orders = [("capture", "void"), ("void", "capture")]
    wins = []
    for number in range(500):
        name = f"t{number}"
        desk.run(f.check(name, 50, hold_lifetime_us=f.MINUTE_US))
        desk.clock.wait(f.MINUTE_US + off_us)
        rivals = {"capture": f.capture(f"c{number}", name), "void": f.void(f"v{number}", name)}
        replies = desk.run(*(rivals[who] for who in orders[number % 2]))
        desk.run(f.pay(f"p{number}", 50))
        wins.append(
            [who for who, reply in zip(orders[number % 2], replies, strict=True) if isinstance(reply, HoldReply)]
        )

    # Before its time the first to come wins; at its time the clock has won already.
    assert wins == [[order[0]] if off_us else [] for order in orders * 250]


def test_an_open_hold_is_captured_whatever_happened_to_the_line_since(desk: Desk) -> None:
    """Invariant 17."""
    desk.run(f.check("t1", 500), *(f.place_block(f"b{kind}", kind) for kind in BlockKind))

    assert desk.reasons(f.capture("c1", "t1")) == [""]


def test_after_a_forced_capture_past_the_limit_nothing_is_held_until_there_is_room(desk: Desk) -> None:
    """Invariant 14."""
    desk.run(f.check("t1", 60_000, hold_lifetime_us=1))
    desk.clock.wait(1)
    desk.run(f.check("t2", 60_000), f.capture("c1", "t1", force=True))
    assert desk.available() == -20_000
    assert desk.decide(f.check("t3", 1, allow_partial=True)).decided.reasons == ("CREDIT_LIMIT_EXCEEDED",)
    desk.run(f.pay("p1", 20_001))

    assert desk.decide(f.check("t4", 1)).decided.outcome is Outcome.APPROVE


def test_a_late_presentment_is_posted_on_a_line_that_was_closed_since(desk: Desk) -> None:
    """An approval is a promise to the merchant: it is never lost, and the customer repays it as any other debt."""
    desk.run(f.check("t1", 500, hold_lifetime_us=1), f.check("t2", 300), f.void("v2", "t2"))
    desk.clock.wait(1)
    desk.run(f.close())

    assert desk.reasons(f.capture("c2", "t2", force=True)) == ["HOLD_VOIDED"]
    assert desk.reasons(f.capture("c1", "t1", force=True), f.pay("p1", 500)) == ["", ""]
    assert desk.available() == 0


@pytest.mark.parametrize("end", ["voided", "expired", "refused"])
def test_a_review_that_nobody_passed_is_not_passed_by_the_end_of_its_hold(desk: Desk, end: str) -> None:
    desk.run(f.check("t1", 500, "review"))
    if end == "voided":
        desk.run(f.void("v1", "t1"))
    elif end == "refused":
        desk.run(f.resolve("r1", "t1", approve=False))
    else:
        desk.clock.wait(f.DAY_US)

    assert desk.reasons(f.capture("c1", "t1", force=True)) == ["REVIEW_NOT_PASSED"]


def test_a_late_presentment_of_a_purchase_that_a_reviewer_passed_is_posted(desk: Desk) -> None:
    desk.run(f.check("t1", 500, "review"), f.resolve("r1", "t1", approve=True))
    desk.clock.wait(7 * f.DAY_US)

    assert desk.reasons(f.capture("c1", "t1", force=True)) == [""]


def test_a_line_that_has_moved_all_it_may_honours_what_it_approved_and_refuses_the_rest() -> None:
    """Counters only grow. A thousand holds of the largest amount are more than any line will see."""
    desk = Desk()
    desk.run(f.open_line("vast", line_id="vast", limit_minor=AMOUNT_MAX_MINOR))
    desk.run(f.check("last", 10, line_id="vast"))
    times = TURNOVER_MAX_MINOR // AMOUNT_MAX_MINOR
    for n in range(times + 1):
        desk.run(f.check(f"t{n}", AMOUNT_MAX_MINOR - 10, line_id="vast"), f.void(f"v{n}", f"t{n}"))

    refused = desk.decide(f.check("after", AMOUNT_MAX_MINOR - 10, line_id="vast"))
    assert refused.decided.reasons == ("HOLD_BOUND_REACHED",)
    assert desk.reasons(f.increment("i1", "last", AMOUNT_MAX_MINOR - 10)) == ["BOUND_REACHED"]
    assert desk.reasons(f.pay("p1", AMOUNT_MAX_MINOR, line_id="vast")) == ["BOUND_REACHED"]
    assert desk.reasons(f.capture("c1", "last"), f.refund("r1", "last", 10)) == ["", ""]


def test_a_payment_that_is_returned_restores_every_debt_it_had_repaid(desk: Desk) -> None:
    desk.run(f.check("t1", 300), f.check("t2", 200), f.capture("c1", "t1"), f.capture("c2", "t2"))
    before = desk.line().line.books
    desk.run(f.pay("p1", 450))
    desk.run(f.reverse("x", "p1"))

    after = desk.line().line.books
    assert [postings.outstanding(books) for books in (before, after)] == [500, 500]
    assert [postings.available(books) for books in (before, after)] == [99_500, 99_500]


def test_two_lines_must_be_told_apart(desk: Desk) -> None:
    desk.run(f.open_line("second", line_id="line-2", limit_minor=50))

    assert desk.reasons(f.check("t1", 10)) == ["LINE_AMBIGUOUS"]
    assert desk.decide(f.check("t2", 51, line_id="line-2")).decided.reasons == ("CREDIT_LIMIT_EXCEEDED",)
    assert desk.decide(f.check("t3", 51, line_id="line-1")).decided.outcome is Outcome.APPROVE


def test_a_purchase_on_a_line_that_is_not_there_is_declined_and_on_record(desk: Desk) -> None:
    reply = desk.decide(f.check("t1", 10, line_id="line-9"))

    assert reply.decided.reasons == ("NO_CREDIT_LINE",)
    assert reply.sequence == 2


def test_a_restart_changes_no_answer(desk: Desk) -> None:
    first = desk.run(f.check("t1", 500), f.capture("c1", "t1", 200), f.void("v9", "t9"))
    desk.pipeline = f.make_pipeline(
        desk.store, clock=desk.clock, vault=desk.pipeline._vault, entropy=f.SeededEntropy(1)
    )

    assert desk.run(f.check("t1", 500), f.capture("c1", "t1", 200), f.void("v9", "t9")) == first
