"""What the log says of a refused call, and what its caller does not hear."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from riskgate_server.engine.callers import certificate_id
from riskgate_server.rpc import refusals
from tests.rpc.calling import Api, refused
from tests.rpc.logs import Lines
from tests.rpc.requests import line_of
from tests.rpc.serving import Running, Tenant

UNIFORM = "the credential is unknown, wrong, expired or revoked"
UNKNOWN_ID = "zzzzzzzzzzzz"
SECRET = "Q" * 42 + "A"


@pytest.fixture(autouse=True)
def _every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of the same second are refused too."""
    monkeypatch.setattr(refusals, "LINES_MAX", 1_000_000)


def told(log: Lines) -> list[dict[str, Any]]:
    """Return what the log says of refused calls, but for when and where."""
    told = log.of("call refused")
    assert {line.pop("method") for line in told} <= {"riskgate.credit.v1.CreditLineService/GetCreditLine"}
    assert all(line.pop("peer") for line in told)
    return [{name: line[name] for name in line.keys() - {"event", "level", "timestamp"}} for line in told]


def no_good(api: Api) -> None:
    """Call, and hear what everybody hears whose credential is no good."""
    heard = refused(lambda: line_of(api))
    assert (heard.name, heard.message, heard.metadata) == ("UNAUTHENTICATED CREDENTIAL_INVALID", UNIFORM, {})


def invalid(why: str, **facts: str) -> dict[str, str]:
    return {"reason": "CREDENTIAL_INVALID", "why": why, **facts}


def test_a_key_that_is_no_good_is_named_by_its_id_with_why_and_its_caller_where_that_is_proven(
    running: Running, tenant: Tenant, log: Lines
) -> None:
    deployment = running.deployment
    ended, old = deployment.add_caller("limit:read", tenant=tenant.name)
    narrowed, revoked = deployment.add_caller("limit:read", tenant=tenant.name)
    deployment.end_key(tenant.name, ended)
    deployment.revoke_credential(revoked.key_id)

    no_good(running.keyed(f"rgk_{UNKNOWN_ID}_{SECRET}"))
    no_good(running.keyed(f"rgk_{old.key_id}_{SECRET}"))
    no_good(running.keyed(old.text))
    no_good(running.keyed(revoked.text))

    assert told(log) == [
        invalid("unknown", key=UNKNOWN_ID),
        invalid("wrong secret", key=old.key_id),
        invalid("expired", key=old.key_id, tenant=tenant.name, caller=ended),
        invalid("revoked", key=revoked.key_id, tenant=tenant.name, caller=narrowed),
    ]
    assert not [line for line in log.lines for secret in (SECRET, old.text[17:], revoked.text[17:]) if secret in line]


@pytest.mark.parametrize(
    "presented",
    [
        "5f1e", "rgk_5f1e", f"rgk_5f1e5f1e5f1e5f1e_{SECRET}", f"rgk_{'i' * 12}_{SECRET}",
        f"rgk_5f1e5f1e5f1e_{SECRET}5f1e", f"rgk_5f1e5f1e5f1e_{SECRET[:-1]}B", "rgk_" + "5f1e" * 1_000,
    ],
    ids=["word", "prefix", "long id", "letters no id has", "long secret", "other spelling", "long"],
)  # fmt: skip
def test_nothing_of_what_has_not_a_keys_form_gets_into_the_log(running: Running, log: Lines, presented: str) -> None:
    no_good(running.keyed(presented))

    assert told(log) == [invalid("not of a key's form")]
    assert "5f1e" not in "\n".join(log.lines)


def test_a_certificate_that_is_no_good_is_named_by_its_id_with_why(
    running: Running, tenant: Tenant, log: Lines
) -> None:
    deployment = running.deployment
    name, _ = deployment.add_caller("limit:read", tenant=tenant.name, certificates=True)
    keys_only, _ = deployment.add_caller("limit:read", tenant=tenant.name)
    gone, _ = deployment.add_caller("limit:read", tenant=tenant.name, certificates=True)
    deployment.revoke(tenant.name, gone)
    revoked = deployment.certificate(tenant.name, name)
    deployment.revoke_credential(deployment.register(tenant.name, name, revoked))
    borrowed = deployment.certificate(tenant.name, name)
    other, _ = deployment.add_caller("limit:read", tenant=tenant.name)
    deployment.register(tenant.name, other, borrowed)
    presented = [
        (revoked, "revoked", name),
        (borrowed, "issued to another caller", name),
        (deployment.certificate(tenant.name, keys_only), "caller may use no certificates", keys_only),
        (deployment.certificate(tenant.name, gone), "revoked caller", gone),
        (deployment.certificate(tenant.name, "nobody"), "unknown caller", "nobody"),
    ]

    for credential, _, _ in presented:
        no_good(running.certified(credential))

    assert told(log) == [
        invalid(why, certificate=certificate_id(own.certificate_sha256()), tenant=tenant.name, caller=whose)
        for own, why, whose in presented
    ]


def test_who_may_not_do_it_and_who_calls_too_often_is_named(running: Running, tenant: Tenant, log: Lines) -> None:
    barred, key = running.deployment.add_caller("otp:send", tenant=tenant.name)
    busy, often = running.deployment.add_caller("otp:send", tenant=tenant.name, rate=1, burst=1)
    hurried = running.keyed(often.text)

    refused(lambda: line_of(running.keyed(key.text)))
    refused(lambda: line_of(hurried))
    refused(lambda: line_of(hurried))

    whose = {"tenant": tenant.name, "caller": busy}
    assert told(log) == [
        {"reason": "SCOPE_MISSING", "scope": "limit:read", "tenant": tenant.name, "caller": barred},
        {"reason": "SCOPE_MISSING", "scope": "limit:read", **whose},
        {"reason": "RATE_LIMITED", **whose},
    ]


def test_who_shows_a_certificate_at_the_port_for_keys_hears_where_it_counts(running: Running, tenant: Tenant) -> None:
    own = running.deployment.certificate(tenant.name, "backend")
    certified = Api(running.channels.to(running.key_port, (own.key_pem, own.certificate_pem)))

    heard = [refused(partial(line_of, api)) for api in (certified, running.anonymous())]

    assert {refusal.name for refusal in heard} == {"UNAUTHENTICATED CREDENTIAL_MISSING"}
    # The server sees no certificate there, so everybody is told the same.
    assert {refusal.message for refusal in heard} == {
        "no API key was sent, and a certificate counts only on the port for certificates"
    }
