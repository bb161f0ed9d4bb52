"""The clients cover the contract, all of it, and say the same."""

from __future__ import annotations

import ast
import datetime as dt
import inspect
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import iso4217
import pytest
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import riskgate_client
from riskgate.common.v1 import money_pb2, text_pb2
from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.credit.v1 import ledger_service_pb2 as ledger_pb
from riskgate.identity.v1 import device_service_pb2 as device_pb
from riskgate.identity.v1 import grant_pb2
from riskgate.identity.v1 import otp_service_pb2 as otp_pb
from riskgate.operations.v1 import customer_service_pb2 as customer_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_client import client, customers, devices, ledger, lines, otp, proofs, risk, values
from riskgate_client.call import Call
from riskgate_client.reading import ENUMS, number_of, reader
from riskgate_client.values import BlockKind, Channel, Label, Location, Money, Outcome
from tests.client.messages import NOON, stamp

PACKAGE = Path(riskgate_client.__file__).parent
PAIRS = [
    (client.Risk, client.AsyncRisk), (client.Lines, client.AsyncLines), (client.Ledger, client.AsyncLedger),
    (client.Otp, client.AsyncOtp), (client.Devices, client.AsyncDevices),
    (client.Customers, client.AsyncCustomers),
]  # fmt: skip
SERVICES: list[tuple[ServiceDescriptor, Any, type]] = [
    (risk_pb.DESCRIPTOR.services_by_name["RiskService"], risk, client.Risk),
    (line_pb.DESCRIPTOR.services_by_name["CreditLineService"], lines, client.Lines),
    (ledger_pb.DESCRIPTOR.services_by_name["LedgerService"], ledger, client.Ledger),
    (otp_pb.DESCRIPTOR.services_by_name["OtpService"], otp, client.Otp),
    (device_pb.DESCRIPTOR.services_by_name["DeviceService"], devices, client.Devices),
    (customer_pb.DESCRIPTOR.services_by_name["CustomerService"], customers, client.Customers),
]

# Values whose message has another name.
RENAMED = {
    "Explanation": risk_pb.ExplainDecisionResponse,
    "PlacedBlock": line_pb.PlaceBlockResponse,
    "LiftedBlock": line_pb.LiftBlockResponse,
    "Refund": ledger_pb.RefundCaptureResponse,
    "PaymentReceipt": ledger_pb.RecordPaymentResponse,
    "EnrolledPhone": otp_pb.EnrollPhoneResponse,
    "EnrolledTotp": otp_pb.EnrollTotpResponse,
    "RecoveryCodes": otp_pb.GenerateRecoveryCodesResponse,
    "RecoveryGrant": otp_pb.VerifyRecoveryCodeResponse,
    "EnrollmentChallenge": device_pb.BeginEnrollmentResponse,
    "DeviceChallenge": device_pb.BeginChallengeResponse,
    "RevokedDevices": device_pb.RevokeAllDevicesResponse,
    "AppAttestation": device_pb.AppAttestRegistration,
    "RawKeyAnswer": device_pb.RawKeyRegistration,
}
# Values that are taken only, or read by hand.
NOT_MIRRORED = {"Page", "CheckResult"}


def methods(service: type) -> dict[str, Callable[..., Any]]:
    return {name: value for name, value in vars(service).items() if inspect.isfunction(value)}


def sample(name: str, annotation: str) -> Any:
    """Return something that is no default for an argument of a builder."""
    samples: dict[str, Any] = {
        "str": f"the-{name}",
        "int": 7,
        "bool": True,
        "Money": Money("CNY", 5),
        "Location": Location(1.5, 2.5),
        "dt.datetime": NOON,
        "Channel": Channel.WEB,
        "Label": Label.CHARGEBACK,
        "BlockKind": BlockKind.HARDSHIP,
        "ProofPurpose": proofs.ProofPurpose.UNLOCK,
        "DevicePlatform": proofs.DevicePlatform.JOSE,
        "RawKeyAnswer": proofs.RawKeyAnswer(b"k", b"s", (b"c",), proofs.AppAttestation("id", b"object")),
        "bytes": b"the bytes",
        "Iterable[str]": ["one", "two"],
        "Iterable[Outcome]": [Outcome.REVIEW],
        "Iterable[Call[Decision]]": [risk.check(customer_id="ada", transaction_id="T1")],
    }
    return samples[annotation.removesuffix(" | None")]


# Of the arguments in a line exactly one is given.
ALTERNATIVES = {
    otp.verify_code: ("challenge_id", "factor_id"),
    devices.finish_enrollment: ("raw_key", "webauthn_registration_json"),
    devices.verify_challenge: ("signature", "compact_jws", "webauthn_assertion_json"),
}


def described(builder: Callable[..., Call[Any]], which: int = 0) -> Call[Any]:
    """Describe a call with every argument given; of alternatives the one whose turn it is."""
    parameters = [p for p in inspect.signature(builder).parameters.values() if p.kind is not p.VAR_KEYWORD]
    others = [name for turn, name in enumerate(ALTERNATIVES.get(builder, ())) if turn != which]
    if "signature" in others:
        others.append("credential_id")
    return builder(**{p.name: sample(p.name, p.annotation) for p in parameters if p.name not in others})


def builders() -> list[Any]:
    found = []
    for _, module, service in SERVICES:
        for name in methods(service):
            builder = getattr(module, "stream" if name == "check_stream" else name)
            found.append(pytest.param(builder, id=f"{service.__name__}.{name}"))
    return found


@pytest.mark.parametrize(("service", "module", "surface"), SERVICES, ids=lambda value: getattr(value, "name", ""))
def test_every_call_of_a_service_has_a_method(service: ServiceDescriptor, module: Any, surface: type) -> None:
    made = {
        described(getattr(module, "stream" if name == "check_stream" else name)).method for name in methods(surface)
    }

    assert made == {method.name for method in service.methods}


@pytest.mark.parametrize("builder", builders())
def test_a_call_sends_the_message_its_method_takes(builder: Callable[..., Call[Any]]) -> None:
    call = described(builder)
    service = next(service for service, module, _ in SERVICES if builder.__module__ == module.__name__)

    assert call.request.DESCRIPTOR is service.methods_by_name[call.method].input_type
    assert f"{service.name}Stub" == getattr(call.stub, "__name__", "")


@pytest.mark.parametrize("builder", [b for b in builders() if b.values[0] is not risk.stream])
def test_every_field_of_a_request_can_be_given(builder: Callable[..., Call[Any]]) -> None:
    turns = range(len(ALTERNATIVES.get(builder, ("",))))

    assert all(unset_fields(described(builder, which).request) == set() for which in turns)


def is_ours(value: object) -> bool:
    return isinstance(value, Message) and value.DESCRIPTOR.file.package.startswith("riskgate")


def unset_fields(message: Message) -> set[str]:
    unset = set()
    given = {field.name: value for field, value in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        chosen = field.containing_oneof and message.WhichOneof(field.containing_oneof.name)
        if field.name not in given and not chosen:
            unset.add(f"{message.DESCRIPTOR.name}.{field.name}")
        elif field.name in given and is_ours(given[field.name]):
            unset |= unset_fields(given[field.name])
    return unset


@pytest.mark.parametrize("builder", builders())
def test_only_what_changes_nothing_goes_without_a_request_id(builder: Callable[..., Call[Any]]) -> None:
    call = described(builder)

    carries_one = "request_id" in call.request.DESCRIPTOR.fields_by_name
    carries_many = call.method in {"BatchCheckTransactions", "StreamCheckTransactions"}
    assert call.command == (carries_one or carries_many)
    assert (call.request_id is not None) == carries_one
    if carries_one:
        assert call.request.request_id == call.request_id
    if not call.command:
        assert call.method.startswith(("Get", "List", "Explain", "Watch"))


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS, ids=lambda service: service.__name__)
def test_both_clients_have_the_same_methods_with_the_same_arguments(blocking: type, asynchronous: type) -> None:
    def surface(service: type) -> dict[str, list[str]]:
        return {name: list(inspect.signature(method).parameters) for name, method in methods(service).items()}

    assert surface(blocking) == surface(asynchronous)
    assert all(method.__doc__ for method in methods(blocking).values())


def test_both_clients_are_made_with_the_same_arguments() -> None:
    blocking = inspect.signature(riskgate_client.Riskgate).parameters
    asynchronous = inspect.signature(riskgate_client.AsyncRiskgate).parameters

    assert blocking == asynchronous


def mirrored() -> list[Any]:
    """Return every value with the message it mirrors."""
    found = []
    for name, value in {**vars(proofs), **vars(values)}.items():
        if isinstance(value, type) and is_dataclass(value) and name not in NOT_MIRRORED:
            message = RENAMED.get(name)
            for module in (risk_pb, line_pb, ledger_pb, otp_pb, device_pb, grant_pb2, money_pb2, text_pb2):
                message = message or getattr(module, name, None)
            found.append(pytest.param(value, message, id=name))
    return found


@pytest.mark.parametrize(("value", "message"), mirrored())
def test_a_value_has_the_fields_of_its_message(value: type, message: Any) -> None:
    theirs = {
        field.containing_oneof.name if field.containing_oneof else field.name for field in message.DESCRIPTOR.fields
    }

    assert {field.name for field in fields(value)} == theirs


def full(message_class: Any) -> Any:
    """Return a message in which every field is present."""
    message = message_class()
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.message_type.full_name == "google.protobuf.Timestamp":
                inner: Any = stamp()
            else:
                inner = full(GetMessageClass(field.message_type))
            if field.is_repeated:
                getattr(message, field.name).append(inner)
            else:
                getattr(message, field.name).CopyFrom(inner)
        elif field.is_repeated:
            words: dict[int, Any] = {FieldDescriptor.TYPE_STRING: "x", FieldDescriptor.TYPE_BYTES: b"x"}
            getattr(message, field.name).append(words.get(field.type, 1))
        elif field.containing_oneof is None:
            kinds = {FieldDescriptor.CPPTYPE_STRING: "x", FieldDescriptor.CPPTYPE_BOOL: True}
            given = b"x" if field.type == FieldDescriptor.TYPE_BYTES else kinds.get(field.cpp_type, 1)
            setattr(message, field.name, given)
    return message


@pytest.mark.parametrize(("value", "message"), mirrored())
def test_a_full_message_is_read_in_full(value: type, message: Any) -> None:
    read: Any = reader(value)(full(message))

    assert isinstance(read, value)
    # Nothing got lost: no field is what an empty message would give.
    unread = [f.name for f in fields(value) if getattr(read, f.name) in (None, "", 0, ())]
    assert unread == (["value"] if value is values.FeatureValue else [])


def test_times_are_aware_and_exact() -> None:
    message = risk_pb.Annotation(decision_id="d-1", annotate_time=stamp())

    read = reader(values.Annotation)(message)

    assert read.annotate_time == NOON
    assert read.annotate_time.tzinfo is dt.UTC


def test_days_are_dates() -> None:
    message = full(ledger_pb.Installment)
    message.due_date.year, message.due_date.month, message.due_date.day = 2026, 2, 28

    assert reader(values.Installment)(message).due_date == dt.date(2026, 2, 28)


@pytest.mark.parametrize(
    ("given", "read"),
    [({"int_value": 3}, 3), ({"double_value": 0.5}, 0.5), ({"bool_value": False}, False), ({"string_value": ""}, "")],
    ids=["int", "double", "bool", "string"],
)
def test_a_feature_has_the_value_that_was_chosen(given: dict[str, Any], read: object) -> None:
    value = reader(values.FeatureValue)(risk_pb.FeatureValue(name="f", **given)).value

    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize("word", ENUMS, ids=lambda word: word.__name__)
def test_an_enum_has_the_words_of_the_contract(word: Any) -> None:
    wire, prefix = ENUMS[word]
    theirs = {name.removeprefix(prefix): number for name, number in wire.items()}
    ours = {member.value: number_of("word", member, word) for member in word}

    # Only an outcome has no "unspecified": it is never sent, and an unknown one counts as a decline.
    assert ours == {name: n for name, n in theirs.items() if not (word is Outcome and name == "UNSPECIFIED")}


def test_an_outcome_newer_than_the_client_is_a_decline() -> None:
    message = full(risk_pb.Decision)
    message.outcome = 99

    assert reader(values.Decision)(message).outcome is Outcome.DECLINE


def test_another_word_newer_than_the_client_is_unspecified() -> None:
    message = full(ledger_pb.Hold)
    message.state = 99

    assert reader(values.Hold)(message).state is values.HoldState.UNSPECIFIED


@pytest.mark.parametrize("amount", [12.5, True, "12"])
def test_money_is_whole_minor_units(amount: Any) -> None:
    with pytest.raises(TypeError, match="amount_minor must be an int"):
        Money("CNY", amount)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        risk.check(customer_id="ada", transaction_id="T1", event_time=dt.datetime(2026, 11, 23))  # noqa: DTZ001 - tested


def test_a_reason_speaks_the_customers_language() -> None:
    texts = (values.LocalizedText("en", "No."), values.LocalizedText("zh-Hans", "不。"))
    reason = values.Reason("NO", texts)

    assert (reason.text(), reason.text("zh-Hans"), reason.text("fr")) == ("No.", "不。", "")


def test_the_client_needs_only_grpc_protobuf_and_the_contract() -> None:
    roots = set()
    # The phone made of software signs as a real one would: whoever imports it brings what signing needs.
    for path in sorted(set(PACKAGE.glob("*.py")) - {PACKAGE / "phone.py"}):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add((node.module or "").partition(".")[0])

    assert roots - set(sys.stdlib_module_names) == {"google", "grpc", "riskgate", "riskgate_client"}


def test_everything_public_is_offered_at_the_top() -> None:
    offered = set(riskgate_client.__all__)
    named = {
        name
        for module in (values, riskgate_client.errors)
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }

    assert named <= offered
    assert all(hasattr(riskgate_client, name) for name in offered)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Money("CNY", 487_100), "CNY 4,871.00"),
        (Money("CNY", 5), "CNY 0.05"),
        (Money("CNY", 0), "CNY 0.00"),
        (Money("CNY", -123_456_789), "CNY -1,234,567.89"),
        (Money("JPY", 4_871), "JPY 4,871"),
        (Money("KWD", -1_234_005), "KWD -1,234.005"),
    ],
    ids=str,
)
def test_an_amount_reads_as_people_write_it(amount: Money, text: str) -> None:
    assert f"{amount}" == text


def test_amounts_have_the_decimal_places_of_their_currency() -> None:
    places = {
        currency.code: str(Money(currency.code, 10**9)).partition(".")[2].count("0")
        for currency in iso4217.Currency
        if currency.exponent is not None
    }

    assert places == {c.code: c.exponent for c in iso4217.Currency if c.exponent is not None}


def test_an_amount_without_a_currency_is_no_amount() -> None:
    with pytest.raises(TypeError, match="amount must be Money, not int"):
        risk.check(customer_id="ada", transaction_id="T1", amount=129)  # type: ignore[arg-type]  # tested
    with pytest.raises(TypeError, match="limit must be Money, not float"):
        lines.open(customer_id="ada", line_id="l", limit=1.5, decision_reference="d", actor_id="a")  # type: ignore[arg-type]  # tested
