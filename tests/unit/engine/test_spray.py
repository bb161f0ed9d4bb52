"""Guessing at many accounts, and at one: where it stops, and what it leaves its victims."""

from __future__ import annotations

import os
from typing import Any

from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.domain.identity.limits import PROOF_LIMITS
from riskgate_server.engine import commands as c
from riskgate_server.engine.replies import FactorReply, GrantReply, Refusal
from tests import factories as f
from tests.bank import Bank, refused

ACCOUNTS = int(os.environ.get("ACCOUNTS", "1500"))
"""Ten thousand by `make spray`."""


def test_a_spray_over_many_accounts_is_compared_as_often_as_the_settings_say_and_no_more() -> None:
    bank = Bank()
    commands: list[c.Command] = []
    whose: list[dict[str, Any]] = [{"tenant_id": f.TENANT, "customer_id": f"c{n}"} for n in range(ACCOUNTS)]
    bank.pipeline.run([f.open_line(f"open {n}", customer_id=each["customer_id"]) for n, each in enumerate(whose)])
    enrolled = bank.pipeline.run(
        [c.EnrollTotp(**each, request_id="enrol", fingerprint=b"e", label="app", grant=b"") for each in whose]
    )
    for each, reply in zip(whose, enrolled, strict=True):
        assert isinstance(reply, FactorReply)
        guess = c.ConfirmFactor(
            **each, request_id="guess", fingerprint=b"g", factor_id=reply.factor.factor_id, code="000000"
        )
        commands.append(guess)

    compared = 0
    for begin in range(0, ACCOUNTS, 500):
        for answer in bank.pipeline.run(commands[begin : begin + 500]):
            compared += isinstance(answer, Refusal) and answer.reason == "PROOF_WRONG"
            assert not isinstance(answer, FactorReply)
    assert compared == min(ACCOUNTS, PROOF_LIMITS.wrong_codes_per_tenant_hour)

    # Codes wait, for everybody in the tenant; an hour and its tenth later they are compared again.
    bank.clock.wait(66 * f.MINUTE_US)
    assert isinstance(bank.enroll_phone(), FactorReply)
    bank.clock.wait(f.MINUTE_US)


def test_guessing_at_one_account_ends_at_its_own_number_whatever_the_patience() -> None:
    bank = Bank()
    factor_id, _ = bank.app()
    compared = 0
    for _ in range(500):
        reply = bank.check_app(factor_id, "000000")
        compared += isinstance(reply, Refusal) and reply.reason == "PROOF_WRONG"
        bank.clock.wait(f.HOUR_US)

    assert compared == PROOF_LIMITS.failures_max
    assert refused(bank.check_app(factor_id, "000000")) == "PROOF_LOCKED"


def test_the_owner_still_gets_in_by_another_factor() -> None:
    bank = Bank()
    factor_id, app = bank.app()
    bank.clock.wait(f.MINUTE_US)
    # The app's owner adds a phone before the thief begins.
    reply = bank.check_app(factor_id, app.at(bank.clock.us // f.SECOND_US), Purpose.BINDING)
    assert isinstance(reply, GrantReply)
    bank.phone(grant=bank.mark(reply))
    for _ in range(30):
        bank.check_app(factor_id, "000000")
        bank.clock.wait(f.HOUR_US)
    assert refused(bank.check_app(factor_id, "000000")) == "PROOF_LOCKED"

    challenge_id = bank.sent(Purpose.SIGN_IN)
    assert isinstance(bank.check(challenge_id, bank.code(challenge_id)), GrantReply)
