"""When a caller may say what time it is: never more than a little on the system's clock, freely on the data's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from riskgate.credit.v1 import ledger_service_pb2 as ledger_pb
from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_server.datadir import DataDirectoryError
from riskgate_server.engine.clocks import SystemClock
from riskgate_server.notify.refusals import GatewayUnusable
from tests.rpc.calling import Api, refused, refused_by
from tests.rpc.logs import Lines
from tests.rpc.requests import buy, buying, capturing, entries_of, hold_of, line_of, open_line, opening
from tests.rpc.serving import Deployment, Loop, Running, Tenant, serving
from tests.rpc.test_streaming import Sending

DAY: Final = 86_400
HISTORY: Final = 1_500_000_000
"""A moment in 2017."""


def at(seconds: float) -> dict[str, int]:
    return {"seconds": int(seconds), "nanos": int(seconds % 1 * 10**9)}


# --- The system's clock ---


@pytest.mark.parametrize("away", [-290, -1, 0, 1, 290])
def test_a_live_purchase_may_have_happened_a_little_before_or_after_now(ada: Api, away: int) -> None:
    when = int(time.time()) + away

    decision = buy(ada, event_time=at(when))

    assert decision.event_time.seconds == when
    # It places the purchase in the customer's history; everything else follows the server's clock.
    assert abs(decision.decide_time.seconds - time.time()) < 30
    assert decision.hold_expire_time.seconds - decision.decide_time.seconds == 7 * DAY


@pytest.mark.parametrize("away", [-310, 310, -DAY, DAY, HISTORY - 1_800_000_000])
@pytest.mark.parametrize("scopes", [["risk:check", "risk:history"], ["admin"]], ids=["with the scope", "administrator"])
def test_nobody_moves_the_systems_clock(tenant: Tenant, away: int, scopes: list[str]) -> None:
    open_line(tenant.api)
    api = tenant.caller(*scopes, "line:open") if scopes != ["admin"] else tenant.api
    when = at(time.time() + away)

    purchase = refused(lambda: api.risk.CheckTransaction(buying(event_time=when)))
    line = refused(lambda: api.lines.OpenCreditLine(opening(line_id="second", event_time=when)))

    for refusal in (purchase, line):
        assert refusal.name == "INVALID_ARGUMENT EVENT_TIME_OUT_OF_RANGE"
        assert list(refusal.fields) == ["event_time"]
    assert len(entries_of(tenant.api)) == 1


def test_a_purchase_is_resolved_by_its_request_id_when_its_time_has_become_too_old(
    ada: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    purchase = buying(event_time=at(time.time() - 290))
    first = ada.risk.CheckTransaction(purchase).decision
    monkeypatch.setattr(SystemClock, "now_us", lambda _: time.time_ns() // 1000 + 60 * 1_000_000)

    again = ada.risk.CheckTransaction(purchase).decision
    (streamed,) = ada.risk.StreamCheckTransactions(iter([pb.StreamCheckTransactionsRequest(check=purchase)]))
    purchase.request_id = "another"
    new = refused(lambda: ada.risk.CheckTransaction(purchase))

    assert again == streamed.result.decision == first
    assert new.name == "INVALID_ARGUMENT EVENT_TIME_OUT_OF_RANGE"


# --- The data's clock ---


@pytest.fixture(scope="module")
def historic(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose clock the data drives."""
    deployment = Deployment(tmp_path_factory.mktemp("historic") / "data")
    with serving(loop, deployment, clock="data") as running:
        yield running
    deployment.close()


@pytest.fixture
def past(historic: Running) -> tuple[Tenant, int]:
    """A tenant, and a moment no test has come to yet: time never goes back."""
    tenant = historic.tenant()
    moment = HISTORY + int(tenant.name.removeprefix("tenant")) * 100 * DAY
    return tenant, moment


def test_history_needs_its_scope(past: tuple[Tenant, int]) -> None:
    tenant, moment = past
    open_line(tenant.api, event_time=at(moment))
    api = tenant.caller("risk:check", "line:open")

    purchase = refused(lambda: api.risk.CheckTransaction(buying(event_time=at(moment + 1))))
    line = refused(lambda: api.lines.OpenCreditLine(opening(line_id="second", event_time=at(moment + 1))))
    without = api.risk.CheckTransaction(buying()).decision

    assert {purchase.name, line.name} == {"PERMISSION_DENIED HISTORY_FORBIDDEN"}
    # Whoever says no time gets the data's.
    assert without.event_time.seconds == moment


def test_nobody_moves_the_datas_clock_to_the_end_of_the_calendar(past: tuple[Tenant, int]) -> None:
    """From there on no time zone could be told, and every purchase of every tenant would fail."""
    tenant, moment = past
    open_line(tenant.api, event_time=at(moment))

    refusal = refused(lambda: tenant.api.risk.CheckTransaction(buying(event_time=at(253_402_300_799))))

    assert refusal.name == "INVALID_ARGUMENT EVENT_TIME_OUT_OF_RANGE"
    assert buy(tenant.api).event_time.seconds == moment


def test_a_stream_whose_caller_may_no_longer_say_the_time_is_refused_it(
    historic: Running, past: tuple[Tenant, int]
) -> None:
    tenant, moment = past
    open_line(tenant.api, event_time=at(moment))
    name, key = historic.deployment.add_caller("risk:check", "risk:history", tenant=tenant.name)
    sending = Sending()
    answers: Any = historic.keyed(key.text).risk.StreamCheckTransactions(iter(sending), timeout=20)
    sending.send(buying(event_time=at(moment + 1)))
    before = next(answers).result

    historic.deployment.rescope(tenant.name, name, "risk:check")
    sending.send(buying(event_time=at(moment + 2)))
    after = next(answers).result
    sending.half_close()

    assert before.HasField("decision")
    assert refused_by(after.error).name == "PERMISSION_DENIED HISTORY_FORBIDDEN"


def test_time_is_what_the_events_say(past: tuple[Tenant, int]) -> None:
    tenant, moment = past
    api = tenant.api

    line = open_line(api, event_time=at(moment))
    first = buy(api, event_time=at(moment + DAY))
    second = buy(api, event_time=at(moment + 2 * DAY))

    assert line.open_time.seconds == moment
    assert (first.decide_time.seconds, second.decide_time.seconds) == (moment + DAY, moment + 2 * DAY)
    assert first.hold_expire_time.seconds == moment + 8 * DAY
    assert [entry.record_time.seconds for entry in entries_of(api)] == [moment, moment + DAY, moment + 2 * DAY]


def test_a_customers_time_never_goes_back(past: tuple[Tenant, int]) -> None:
    tenant, moment = past
    open_line(tenant.api, event_time=at(moment))
    buy(tenant.api, event_time=at(moment + 10))

    late = buy(tenant.api, event_time=at(moment + 5))

    assert (late.event_time.seconds, late.decide_time.seconds) == (moment + 5, moment + 10)


def test_a_hold_ends_when_the_data_says_so_and_its_credit_is_available_again(past: tuple[Tenant, int]) -> None:
    tenant, moment = past
    api = tenant.api
    open_line(api, event_time=at(moment))
    held = buy(api, amount=60_000, event_time=at(moment), hold_lifetime_seconds=60)

    before = buy(api, amount=60_000, event_time=at(moment + 59))
    after = buy(api, amount=60_000, event_time=at(moment + 60))

    ended = hold_of(api, held.transaction_id)
    assert (before.outcome, after.outcome) == (pb.OUTCOME_DECLINE, pb.OUTCOME_APPROVE)
    assert (ended.state, ended.expired.amount_minor) == (ledger_pb.HOLD_STATE_EXPIRED, 60_000)
    assert line_of(api).held.amount_minor == 60_000
    capture = refused(lambda: api.ledger.CaptureHold(capturing(held.transaction_id)))
    assert capture.name == "FAILED_PRECONDITION HOLD_EXPIRED"
    forced = api.ledger.CaptureHold(capturing(held.transaction_id, force=True)).hold
    again = refused(lambda: api.ledger.CaptureHold(capturing(held.transaction_id, 1, force=True)))
    assert forced.forced.amount_minor == 60_000
    assert again.name == "FAILED_PRECONDITION AMOUNT_EXCEEDS_HOLD"
    assert line_of(api).available.amount_minor == -20_000


def test_a_review_nobody_decided_gives_the_credit_back_after_a_day(past: tuple[Tenant, int]) -> None:
    tenant, moment = past
    api = tenant.api
    open_line(api, event_time=at(moment))
    reviewed = buy(api, phone="look", event_time=at(moment))

    buy(api, amount=0, event_time=at(moment + DAY))

    assert reviewed.review_deadline.seconds == moment + DAY
    assert hold_of(api, reviewed.transaction_id).state == ledger_pb.HOLD_STATE_EXPIRED


def test_a_soft_block_lapses_after_a_day(past: tuple[Tenant, int]) -> None:
    tenant, moment = past
    api = tenant.api
    open_line(api, event_time=at(moment))
    suspended = buy(api, phone="stolen", event_time=at(moment))

    during = buy(api, event_time=at(moment + DAY - 1))
    after = buy(api, event_time=at(moment + DAY))

    assert suspended.line_suspended
    assert (during.outcome, after.outcome) == (pb.OUTCOME_DECLINE, pb.OUTCOME_APPROVE)


def test_the_data_clock_goes_on_where_it_was_after_a_restart(loop: Loop, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment, clock="data") as running:
        api = running.keyed(deployment.admin_key)
        open_line(api, event_time=at(HISTORY))
        buy(api, event_time=at(HISTORY + DAY))

    with serving(loop, deployment, clock="data") as running:
        decision = buy(running.keyed(deployment.admin_key))
    deployment.close()

    assert decision.decide_time.seconds == HISTORY + DAY


@pytest.mark.parametrize(("first", "then"), [("data", "system"), ("system", "data")])
def test_a_store_lives_by_the_clock_of_its_first_serving(loop: Loop, tmp_path: Path, first: str, then: str) -> None:
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment, clock=first):
        pass

    with pytest.raises(DataDirectoryError, match=f"lives by the {first} clock"), serving(loop, deployment, clock=then):
        pass
    with serving(loop, deployment, clock=first):
        pass
    deployment.close()


def test_a_server_for_histories_warns_and_takes_no_gateway_that_reaches_a_phone(
    loop: Loop, tmp_path: Path, log: Lines
) -> None:
    deployment = Deployment(tmp_path / "data")
    given = {"gateway": "webhook", "gateway_url": "https://gateway.example/", "gateway_secrets": "secrets"}

    with pytest.raises(GatewayUnusable, match="the clock data"), serving(loop, deployment, clock="data", **given):
        pass
    assert not deployment.directory.clock.exists()
    with serving(loop, deployment, clock="data"):
        assert len(log.of("time is what events say")) == 1
    deployment.close()


def test_a_server_on_the_systems_clock_warns_of_no_other(loop: Loop, tmp_path: Path, log: Lines) -> None:
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment):
        assert log.of("time is what events say") == []
    deployment.close()
