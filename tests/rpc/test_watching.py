"""Watching decisions and lines: nothing missed, nothing told twice, and nobody kept waiting by a slow reader."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
import pytest

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_server.crypto.keys import FINGERPRINT
from riskgate_server.crypto.tokens import SealedTokens
from riskgate_server.engine.places import PlaceTokens
from riskgate_server.opening import secret
from riskgate_server.rpc import door, service
from riskgate_server.rpc import watching as watching_module
from tests.rpc.calling import Api, refused, refused_of
from tests.rpc.logs import Lines
from tests.rpc.requests import blocking, buy, buying, capturing, line_of, open_line, paying
from tests.rpc.serving import Running, Tenant

EVERYBODY: Final = ("ada", "bob", "cyd")
MANY: Final = 2_500


def watching(api: Api, resume_token: str = "", customer: str = "", timeout: float = 20) -> Any:
    request = risk_pb.WatchDecisionsRequest(resume_token=resume_token, customer_id=customer)
    return api.risk.WatchDecisions(request, timeout=timeout)


def token_now(api: Api) -> str:
    """Return the token of a watch that begins now."""
    watch = watching(api)
    first = next(watch)
    watch.cancel()
    assert not first.HasField("decision")
    token: str = first.resume_token
    return token


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_watch_tells_every_decision_once_it_is_durable(ada: Api) -> None:
    watch = watching(ada)
    next(watch)

    answered = [buy(ada, phone=phone) for phone in ("", "ask", "look", "", "stolen", "")]
    told = [next(watch).decision for _ in answered]

    assert told == answered
    watch.cancel()


def test_a_watch_of_one_customer_tells_nothing_of_others(api: Api) -> None:
    for customer in EVERYBODY:
        open_line(api, customer)
    watch = watching(api, customer="bob")
    next(watch)

    for customer in EVERYBODY:
        buy(api, customer)
    last = buy(api, "bob")

    assert next(watch).decision.customer_id == "bob"
    assert next(watch).decision == last
    watch.cancel()


def test_a_watch_tells_nothing_of_other_tenants(running: Running, ada: Api) -> None:
    other = running.tenant().api
    open_line(other)
    watch = watching(ada)
    next(watch)

    buy(other)
    mine = buy(ada)

    assert next(watch).decision == mine
    watch.cancel()


def test_a_page_without_anything_for_the_watcher_is_not_the_end(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching_module, "PAGE", 2)
    monkeypatch.setattr(service, "CONFIRM_SECONDS", 60.0)
    for customer in ("ada", "bob"):
        open_line(api, customer)
    start = token_now(api)
    for _ in range(7):
        buy(api, "ada")
    wanted = buy(api, "bob")

    watch = watching(api, start, "bob")
    next(watch)

    assert next(watch).decision == wanted
    watch.cancel()


@pytest.mark.parametrize("ahead", [{0: 10**9}, {0: 1, 7: 1}])
def test_a_token_of_what_is_not_there_yet_is_refused(tenant: Tenant, ahead: dict[int, int]) -> None:
    """It is from before the store was restored: going on would silently leave out what is decided until then."""
    directory = tenant.running.deployment.directory
    tokens = PlaceTokens(SealedTokens(secret(FINGERPRINT, directory.fingerprint_key)))
    token = tokens.token(("WatchDecisions", tenant.name), ahead)

    refusal = refused(lambda: next(watching(tenant.api, resume_token=token)))

    assert refusal.name == "INVALID_ARGUMENT TOKEN_INVALID"
    assert [*refusal.fields] == ["resume_token"]


def test_a_token_says_nothing_of_what_others_do(running: Running, ada: Api) -> None:
    """Positions count everybody's entries: who could read them, or see them stand still, would know their volume."""
    tokens = {token_now(ada) for _ in range(20)}

    assert len(tokens) == 20
    assert len({len(token) for token in tokens}) == 1


def test_resuming_misses_nothing_and_repeats_nothing_while_others_write(api: Api) -> None:
    for customer in EVERYBODY:
        open_line(api, customer, limit=10**9)
    token = token_now(api)
    bought: list[str] = []

    def shop(customer: str) -> list[str]:
        return [buy(api, customer, amount=1).transaction_id for _ in range(60)]

    told: list[str] = []
    with ThreadPoolExecutor(3) as shops:
        shopping = [shops.submit(shop, customer) for customer in EVERYBODY]
        while len(told) < 180:
            watch = watching(api, token)
            confirmation = next(watch)
            assert (confirmation.resume_token, confirmation.HasField("decision")) == (token, False)
            for _ in range(min(25, 180 - len(told))):
                response = next(watch)
                told.append(response.decision.transaction_id)
                token = response.resume_token
            watch.cancel()
        for done in shopping:
            bought += done.result()

    assert len(told) == len(set(told))
    assert set(told) == set(bought)


def test_a_watch_of_a_line_begins_with_what_stands_and_tells_each_change(ada: Api) -> None:
    watch = ada.lines.WatchCreditLine(line_pb.WatchCreditLineRequest(customer_id="ada"), timeout=20)
    told = [next(watch).credit_line]

    decision = buy(ada)
    told.append(next(watch).credit_line)
    ada.ledger.CaptureHold(capturing(decision.transaction_id))
    told.append(next(watch).credit_line)
    ada.ledger.RecordPayment(paying(1_000))
    told.append(next(watch).credit_line)
    ada.lines.PlaceBlock(blocking(line_pb.BLOCK_KIND_CUSTOMER_LOCK))
    told.append(next(watch).credit_line)

    assert [line.available.amount_minor for line in told] == [100_000, 99_000, 99_000, 100_000, 100_000]
    assert [line.held.amount_minor for line in told] == [0, 1_000, 0, 0, 0]
    assert told[-1].state == line_pb.LINE_STATE_SUSPENDED
    assert told[-1] == line_of(ada)
    watch.cancel()


def test_a_watch_of_a_line_tells_what_time_alone_changes(ada: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CONFIRM_SECONDS", 0.05)
    soon = int(time.time()) + 2
    ada.lines.PlaceBlock(blocking(line_pb.BLOCK_KIND_COMPLIANCE, expire_time={"seconds": soon}))
    watch = ada.lines.WatchCreditLine(line_pb.WatchCreditLineRequest(customer_id="ada"), timeout=20)

    states = [next(watch).credit_line.state for _ in range(2)]

    assert states == [line_pb.LINE_STATE_FROZEN, line_pb.LINE_STATE_ACTIVE]
    watch.cancel()


def test_a_line_that_does_not_exist_cannot_be_watched(ada: Api) -> None:
    def watch(**whose: str) -> Any:
        return next(ada.lines.WatchCreditLine(line_pb.WatchCreditLineRequest(**whose), timeout=5))

    assert refused(lambda: watch(customer_id="nobody")).name == "NOT_FOUND CUSTOMER_NOT_FOUND"
    assert refused(lambda: watch(customer_id="ada", line_id="x")).name == "NOT_FOUND LINE_NOT_FOUND"


@pytest.mark.parametrize("what", ["decisions", "line"])
def test_a_watch_ends_when_its_caller_is_revoked_though_nothing_happens(
    running: Running, tenant: Tenant, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CONFIRM_SECONDS", 0.1)
    open_line(tenant.api)
    name, key = running.deployment.add_caller("risk:read", "limit:read", tenant=tenant.name)
    api = running.keyed(key.text)
    if what == "line":
        watch = api.lines.WatchCreditLine(line_pb.WatchCreditLineRequest(customer_id="ada"), timeout=20)
    else:
        watch = watching(api)
    next(watch)

    running.deployment.revoke(tenant.name, name)

    assert refused(lambda: next(watch)).name == "UNAUTHENTICATED CREDENTIAL_INVALID"


def test_a_watcher_without_events_is_asked_for_its_rights_within_seconds() -> None:
    assert service.CONFIRM_SECONDS <= 2


def test_a_reader_that_does_not_read_is_dropped_with_a_token_to_resume_from(
    ada: Api, running: Running, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    monkeypatch.setattr(door, "WRITE_SECONDS_MAX", 0.3)
    start = token_now(ada)
    checks = [buying(amount=10**9) for _ in range(MANY)]
    for at in range(0, MANY, 500):
        ada.risk.BatchCheckTransactions(risk_pb.BatchCheckTransactionsRequest(checks=checks[at : at + 500]))
    # As little room on the way as HTTP/2 allows; with the usual the server is rid of some megabytes first.
    little = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
    channel = running.channels.new(running.key_port, options=little)
    watch = watching(Api(channel, ada.metadata), start)
    told = [next(watch)]

    until(lambda: bool(log.of("reader dropped")))
    meanwhile = buy(ada)
    with pytest.raises(grpc.RpcError) as error:
        told.extend(watch)
    channel.close()
    rest = _read(ada, told[-1].resume_token, MANY + 2 - len(told))

    refusal = refused_of(error.value)
    assert refusal.name == "RESOURCE_EXHAUSTED READER_TOO_SLOW"
    assert refusal.retry_seconds > 0
    assert 1 < len(told) <= MANY
    seen = [response.decision.request_id for response in [*told[1:], *rest]]
    assert seen == [*(check.request_id for check in checks), meanwhile.request_id]


def _read(api: Api, token: str, number: int) -> list[Any]:
    watch = watching(api, token)
    next(watch)
    found = [next(watch) for _ in range(number)]
    watch.cancel()
    return found
