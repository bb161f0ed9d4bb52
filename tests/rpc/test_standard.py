"""Health, reflection and metrics: what any tool may ask of the server."""

from __future__ import annotations

from typing import Any, Final

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from riskgate_server.rpc import service
from riskgate_server.rpc.standard import HEALTH, REFLECTION
from tests.rpc.calling import Api, refused
from tests.rpc.contract import SERVICES
from tests.rpc.requests import buy, buying, line_of, open_line
from tests.rpc.serving import Running, Tenant

SERVING: Final[Any] = health_pb2.HealthCheckResponse.SERVING
NAMES: Final = ["", *(service.full_name for service in SERVICES)]


def reflect(api: Api, *asked: reflection_pb2.ServerReflectionRequest) -> list[Any]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    answers: Any = stub.ServerReflectionInfo(iter(asked), metadata=api.metadata, timeout=10)
    return list(answers)


@pytest.mark.parametrize("service", NAMES)
def test_every_service_of_the_contract_is_serving(api: Api, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)

    assert api.health.Check(request).status == SERVING
    watch = api.health.Watch(request)
    assert next(watch).status == SERVING
    watch.cancel()


def test_a_service_nobody_wrote_is_not_found_or_unknown(api: Api) -> None:
    request = health_pb2.HealthCheckRequest(service="riskgate.risk.v9.RiskService")

    watch = api.health.Watch(request)

    assert refused(lambda: api.health.Check(request)).name == "NOT_FOUND SERVICE_NOT_FOUND"
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_any_scope_at_all_may_ask_for_health(tenant: Tenant) -> None:
    assert tenant.caller("otp:send").health.Check(health_pb2.HealthCheckRequest()).status == SERVING


def test_reflection_lists_exactly_what_is_served(tenant: Tenant) -> None:
    (answer,) = reflect(tenant.caller("reflection:read"), reflection_pb2.ServerReflectionRequest(list_services=""))

    listed = {service.name for service in answer.list_services_response.service}
    assert listed == {*NAMES[1:], HEALTH.full_name, REFLECTION.full_name}


def test_reflection_describes_every_service_with_all_it_needs(tenant: Tenant) -> None:
    api = tenant.caller("reflection:read")
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in NAMES[1:]]

    answers = reflect(api, *asked)

    for name, answer in zip(NAMES[1:], answers, strict=True):
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(raw)
            for raw in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert name in {f"{file.package}.{service.name}" for file in files for service in file.service}
        assert {needed for file in files for needed in file.dependency} <= {file.name for file in files}


def test_reflection_of_the_unknown_is_an_answer(tenant: Tenant) -> None:
    (answer,) = reflect(
        tenant.caller("reflection:read"), reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such")
    )

    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_reflection_of_bytes_that_are_no_request_is_refused(tenant: Tenant) -> None:
    api = tenant.caller("reflection:read")

    assert api.answer(REFLECTION.methods[0], b"\xff\xff") == "INVALID_ARGUMENT MESSAGE_MALFORMED"


def test_reflection_without_its_scope_is_refused(tenant: Tenant) -> None:
    api = tenant.caller("risk:check")

    refusal = refused(lambda: reflect(api, reflection_pb2.ServerReflectionRequest(list_services="")))

    assert refusal.name == "PERMISSION_DENIED SCOPE_MISSING"
    assert refusal.metadata == {"scope": "reflection:read"}


def test_metrics_count_every_call_by_method_and_status(running: Running, ada: Api) -> None:
    counted = (
        ("CheckTransaction", "OK"), ("CheckTransaction", "INVALID_ARGUMENT"), ("GetCreditLine", "NOT_FOUND"),
        ("Check", "NOT_FOUND"), ("AcceptLimitOffer", "UNIMPLEMENTED"), ("Watch", "CANCELLED"),
    )  # fmt: skip
    before = [running.calls(*which) for which in counted]

    buy(ada)
    refused(lambda: ada.risk.CheckTransaction(buying(amount=-1)))
    refused(lambda: line_of(ada, "nobody"))
    refused(lambda: ada.health.Check(health_pb2.HealthCheckRequest(service="x")))
    ada.answer("/riskgate.credit.v1.CreditLineService/AcceptLimitOffer", b"")
    watch = ada.health.Watch(health_pb2.HealthCheckRequest())
    next(watch)
    watch.cancel()
    while running.calls("Watch", "CANCELLED") == before[-1]:
        pass

    assert [running.calls(*which) - seen for which, seen in zip(counted, before, strict=True)] == [1] * len(counted)


def test_metrics_say_nothing_of_any_customer_or_caller(running: Running, tenant: Tenant) -> None:
    open_line(tenant.api, "customer-canary")
    buy(tenant.api, "customer-canary", phone="phone-canary", merchant={"merchant_id": "merchant-canary"})

    text = running.scrape()

    assert "rpc_server_call_duration_seconds_bucket" in text
    assert "riskgate_commands_waiting 0.0" in text
    assert "canary" not in text
    assert tenant.name not in text


def test_a_health_watch_ends_with_its_callers_rights(
    running: Running, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CONFIRM_SECONDS", 0.05)
    name, key = running.deployment.add_caller("limit:read", tenant=tenant.name)
    watch = running.keyed(key.text).health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
    next(watch)

    running.deployment.revoke(tenant.name, name)

    assert refused(lambda: list(watch)).name == "UNAUTHENTICATED CREDENTIAL_INVALID"
