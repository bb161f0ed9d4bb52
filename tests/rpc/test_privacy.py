"""What must not be anywhere but in the answers to those who may read it: planted, used, and searched for."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_server.domain.events import PurchaseDecided
from riskgate_server.engine import sealing
from riskgate_server.rpc.reading import RequestReader
from riskgate_server.stores.sqlite.snapshots import SQLiteSnapshots
from tests.rpc.calling import Api, refused
from tests.rpc.contract import EVERY, sample
from tests.rpc.logs import Lines, logs
from tests.rpc.requests import (
    annotating,
    blocking,
    buy,
    buying,
    capturing,
    closing,
    entries_of,
    hold_of,
    lifting,
    line_of,
    open_line,
    paying,
    raising,
    refunding,
    returning,
    voiding,
)
from tests.rpc.serving import Deployment, Loop, Running, serving

CUSTOMER: Final = "cust-5f1e-canary"
PERSONAL: Final = {
    "phone": "phone-5f1e-canary",
    "address": "2001:db8:5f1e::c4",
    "merchant": "merchant-5f1e-canary",
    "note": 'Note 5f1e canary: she was at the hospital\r\n{"event":"forged"}',
    "transaction": "purchase-5f1e-canary",
    "actor": "Jane-Canary-5f1e",
    "latitude": "31.230416",
}
NOWHERE: Final = ("phone", "address", "merchant", "note", "latitude")
"""What even the store may hold only sealed."""


def spellings(text: str) -> Iterator[bytes]:
    """Yield the ways in which a text may lie about."""
    raw = text.encode()
    yield from (raw, raw.hex().encode(), raw.hex().upper().encode(), text.encode("utf-16-le"), raw[::-1])
    for shift in range(3):
        # Without the ends, which depend on what stands beside it.
        yield base64.b64encode(b"\x00" * shift + raw)[4:-4]


def whole_life(api: Api) -> None:
    """Make every call there is, with what must not leak, in success and in failure."""
    device = pb.Device(device_id=PERSONAL["phone"], ip_address=PERSONAL["address"])
    said: dict[str, Any] = {
        "device": device,
        "merchant": pb.Merchant(merchant_id=PERSONAL["merchant"], category_code="8062", country_code="CN"),
        "location": pb.Location(latitude=float(PERSONAL["latitude"]), longitude=121.473701),
        "customer_id": CUSTOMER,
    }
    whose: dict[str, Any] = {"customer_id": CUSTOMER}
    actor = {**whose, "actor_id": PERSONAL["actor"], "note": PERSONAL["note"]}
    open_line(api, CUSTOMER, actor_id=PERSONAL["actor"])
    decision = buy(api, transaction_id=PERSONAL["transaction"], **said)
    api.ledger.IncrementHold(raising(decision.transaction_id, 5, **whose))
    api.ledger.CaptureHold(capturing(decision.transaction_id, **whose))
    api.ledger.RefundCapture(refunding(decision.transaction_id, 5, **whose))
    payment = api.ledger.RecordPayment(paying(10, **whose)).payment
    api.ledger.ReversePayment(returning(payment.payment_id, actor_id=PERSONAL["actor"], **whose))
    api.ledger.VoidHold(voiding(buy(api, **said).transaction_id, **whose))
    api.risk.AnnotateDecision(annotating(decision.decision_id, **actor))
    block = api.lines.PlaceBlock(blocking(line_pb.BLOCK_KIND_FRAUD_HARD, **actor)).block
    api.lines.LiftBlock(lifting(block.block_id, **actor))
    api.risk.BatchCheckTransactions(pb.BatchCheckTransactionsRequest(checks=[buying(**said), buying("x\n")]))
    list(api.risk.StreamCheckTransactions(iter([pb.StreamCheckTransactionsRequest(check=buying(**said))])))
    api.risk.ExplainDecision(pb.ExplainDecisionRequest(customer_id=CUSTOMER, decision_id=decision.decision_id))
    api.risk.ListDecisions(pb.ListDecisionsRequest(customer_id=CUSTOMER))
    entries_of(api, CUSTOMER)
    hold_of(api, decision.transaction_id, CUSTOMER)
    line_of(api, CUSTOMER)
    refused(lambda: api.lines.CloseCreditLine(closing(actor_id=PERSONAL["actor"], **whose)))
    refused(lambda: api.ledger.CaptureHold(capturing(PERSONAL["transaction"], **whose)))
    refused(lambda: buy(api, channel=99, **said))
    refused(lambda: line_of(api, CUSTOMER, PERSONAL["transaction"]))
    for method in EVERY:
        api.answer(method, sample(method).SerializeToString())
    with pytest.raises(grpc.RpcError):
        api.send("/riskgate.risk.v1.RiskService/" + CUSTOMER, b"")


@pytest.fixture(scope="module")
def left(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Lines, str]]:
    """What a whole life leaves behind: the data directory, the log at its most talkative, and the metrics."""
    deployment = Deployment(tmp_path_factory.mktemp("privacy") / "data")
    with logs() as lines:
        with serving(loop, deployment) as running:
            api = running.keyed(deployment.admin_key)
            whole_life(api)
            running.anonymous((("authorization", f"Bearer {CUSTOMER}"),)).answer(EVERY[0], b"")
            metrics = running.scrape()
        yield deployment.directory.root, lines, metrics
    deployment.close()


def test_the_log_names_nobody(left: tuple[Path, Lines, str]) -> None:
    text = "\n".join(left[1].lines).encode()

    assert left[1].of("serving")
    assert left[1].of("call refused")
    for name, secret in {**PERSONAL, "customer": CUSTOMER}.items():
        assert [spelling for spelling in spellings(secret) if spelling in text] == [], name
    assert b"5f1e" not in text
    assert left[1].of("forged") == []


@pytest.mark.attack("secrets-lying-about")
def test_the_log_has_no_credential(left: tuple[Path, Lines, str]) -> None:
    assert "rgk_" not in "\n".join(left[1].lines)


def test_the_metrics_name_nobody(left: tuple[Path, Lines, str]) -> None:
    assert "5f1e" not in left[2]
    assert "anary" not in left[2]


@pytest.mark.parametrize("name", NOWHERE)
def test_the_data_directory_has_it_only_sealed(left: tuple[Path, Lines, str], name: str) -> None:
    secret = PERSONAL[name].partition("\r")[0]
    found = [
        path.name
        for path in sorted(left[0].rglob("*"))
        if path.is_file()
        for content in [path.read_bytes()]
        if any(spelling in content for spelling in spellings(secret))
    ]

    assert found == []


def test_a_refusal_never_repeats_what_was_sent(running: Running) -> None:
    api = running.tenant().api
    open_line(api)

    refusals = [
        refused(lambda: buy(api, merchant=pb.Merchant(merchant_id="s5f1e", category_code="s5f1e"))),
        refused(lambda: buy(api, currency="5F1E")),
        refused(lambda: open_line(api, time_zone="zone-5f1e")),
        refused(lambda: line_of(api, "cust-5f1e")),
        refused(lambda: line_of(api, line_id="line-5f1e")),
        refused(lambda: api.risk.ListDecisions(pb.ListDecisionsRequest(page_token="token-5f1e"))),
    ]

    assert {refusal.code.name for refusal in refusals} == {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert "5f1e" not in str(refusals).lower()


def test_a_bug_leaves_its_trace_in_the_log_without_the_request(
    running: Running, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    api = running.tenant().api
    open_line(api)

    def broken(self: RequestReader, message: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(RequestReader, "validate", broken)
    refusal = refused(lambda: buy(api, merchant=pb.Merchant(merchant_id="merchant-5f1e")))

    (event,) = log.of("call failed")
    assert event["error_id"] == refusal.metadata["error_id"]
    assert "RuntimeError: broken" in event["exception"]
    assert "5f1e" not in str(event)


def test_nothing_that_is_stored_links_customers_who_bought_alike(running: Running) -> None:
    request = buying(transaction_id="alike", request_id="alike", amount=4_711)
    customers: list[tuple[str, str]] = []
    for customers_of in (running.tenant(), running.tenant()):
        for customer in ("ada", "bob"):
            open_line(customers_of.api, customer)
            request.customer_id = customer
            customers_of.api.risk.CheckTransaction(request)
            customers.append((customers_of.name, customer))
    with SQLiteSnapshots(running.deployment.directory.store).snapshot() as snapshot:
        events = [sealing.open_clear(snapshot.entries(key, after=1, limit=1)[0]).event for key in customers]

    assert len({event.terms for event in events if isinstance(event, PurchaseDecided)}) == len(customers)
