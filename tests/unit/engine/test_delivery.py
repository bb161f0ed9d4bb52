"""Messages on their way: when they are sent, how often, and what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskgate_server.domain import errors
from riskgate_server.domain.events import Outcome
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.engine import commands as c
from riskgate_server.engine import delivery as delivery_module
from riskgate_server.engine.delivery import Answer
from riskgate_server.engine.replies import CodeReply, DecisionReply, GrantReply
from riskgate_server.engine.storing import MESSAGE_LEASE_SECONDS
from riskgate_server.stores.memory import MemoryStore
from tests import factories as f
from tests.bank import KEY, NUMBER, refused
from tests.post import Post
from tests.rpc.logs import logs
from tests.simulation.faults import Fault, FaultyStore

CODE_LIFETIME = 300.0


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    yield post
    post.close()


def test_a_code_reaches_the_phone_it_was_asked_for_and_waits_no_longer(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        challenge_id, answer = await post.send()
        await asyncio.sleep(1)

        assert answer is Answer.DELIVERED
        ((_, message),) = post.far_end.attempts
        assert (message.destination, message.language, message.template) == (NUMBER, "en", "CODE_SIGN_IN")
        assert message.text.startswith(message.parameters["code"])
        assert isinstance(post.bank.check(challenge_id, message.parameters["code"]), GrantReply)
        assert post.waiting == 0
        assert post.counts.outcomes == ["DELIVERED"]

    post.loop.run(life())
    assert post.bank.verify() == []


def test_a_code_for_a_purchase_names_amount_and_payee(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        stepped_up = post.bank.do(f.check("t-1", 12_345, risk="step_up"))
        assert isinstance(stepped_up, DecisionReply)
        assert stepped_up.decided.outcome is Outcome.STEP_UP
        await post.send(Purpose.TRANSACTION, "t-1")

        ((_, message),) = post.far_end.attempts
        code = message.parameters["code"]
        assert message.parameters == {"code": code, "amount": "123.45", "currency": "CNY", "payee": "m-1"}
        assert message.text == f"{code} is your code to pay CNY 123.45 to m-1. If this is not you, do not share it."

    post.loop.run(life())


def test_nothing_is_sent_of_a_commit_that_failed() -> None:
    faulty = FaultyStore(MemoryStore())
    post = Post(store=faulty)

    async def life() -> None:
        await post.enroll()
        faulty.plan = lambda: Fault.REJECTED
        assert refused(post.bank.send()) == "INTERNAL"
        await asyncio.sleep(10)

    post.loop.run(life())
    post.close()
    assert post.far_end.attempts == []


def test_a_gateway_that_is_down_costs_its_caller_nothing_and_the_same_code_goes_out_later(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = ["down"]
        # More than the budget of ten minutes.
        for _ in range(8):
            began = post.loop.time()
            challenge_id, answer = await post.send()
            assert answer is Answer.UNSENT
            assert post.loop.time() - began < 10
        assert post.waiting == 0
        assert len(set(post.far_end.ids)) == 8
        assert post.far_end.delivered == {}
        post.far_end.plan = ["ok"]
        await asyncio.sleep(30)
        again = post.bank.ask(c.ResendCode, challenge_id=challenge_id, language="zh-Hans")
        assert isinstance(again, CodeReply)

        assert await post.told(again.code.message_id) is Answer.DELIVERED
        (message,) = post.far_end.delivered.values()
        assert message.language == "zh-Hans"
        assert isinstance(post.bank.check(challenge_id, message.parameters["code"]), GrantReply)

    post.loop.run(life())
    assert post.bank.verify() == []


def test_a_gateway_that_comes_back_in_time_is_noticed(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = ["down", "down", "ok"]
        _, answer = await post.send()

        assert answer is Answer.DELIVERED
        first, second, third = post.far_end.times
        assert 0.25 <= second - first < third - second <= 1
        assert len(set(post.far_end.ids)) == 1

    post.loop.run(life())


def test_the_gateways_own_time_to_try_again_is_kept(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = [2.5, "ok"]
        assert (await post.send())[1] is Answer.DELIVERED
        first, second = post.far_end.times
        assert second - first == pytest.approx(2.5)
        began = post.loop.time()
        post.far_end.plan = [60.0]

        # Longer than anybody waits.
        assert (await post.send())[1] is Answer.UNSENT
        assert post.loop.time() - began < 1

    post.loop.run(life())


def test_a_number_that_does_not_exist_is_not_tried_again_and_asking_for_it_counts(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = ["refused"]
        answers = [(await post.send())[1] for _ in range(4)]
        assert answers == [Answer.REFUSED] * 4
        assert len(post.far_end.attempts) == 4
        assert post.waiting == 0
        # Else the gateway could be asked about numbers without end.
        assert refused(post.bank.send()) == "SEND_BUDGET_SPENT"

    post.loop.run(life())


@pytest.mark.parametrize("what", ["lost", "silent", "hangs", "broken"])
def test_what_nobody_knows_is_repeated_under_its_id_and_still_counts(post: Post, what: str) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = [what]
        challenge_id, answer = await post.send()
        assert answer is Answer.PENDING
        assert len(post.far_end.attempts) >= 2
        await asyncio.sleep(5)
        assert post.waiting == 1
        post.far_end.plan = ["ok"]
        await asyncio.sleep(150)
        post.sweep()
        await asyncio.sleep(1)

        assert post.waiting == 0
        ((message_id, message),) = post.far_end.delivered.items()
        assert set(post.far_end.ids) == {message_id}
        assert all(sent == message for _, sent in post.far_end.attempts)
        assert isinstance(post.bank.check(challenge_id, message.parameters["code"]), GrantReply)
        assert [(await post.send())[1] for _ in range(2)] == [Answer.DELIVERED] * 2

    post.loop.run(life())


def test_what_may_have_arrived_is_counted(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = ["lost"]
        sent = [(await post.send())[1] for _ in range(4)]
        assert sent == [Answer.PENDING] * 4
        # The one that the enrolment sent is the fifth.
        assert refused(post.bank.send()) == "SEND_BUDGET_SPENT"

    post.loop.run(life())


def test_a_message_is_never_sent_after_its_time(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        began = post.loop.time()
        post.far_end.plan = ["lost"]
        await post.send()
        for _ in range(600):
            await asyncio.sleep(1)
            post.sweep()

        assert max(post.far_end.times) < began + CODE_LIFETIME
        assert len(post.far_end.attempts) < 30
        assert post.counts.outcomes == ["EXPIRED"]
        assert post.waiting == 0

    post.loop.run(life())
    assert post.bank.verify() == []


def test_a_message_found_after_its_time_is_dropped_unsent(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.delivery._closed = True
        assert (await post.send())[1] is Answer.PENDING
        post.delivery = await post.start()
        await asyncio.sleep(CODE_LIFETIME)
        assert len(post.sweep()) == 1
        await asyncio.sleep(1)

        assert post.far_end.attempts == []
        assert post.waiting == 0

    post.loop.run(life())


def test_a_message_that_was_sent_and_not_settled_is_sent_again_under_its_id(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.kill()
        assert (await post.send())[1] is Answer.DELIVERED
        assert post.waiting == 1
        post.delivery = await post.start()
        assert post.sweep() == []
        await asyncio.sleep(MESSAGE_LEASE_SECONDS)
        assert len(post.sweep()) == 1
        await asyncio.sleep(1)

        assert len(post.far_end.attempts) == 2
        assert len(set(post.far_end.ids)) == len(post.far_end.delivered) == 1
        assert post.waiting == 0

    post.loop.run(life())
    assert post.bank.verify() == []


def test_what_was_left_behind_counts_though_the_gateway_is_down_now(post: Post) -> None:
    """Whoever left it may have sent it."""

    async def life() -> None:
        await post.enroll()
        post.kill()
        await post.send()
        post.delivery = await post.start()
        post.far_end.plan = ["down"]
        await asyncio.sleep(MESSAGE_LEASE_SECONDS)
        post.sweep()
        await asyncio.sleep(20)

        assert post.waiting == 1
        assert "UNSENT" not in post.counts.outcomes

    post.loop.run(life())


def test_nothing_is_sent_that_could_still_be_under_way_when_the_lease_is_over(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.delivery._closed = True
        await post.send()
        post.delivery = await post.start()
        await asyncio.sleep(MESSAGE_LEASE_SECONDS)
        rows = post.store.lease_messages(post.bank.clock.now_us(), 9)
        # The commit that took the lease took nearly as long as it.
        await asyncio.sleep(MESSAGE_LEASE_SECONDS - 5)
        post.delivery.leased(rows, post.loop.time() - (MESSAGE_LEASE_SECONDS - 5))
        await asyncio.sleep(4)

        assert len(rows) == 1
        assert post.far_end.attempts == []
        assert post.waiting == 1
        await asyncio.sleep(1)
        post.sweep()
        await asyncio.sleep(1)
        assert post.waiting == 0
        assert len(post.far_end.delivered) == 1

    post.loop.run(life())


def test_a_code_is_not_given_up_after_another_process_may_have_taken_it(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = ["down"]
        # For longer than the lease lasts.
        post.refusals = [errors.Unavailable("STORE_UNREACHABLE", "") for _ in range(16)]
        _, answer = await post.send()
        await asyncio.sleep(2 * MESSAGE_LEASE_SECONDS)

        assert answer is Answer.PENDING
        assert post.waiting == 1
        assert "UNSENT" not in post.counts.outcomes

    post.loop.run(life())


def test_a_settlement_that_cannot_be_recorded_now_is_recorded_later_and_nothing_is_sent_twice(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.refusals = [
            errors.ResourceExhausted("OVERLOADED", "", retry_after_seconds=1.0),
            errors.Unavailable("STORE_UNREACHABLE", ""),
            errors.Unavailable("OUTCOME_UNKNOWN", ""),
            errors.Conflict("WRITE_CONFLICT", ""),
        ]
        assert (await post.send())[1] is Answer.DELIVERED
        for _ in range(30):
            await asyncio.sleep(1)
            post.sweep()

        assert post.waiting == 0
        assert len(post.far_end.attempts) == 1

    post.loop.run(life())


def test_no_more_messages_are_with_the_gateway_at_once_than_it_is_meant_to_have() -> None:
    post = Post(at_once=3)

    async def life() -> None:
        await post.enroll()
        for n in range(20):
            post.bank.do(f.open_line(customer_id=f"customer {n}"))
        post.far_end.seconds = 0.1
        for n in range(20):
            post.bank.enroll_phone(f"+861{n:02}12345678", customer_id=f"customer {n}")
        await asyncio.sleep(5)
        assert len(post.far_end.attempts) == 20
        assert post.far_end.most_at_once == 3

    post.loop.run(life())
    post.close()


def test_a_caller_who_gives_up_cancels_nothing_but_the_own_wait(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.seconds = 1.0
        waiting = asyncio.ensure_future(post.send())
        await asyncio.sleep(0.5)
        waiting.cancel()
        await asyncio.sleep(2)

        assert len(post.far_end.delivered) == 1
        assert post.waiting == 0

    post.loop.run(life())


def test_an_answer_is_known_to_whoever_asks_again(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = ["down"]
        reply = post.bank.send()
        assert isinstance(reply, CodeReply)
        first = await asyncio.gather(*(post.told(reply.code.message_id) for _ in range(3)))
        later = await post.told(reply.code.message_id)

        assert {*first, later} == {Answer.UNSENT}
        assert await post.told("m-1-9") is Answer.PENDING

    post.loop.run(life())


@pytest.mark.parametrize(
    ("what", "answer"), [("down", Answer.UNSENT), ("refused", Answer.REFUSED), ("ok", Answer.DELIVERED)]
)
def test_an_answer_is_known_to_every_other_process_and_after_a_restart(post: Post, what: str, answer: Answer) -> None:
    """Who repeats a request may meet another process: told that all is well, they would wait for a code in vain."""

    async def life() -> None:
        await post.enroll()
        post.far_end.plan = [what]
        post.far_end.seconds = 0.5
        reply = post.bank.send()
        assert isinstance(reply, CodeReply)
        await asyncio.sleep(0)
        first = post.delivery
        other = await post.start()
        both = await asyncio.gather(first.answer(KEY, reply.code.message_id), other.answer(KEY, reply.code.message_id))
        later = await (await post.start()).answer(KEY, reply.code.message_id)

        assert set(both) == {answer}
        assert later is answer

    post.loop.run(life())


def test_a_caller_waits_no_longer_than_it_says(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.seconds = 2.0
        reply = post.bank.send()
        assert isinstance(reply, CodeReply)
        began = post.loop.time()

        assert await post.told(reply.code.message_id, 0.5) is Answer.PENDING
        assert post.loop.time() - began == pytest.approx(0.5)

    post.loop.run(life())


def test_a_message_to_a_customer_who_was_erased_is_dropped(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.delivery._closed = True
        await post.send()
        post.bank.vault.forget(KEY)
        post.delivery = await post.start()
        await asyncio.sleep(MESSAGE_LEASE_SECONDS)
        post.sweep()
        await asyncio.sleep(1)

        assert post.far_end.attempts == []
        assert post.counts.outcomes == ["UNREADABLE"]
        assert post.waiting == 0

    post.loop.run(life())


def test_what_is_too_much_for_one_process_waits_in_the_store(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    async def life() -> None:
        await post.enroll()
        monkeypatch.setattr(delivery_module, "WAITING_MAX", 1)
        post.far_end.seconds = 1.0
        first = post.bank.send()
        second = post.bank.send()
        assert isinstance(first, CodeReply)
        assert isinstance(second, CodeReply)
        assert await post.told(first.code.message_id) is Answer.DELIVERED
        assert await post.told(second.code.message_id) is Answer.PENDING
        await asyncio.sleep(MESSAGE_LEASE_SECONDS)
        post.sweep()
        await asyncio.sleep(2)

        assert len(post.far_end.delivered) == 2

    post.loop.run(life())


def test_closing_lets_what_is_under_way_come_to_its_end_and_leaves_the_rest(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.seconds = 1.0
        waiting = asyncio.ensure_future(post.send())
        await asyncio.sleep(0.5)
        await post.delivery.close(5.0)
        assert (await waiting)[1] is Answer.DELIVERED
        assert post.waiting == 0
        assert post.far_end.closed
        assert (await post.send())[1] is Answer.PENDING
        assert post.waiting == 1

    post.loop.run(life())


def test_closing_waits_no_longer_than_it_says(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = ["hangs"]
        waiting = asyncio.ensure_future(post.send())
        await asyncio.sleep(0.5)
        await post.delivery.close(1.0)

        assert (await waiting)[1] is Answer.PENDING
        assert post.loop.time() < 10

    post.loop.run(life())


@pytest.mark.parametrize("plan", [["ok"], ["down"], ["refused"], ["silent", "broken", "ok"], ["hangs"]])
def test_the_log_has_neither_number_nor_code_nor_text(post: Post, plan: list[str | float]) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = list(plan)
        await post.send()
        for _ in range(400):
            await asyncio.sleep(1)
            post.sweep()

    with logs() as lines:
        post.loop.run(life())
    said = "\n".join(lines.lines)
    for _, message in post.far_end.attempts:
        for secret in (NUMBER, NUMBER[1:], message.parameters["code"], "your code", f.CUSTOMER):
            assert secret not in said
    assert (plan == ["ok"]) == (not lines.of("message not delivered") and not lines.of("message refused"))


@dataclass
class Tale:
    """What the far end does, and after how many seconds the process dies each time."""

    plan: list[str | float]
    deaths: list[float]


TALES = st.builds(
    Tale,
    plan=st.lists(st.sampled_from(["ok", "down", "lost", "silent", "hangs", "broken", 1.0, 90.0]), max_size=8).map(
        lambda plan: [*plan, "ok"]
    ),
    deaths=st.lists(st.floats(0, 20), max_size=3),
)


@given(TALES)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_a_message_that_was_committed_arrives_once_or_is_known_not_to_have(tale: Tale) -> None:
    post = Post()

    async def life() -> None:
        await post.enroll()
        began = post.loop.time()
        post.far_end.plan = list(tale.plan)
        reply = post.bank.send()
        assert isinstance(reply, CodeReply)
        caller = asyncio.ensure_future(post.told(reply.code.message_id))
        for seconds in tale.deaths:
            await asyncio.sleep(seconds)
            post.kill()
            caller.cancel()
            # With the process, what it was doing.
            await post.delivery.close()
            post.delivery = await post.start()
        while post.waiting:
            await asyncio.sleep(1)
            post.sweep()
            assert post.loop.time() < began + 2 * CODE_LIFETIME
        delivered, ids = post.far_end.delivered, set(post.far_end.ids)
        assert len(ids) <= 1
        assert len(set(map(str, (m.text for _, m in post.far_end.attempts)))) <= 1
        assert all(at < began + CODE_LIFETIME for at in post.far_end.times)
        outcome = post.counts.outcomes[-1]
        if outcome == "DELIVERED":
            assert len(delivered) == 1
        if outcome == "UNSENT":
            assert delivered == {}
        assert outcome in ("DELIVERED", "UNSENT", "EXPIRED")

    post.loop.run(life())
    post.close()
    assert post.bank.verify() == []
