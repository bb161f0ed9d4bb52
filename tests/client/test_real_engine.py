"""The clients with the real engine: one customer's story, and a stream that outlives its engine."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import riskgate_client
from riskgate.operations.v1 import caller_service_pb2 as caller_pb
from riskgate.operations.v1.caller_service_pb2_grpc import CallerServiceStub
from riskgate_client import (
    AlreadyExists,
    BlockKind,
    Call,
    Decision,
    FailedPrecondition,
    HoldState,
    InvalidRequest,
    Label,
    LineState,
    Location,
    Money,
    NotFound,
    Outcome,
    PaymentState,
    PermissionDenied,
    ResourceExhausted,
    Retry,
    Riskgate,
    RiskgateError,
    RuleResult,
    Unauthenticated,
    Unimplemented,
    check,
    error_from_rpc,
)
from riskgate_server.stores.access import registry
from tests.acceptance.deployment import Deployment as Process
from tests.acceptance.deployment import answer
from tests.client.drivers import Connect
from tests.rpc.serving import Deployment, Loop, Running, Tenant, serving

LIMIT = Money("CNY", 500_000)


@pytest.fixture(scope="module")
def running(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A real engine, for all tests of this file."""
    deployment = Deployment(tmp_path_factory.mktemp("client") / "data")
    with pytest.MonkeyPatch.context() as patch:
        # Every test adds a caller, and would wait a second for it to be known.
        patch.setattr(registry, "CHECK_SECONDS", 0.0)
        with serving(loop, deployment) as running:
            yield running
    deployment.close()


@pytest.fixture
def tenant(running: Running) -> Tenant:
    return running.tenant()


def connected(connect: Connect, tenant: Tenant, *scopes: str, retry: Retry | None = None, **how: Any) -> Riskgate:
    """Connect as a new caller of a tenant."""
    running = tenant.running
    _, key = running.deployment.add_caller(*scopes, tenant=tenant.name, **how)
    target = f"localhost:{running.key_port}"
    return connect(target, ca=running.deployment.directory.ca_certificate, api_key=key.text, retry=retry)


@pytest.fixture
def gate(connect: Connect, tenant: Tenant) -> Riskgate:
    """The administrator of a tenant whose only customer, ada, has a line of 5,000.00 yuan."""
    gate = connected(connect, tenant, "admin")
    gate.lines.open(customer_id="ada", line_id="main", limit=LIMIT, decision_reference="A-17", actor_id="ops")
    return gate


def buy(gate: Riskgate, transaction_id: str = "T1", amount: int = 12_900, device_id: str = "phone-1") -> Decision:
    return gate.risk.check(
        customer_id="ada",
        transaction_id=transaction_id,
        amount=Money("CNY", amount),
        merchant_id="M1",
        merchant_category_code="5411",
        merchant_country_code="CN",
        device_id=device_id,
        ip_address="192.0.2.7",
        location=Location(31.23, 121.47),
    )


def purchase(number: int, customer_id: str = "ada") -> Call[Decision]:
    amount = Money("CNY", 1)
    return check(customer_id=customer_id, transaction_id=f"T{number}", amount=amount, merchant_id="M1")


def test_a_purchase_from_check_to_refund(gate: Riskgate) -> None:
    decision = buy(gate)
    held = gate.ledger.get_hold(customer_id="ada", hold_id="T1")
    raised = gate.ledger.increment(customer_id="ada", hold_id="T1", amount=Money("CNY", 100))
    captured = gate.ledger.capture(customer_id="ada", hold_id="T1")
    refund = gate.ledger.refund(customer_id="ada", hold_id="T1", amount=Money("CNY", 1_000))
    line = gate.lines.get("ada")

    assert decision.approved
    assert decision.held_amount == Money("CNY", 12_900)
    assert decision.available_after == Money("CNY", 487_100)
    assert held.state is HoldState.PENDING
    assert raised.remaining == Money("CNY", 13_000)
    assert captured.state is HoldState.CAPTURED
    assert refund.hold.refunded == Money("CNY", 1_000)
    assert refund.to_customer_credit == Money("CNY", 0)
    assert line.limit == LIMIT
    assert line.available == Money("CNY", 488_000)
    assert line.outstanding == Money("CNY", 12_000)
    assert line.state is LineState.ACTIVE


def test_a_payment_and_its_return(gate: Riskgate) -> None:
    buy(gate)
    gate.ledger.capture(customer_id="ada", hold_id="T1")

    paid = gate.ledger.record_payment(customer_id="ada", payment_id="P1", amount=Money("CNY", 20_000))
    returned = gate.ledger.reverse_payment(
        customer_id="ada", payment_id="P1", reason_code="RETURNED_BY_BANK", actor_id="ops"
    )

    assert [(share.transaction_id, share.amount) for share in paid.payment.allocations] == [
        ("T1", Money("CNY", 12_900))
    ]
    assert paid.payment.to_customer_credit == Money("CNY", 7_100)
    assert paid.available == LIMIT
    assert returned.payment.state is PaymentState.REVERSED
    assert returned.available == Money("CNY", 487_100)


def test_an_expected_no_is_an_answer(gate: Riskgate) -> None:
    declined = buy(gate, amount=500_001)
    asked = buy(gate, "T2", device_id="ask")
    looked_at = buy(gate, "T3", device_id="look")

    assert (declined.outcome, declined.reason_codes) == (Outcome.DECLINE, ("CREDIT_LIMIT_EXCEEDED",))
    assert declined.reasons[0].text("zh-Hans")
    assert declined.held_amount is None
    assert asked.outcome is Outcome.STEP_UP
    assert asked.step_up is not None
    assert asked.step_up.allowed_factors
    assert looked_at.outcome is Outcome.REVIEW
    assert looked_at.review_deadline is not None


def test_a_decision_explains_itself(gate: Riskgate) -> None:
    decision = buy(gate, device_id="look")
    gate.risk.annotate_decision(
        customer_id="ada", decision_id=decision.decision_id, label=Label.LEGITIMATE, actor_id="analyst"
    )

    explanation = gate.risk.explain_decision(customer_id="ada", decision_id=decision.decision_id)

    assert explanation.decision == decision
    assert explanation.reproduced
    assert [rule.rule_id for rule in explanation.rules if rule.result is RuleResult.HIT] == ["look"]
    assert [annotation.label for annotation in explanation.annotations] == [Label.LEGITIMATE]
    assert gate.risk.get_decision(customer_id="ada", decision_id=decision.decision_id) == decision


def test_blocks_stop_spending_until_lifted(gate: Riskgate) -> None:
    placed = gate.lines.place_block(
        customer_id="ada", kind=BlockKind.CUSTOMER_LOCK, reason_code="LOST_PHONE", actor_id="ada", note="lost"
    )
    blocked = buy(gate)
    lifted = gate.lines.lift_block(
        customer_id="ada", block_id=placed.block.block_id, actor_id="ops", note="found again"
    )
    approved = buy(gate, "T2")

    assert placed.credit_line.state is LineState.SUSPENDED
    assert blocked.reason_codes == ("LINE_BLOCKED",)
    assert lifted.lifted
    assert approved.approved


def test_lists_go_on_over_their_pages(gate: Riskgate) -> None:
    gate.risk.check_batch([purchase(number) for number in range(25)])

    holds = [hold.hold_id for hold in gate.ledger.list_holds(customer_id="ada", page_size=10)]
    decisions = [decision.transaction_id for decision in gate.risk.list_decisions(page_size=7)]
    entries = [entry.sequence for entry in gate.ledger.list_entries(customer_id="ada", page_size=4)]

    everything = [f"T{number}" for number in range(25)]
    assert holds == sorted(everything)
    assert decisions == everything[::-1]
    assert entries == list(range(1, len(entries) + 1))
    assert len(entries) >= 26


def test_a_page_can_be_asked_for_by_its_token(gate: Riskgate) -> None:
    gate.risk.check_batch([purchase(number) for number in range(5)])

    first = next(iter(gate.ledger.list_holds(customer_id="ada", page_size=2).pages()))
    rest = gate.ledger.list_holds(customer_id="ada", page_token=first.next_page_token)

    assert [hold.hold_id for hold in first.items] == ["T0", "T1"]
    assert [hold.hold_id for hold in rest] == ["T2", "T3", "T4"]


def test_the_lines_of_a_customer_are_listed_and_closed(gate: Riskgate) -> None:
    closed = gate.lines.close(customer_id="ada", actor_id="ops", reason_code="CUSTOMER_REQUEST")

    assert closed.state is LineState.CLOSED
    assert gate.lines.list("ada") == (closed,)


def test_a_stream_decides_about_purchases(gate: Riskgate) -> None:
    results = list(gate.risk.check_stream(map(purchase, range(300))))

    assert Counter(result.unwrap().outcome for result in results) == {Outcome.APPROVE: 300}
    assert gate.lines.get("ada").held == Money("CNY", 300)


def test_one_bad_purchase_spoils_only_its_own_result(gate: Riskgate) -> None:
    checks = [purchase(1), purchase(2, customer_id="nobody"), purchase(3)]

    first, second, third = gate.risk.check_batch(checks)

    assert first.unwrap().approved
    assert isinstance(second.error, NotFound)
    assert second.error.reason == "CUSTOMER_NOT_FOUND"
    assert third.unwrap().approved


def test_decisions_are_watched_as_they_become_durable(gate: Riskgate) -> None:
    with gate.risk.watch_decisions() as watch:
        buy(gate, "T1")
        first = next(watch)
        token = watch.resume_token
        buy(gate, "T2")
        second = next(watch)
    with gate.risk.watch_decisions(resume_token=token) as resumed:
        again = next(resumed)

    assert [first.transaction_id, second.transaction_id] == ["T1", "T2"]
    assert again == second


def test_a_line_is_watched_through_its_changes(gate: Riskgate) -> None:
    with gate.lines.watch("ada") as watch:
        before = next(watch)
        buy(gate)
        after = next(watch)

    assert before.available == LIMIT
    assert after.available == Money("CNY", 487_100)


def test_a_request_id_has_one_effect(gate: Riskgate) -> None:
    same: dict[str, Any] = {"customer_id": "ada", "transaction_id": "T1", "merchant_id": "M1", "request_id": "r1"}

    first = gate.risk.check(**same, amount=Money("CNY", 100))
    second = gate.risk.check(**same, amount=Money("CNY", 100))
    with pytest.raises(AlreadyExists) as refused:
        gate.risk.check(**same, amount=Money("CNY", 200))

    assert first == second
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert gate.lines.get("ada").held == Money("CNY", 100)


def test_refusals_are_exceptions_with_a_reason(gate: Riskgate) -> None:
    def refusal(call: Any, **arguments: Any) -> RiskgateError:
        with pytest.raises(RiskgateError) as refused:
            call(**arguments)
        return refused.value

    absent = refusal(gate.lines.get, customer_id="nobody")
    invalid = refusal(gate.risk.check, customer_id="not an id", transaction_id="T1", amount=Money("CNY", 1))
    voided = gate.ledger.void(customer_id="ada", hold_id=buy(gate).transaction_id)
    late = refusal(gate.ledger.capture, customer_id="ada", hold_id=voided.hold_id)
    unserved = refusal(gate.ledger.get_statement, customer_id="ada", statement_id="S1")

    assert (type(absent), absent.reason) == (NotFound, "CUSTOMER_NOT_FOUND")
    assert isinstance(invalid, InvalidRequest)
    assert invalid.reason == "FIELD_INVALID"
    assert "customer_id" in {violation.field for violation in invalid.fields}
    assert (type(late), late.reason) == (FailedPrecondition, "HOLD_VOIDED")
    assert not late.effect_possible
    assert (type(unserved), unserved.reason) == (Unimplemented, "NOT_SERVED_YET")


def test_a_missing_scope_is_named(connect: Connect, tenant: Tenant) -> None:
    gate = connected(connect, tenant, "limit:read")

    with pytest.raises(PermissionDenied) as refused:
        buy(gate)

    assert refused.value.reason == "SCOPE_MISSING"
    assert refused.value.metadata == {"scope": "risk:check"}


def test_a_wrong_key_is_refused(connect: Connect, running: Running) -> None:
    ca = running.deployment.directory.ca_certificate
    gate = connect(f"localhost:{running.key_port}", ca=ca, api_key="rgk_wrong")

    with pytest.raises(Unauthenticated) as refused:
        gate.lines.get("ada")

    assert refused.value.reason == "CREDENTIAL_INVALID"


def test_a_certificate_opens_the_other_port(connect: Connect, tenant: Tenant) -> None:
    running = tenant.running
    caller, _ = running.deployment.add_caller("limit:read", tenant=tenant.name, certificates=True)
    own = running.deployment.certificate(tenant.name, caller)
    gate = connect(
        f"localhost:{running.certificate_port}",
        ca=running.deployment.directory.ca_certificate,
        certificate=own.certificate_pem,
        key=own.key_pem,
    )

    with pytest.raises(NotFound):
        gate.lines.get("ada")


def test_above_its_rate_a_caller_waits_if_asked_to(connect: Connect, tenant: Tenant) -> None:
    hasty = connected(connect, tenant, "admin", rate=1, burst=1)
    patient = connected(connect, tenant, "admin", rate=20, burst=1, retry=Retry(when_exhausted=True))

    list(hasty.risk.list_decisions())
    with pytest.raises(ResourceExhausted) as refused:
        list(hasty.risk.list_decisions())
    patient.lines.open(customer_id="ada", line_id="main", limit=LIMIT, decision_reference="A", actor_id="ops")
    results = list(patient.risk.check_stream(map(purchase, range(20))))

    assert refused.value.reason == "RATE_LIMITED"
    assert refused.value.retry_after is not None
    assert sum(result.unwrap().approved for result in results) == 20


def test_services_without_methods_here_are_reached_by_stub(gate: Riskgate) -> None:
    import grpc  # noqa: PLC0415 - only here

    with pytest.raises(grpc.RpcError) as failed:
        gate.stub(CallerServiceStub).ListCallers(caller_pb.ListCallersRequest())

    assert error_from_rpc(failed.value).reason == "NOT_SERVED_YET"


def test_the_example_of_the_package_runs_as_printed(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    text = riskgate_client.__doc__ or ""
    example = text[text.index("    from riskgate_client") : text.index("Answers are")]
    directory = running.deployment.directory
    example = example.replace("localhost:7444", f"localhost:{running.key_port}")
    example = example.replace("data/tls/ca.crt", str(directory.ca_certificate))

    exec(textwrap.dedent(example), {"api_key": running.deployment.admin_key})

    assert capsys.readouterr().out == "APPROVE CNY 4,871.00\n"


@pytest.mark.process
def test_a_stream_outlives_kills_of_its_engine(connect: Connect, tmp_path: Path) -> None:
    root = tmp_path / "data"
    engine = Process(root, answer("init", root)["api_key"], tmp_path).started()
    target = f"localhost:{engine.port}"
    gate = connect(target, ca=engine.ca_certificate, api_key=engine.api_key, retry=Retry(when_exhausted=True))
    gate.lines.open(customer_id="ada", line_id="main", limit=LIMIT, decision_reference="A-17", actor_id="ops")
    total = 3_000
    results: list[Decision] = []

    try:
        with gate.risk.watch_decisions() as watch:
            for result in gate.risk.check_stream(map(purchase, range(total))):
                results.append(result.unwrap())
                if len(results) in (total // 3, total * 2 // 3):
                    engine.kill()
                    engine.started()
            watched = [decision.transaction_id for decision in islice(watch, total)]
        line = gate.lines.get("ada")
        report = engine.verify()
    finally:
        engine.cleanup()

    everything = [f"T{number}" for number in range(total)]
    holding = sum(result.held_amount is not None for result in results)
    assert sorted(result.transaction_id for result in results) == sorted(everything)
    assert sorted(watched) == sorted(everything)
    assert line.held == Money("CNY", holding)
    assert report["clean"]
