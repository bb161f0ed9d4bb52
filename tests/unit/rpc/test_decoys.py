"""Challenges for nobody behave as real ones do whose code goes out, or cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from riskgate_server.crypto.derived import DerivedSecrets
from riskgate_server.domain.errors import ResourceExhausted, Unavailable
from riskgate_server.domain.identity.limits import PROOF_LIMITS
from riskgate_server.engine.replies import CodeView
from riskgate_server.rpc.decoys import DURATIONS, Decoys, gateway_down
from tests import factories as f

KEY = ("acme", "nobody")


class Real:
    """The codes of customers who exist, as they fared of late."""

    def __init__(self) -> None:
        self.clock = f.FixedClock()
        self.decoys = Decoys(DerivedSecrets({1: bytes(32)}), self.clock)

    async def fared(self, *, well: bool) -> None:
        for _ in range(DURATIONS):
            try:
                await self.decoys.timed(self._one(well=well))
            except Unavailable:
                continue

    async def _one(self, *, well: bool) -> None:
        if not well:
            raise gateway_down("c-1")

    async def told(self, answer: Awaitable[CodeView]) -> CodeView | str:
        try:
            return await answer
        except (Unavailable, ResourceExhausted) as error:
            return error.reason


@pytest.fixture
def real() -> Real:
    return Real()


def test_a_request_that_is_repeated_is_told_the_same_however_the_gateway_fares_by_then(real: Real) -> None:
    decoys = real.decoys

    async def story() -> None:
        await real.fared(well=True)
        first = await decoys.send(KEY, "r1")
        real.clock.wait(PROOF_LIMITS.resend_us)
        second = await decoys.resend(KEY, first.challenge_id, "r2")
        await real.fared(well=False)

        assert await decoys.send(KEY, "r1") == first
        assert await decoys.resend(KEY, first.challenge_id, "r2") == second
        assert second.resend_us == first.resend_us + PROOF_LIMITS.resend_us
        assert await real.told(decoys.send(KEY, "r3")) == "GATEWAY_DOWN"
        await real.fared(well=True)
        assert await real.told(decoys.send(KEY, "r3")) == "GATEWAY_DOWN"

    asyncio.run(story())


def test_what_cannot_be_sent_counts_for_nothing_and_may_be_sent_again_at_once(real: Real) -> None:
    decoys = real.decoys

    async def story() -> None:
        await real.fared(well=True)
        for number in range(PROOF_LIMITS.sends_per_customer - 1):
            await decoys.send(KEY, f"before {number}")
        await real.fared(well=False)
        with pytest.raises(Unavailable) as down:
            await decoys.send(KEY, "down")
        challenge_id = str(down.value.details["challenge_id"])
        assert await real.told(decoys.resend(KEY, challenge_id, "again")) == "GATEWAY_DOWN"
        await real.fared(well=True)

        assert isinstance(await real.told(decoys.resend(KEY, challenge_id, "at last")), CodeView)
        assert await real.told(decoys.send(KEY, "one more")) == "SEND_BUDGET_SPENT"

    asyncio.run(story())


def test_a_code_sent_again_takes_as_long_for_nobody(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def story() -> None:
        await real.fared(well=True)
        first = await real.decoys.send(KEY, "r1")
        real.clock.wait(PROOF_LIMITS.resend_us)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        await real.decoys.resend(KEY, first.challenge_id, "r2")

        assert len(slept) == 1
        assert 0 < slept[0] < 1

    asyncio.run(story())
