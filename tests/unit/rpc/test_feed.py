"""Whom a commit wakes."""

from __future__ import annotations

import asyncio

from riskgate_server.rpc.feed import Feed


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
