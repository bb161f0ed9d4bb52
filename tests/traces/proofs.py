"""Commands of a customer who proves themselves: what their phone, app and paper hold is learnt from the replies."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import msgspec
import pyotp

from riskgate_server.crypto.derived import DerivedSecrets
from riskgate_server.domain.events import Outcome
from riskgate_server.domain.fraud.profile import PurchaseFacts
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.engine import commands as c
from riskgate_server.engine.grants import mark_of
from riskgate_server.engine.replies import (
    CodeReply,
    CodeView,
    DecisionReply,
    FactorReply,
    GrantReply,
    LineReply,
    Refusal,
    Reply,
)
from tests import factories as f
from tests.traces.devices import DeviceSource

Key = tuple[str, str]
Place = dict[str, Any]
"""Whose command it is: the arguments tenant_id and customer_id."""
PURPOSES: Final = (*(Purpose.TRANSACTION,) * 3, *(Purpose.BINDING,) * 2, Purpose.SIGN_IN, Purpose.UNLOCK)
KINDS: Final = (
    "enroll_phone", "enroll_totp", "confirm", *("send",) * 4, "resend", *("verify",) * 6, "verify_app", "revoke",
    "make_recovery", *("verify_recovery",) * 2, *("settle_message",) * 3, *("step_up",) * 3, *("resume",) * 3,
    "block", "unlock", "erase", *("device",) * 14,
)  # fmt: skip
KEPT_MAX: Final = 6
"""How many of each a customer remembers: what is older has mostly expired."""


@dataclass
class Holdings:
    """What one customer could prove themselves with, the latest last."""

    factors: list[str] = field(default_factory=list)
    pending: list[tuple[str, str]] = field(default_factory=list)
    """Factor and challenge, or the factor alone: an app that is not confirmed."""
    apps: dict[str, pyotp.TOTP] = field(default_factory=dict)
    challenges: list[str] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    """Message and challenge."""
    papers: list[str] = field(default_factory=list)
    grants: list[tuple[Purpose, str, bytes]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Purchases that wait for a proof."""
    blocks: list[str] = field(default_factory=list)


class ProofSource:
    """Makes commands from chance and from what was answered before; often one that should be refused."""

    def __init__(self, random: Random, clock: f.FixedClock) -> None:
        self._random = random
        self._clock = clock
        self._secrets = DerivedSecrets({1: bytes(range(32))})
        self._made = 0
        self._devices = DeviceSource(random)
        self.holdings: dict[Key, Holdings] = {}

    def next(self, key: Key) -> c.Command:
        """One command for a customer."""
        who = self.holdings.setdefault(key, Holdings())
        kind = self._following(who) if self._chance(0.6) else self._random.choice(KINDS)
        self._made += 1
        made: c.Command = getattr(self, f"_{kind}")(who, {"tenant_id": key[0], "customer_id": key[1]})
        return made

    def _following(self, who: Holdings) -> str:
        """What comes next in a life in which little goes wrong."""
        open_to = (
            ["step_up", "block", "send", "device", "device"] if who.factors else ["enroll_phone", *("device",) * 5]
        )
        steps = {"confirm": who.pending, "verify": who.challenges, "send": who.waiting}
        open_to += 3 * [step for step, known in steps.items() if known]
        for purpose, step in ((Purpose.TRANSACTION, "resume"), (Purpose.UNLOCK, "unlock")):
            open_to += 4 * [step for what, _, _ in who.grants if what is purpose]
        if any(what is Purpose.BINDING for what, _, _ in who.grants):
            open_to += ["enroll_phone", "enroll_totp", "make_recovery"]
        return self._random.choice(open_to)

    def heard(self, command: c.Command, reply: Reply) -> None:
        """Learn from an answer."""
        who = self.holdings.setdefault(command.key, Holdings())
        self._used_up(who, command, reply)
        self._devices.heard(command, reply)
        if isinstance(reply, FactorReply):
            self._enrolled(who, command, reply)
        elif isinstance(reply, CodeReply):
            self._sent(who, reply.code)
        elif isinstance(reply, GrantReply):
            mark = mark_of(self._secrets.token(reply.key_id, command.key, reply.request_id))
            _keep(who.grants, (reply.use.purpose, reply.use.transaction_id, mark))
        elif isinstance(reply, DecisionReply) and reply.decided.outcome is Outcome.STEP_UP:
            _keep(who.waiting, reply.decided.transaction_id)
        elif isinstance(reply, LineReply) and reply.block is not None:
            _keep(who.blocks, reply.block.block_id)

    @staticmethod
    def _used_up(who: Holdings, command: c.Command, reply: Reply) -> None:
        """Forget what will not be accepted again: repeated requests and guesses try it all the same."""
        wrong = isinstance(reply, Refusal) and reply.reason == "PROOF_WRONG"
        if isinstance(command, c.ConfirmFactor) and not wrong:
            who.pending = [pending for pending in who.pending if pending[0] != command.factor_id]
        elif isinstance(command, c.VerifyCode) and not wrong:
            who.challenges = [other for other in who.challenges if other != command.challenge_id]
        elif isinstance(command, c.CheckTransaction) and command.grant:
            who.waiting = [other for other in who.waiting if other != command.transaction_id]
        if grant := getattr(command, "grant", b""):
            who.grants = [other for other in who.grants if other[2] != grant]

    def _enrolled(self, who: Holdings, command: c.Command, reply: FactorReply) -> None:
        factor_id, request_id = reply.factor.factor_id, reply.request_id
        if isinstance(command, c.ConfirmFactor):
            _keep(who.factors, factor_id)
        elif isinstance(command, c.EnrollTotp):
            seed = self._secrets.seed(reply.key_id, command.key, request_id)
            who.apps[factor_id] = pyotp.TOTP(base64.b32encode(seed).decode())
            _keep(who.pending, (factor_id, ""))
        elif isinstance(command, c.MakeRecoveryCodes):
            who.papers = list(self._secrets.recovery_codes(reply.key_id, command.key, request_id))
            _keep(who.factors, factor_id)
        elif reply.code:
            self._sent(who, reply.code)
            _keep(who.pending, (factor_id, reply.code.challenge_id))

    @staticmethod
    def _sent(who: Holdings, code: CodeView) -> None:
        _keep(who.challenges, code.challenge_id)
        _keep(who.messages, (code.message_id, code.challenge_id))

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _one_of(self, known: list[Any], otherwise: Any) -> Any:
        """The latest, or an older one, or rarely one that nobody knows."""
        if not known or self._chance(0.04):
            return otherwise
        return known[-1] if self._chance(0.7) else self._random.choice(known)

    def _ask(self, kind: type[c.Command], place: Place, **fields: Any) -> c.Command:
        return kind(
            **place,
            request_id=f"p{self._made}",
            fingerprint=f"{kind.__name__} {sorted(fields.items())}".encode(),
            **fields,
        )

    def _code(self, place: Place, challenge_id: str) -> str:
        if self._chance(0.25):
            return f"{self._random.randrange(10**6):06d}"
        return self._secrets.code(1, (place["tenant_id"], place["customer_id"]), challenge_id)

    def _app_code(self, app: pyotp.TOTP | None) -> str:
        if app is None or self._chance(0.25):
            return f"{self._random.randrange(10**6):06d}"
        return app.at(self._clock.us // f.SECOND_US)

    def _grant(self, who: Holdings, purpose: Purpose) -> bytes:
        fitting = [mark for what, _, mark in who.grants if what is purpose]
        other = [mark for _, _, mark in who.grants]
        empty = b""
        return bytes(self._one_of(fitting, self._random.choice(other) if other and self._chance(0.5) else empty))

    def _device(self, who: Holdings, place: Place) -> c.Command:
        key = (place["tenant_id"], place["customer_id"])
        waiting, grant = self._one_of(who.waiting, "t0"), self._grant(who, Purpose.BINDING)
        return self._devices.next(key, f"p{self._made}", waiting=waiting, grant=grant)

    def _erase(self, who: Holdings, place: Place) -> c.Command:
        return self._ask(c.EraseCustomer, place, reason_code="ASKED", actor_id="olga")

    def _enroll_phone(self, who: Holdings, place: Place) -> c.Command:
        # Few numbers, so that customers share some of them and meet the budgets of a number and of its neighbours.
        number = f"+86138{self._random.randrange(40):08d}"
        return self._ask(
            c.EnrollPhone,
            place,
            number=number,
            masked=f"*** **** {number[-4:]}",
            mark=number.encode(),
            prefix=number[:-3].encode(),
            region="CN",
            grant=self._grant(who, Purpose.BINDING),
            language=self._random.choice(("", "en", "zh")),
        )

    def _enroll_totp(self, who: Holdings, place: Place) -> c.Command:
        return self._ask(c.EnrollTotp, place, label="app", grant=self._grant(who, Purpose.BINDING))

    def _confirm(self, who: Holdings, place: Place) -> c.Command:
        factor_id, challenge_id = self._one_of(who.pending, ("nobody's", "c"))
        app = who.apps.get(factor_id)
        code = self._code(place, challenge_id) if challenge_id else self._app_code(app)
        return self._ask(c.ConfirmFactor, place, factor_id=factor_id, code=code)

    def _send(self, who: Holdings, place: Place) -> c.Command:
        purpose = self._random.choice(PURPOSES)
        return self._ask(
            c.SendCode,
            place,
            factor_id=self._one_of(who.factors, "") if self._chance(0.3) else "",
            purpose=purpose,
            transaction_id=self._one_of(who.waiting, "t0") if purpose is Purpose.TRANSACTION else "",
            language="en",
        )

    def _resend(self, who: Holdings, place: Place) -> c.Command:
        return self._ask(c.ResendCode, place, challenge_id=self._one_of(who.challenges, "c"), language="zh")

    def _verify(self, who: Holdings, place: Place) -> c.Command:
        challenge_id = self._one_of(who.challenges, "c")
        code = self._code(place, challenge_id)
        return self._verification(place, challenge_id=challenge_id, factor_id="", code=code, purpose=None)

    def _verify_app(self, who: Holdings, place: Place) -> c.Command:
        factor_id = self._one_of([*who.apps], "nobody's")
        purpose, code = self._random.choice(PURPOSES), self._app_code(who.apps.get(factor_id))
        waiting = self._one_of(who.waiting, "t0") if purpose is Purpose.TRANSACTION else ""
        return self._verification(
            place, challenge_id="", factor_id=factor_id, code=code, purpose=purpose, transaction_id=waiting
        )

    def _verification(self, place: Place, **fields: Any) -> c.Command:
        return self._ask(c.VerifyCode, place, **({"transaction_id": ""} | fields))

    def _revoke(self, who: Holdings, place: Place) -> c.Command:
        # Rarely: a customer without factors proves nothing.
        if self._chance(0.6):
            return self._verify(who, place)
        known = [*who.factors, *(factor_id for factor_id, _ in who.pending)]
        return self._ask(
            c.RevokeFactor, place, factor_id=self._one_of(known, "nobody's"), reason_code="LOST", actor_id="olga"
        )

    def _make_recovery(self, who: Holdings, place: Place) -> c.Command:
        return self._ask(c.MakeRecoveryCodes, place, grant=self._grant(who, Purpose.BINDING))

    def _verify_recovery(self, who: Holdings, place: Place) -> c.Command:
        code = self._one_of(who.papers, "A" * 16)
        purpose = self._random.choice((Purpose.SIGN_IN, Purpose.BINDING, Purpose.UNLOCK))
        return self._ask(c.VerifyRecoveryCode, place, code=code, purpose=purpose)

    def _settle_message(self, who: Holdings, place: Place) -> c.Command:
        message_id, challenge_id = self._one_of(who.messages, ("m", ""))
        outcome = self._random.choice(("DELIVERED", "DELIVERED", "REFUSED", "EXPIRED", "RETRY"))
        return c.SettleMessage(
            **place,
            message_id=message_id,
            outcome=outcome,
            due_us=self._clock.us + f.MINUTE_US if outcome == "RETRY" else 0,
            unsent_challenge=challenge_id if outcome == "REFUSED" else "",
        )

    def _step_up(self, who: Holdings, place: Place) -> c.Command:
        risk = self._random.choice(("step_up", "step_up", "strong_step_up"))
        return f.check(f"s{self._made}", self._random.randint(1, 300), risk, request_id=f"p{self._made}", **place)

    def _resume(self, who: Holdings, place: Place) -> c.Command:
        proven = [(name, mark) for what, name, mark in who.grants if what is Purpose.TRANSACTION]
        name, grant = self._one_of(proven, (self._one_of(who.waiting, "t0"), b"no grant"))
        empty = {"line_id": "", "terms": b"", "facts": PurchaseFacts(0, 0, "")}
        return self._ask(c.CheckTransaction, place, transaction_id=name, grant=grant, **empty)

    def _block(self, who: Holdings, place: Place) -> c.Command:
        # A purchase that suspends the line, which the customer may then undo.
        return f.check(f"s{self._made}", 1, "flood", request_id=f"p{self._made}", **place)

    def _unlock(self, who: Holdings, place: Place) -> c.Command:
        lift = f.lift(f"p{self._made}", self._one_of(who.blocks, "b-1"), **place)
        return msgspec.structs.replace(lift, liftable=frozenset(), grant=self._grant(who, Purpose.UNLOCK))


def _keep(known: list[Any], new: Any) -> None:
    known.append(new)
    del known[:-KEPT_MAX]
