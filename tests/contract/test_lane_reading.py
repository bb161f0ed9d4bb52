"""Decisions of several servers, listed and followed as one: none twice, none missing, whoever writes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest

from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.events import Outcome
from riskgate_server.engine import queries as queries_module
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.queries import Queries
from riskgate_server.engine.replies import DecisionReply
from riskgate_server.engine.storing import Store
from riskgate_server.stores.memory import MemoryVault
from riskgate_server.stores.postgres.store import PostgresStore
from tests import factories as f

EVERYBODY = ("ada", "bo", "cy")


class Fleet:
    """Servers over a store: two of PostgreSQL's, one of any other."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.clock = f.FixedClock()
        vault = MemoryVault()
        self.servers = [f.make_pipeline(store, vault=vault, clock=self.clock) for store in stores]
        self.queries = Queries(stores[-1], vault=vault, sealer=Sealer(), clock=self.clock, rulesets=_no_rules)
        self.chance = Random(7)
        self.bought: list[str] = []
        self.servers[0].run([f.open_line(customer_id=who, limit_minor=10**9) for who in EVERYBODY])

    def buy(self, number: int = 1, server: Pipeline | None = None, risk: str = "") -> None:
        for _ in range(number):
            name = f"t{len(self.bought)}"
            self.clock.wait(self.chance.choice((0, 0, 1, 1_000)))
            where = server or self.chance.choice(self.servers)
            who = self.chance.choice(EVERYBODY)
            where.run([f.check(name, 1, risk, customer_id=who)])
            self.bought.append(name)

    def page(self, before: Any, limit: int = 7, **query: Any) -> queries_module.Page:
        asked = {"tenant_id": f.TENANT, "customer_id": "", "outcomes": ()} | query
        return self.queries.decisions(**asked, before=before, limit=limit)

    def pages(self, **query: Any) -> Iterator[list[DecisionReply]]:
        before: Any = {}
        while True:
            page = self.page(before, **query)
            yield page.decisions
            before = page.next_before
            if not before:
                return


def _no_rules(source: str) -> Any:
    raise AssertionError(source)


def names(decisions: Sequence[DecisionReply]) -> list[str]:
    return [decision.decided.transaction_id for decision in decisions]


@pytest.fixture
def fleet(store: Store, dsn: str) -> Iterator[Fleet]:
    stores = [store]
    if isinstance(store, PostgresStore):
        stores.append(PostgresStore(dsn, writer=1))
    yield Fleet(stores)
    for each in stores:
        each.close()


def test_decisions_of_all_servers_are_listed_newest_first(fleet: Fleet) -> None:
    fleet.buy(60)

    listed = [decision for page in fleet.pages() for decision in page]

    assert sorted(names(listed)) == sorted(fleet.bought)
    times = [decision.at_us for decision in listed]
    assert times == sorted(times, reverse=True)
    assert names(listed) == names([decision for page in fleet.pages(limit=500) for decision in page])


def test_pages_neither_skip_nor_repeat_a_decision_while_all_servers_write(fleet: Fleet) -> None:
    fleet.buy(60)
    there = list(fleet.bought)

    listed: list[str] = []
    for page in fleet.pages(limit=4):
        listed += names(page)
        fleet.buy(5)

    assert sorted(listed) == sorted(there)


def test_a_page_ends_the_list_only_when_no_server_has_more(fleet: Fleet) -> None:
    fleet.buy(6)

    assert [len(page) for page in fleet.pages(limit=3)] == [3, 3]
    assert [len(page) for page in fleet.pages(limit=4)] == [4, 2]


def test_a_list_of_outcomes_looks_at_so_many_and_goes_on_where_it_stopped(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries_module, "SCAN_MAX", 10)
    monkeypatch.setattr(queries_module, "CHUNK", 3)
    for risk in ("", "", "review", "") * 12:
        fleet.buy(risk=risk)

    pages = list(fleet.pages(outcomes=(Outcome.REVIEW,)))

    assert sorted(names([d for page in pages for d in page])) == sorted(fleet.bought[2::4])
    assert len(pages) >= 4


def test_a_customers_decisions_are_listed_in_the_order_they_were_made(fleet: Fleet) -> None:
    fleet.buy(40)

    pages = list(fleet.pages(customer_id="ada", limit=3))
    sequences = [decision.sequence for page in pages for decision in page]

    assert len(sequences) > 5
    assert sequences == sorted(sequences, reverse=True)
    assert {decision.key for page in pages for decision in page} == {(f.TENANT, "ada")}


@pytest.mark.parametrize("limit", [1, 2, 7, 500])
def test_who_follows_is_told_every_decision_of_every_server_once(fleet: Fleet, limit: int) -> None:
    fleet.buy(5)
    places = fleet.queries.ends()
    told: list[str] = []
    for _ in range(12):
        fleet.buy(4)
        found, places = fleet.queries.decisions_after(places, tenant_id=f.TENANT, customer_id="", limit=limit)
        told += names([reply for _, reply in found])
    while True:
        found, after = fleet.queries.decisions_after(places, tenant_id=f.TENANT, customer_id="", limit=limit)
        told += names([reply for _, reply in found])
        if after == places:
            break
        places = after

    assert sorted(told) == sorted(fleet.bought[5:])


def test_who_goes_on_after_any_decision_misses_none_and_repeats_none(fleet: Fleet) -> None:
    fleet.buy(30)
    everything, _ = fleet.queries.decisions_after({}, tenant_id=f.TENANT, customer_id="", limit=500)

    for number, (places, _) in enumerate(everything, 1):
        rest, _ = fleet.queries.decisions_after(places, tenant_id=f.TENANT, customer_id="", limit=500)
        assert names([reply for _, reply in rest]) == names([reply for _, reply in everything[number:]])


def test_who_follows_one_customer_is_told_of_no_other(fleet: Fleet) -> None:
    fleet.buy(30)

    found, places = fleet.queries.decisions_after({}, tenant_id=f.TENANT, customer_id="bo", limit=500)

    assert {reply.key for _, reply in found} == {(f.TENANT, "bo")}
    assert places == fleet.queries.ends()


def test_a_server_that_came_later_is_followed_from_its_first_decision(fleet: Fleet, dsn: str, store: Store) -> None:
    if not isinstance(store, PostgresStore):
        pytest.skip("a store of one server")
    places = fleet.queries.ends()
    late = PostgresStore(dsn, writer=9)
    fleet.servers.append(f.make_pipeline(late, vault=MemoryVault(), clock=fleet.clock))
    fleet.servers[-1].run([f.open_line("late", customer_id="di"), f.check("t0", customer_id="di")])
    late.close()

    found, after = fleet.queries.decisions_after(places, tenant_id=f.TENANT, customer_id="", limit=500)

    assert names([reply for _, reply in found]) == ["t0"]
    assert after == places | {9: 2}
