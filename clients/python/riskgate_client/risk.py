"""Calls of RiskService: decide about purchases, and read what was decided."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Final, Unpack

from google.rpc import status_pb2

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate.risk.v1.risk_service_pb2_grpc import RiskServiceStub
from riskgate_client.call import (
    Call,
    CommandOptions,
    QuestionOptions,
    Verbs,
    WatchStep,
    money,
    page_of,
    timestamp,
)
from riskgate_client.errors import error_from_status
from riskgate_client.reading import number_of, only, reader
from riskgate_client.retry import effect_possible
from riskgate_client.values import (
    Annotation,
    Channel,
    CheckResult,
    Decision,
    Explanation,
    Label,
    Location,
    Money,
    Outcome,
    Page,
)

_risk: Final = Verbs(RiskServiceStub)
_decision: Final = reader(Decision)
# Made once: making a reader costs a hundred times what reading does.
_only_decision: Final = only("decision", Decision)


def check(
    *,
    customer_id: str,
    transaction_id: str,
    amount: Money | None = None,
    merchant_id: str = "",
    merchant_category_code: str = "",
    merchant_country_code: str = "",
    device_id: str = "",
    ip_address: str = "",
    sim_change_time: dt.datetime | None = None,
    location: Location | None = None,
    channel: Channel = Channel.UNSPECIFIED,
    line_id: str = "",
    event_time: dt.datetime | None = None,
    hold_lifetime_seconds: int = 0,
    allow_partial: bool = False,
    validate_only: bool = False,
    grant: str = "",
    **options: Unpack[CommandOptions],
) -> Call[Decision]:
    """
    Decide about one purchase; APPROVE and REVIEW hold the credit in the same durable step.

    A purchase that is refused is an answer (`decision.outcome`), not an error. `amount` and `merchant_id`
    are required unless `grant` resumes a purchase that was answered with STEP_UP: then it is decided as it was stored,
    and whatever else describes it must be left out.
    """
    request = pb.CheckTransactionRequest(
        customer_id=customer_id,
        transaction_id=transaction_id,
        line_id=line_id,
        amount=money(amount),
        channel=number_of("channel", channel, Channel),  # type: ignore[arg-type]  # a number of the contract's
        event_time=timestamp(event_time),
        hold_lifetime_seconds=hold_lifetime_seconds,
        allow_partial=allow_partial,
        validate_only=validate_only,
        grant=grant,
    )
    # Setting a field of an absent message makes it present: an empty merchant would not be "no merchant".
    if merchant_id or merchant_category_code or merchant_country_code:
        request.merchant.merchant_id = merchant_id
        request.merchant.category_code = merchant_category_code
        request.merchant.country_code = merchant_country_code
    if device_id or ip_address:
        request.device.device_id = device_id
        request.device.ip_address = ip_address
    if changed := timestamp(sim_change_time):
        request.device.sim_change_time.CopyFrom(changed)
    if location is not None:
        request.location.latitude = location.latitude
        request.location.longitude = location.longitude
    return _risk.command("CheckTransaction", request, _only_decision, options)


def check_batch(checks: Iterable[Call[Decision]], **options: Unpack[QuestionOptions]) -> Call[tuple[CheckResult, ...]]:
    """
    Decide about 1 to 500 purchases, described with `check(...)`; results come in the same order.

    One bad purchase spoils only its own result. A result whose error is `OutcomeUnknown` is resolved by
    checking the same purchase again: a description keeps its request id.
    """
    request = pb.BatchCheckTransactionsRequest(checks=[check_request(described) for described in checks])
    return _risk.commands("BatchCheckTransactions", request, _results, options)


def stream() -> Call[CheckResult]:
    """Describe the stream of purchases; what it sends is fed to it."""
    return _risk.commands("StreamCheckTransactions", pb.StreamCheckTransactionsRequest(), _stream_result, {})


def check_request(described: Call[Decision]) -> pb.CheckTransactionRequest:
    """
    Return what a purchase described with `check(...)` sends.

    Raises:
        TypeError: it describes another call.
        ValueError: it has a deadline of its own, which it cannot have among others.
    """
    request = described.request
    if not isinstance(request, pb.CheckTransactionRequest):
        raise TypeError(f"purchases are described with check(...), not {described.method}")
    if described.timeout is not None:
        raise ValueError("give the timeout to the batch or stream, not to one of its purchases")
    return request


def annotate_decision(
    *,
    customer_id: str,
    decision_id: str,
    label: Label,
    actor_id: str,
    note: str = "",
    **options: Unpack[CommandOptions],
) -> Call[Annotation]:
    """Record what a purchase later turned out to be."""
    request = pb.AnnotateDecisionRequest(
        customer_id=customer_id,
        decision_id=decision_id,
        label=number_of("label", label, Label),  # type: ignore[arg-type]  # a number of the contract's
        actor_id=actor_id,
        note=note,
    )
    return _risk.command("AnnotateDecision", request, only("annotation", Annotation), options)


def get_decision(*, customer_id: str, decision_id: str, **options: Unpack[QuestionOptions]) -> Call[Decision]:
    """Return one decision as it was answered."""
    request = pb.GetDecisionRequest(customer_id=customer_id, decision_id=decision_id)
    return _risk.question("GetDecision", request, _only_decision, options)


def list_decisions(
    *,
    customer_id: str = "",
    outcomes: Iterable[Outcome] = (),
    page_size: int = 0,
    page_token: str = "",
    **options: Unpack[QuestionOptions],
) -> Call[Page[Decision]]:
    """List decisions of one customer or of the whole tenant, newest first."""
    request = pb.ListDecisionsRequest(
        customer_id=customer_id,
        outcomes=[number_of("outcomes", outcome, Outcome) for outcome in outcomes],  # type: ignore[misc]  # as above
        page_size=page_size,
        page_token=page_token,
    )
    return _risk.question("ListDecisions", request, page_of("decisions", _decision), options)


def explain_decision(*, customer_id: str, decision_id: str, **options: Unpack[QuestionOptions]) -> Call[Explanation]:
    """Return one decision with the features it saw and what every rule made of them."""
    request = pb.ExplainDecisionRequest(customer_id=customer_id, decision_id=decision_id)
    return _risk.question("ExplainDecision", request, reader(Explanation), options)


def watch_decisions(
    *, customer_id: str = "", resume_token: str = "", **options: Unpack[QuestionOptions]
) -> Call[WatchStep[Decision]]:
    """Follow decisions of one customer or of the whole tenant as they become durable, none missed, none twice."""
    request = pb.WatchDecisionsRequest(customer_id=customer_id, resume_token=resume_token)
    return _risk.question("WatchDecisions", request, _watched, options)


def _watched(response: pb.WatchDecisionsResponse) -> WatchStep[Decision]:
    decision = _decision(response.decision) if response.HasField("decision") else None
    return WatchStep(decision, response.resume_token)


def _results(response: pb.BatchCheckTransactionsResponse) -> tuple[CheckResult, ...]:
    return tuple(map(_result, response.results))


def _stream_result(response: pb.StreamCheckTransactionsResponse) -> CheckResult:
    return _result(response.result)


def _result(result: pb.CheckResult) -> CheckResult:
    if result.HasField("decision"):
        return CheckResult(result.request_id, _decision(result.decision), None)
    status: Any = result.error if result.HasField("error") else status_pb2.Status()
    error = error_from_status(status)
    error.request_id = result.request_id
    error.effect_possible = effect_possible(error, before=False)
    return CheckResult(result.request_id, None, error)
