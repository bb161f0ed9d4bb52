"""Facts across customers are taken together before a batch runs, or two writers could wait for each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from riskgate_client.phone import AndroidPhone
from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.engine import across
from riskgate_server.engine import commands as c
from riskgate_server.engine.beside import Beside
from riskgate_server.engine.replies import CodeReply, DeviceReply, Failed, Reply
from riskgate_server.engine.rows import ScopeKey
from tests import factories as f
from tests.bank import KEY
from tests.devices import DeviceBank


class Taken:
    """Every question for scopes that reaches the store."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[ScopeKey]] = []
        real = Beside.take_scopes

        def take(beside: Beside, scopes: Collection[ScopeKey]) -> None:
            missing = sorted(scope for scope in scopes if scope not in beside._scopes)
            if missing:
                self.asked.append(missing)
            real(beside, scopes)

        patch.setattr(Beside, "take_scopes", take)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    return Taken(monkeypatch)


def of(kind: type[c.Command], request_id: str, **fields: Any) -> c.Command:
    return kind(tenant_id=f.TENANT, customer_id=f.CUSTOMER, request_id=request_id, **fields)


def phone_enrolment(request_id: str, number: str) -> c.Command:
    mark = number.encode()
    return of(c.EnrollPhone, request_id, number=number, grant=b"", masked="", mark=mark, prefix=mark[:-3], region="CN")


def kinds(replies: Sequence[Reply]) -> list[str]:
    return [reply.reason if isinstance(reply, Failed) else type(reply).__name__ for reply in replies]


def test_a_batch_takes_all_that_its_commands_will_touch_at_once(taken: Taken) -> None:
    bank = DeviceBank()
    bank.phone()
    phone = AndroidPhone()
    begun = bank.begin(phone, bank.binding_grant())
    judged = bank.judge.registration(KEY, begun.enrolment.challenge_id, bank.registration(phone, begun))
    reply = bank.send()
    assert isinstance(reply, CodeReply)
    bank.clock.wait(30 * f.SECOND_US)
    taken.asked.clear()

    replies = bank.pipeline.run([
        of(c.VerifyRecoveryCode, "v", code="A" * 16, purpose=1),
        of(c.ResendCode, "r", challenge_id=reply.code.challenge_id),
        of(c.SettleMessage, "", message_id=reply.code.message_id, outcome="REFUSED",
           unsent_challenge=reply.code.challenge_id),
        of(c.FinishEnrolment, "f", enrolment_id=begun.enrolment.challenge_id, found=judged.found,
           judged=judged.judged, marks=judged.marks),
        of(c.SendCode, "s", factor_id="", purpose=3, transaction_id="", language=""),
        phone_enrolment("e", "+8613900000000"),
        of(c.VerifyCode, "c", challenge_id=reply.code.challenge_id, factor_id="", code="000000", purpose=None,
           transaction_id=""),
        f.check("t-1", request_id="g", grant=b"of nobody"),
    ])  # fmt: skip
    assert kinds(replies)[1:5] == ["CodeReply", "Settled", "DeviceReply", "CodeReply"]
    (together,) = taken.asked
    assert {scope[1] for scope in together} == set(across.ScopeKind)
    assert together == sorted(together)
    assert bank.verify() == []


def test_a_code_whose_grant_may_be_added_to_another_takes_what_is_known_of_that_one(taken: Taken) -> None:
    bank = DeviceBank()
    bank.phone()
    grant = bank.binding_grant()
    challenge_id = bank.sent(Purpose.BINDING)
    taken.asked.clear()

    bank.check(challenge_id, "000000")
    assert taken.asked == [[across.wrong_code_scope(f.TENANT), across.offered_scope(f.TENANT, grant)]]


def test_what_is_only_answered_again_takes_nothing(taken: Taken) -> None:
    bank = DeviceBank()
    command = phone_enrolment("e", "+8613900000000")
    bank.do(command)
    assert len(taken.asked) == 1

    bank.do(command)
    assert len(taken.asked) == 1


def test_one_whose_proofs_cannot_be_read_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = DeviceBank()
    bank.phone()
    bank.do(f.open_line("open bo", customer_id="bo"))
    begun = bank.begin(AndroidPhone(), customer_id="bo")
    real = Sealer.open_sealed

    def damaged(sealer: Sealer, key: bytes, nonce: bytes, aad: bytes, sealed: bytes) -> bytes:
        if aad.endswith(b"identity") and b"ada" in aad:
            raise ValueError
        return real(sealer, key, nonce, aad, sealed)

    monkeypatch.setattr(Sealer, "open_sealed", damaged)
    batches = 0
    commit = bank.pipeline._commit

    def counted(commands: Sequence[c.Command], wait: Collection[CustomerKey]) -> list[Reply | None]:
        nonlocal batches
        batches += 1
        return commit(commands, wait)

    monkeypatch.setattr(bank.pipeline, "_commit", counted)
    phone = AndroidPhone()
    judged = bank.judge.registration(("acme", "bo"), begun.enrolment.challenge_id, bank.registration(phone, begun))
    finish = c.FinishEnrolment(
        tenant_id=f.TENANT, customer_id="bo", request_id="f", enrolment_id=begun.enrolment.challenge_id,
        found=judged.found, judged=judged.judged, marks=judged.marks,
    )  # fmt: skip
    replies = bank.pipeline.run([of(c.SendCode, "s", factor_id="", purpose=3, transaction_id="", language=""), finish])

    assert kinds(replies) == ["INTERNAL", DeviceReply.__name__]
    assert batches == 1
