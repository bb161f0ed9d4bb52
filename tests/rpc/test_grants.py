"""Grants over the wire: each opens, once, what it was made for, and who offers it for anything else has lost it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from riskgate.identity.v1 import otp_service_pb2 as pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from tests.rpc.attacks import NO_GRANT, OTHER_GRANT, WEAK_GRANT
from tests.rpc.calling import REPEATS, answer, at_once, refused
from tests.rpc.phones import (
    binding_grant,
    code_of,
    confirmed_phone,
    enrolled_app,
    granted,
    sent,
    verify,
    whose,
)
from tests.rpc.requests import buy, buying, money, open_line, resuming
from tests.rpc.serving import Running, Tenant


def resumed(tenant: Tenant, transaction_id: str, token: str, customer: str = "ada") -> str:
    return answer(lambda: tenant.api.risk.CheckTransaction(resuming(transaction_id, token, customer)))


@pytest.mark.attack("grant-at-once")
def test_a_grant_used_64_times_at_once_buys_once(tenant: Tenant) -> None:
    for n in range(REPEATS):
        customer = f"c{n}"
        open_line(tenant.api, customer)
        confirmed_phone(tenant, customer, f"+86 137 {n:04d} 0000")
        asked = buy(tenant.api, customer, amount=1_000, phone="ask")
        assert asked.outcome == risk_pb.OUTCOME_STEP_UP
        token = granted(tenant, asked.transaction_id, customer)
        resumes = [resuming(asked.transaction_id, token, customer) for _ in range(64)]

        found = at_once([partial(tenant.api.risk.CheckTransaction, resume) for resume in resumes])
        assert found == {"OK": 1, "FAILED_PRECONDITION STEP_UP_NOT_ASKED": 63}


@pytest.mark.attack("binding-at-once")
def test_a_grant_used_64_times_at_once_binds_once(tenant: Tenant) -> None:
    for n in range(REPEATS):
        customer = f"c{n}"
        open_line(tenant.api, customer)
        confirmed_phone(tenant, customer, f"+86 137 {n:04d} 0000")
        token = binding_grant(tenant, customer)
        apps = [pb.EnrollTotpRequest(**whose(customer), label="an app", binding_grant=token) for _ in range(64)]

        assert at_once([partial(tenant.api.otp.EnrollTotp, app) for app in apps]) == {"OK": 1, NO_GRANT: 63}


@pytest.mark.attack("grant-for-other-purchase")
@pytest.mark.parametrize(
    "other",
    [
        {"amount": 10_000},
        {"merchant": risk_pb.Merchant(merchant_id="other-shop")},
        {"currency": "USD", "line_id": "dollars"},
        {"line_id": "second"},
    ],
    ids=["amount", "payee", "currency", "line"],
)
def test_a_grant_for_one_purchase_is_void_once_it_is_offered_for_another(phone: Tenant, other: dict[str, Any]) -> None:
    open_line(phone.api, line_id="dollars", currency="USD")
    open_line(phone.api, line_id="second")
    own, foreign = (buy(phone.api, **{"line_id": "main", "phone": "ask", **fields}) for fields in ({}, other))
    assert {own.outcome, foreign.outcome} == {risk_pb.OUTCOME_STEP_UP}
    token = granted(phone, own.transaction_id)

    assert resumed(phone, foreign.transaction_id, token) == OTHER_GRANT
    assert resumed(phone, own.transaction_id, token) == NO_GRANT
    assert resumed(phone, foreign.transaction_id, token) == NO_GRANT


@pytest.mark.attack("grant-of-other-customer")
def test_a_grant_is_void_once_another_customer_offered_it(phone: Tenant) -> None:
    open_line(phone.api, "bo")
    own, of_bo = (buy(phone.api, customer, phone="ask").transaction_id for customer in ("ada", "bo"))
    token = granted(phone, own)
    rehearsal = resuming(own, token, validate_only=True)
    assert phone.api.risk.CheckTransaction(rehearsal).decision.outcome == risk_pb.OUTCOME_APPROVE

    assert resumed(phone, of_bo, token, "bo") == NO_GRANT
    assert resumed(phone, own, token) == NO_GRANT


@pytest.mark.attack("grant-of-other-tenant")
def test_another_tenants_grant_opens_nothing_even_for_what_has_the_same_names(phone: Tenant, running: Running) -> None:
    """And it stays theirs: what one tenant does must not even be felt by another."""
    own = buy(phone.api, phone="ask")
    token = granted(phone, own.transaction_id)
    stranger = running.tenant()
    open_line(stranger.api)
    assert resumed(stranger, own.transaction_id, token) == "NOT_FOUND TRANSACTION_NOT_FOUND"

    buy(stranger.api, phone="ask", transaction_id=own.transaction_id)
    assert resumed(stranger, own.transaction_id, token) == NO_GRANT
    assert resumed(phone, own.transaction_id, token) == "OK"


@pytest.mark.attack("weak-grant")
def test_a_code_is_not_enough_for_half_the_limit(phone: Tenant) -> None:
    asked = buy(phone.api, amount=50_000, phone="ask")
    assert asked.step_up.required_level == 2

    assert resumed(phone, asked.transaction_id, granted(phone, asked.transaction_id)) == WEAK_GRANT


@pytest.mark.attack("sign-in-grant")
def test_a_grant_to_sign_in_neither_buys_nor_binds(phone: Tenant) -> None:
    asked = buy(phone.api, phone="ask")
    tokens = []
    for _ in range(2):
        challenge_id = sent(phone)
        tokens.append(verify(phone, challenge_id, code_of(phone, challenge_id)).token)

    assert resumed(phone, asked.transaction_id, tokens[0]) == OTHER_GRANT
    assert answer(lambda: enrolled_app(phone, tokens[1])) == OTHER_GRANT


@pytest.mark.attack("changed-amount")
def test_the_amount_of_a_purchase_that_waits_cannot_be_changed(phone: Tenant) -> None:
    asked = buy(phone.api, amount=1_000, phone="ask")
    token = granted(phone, asked.transaction_id)

    assert answer(
        lambda: buy(phone.api, amount=10_000, transaction_id=asked.transaction_id)
    ) == "FAILED_PRECONDITION TRANSACTION_CHANGED"  # fmt: skip
    both = resuming(asked.transaction_id, token, amount=money(10_000))
    assert refused(lambda: phone.api.risk.CheckTransaction(both)).fields.keys() == {"amount"}
    held = phone.api.risk.CheckTransaction(resuming(asked.transaction_id, token)).decision
    assert (held.outcome, held.held_amount.amount_minor) == (risk_pb.OUTCOME_APPROVE, 1_000)


def test_a_purchase_in_a_batch_takes_a_grant_too(phone: Tenant) -> None:
    asked = buy(phone.api, amount=1_000, phone="ask")
    items = [resuming(asked.transaction_id, granted(phone, asked.transaction_id)), buying(amount=5)]
    results = phone.api.risk.BatchCheckTransactions(risk_pb.BatchCheckTransactionsRequest(checks=items)).results

    assert [result.decision.outcome for result in results] == [risk_pb.OUTCOME_APPROVE] * 2
