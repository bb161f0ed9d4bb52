"""
Who may call what: every method of the contract, for every kind of credential.

The cells come from the service descriptors, so a new method is in the matrix as soon as it is in a proto.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import grpc
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from riskgate_server.crypto import tls
from riskgate_server.engine.callers import caller_uri
from riskgate_server.rpc import refusals
from riskgate_server.scopes import ADMIN, SCOPES
from tests.rpc.calling import Api, Refused, refused_of
from tests.rpc.contract import EVERY, OURS, SERVED, sample, scopes_of
from tests.rpc.devices import b64, jwk
from tests.rpc.logs import Lines
from tests.rpc.requests import buy, capturing, open_line, paying
from tests.rpc.serving import Running, Tenant

FORGED = f"rgk_{'0' * 12}_{'A' * 43}"


def answers(api: Api, methods: Iterable[MethodDescriptor] = EVERY) -> dict[str, str]:
    """Knock at every method and return in a word what each answered."""
    return {method.full_name: api.answer(method, sample(method).SerializeToString()) for method in methods}


def all_refused_as(answer: str) -> dict[str, str]:
    return {method.full_name: answer for method in EVERY}


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


@pytest.mark.attack("no-credential")
def test_nobody_calls_anonymously(running: Running) -> None:
    assert answers(running.anonymous()) == all_refused_as("UNAUTHENTICATED CREDENTIAL_MISSING")


@pytest.mark.parametrize(
    "presented",
    [
        FORGED, "", "x" * 5_000, "admin", "rgk_", "rgk__", f"{FORGED} ", f"{FORGED},{FORGED}",
    ],
    ids=["forged", "empty", "long", "word", "prefix", "no id", "trailing blank", "two in one"],
)  # fmt: skip
def test_a_key_that_is_no_good_opens_nothing(running: Running, presented: str) -> None:
    assert answers(running.keyed(presented)) == all_refused_as("UNAUTHENTICATED CREDENTIAL_INVALID")


@pytest.mark.parametrize("scheme", ["Basic {}", "{}", "Bearer{}", "Token {}", "Bearer  {}"])
def test_only_a_bearer_presents_a_key(running: Running, scheme: str) -> None:
    presented = (("authorization", scheme.format(running.deployment.admin_key)),)

    assert answers(running.anonymous(presented)) == all_refused_as("UNAUTHENTICATED CREDENTIAL_INVALID")


@pytest.mark.attack("claimed-identity")
def test_a_key_in_other_metadata_is_no_credential(running: Running) -> None:
    key = running.deployment.admin_key
    elsewhere = (("x-api-key", key), ("x-tenant-id", "default"), ("x-caller-id", "admin"), ("proxy-authorization", key))

    assert answers(running.anonymous(elsewhere)) == all_refused_as("UNAUTHENTICATED CREDENTIAL_MISSING")


def tokens_of(running: Running) -> Iterator[str]:
    """JWTs as somebody makes them who hopes that one is read: what is public of the server is all they need."""
    directory = running.deployment.directory
    public = x509.load_pem_x509_certificate(directory.server_certificate.read_bytes()).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    claims = {"iss": "riskgate", "sub": "admin", "aud": "riskgate", "tenant": "default", "exp": 2**40, "scope": ADMIN}
    own = ec.generate_private_key(ec.SECP256R1())
    said = b64(json.dumps(claims).encode())
    yield f"{b64(json.dumps({'alg': 'none', 'typ': 'JWT'}).encode())}.{said}."
    for secret in (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(jwk(public)).encode(),
        directory.ca_certificate.read_bytes(),
        b"",
    ):
        signed = f"{b64(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{said}"
        yield f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
    headers: list[dict[str, Any]] = [
        {"jwk": jwk(own.public_key())}, {"jku": "https://evil.example/keys"}, {"x5c": ["AA=="]},
        {"crit": ["x"], "x": 1}, {"typ": "at+jwt"},
    ]  # fmt: skip
    for header in headers:
        yield jwt.encode(claims, own, algorithm="ES256", headers=header)
    yield jwt.encode(claims | {"aud": "another"}, own, algorithm="ES256")


@pytest.mark.attack("token-for-a-key")
def test_no_token_is_a_credential_however_it_is_signed(running: Running) -> None:
    tokens = list(tokens_of(running))

    assert len(tokens) == 12
    for token in tokens:
        assert answers(running.keyed(token)) == all_refused_as("UNAUTHENTICATED CREDENTIAL_INVALID")


def test_of_two_credentials_neither_counts(running: Running) -> None:
    good = running.deployment.admin_key

    for first, second in ((good, good), (good, FORGED), (FORGED, good)):
        two = running.anonymous((*bearer(first), *bearer(second)))
        assert answers(two) == all_refused_as("UNAUTHENTICATED CREDENTIAL_AMBIGUOUS")


def test_a_key_with_a_changed_secret_opens_nothing(running: Running) -> None:
    key = running.deployment.admin_key
    changed = key[:-1] + ("A" if key[-1] != "A" else "B")

    assert answers(running.keyed(changed)) == all_refused_as("UNAUTHENTICATED CREDENTIAL_INVALID")


@pytest.mark.attack("dead-key")
def test_an_expired_key_opens_nothing(running: Running, tenant: Tenant) -> None:
    expires_us = time.time_ns() // 1000 + 100_000
    _, key = running.deployment.add_caller(ADMIN, tenant=tenant.name, expires_us=expires_us)
    caller = running.keyed(key.text)
    while time.time_ns() // 1000 < expires_us:
        caller.answer(EVERY[0], b"")

    assert answers(caller) == all_refused_as("UNAUTHENTICATED CREDENTIAL_INVALID")


@pytest.mark.attack("dead-key")
def test_a_revoked_caller_opens_nothing(running: Running, tenant: Tenant) -> None:
    name, key = running.deployment.add_caller(ADMIN, tenant=tenant.name)
    caller = running.keyed(key.text)
    before = caller.answer(EVERY[0], b"")
    running.deployment.revoke(tenant.name, name)

    assert before == "INVALID_ARGUMENT FIELD_INVALID"
    assert answers(caller) == all_refused_as("UNAUTHENTICATED CREDENTIAL_INVALID")


@pytest.mark.attack("scope-missing")
def test_every_scope_but_the_right_one_opens_nothing(tenant: Tenant) -> None:
    by_scopes: dict[frozenset[str], list[MethodDescriptor]] = {}
    for method in EVERY:
        by_scopes.setdefault(scopes_of(method), []).append(method)

    for scopes, methods in by_scopes.items():
        others = SCOPES.keys() - scopes - {ADMIN}
        if not others:
            continue  # a health check is open to whoever has any scope at all
        stranger = tenant.caller(*others)
        for method in methods:
            with pytest.raises(grpc.RpcError) as error:
                stranger.send(method, sample(method).SerializeToString())
            refusal = refused_of(error.value)
            assert refusal.name == "PERMISSION_DENIED SCOPE_MISSING", method.full_name
            assert refusal.metadata == {"scope": next(iter(scopes))}


def past_the_door(answer: str) -> bool:
    return not answer.startswith(("UNAUTHENTICATED", "PERMISSION_DENIED SCOPE", "INTERNAL", "UNKNOWN"))


def test_the_right_scope_alone_opens_its_methods(tenant: Tenant) -> None:
    open_line(tenant.api)
    closed: list[str] = []

    for scope in sorted({min(scopes_of(method)) for method in OURS} | {"reflection:read", "risk:history"}):
        caller = tenant.caller(scope)
        mine = [method for method in EVERY if scope in scopes_of(method)]
        closed += [f"{name}: {said}" for name, said in answers(caller, mine).items() if not past_the_door(said)]

    assert closed == []


def test_an_administrator_opens_everything(tenant: Tenant) -> None:
    open_line(tenant.api)

    answered = answers(tenant.api)

    assert {name: said for name, said in answered.items() if not past_the_door(said)} == {}
    unserved = {method.full_name for method in OURS if answered[method.full_name].startswith("UNIMPLEMENTED")}
    assert unserved == {method.full_name for method in OURS} - {method.full_name for method in SERVED}
    assert {answered[name] for name in unserved} == {"UNIMPLEMENTED NOT_SERVED_YET"}


def test_each_refusal_is_in_the_log_once(
    running: Running, tenant: Tenant, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "LINES_MAX", 1_000_000)
    stranger = tenant.caller("otp:send")

    running.anonymous().answer(EVERY[0], b"")
    running.keyed(FORGED).answer(EVERY[0], b"")
    stranger.answer(EVERY[0], b"")
    tenant.api.answer(EVERY[0], b"")  # invalid, and nobody's business

    assert [event["reason"] for event in log.of("call refused")] == [
        "CREDENTIAL_MISSING", "CREDENTIAL_INVALID", "SCOPE_MISSING",
    ]  # fmt: skip


def test_a_method_nobody_wrote_is_unimplemented(api: Api) -> None:
    assert api.answer("/riskgate.risk.v1.RiskService/Nothing", b"") == "UNIMPLEMENTED"
    assert api.answer("/riskgate.risk.v2.RiskService/CheckTransaction", b"") == "UNIMPLEMENTED"


# --- Certificates ---


def test_a_certificate_opens_what_its_callers_scopes_say(running: Running, tenant: Tenant) -> None:
    name, _ = running.deployment.add_caller("reflection:read", tenant=tenant.name, certificates=True)
    certified = running.certified(running.deployment.certificate(tenant.name, name))

    answered = answers(certified)

    opened = {name for name, said in answered.items() if past_the_door(said)}
    assert opened == {method.full_name for method in EVERY if method not in OURS}
    assert {said for name, said in answered.items() if name not in opened} == {"PERMISSION_DENIED SCOPE_MISSING"}


def test_identity_claimed_in_metadata_counts_for_nothing_beside_a_certificate(running: Running, tenant: Tenant) -> None:
    name, _ = running.deployment.add_caller("limit:read", tenant=tenant.name, certificates=True)
    claims = (
        *bearer(running.deployment.admin_key), ("x-tenant-id", "default"),
        ("x-forwarded-client-cert", f"URI={caller_uri('default', 'admin')}"),
    )  # fmt: skip
    certified = running.certified(running.deployment.certificate(tenant.name, name), claims)

    opened = {name for name, said in answers(certified, OURS).items() if past_the_door(said)}

    assert opened == {method.full_name for method in OURS if scopes_of(method) == {"limit:read"}}


def test_a_key_is_no_credential_at_the_port_for_certificates(running: Running) -> None:
    port = running.certificate_port
    without = Api(running.channels.to(port), bearer(running.deployment.admin_key))

    # TLS itself refuses: the handshake needs a certificate.
    assert without.answer(EVERY[0], b"", timeout=2) == "UNAVAILABLE"


def test_a_certificate_is_no_credential_at_the_port_for_keys(running: Running, tenant: Tenant) -> None:
    name, _ = running.deployment.add_caller(ADMIN, tenant=tenant.name, certificates=True)
    own = running.deployment.certificate(tenant.name, name)
    api = Api(running.channels.to(running.key_port, (own.key_pem, own.certificate_pem)))

    assert answers(api) == all_refused_as("UNAUTHENTICATED CREDENTIAL_MISSING")


@pytest.mark.attack("foreign-certificate")
def test_a_certificate_of_another_authority_does_not_get_through_the_handshake(running: Running) -> None:
    uri = caller_uri("default", "admin")
    now = datetime.now(UTC)

    foreign = running.certified(tls.issue_client(tls.new_authority(now), uri, now))

    assert foreign.answer(EVERY[0], b"", timeout=2) == "UNAVAILABLE"


def issue(authority: tls.Credential, *names: x509.GeneralName) -> tls.Credential:
    """Issue a client certificate of these alternative names, however wrong."""
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem)
    signer = load_pem_private_key(authority.key_pem, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    good = x509.load_pem_x509_certificate(
        tls.issue_client(authority, caller_uri("default", "admin"), datetime.now(UTC)).certificate_pem
    )
    builder = x509.CertificateBuilder(
        issuer_name=issuer.subject, subject_name=good.subject, public_key=key.public_key(),
        serial_number=good.serial_number, not_valid_before=good.not_valid_before_utc,
        not_valid_after=good.not_valid_after_utc,
    )  # fmt: skip
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return tls.Credential(
        builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _uris(*texts: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(text) for text in texts]


WRONG_NAMES: Final[dict[str, Callable[[str], list[x509.GeneralName]]]] = {
    "none": lambda mine: [],
    "a host's": lambda mine: [x509.DNSName("backend")],
    "two callers'": lambda mine: _uris(mine, caller_uri("default", "other")),
    "two, the other first": lambda mine: _uris(caller_uri("default", "other"), mine),
    "twice its own": lambda mine: _uris(mine, mine),
    "of another trust domain": lambda mine: _uris(mine.replace("//riskgate", "//elsewhere")),
    "longer": lambda mine: _uris(f"{mine}/more"),
    "with a query": lambda mine: _uris(f"{mine}?tenant=default"),
    "capitals": lambda mine: _uris(mine.upper()),
    "nobody's": lambda mine: _uris(f"{mine}x"),
    "one who was never allowed certificates": lambda mine: _uris(caller_uri("default", "admin")),
}


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_certificate_that_does_not_name_exactly_one_caller_opens_nothing(
    running: Running, tenant: Tenant, name: str
) -> None:
    caller, _ = running.deployment.add_caller(ADMIN, tenant=tenant.name, certificates=True)
    mine = caller_uri(tenant.name, caller)
    good = running.certified(issue(running.deployment.authority, *_uris(mine)))
    bad = running.certified(issue(running.deployment.authority, *WRONG_NAMES[name](mine)))

    assert good.answer(EVERY[0], b"") == "INVALID_ARGUMENT FIELD_INVALID"
    assert answers(bad) == all_refused_as("UNAUTHENTICATED CREDENTIAL_INVALID")


# --- Other tenants ---


# SendCode answers for customers who do not exist too, each time with another challenge: see test_codes.
JOURNAL = next(method for method in SERVED if method.name == "ListEntries")

# Where a code is asked or given it is not even said whether the customer exists, only that there is no such proof.
UNTOLD = {
    "ConfirmFactor": "NOT_FOUND FACTOR_NOT_FOUND",
    "ResendCode": "NOT_FOUND CHALLENGE_NOT_FOUND",
    "VerifyCode": "NOT_FOUND CHALLENGE_NOT_FOUND",
    "VerifyRecoveryCode": "FAILED_PRECONDITION FACTOR_NOT_ACTIVE",
    "BeginChallenge": "NOT_FOUND DEVICE_NOT_FOUND",
    "VerifyChallenge": "NOT_FOUND CHALLENGE_NOT_FOUND",
}
LISTED_AS_NONE = {"ListFactors", "ListDevices"}


def furnish(api: Api) -> None:
    """Give a tenant everything a request of the samples may name."""
    open_line(api)
    buy(api, transaction_id="t-1")
    api.ledger.CaptureHold(capturing("t-1", 500))
    api.ledger.RecordPayment(paying(1, payment_id="p-1"))


def without_token(method: MethodDescriptor, raw: bytes) -> bytes:
    """Leave the token to resume from out of an answer: no two are alike, whatever they stand for."""
    response = message_factory.GetMessageClass(method.output_type).FromString(raw)
    if "resume_token" in method.output_type.fields_by_name:
        response.ClearField("resume_token")
    return bytes(response.SerializeToString())


@pytest.mark.parametrize(
    "method", [m for m in SERVED if m.name not in {"OpenCreditLine", "SendCode"}], ids=lambda method: method.name
)
def test_another_tenants_objects_are_as_absent_as_those_that_never_were(
    running: Running, method: MethodDescriptor
) -> None:
    owner, absent, stranger = running.tenant(), running.tenant(), running.tenant()
    furnish(owner.api)
    before = owner.api.send(JOURNAL, b"\n\x03ada")
    raw = sample(method).SerializeToString()

    replies: list[bytes | Refused] = []
    for tenant in (stranger, absent):
        try:
            replies.append(without_token(method, tenant.api.send(method, raw)))
        except grpc.RpcError as error:
            replies.append(refused_of(error))

    # `absent` and `stranger` know no customer at all: the same words whether or not somebody else knows one.
    assert replies[0] == replies[1]
    assert owner.api.send(JOURNAL, b"\n\x03ada") == before
    if method.name in LISTED_AS_NONE:
        assert replies[0] == b""
    elif not method.server_streaming and "Batch" not in method.name:
        assert isinstance(replies[0], Refused)
        assert replies[0].name == UNTOLD.get(method.name, "NOT_FOUND CUSTOMER_NOT_FOUND")
