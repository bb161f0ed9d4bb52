"""What the door does with methods that do not say who may call them."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from riskgate.common.v1 import access_pb2
from riskgate_server.rpc import server
from riskgate_server.scopes import LIFT_PREFIX, SCOPES
from tests.rpc.contract import OURS, scopes_of
from tests.rpc.serving import Deployment, Loop, serving

LIFTS = {scope for scope in SCOPES if scope.startswith(LIFT_PREFIX)}
WITHOUT_A_METHOD = {"admin", "risk:history", "ledger:force", "reflection:read", *LIFTS}
"""Scopes that no method names: they are looked at inside, or stand beside services that are not ours."""


@pytest.fixture
def forgetful() -> ServiceDescriptor:
    """A service as a careless hand might write it: one call with a scope, one without, one with an empty one."""
    file = descriptor_pb2.FileDescriptorProto(
        name="forgetful.proto", package="forgetful", dependency=["riskgate/common/v1/access.proto"], syntax="proto3"
    )
    file.message_type.add(name="Nothing")
    service = file.service.add(name="Forgetful")
    for name, scope in (("Scoped", "risk:check"), ("Forgot", None), ("Empty", "")):
        method = service.method.add(name=name, input_type=".forgetful.Nothing", output_type=".forgetful.Nothing")
        if scope is not None:
            method.options.Extensions[access_pb2.required_scope] = scope
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("forgetful.Forgetful")


def test_a_method_without_a_scope_is_refused_whoever_calls(
    loop: Loop, tmp_path: Path, forgetful: ServiceDescriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LATER", (*server.LATER, forgetful))
    deployment = Deployment(tmp_path / "data")

    with serving(loop, deployment) as running:
        administrator = running.keyed(deployment.admin_key)
        answered = {method.name: administrator.answer(method, b"") for method in forgetful.methods}
    deployment.close()

    assert answered == {
        "Scoped": "UNIMPLEMENTED NOT_SERVED_YET",  # past the door
        "Forgot": "PERMISSION_DENIED SCOPE_MISSING",
        "Empty": "PERMISSION_DENIED SCOPE_MISSING",
    }


def test_every_method_names_exactly_one_scope_that_exists() -> None:
    assert {method.full_name: scopes_of(method) for method in OURS if not scopes_of(method) <= SCOPES.keys()} == {}
    assert {len(scopes_of(method)) for method in OURS} == {1}


def test_every_scope_that_can_be_granted_opens_something() -> None:
    named = set().union(*map(scopes_of, OURS))

    assert SCOPES.keys() - named == WITHOUT_A_METHOD
