"""Certificates that do not do, on either side, over real TLS: what is wrong is said where it can be known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.credit.v1.credit_line_service_pb2_grpc import CreditLineServiceStub
from riskgate_client import OutcomeUnknown, Retry, Riskgate, Unavailable, check, error_from_rpc
from riskgate_server.crypto.tls import Credential, issue_client, issue_server, new_authority
from tests.client.conftest import IMPATIENT
from tests.client.messages import got_line
from tests.client.scripted import ScriptedEngine, authority, serve

SECRET = "rgk_0123456789ab_" + "s" * 43
URI = "spiffe://riskgate/tenant/default/caller/backend"
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
ENGINE_CLOSED = "^UNAVAILABLE: the engine closed the connection: the client's own certificate "
GateTo = Callable[..., Riskgate]


@dataclass(frozen=True)
class Port:
    """A port for certificates, and clients of it."""

    engine: ScriptedEngine
    connect: GateTo

    def gate(self, own: Credential, ca: bytes = b"", retry: Retry = IMPATIENT) -> Riskgate:
        return self.connect(
            self.engine.target,
            ca=ca or authority().certificate_pem,
            certificate=own.certificate_pem,
            key=own.key_pem,
            retry=retry,
        )


@pytest.fixture
def port(connect: GateTo) -> Iterator[Port]:
    engine = ScriptedEngine()
    server = serve(engine, certificates=True)
    yield Port(engine, connect)
    server.stop(None).wait()


@pytest.fixture
def good() -> Credential:
    return issue_client(authority(), URI, NOW)


@pytest.mark.parametrize(
    ("issued", "told"),
    [
        (NOW - 900 * DAY, "has expired"),
        (NOW + 10 * DAY, "is not yet valid"),
    ],
)
def test_an_engine_out_of_its_dates_is_told_as_such_at_once(connect: GateTo, issued: datetime, told: str) -> None:
    engine = ScriptedEngine()
    server = serve(engine, own=issue_server(authority(), (), issued))
    gate = connect(engine.target, ca=authority().certificate_pem, api_key=SECRET, timeout=60.0)
    try:
        with pytest.raises(Unavailable) as failed:
            gate.ledger.capture(customer_id="ada", hold_id="T1")
    finally:
        server.stop(None).wait()

    assert failed.value.message.startswith(f"the engine's certificate, or that of its authority, {told}")
    assert not failed.value.effect_possible


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (issue_client(authority(), URI, NOW - 3 * DAY, DAY), f"expired at {NOW - 2 * DAY:%Y-%m-%d %H:%M} UTC"),
        (issue_client(authority(), URI, NOW + DAY), "is not valid before "),
        (issue_client(new_authority(NOW), URI, NOW), "was not issued by the authority in `ca`"),
        (issue_server(authority(), (), NOW), "is not one for clients"),
    ],
    ids=["expired", "not yet valid", "of another authority", "a server's"],
)
def test_why_an_engine_does_not_take_a_certificate_is_said_where_the_client_can_know(
    port: Port, own: Credential, told: str
) -> None:
    with pytest.raises(Unavailable, match=ENGINE_CLOSED + told) as failed:
        port.gate(own).ledger.capture(customer_id="ada", hold_id="T1")

    assert type(failed.value) is not OutcomeUnknown
    assert not failed.value.effect_possible
    assert "API key" not in str(failed.value)
    assert port.engine.calls == []


def test_streams_and_watches_say_it_too(port: Port) -> None:
    gate = port.gate(issue_client(authority(), URI, NOW - 3 * DAY, DAY))
    told = f"{ENGINE_CLOSED}expired at "

    with pytest.raises(Unavailable, match=told), gate.lines.watch("ada") as watch:
        next(watch)
    with pytest.raises(Unavailable, match=told):
        list(gate.risk.check_stream([check(customer_id="ada", transaction_id="T1")]))


def test_where_the_client_cannot_know_it_says_until_when_the_certificate_is_good(port: Port) -> None:
    """Of the same name as the engine's authority, and in `ca`: only the engine can tell that it is another."""
    other = new_authority(NOW)
    gate = port.gate(issue_client(other, URI, NOW, DAY), ca=other.certificate_pem + authority().certificate_pem)

    with pytest.raises(Unavailable, match="it did not take the client's own certificate") as failed:
        gate.lines.get("ada")

    assert f"valid until {NOW + DAY:%Y-%m-%d %H:%M} UTC" in failed.value.message


def test_a_stub_has_words_for_callers_of_both_kinds(port: Port) -> None:
    gate = port.gate(issue_client(new_authority(NOW), URI, NOW))

    with pytest.raises(grpc.RpcError) as failed:
        gate.stub(CreditLineServiceStub).GetCreditLine(line_pb.GetCreditLineRequest(customer_id="ada"))

    assert "to callers without a good one" in error_from_rpc(failed.value).message


def test_a_key_that_is_not_the_certificates_is_refused_before_any_call(
    connect: GateTo, tmp_path: Path, good: Credential
) -> None:
    other = issue_client(authority(), URI, NOW)
    locked = load_pem_private_key(good.key_pem, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"5f1e")
    )
    rsa_key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    faults = {
        rsa_key: "key is not the private key of the certificate",
        other.key_pem: "key is not the private key of the certificate",
        good.certificate_pem: "key is a certificate, not its private key",
        locked: "key has a password; give it without",
        good.key_pem.replace(b"M", b"!"): "key is no private key in PEM",
        b"nonsense": "key is no private key in PEM",
        b"": "key is no private key in PEM",
    }
    for key, fault in faults.items():
        (tmp_path / "own.key").write_bytes(key)
        for given, named in ((key, "the given bytes"), (tmp_path / "own.key", r".*own\.key")):
            with pytest.raises(ValueError, match=f"^{fault}: {named}$"):
                connect("localhost:7443", certificate=good.certificate_pem, key=given)


def test_a_key_in_place_of_the_certificate_is_refused_before_any_call(connect: GateTo, good: Credential) -> None:
    with pytest.raises(ValueError, match=r"^certificate is a private key, not a certificate: the given bytes$"):
        connect("localhost:7443", certificate=good.key_pem, key=good.key_pem)


def test_certificate_and_key_may_lie_in_one_file(port: Port, good: Credential) -> None:
    port.engine.plan("GetCreditLine", got_line())
    both = good.certificate_pem + good.key_pem

    port.gate(Credential(both, both)).lines.get("ada")

    assert port.engine.calls[0].certified
