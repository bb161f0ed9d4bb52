"""Customers who buy, return and repay, and who know from the replies alone what their line must come to."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from riskgate.credit.v1 import ledger_service_pb2 as ledger
from riskgate.risk.v1 import risk_service_pb2 as risk
from tests.acceptance.calling import Told, check, money, open_line


class Wallet:
    """One customer. `next_request` is a pure function of what was told so far and of `chance`."""

    def __init__(self, customer_id: str, limit_minor: int, chance: random.Random) -> None:
        self.customer_id = customer_id
        self.limit = limit_minor
        self.drawn = 0
        self.credit = 0
        self.holds: dict[str, int] = {}
        self.captured: dict[str, int] = {}
        self._opened = False
        self._chance = chance
        self._asked = 0

    @property
    def held(self) -> int:
        """What the open holds reserve."""
        return sum(self.holds.values())

    def next_request(self) -> Message:
        """Return what this customer does next, under a new key."""
        self._asked += 1
        number = self._asked
        if not self._opened:
            self._opened = True
            return open_line(self.customer_id, self.limit)
        names: dict[str, Any] = {"customer_id": self.customer_id, "request_id": f"r{number}"}
        chance = self._chance
        doing = chance.random()
        if self.holds and doing < 0.45:
            return self._capture(names) if doing < 0.33 else self._void(names)
        if self.drawn > 0 and doing < 0.6:
            amount = chance.randint(1, self.drawn)
            return ledger.RecordPaymentRequest(**names, payment_id=f"p{number}", amount=money(amount))
        if self.captured and doing < 0.67:
            hold_id = chance.choice(sorted(self.captured))
            amount = chance.randint(1, self.captured[hold_id])
            return ledger.RefundCaptureRequest(**names, hold_id=hold_id, amount=money(amount))
        return check(self.customer_id, f"r{number}", f"t{number}", chance.randint(1, 3_000))

    def _capture(self, names: dict[str, Any]) -> Message:
        hold_id = self._chance.choice(sorted(self.holds))
        left = self.holds[hold_id]
        if left > 1 and self._chance.random() < 0.4:
            part = self._chance.randint(1, left - 1)
            return ledger.CaptureHoldRequest(
                **names, hold_id=hold_id, amount=money(part), final=self._chance.random() < 0.5
            )
        return ledger.CaptureHoldRequest(**names, hold_id=hold_id)

    def _void(self, names: dict[str, Any]) -> Message:
        return ledger.VoidHoldRequest(**names, hold_id=self._chance.choice(sorted(self.holds)))

    def learn(self, told: Told) -> None:
        """Take an answer into account."""
        if not told.done:
            return
        learned = _LEARNERS.get(type(told.request))
        if learned is not None:
            learned(self, told)

    def _checked(self, told: Told) -> None:
        held = risk.CheckTransactionResponse.FromString(told.reply).decision.held_amount.amount_minor
        if held:
            self.holds[told.request.transaction_id] = held

    def _took(self, told: Told) -> None:
        hold = ledger.CaptureHoldResponse.FromString(told.reply).hold
        before = self.captured.get(hold.hold_id, 0)
        self.drawn += hold.captured.amount_minor - self._captured_before(hold, before)
        # Nobody owes and is owed at once.
        used = min(self.credit, self.drawn)
        self.drawn -= used
        self.credit -= used
        self.captured[hold.hold_id] = hold.captured.amount_minor - hold.refunded.amount_minor
        self._left(hold)

    @staticmethod
    def _captured_before(hold: ledger.Hold, not_refunded: int) -> int:
        return not_refunded + hold.refunded.amount_minor

    def _voided(self, told: Told) -> None:
        self._left(ledger.VoidHoldResponse.FromString(told.reply).hold)

    def _left(self, hold: ledger.Hold) -> None:
        self.holds.pop(hold.hold_id, None)
        if hold.state == ledger.HOLD_STATE_PENDING:
            self.holds[hold.hold_id] = hold.remaining.amount_minor

    def _refunded(self, told: Told) -> None:
        reply = ledger.RefundCaptureResponse.FromString(told.reply)
        amount = told.request.amount.amount_minor
        self.drawn -= amount - reply.to_customer_credit.amount_minor
        self.credit += reply.to_customer_credit.amount_minor
        left = self.captured.pop(told.request.hold_id) - amount
        if left:
            self.captured[told.request.hold_id] = left

    def _paid(self, told: Told) -> None:
        payment = ledger.RecordPaymentResponse.FromString(told.reply).payment
        self.drawn -= payment.amount.amount_minor - payment.to_customer_credit.amount_minor
        self.credit += payment.to_customer_credit.amount_minor


_LEARNERS: dict[type, Callable[[Wallet, Told], None]] = {
    risk.CheckTransactionRequest: Wallet._checked,
    ledger.CaptureHoldRequest: Wallet._took,
    ledger.VoidHoldRequest: Wallet._voided,
    ledger.RefundCaptureRequest: Wallet._refunded,
    ledger.RecordPaymentRequest: Wallet._paid,
}
