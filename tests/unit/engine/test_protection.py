"""What wrong and missing proofs lead to: suspension, features that rules see, and a lock the customer opens alone."""

from __future__ import annotations

from typing import Any

import pytest

from riskgate_server.domain.credit.line import BlockKind
from riskgate_server.domain.events import Outcome
from riskgate_server.domain.fraud.safety import Safety
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.engine import commands as c
from riskgate_server.engine import sealing
from riskgate_server.engine.protection import BURST
from riskgate_server.engine.replies import DecisionReply, GrantReply, LineReply, Reply
from tests import factories as f
from tests.bank import KEY, Bank, cooling_until, refused


@pytest.fixture
def bank() -> Bank:
    bank = Bank()
    bank.phone()
    return bank


def safety(bank: Bank) -> Safety | None:
    kept = bank.pipeline._customers.kept[KEY]
    return sealing.decode_customer(KEY, kept.state, kept.profile).profile.safety


def fail(bank: Bank, times: int) -> None:
    """Give wrong codes as fast as the locks let one."""
    for _ in range(times):
        reply = bank.wrong(bank.sent())
        assert refused(reply) == "PROOF_WRONG"
        bank.clock.wait(5 * f.MINUTE_US)


def two_kinds(bank: Bank, purpose: Purpose, *, after_us: int = f.DAY_US) -> bytes:
    factor_id, app = bank.app(bank.binding_grant())
    bank.clock.wait(after_us)
    challenge_id = bank.sent(purpose)
    bank.check(challenge_id, bank.code(challenge_id))
    both = bank.check_app(factor_id, app.at(bank.clock.us // 1_000_000), purpose)
    assert isinstance(both, GrantReply), both
    return bank.mark(both)


def lift(bank: Bank, block_id: str, grant: bytes = b"", **fields: Any) -> Reply:
    terms = {"line_id": "", "block_id": block_id, "actor_id": "ada", "note": "mine", "liftable": frozenset()}
    return bank.ask(c.LiftBlock, **(terms | {"grant": grant} | fields))


def test_a_burst_of_wrong_proofs_suspends_the_line_once(bank: Bank) -> None:
    fail(bank, BURST - 1)
    before = bank.do(f.check("t-1", 100))
    fail(bank, 2)
    after = bank.do(f.check("t-2", 100))

    assert isinstance(before, DecisionReply)
    assert isinstance(after, DecisionReply)
    assert before.decided.outcome is Outcome.APPROVE
    assert (after.decided.outcome, after.decided.reasons) == (Outcome.DECLINE, ("LINE_BLOCKED",))
    kept = bank.pipeline._customers.kept[KEY]
    (line,) = sealing.decode_customer(KEY, kept.state, kept.profile).lines
    assert [(b.kind, b.reason_code, b.placed_by) for b in line.blocks] == [
        (BlockKind.FRAUD_SOFT, "PROOF_BURST", "engine")
    ]
    assert bank.verify() == []


def test_rules_see_failures_changes_proofs_and_demands_nobody_answered(bank: Bank) -> None:
    assert safety(bank) is None
    bank.do(f.check("t-1", 100, "step_up"))
    bank.do(f.check("t-2", 100, "step_up"))
    fail(bank, 1)
    failed_us = bank.clock.us - 5 * f.MINUTE_US
    assert safety(bank) == Safety(unanswered=2, failed_us=(failed_us,))
    challenge_id = bank.sent(Purpose.TRANSACTION, "t-2")
    bank.check(challenge_id, bank.code(challenge_id))
    now_us = bank.clock.us
    assert safety(bank) == Safety(unanswered=0, failed_us=(failed_us,), passed_us=now_us)
    bank.clock.wait(f.HOUR_US)
    bank.app(bank.binding_grant())
    assert safety(bank) == Safety(changed_us=bank.clock.us, failed_us=(failed_us,), passed_us=bank.clock.us)


def test_a_customers_lock_is_opened_by_two_kinds_of_factor_and_not_by_one(bank: Bank) -> None:
    block = bank.do(f.place_block("lock", BlockKind.CUSTOMER_LOCK))
    assert isinstance(block, LineReply)
    assert block.block is not None
    challenge_id = bank.sent(Purpose.UNLOCK)
    weak = bank.check(challenge_id, bank.code(challenge_id))
    assert isinstance(weak, GrantReply)

    assert refused(lift(bank, block.block.block_id)) == "BLOCK_LIFT_FORBIDDEN"
    assert refused(lift(bank, block.block.block_id, bank.mark(weak))) == "GRANT_TOO_WEAK"
    opened = lift(bank, block.block.block_id, two_kinds(bank, Purpose.UNLOCK))
    assert isinstance(opened, LineReply)
    assert opened.lifted
    assert bank.verify() == []


def test_what_joined_the_phone_today_does_not_help_it_to_open_a_lock(bank: Bank) -> None:
    block = bank.do(f.place_block("lock", BlockKind.CUSTOMER_LOCK))
    assert isinstance(block, LineReply)
    assert block.block is not None

    full_us = bank.clock.us + f.DAY_US
    grant = two_kinds(bank, Purpose.UNLOCK, after_us=f.HOUR_US)
    assert cooling_until(lift(bank, block.block.block_id, grant)) == full_us


@pytest.mark.parametrize("kind", [BlockKind.FRAUD_HARD, BlockKind.COMPLIANCE, BlockKind.DELINQUENCY])
def test_no_proof_of_the_customer_opens_what_the_lender_closed(bank: Bank, kind: BlockKind) -> None:
    block = bank.do(f.place_block("stop", kind))
    assert isinstance(block, LineReply)
    assert block.block is not None

    grant = two_kinds(bank, Purpose.UNLOCK)
    assert refused(lift(bank, block.block.block_id, grant)) == "BLOCK_LIFT_FORBIDDEN"
