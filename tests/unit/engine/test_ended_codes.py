"""Codes that end while they are still on their way: whoever gets one that is wrong by now is only confused by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from riskgate_server.engine.delivery import Answer
from riskgate_server.engine.replies import CodeReply, GrantReply
from tests.post import Post

CODE_LIFETIME = 300.0


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    yield post
    post.close()


@pytest.mark.parametrize("how", ["newer", "used", "burned"])
def test_a_code_that_ended_before_it_is_tried_again_is_dropped(post: Post, how: str) -> None:
    """It would arrive beside the right one, a minute late, and be refused."""

    async def life() -> None:
        await post.enroll()
        post.far_end.plan = ["silent" if how == "used" else "lost"]
        challenge_id, answer = await post.send()
        assert answer is Answer.PENDING
        tried = len(post.far_end.attempts)
        post.far_end.plan = ["ok"]
        code = post.far_end.attempts[-1][1].parameters["code"]
        match how:
            case "newer":
                assert (await post.send())[1] is Answer.DELIVERED
                tried += 1
            case "used":
                assert isinstance(post.bank.check(challenge_id, code), GrantReply)
            case "burned":
                for _ in range(5):
                    post.bank.wrong(challenge_id)
        for _ in range(int(CODE_LIFETIME)):
            await asyncio.sleep(1)
            post.sweep()

        assert len(post.far_end.attempts) == tried
        assert post.counts.outcomes[-1] == "ENDED"
        assert post.waiting == 0

    post.loop.run(life())
    assert post.bank.verify() == []


def test_a_code_that_a_newer_one_overtakes_while_it_is_tried_is_dropped_and_counts_for_nothing(post: Post) -> None:
    async def life() -> None:
        await post.enroll()
        post.far_end.plan = ["down", "ok"]
        reply = post.bank.send()
        assert isinstance(reply, CodeReply)
        told = asyncio.ensure_future(post.told(reply.code.message_id))
        await asyncio.sleep(0.1)
        newer, answer = await post.send()

        assert await told is Answer.UNSENT
        assert answer is Answer.DELIVERED
        (message,) = post.far_end.delivered.values()
        assert isinstance(post.bank.check(newer, message.parameters["code"]), GrantReply)
        assert sorted(post.counts.outcomes) == ["DELIVERED", "ENDED"]

    post.loop.run(life())
    assert post.bank.verify() == []
