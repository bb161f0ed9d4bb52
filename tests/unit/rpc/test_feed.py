"""Whom a commit wakes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

import pytest

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import ReadFailed
from riskgate_server.rpc import feed as feed_module
from riskgate_server.rpc.feed import FOLLOW_SECONDS, Feed

T = TypeVar("T")


def test_a_commit_wakes_those_who_watch_a_tenant_or_customer_that_changed_and_nobody_else() -> None:
    async def woken() -> list[bool]:
        feed = Feed()
        with (
            feed.tenant("acme") as acme,
            feed.tenant("bank") as bank,
            feed.customer(("acme", "ada")) as ada,
            feed.customer(("acme", "bob")) as bob,
            feed.customer(("bank", "ada")) as namesake,
        ):
            feed.committed(1, [("acme", "ada")])
            await acme.wait()
            return [event.is_set() for event in (acme, bank, ada, bob, namesake)]

    assert asyncio.run(woken()) == [True, False, True, False, False]


class Others:
    """What other servers do: each question takes the next answer; the last one is for ever."""

    def __init__(self, *answers: Collection[CustomerKey] | Exception | None) -> None:
        self._answers = list(answers)
        self.asked = 0

    def changed(self) -> Collection[CustomerKey] | None:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def followed(others: Others, watch: Callable[[Feed], Coroutine[Any, Any, T]]) -> T:
    """Return what comes of a watch while others are followed."""

    async def run() -> T:
        feed = Feed()
        following = asyncio.create_task(feed.follow(others.changed))
        try:
            async with asyncio.timeout(10):
                return await watch(feed)
        finally:
            following.cancel()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "FOLLOW_SECONDS", 0.0)
    monkeypatch.setattr(feed_module, "FOLLOW_AGAIN_SECONDS", 0.0)


def test_what_others_commit_wakes_those_it_concerns() -> None:
    async def woken(feed: Feed) -> list[bool]:
        with feed.customer(("acme", "ada")) as ada, feed.customer(("acme", "bob")) as bob, feed.tenant("acme") as acme:
            await ada.wait()
            return [bob.is_set(), acme.is_set()]

    assert followed(Others([], [], [("acme", "ada")]), woken) == [False, True]


def test_everybody_is_woken_when_it_may_be_anybody() -> None:
    async def woken(feed: Feed) -> None:
        with feed.customer(("acme", "ada")) as ada, feed.tenant("bank") as bank:
            await ada.wait()
            await bank.wait()

    followed(Others(None), woken)


def test_watchers_go_on_being_woken_after_the_store_could_not_be_read() -> None:
    async def woken(feed: Feed) -> None:
        with feed.tenant("acme") as acme:
            await acme.wait()

    others = Others(ReadFailed("away"), RuntimeError("whatever"), [("acme", "ada")])
    followed(others, woken)

    assert others.asked >= 3


def test_nothing_is_asked_while_nobody_watches() -> None:
    others = Others(None)

    async def none(feed: Feed) -> None:
        for _ in range(50):
            await asyncio.sleep(0)
        with feed.tenant("acme") as acme:
            await acme.wait()
        before = others.asked
        for _ in range(50):
            await asyncio.to_thread(int)
        # What was being asked just then came to its end, and nothing followed it.
        assert others.asked <= before + 1

    followed(others, none)


def test_a_change_is_looked_for_often_enough_to_be_seen_within_a_tenth_of_a_second() -> None:
    assert FOLLOW_SECONDS <= 0.1 / 3
