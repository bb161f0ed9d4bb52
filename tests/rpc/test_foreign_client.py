"""A client nobody here wrote, without our protos, stubs or library: `buf curl`, by reflection."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.buf import find_buf
from tests.rpc.contract import SERVICES
from tests.rpc.requests import line_of, open_line
from tests.rpc.serving import Running, Tenant

CHECK: Final = "/riskgate.risk.v1.RiskService/CheckTransaction"


@pytest.fixture(scope="module")
def buf() -> str:
    return find_buf()


@pytest.fixture
def purchase() -> dict[str, Any]:
    return {
        "requestId": "foreign-1", "customerId": "ada", "transactionId": "foreign-1",
        "amount": {"currencyCode": "CNY", "amountMinor": "2500"}, "merchant": {"merchantId": "shop"},
    }  # fmt: skip


class Curl:
    """Calls a server as `buf curl` does."""

    def __init__(self, buf: str, running: Running) -> None:
        self._start = [buf, "curl", "--protocol", "grpc", "--cacert", str(running.deployment.directory.ca_certificate)]

    def __call__(self, port: int, path: str, *options: str, key: str = "") -> subprocess.CompletedProcess[str]:
        header = f"authorization: Bearer {key}"
        presented = ["-H", header, "--reflect-header", header] if key else []
        command = [*self._start, *presented, *options, f"https://localhost:{port}{path}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def curl(buf: str, running: Running) -> Curl:
    return Curl(buf, running)


@pytest.mark.process
def test_a_foreign_client_lists_services_with_a_scope_and_makes_a_check(
    tenant: Tenant, curl: Curl, purchase: dict[str, Any]
) -> None:
    running = tenant.running
    open_line(tenant.api)
    key = running.deployment.add_caller("reflection:read", "risk:check", tenant=tenant.name)[1].text

    port = running.key_port
    listed = curl(port, "", "--list-services", key=key)
    checked = curl(port, CHECK, "-d", json.dumps(purchase), key=key)
    refused = curl(port, CHECK, "-d", "{}", key=key)

    assert listed.returncode == 0, listed.stderr
    assert {service.full_name for service in SERVICES} <= set(listed.stdout.split())
    assert checked.returncode == 0, checked.stderr
    decision = json.loads(checked.stdout)["decision"]
    assert (decision["outcome"], decision["heldAmount"]["amountMinor"]) == ("OUTCOME_APPROVE", "2500")
    assert line_of(tenant.api).held.amount_minor == 2_500
    assert refused.returncode != 0
    assert '"code": "invalid_argument"' in refused.stderr


@pytest.mark.process
def test_a_foreign_client_without_the_scope_or_a_credential_learns_nothing(tenant: Tenant, curl: Curl) -> None:
    running = tenant.running
    scoped = running.deployment.add_caller("risk:check", tenant=tenant.name)[1].text

    without_scope = curl(running.key_port, "", "--list-services", key=scoped)
    without_key = curl(running.key_port, "", "--list-services")

    for answer, code in ((without_scope, "permission_denied"), (without_key, "not authenticated")):
        assert answer.returncode != 0
        assert code in answer.stderr
        assert "riskgate.risk" not in answer.stdout


@pytest.mark.process
def test_a_foreign_client_proves_itself_by_certificate(
    tenant: Tenant, curl: Curl, purchase: dict[str, Any], tmp_path: Path
) -> None:
    running = tenant.running
    open_line(tenant.api)
    name, _ = running.deployment.add_caller("reflection:read", "risk:check", tenant=tenant.name, certificates=True)
    own = running.deployment.certificate(tenant.name, name)
    certificate, key = tmp_path / "own.crt", tmp_path / "own.key"
    certificate.write_bytes(own.certificate_pem)
    key.write_bytes(own.key_pem)

    own_files = ("--cert", str(certificate), "--key", str(key))
    checked = curl(running.certificate_port, CHECK, *own_files, "-d", json.dumps(purchase))

    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["decision"]["outcome"] == "OUTCOME_APPROVE"
