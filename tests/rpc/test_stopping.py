"""The end of a server: what is in flight finishes, what comes new goes elsewhere, and nobody is kept waiting."""

from __future__ import annotations

import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_server.crypto.signing import HeadLog, HeadSigner
from riskgate_server.opening import verify_directory
from riskgate_server.rpc import server
from tests.acceptance.deployment import Template
from tests.rpc.calling import Api, Channels, refused, refused_by
from tests.rpc.requests import buying, entries_of, line_of, open_line
from tests.rpc.serving import Deployment, Loop, serving
from tests.rpc.test_deadlines import stalled
from tests.rpc.test_streaming import Sending

GRACE_SECONDS: Final = 20.0
"""Long: what ends sooner did not wait for it."""


def resolved(call: Any) -> str:
    """Return how a call ended, in a word."""
    error = call.exception()
    return "OK" if error is None else str(refused_of_code(error))


def refused_of_code(error: Any) -> str:
    code: grpc.StatusCode = error.code()
    return code.name


def test_calls_in_flight_finish_and_new_ones_are_sent_elsewhere(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path / "data")
    requests = [buying(amount=1) for _ in range(20)]
    with stalled(monkeypatch) as stall, serving(loop, deployment, drain_seconds=GRACE_SECONDS) as running:
        api = running.keyed(deployment.admin_key)
        stall.go.set()
        open_line(api)
        stall.go.clear()
        waiting = [api.risk.CheckTransaction.future(request, timeout=15) for request in requests]
        assert stall.reached.wait(10)
        while running.scrape_value("riskgate_commands_waiting") < len(requests):
            pass
        running.stop()
        late = refused(lambda: _until_refused(api))
        stall.go.set()
        ends = [resolved(call) for call in waiting]

    assert ends == ["OK"] * len(requests)
    assert late.code is grpc.StatusCode.UNAVAILABLE

    with serving(loop, deployment) as again:
        api = again.keyed(deployment.admin_key)
        # What was answered is what stands: each id has one effect, and repeating it finds that.
        repeated = [api.risk.CheckTransaction(request).decision for request in requests]
        assert [call.result().decision for call in waiting] == repeated
        assert len(entries_of(api)) == 1 + len(requests)
    deployment.close()


def test_a_call_that_comes_when_all_is_done_is_still_told_why(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.5)
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment) as running:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        running.stop()
        refusal = refused(lambda: _until_refused(api))
    deployment.close()

    assert refusal.name == "UNAVAILABLE SHUTTING_DOWN"


def _until_refused(api: Api) -> None:
    """Call until the server has begun to refuse."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        line_of(api)


def test_streams_end_with_all_they_were_asked_and_a_word_why(loop: Loop, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment, drain_seconds=GRACE_SECONDS) as running:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        sending = Sending()
        purchases: Any = api.risk.StreamCheckTransactions(iter(sending), timeout=60)
        sending.send(buying())
        next(purchases)
        decisions: Any = api.risk.WatchDecisions(pb.WatchDecisionsRequest(), timeout=60)
        line: Any = api.lines.WatchCreditLine(line_pb.WatchCreditLineRequest(customer_id="ada"), timeout=60)
        health: Any = api.health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        for stream in (decisions, line, health):
            next(stream)
        began = time.monotonic()
        running.stop()

        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        ends = {refused(partial(next, stream)).name for stream in (purchases, decisions, line, health)}
        sending.half_close()
    took = time.monotonic() - began
    deployment.close()

    assert ends == {"UNAVAILABLE SHUTTING_DOWN"}
    assert took < GRACE_SECONDS / 2


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template(tmp_path_factory.mktemp("template") / "data")


@pytest.mark.process
def test_a_process_told_to_stop_answers_what_it_took_and_ends_well(template: Template, tmp_path: Path) -> None:
    process = template.deployment(tmp_path)
    try:
        process.started()
        api = _api(process)
        open_line(api, limit=10**9)
        stop = threading.Event()
        ends: list[str] = []
        acknowledged: list[str] = []

        def shop() -> None:
            while not stop.is_set():
                request = buying(amount=1)
                call = api.risk.CheckTransaction.future(request, timeout=10)
                ends.append(resolved(call))
                if ends[-1] != "OK":
                    return  # a client would go elsewhere
                acknowledged.append(request.request_id)

        shops = [threading.Thread(target=shop) for _ in range(8)]
        for thread in shops:
            thread.start()
        while len(acknowledged) < 50:
            time.sleep(0.001)
        process.send(signal.SIGTERM)
        code = process.wait(15)
        stop.set()
        for thread in shops:
            thread.join()

        assert code == 0
        # Never CANCELLED: a caller told that would not know to go elsewhere.
        assert set(ends) == {"OK", "UNAVAILABLE"}
        assert process.events("stopped") == 1
        process.started()
        again = _api(process)
        assert set(acknowledged) <= {d.request_id for d in _decisions(again)}
        assert process.stop() == 0
        assert process.verify()["clean"]
    finally:
        process.cleanup()


def _api(process: Any) -> Api:
    channel = Channels(process.ca_certificate).to(process.port)
    grpc.channel_ready_future(channel).result(15)
    return Api(channel, (("authorization", f"Bearer {process.api_key}"),))


def _decisions(api: Api) -> list[pb.Decision]:
    found: list[pb.Decision] = []
    request = pb.ListDecisionsRequest(customer_id="ada", page_size=500)
    while True:
        page = api.risk.ListDecisions(request)
        found += page.decisions
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


def test_a_purchase_after_the_gate_closed_is_refused_without_effect(loop: Loop, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment) as running:
        api = running.keyed(deployment.admin_key)
        open_line(api)
        sending = Sending()
        stream: Any = api.risk.StreamCheckTransactions(iter(sending), timeout=30)
        sending.send(buying())
        next(stream)
        running.stop()
        sending.send(buying())
        last = [answer.result for answer in _rest(stream)]
        sending.half_close()
    deployment.close()

    assert all(refused_by(result.error).name == "UNAVAILABLE SHUTTING_DOWN" for result in last)


def _rest(stream: Any) -> list[Any]:
    """Return what a stream still says before it ends for want of a server."""
    found: list[Any] = []
    with pytest.raises(grpc.RpcError) as error:
        found.extend(stream)
    assert refused_of_code(error.value) == "UNAVAILABLE"
    return found


def test_a_head_that_is_being_signed_when_the_end_comes_is_signed_before_the_last_one(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once would name the same line as the one before them, and the log would never verify again."""
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.0)
    deployment = Deployment(tmp_path / "data")
    reached, go, written = threading.Event(), threading.Event(), threading.Event()
    sign, write = HeadSigner.sign_line, HeadLog._write

    def signing(self: HeadSigner, *given: Any) -> bytes:
        line = sign(self, *given)
        if reached.is_set():
            go.set()
            written.wait(1)
        reached.set()
        # Given up after a moment: whoever signs in turn is not let in before.
        go.wait(1)
        return line

    def writing(self: HeadLog, *given: Any) -> None:
        write(self, *given)
        written.set()

    with serving(loop, deployment, heads_seconds=0.1) as running:
        api = running.keyed(deployment.admin_key)
        monkeypatch.setattr(HeadSigner, "sign_line", signing)
        monkeypatch.setattr(HeadLog, "_write", writing)
        open_line(api)
        assert reached.wait(10)
        # The end has something new to sign.
        open_line(api, "bo")
        running.stop()

    assert verify_directory(deployment.directory, lambda *_: None).faults == []
    deployment.close()
