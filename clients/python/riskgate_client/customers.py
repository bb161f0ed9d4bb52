"""Calls of CustomerService: look after customers as people."""

from __future__ import annotations

import datetime as dt
from typing import Final, Unpack

from riskgate.operations.v1 import customer_service_pb2 as pb
from riskgate.operations.v1.customer_service_pb2_grpc import CustomerServiceStub
from riskgate_client.call import Call, CommandOptions, Verbs
from riskgate_client.reading import moment

_customers: Final = Verbs(CustomerServiceStub)


def erase(*, customer_id: str, reason_code: str, actor_id: str, **options: Unpack[CommandOptions]) -> Call[dt.datetime]:
    """Destroy for good what can be read of a customer, and return when that was; the books stay, and still verify."""
    request = pb.EraseCustomerRequest(customer_id=customer_id, reason_code=reason_code, actor_id=actor_id)
    return _customers.command("EraseCustomer", request, moment("erase_time"), options)
