"""Compares what callers were told with what the journal holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from riskgate.credit.v1 import credit_line_service_pb2 as lines
from riskgate.credit.v1 import ledger_service_pb2 as ledger
from riskgate.risk.v1 import risk_service_pb2 as risk
from tests.acceptance import books
from tests.acceptance.books import Entry
from tests.acceptance.calling import Told


def missing(answers: Iterable[Told], entries: Sequence[Entry]) -> list[str]:
    """Return what was acknowledged and is not in the journal as it was acknowledged; a refusal counts as well."""
    found = books.by_key(entries)
    faults = []
    for told in answers:
        if not told.settled or told.reason in _LEAVES_NOTHING:
            continue
        request = told.request
        effects = found.get((request.customer_id, request.request_id), [])
        if len(effects) != 1 or not _says(effects[0], told):
            faults.append(f"{type(request).__name__} {request.customer_id}/{request.request_id}: {told} {effects}")
    return faults


def doubled(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Return the keys that had more than one effect, and the purchases that were held twice."""
    twice = [key for key, effects in books.by_key(entries).items() if len(effects) > 1]
    holds = Counter((e.customer_id, str(e.event[1])) for e in entries if e.tag == books.DECIDED and e.transfers)
    return twice + [hold for hold, times in holds.items() if times > 1]


_LEAVES_NOTHING = frozenset({"CUSTOMER_NOT_FOUND", "FIELD_INVALID", "REQUEST_ID_REUSED"})
"""Refusals that never reached the decision about a customer, so that no request id is used up."""


def _says(entry: Entry, told: Told) -> bool:
    """Whether an entry is what the caller was told."""
    if not told.done:
        return entry.tag == books.REFUSED and entry.event[1] == told.reason
    request: Any = told.request
    event = entry.event
    match request:
        case lines.OpenCreditLineRequest():
            return entry.tag == books.OPENED and event[:3] == ["main", "CNY", request.limit.amount_minor]
        case risk.CheckTransactionRequest():
            decision = risk.CheckTransactionResponse.FromString(told.reply).decision
            expected = (request.transaction_id, decision.outcome, decision.held_amount.amount_minor)
            return (
                entry.tag == books.DECIDED
                and (event[1], event[3], event[11]) == expected
                and decision.decision_id == f"d-{entry.sequence}"
            )
        case ledger.CaptureHoldRequest():
            amount = request.amount.amount_minor
            return entry.tag == books.CAPTURED and event[0] == request.hold_id and amount in (0, event[1])
        case ledger.VoidHoldRequest():
            return entry.tag == books.VOIDED and event[0] == request.hold_id
        case ledger.RefundCaptureRequest():
            amount = request.amount.amount_minor
            # To its own purchase, to the customer, and to others that were owed.
            refunded = event[1] + event[2] + sum(share for _, share in event[3])
            return entry.tag == books.REFUNDED and event[0] == request.hold_id and refunded == amount
        case ledger.RecordPaymentRequest():
            return entry.tag == books.PAID and event[1:3] == [request.payment_id, request.amount.amount_minor]
    raise AssertionError(request)
