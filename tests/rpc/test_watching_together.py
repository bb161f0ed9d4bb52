"""Many who watch are told by one reading, each at their own pace and from their own place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_server.engine.failures import ReadFailed
from riskgate_server.engine.queries import Queries
from riskgate_server.rpc import door, service, watching
from tests.rpc.calling import Api, refused
from tests.rpc.requests import buy, buying, open_line
from tests.rpc.serving import Running, Tenant
from tests.rpc.test_watching import until
from tests.rpc.test_watching import watching as watch_decisions

WATCHERS: Final = 20
MANY: Final = 2_500


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by themselves for what happened: who is told of it was woken."""
    monkeypatch.setattr(service, "CONFIRM_SECONDS", 60.0)


class Readings(Counter[str]):
    """How often each question was asked; those that are to fail do so first."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.failing = 0
        for name in ("decisions_after", "credit_lines_of", "credit_line"):
            patch.setattr(Queries, name, self._counted(name, getattr(Queries, name)))

    def _counted(self, name: str, real: Any) -> Any:
        def ask(*given: Any, **named: Any) -> Any:
            self[name] += 1
            if self.failing:
                self.failing -= 1
                raise ReadFailed("planted")
            return real(*given, **named)

        return ask


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Readings:
    return Readings(monkeypatch)


@pytest.fixture
def watches(ada: Api) -> Iterator[list[Any]]:
    """Watches of all that a tenant decides, which stand."""
    watches = [watch_decisions(ada) for _ in range(WATCHERS)]
    for watch in watches:
        next(watch)
    yield watches
    for watch in watches:
        watch.cancel()


def told_by(watch: Any, number: int) -> list[Any]:
    return [next(watch) for _ in range(number)]


def buy_many(api: Api, number: int) -> list[str]:
    """Buy in batches, each one commit; return the request ids."""
    checks = [buying(amount=10**9) for _ in range(number)]
    for at in range(0, number, 500):
        api.risk.BatchCheckTransactions(risk_pb.BatchCheckTransactionsRequest(checks=checks[at : at + 500]))
    return [check.request_id for check in checks]


def requests_of(told: list[Any]) -> list[str]:
    return [response.decision.request_id for response in told]


def test_however_many_watch_a_tenant_what_it_decides_is_read_once(
    ada: Api, watches: list[Any], readings: Readings
) -> None:
    bought = [buy(ada) for _ in range(10)]

    told = [told_by(watch, len(bought)) for watch in watches]

    assert [[response.decision for response in each] for each in told] == [bought] * WATCHERS
    # A commit may wake while what it wrote is already being read.
    assert readings["decisions_after"] <= 2 * len(bought)


def test_however_many_watch_a_line_a_change_is_read_once(ada: Api, readings: Readings) -> None:
    watches = [
        ada.lines.WatchCreditLine(line_pb.WatchCreditLineRequest(customer_id="ada"), timeout=20)
        for _ in range(WATCHERS)
    ]
    told = [[next(watch).credit_line] for watch in watches]
    readings.clear()

    buy(ada)
    for watch, before in zip(watches, told, strict=True):
        before.append(next(watch).credit_line)
        watch.cancel()

    assert {tuple(line.held.amount_minor for line in each) for each in told} == {(0, 1_000)}
    assert readings.total() <= 2


def test_who_watches_a_line_that_is_not_there_is_alone_refused(api: Api) -> None:
    open_line(api)
    watches = {
        name: api.lines.WatchCreditLine(line_pb.WatchCreditLineRequest(customer_id=name), timeout=20)
        for name in ("nobody", "ada")
    }

    refusal = refused(lambda: next(watches["nobody"]))

    assert refusal.name == "NOT_FOUND CUSTOMER_NOT_FOUND"
    assert next(watches["ada"]).credit_line.customer_id == "ada"
    watches["ada"].cancel()


@pytest.mark.parametrize("customer", ["", "ada"], ids=["of a tenant", "of a customer"])
def test_who_is_too_far_behind_reads_the_rest_by_themselves_and_misses_nothing(
    api: Api, customer: str, monkeypatch: pytest.MonkeyPatch, readings: Readings
) -> None:
    """More comes with one commit than may lie before anybody, again and again."""
    monkeypatch.setattr(watching, "LAID_MAX", 3)
    monkeypatch.setattr(watching, "PAGE", 8)
    for name in ("ada", "bob"):
        open_line(api, name)
    other, watch = watch_decisions(api), watch_decisions(api, customer=customer)
    for each in (other, watch):
        next(each)
    bought = []
    for size in (1, 5, 20, 2, 40):
        checks = [buying(name) for _ in range(size) for name in ("ada", "bob")]
        api.risk.BatchCheckTransactions(risk_pb.BatchCheckTransactionsRequest(checks=checks))
        bought += [check.request_id for check in checks if customer in ("", check.customer_id)]

    told = told_by(watch, len(bought))
    for place in range(0, len(told), 7):
        resumed = watch_decisions(api, told[place].resume_token, customer)
        next(resumed)
        assert requests_of(told_by(resumed, len(bought) - place - 1)) == bought[place + 1 :]
        resumed.cancel()

    assert requests_of(told) == bought
    for each in (other, watch):
        each.cancel()


def test_who_does_not_read_keeps_nobody_waiting(running: Running, ada: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "WRITE_SECONDS_MAX", 60.0)
    monkeypatch.setattr(watching, "LAID_MAX", 100)
    little = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
    channel = running.channels.new(running.key_port, options=little)
    slow, quick = watch_decisions(Api(channel, ada.metadata)), watch_decisions(ada)
    for watch in (slow, quick):
        next(watch)
    bought = buy_many(ada, MANY)

    told = requests_of(told_by(quick, MANY))
    told_late = requests_of(told_by(slow, MANY))

    quick.cancel()
    channel.close()
    assert told == bought
    assert told_late == bought


def test_a_reading_that_fails_is_made_again_and_no_watch_ends(ada: Api, watches: list[Any], readings: Readings) -> None:
    readings.failing = 1

    bought = buy(ada)

    assert [next(watch).decision for watch in watches] == [bought] * WATCHERS


def test_when_the_store_stays_unreadable_all_who_watch_are_told_and_may_go_on(
    ada: Api, watches: list[Any], readings: Readings
) -> None:
    readings.failing = 2

    bought = buy(ada)
    refusals = {refused(lambda watch=watch: next(watch)).name for watch in watches}  # type: ignore[misc]

    assert refusals == {"UNAVAILABLE READ_FAILED"}
    again = watch_decisions(ada)
    next(again)
    later = buy(ada)
    assert next(again).decision == later != bought
    again.cancel()


def test_nothing_is_read_for_a_tenant_whom_nobody_watches_any_more(tenant: Tenant, readings: Readings) -> None:
    open_line(tenant.api)
    watches = [watch_decisions(tenant.api) for _ in range(3)]
    for watch in watches:
        next(watch)
        watch.cancel()

    def still() -> bool:
        before = readings.total()
        for _ in range(5):
            buy(tenant.api)
        return readings.total() == before

    until(still)
