from __future__ import annotations

import pytest

from riskgate_server.engine.clocks import EVENT_TOLERANCE_US, SystemClock
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.replies import DecisionReply, Failed, HoldReply, Refusal, error_of
from riskgate_server.stores.memory import MemoryStore
from tests.factories import (
    DAY_US,
    NOW_US,
    FixedClock,
    capture,
    check,
    make_customer,
    make_pipeline,
    open_line,
    pay,
    void,
)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def pipeline(store: MemoryStore, clock: FixedClock) -> Pipeline:
    pipeline = make_pipeline(store, clock=clock)
    make_customer(pipeline)
    return pipeline


def entries(store: MemoryStore) -> int:
    with store.snapshot() as snapshot:
        return snapshot.counts()["entries"]


def test_the_same_id_and_content_gets_the_same_answer_and_no_second_effect(
    pipeline: Pipeline, store: MemoryStore
) -> None:
    first = pipeline.run([check("t1", 500)])
    before = entries(store)

    again = pipeline.run([check("t1", 500)])

    assert again == first
    assert entries(store) == before


def test_a_duplicate_in_the_same_batch_shares_the_answer_of_the_first(pipeline: Pipeline) -> None:
    replies = pipeline.run([check("t1", 500), check("t1", 500), pay("p1", 5), pay("p1", 5)])

    assert replies[0] == replies[1]
    assert replies[2] == replies[3]


def test_the_same_id_with_other_content_is_refused_and_changes_nothing(pipeline: Pipeline, store: MemoryStore) -> None:
    pipeline.run([check("t1", 500)])
    before = entries(store)

    (reply,) = pipeline.run([check("t2", 700, request_id="check t1")])

    assert isinstance(reply, Failed)
    assert (reply.family, reply.reason) == ("AlreadyExists", "REQUEST_ID_REUSED")
    assert entries(store) == before


def test_ids_of_two_customers_and_of_two_tenants_do_not_meet(pipeline: Pipeline) -> None:
    for place in ({"customer_id": "bo"}, {"tenant_id": "zeta"}):
        (reply,) = pipeline.run([open_line(limit_minor=7, **place)])

        assert not isinstance(reply, Failed | Refusal)


def test_a_refusal_sticks_even_when_the_state_would_allow_it_now(pipeline: Pipeline) -> None:
    pipeline.run([check("t1", 500), check("t2", 500, "review")])
    (refused,) = pipeline.run([void("v1", "t3")])
    assert isinstance(refused, Refusal)

    pipeline.run([check("t3", 500)])

    assert pipeline.run([void("v1", "t3")]) == [refused]


def test_a_decline_sticks_after_the_limit_has_room_again(pipeline: Pipeline) -> None:
    pipeline.run([check("big", 100_000)])
    (declined,) = pipeline.run([check("t1", 1)])
    pipeline.run([void("v", "big")])

    assert pipeline.run([check("t1", 1)]) == [declined]


def test_a_malformed_request_does_not_consume_its_id(pipeline: Pipeline) -> None:
    (wrong,) = pipeline.run([check("t1", 500, currency="JPY", request_id="r")])
    (right,) = pipeline.run([check("t1", 500, request_id="r")])

    assert isinstance(wrong, Failed)
    assert wrong.family == "InvalidRequest"
    assert isinstance(right, DecisionReply)


def test_an_expired_deadline_has_no_effect_and_does_not_consume_its_id(store: MemoryStore) -> None:
    pipeline = make_pipeline(store, monotonic_us=lambda: 100)
    make_customer(pipeline)

    (late,) = pipeline.run([check("t1", 500, deadline_us=100)])
    (timely,) = pipeline.run([check("t1", 500, deadline_us=101)])

    assert isinstance(late, Failed)
    assert late.reason == "DEADLINE_PASSED"
    assert isinstance(timely, DecisionReply)


def test_a_validate_only_check_leaves_nothing_and_consumes_nothing(pipeline: Pipeline, store: MemoryStore) -> None:
    before = entries(store)
    (dry,) = pipeline.run([check("t1", 500, validate_only=True)])
    assert entries(store) == before

    (real,) = pipeline.run([check("t1", 500)])

    assert isinstance(dry, DecisionReply)
    assert isinstance(real, DecisionReply)
    assert dry.sequence == 0
    assert dry.decided == real.decided


def test_a_decision_is_answered_again_however_old_it_is(
    pipeline: Pipeline, store: MemoryStore, clock: FixedClock
) -> None:
    first = pipeline.run([check("t1", 500)])
    clock.wait(400 * DAY_US)
    store.forget_replies(clock.us, 1_000)

    assert pipeline.run([check("t1", 500)]) == first


def test_a_forgotten_reply_says_that_it_was_done_and_does_nothing_again(
    pipeline: Pipeline, store: MemoryStore, clock: FixedClock
) -> None:
    pipeline.run([check("t1", 500), capture("c1", "t1", 100)])
    clock.wait(DAY_US)
    store.forget_replies(clock.us, 1_000)
    before = entries(store)

    (reply,) = pipeline.run([capture("c1", "t1", 100)])

    assert isinstance(reply, Failed)
    assert (reply.family, reply.reason) == ("PreconditionFailed", "REPLY_FORGOTTEN")
    assert reply.details == {"effect": "HOLD_CAPTURED", "sequence": "3", "time": "2026-05-28T20:26:40.000000Z"}
    assert error_of(reply).details == reply.details
    assert entries(store) == before


def test_a_forgotten_refusal_is_still_a_refusal_for_its_own_reason(
    pipeline: Pipeline, store: MemoryStore, clock: FixedClock
) -> None:
    (refused,) = pipeline.run([capture("c1", "nothing", 100)])
    assert isinstance(refused, Refusal)
    clock.wait(DAY_US)
    store.forget_replies(clock.us, 1_000)

    (reply,) = pipeline.run([capture("c1", "nothing", 100)])

    assert isinstance(reply, Failed)
    assert (reply.family, reply.reason) == (refused.family, refused.reason)


class LiveClock(SystemClock):
    """The system's clock at the moment the test says."""

    def __init__(self, us: int = NOW_US) -> None:
        self.us = us

    def now_us(self) -> int:
        return self.us


@pytest.mark.parametrize("off_us", [-EVENT_TOLERANCE_US, EVENT_TOLERANCE_US])
def test_a_request_is_answered_again_however_old_its_event_time_has_become(store: MemoryStore, off_us: int) -> None:
    clock = LiveClock()
    pipeline = make_pipeline(store, clock=clock)
    make_customer(pipeline)
    purchase = check("t1", 500, event_us=NOW_US + off_us)
    first = pipeline.run([purchase])
    clock.us += 400 * DAY_US

    assert isinstance(first[0], DecisionReply)
    assert pipeline.run([purchase]) == first


@pytest.mark.parametrize("off_us", [-EVENT_TOLERANCE_US - 1, EVENT_TOLERANCE_US + 1])
@pytest.mark.parametrize("validate_only", [False, True])
def test_a_new_request_of_another_time_is_refused_and_does_not_consume_its_id(
    store: MemoryStore, off_us: int, *, validate_only: bool
) -> None:
    pipeline = make_pipeline(store, clock=LiveClock())
    make_customer(pipeline)
    before = entries(store)

    (refused,) = pipeline.run([check("t1", 500, event_us=NOW_US + off_us, validate_only=validate_only)])
    after = entries(store)
    (timely,) = pipeline.run([check("t1", 500, event_us=NOW_US)])

    assert isinstance(refused, Failed)
    assert (refused.reason, [v.field for v in refused.violations]) == ("EVENT_TIME_OUT_OF_RANGE", ["event_time"])
    assert after == before
    assert isinstance(timely, DecisionReply)


def test_replies_are_kept_until_they_are_told_to_be_forgotten(pipeline: Pipeline, store: MemoryStore) -> None:
    pipeline.run([check("t1", 500)])
    captured = pipeline.run([capture("c1", "t1", 100)])
    store.forget_replies(NOW_US, 1_000)  # strictly older only

    assert pipeline.run([capture("c1", "t1", 100)]) == captured
    assert isinstance(captured[0], HoldReply)
