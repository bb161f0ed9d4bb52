"""How the engine is reached: deadlines, credentials, and what never shows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

import riskgate_client
from riskgate.credit.v1 import assessment_service_pb2 as assessment_pb
from riskgate.credit.v1.assessment_service_pb2_grpc import AssessmentServiceStub
from riskgate_client import (
    AsyncRiskgate,
    Cancelled,
    DeadlineExceeded,
    DevicePlatform,
    Money,
    ProofPurpose,
    Riskgate,
    Unavailable,
    check,
    error_from_rpc,
)
from riskgate_server.crypto.tls import issue_client
from riskgate_server.engine.delivery import Terms
from tests.client.conftest import IMPATIENT
from tests.client.messages import checked, got_line
from tests.client.scripted import ScriptedEngine, authority, never, refusal, serve, unavailable

SECRET = "rgk_0123456789ab_" + "s" * 43
GateTo = Callable[..., Riskgate]


def test_a_call_has_five_seconds_unless_said_otherwise(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetCreditLine", got_line())

    gate.lines.get("ada")
    gate.lines.get("ada", timeout=2.0)

    usual, shorter = (call.seconds_left for call in engine.calls)
    assert usual is not None
    assert shorter is not None
    assert 4.0 < usual < 5.1
    assert 1.0 < shorter < 2.1


def test_a_call_that_waits_for_a_gateway_has_longer_than_the_engine_tries_it(
    engine: ScriptedEngine, gate: Riskgate, gate_to: GateTo
) -> None:
    """Else who calls never hears of a gateway that hangs: five seconds of patience, and an attempt of three."""
    for method in ("EnrollPhone", "SendCode", "ResendCode"):
        engine.plan(method, unavailable("GATEWAY_DOWN"))
    for otp in (gate.otp, gate_to(engine, timeout=2.0).otp):
        with pytest.raises(Unavailable):
            otp.enroll_phone(customer_id="ada", phone_number="+8613812345678")
        with pytest.raises(Unavailable):
            otp.send_code(customer_id="ada", purpose=ProofPurpose.SIGN_IN)
        with pytest.raises(Unavailable):
            otp.resend_code(customer_id="ada", challenge_id="c")

    seconds = [call.seconds_left or 0 for call in engine.calls]
    assert len(seconds) == 6
    assert min(seconds[:3]) > Terms().patience + Terms().attempt
    assert max(seconds[3:]) < 2.1


def test_the_client_may_have_a_deadline_of_its_own(engine: ScriptedEngine, gate_to: GateTo) -> None:
    engine.plan("CheckTransaction", checked())
    gate = gate_to(engine, timeout=1.0)

    gate.risk.check(customer_id="ada", transaction_id="T1", amount=Money("CNY", 1), merchant_id="M1")

    left = engine.calls[0].seconds_left
    assert left is not None
    assert left < 1.1


def test_an_answer_that_does_not_come_in_time_is_an_error(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetCreditLine", never())

    with pytest.raises(DeadlineExceeded):
        gate.lines.get("ada", timeout=0.2)


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_deadline_before_now_is_refused(gate: Riskgate, timeout: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        gate.lines.get("ada", timeout=timeout)


def test_a_misspelt_argument_is_refused(gate: Riskgate) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'timout'"):
        gate.lines.get("ada", timout=1.0)  # type: ignore[call-arg]  # what is tested


def test_an_argument_of_the_wrong_kind_is_named(gate: Riskgate) -> None:
    with pytest.raises(TypeError, match=r"^purpose must be ProofPurpose, not str$"):
        gate.otp.send_code(customer_id="ada", purpose="SIGN_IN")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"^purpose must be ProofPurpose, not DevicePlatform$"):
        gate.otp.send_code(customer_id="ada", purpose=DevicePlatform.JOSE)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"^code must be str, not int$"):
        gate.otp.verify_code(customer_id="ada", challenge_id="c-1", code=123456)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"^customer_id must be str, not int$"):
        gate.lines.get(7)  # type: ignore[arg-type]  # what is tested


def test_of_what_can_only_be_one_exactly_one_is_taken(gate: Riskgate) -> None:
    codes: list[dict[str, Any]] = [{}, {"challenge_id": "c-1", "factor_id": "f-1"}]
    answers: list[dict[str, Any]] = [{}, {"compact_jws": "a.b.c", "webauthn_assertion_json": "{}"}]
    for given in codes:
        with pytest.raises(ValueError, match=r"^give exactly one of challenge_id, factor_id$"):
            gate.otp.verify_code(customer_id="ada", code="123456", **given)
    for given in answers:
        with pytest.raises(ValueError, match=r"^give exactly one of webauthn_assertion_json, signature, compact_jws$"):
            gate.devices.verify_challenge(customer_id="ada", challenge_id="c-1", **given)
    with pytest.raises(ValueError, match=r"^give exactly one of webauthn_registration_json, raw_key$"):
        gate.devices.finish_enrollment(customer_id="ada", enrollment_id="e-1")


def test_an_empty_key_is_said_to_be_empty(connect: Callable[..., Riskgate]) -> None:
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match=r"^api_key is empty: a key looks like rgk_"):
            connect("localhost:7444", ca=authority().certificate_pem, api_key=empty)


def test_a_question_takes_no_request_id(gate: Riskgate) -> None:
    with pytest.raises(TypeError, match="request_id"):
        gate.lines.get("ada", request_id="r1")  # type: ignore[call-arg]  # what is tested


def test_the_key_goes_with_every_call(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetCreditLine", got_line())

    gate.lines.get("ada")

    metadata = engine.calls[0].metadata
    assert metadata["authorization"] == "Bearer rgk_test_key"
    assert str(metadata["user-agent"]).startswith(f"riskgate-python/{riskgate_client.__version__} grpc-python")


def test_a_certificate_takes_the_place_of_a_key(connect: GateTo, tmp_path: Path) -> None:
    own = issue_client(authority(), "spiffe://riskgate/tenant/default/caller/backend", datetime.now(UTC))
    (tmp_path / "own.crt").write_bytes(own.certificate_pem)
    (tmp_path / "own.key").write_bytes(own.key_pem)
    (tmp_path / "ca.crt").write_bytes(authority().certificate_pem)
    engine = ScriptedEngine()
    server = serve(engine, certificates=True)
    engine.plan("GetCreditLine", got_line())

    try:
        gate = connect(
            engine.target, ca=tmp_path / "ca.crt", certificate=tmp_path / "own.crt", key=str(tmp_path / "own.key")
        )
        gate.lines.get("ada")
    finally:
        server.stop(None).wait()

    assert engine.calls[0].certified
    assert "authorization" not in engine.calls[0].metadata


def test_an_engine_that_somebody_else_vouches_for_is_not_spoken_to(engine: ScriptedEngine, connect: GateTo) -> None:
    from riskgate_server.crypto.tls import new_authority  # noqa: PLC0415 - only here

    stranger = new_authority(datetime.now(UTC)).certificate_pem
    gate = connect(engine.target, ca=stranger, api_key=SECRET, retry=IMPATIENT)

    with pytest.raises(Unavailable) as failed:
        gate.lines.get("ada")

    assert not failed.value.effect_possible
    assert "`ca`" in str(failed.value)
    assert engine.calls == []


def test_a_certificate_for_another_host_is_told_as_such_at_once(engine: ScriptedEngine, connect: GateTo) -> None:
    elsewhere = (("grpc.ssl_target_name_override", "elsewhere.example"),)
    gate = connect(engine.target, ca=authority().certificate_pem, api_key=SECRET, timeout=60.0, options=elsewhere)

    with pytest.raises(Unavailable, match=r"^UNAVAILABLE: the engine's certificate is for another host"):
        gate.lines.get("ada")


def test_a_key_sent_to_the_port_for_certificates_is_hinted_at(connect: GateTo) -> None:
    engine = ScriptedEngine()
    server = serve(engine, certificates=True)
    try:
        gate = connect(engine.target, ca=authority().certificate_pem, api_key=SECRET, retry=IMPATIENT)
        with pytest.raises(Unavailable, match="an API key goes to the other port") as failed:
            gate.ledger.capture(customer_id="ada", hold_id="T1")
    finally:
        server.stop(None).wait()

    assert not failed.value.effect_possible


def test_white_space_around_a_key_is_no_part_of_it(engine: ScriptedEngine, connect: GateTo) -> None:
    engine.plan("GetCreditLine", got_line())

    connect(engine.target, ca=authority().certificate_pem, api_key=f" {SECRET}\n").lines.get("ada")

    assert engine.calls[0].metadata["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("key", ["", "secret-5f1e", "rgk_5f1e two", "Bearer rgk_5f1e", "rgk_5f1e\nx: y"])
def test_what_is_no_key_is_refused_before_any_call_and_not_shown(connect: GateTo, key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as refused:
        connect("localhost:7444", ca=authority().certificate_pem, api_key=key)

    assert "5f1e" not in str(refused.value)


@pytest.mark.parametrize("ca", [b"", b"nonsense", b"\xff", authority().certificate_pem.replace(b"M", b"!")])
def test_what_is_no_certificate_is_refused_before_any_call(connect: GateTo, tmp_path: Path, ca: bytes) -> None:
    (tmp_path / "ca.crt").write_bytes(ca)

    with pytest.raises(ValueError, match=r"ca is no certificate in PEM: the given bytes"):
        connect("localhost:7444", ca=ca, api_key=SECRET)
    with pytest.raises(ValueError, match=r"ca is no certificate in PEM: .*ca\.crt"):
        connect("localhost:7444", ca=tmp_path / "ca.crt", api_key=SECRET)


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"api_key": SECRET, "certificate": b"c", "key": b"k"},
        {"certificate": b"c"},
        {"key": b"k"},
        {"api_key": SECRET, "key": b"k"},
    ],
    ids=lambda given: "+".join(given) or "none",
)
@pytest.mark.parametrize("client", [Riskgate, AsyncRiskgate])
def test_exactly_one_credential_is_needed(client: type[Riskgate], credentials: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="certificate and key"):
        client("localhost:7444", **credentials)


def test_nothing_shows_the_key(engine: ScriptedEngine, connect: GateTo) -> None:
    engine.plan("GetCreditLine", refusal(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_INVALID"))
    gate = connect(engine.target, ca=authority().certificate_pem, api_key=SECRET)

    with pytest.raises(riskgate_client.Unauthenticated) as failed:
        gate.lines.get("ada")

    shown = [repr(gate), repr(gate.lines), str(failed.value), repr(failed.value), repr(failed.value.__cause__)]
    assert SECRET not in " ".join(shown)
    assert engine.target in repr(gate)


def test_a_described_call_does_not_show_what_it_sends() -> None:
    described = check(customer_id="ada", transaction_id="T1", grant="the-grant", request_id="r1")

    assert "the-grant" not in repr(described)
    assert "ada" not in repr(described)
    assert "r1" in repr(described)


def test_a_stub_carries_key_and_deadline(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetAssessment", assessment_pb.GetAssessmentResponse())
    stub = gate.stub(AssessmentServiceStub)

    stub.GetAssessment(assessment_pb.GetAssessmentRequest(customer_id="ada"))
    stub.GetAssessment(assessment_pb.GetAssessmentRequest(customer_id="ada"), timeout=1.0, metadata=(("x-trace", "7"),))

    first, second = engine.calls
    assert first.metadata["authorization"] == second.metadata["authorization"] == "Bearer rgk_test_key"
    assert second.metadata["x-trace"] == "7"
    assert first.seconds_left is not None
    assert 4.0 < first.seconds_left < 5.1
    assert second.seconds_left is not None
    assert second.seconds_left < 1.1


def test_a_failed_call_of_a_stub_can_be_explained(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("GetAssessment", refusal(grpc.StatusCode.UNIMPLEMENTED, "NOT_SERVED_YET"))

    with pytest.raises(grpc.RpcError) as failed:
        gate.stub(AssessmentServiceStub).GetAssessment(assessment_pb.GetAssessmentRequest(customer_id="ada"))

    error = error_from_rpc(failed.value)
    assert isinstance(error, riskgate_client.Unimplemented)
    assert error.reason == "NOT_SERVED_YET"


def test_closing_the_client_ends_its_calls(engine: ScriptedEngine, gate: Riskgate) -> None:
    engine.plan("CaptureHold", never())
    alarm = threading.Timer(0.2, gate.close)
    alarm.start()

    with pytest.raises(Cancelled) as failed:
        gate.ledger.capture(customer_id="ada", hold_id="T1")
    alarm.join()

    assert failed.value.effect_possible
    assert failed.value.request_id


def test_the_client_waits_for_an_engine_that_starts(engine: ScriptedEngine, gate: Riskgate) -> None:
    gate.wait_until_ready(timeout=10)


def test_the_client_says_when_an_engine_does_not_start(connect: GateTo) -> None:
    gate = connect("localhost:1", ca=authority().certificate_pem, api_key=SECRET)

    with pytest.raises(Unavailable, match="localhost:1 was not reachable"):
        gate.wait_until_ready(timeout=0.2)


def test_the_client_finds_an_engine_that_came_back_soon(connect: GateTo) -> None:
    engine = ScriptedEngine()
    engine.plan("GetCreditLine", got_line())
    server = serve(engine)
    port = int(engine.target.rpartition(":")[2])
    gate = connect(engine.target, ca=authority().certificate_pem, api_key=SECRET, timeout=10.0)
    gate.lines.get("ada")
    server.stop(None).wait()
    with pytest.raises(Unavailable):
        gate.lines.get("ada", timeout=0.1)

    server = serve(engine, port=port)
    try:
        line = gate.lines.get("ada", timeout=4.0)
    finally:
        server.stop(None).wait()

    assert line.available == Money("CNY", 500_000)
