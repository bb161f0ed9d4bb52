"""
One customer's line from its first day: bought, captured, attacked, suspended, lifted, repaid.

Every sentence is something the server answered; if it answers anything else, the story breaks and the
demonstration fails.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.table import Table
from rich.text import Text
from scripts.demonstration.proofs import Prover
from scripts.streaming.report import money

from riskgate_client import (
    AsyncRiskgate,
    Channel,
    CreditLine,
    Decision,
    Explanation,
    LineState,
    Location,
    Money,
    Outcome,
    RuleResult,
)

CUSTOMER: Final = "lin-mei"
CURRENCY: Final = "CNY"
LIMIT: Final = Money(CURRENCY, 800_000)
PHONE: Final = "lin-mei-phone"
ANALYST: Final = "analyst.zhou"
HOME: Final = Location(30.2489, 120.1653)
FAR: Final = Location(43.8250, 87.6170)

_HISTORY: Final = (
    (0, 8, 5, 1_800, "coffee", "5814"),
    (0, 12, 20, 3_200, "noodles", "5812"),
    (0, 18, 45, 12_650, "groceries", "5411"),
    (1, 8, 10, 1_800, "coffee", "5814"),
    (1, 19, 5, 8_900, "cinema", "7832"),
    (2, 12, 15, 4_100, "lunch", "5812"),
    (2, 18, 30, 6_480, "pharmacy", "5912"),
    (3, 8, 2, 2_200, "coffee and a roll", "5814"),
    (3, 19, 40, 15_500, "groceries", "5411"),
    (4, 12, 25, 3_600, "noodles", "5812"),
    (4, 20, 10, 23_900, "a jacket", "5651"),
    (5, 8, 15, 1_800, "coffee", "5814"),
)
"""Day, hour, minute, minor units, what, category."""


class StoryBroken(Exception):
    """The server answered something else than the story needs."""


class Story:
    """Tells the story while it happens. `shop` is the merchant's backend, `desk` the analyst's, `inbox` her phone's."""

    def __init__(
        self, out: Console, shop: AsyncRiskgate, desk: AsyncRiskgate, *, inbox: Path, begin: datetime, zone: str
    ) -> None:
        self._out, self._shop, self._desk = out, shop, desk
        self._prover = Prover(
            shop, CUSTOMER, inbox=inbox, say=partial(self._say, None), told=self._stamp, expect=_expect
        )
        self._zone = ZoneInfo(zone)
        self._midnight = begin.astimezone(self._zone).replace(hour=0, minute=0, second=0, microsecond=0)
        self._zone_name = zone
        self._number = 0

    async def tell(self) -> Decision:
        """
        Live through all of it, and return the decision that caught the thief.

        Raises:
            StoryBroken: the server answered something else than expected.
            RiskgateError: it refused a call.
        """
        await self._open()
        await self._everyday()
        caught = await self._attack()
        await self._suspended(caught)
        await self._lift(caught)
        await self._prove()
        await self._repay()
        return caught

    async def _open(self) -> None:
        at = self._time(0, 7, 30)
        line = await self._shop.lines.open(
            customer_id=CUSTOMER,
            line_id="main",
            limit=LIMIT,
            decision_reference="demo-approval-1",
            actor_id="demo",
            time_zone=self._zone_name,
            event_time=at,
        )
        self._say(at, f"Lin Mei's line is opened with {_m(line.limit)}; all of it is available.")
        _expect(line.available == LIMIT, "a new line has its whole limit available")
        await self._prover.enrol()

    async def _everyday(self) -> None:
        for day, hour, minute, amount, what, category in _HISTORY:
            decision = await self._buy(self._time(day, hour, minute), amount, category)
            _expect(decision.approved, f"{what} is approved")
            hold = await self._shop.ledger.capture(customer_id=CUSTOMER, hold_id=decision.transaction_id)
            if self._number == 1:
                held = decision.held_amount
                self._say(decision.event_time, f"She buys {what}, {_m(Money(CURRENCY, amount))}: approved, score 0.")
                self._say(
                    None, f"{_m(held)} is held in the same step, and captured when the shop delivers ({hold.state})."
                )
        line = await self._desk.lines.get(CUSTOMER)
        spent = sum(amount for *_, amount, _, _ in _HISTORY)
        self._say(
            self._time(5, 8, 15),
            f"Twelve purchases later she owes {_m(line.outstanding)}; {_m(line.available)} is available.",
        )
        _expect(line.outstanding.amount_minor == spent, "what is owed is what was captured")

    async def _attack(self) -> Decision:
        at = self._time(5, 8, 50)
        decision = await self._buy(at, 389_900, "5732", device="unknown-phone", place=FAR, address="198.18.7.7")
        self._say(
            at,
            f"35 minutes after her coffee, {_m(decision.requested_amount)} of electronics from a phone never seen,"
            " 3,200 km away.",
        )
        _expect(decision.outcome is Outcome.DECLINE, "the attack is declined")
        _expect(decision.line_suspended, "the line is suspended at once")
        self._say(
            None, f"{decision.outcome.value}, risk score {decision.risk_score}: {', '.join(decision.reason_codes)}."
        )
        reason = decision.reasons[0]
        self._say(None, f"She is told: “{reason.text('en')}” / “{reason.text('zh-Hans')}”")
        return decision

    async def _suspended(self, caught: Decision) -> None:
        line = await self._desk.lines.get(CUSTOMER)
        _expect(line.state is LineState.SUSPENDED, "the line is suspended")
        block = line.blocks[0]
        _expect(block.block_id == caught.block_id, "the standing block is the one the decision names")
        until = f", until {self._stamp(block.expire_time)} unless somebody lifts it" if block.expire_time else ""
        self._say(
            None,
            f"The line is {line.state.value}: {block.kind.value}, {block.reason_code}, by {block.placed_by}{until}.",
        )
        at = self._time(5, 9, 5)
        decision = await self._buy(at, 2_600, "5812")
        self._say(at, f"Her breakfast is refused too: {', '.join(decision.reason_codes)}.")
        _expect("LINE_BLOCKED" in decision.reason_codes, "nothing is bought on a suspended line")

    async def _lift(self, caught: Decision) -> None:
        lifted = await self._desk.lines.lift_block(
            customer_id=CUSTOMER,
            block_id=caught.block_id,
            actor_id=ANALYST,
            note="Called back on the number on file: she has her phone and bought nothing. Purchase stays refused.",
        )
        _expect(lifted.lifted, "one analyst may lift a soft block")
        _expect(lifted.credit_line.state is LineState.ACTIVE, "the line is active again")
        self._say(None, f"{ANALYST} calls her back and lifts the block: the line is {lifted.credit_line.state.value}.")
        # Hours later: an hour with two refusals makes anything small suspicious.
        at = self._time(5, 12, 20)
        decision = await self._buy(at, 3_200, "5812")
        _expect(decision.approved, f"she can buy again ({decision.outcome}: {', '.join(decision.reason_codes)})")
        await self._shop.ledger.capture(customer_id=CUSTOMER, hold_id=decision.transaction_id)
        self._say(at, f"Lunch, {_m(decision.held_amount)}: approved, captured.")

    async def _prove(self) -> None:
        """A takeover meets a demand that the thief cannot answer; the owner's own large purchase is one she can."""
        at = self._time(6, 10, 0)
        asked = await self._buy(at, 65_000, "5732", device="thiefs-phone", address="198.18.7.9")
        _expect(asked.outcome is Outcome.STEP_UP, f"a new phone is asked for a proof ({_codes(asked)})")
        self._say(
            at,
            f"A thief with her password, on a phone of his own, wants {_m(asked.requested_amount)} of goods:"
            f" {asked.outcome}, score {asked.risk_score}: {_codes(asked)}.",
        )
        await self._prover.withstand(asked)
        at = self._time(7, 15, 30)
        asked = await self._buy(at, 79_900, "5732")
        _expect(asked.outcome is Outcome.STEP_UP, f"an unusual amount is asked for a proof ({_codes(asked)})")
        self._say(
            at,
            f"A day later she buys a camera herself, from her own phone: {asked.outcome}, score {asked.risk_score}:"
            f" {_codes(asked)}.",
        )
        decision = await self._prover.approve(asked)
        await self._shop.ledger.capture(customer_id=CUSTOMER, hold_id=decision.transaction_id)

    async def _repay(self) -> None:
        line = await self._desk.lines.get(CUSTOMER)
        owed = line.outstanding
        receipt = await self._shop.ledger.record_payment(customer_id=CUSTOMER, payment_id="lin-mei-pay-1", amount=owed)
        repaid = len(receipt.payment.allocations)
        self._say(None, f"Payday: she pays {_m(owed)} back, which settles {repaid} purchases, the oldest first.")
        line = await self._desk.lines.get(CUSTOMER)
        self._say(None, f"Available is {_m(line.available)} again, owed {_m(line.outstanding)}, held {_m(line.held)}.")
        _expect(_untouched(line), "everything is available again")

    async def _buy(
        self,
        at: datetime,
        amount_minor: int,
        category: str,
        *,
        device: str = PHONE,
        place: Location = HOME,
        address: str = "100.64.7.21",
    ) -> Decision:
        self._number += 1
        return await self._shop.risk.check(
            customer_id=CUSTOMER,
            transaction_id=f"lin-mei-{self._number}",
            amount=Money(CURRENCY, amount_minor),
            merchant_id=f"shop-{category}",
            merchant_category_code=category,
            merchant_country_code="CN",
            device_id=device,
            ip_address=address,
            location=place,
            channel=Channel.MOBILE_APP,
            event_time=at,
        )

    def _time(self, day: int, hour: int, minute: int) -> datetime:
        return self._midnight + timedelta(days=day, hours=hour, minutes=minute)

    def _say(self, at: datetime | None, text: str) -> None:
        line_of(self._out, text, beside=self._stamp(at) if at else "", width=len("30 Mar 07:30"))

    def _stamp(self, at: datetime) -> str:
        return f"{at.astimezone(self._zone):%d %b %H:%M}"


def line_of(out: Console, text: str, *, beside: str, width: int) -> None:
    """Print text that wraps beside, not below, what stands before it."""
    grid = Table.grid(padding=(0, 0, 0, 2))
    grid.add_column(width=width + 2, no_wrap=True)
    grid.add_column()
    grid.add_row(Text(f"  {beside}"), Text(text))
    out.print(grid)


def print_explanation(out: Console, explanation: Explanation) -> None:
    """Print why a purchase was decided as it was: every rule that hit, what it says, and what it saw."""
    decision = explanation.decision
    hits = [rule for rule in explanation.rules if rule.result is RuleResult.HIT]
    out.print(
        f"  {decision.decision_id} of {decision.customer_id}: {decision.outcome.value}, score {decision.risk_score},"
        f" ruleset {decision.ruleset_version}; {len(hits)} of {len(explanation.rules)} rules hit.",
        markup=False,
    )
    for rule in hits:
        line_of(out, f"{rule.rule_id} ({rule.reason_code}, weight {rule.weight}): {rule.why}", beside="•", width=1)
        seen = ", ".join(f"{feature.name} = {_value(feature.value)}" for feature in rule.features)
        line_of(out, f"it saw {seen}", beside="", width=3)
    again = "the same answer" if explanation.reproduced else "ANOTHER ANSWER"
    out.print(f"  Recomputed from the stored features: {again}.")


def check_explanation(explanation: Explanation) -> None:
    """
    Make sure that the explanation explains.

    Raises:
        StoryBroken: it does not.
    """
    _expect(explanation.reproduced, "the decision is recomputed from what was stored")
    _expect(any(rule.result is RuleResult.HIT for rule in explanation.rules), "a refused purchase names its rules")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def _untouched(line: CreditLine) -> bool:
    return line.available == line.limit and line.outstanding.amount_minor == 0 and line.held.amount_minor == 0


def _codes(decision: Decision) -> str:
    return ", ".join(decision.reason_codes)


def _m(amount: Money | None) -> str:
    return money(amount.amount_minor, amount.currency_code) if amount else "nothing"


def _expect(kept: bool, what: str) -> None:  # noqa: FBT001  reads as a sentence
    if not kept:
        raise StoryBroken(f"expected that {what}")
