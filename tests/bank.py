"""An engine with one customer, and the phone that messages to them arrive at."""

from __future__ import annotations

import base64
import datetime as dt
from hashlib import sha256
from typing import Any

import pyotp

from riskgate_server.crypto.derived import DerivedSecrets
from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.engine import commands as c
from riskgate_server.engine import sealing
from riskgate_server.engine.grants import mark_of
from riskgate_server.engine.messages import CodeMessage, decode_payload
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.replies import CodeReply, FactorReply, Failed, GrantReply, Refusal, Reply
from riskgate_server.engine.storing import Store
from riskgate_server.engine.verify import verify
from riskgate_server.stores.memory import MemoryStore, MemoryVault
from tests import factories as f

KEY = (f.TENANT, f.CUSTOMER)
NUMBER = "+8613812345678"


class Bank:
    """An engine with one customer, and the phone that messages to them arrive at."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or MemoryStore()
        self.vault = MemoryVault()
        self.clock = f.FixedClock()
        self.secrets = DerivedSecrets({1: bytes(range(32))})
        self.pipeline: Pipeline = f.make_pipeline(self.store, vault=self.vault, clock=self.clock, secrets=self.secrets)
        self.number = 0
        self.do(f.open_line())

    def do(self, command: c.Command) -> Reply:
        return self.pipeline.run([command])[0]

    def ask(self, kind: type[c.Command], request_id: str = "", **fields: Any) -> Reply:
        self.number += 1
        request_id = request_id or f"ask {self.number}"
        whose = {"tenant_id": f.TENANT, "customer_id": f.CUSTOMER} | {
            name: fields.pop(name) for name in ("tenant_id", "customer_id") if name in fields
        }
        fingerprint = sha256(f"{kind.__name__} {sorted(fields.items())}".encode()).digest()
        return self.do(kind(**whose, request_id=request_id, fingerprint=fingerprint, **fields))

    def messages(self) -> list[Any]:
        (data_key,) = self.vault.keys([KEY]).values()
        assert isinstance(data_key, bytes)
        with self.store.snapshot() as snapshot:
            rows = sorted(snapshot.messages(KEY), key=lambda row: row.due_us)
            return [decode_payload(sealing.unseal_message(row, data_key, Sealer())) for row in rows]

    def code(self, challenge_id: str) -> str:
        """What the phone shows."""
        (message,) = {
            m.key_id for m in self.messages() if isinstance(m, CodeMessage) and m.challenge_id == challenge_id
        }
        return self.secrets.code(message, KEY, challenge_id)

    def enroll_phone(self, number: str = NUMBER, grant: bytes = b"", **fields: Any) -> Reply:
        mark = number.encode()
        given = {"masked": "*** **** 5678", "mark": mark, "prefix": mark[:-3], "region": "CN"} | fields
        return self.ask(c.EnrollPhone, number=number, grant=grant, **given)

    def phone(self, number: str = NUMBER, grant: bytes = b"") -> str:
        """A confirmed phone's factor id."""
        enrolled = self.enroll_phone(number, grant)
        assert isinstance(enrolled, FactorReply), enrolled
        assert enrolled.code is not None
        confirmed = self.ask(
            c.ConfirmFactor, factor_id=enrolled.factor.factor_id, code=self.code(enrolled.code.challenge_id)
        )
        assert isinstance(confirmed, FactorReply), confirmed
        return enrolled.factor.factor_id

    def app(self, grant: bytes = b"") -> tuple[str, pyotp.TOTP]:
        """A confirmed authenticator app: factor id, and the app."""
        enrolled = self.ask(c.EnrollTotp, "enrol app", label="ada", grant=grant)
        assert isinstance(enrolled, FactorReply), enrolled
        seed = self.secrets.seed(enrolled.key_id, KEY, "enrol app")
        app = pyotp.TOTP(base64.b32encode(seed).decode())
        confirmed = self.ask(
            c.ConfirmFactor, factor_id=enrolled.factor.factor_id, code=app.at(self.clock.us // 1_000_000)
        )
        assert isinstance(confirmed, FactorReply), confirmed
        return enrolled.factor.factor_id, app

    def send(self, purpose: Purpose = Purpose.SIGN_IN, transaction_id: str = "", factor_id: str = "") -> Reply:
        return self.ask(c.SendCode, factor_id=factor_id, purpose=purpose, transaction_id=transaction_id, language="en")

    def sent(self, purpose: Purpose = Purpose.SIGN_IN, transaction_id: str = "") -> str:
        """A challenge's id."""
        reply = self.send(purpose, transaction_id)
        assert isinstance(reply, CodeReply), reply
        return reply.code.challenge_id

    def check(self, challenge_id: str, code: str, request_id: str = "") -> Reply:
        return self.ask(
            c.VerifyCode,
            request_id,
            challenge_id=challenge_id,
            factor_id="",
            code=code,
            purpose=None,
            transaction_id="",
        )

    def check_app(self, factor_id: str, code: str, purpose: Purpose = Purpose.SIGN_IN) -> Reply:
        return self.ask(
            c.VerifyCode, challenge_id="", factor_id=factor_id, code=code, purpose=purpose, transaction_id=""
        )

    def wrong(self, challenge_id: str) -> Reply:
        return self.check(challenge_id, other_than(self.code(challenge_id)))

    def binding_grant(self) -> bytes:
        """The mark of a grant by a code that was sent."""
        challenge_id = self.sent(Purpose.BINDING)
        reply = self.check(challenge_id, self.code(challenge_id))
        assert isinstance(reply, GrantReply), reply
        return self.mark(reply)

    def mark(self, reply: GrantReply) -> bytes:
        return mark_of(self.secrets.token(reply.key_id, KEY, reply.request_id))

    def verify(self) -> list[str]:
        return verify(self.store, self.vault, Sealer()).faults


def other_than(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"


def refused(reply: Reply) -> str:
    assert isinstance(reply, Refusal | Failed), reply
    return reply.reason


def cooling_until(reply: Reply) -> int:
    """When what was refused for its cool-down counts, UTC µs: as the fact beside the reason says."""
    assert isinstance(reply, Refusal | Failed), reply
    assert reply.reason == "FACTOR_COOLING_DOWN", reply
    at = dt.datetime.fromisoformat(reply.details["full_strength_time"])
    assert reply.details["full_strength_time"] in reply.message
    return (at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
