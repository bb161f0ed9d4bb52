"""Commands of a customer's life, picked by chance but aimed at what stands: full limits, open holds, old ids."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from riskgate_server.domain.credit.line import BlockKind
from riskgate_server.domain.events import Label
from riskgate_server.engine import commands as c
from tests import factories as f
from tests.simulation import model as m
from tests.simulation.oracle import Model

RISKS: Final = (
    *("",) * 5, "step_up", "strong_step_up", "review", "review", "decline", "alarm", "flood", "broken",
)  # fmt: skip
KINDS: Final = (
    *("check",) * 8, *("capture",) * 5, *("increment",) * 2, "void", *("refund",) * 2, *("pay",) * 3, "reverse",
    "block", *("lift",) * 2, "close", "annotate", *("resolve",) * 2, "open", "settle",
)  # fmt: skip
ACTORS: Final = ("olga", "Olga", "peer ", "quan")


class CommandSource:
    """Makes commands from chance and from what the model says stands."""

    def __init__(self, random: Random, model: Model) -> None:
        self._random = random
        self._model = model
        self._made = 0

    def next(self, key: m.Key) -> c.Command:
        """One command for a customer; often one that should be refused."""
        kind = self._random.choice(KINDS)
        if key not in self._model.customers and self._random.random() < 0.8:
            kind = "open"
        who = self._model.customers.get(key) or m.Customer()
        self._made += 1
        place = {"tenant_id": key[0], "customer_id": key[1]}
        if kind == "settle":
            return f.settle(*key)
        made: c.Command = getattr(self, f"_{kind}")(who, f"r{self._made}", place)
        return made

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _one_of(self, items: Any, otherwise: str) -> str:
        """An existing id, rarely one that nobody knows."""
        known = list(items)
        return self._random.choice(known) if known and self._random.random() < 0.95 else otherwise

    def _line_id(self, who: m.Customer) -> str:
        if len(who.lines) == 1 and self._chance(0.8):
            return ""
        return self._one_of(who.lines, "") if self._chance(0.9) else ""

    def _currency(self, line: m.Line | None) -> str:
        return line.currency if line and self._random.random() < 0.97 else f.CURRENCY

    def _amount(self, *interesting: int) -> int:
        near = [amount + step for amount in interesting for step in (-1, 0, 0, 1)]
        picked = self._random.choice(near) if near and self._chance(0.5) else self._random.randint(1, 900)
        return max(picked, 1)

    def _open(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        return f.open_line(
            request_id,
            line_id=f"line-{self._random.randint(1, 3) if self._chance(0.2) else 1}",
            currency=f.CURRENCY if self._chance(0.9) else "JPY",
            limit_minor=self._random.choice((1, 1_000, 3_000, 10**15)),
            **place,
        )

    def _check(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        line_id = self._line_id(who)
        line = who.lines.get(line_id) or next(iter(who.lines.values()), None)
        amount = 0 if self._chance(0.05) else self._amount(*([line.available] if line else []))
        transaction_id = f"t{self._made}"
        waiting = [p for p in who.purchases.values() if p.state == m.NONE]
        terms = {}
        if waiting and self._chance(0.3):
            # The same purchase again, as after a step-up: mostly on the same terms.
            again = self._random.choice(waiting)
            transaction_id, line_id = again.transaction_id, again.line_id or line_id
            if self._chance(0.9):
                amount = int(again.terms.split()[0])
                terms["terms"] = again.terms
        elif who.purchases and self._chance(0.05):
            transaction_id = self._one_of(who.purchases, transaction_id)
        return f.check(
            transaction_id,
            amount,
            self._random.choice(RISKS),
            request_id=request_id,
            line_id=line_id,
            currency=self._currency(line),
            hold_lifetime_us=self._random.choice((0, 0, f.MINUTE_US, f.HOUR_US)),
            allow_partial=self._chance(0.3),
            validate_only=self._chance(0.07),
            event_us=f.NOW_US + self._random.randint(0, f.DAY_US) if self._chance(0.1) else 0,
            **terms,
            **place,
        )

    def _hold(self, who: m.Customer) -> tuple[str, m.Purchase | None]:
        """Mostly an open hold, sometimes one that ended, rarely none."""
        held = [p for p in who.purchases.values() if p.state == m.PENDING]
        pool = held if held and self._chance(0.75) else [p for p in who.purchases.values() if p.state]
        found = self._random.choice(pool) if pool and self._chance(0.97) else None
        return (found.transaction_id, found) if found else (f"t{self._random.randint(1, 200)}", None)

    def _capture(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        name, purchase = self._hold(who)
        amount = None if self._chance(0.3) else self._amount(*([purchase.left] if purchase else []))
        line = who.lines.get(purchase.line_id) if purchase else None
        final, force = self._chance(0.3), self._chance(0.4)
        currency = self._currency(line)
        return f.capture(request_id, name, amount, currency=currency, final=final, force=force, **place)

    def _increment(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        name, purchase = self._hold(who)
        line = who.lines.get(purchase.line_id) if purchase else None
        amount = self._amount(*([line.available] if line else []))
        return f.increment(request_id, name, amount, currency=self._currency(line), **place)

    def _void(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        return f.void(request_id, self._hold(who)[0], **place)

    def _refund(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        name, purchase = self._hold(who)
        line = who.lines.get(purchase.line_id) if purchase else None
        taken = purchase.captured + purchase.forced - purchase.refunded if purchase else 1
        return f.refund(request_id, name, self._amount(taken), currency=self._currency(line), **place)

    def _pay(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        line_id = self._line_id(who)
        line = who.lines.get(line_id) or next(iter(who.lines.values()), None)
        payment_id = self._one_of(who.payments, "p0") if self._chance(0.05) else f"p{self._made}"
        amount = self._amount(*([line.owed] if line else []))
        currency = self._currency(line)
        return f.pay(payment_id, amount, request_id=request_id, line_id=line_id, currency=currency, **place)

    def _reverse(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        return f.reverse(request_id, self._one_of(who.payments, "p0"), **place)

    def _block(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        until = f.NOW_US + self._random.randint(0, 3 * f.DAY_US) if self._chance(0.5) else 0
        kind = self._random.choice(list(BlockKind))
        return f.place_block(request_id, kind, line_id=self._line_id(who), expires_us=until, **place)

    def _lift(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        line_id = self._line_id(who)
        line = who.lines.get(line_id) or next(iter(who.lines.values()), None)
        block_id = self._one_of([block[0] for block in line.blocks] if line else [], "b-1")
        kinds = frozenset(BlockKind) if self._chance(0.8) else frozenset(self._random.sample(list(BlockKind), 3))
        actor = self._random.choice(ACTORS)
        return f.lift(request_id, block_id, line_id=line_id, actor_id=actor, liftable=kinds, **place)

    def _close(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        # Rarely: a closed line is a dull one.
        if self._chance(0.7):
            return self._lift(who, request_id, place)
        return f.close(request_id, line_id=self._line_id(who), **place)

    def _annotate(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        number = self._random.choice(list(who.decisions) or [1]) if self._chance(0.8) else self._random.randint(0, 9)
        return f.annotate(request_id, number, label=self._random.choice(list(Label)), **place)

    def _resolve(self, who: m.Customer, request_id: str, place: dict[str, str]) -> c.Command:
        open_cases = [p.transaction_id for p in who.purchases.values() if p.review_us and p.state == m.PENDING]
        name = self._one_of(open_cases, self._hold(who)[0])
        return f.resolve(request_id, name, approve=self._chance(0.6), **place)
