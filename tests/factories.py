"""What tests build again and again: clocks, chance, rules, a pipeline, and commands that name only what matters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

from riskgate_server.crypto.derived import DerivedSecrets
from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.credit.line import BlockKind
from riskgate_server.domain.events import Label
from riskgate_server.domain.fraud.decision import CLEAN, Assessment
from riskgate_server.domain.fraud.features import FeatureValues, LineFacts
from riskgate_server.domain.fraud.profile import Profile, PurchaseFacts
from riskgate_server.engine import commands as c
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.storing import Store
from riskgate_server.stores.memory import MemoryStore, MemoryVault

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US
NOW_US: Final = 1_780_000_000 * SECOND_US
"""A moment in May 2026."""

TENANT: Final = "acme"
CUSTOMER: Final = "ada"
LINE: Final = "line-1"
CURRENCY: Final = "CNY"


class FixedClock:
    """Keeps `engine.pipeline.BatchClock`: time is what the test says."""

    def __init__(self, now_us: int = NOW_US) -> None:
        self.us = now_us

    def now_us(self) -> int:
        return self.us

    def at(self, command: c.Command, now_us: int) -> int:
        return now_us

    def after(self, command: c.Command, now_us: int) -> int:
        return now_us

    def reached(self, now_us: int) -> None:
        pass

    def wait(self, us: int) -> None:
        self.us += us


class SeededEntropy:
    """Keeps `engine.ports.Entropy`: the same seed gives the same bytes."""

    def __init__(self, seed: int = 0) -> None:
        self._bytes = random.Random(seed).randbytes

    def __call__(self, size: int, /) -> bytes:
        return self._bytes(size)


class BrokenRules(Exception):
    """What `ChosenRules` raises when a purchase asks for it."""


ASSESSMENTS: Final = {
    "": CLEAN,
    "step_up": Assessment(outcome="STEP_UP", risk_score=300, reasons=("UNUSUAL",), fired=("unusual",)),
    "strong_step_up": Assessment(outcome="STEP_UP", risk_score=600, reasons=("NEW_PHONE",), fired=("new_phone",)),
    "review": Assessment(outcome="REVIEW", risk_score=500, reasons=("STRANGE",), fired=("strange",)),
    "decline": Assessment(outcome="DECLINE", risk_score=900, reasons=("LISTED",), fired=("listed",)),
    # A severe anomaly suspends the line, whatever becomes of the purchase itself.
    "alarm": Assessment(
        outcome="REVIEW", risk_score=950, reasons=("ODD",), fired=("odd",), suspend=True, suspend_reason="ODD"
    ),
    "flood": Assessment(
        outcome="DECLINE", risk_score=990, reasons=("FLOOD",), fired=("flood",), suspend=True, suspend_reason="FLOOD"
    ),
}


class ChosenRules:
    """Keeps `engine.ports.RiskRules`: a purchase's channel says what becomes of it (`ASSESSMENTS`, or "broken")."""

    version = "chosen-1"
    source = "by the channel"
    hash = sha256(source.encode()).hexdigest()
    feature_names = ("channel",)

    def features(self, profile: Profile, facts: PurchaseFacts, line: LineFacts) -> FeatureValues:
        return (facts.channel,)

    def assess(self, values: FeatureValues) -> Assessment:
        channel = str(values[0])
        if channel == "broken":
            raise BrokenRules
        return ASSESSMENTS[channel]

    def explain(self, values: FeatureValues) -> Sequence[Any]:
        return ()


def make_pipeline(store: Store | None = None, **parts: Any) -> Pipeline:
    """A pipeline over a store (memory unless given), everything else fixed unless given."""
    given: dict[str, Any] = {
        "vault": MemoryVault(),
        "sealer": Sealer(),
        "clock": FixedClock(),
        "entropy": SeededEntropy(),
        "secrets": DerivedSecrets({1: bytes(range(32))}),
        "rules": ChosenRules(),
    }
    store = store or MemoryStore()
    store.remember_ruleset(bytes.fromhex(ChosenRules.hash), ChosenRules.source, NOW_US)
    return Pipeline(store=store, **(given | parts))


_PLACE: Final = {"tenant_id": TENANT, "customer_id": CUSTOMER}


def open_line(request_id: str = "open", **fields: Any) -> c.OpenCreditLine:
    terms = {
        "line_id": LINE,
        "currency": CURRENCY,
        "limit_minor": 100_000,
        "product_id": "standard",
        "time_zone": "Asia/Shanghai",
        "decision_reference": "decision-1",
        "actor_id": "olga",
    }
    return c.OpenCreditLine(**_content(request_id, terms | fields))


def check(transaction_id: str, amount_minor: int = 1_000, risk: str = "", **fields: Any) -> c.CheckTransaction:
    """A purchase; `risk` is a key of `ASSESSMENTS`."""
    currency = fields.pop("currency", CURRENCY)
    terms = {
        "transaction_id": transaction_id,
        "line_id": "",
        "terms": f"{amount_minor} {currency}".encode(),
        "facts": PurchaseFacts(0, amount_minor, currency, channel=risk, device_id="phone-1", merchant_id="m-1"),
    }
    return c.CheckTransaction(**_content(fields.pop("request_id", f"check {transaction_id}"), terms | fields))


def capture(request_id: str, transaction_id: str, amount_minor: int | None = None, **fields: Any) -> c.CaptureHold:
    terms = {
        "transaction_id": transaction_id,
        "amount_minor": amount_minor,
        "currency": CURRENCY,
        "final": False,
        "force": False,
    }
    return c.CaptureHold(**_content(request_id, terms | fields))


def increment(request_id: str, transaction_id: str, amount_minor: int, **fields: Any) -> c.IncrementHold:
    terms = {"transaction_id": transaction_id, "amount_minor": amount_minor, "currency": CURRENCY}
    return c.IncrementHold(**_content(request_id, terms | fields))


def void(request_id: str, transaction_id: str, **fields: Any) -> c.VoidHold:
    return c.VoidHold(**_content(request_id, {"transaction_id": transaction_id} | fields))


def refund(request_id: str, transaction_id: str, amount_minor: int, **fields: Any) -> c.RefundCapture:
    terms = {"transaction_id": transaction_id, "amount_minor": amount_minor, "currency": CURRENCY}
    return c.RefundCapture(**_content(request_id, terms | fields))


def pay(payment_id: str, amount_minor: int, **fields: Any) -> c.RecordPayment:
    terms = {
        "line_id": "",
        "payment_id": payment_id,
        "amount_minor": amount_minor,
        "currency": CURRENCY,
        "value_us": 0,
    }
    return c.RecordPayment(**_content(fields.pop("request_id", f"pay {payment_id}"), terms | fields))


def reverse(request_id: str, payment_id: str, **fields: Any) -> c.ReversePayment:
    terms = {"payment_id": payment_id, "reason_code": "RETURNED", "actor_id": "olga"}
    return c.ReversePayment(**_content(request_id, terms | fields))


def place_block(request_id: str, kind: BlockKind = BlockKind.COMPLIANCE, **fields: Any) -> c.PlaceBlock:
    terms = {
        "line_id": "",
        "kind": kind,
        "reason_code": "ASKED",
        "actor_id": "olga",
        "note": "as asked",
        "expires_us": 0,
    }
    return c.PlaceBlock(**_content(request_id, terms | fields))


def lift(request_id: str, block_id: str, **fields: Any) -> c.LiftBlock:
    """Lift a block as somebody who may lift every kind, unless `liftable` says otherwise."""
    terms = {
        "line_id": "",
        "block_id": block_id,
        "actor_id": "olga",
        "note": "as asked",
        "liftable": frozenset(BlockKind),
    }
    return c.LiftBlock(**_content(request_id, terms | fields))


def close(request_id: str = "close", **fields: Any) -> c.CloseCreditLine:
    terms = {"line_id": "", "reason_code": "ASKED", "actor_id": "olga"}
    return c.CloseCreditLine(**_content(request_id, terms | fields))


def erase(request_id: str = "erase", **fields: Any) -> c.EraseCustomer:
    terms = {"reason_code": "ASKED", "actor_id": "olga"}
    return c.EraseCustomer(**_content(request_id, terms | fields))


def annotate(request_id: str, decision_sequence: int, **fields: Any) -> c.AnnotateDecision:
    terms = {
        "decision_sequence": decision_sequence,
        "label": Label.LEGITIMATE,
        "actor_id": "olga",
        "note": "",
    }
    return c.AnnotateDecision(**_content(request_id, terms | fields))


def resolve(request_id: str, transaction_id: str, *, approve: bool, **fields: Any) -> c.ResolveReview:
    terms = {"transaction_id": transaction_id, "approve": approve, "actor_id": "olga", "note": "looked"}
    return c.ResolveReview(**_content(request_id, terms | fields))


def settle(tenant_id: str = TENANT, customer_id: str = CUSTOMER) -> c.SettleLapsed:
    return c.SettleLapsed(tenant_id=tenant_id, customer_id=customer_id)


def _content(request_id: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Fill in whose it is, and a fingerprint that differs when anything does."""
    place = {name: fields.pop(name, value) for name, value in _PLACE.items()}
    outside: dict[str, Any] = {name: fields.pop(name) for name in ("deadline_us", "caller_id") if name in fields}
    shown = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in fields.items()}
    fingerprint = fields.pop("fingerprint", None) or repr(sorted(shown.items())).encode()
    return {**place, **outside, **fields, "request_id": request_id, "fingerprint": fingerprint}


def make_customer(pipeline: Pipeline, **fields: Any) -> None:
    """Open a customer with one line."""
    pipeline.run([open_line(**fields)])
