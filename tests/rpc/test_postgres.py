"""A real server whose journal and state are in a PostgreSQL database."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_server import opening
from riskgate_server.cli import main
from riskgate_server.datadir import DataDirectoryError
from riskgate_server.engine.clocks import SystemClock
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.replies import DecisionReply
from riskgate_server.opening import OtherPast, verify_directory
from riskgate_server.rpc import feed, service
from riskgate_server.stores.postgres.store import PostgresStore
from riskgate_server.stores.postgres.vault import PostgresVault
from riskgate_server.stores.refusals import SettingsRefused
from tests import factories as f
from tests import postgres
from tests.acceptance.deployment import FREE_PORTS
from tests.rpc.calling import refused
from tests.rpc.requests import buy, buying, entries_of, line_of, open_line
from tests.rpc.serving import Deployment, Loop, serving


@pytest.fixture
def dsn(tmp_path: Path) -> Iterator[str]:
    yield postgres.database(tmp_path)
    postgres.give_back(tmp_path)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "data")
    yield deployment
    deployment.close()


def verified(deployment: Deployment, dsn: str) -> dict[str, Any]:
    """What `riskgate ledger verify` says."""
    given = ["ledger", "verify", "--data", str(deployment.directory.root), "--store", dsn, "--json"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code in {0, 1}, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@contextmanager
def second_server(deployment: Deployment, dsn: str) -> Iterator[Pipeline]:
    """The engine of another server of the same database."""
    master = opening.master_keys(deployment.directory)
    with (
        closing(PostgresStore(dsn, writer=1)) as store,
        closing(PostgresVault(dsn, wrap=master.wrap, unwrap=master.unwrap)) as vault,
    ):
        yield f.make_pipeline(store, vault=vault, clock=SystemClock())


def buy_there(server: Pipeline, name: str, amount: int = 100) -> None:
    (reply,) = server.run([f.check(name, amount, tenant_id="default")])
    assert isinstance(reply, DecisionReply)


def end_sessions(dsn: str) -> None:
    name = dsn.split("/")[3].split("?", maxsplit=1)[0]
    postgres.admin("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", name)


def test_what_was_answered_stands_after_a_restart_and_the_books_are_right(
    loop: Loop, deployment: Deployment, dsn: str
) -> None:
    """Neither file of an embedded store is asked for, or made."""
    for path in (deployment.directory.store, deployment.directory.vault):
        path.unlink()
    requests = [buying(amount=100 + n) for n in range(20)]
    with serving(loop, deployment, store=dsn) as running:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        answered = [api.risk.CheckTransaction(request).decision for request in requests]
        beside = verified(deployment, dsn)

    with serving(loop, deployment, store=dsn) as running:
        api = running.keyed(deployment.admin_key)
        assert [api.risk.CheckTransaction(request).decision for request in requests] == answered
        assert len(entries_of(api)) == 21
    at_the_end = verified(deployment, dsn)

    assert beside["clean"], beside
    assert at_the_end["clean"], at_the_end
    assert (at_the_end["entries"], at_the_end["customers"]) == (21, 1)
    assert at_the_end["heads"] >= 1
    assert not deployment.directory.store.exists()
    assert not deployment.directory.vault.exists()


def test_a_database_that_restarts_is_found_again_and_the_server_stays(
    loop: Loop, deployment: Deployment, dsn: str
) -> None:
    with serving(loop, deployment, store=dsn) as running:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        for _ in range(5):
            end_sessions(dsn)
            request = buying(amount=100)
            answer = None
            while answer is None:
                try:
                    answer = api.risk.CheckTransaction(request).decision
                except grpc.RpcError as error:
                    # Nothing happened, or nobody knows: either way the same id is repeated.
                    assert error.code() in {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE}  # noqa: PT017
        assert line_of(api).held.amount_minor == 500

    assert verified(deployment, dsn)["clean"]


def test_who_asks_or_buys_while_the_database_is_away_is_told_so(loop: Loop, deployment: Deployment, dsn: str) -> None:
    name = dsn.split("/")[3].split("?", maxsplit=1)[0]
    with serving(loop, deployment, store=dsn) as running:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        postgres.admin(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        end_sessions(dsn)
        away = refused(lambda: line_of(api))
        undone = refused(lambda: api.risk.CheckTransaction(buying(amount=100)))
        postgres.admin(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        back = line_of(api)

    assert away.name == "UNAVAILABLE READ_FAILED"
    assert undone.name == "UNAVAILABLE STORE_UNREACHABLE"
    assert back.line_id == "main"


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("mysql://here/x", "store"),
        ("postgresql:///x?host=/nowhere", "nowhere"),
        ("postgresql:///x?nonsense=1", "the DSN cannot be read"),
    ],
)
def test_a_store_that_cannot_be_had_is_refused_in_a_line(deployment: Deployment, store: str, words: str) -> None:
    given = ["serve", "--data", str(deployment.directory.root), *FREE_PORTS, "--store", store]

    result = CliRunner().invoke(main, given)

    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit)
    assert words in result.output


def test_a_database_that_lost_its_customers_but_not_their_keys_is_refused(
    deployment: Deployment, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "KEYS_OF_A_CRASH_MAX", 1)
    keys = {("acme", name): bytes(32) for name in ("ada", "bo")}
    with closing(opening.open_store(deployment.directory, dsn)) as opened:
        opened.vault.create(dict([keys.popitem()]))
    with closing(opening.open_store(deployment.directory, dsn)) as opened:
        opened.vault.create(keys)

    with pytest.raises(DataDirectoryError, match="no customers, and its vault has keys of 2"):
        opening.open_store(deployment.directory, dsn)


def test_without_the_driver_the_extra_that_brings_it_is_named(
    deployment: Deployment, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "riskgate_server.stores.postgres.store", None)

    with pytest.raises(SettingsRefused, match="the extra `postgres`"):
        opening.open_store(deployment.directory, dsn)


def test_callers_are_kept_without_the_files_of_a_store(deployment: Deployment) -> None:
    deployment.directory.store.unlink()
    deployment.directory.vault.unlink()

    listed = CliRunner().invoke(main, ["callers", "list", "--data", str(deployment.directory.root)])

    assert listed.exit_code == 0, listed.output


def test_another_database_than_the_one_whose_heads_were_signed_is_refused(
    loop: Loop, deployment: Deployment, dsn: str, tmp_path: Path
) -> None:
    with serving(loop, deployment, store=dsn) as running:
        open_line(running.keyed(deployment.admin_key))
    other = postgres.database(tmp_path / "other")

    with (
        pytest.raises(Exception, match="does not hold commit 1, whose head was signed: nothing was ever committed"),
        serving(loop, deployment, store=other),
    ):
        pass

    postgres.give_back(tmp_path / "other")


@pytest.mark.parametrize("lane", [0, 1])
def test_who_forgets_the_database_is_asked_for_it_and_begins_no_second_store(
    loop: Loop, deployment: Deployment, dsn: str, lane: int
) -> None:
    """Also the second of two hosts, whose lane is not the one that a store in files has."""
    with ExitStack() as others:
        for writer in range(lane):
            others.callback(PostgresStore(dsn, writer).close)
        running = others.enter_context(serving(loop, deployment, store=dsn))
        open_line(running.keyed(deployment.admin_key))

    with pytest.raises(OtherPast) as refused, serving(loop, deployment):
        pass
    report = verify_directory(deployment.directory, lambda *_: None)

    assert "name the database" in str(refused.value)
    assert "away to accept" not in str(refused.value)
    assert "name the database" in report.faults[0]
    assert verified(deployment, dsn)["clean"]


def test_the_database_of_another_master_key_is_refused(
    loop: Loop, deployment: Deployment, dsn: str, tmp_path: Path
) -> None:
    with serving(loop, deployment, store=dsn) as running:
        open_line(running.keyed(deployment.admin_key))
    stranger = Deployment(tmp_path / "stranger")

    result = CliRunner().invoke(main, ["serve", "--data", str(stranger.directory.root), *FREE_PORTS, "--store", dsn])

    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "master key" in result.output
    stranger.close()


# --- Several servers. ---


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by themselves for what happened: who is told of it was woken."""
    monkeypatch.setattr(service, "CONFIRM_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
def test_a_watch_of_decisions_tells_what_another_server_decided(loop: Loop, deployment: Deployment, dsn: str) -> None:
    with serving(loop, deployment, store=dsn) as running, second_server(deployment, dsn) as other:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        watch = api.risk.WatchDecisions(risk_pb.WatchDecisionsRequest(customer_id="ada"), timeout=20)
        told = [next(watch)]
        bought = []
        for number in range(6):
            if number % 2:
                buy_there(other, f"there-{number}")
                bought.append(f"there-{number}")
            else:
                bought.append(buy(api).transaction_id)
            told.append(next(watch))
        watch.cancel()
        for place in range(len(told)):
            request = risk_pb.WatchDecisionsRequest(resume_token=told[place].resume_token)
            resumed = api.risk.WatchDecisions(request, timeout=20)
            next(resumed)
            rest = [next(resumed).decision.transaction_id for _ in bought[place:]]
            resumed.cancel()
            assert rest == bought[place:]
        listed = api.risk.ListDecisions(risk_pb.ListDecisionsRequest())
        at_the_end = verified(deployment, dsn)

    assert [response.decision.transaction_id for response in told[1:]] == bought
    assert [decision.transaction_id for decision in listed.decisions] == bought[::-1]
    assert at_the_end["clean"], at_the_end
    assert [(lane["writer"], lane["entries"]) for lane in at_the_end["lanes"]] == [(0, 4), (1, 3)]


@pytest.mark.usefixtures("patient")
def test_a_watch_of_a_line_tells_what_another_server_changed(loop: Loop, deployment: Deployment, dsn: str) -> None:
    with serving(loop, deployment, store=dsn) as running, second_server(deployment, dsn) as other:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        watch = api.lines.WatchCreditLine(line_pb.WatchCreditLineRequest(customer_id="ada"), timeout=20)
        told = [next(watch).credit_line]
        for number in range(3):
            buy_there(other, f"there-{number}")
            told.append(next(watch).credit_line)
        watch.cancel()

    assert [line.held.amount_minor for line in told] == [0, 100, 200, 300]


@pytest.mark.usefixtures("patient")
def test_watches_go_on_when_the_database_was_away(
    loop: Loop, deployment: Deployment, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "FOLLOW_AGAIN_SECONDS", 0.05)
    with serving(loop, deployment, store=dsn) as running, second_server(deployment, dsn) as other:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        watch = api.risk.WatchDecisions(risk_pb.WatchDecisionsRequest(), timeout=20)
        next(watch)
        end_sessions(dsn)
        while not isinstance(other.run([f.check("there", tenant_id="default")])[0], DecisionReply):
            pass
        told = next(watch).decision
        watch.cancel()

    assert told.transaction_id == "there"


def test_who_waits_for_a_customer_whom_another_server_has_is_answered_and_counted(
    loop: Loop, deployment: Deployment, dsn: str
) -> None:
    with serving(loop, deployment, store=dsn) as running, closing(PostgresStore(dsn, 1)) as other:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        with other.transaction() as tx:
            tx.lock([("default", "ada")])
            answer = api.risk.CheckTransaction.future(buying(amount=100))
            while not running.scrape_value("riskgate_commands_put_back_total"):
                assert not answer.done()
        decision = answer.result().decision
        scraped = running.scrape()

    assert decision.outcome == risk_pb.OUTCOME_APPROVE
    assert 'riskgate_commands_put_back_total{reason="HELD"}' in scraped
