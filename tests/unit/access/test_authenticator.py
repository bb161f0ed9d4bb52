from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskgate_server.domain.errors import ResourceExhausted, RiskgateError, Unauthenticated
from riskgate_server.engine.callers import CertificateRecord, caller_uri
from riskgate_server.rpc.callers import Authenticator, Caller, RateLimits, TokenBucket
from riskgate_server.scopes import SCOPES
from riskgate_server.stores.access.memory import MemoryCallers

BACKEND, OTHER = ("bank", "backend"), ("shop", "backend")
SECRET = bytes(range(32))
DER = b"stands for a certificate"
SHA256 = hashlib.sha256(DER).digest()
PEM = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(DER) + b"-----END CERTIFICATE-----\n"
ONE_ANSWER = "CREDENTIAL_INVALID: the credential is unknown, wrong, expired or revoked"


class Clock:
    us = 1_000_000

    def __call__(self) -> int:
        return self.us


class Call:
    """The part of gRPC's context that tells who calls."""

    def __init__(self, auth_context: Mapping[str, list[bytes]], metadata: tuple[tuple[str, Any], ...] = ()) -> None:
        self._auth_context = auth_context
        self._metadata = metadata

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return self._auth_context

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._metadata


@pytest.fixture
def callers() -> MemoryCallers:
    callers = MemoryCallers()
    callers.put(BACKEND, scopes=["risk:check"])
    callers.put(OTHER, scopes=["limit:read"])
    return callers


@pytest.fixture
def key(callers: MemoryCallers) -> str:
    return callers.put_key(BACKEND, SECRET)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def door(callers: MemoryCallers, clock: Clock) -> Authenticator:
    return Authenticator(callers, clock=clock)


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("user-agent", "grpc"), ("authorization", f"Bearer {key}"))


def certificate(*uris: str, pem: bytes = PEM) -> dict[str, list[bytes]]:
    context = {"transport_security_type": [b"ssl"], "x509_pem_cert": [pem]}
    if uris:
        context["peer_uri"] = [uri.encode() for uri in uris]
    return context


def refused(reason: str, call: Any, *arguments: Any) -> str:
    with pytest.raises(Unauthenticated) as refusal:
        call(*arguments)
    assert refusal.value.reason == reason
    return str(refusal.value)


def test_a_key_is_its_callers(door: Authenticator, key: str) -> None:
    for _ in range(2):
        caller = door.by_key(bearer(key))
        assert (caller.tenant_id, caller.caller_id, caller.scopes) == ("bank", "backend", frozenset({"risk:check"}))
        assert caller.credential_id == key[4:16]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(door: Authenticator, key: str, scheme: str) -> None:
    assert door.by_key((("authorization", f"{scheme} {key}"),)).caller_id == "backend"


def test_no_key_is_missing_and_says_so(door: Authenticator) -> None:
    refused("CREDENTIAL_MISSING", door.by_key, None)
    refused("CREDENTIAL_MISSING", door.by_key, ())
    refused("CREDENTIAL_MISSING", door.by_key, (("x-api-key", "rgk_"), ("authorization2", "Bearer x")))


def test_two_keys_are_refused_even_when_both_or_the_same_are_good(
    door: Authenticator, callers: MemoryCallers, key: str
) -> None:
    other = callers.put_key(OTHER, SECRET, number=1)
    for first, second in ((key, other), (other, key), (key, key), (key, "x"), ("x", key)):
        refused("CREDENTIAL_AMBIGUOUS", door.by_key, (*bearer(first), *bearer(second)))


def test_every_way_to_be_no_good_has_one_and_the_same_answer(
    door: Authenticator, callers: MemoryCallers, key: str, clock: Clock
) -> None:
    wrong_secret = key[:-5] + "AAAAA"
    answers = [
        refused("CREDENTIAL_INVALID", door.by_key, metadata)
        for metadata in (
            bearer(wrong_secret),
            bearer(key[:4] + "zzzzzzzzzzzz" + key[16:]),
            bearer(callers.put_key(BACKEND, SECRET, number=2, active=False)),
            bearer(callers.put_key(BACKEND, SECRET, number=3, expires_us=clock.us)),
            bearer(callers.put_key(("bank", "nobody"), SECRET, number=4)),
            bearer(""),
            bearer(f"{key},{key}"),
            bearer(f" {key}"),
            bearer(key + "\u00e9\ud800"),
            (("authorization", key),),
            (("authorization", ""),),
            (("authorization", f"Basic {key}"),),
            (("authorization", f"Bearer {key}".encode()),),
        )
    ]
    callers.put(BACKEND, scopes=["risk:check"], enabled=False)
    answers.append(refused("CREDENTIAL_INVALID", door.by_key, bearer(key)))

    assert set(answers) == {ONE_ANSWER}


@given(presented=st.text() | st.binary())
def test_nothing_that_was_not_issued_opens_the_door(presented: str | bytes) -> None:
    callers = MemoryCallers()
    callers.put(BACKEND, scopes=["admin"])
    callers.put_key(BACKEND, SECRET)

    refused("CREDENTIAL_INVALID", Authenticator(callers).by_key, (("authorization", presented),))


def test_two_keys_of_a_caller_work_side_by_side(door: Authenticator, callers: MemoryCallers, key: str) -> None:
    second = callers.put_key(BACKEND, bytes(32), number=1)

    assert {door.by_key(bearer(each)).caller_id for each in (key, second)} == {"backend"}


def test_a_key_that_was_good_a_moment_ago_stops_with_its_expiry_its_revocation_and_its_caller(
    door: Authenticator, callers: MemoryCallers, clock: Clock
) -> None:
    key = callers.put_key(BACKEND, SECRET, expires_us=clock.us + 10)
    door.by_key(bearer(key))
    clock.us += 9
    door.by_key(bearer(key))
    clock.us += 1
    refused("CREDENTIAL_INVALID", door.by_key, bearer(key))

    key = callers.put_key(BACKEND, SECRET)
    door.by_key(bearer(key))
    callers.put_key(BACKEND, SECRET, active=False)
    refused("CREDENTIAL_INVALID", door.by_key, bearer(key))

    key = callers.put_key(BACKEND, SECRET)
    door.by_key(bearer(key))
    callers.put(BACKEND, scopes=["risk:check"], enabled=False)
    refused("CREDENTIAL_INVALID", door.by_key, bearer(key))


def test_narrowed_scopes_count_from_the_next_call(door: Authenticator, callers: MemoryCallers, key: str) -> None:
    assert door.by_key(bearer(key)).may("risk:check")
    callers.put(BACKEND, scopes=["limit:read"])

    assert not door.by_key(bearer(key)).may("risk:check")


def test_a_certificate_is_the_caller_it_names(door: Authenticator) -> None:
    for _ in range(2):
        caller = door.by_certificate(certificate(caller_uri(*BACKEND)))
        assert (caller.tenant_id, caller.caller_id) == BACKEND
        assert caller.credential_id == SHA256.hex()[:16]


def test_the_tenant_of_a_certificate_is_part_of_who_it_is(door: Authenticator) -> None:
    assert door.by_certificate(certificate(caller_uri(*OTHER), pem=PEM + b" ")).tenant_id == "shop"
    refused("CREDENTIAL_INVALID", door.by_certificate, certificate(caller_uri("third", "backend")))


def test_a_certificate_that_does_not_name_exactly_one_caller_is_refused(door: Authenticator) -> None:
    good = caller_uri(*BACKEND)
    for uris in ((), (good, good), (good, "https://example.com"), ("https://example.com",), (good + "/",), ("",)):
        assert refused("CREDENTIAL_INVALID", door.by_certificate, certificate(*uris)) == ONE_ANSWER


def test_a_caller_that_is_disabled_or_may_not_use_certificates_is_refused(
    door: Authenticator, callers: MemoryCallers
) -> None:
    door.by_certificate(certificate(caller_uri(*BACKEND)))
    for change in ({"enabled": False}, {"certificates_allowed": False}):
        callers.put(BACKEND, scopes=["risk:check"], **change)
        refused("CREDENTIAL_INVALID", door.by_certificate, certificate(caller_uri(*BACKEND)))


def test_a_certificate_that_was_revoked_has_expired_or_was_issued_to_another_is_refused(
    door: Authenticator, callers: MemoryCallers, clock: Clock
) -> None:
    context = certificate(caller_uri(*BACKEND))
    callers.put_certificate(CertificateRecord(SHA256, *BACKEND, 0, clock.us + 10, active=True))
    door.by_certificate(context)
    clock.us += 10
    refused("CREDENTIAL_INVALID", door.by_certificate, context)
    callers.put_certificate(CertificateRecord(SHA256, *BACKEND, 0, clock.us + 10, active=False))
    refused("CREDENTIAL_INVALID", door.by_certificate, context)
    callers.put_certificate(CertificateRecord(SHA256, *OTHER, 0, clock.us + 10, active=True))

    refused("CREDENTIAL_INVALID", door.by_certificate, context)


def test_with_a_certificate_metadata_counts_for_nothing(door: Authenticator, callers: MemoryCallers, key: str) -> None:
    other = callers.put_key(OTHER, SECRET, number=1)
    claims = (*bearer(other), *bearer(key), ("x-tenant-id", "shop"), ("x-caller", "admin"))

    assert door.authenticate(Call(certificate(caller_uri(*BACKEND)), claims)).tenant_id == "bank"
    refused("CREDENTIAL_INVALID", door.authenticate, Call(certificate("https://x.org", pem=PEM + b" "), bearer(key)))


def test_without_a_certificate_the_key_counts_and_without_tls_nothing_does(door: Authenticator, key: str) -> None:
    assert door.authenticate(Call({"transport_security_type": [b"ssl"]}, bearer(key))).tenant_id == "bank"
    refused("CREDENTIAL_MISSING", door.authenticate, Call({"transport_security_type": [b"ssl"]}))
    refused("CREDENTIAL_MISSING", door.authenticate, Call({}, bearer(key)))
    refused("CREDENTIAL_MISSING", door.authenticate, Call({"transport_security_type": [b"insecure"]}, bearer(key)))


def test_a_stream_learns_that_its_caller_was_revoked_narrowed_or_lost_its_credential(
    door: Authenticator, callers: MemoryCallers, key: str, clock: Clock
) -> None:
    by_key = door.by_key(bearer(key))
    by_certificate = door.by_certificate(certificate(caller_uri(*BACKEND)))
    callers.put(BACKEND, scopes=["limit:read"])
    assert door.confirm(by_key).scopes == {"limit:read"}
    assert door.confirm(by_certificate).scopes == {"limit:read"}

    callers.put_certificate(CertificateRecord(SHA256, *BACKEND, 0, clock.us + 10, active=False))
    refused("CREDENTIAL_INVALID", door.confirm, by_certificate)
    callers.put_key(BACKEND, SECRET, active=False)
    refused("CREDENTIAL_INVALID", door.confirm, by_key)
    key = callers.put_key(BACKEND, SECRET)
    door.confirm(by_key)
    callers.put(BACKEND, scopes=["limit:read"], enabled=False)
    refused("CREDENTIAL_INVALID", door.confirm, by_key)


def test_what_is_remembered_is_bounded_and_holds_no_clear_key(
    door: Authenticator, callers: MemoryCallers, key: str
) -> None:
    door.by_key(bearer(key))

    assert key not in repr(door._by_key)
    for number in range(1, 20):
        door.by_certificate(certificate(caller_uri(*BACKEND), pem=PEM + b" " * number))
    assert len(door._by_certificate) == 19


@pytest.mark.parametrize("scope", [*SCOPES, "not:yet:known"])
def test_a_scope_is_held_only_if_granted_and_an_administrator_holds_every_one(scope: str) -> None:
    def caller(*scopes: str) -> Caller:
        return Caller("t", "c", frozenset(scopes), 1, 1, "k")

    assert caller(scope).may(scope)
    assert caller("admin").may(scope)
    assert not caller().may(scope)
    assert not caller("risk").may(scope)


def test_a_method_without_a_scope_is_nobodys_not_even_an_administrators() -> None:
    assert not Caller("t", "c", frozenset({"admin", ""}), 1, 1, "k").may("")


class Ticks:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def limited(rate: int, burst: int) -> Caller:
    return Caller("bank", "backend", frozenset(), rate, burst, "k")


def test_a_burst_passes_and_then_the_rate_says_when_to_come_back() -> None:
    ticks = Ticks()
    limits = RateLimits(ticks)
    caller = limited(rate=10, burst=3)
    for _ in range(3):
        limits.take(caller)
    with pytest.raises(ResourceExhausted) as refusal:
        limits.take(caller)
    assert refusal.value.reason == "RATE_LIMITED"
    assert refusal.value.retry_after_seconds == pytest.approx(0.1)

    ticks.now += refusal.value.retry_after_seconds
    limits.take(caller)
    with pytest.raises(ResourceExhausted):
        limits.take(caller)


def test_a_refused_call_costs_nothing() -> None:
    ticks = Ticks()
    limits = RateLimits(ticks)
    caller = limited(rate=1, burst=1)
    limits.take(caller)
    for _ in range(1000):
        with pytest.raises(ResourceExhausted):
            limits.take(caller)
    ticks.now += 1

    limits.take(caller)


def test_a_batch_above_the_burst_passes_when_the_bucket_is_full_and_is_worked_off() -> None:
    ticks = Ticks()
    limits = RateLimits(ticks)
    caller = limited(rate=10, burst=5)
    limits.take(caller, cost=25)
    with pytest.raises(ResourceExhausted) as refusal:
        limits.take(caller)

    assert refusal.value.retry_after_seconds == pytest.approx(2.1)


def test_a_batch_above_the_burst_comes_back_when_told_although_coming_in_costs() -> None:
    ticks = Ticks()
    limits = RateLimits(ticks)
    caller = limited(rate=10, burst=5)
    for _ in range(3):
        limits.take(caller)
    limits.take(caller)
    with pytest.raises(ResourceExhausted) as refusal:
        limits.take(caller, cost=25, taken=1)
    ticks.now += refusal.value.retry_after_seconds

    limits.take(caller)
    limits.take(caller, cost=25, taken=1)
    with pytest.raises(ResourceExhausted) as refusal:
        limits.take(caller)

    assert refusal.value.retry_after_seconds == pytest.approx(2.1)


def test_credentials_of_one_caller_share_its_rate_and_callers_do_not() -> None:
    limits = RateLimits(Ticks())
    limits.take(limited(rate=1, burst=1))
    with pytest.raises(ResourceExhausted):
        limits.take(Caller("bank", "backend", frozenset(), 1, 1, "another key"))

    limits.take(Caller("shop", "backend", frozenset(), 1, 1, "k"))


def test_a_changed_rate_counts_at_once() -> None:
    ticks = Ticks()
    limits = RateLimits(ticks)
    limits.take(limited(rate=1, burst=1))
    ticks.now += 0.1
    with pytest.raises(ResourceExhausted):
        limits.take(limited(rate=1, burst=1))
    ticks.now += 0.1

    limits.take(limited(rate=10, burst=1))


@given(
    rate=st.integers(1, 1000),
    burst=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(-1, 5), st.integers(1, 50)), max_size=60),
)
def test_never_more_passes_than_burst_and_rate_allow(rate: int, burst: int, steps: list[tuple[float, int]]) -> None:
    now = started = latest = 0.0
    bucket = TokenBucket(burst, now)
    passed = 0
    for pause, cost in steps:
        now += pause
        latest = max(latest, now)
        wait = bucket.take(cost, rate_per_second=rate, burst=burst, now=now)
        assert wait >= 0
        if wait == 0:
            passed += cost
            # One call may exceed the burst by its own cost, when the bucket was full.
            assert passed <= burst + (latest - started) * rate + max(0, cost - burst) + 1e-6 + 50


def test_refusals_are_the_engines_own_errors() -> None:
    assert issubclass(Unauthenticated, RiskgateError)
    assert issubclass(ResourceExhausted, RiskgateError)
