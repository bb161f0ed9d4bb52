"""A purchase that waits for a proof goes on with a grant: as it was stored, in one step with its hold, once."""

from __future__ import annotations

from typing import Any

import msgspec
import pyotp
import pytest

from riskgate_server.domain.events import Outcome
from riskgate_server.domain.fraud.profile import PurchaseFacts
from riskgate_server.domain.identity.events import GrantSpent
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.domain.identity.limits import PROOF_LIMITS
from riskgate_server.engine import across, sealing
from riskgate_server.engine import commands as c
from riskgate_server.engine.replies import DecisionReply, GrantReply, Reply
from tests import factories as f
from tests.bank import KEY, Bank, cooling_until, refused


@pytest.fixture
def bank() -> Bank:
    bank = Bank()
    bank.phone()
    return bank


def asked(bank: Bank, transaction_id: str = "t-1", amount_minor: int = 4_200, **fields: Any) -> DecisionReply:
    reply = bank.do(f.check(transaction_id, amount_minor, fields.pop("risk", "step_up"), **fields))
    assert isinstance(reply, DecisionReply), reply
    return reply


def proven(bank: Bank, transaction_id: str = "t-1") -> bytes:
    challenge_id = bank.sent(Purpose.TRANSACTION, transaction_id)
    reply = bank.check(challenge_id, bank.code(challenge_id))
    assert isinstance(reply, GrantReply), reply
    return bank.mark(reply)


def resume(bank: Bank, grant: bytes, transaction_id: str = "t-1", request_id: str = "", **fields: Any) -> Reply:
    empty = PurchaseFacts(0, 0, "")
    terms = {"transaction_id": transaction_id, "line_id": "", "terms": b"", "facts": empty, "grant": grant}
    return bank.ask(c.CheckTransaction, request_id, **(terms | fields))


def outcome(reply: Reply) -> Outcome:
    assert isinstance(reply, DecisionReply), reply
    return reply.decided.outcome


def test_a_proof_lets_the_stored_purchase_go_on_and_holds_what_was_asked_for(bank: Bank) -> None:
    assert outcome(asked(bank)) is Outcome.STEP_UP

    reply = resume(bank, proven(bank))
    assert isinstance(reply, DecisionReply)
    decided = reply.decided
    assert (decided.outcome, decided.held_minor, decided.requested_minor) == (Outcome.APPROVE, 4_200, 4_200)
    assert (decided.proven_level, decided.step_up_level, decided.reasons) == (1, 0, ("UNUSUAL", "STEP_UP_PASSED"))
    assert bank.verify() == []


def test_a_grant_is_spent_once_and_the_repeated_request_gets_the_same_answer(bank: Bank) -> None:
    asked(bank)
    grant = proven(bank)
    first = resume(bank, grant, request_id="same")

    assert resume(bank, grant, request_id="same") == first
    assert refused(resume(bank, grant)) == "STEP_UP_NOT_ASKED"
    asked(bank, "t-2")
    assert refused(resume(bank, grant, "t-2")) == "GRANT_INVALID"


def test_a_grant_for_one_purchase_opens_no_other_and_is_void_after_the_attempt(bank: Bank) -> None:
    asked(bank)
    asked(bank, "t-2", 10_000)
    grant = proven(bank)

    assert refused(resume(bank, grant, "t-2")) == "GRANT_MISMATCH"
    assert refused(resume(bank, grant, "t-1")) == "GRANT_INVALID"
    assert bank.verify() == []


@pytest.fixture
def bo(bank: Bank) -> Bank:
    """Beside ada, somebody who waits for a proof too."""
    bank.do(f.open_line("open bo", customer_id="bo"))
    asked(bank, "t-bo", customer_id="bo")
    return bank


@pytest.mark.parametrize(("transaction_id", "reason"), [("t-bo", "GRANT_INVALID"), ("t-1", "TRANSACTION_NOT_FOUND")])
def test_a_grant_that_another_customer_offered_opens_nothing_any_more(
    bo: Bank, transaction_id: str, reason: str
) -> None:
    """It was a secret of hers."""
    asked(bo)
    grant = proven(bo)

    assert refused(resume(bo, grant, transaction_id, customer_id="bo")) == reason
    refusals = [refused(resume(bo, grant)) for _ in range(2)]

    assert refusals == ["GRANT_INVALID"] * 2
    assert spent(bo) == [("CUSTOMER", grant)]
    assert bo.verify() == []
    assert outcome(resume(bo, proven(bo))) is Outcome.APPROVE


def spent(bank: Bank) -> list[tuple[str, bytes]]:
    """What the journal has of ada's grants that were destroyed."""
    with bank.store.snapshot() as snapshot:
        events = [sealing.open_clear(entry).event for entry in snapshot.entries(KEY, after=0, limit=1_000)]
    return [(event.destroyed, event.mark) for event in events if isinstance(event, GrantSpent) and event.destroyed]


def test_a_grant_that_another_customer_offered_strengthens_no_other(bo: Bank) -> None:
    factor_id, app = bo.app(bo.binding_grant())
    bo.clock.wait(f.DAY_US)
    asked(bo, risk="strong_step_up")
    grant = proven(bo)
    resume(bo, grant, "t-bo", customer_id="bo")

    assert refused(resume(bo, by_app(bo, factor_id, app, "t-1"))) == "GRANT_TOO_WEAK"


def test_what_many_offer_who_have_no_such_grant_takes_little_room(bo: Bank) -> None:
    scope = across.offered_scope(f.TENANT, b"\0")
    for number in range(across.OFFERED_KEPT + 9):
        resume(bo, b"\0%d" % number, "t-bo", customer_id="bo")
    with bo.store.snapshot() as snapshot:
        (full,) = snapshot.scopes([scope])
    bo.clock.wait(PROOF_LIMITS.grant_lifetime_us)
    resume(bo, b"\0last", "t-bo", customer_id="bo")
    with bo.store.snapshot() as snapshot:
        (later,) = snapshot.scopes([scope])

    assert len(full.state) < 20 * across.OFFERED_KEPT
    assert len(later.state) < 20


def test_a_grant_to_sign_in_buys_nothing(bank: Bank) -> None:
    asked(bank)
    challenge_id = bank.sent(Purpose.SIGN_IN)
    reply = bank.check(challenge_id, bank.code(challenge_id))
    assert isinstance(reply, GrantReply)

    assert refused(resume(bank, bank.mark(reply))) == "GRANT_MISMATCH"


def test_a_code_is_not_enough_where_a_device_is_asked_for(bank: Bank) -> None:
    assert asked(bank, risk="strong_step_up").decided.step_up_level == 2

    assert refused(resume(bank, proven(bank))) == "GRANT_TOO_WEAK"


def test_two_kinds_of_factor_are_enough_where_a_device_is_asked_for(bank: Bank) -> None:
    factor_id, app = bank.app(bank.binding_grant())
    bank.clock.wait(f.DAY_US)
    asked(bank, risk="strong_step_up")
    proven(bank)

    assert outcome(resume(bank, by_app(bank, factor_id, app, "t-1"))) is Outcome.APPROVE


def test_what_a_code_bound_today_is_worth_no_more_than_a_code(bank: Bank) -> None:
    """And what it is not worth yet it is told to be worth later: its grant says level 2, as the demand does."""
    factor_id, app = bank.app(bank.binding_grant())
    full_us = bank.clock.us + f.DAY_US
    bank.do(f.check("t-0", 100))
    asked(bank, risk="strong_step_up")
    bank.clock.wait(f.MINUTE_US)
    proven(bank)
    assert cooling_until(resume(bank, by_app(bank, factor_id, app, "t-1"))) == full_us
    facts = PurchaseFacts(0, 4_200, f.CURRENCY, channel="step_up", device_id="phone-2", merchant_id="m-1")
    asked(bank, "t-2", facts=facts)
    bank.clock.wait(f.MINUTE_US)
    assert cooling_until(resume(bank, by_app(bank, factor_id, app, "t-2"), "t-2")) == full_us

    asked(bank, "t-3")
    bank.clock.wait(f.MINUTE_US)
    assert outcome(resume(bank, by_app(bank, factor_id, app, "t-3"), "t-3")) is Outcome.APPROVE


def by_app(bank: Bank, factor_id: str, app: pyotp.TOTP, transaction_id: str) -> bytes:
    reply = bank.ask(
        c.VerifyCode, challenge_id="", factor_id=factor_id, code=app.at(bank.clock.us // 1_000_000),
        purpose=Purpose.TRANSACTION, transaction_id=transaction_id,
    )  # fmt: skip
    assert isinstance(reply, GrantReply), reply
    return bank.mark(reply)


def test_half_the_limit_asks_for_more_than_a_code(bank: Bank) -> None:
    assert asked(bank, "t-1", 49_999).decided.step_up_level == 1
    assert asked(bank, "t-2", 50_000).decided.step_up_level == 2


def test_no_code_is_sent_for_a_purchase_from_a_new_phone_or_with_a_new_sim(bank: Bank) -> None:
    bank.do(f.check("t-0", 100))
    facts = PurchaseFacts(0, 4_200, f.CURRENCY, channel="step_up", device_id="phone-2", merchant_id="m-1")
    asked(bank, facts=facts)
    swapped = PurchaseFacts(
        0, 4_200, f.CURRENCY, channel="step_up", device_id="phone-1", merchant_id="m-1",
        sim_changed_us=bank.clock.us - 6 * f.DAY_US,
    )  # fmt: skip
    asked(bank, "t-2", facts=swapped)

    assert refused(bank.send(Purpose.TRANSACTION, "t-1")) == "METHOD_NOT_ALLOWED"
    assert refused(bank.send(Purpose.TRANSACTION, "t-2")) == "METHOD_NOT_ALLOWED"


def test_a_grant_given_before_the_phone_was_found_new_does_not_count(bank: Bank) -> None:
    bank.do(f.check("t-0", 100))
    asked(bank)
    grant = proven(bank)
    facts = PurchaseFacts(0, 4_200, f.CURRENCY, channel="step_up", device_id="phone-2", merchant_id="m-1")
    asked(bank, facts=facts, request_id="again")

    assert refused(resume(bank, grant)) == "GRANT_TOO_WEAK"


def test_no_later_attempt_brings_back_codes_that_the_purchase_does_not_trust(bank: Bank) -> None:
    bank.do(f.check("t-0", 100))
    facts = PurchaseFacts(0, 4_200, f.CURRENCY, channel="step_up", device_id="phone-2", merchant_id="m-1")
    asked(bank, facts=facts)

    asked(bank, facts=msgspec.structs.replace(facts, device_id=""), request_id="without a phone")
    assert refused(bank.send(Purpose.TRANSACTION, "t-1")) == "METHOD_NOT_ALLOWED"
    asked(bank, facts=msgspec.structs.replace(facts, device_id="phone-1"), request_id="as the owner's")
    assert refused(bank.send(Purpose.TRANSACTION, "t-1")) == "METHOD_NOT_ALLOWED"


def test_another_amount_under_the_same_id_is_refused_while_a_proof_is_awaited(bank: Bank) -> None:
    asked(bank)

    assert refused(bank.do(f.check("t-1", 10_000, request_id="changed"))) == "TRANSACTION_CHANGED"
    assert outcome(resume(bank, proven(bank))) is Outcome.APPROVE
    assert refused(bank.do(f.check("t-1", 10_000, request_id="later"))) == "TRANSACTION_ID_REUSED"


def test_what_stands_against_the_purchase_meanwhile_still_counts_and_the_grant_is_spent(bank: Bank) -> None:
    asked(bank)
    grant = proven(bank)
    bank.do(f.place_block("block"))

    assert outcome(resume(bank, grant)) is Outcome.DECLINE
    assert refused(resume(bank, grant)) == "GRANT_INVALID"


def test_a_demand_and_a_grant_end_by_the_clock(bank: Bank) -> None:
    asked(bank)
    grant = proven(bank)
    bank.clock.wait(5 * f.MINUTE_US)
    assert refused(resume(bank, grant)) == "GRANT_INVALID"
    bank.clock.wait(10 * f.MINUTE_US)
    assert refused(resume(bank, grant)) == "STEP_UP_EXPIRED"


def test_trying_out_spends_nothing(bank: Bank) -> None:
    asked(bank)
    grant = proven(bank)

    assert outcome(resume(bank, grant, validate_only=True)) is Outcome.APPROVE
    assert outcome(resume(bank, grant)) is Outcome.APPROVE


def test_an_attempt_and_its_resume_count_once_in_the_customers_history(bank: Bank) -> None:
    asked(bank)
    resume(bank, proven(bank))

    kept = bank.pipeline._customers.kept[KEY]
    profile = sealing.decode_customer(KEY, kept.state, kept.profile).profile
    assert profile.lifetime.n == 1
    assert profile.unheld.daily.open.n == 0


def test_a_revoked_factors_grant_opens_nothing() -> None:
    bank = Bank()
    factor_id = bank.phone()
    asked(bank)
    grant = proven(bank)
    bank.ask(c.RevokeFactor, factor_id=factor_id, reason_code="LOST", actor_id="olga")

    assert refused(resume(bank, grant)) == "GRANT_INVALID"
