"""Codes on their way over the wire: what a caller is told when the gateway is down, and what is told to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from riskgate.identity.v1 import otp_service_pb2 as pb
from riskgate_server.bootstrap import Server
from riskgate_server.notify.refusals import GatewayUnusable
from riskgate_server.settings import Settings
from tests.far_end import WRITTEN_SECRET, FarEnd, listening
from tests.rpc.calling import refused, refused_of
from tests.rpc.logs import Lines, logs
from tests.rpc.phones import NUMBER, SIGN_IN, sent, verify, whose
from tests.rpc.requests import open_line
from tests.rpc.serving import Deployment, Loop, Running, Tenant, serving
from tests.rpc.test_privacy import spellings


@pytest.fixture(scope="module")
def far_end() -> Iterator[FarEnd]:
    with listening(FarEnd()) as far_end:
        yield far_end


@pytest.fixture(scope="module")
def lines() -> Iterator[Lines]:
    with logs() as lines:
        yield lines


@pytest.fixture(scope="module")
def hooked(loop: Loop, far_end: FarEnd, lines: Lines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose gateway is a webhook."""
    folder = tmp_path_factory.mktemp("hooked")
    secrets = folder / "secrets"
    secrets.touch(mode=0o600)
    secrets.write_text(WRITTEN_SECRET)
    deployment = Deployment(folder / "data")
    settings = {"gateway_url": far_end.url, "gateway_secrets": str(secrets), "gateway_patience_seconds": 0.5}
    with serving(loop, deployment, gateway="webhook", **settings) as running:
        yield running
    deployment.close()


@pytest.fixture
def phone(hooked: Running, far_end: FarEnd) -> Tenant:
    """A tenant whose customer ada has a confirmed phone."""
    far_end.plan = ["ok"]
    tenant = hooked.tenant()
    open_line(tenant.api)
    enrolled = tenant.api.otp.EnrollPhone(pb.EnrollPhoneRequest(**whose(), phone_number=NUMBER))
    code = far_end.requests[-1][1]["parameters"]["code"]
    confirming = pb.ConfirmFactorRequest(**whose(), factor_id=enrolled.factor.factor_id, code=code)
    tenant.api.otp.ConfirmFactor(confirming)
    return tenant


def sending(customer: str = "ada") -> pb.SendCodeRequest:
    return pb.SendCodeRequest(**whose(customer), purpose=SIGN_IN)


def test_a_code_has_reached_the_gateway_when_its_caller_is_told(phone: Tenant, far_end: FarEnd) -> None:
    challenge_id = sent(phone)
    data = far_end.requests[-1][1]

    assert (data["tenant_id"], data["destination"]) == (phone.name, NUMBER.replace(" ", ""))
    assert verify(phone, challenge_id, data["parameters"]["code"]).level == 1
    assert far_end.faults == []


@pytest.mark.attack("gateway-down")
def test_a_gateway_that_is_down_is_told_and_costs_nothing(phone: Tenant, far_end: FarEnd) -> None:
    far_end.plan = ["503"]
    requests = [sending() for _ in range(7)]
    refusals = [refused(lambda request=request: phone.api.otp.SendCode(request)) for request in requests]  # type: ignore[misc]
    again = refused(lambda: phone.api.otp.SendCode(requests[-1]))

    assert {refusal.name for refusal in refusals} == {"UNAVAILABLE GATEWAY_DOWN"}
    assert again == refusals[-1]
    far_end.plan = ["ok"]
    # The last challenge stands, and nobody need wait to have its code sent.
    challenge_id = again.metadata["challenge_id"]
    resent = phone.api.otp.ResendCode(pb.ResendCodeRequest(**whose(), challenge_id=challenge_id)).challenge
    code = far_end.requests[-1][1]["parameters"]["code"]
    assert resent.challenge_id == challenge_id
    assert verify(phone, challenge_id, code).level == 1


@pytest.mark.attack("gateway-down")
def test_who_does_not_exist_is_told_the_same_while_the_gateway_is_down(phone: Tenant, far_end: FarEnd) -> None:
    far_end.plan = ["503"]
    known = [refused(lambda: phone.api.otp.SendCode(sending())) for _ in range(8)][-1]
    for n in range(100):
        # As often as of those that were asked for of late.
        try:
            phone.api.otp.SendCode(sending(f"nobody{n}"))
        except grpc.RpcError as error:
            unknown = refused_of(error)
            break

    assert (unknown.name, unknown.message) == (known.name, known.message)
    assert unknown.metadata.keys() == known.metadata.keys()
    assert len(unknown.metadata["challenge_id"]) == len(known.metadata["challenge_id"])


def test_a_number_that_the_gateway_refuses_is_told(phone: Tenant, far_end: FarEnd) -> None:
    far_end.plan = ["404"]

    assert refused(lambda: phone.api.otp.SendCode(sending())).name == "FAILED_PRECONDITION PHONE_NUMBER_REFUSED"


def test_what_nobody_knows_is_told_as_sent(phone: Tenant, far_end: FarEnd) -> None:
    far_end.plan = ["late"]
    challenge_id = sent(phone)
    (code,) = {data["parameters"]["code"] for _, data, _ in far_end.requests[-2:]}

    assert verify(phone, challenge_id, code).level == 1


@pytest.mark.attack("secrets-lying-about")
def test_neither_log_nor_metrics_nor_data_directory_has_number_code_or_secret(
    phone: Tenant, far_end: FarEnd, lines: Lines
) -> None:
    for plan in ("ok", "503", "404", "late"):
        far_end.plan = [plan]
        try:
            phone.api.otp.SendCode(sending())
        except Exception:  # noqa: BLE001 - both are told elsewhere
            continue
    directory = phone.running.deployment.directory
    data = far_end.requests[-1][1]
    told = "\n".join(lines.lines).encode() + phone.running.scrape().encode()
    files = b"".join(path.read_bytes() for path in sorted(directory.root.rglob("*")) if path.is_file())

    assert lines.of("message not delivered")
    assert not directory.outbox.exists()
    for secret in (data["destination"], data["text"], WRITTEN_SECRET, "t0ken-5f1e"):
        assert [each for each in spellings(secret) if each in told or each in files] == [], secret
    code = data["parameters"]["code"]
    assert f'"{code}"'.encode() not in told + files
    assert phone.running.scrape_value("riskgate_messages_settled_total") > 0
    assert phone.running.scrape_value("riskgate_message_attempt_duration_seconds_count") > 0
    assert 'riskgate_messages_settled_total{channel="SMS",outcome="UNSENT"}' in phone.running.scrape()


def test_a_server_does_not_start_with_a_gateway_that_cannot_be(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    settings = Settings(
        data=str(tmp_path / "data"),
        gateway="webhook",
        gateway_secrets="x",
        key_port=0,
        certificate_port=0,
        metrics_port=-1,
    )
    with pytest.raises(GatewayUnusable, match="RISKGATE_GATEWAY_URL is not set"):
        asyncio.run(Server(settings).run())
    deployment.close()


def test_the_log_says_where_rows_and_messages_go_and_that_codes_are_in_clear(loop: Loop, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    with logs() as lines, serving(loop, deployment):
        pass
    deployment.close()

    (line,) = lines.of("serving")
    (warning,) = lines.of("codes in clear")
    assert (line["store"], line["gateway"]) == ("files", "file")
    assert (warning["level"], warning["file"]) == ("warning", deployment.directory.outbox.name)
