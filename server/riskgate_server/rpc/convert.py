"""
Between the contract's messages and the engine's data. The only looseness of protobuf is in here.

`*_command` and `*_from` read requests; `*_to_proto` write answers. Money and time are checked once,
on the way in.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final
from zoneinfo import available_timezones

import iso4217
from google.protobuf.timestamp_pb2 import Timestamp

from riskgate.common.v1 import money_pb2, text_pb2
from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.credit.v1 import ledger_service_pb2 as ledger_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_server.domain.credit.line import Block
from riskgate_server.domain.errors import FieldViolation, InvalidRequest
from riskgate_server.domain.events import Outcome
from riskgate_server.domain.fraud.profile import PurchaseFacts
from riskgate_server.domain.identity.grants import Method, mask_of
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.holds import HoldState
from riskgate_server.engine.commands import CheckTransaction
from riskgate_server.engine.grants import mark_of
from riskgate_server.engine.queries import Entry, Explanation
from riskgate_server.engine.replies import (
    KINDS,
    AnnotationReply,
    DecisionReply,
    HoldReply,
    LineReply,
    PaymentReply,
)

CURRENCIES: Final = frozenset(currency.code for currency in iso4217.Currency)
TIME_ZONES: Final = frozenset(available_timezones())
DECISION_PREFIX: Final = "d-"
_CHANNELS: Final = {value: name.removeprefix("CHANNEL_") if value else "" for name, value in risk_pb.Channel.items()}


def invalid(reason: str, field: str, description: str) -> InvalidRequest:
    """Return the refusal of one field."""
    return InvalidRequest(reason, description, FieldViolation(field, description))


# --- Requests ---


def amount_from(money: money_pb2.Money, field: str, *, least: int = 1) -> int:
    """
    Return an amount in minor units.

    Raises:
        InvalidRequest: it is below `least`, or its currency is not in ISO 4217.
    """
    if money.currency_code not in CURRENCIES:
        raise invalid("CURRENCY_UNKNOWN", f"{field}.currency_code", "must be a currency code of ISO 4217")
    if money.amount_minor < least:
        wanted = "must be above zero" if least else "must not be negative"
        raise invalid("AMOUNT_NOT_POSITIVE", f"{field}.amount_minor", wanted)
    return money.amount_minor


def optional_amount_from(message: Any, field: str) -> tuple[int | None, str]:
    """Return an amount that may be absent, with its currency."""
    if not message.HasField(field):
        return None, ""
    money = getattr(message, field)
    return amount_from(money, field), money.currency_code


def time_from(message: Any, field: str) -> int:
    """
    Return a time in microseconds UTC; 0 when absent.

    Raises:
        InvalidRequest: it is before 1970 or after 9999.
    """
    if not message.HasField(field):
        return 0
    stamp: Timestamp = getattr(message, field)
    if not (0 < stamp.seconds < _YEAR_10000 and 0 <= stamp.nanos < _NANOS):
        raise invalid("FIELD_INVALID", field, "must be after 1970 and before the year 10000")
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


_YEAR_10000: Final = 253_402_300_800
_NANOS: Final = 1_000_000_000


def time_zone_from(name: str) -> str:
    """
    Return an IANA time zone's name; UTC when empty.

    Raises:
        InvalidRequest: there is none of this name.
    """
    if name and name not in TIME_ZONES:
        raise invalid("FIELD_INVALID", "time_zone", "must be a time zone of the IANA database")
    return name or "UTC"


def decision_sequence_from(decision_id: str) -> int:
    """Return the place of a decision in its customer's journal; 0, which no decision has, for any other id."""
    number = decision_id.removeprefix(DECISION_PREFIX)
    if decision_id.startswith(DECISION_PREFIX) and number.isascii() and number.isdecimal() and len(number) < _DIGITS:
        # A decision has one spelling: with leading zeros it is another id.
        return 0 if number.startswith("0") else int(number)
    return 0


_DIGITS: Final = 19


def facts_from(request: risk_pb.CheckTransactionRequest) -> PurchaseFacts:
    """Return what the caller says about a purchase. Its time and local hour are for the engine to fill in."""
    if not (request.HasField("amount") and request.HasField("merchant")):
        missing = [name for name in ("amount", "merchant") if not request.HasField(name)]
        violations = [FieldViolation(name, "value is required") for name in missing]
        raise InvalidRequest("FIELD_INVALID", "one or more fields are invalid", *violations)
    amount = amount_from(request.amount, "amount", least=0)
    merchant, device = request.merchant, request.device
    place = request.location if request.HasField("location") else None
    return PurchaseFacts(
        0,
        amount,
        request.amount.currency_code,
        merchant.merchant_id,
        merchant.category_code,
        _CHANNELS[request.channel],
        merchant.country_code,
        device.device_id,
        device.ip_address,
        round(place.latitude * 1_000_000) if place else None,
        round(place.longitude * 1_000_000) if place else None,
        sim_changed_us=time_from(device, "sim_change_time") if device.HasField("sim_change_time") else 0,
    )


def check_command(
    request: risk_pb.CheckTransactionRequest,
    common: dict[str, Any],
    *,
    terms: bytes,
    other_terms: tuple[bytes, ...],
    event_us: int,
) -> CheckTransaction:
    """Return the command a CheckTransaction request stands for."""
    return CheckTransaction(
        **common,
        event_us=event_us,
        transaction_id=request.transaction_id,
        line_id=request.line_id,
        terms=terms,
        other_terms=other_terms,
        facts=facts_from(request),
        hold_lifetime_us=_hold_lifetime(request),
        allow_partial=request.allow_partial,
        validate_only=request.validate_only,
    )


def mark_from(token: str) -> bytes:
    """Return what is kept of a grant; empty where none was given."""
    return mark_of(token) if token else b""


def resume_command(request: risk_pb.CheckTransactionRequest, common: dict[str, Any]) -> CheckTransaction:
    """
    Return the command a CheckTransaction request with a grant stands for.

    Raises:
        InvalidRequest: it says anew what the stored purchase says.
    """
    for field in ("amount", "merchant", "device", "location", "event_time"):
        if request.HasField(field):
            raise invalid("FIELD_INVALID", field, "must be absent with a grant: the stored purchase brings its own")
    if request.line_id or request.channel:
        field = "line_id" if request.line_id else "channel"
        raise invalid("FIELD_INVALID", field, "must be absent with a grant: the stored purchase brings its own")
    return CheckTransaction(
        **common,
        transaction_id=request.transaction_id,
        line_id="",
        terms=b"",
        facts=_NO_FACTS,
        hold_lifetime_us=_hold_lifetime(request),
        allow_partial=request.allow_partial,
        validate_only=request.validate_only,
        grant=mark_from(request.grant),
    )


def _hold_lifetime(request: risk_pb.CheckTransactionRequest) -> int:
    lifetime = request.hold_lifetime_seconds
    if 0 < lifetime < _HOLD_LIFETIME_LEAST:
        raise invalid("FIELD_INVALID", "hold_lifetime_seconds", "must be 0 or at least 60")
    return lifetime * 1_000_000


_NO_FACTS: Final = PurchaseFacts(0, 0, "")
_HOLD_LIFETIME_LEAST: Final = 60


# --- Answers ---


def money(currency: str, amount_minor: int) -> money_pb2.Money:
    """Write an amount."""
    return money_pb2.Money(currency_code=currency, amount_minor=amount_minor)


def stamp(at_us: int) -> Timestamp:
    """Write a time."""
    return Timestamp(seconds=at_us // 1_000_000, nanos=at_us % 1_000_000 * 1000)


def stamp_if(at_us: int) -> Timestamp | None:
    """Write a time; None, which leaves the field absent, for 0."""
    return stamp(at_us) if at_us else None


class DecisionWriter:
    """Writes decisions, with the sentences of the ruleset that knows their reason codes."""

    def __init__(self, texts: ReasonTexts) -> None:
        self._reason = lru_cache(maxsize=1024)(lambda code: _reason(code, texts))

    def __call__(self, reply: DecisionReply, into: risk_pb.Decision) -> None:
        """Write one decision into its place: field by field, which costs a third of building it from parts."""
        decided = reply.decided
        currency = decided.currency
        if reply.sequence:
            into.decision_id = f"{DECISION_PREFIX}{reply.sequence}"
        into.customer_id = reply.key[1]
        into.transaction_id = decided.transaction_id
        into.request_id = reply.request_id
        into.outcome = decided.outcome  # type: ignore[assignment]  # the numbers are the contract's own
        into.risk_score = decided.risk_score
        into.ruleset_version = decided.ruleset_version
        into.ruleset_hash = decided.ruleset_hash.hex()
        into.engine_version = decided.engine_version
        into.degraded = decided.degraded
        _set_money(into.requested_amount, currency, decided.requested_minor)
        _set_stamp(into.decide_time, reply.at_us)
        _set_stamp(into.event_time, decided.event_us)
        if decided.reasons:
            into.reasons.extend(map(self._reason, decided.reasons))
        if decided.held_minor:
            _set_money(into.held_amount, currency, decided.held_minor)
            _set_stamp(into.hold_expire_time, decided.expires_us)
        if decided.line_id:
            into.line_id = decided.line_id
            _set_money(into.available_after, currency, decided.available_minor)
        if decided.block_id:
            into.line_suspended = True
            into.block_id = decided.block_id
        if decided.review_deadline_us:
            _set_stamp(into.review_deadline, decided.review_deadline_us)
        if decided.outcome is Outcome.STEP_UP:
            into.step_up.required_level = decided.step_up_level
            into.step_up.allowed_factors.extend(_methods(decided.step_up_methods))
            _set_stamp(into.step_up.expire_time, decided.step_up_expires_us)


@lru_cache
def _methods(mask: int) -> tuple[str, ...]:
    return tuple(method.name for method in Method if mask & mask_of(method))


def _set_money(into: money_pb2.Money, currency: str, amount_minor: int) -> None:
    into.currency_code = currency
    into.amount_minor = amount_minor


def _set_stamp(into: Timestamp, at_us: int) -> None:
    into.seconds = at_us // 1_000_000
    into.nanos = at_us % 1_000_000 * 1000


class ReasonTexts:
    """What may be told to a customer about a reason code: the ruleset's sentences, and ours for the engine's codes."""

    _OWN: Final = {
        "NO_CREDIT_LINE": ("You have no credit line for this purchase.", "您没有可用于此笔交易的信用额度。"),
        "LINE_NOT_ACTIVE": ("Your credit line is closed.", "您的信用额度已关闭。"),
        "LINE_BLOCKED": (
            "Your credit line is on hold. Please contact us.",
            "您的信用额度已暂停使用，请联系我们。",
        ),
        "CREDIT_LIMIT_EXCEEDED": (
            "This purchase is above your available credit.",
            "此笔交易超出您的可用额度。",
        ),
        "PARTIAL_APPROVAL": (
            "Part of this purchase was approved: it is above your available credit.",
            "此笔交易超出您的可用额度，已部分批准。",
        ),
        "HOLD_BOUND_REACHED": (
            "Your credit line cannot take this purchase now. Please contact us.",
            "您的信用额度暂时无法受理此笔交易，请联系我们。",
        ),
        "STEP_UP_UNANSWERED": (
            "Please confirm this purchase first.",
            "请先确认此笔交易。",
        ),
    }

    def __init__(self, of_ruleset: Any) -> None:
        self._of_ruleset = of_ruleset

    def __call__(self, code: str) -> tuple[str, str]:
        """Return the sentence in English and in Simplified Chinese."""
        own = self._OWN.get(code)
        return own or (self._of_ruleset(code, "en"), self._of_ruleset(code, "zh-Hans"))


def _reason(code: str, texts: ReasonTexts) -> risk_pb.Reason:
    english, chinese = texts(code)
    return risk_pb.Reason(
        code=code,
        customer_texts=[
            text_pb2.LocalizedText(language_code="en", text=english),
            text_pb2.LocalizedText(language_code="zh-Hans", text=chinese),
        ],
    )


def annotation_to_proto(reply: AnnotationReply) -> risk_pb.Annotation:
    """Write an annotation."""
    return risk_pb.Annotation(
        decision_id=f"{DECISION_PREFIX}{reply.decision_sequence}",
        label=int(reply.label),  # type: ignore[arg-type]  # the numbers are the contract's own
        actor_id=reply.actor_id,
        annotate_time=stamp(reply.at_us),
    )


def explanation_to_proto(explanation: Explanation, write_decision: DecisionWriter) -> risk_pb.ExplainDecisionResponse:
    """Write an explanation."""
    response = risk_pb.ExplainDecisionResponse(
        features=[_feature(name, value) for name, value in explanation.features],
        rules=[
            risk_pb.RuleTrace(
                rule_id=rule.rule_id,
                expression=rule.when,
                result=risk_pb.RuleResult.Value(f"RULE_RESULT_{rule.result}"),
                reason_code=rule.reason_code,
                weight=rule.weight,
                why=rule.why,
                features=[_feature(name, value) for name, value in rule.features],
            )
            for rule in explanation.rules
        ],
        annotations=[annotation_to_proto(a) for a in explanation.annotations],
        reproduced=explanation.reproduced,
    )
    write_decision(explanation.decision, response.decision)
    return response


def _feature(name: str, value: float | str) -> risk_pb.FeatureValue:
    if isinstance(value, bool):
        return risk_pb.FeatureValue(name=name, bool_value=value)
    if isinstance(value, int):
        return risk_pb.FeatureValue(name=name, int_value=value)
    if isinstance(value, float):
        return risk_pb.FeatureValue(name=name, double_value=value)
    return risk_pb.FeatureValue(name=name, string_value=value)


def block_to_proto(block: Block) -> line_pb.Block:
    """Write a block."""
    return line_pb.Block(
        block_id=block.block_id,
        kind=int(block.kind),  # type: ignore[arg-type]  # the numbers are the contract's own
        reason_code=block.reason_code,
        placed_by=block.placed_by,
        place_time=stamp(block.placed_us),
        expire_time=stamp_if(block.expires_us),
        lift_approved_by=block.lift_approved_by,
    )


def line_to_proto(reply: LineReply) -> line_pb.CreditLine:
    """Write a line as it stands at the reply's time."""
    line, books, currency = reply.line, reply.line.books, reply.line.currency
    return line_pb.CreditLine(
        line_id=line.line_id,
        customer_id=reply.key[1],
        product_id=line.product_id,
        state=int(line.state(reply.at_us)),  # type: ignore[arg-type]  # the numbers are the contract's own
        limit=money(currency, postings.limit(books)),
        available=money(currency, postings.available(books)),
        held=money(currency, postings.held(books)),
        outstanding=money(currency, postings.outstanding(books)),
        past_due=money(currency, 0),
        customer_credit=money(currency, postings.customer_credit(books)),
        blocks=[block_to_proto(block) for block in line.standing_blocks(reply.at_us)],
        open_time=stamp(line.opened_us),
        time_zone=line.time_zone,
        etag=str(reply.sequence),
    )


def hold_to_proto(reply: HoldReply) -> ledger_pb.Hold:
    """Write a hold."""
    p, currency = reply.purchase, reply.currency
    return ledger_pb.Hold(
        hold_id=p.transaction_id,
        customer_id=reply.key[1],
        line_id=p.line_id,
        state=int(p.state),  # type: ignore[arg-type]  # the numbers are the contract's own
        authorised=money(currency, p.authorised_minor),
        captured=money(currency, p.captured_minor),
        released=money(currency, p.released_minor),
        expired=money(currency, p.expired_minor),
        remaining=money(currency, p.remaining_minor),
        forced=money(currency, p.forced_minor),
        refunded=money(currency, p.refunded_minor),
        principal=money(currency, p.principal_minor),
        place_time=stamp(p.placed_us),
        expire_time=stamp_if(p.lapses_us),
        under_review=p.state is HoldState.PENDING and p.review_deadline_us > 0,
    )


def payment_to_proto(reply: PaymentReply) -> ledger_pb.Payment:
    """Write a payment."""
    payment, currency = reply.payment, reply.currency
    return ledger_pb.Payment(
        payment_id=payment.payment_id,
        customer_id=reply.key[1],
        line_id=payment.line_id,
        state=int(payment.state),  # type: ignore[arg-type]  # the numbers are the contract's own
        amount=money(currency, payment.amount_minor),
        allocations=[
            ledger_pb.Allocation(transaction_id=share.transaction_id, amount=money(currency, share.amount_minor))
            for share in payment.allocations
        ],
        to_customer_credit=money(currency, payment.to_credit_minor),
        value_time=stamp(payment.value_us),
        record_time=stamp(payment.recorded_us),
    )


def entry_to_proto(entry: Entry) -> ledger_pb.JournalEntry:
    """Write a row of the journal: its clear part."""
    row, event, currency = entry.row, entry.event, entry.currency
    return ledger_pb.JournalEntry(
        sequence=row.sequence,
        kind=KINDS[type(event)],
        line_id=entry.line_id,
        request_id=row.request_id,
        reference_id=getattr(event, "transaction_id", "") or getattr(event, "payment_id", ""),
        transfers=[
            ledger_pb.Transfer(
                debit_account=postings.ACCOUNT_CODES[t.debit],
                credit_account=postings.ACCOUNT_CODES[t.credit],
                layer=int(t.layer) + 1,  # type: ignore[arg-type]  # the contract keeps 0 for "unspecified"
                amount=money(currency, t.amount_minor),
            )
            for t in entry.transfers
        ],
        record_time=stamp(row.at_us),
        entry_hash=row.hash,
    )
