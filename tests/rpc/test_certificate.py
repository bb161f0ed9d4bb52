"""The server's certificate over a real handshake: renewed beside the server, and spoken of when it will end."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from riskgate.credit.v1.credit_line_service_pb2 import GetCreditLineRequest
from riskgate.credit.v1.credit_line_service_pb2_grpc import CreditLineServiceStub
from riskgate_server.cli import main
from riskgate_server.crypto import tls
from riskgate_server.datadir import write_file
from tests.rpc.calling import refused
from tests.rpc.logs import Lines
from tests.rpc.requests import buy, open_line
from tests.rpc.serving import Deployment, Loop, Running, serving

ELSEWHERE = "risk.example.com"


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with closing(Deployment(tmp_path / "data")) as deployment:
        yield deployment


def renew(deployment: Deployment, *arguments: str) -> None:
    result = CliRunner().invoke(main, ["keys", "certificate", "--data", str(deployment.directory.root), *arguments])
    assert result.exit_code == 0, result.output


def shown(running: Running, name: str, port: int) -> bytes:
    """Shake hands as a caller who knows the server by a name, and return the certificate that was shown."""
    context = ssl.create_default_context(cafile=running.deployment.directory.ca_certificate)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=name) as wrapped,
    ):
        certificate = wrapped.getpeercert(binary_form=True)
        assert certificate
        return certificate


def test_a_caller_elsewhere_comes_in_once_the_certificate_names_the_server(loop: Loop, deployment: Deployment) -> None:
    """Without a restart, at both ports, and whoever was connected before notices nothing."""
    with serving(loop, deployment) as running:
        api = running.tenant().api
        open_line(api)
        for port in (running.key_port, running.certificate_port):
            with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
                shown(running, ELSEWHERE, port)
        before = shown(running, "localhost", running.key_port)
        renew(deployment, "--name", ELSEWHERE)

        assert buy(api).decision_id
        for port in (running.key_port, running.certificate_port):
            assert shown(running, ELSEWHERE, port) == shown(running, "localhost", port) != before
        credentials = grpc.ssl_channel_credentials(deployment.directory.ca_certificate.read_bytes())
        options = [("grpc.ssl_target_name_override", ELSEWHERE)]
        with grpc.secure_channel(f"127.0.0.1:{running.key_port}", credentials, options) as channel:
            metadata = (("authorization", f"Bearer {deployment.admin_key}"),)
            ask = CreditLineServiceStub(channel).GetCreditLine
            nobody = GetCreditLineRequest(customer_id="nobody")
            answer = refused(lambda: ask(nobody, metadata=metadata, timeout=5))
            assert answer.code is grpc.StatusCode.NOT_FOUND


def test_a_server_that_starts_in_the_middle_of_a_renewal_serves_the_old_one(loop: Loop, deployment: Deployment) -> None:
    obstacle = deployment.directory.tls / ".server.crt.new"
    obstacle.mkdir()
    assert CliRunner().invoke(main, ["keys", "certificate", "--data", str(deployment.directory.root)]).exit_code == 1
    with serving(loop, deployment) as running:
        old = shown(running, "localhost", running.key_port)
        obstacle.rmdir()
        renew(deployment)

        assert shown(running, "localhost", running.key_port) != old


def test_a_server_warns_at_start_when_its_certificate_ends_within_thirty_days(
    loop: Loop, deployment: Deployment, log: Lines
) -> None:
    issued = datetime.now(UTC) - tls.SERVER_LIFETIME + timedelta(days=29, hours=12)
    ending = tls.issue_server(deployment.authority, (), issued)
    write_file(deployment.directory.server_key, ending.key_pem)
    write_file(deployment.directory.server_certificate, ending.certificate_pem)
    with serving(loop, deployment) as running:
        shown(running, "localhost", running.key_port)
    (warning,) = log.of("certificate ends soon")
    renew(deployment)
    with serving(loop, deployment):
        pass

    assert (warning["days"], warning["level"]) == (29, "warning")
    assert warning["remedy"] == "riskgate keys certificate"
    assert len(log.of("certificate ends soon")) == 1


def test_a_server_that_listens_elsewhere_warns_when_it_is_named_only_localhost(
    loop: Loop, deployment: Deployment, log: Lines
) -> None:
    with serving(loop, deployment, address="0.0.0.0"):
        pass
    (warning,) = log.of("certificate names only localhost")
    renew(deployment, "--name", ELSEWHERE)
    with serving(loop, deployment, address="0.0.0.0"):
        pass

    assert warning["address"] == "0.0.0.0"
    assert len(log.of("certificate names only localhost")) == 1
