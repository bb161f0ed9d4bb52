"""Who may only ask for proofs and check them learns from no answer which customers there are, or have a phone."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from riskgate.identity.v1 import grant_pb2
from riskgate.identity.v1 import otp_service_pb2 as pb
from tests.rpc.calling import Api, refused, refused_of
from tests.rpc.contract import SERVED, sample, scopes_of
from tests.rpc.phones import SIGN_IN, confirmed_phone, sent, whose
from tests.rpc.requests import new_id, open_line
from tests.rpc.serving import Tenant

SCOPES: Final = {"otp:send", "otp:verify", "device:verify"}
UNTOLD: Final = [method for method in SERVED if scopes_of(method) & SCOPES]


def asked(method: MethodDescriptor, customer: str, **fields: Any) -> Any:
    request: Any = sample(method)
    request.customer_id = customer
    for name, value in fields.items():
        if name in request.DESCRIPTOR.fields_by_name:
            setattr(request, name, value)
    return request


def heard(api: Api, method: MethodDescriptor, request: Any) -> object:
    """What a caller can tell: all of a refusal, and of an answer its shape, for no two challenges are alike."""
    try:
        raw = api.send(method, request.SerializeToString())
    except grpc.RpcError as error:
        return refused_of(error)
    answer = message_factory.GetMessageClass(method.output_type).FromString(raw)
    return [[field.name for field, _ in part.ListFields()] for _, part in answer.ListFields()]


@pytest.mark.parametrize("method", UNTOLD, ids=lambda method: method.name)
def test_a_customer_who_does_not_exist_is_as_one_who_has_nothing(tenant: Tenant, method: MethodDescriptor) -> None:
    open_line(tenant.api, "nothing")
    caller = tenant.caller(*SCOPES)

    def told(customer: str) -> list[object]:
        first, other = (asked(method, customer, request_id="first") for _ in range(2))
        if "purpose" in other.DESCRIPTOR.fields_by_name:
            other.purpose = grant_pb2.PROOF_PURPOSE_UNLOCK
        elif "challenge_id" in other.DESCRIPTOR.fields_by_name:
            other.challenge_id = "another"
        return [heard(caller, method, request) for request in (first, first, other)]

    assert told("nobody") == told("nothing")


def test_who_may_bind_or_revoke_is_told(tenant: Tenant) -> None:
    """There it must be known for whom: what is done to nobody would seem to be done."""
    told = [
        tenant.api.answer(method, asked(method, "nobody", request_id=new_id()).SerializeToString())
        for method in SERVED
        if scopes_of(method) & {"device:enroll", "device:revoke"}
    ]

    assert told == ["NOT_FOUND CUSTOMER_NOT_FOUND"] * len(told)


def test_the_phone_that_a_decoy_was_sent_to_is_there_when_it_is_named(tenant: Tenant) -> None:
    open_line(tenant.api)
    open_line(tenant.api, "nothing")
    confirmed_phone(tenant)

    for customer in ("ada", "nothing", "nobody"):
        request = pb.SendCodeRequest(**whose(customer), purpose=SIGN_IN)
        first = tenant.api.otp.SendCode(request).challenge
        named = pb.SendCodeRequest(**whose(customer), purpose=SIGN_IN, factor_id=first.factor_id)
        second = tenant.api.otp.SendCode(named).challenge
        assert (second.factor_id, second.masked_destination) == (first.factor_id, first.masked_destination)
        another = pb.SendCodeRequest(**whose(customer), purpose=SIGN_IN, factor_id="f-9")
        assert refused(partial(tenant.api.otp.SendCode, another)).name == "NOT_FOUND FACTOR_NOT_FOUND"


def test_who_has_a_phone_is_told_that_another_is_not_theirs(tenant: Tenant) -> None:
    """Even where it is named as that of their decoy would be."""
    open_line(tenant.api, "c")
    decoy = tenant.api.otp.SendCode(pb.SendCodeRequest(**whose("c"), purpose=SIGN_IN)).challenge
    for _ in range(7):
        open_line(tenant.api, "c", line_id=new_id())
    factor_id = confirmed_phone(tenant, "c")
    assert factor_id != decoy.factor_id

    named = pb.SendCodeRequest(**whose("c"), purpose=SIGN_IN, factor_id=decoy.factor_id)
    assert refused(partial(tenant.api.otp.SendCode, named)).name == "NOT_FOUND FACTOR_NOT_FOUND"
    assert sent(tenant, "c")


@pytest.mark.parametrize("number", ["+86 138 1234 5678", "+1 415 555 2671", "+45 20 12 34 56", "+49 1512 3456789"])
def test_a_masked_number_looks_alike_in_every_country(tenant: Tenant, number: str) -> None:
    open_line(tenant.api)
    confirmed_phone(tenant, number=number)

    real, decoy = (
        tenant.api.otp.SendCode(pb.SendCodeRequest(**whose(customer), purpose=SIGN_IN)).challenge.masked_destination
        for customer in ("ada", "nobody")
    )

    assert real == f"*** **** {number.replace(' ', '')[-4:]}"
    assert real[:-4] == decoy[:-4]
