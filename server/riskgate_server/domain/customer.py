"""The customer: the unit of consistency. Everything a purchase is decided on changes together here."""

from __future__ import annotations

import msgspec

from riskgate_server.domain.credit.line import CreditLine
from riskgate_server.domain.errors import FieldViolation, InvalidRequest, NotFound
from riskgate_server.domain.fraud.profile import EMPTY_PROFILE, Profile

CustomerKey = tuple[str, str]
"""(tenant id, customer id): leads every key that belongs to a customer."""


class Customer(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    State of one customer after the journal entry numbered `sequence`.

    `last_us` is the time of that entry: the customer's clock never goes below it. `head` is its
    hash, to which the next entry is chained. Of one who is `erased` nothing happens any more but the end of holds.
    """

    tenant_id: str
    customer_id: str
    sequence: int
    last_us: int
    head: bytes
    lines: tuple[CreditLine, ...]
    profile: Profile
    erased: bool = False

    def line(self, line_id: str) -> CreditLine:
        """
        Return the named line, or the only one when `line_id` is empty.

        Raises:
            NotFound: no such line.
            InvalidRequest: none was named and there are several.
        """
        if not line_id and len(self.lines) == 1:
            return self.lines[0]
        if not line_id and self.lines:
            reason, message = "LINE_AMBIGUOUS", "the customer has several lines: name one"
            raise InvalidRequest(reason, message, FieldViolation("line_id", message))
        for line in self.lines:
            if line.line_id == line_id:
                return line
        reason, message = "LINE_NOT_FOUND", "the customer has no such line"
        raise NotFound(reason, message)

    def with_profile(self, profile: Profile) -> Customer:
        """Return the customer with another profile."""
        return msgspec.structs.replace(self, profile=profile)

    def with_line(self, changed: CreditLine) -> tuple[CreditLine, ...]:
        """Return the lines with one of them replaced."""
        if len(self.lines) == 1:
            # Nearly everybody has one.
            return (changed,) if self.lines[0].line_id == changed.line_id else self.lines
        return tuple(changed if line.line_id == changed.line_id else line for line in self.lines)


def new_customer(tenant_id: str, customer_id: str) -> Customer:
    """Return a customer about whom the journal says nothing yet."""
    return Customer(tenant_id, customer_id, 0, 0, bytes(32), (), EMPTY_PROFILE)
