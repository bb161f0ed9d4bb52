"""What every command must answer, and what must stand after it: all customers and all request ids of the model."""

from __future__ import annotations

from riskgate_server.engine import commands as c
from riskgate_server.engine.bounds import Bounds
from tests.simulation.acts import ACTS
from tests.simulation.model import (
    INTERNAL,
    PENDING,
    REFUSED,
    SMALL,
    Answer,
    Broken,
    Customer,
    Key,
    No,
    Request,
)


class Model:
    """All customers, and what every request id came to."""

    def __init__(self, bounds: Bounds = SMALL) -> None:
        self.bounds = bounds
        self.customers: dict[Key, Customer] = {}
        self.requests: dict[tuple[Key, str], Request] = {}
        self.harmful: set[tuple[Key, str]] = set()

    def answer(self, command: c.Command, now_us: int, *, late: bool = False) -> Answer:
        """Run one command and say what it must answer."""
        key, request_id = command.key, command.request_id
        if late:
            return ("failed", "DeadlinePassed", "DEADLINE_PASSED")
        dry = isinstance(command, c.CheckTransaction) and command.validate_only
        remembered = bool(request_id) and not dry
        known = self.requests.get((key, request_id))
        if remembered and known:
            return self._again(known, command)
        if (key, request_id) in self.harmful:
            return INTERNAL
        customer = self.customers.get(key)
        if customer is None and not isinstance(command, c.OpenCreditLine):
            return ("failed", "NotFound", "CUSTOMER_NOT_FOUND")
        draft = customer.copy() if customer else Customer()
        now_us = max(now_us, draft.last_us)
        draft.bounds = self.bounds
        settled = draft.end_lapsed(now_us, request_id, getattr(command, "transaction_id", ""))
        try:
            answer = ACTS[type(command)](draft, command, now_us)
        except No as no:
            if not remembered or no.answer[0] == "InvalidRequest":
                return ("failed", *no.answer)
            answer = ("refused", *no.answer)
            draft.note(REFUSED, now_us, request_id)
        except Broken:
            return self.quarantine(command)
        if isinstance(command, c.SettleLapsed):
            answer = ("settled", settled)
        if dry:
            return answer
        self.customers[key] = draft
        if remembered:
            self.requests[key, request_id] = Request(command.fingerprint, answer, now_us)
        return answer

    def _again(self, known: Request, command: c.Command) -> Answer:
        if known.fingerprint != command.fingerprint:
            return ("failed", "AlreadyExists", "REQUEST_ID_REUSED")
        if not known.forgotten or known.answer[0] == "decision":
            return known.answer
        if known.answer[0] == "refused":
            return ("failed", *known.answer[1:])
        return ("failed", "PreconditionFailed", "REPLY_FORGOTTEN")

    def trial(self) -> Model:
        """A model to try on what is then rolled back. It shares customers: they are replaced, never changed."""
        other = Model(self.bounds)
        other.customers, other.requests = dict(self.customers), dict(self.requests)
        # What broke us is remembered also when the commit then fails.
        other.harmful = self.harmful
        return other

    def quarantine(self, command: c.Command) -> Answer:
        if command.request_id:
            self.harmful.add((command.key, command.request_id))
        return INTERNAL

    def forget(self, before_us: int) -> None:
        """Replies are kept for a time only."""
        for request in self.requests.values():
            if request.at_us < before_us:
                request.forgotten = True

    def due(self, now_us: int) -> set[Key]:
        """Customers with a hold whose time is over."""
        return {
            key
            for key, customer in self.customers.items()
            if any(p.state == PENDING and p.lapses_us <= now_us for p in customer.purchases.values())
        }
