"""One-time codes through the one write path: what is accepted, what is refused, and what refusing costs."""

from __future__ import annotations

import pytest

from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.events import Outcome
from riskgate_server.domain.identity.factors import FactorState
from riskgate_server.domain.identity.grants import Method, Purpose
from riskgate_server.engine import commands as c
from riskgate_server.engine import sealing
from riskgate_server.engine.messages import CodeMessage, NoticeMessage
from riskgate_server.engine.replies import (
    CodeReply,
    DecisionReply,
    FactorReply,
    Failed,
    GrantReply,
    Refusal,
    Reply,
    RevokedReply,
)
from tests import factories as f
from tests.bank import KEY, NUMBER, Bank, cooling_until, other_than, refused


@pytest.fixture
def bank() -> Bank:
    return Bank()


def test_a_right_code_gives_a_grant_once(bank: Bank) -> None:
    bank.phone()
    challenge_id = bank.sent()

    reply = bank.check(challenge_id, bank.code(challenge_id), "first")
    assert isinstance(reply, GrantReply)
    assert (reply.level, reply.methods, reply.use.purpose) == (1, (Method.SMS,), Purpose.SIGN_IN)
    assert bank.check(challenge_id, bank.code(challenge_id), "first") == reply
    assert refused(bank.check(challenge_id, bank.code(challenge_id))) == "CHALLENGE_USED"
    assert bank.verify() == []


def test_a_wrong_code_is_refused_without_a_hint_and_the_sixth_try_though_right(bank: Bank) -> None:
    bank.phone()
    challenge_id = bank.sent()

    answers = [bank.wrong(challenge_id) for _ in range(5)]
    assert {refused(answer) for answer in answers} == {"PROOF_WRONG"}
    assert refused(bank.check(challenge_id, bank.code(challenge_id))) == "CHALLENGE_BURNED"
    assert bank.verify() == []


def test_a_repeated_wrong_answer_counts_once(bank: Bank) -> None:
    bank.phone()
    challenge_id = bank.sent()
    code = other_than(bank.code(challenge_id))

    assert [refused(bank.check(challenge_id, code, "same")) for _ in range(9)] == ["PROOF_WRONG"] * 9
    assert isinstance(bank.check(challenge_id, bank.code(challenge_id)), GrantReply)


def test_wrong_codes_over_several_challenges_lock_the_factor_and_a_right_one_does_not_open_it(bank: Bank) -> None:
    bank.phone()
    first = bank.sent()
    for _ in range(3):
        bank.wrong(first)
    second = bank.sent()
    for _ in range(2):
        bank.wrong(second)

    right, wrong = bank.check(second, bank.code(second)), bank.wrong(second)
    assert isinstance(right, Failed)
    assert (right.family, right.reason, right.retry_after_seconds) == ("ResourceExhausted", "PROOF_LOCKED", 30)
    assert wrong == right
    assert refused(bank.send()) == "PROOF_LOCKED"
    bank.clock.wait(30 * f.SECOND_US)
    assert isinstance(bank.check(second, bank.code(second)), GrantReply)


def test_locks_double_and_end_for_good_and_a_restart_forgets_none(bank: Bank) -> None:
    waits = []
    bank.phone()
    for failures in range(1, 21):
        challenge_id = bank.sent()
        bank.wrong(challenge_id)
        answer = bank.check(challenge_id, "000000") if failures >= 5 else None
        if isinstance(answer, Failed):
            waits.append(answer.retry_after_seconds)
        bank.clock.wait(3 * f.HOUR_US)
    assert waits[:8] == [30, 60, 120, 240, 480, 960, 1920, 3600]
    assert waits[-1] == 0
    bank.clock.wait(365 * f.DAY_US)
    again = f.make_pipeline(bank.store, vault=bank.vault, clock=bank.clock, secrets=bank.secrets)
    bank.pipeline = again
    assert refused(bank.send()) == "PROOF_LOCKED"


def test_a_code_after_its_time_and_an_older_one_after_a_newer_are_worthless(bank: Bank) -> None:
    bank.phone()
    older = bank.sent()
    newer = bank.sent()

    assert refused(bank.check(older, bank.code(older))) == "CHALLENGE_SUPERSEDED"
    bank.clock.wait(5 * f.MINUTE_US)
    assert refused(bank.check(newer, bank.code(newer))) == "CHALLENGE_EXPIRED"


def test_a_code_is_sent_again_the_same_and_lives_no_longer(bank: Bank) -> None:
    bank.phone()
    challenge_id = bank.sent()
    assert refused(bank.ask(c.ResendCode, challenge_id=challenge_id)) == "RESEND_TOO_EARLY"
    bank.clock.wait(30 * f.SECOND_US)

    again = bank.ask(c.ResendCode, challenge_id=challenge_id, language="en")
    assert isinstance(again, CodeReply)
    messages = [m for m in bank.messages() if isinstance(m, CodeMessage) and m.challenge_id == challenge_id]
    assert len(messages) == 2
    assert messages[0] == messages[1]
    bank.clock.wait(270 * f.SECOND_US)
    assert refused(bank.check(challenge_id, bank.code(challenge_id))) == "CHALLENGE_EXPIRED"


def test_a_code_of_an_authenticator_app_is_accepted_once_and_never_an_older_one(bank: Bank) -> None:
    factor_id, app = bank.app()
    now = bank.clock.us // 1_000_000
    # The one that confirmed it is spent.
    assert refused(bank.check_app(factor_id, app.at(now))) == "PROOF_WRONG"
    bank.clock.wait(30 * f.SECOND_US)
    now += 30

    assert isinstance(bank.check_app(factor_id, app.at(now)), GrantReply)
    assert refused(bank.check_app(factor_id, app.at(now))) == "PROOF_WRONG"
    assert refused(bank.check_app(factor_id, app.at(now - 30))) == "PROOF_WRONG"
    bank.clock.wait(30 * f.SECOND_US)
    assert refused(bank.check_app(factor_id, app.at(now))) == "PROOF_WRONG"
    assert bank.verify() == []


@pytest.mark.parametrize(("steps", "accepted"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_an_authenticator_app_may_be_one_step_off(bank: Bank, steps: int, accepted: bool) -> None:  # noqa: FBT001
    factor_id, app = bank.app()
    bank.clock.wait(10 * f.MINUTE_US)

    reply = bank.check_app(factor_id, app.at(bank.clock.us // 1_000_000 + 30 * steps))
    assert isinstance(reply, GrantReply) is accepted


def test_an_enrolment_is_confirmed_in_time_and_once(bank: Bank) -> None:
    late = bank.ask(c.EnrollTotp, label="late", grant=b"")
    assert isinstance(late, FactorReply)
    bank.clock.wait(10 * f.MINUTE_US)
    assert refused(bank.ask(c.ConfirmFactor, factor_id=late.factor.factor_id, code="123456")) == "FACTOR_EXPIRED"

    factor_id, app = bank.app()
    bank.clock.wait(30 * f.SECOND_US)
    code = app.at(bank.clock.us // 1_000_000)
    assert refused(bank.ask(c.ConfirmFactor, factor_id=factor_id, code=code)) == "FACTOR_CONFIRMED"


def test_a_second_factor_is_bound_by_a_grant_and_its_owner_is_told_on_the_first(bank: Bank) -> None:
    bank.phone()
    assert refused(bank.enroll_phone("+8613900000000")) == "GRANT_REQUIRED"
    assert refused(bank.enroll_phone("+8613900000000", grant=b"guessed")) == "GRANT_INVALID"

    grant = bank.binding_grant()
    bank.app(grant)
    notices = [m for m in bank.messages() if isinstance(m, NoticeMessage)]
    assert [(m.number, m.notice) for m in notices] == [(NUMBER, "FACTOR_BOUND")]
    bank.clock.wait(f.HOUR_US)
    assert refused(bank.enroll_phone("+8613900000000", grant=grant)) == "GRANT_INVALID"
    assert bank.verify() == []


def test_a_grant_for_signing_in_binds_nothing_and_is_void_afterwards(bank: Bank) -> None:
    bank.phone()
    challenge_id = bank.sent(Purpose.SIGN_IN)
    reply = bank.check(challenge_id, bank.code(challenge_id))
    assert isinstance(reply, GrantReply)
    grant = bank.mark(reply)

    assert refused(bank.enroll_phone("+8613900000000", grant=grant)) == "GRANT_MISMATCH"
    assert refused(bank.enroll_phone("+8613900000000", grant=grant)) == "GRANT_INVALID"


def test_two_kinds_of_factor_together_are_of_level_two_and_leave_one_grant(bank: Bank) -> None:
    bank.phone()
    factor_id, app = bank.app(bank.binding_grant())
    bank.clock.wait(f.HOUR_US)
    challenge_id = bank.sent(Purpose.UNLOCK)
    weak = bank.check(challenge_id, bank.code(challenge_id))
    strong = bank.check_app(factor_id, app.at(bank.clock.us // 1_000_000), Purpose.UNLOCK)

    assert isinstance(weak, GrantReply)
    assert isinstance(strong, GrantReply)
    assert (weak.level, strong.level, strong.methods) == (1, 2, (Method.SMS, Method.TOTP))
    with bank.store.snapshot() as snapshot:
        row = snapshot.identity(KEY)
    assert row is not None
    (data_key,) = bank.vault.keys([KEY]).values()
    assert isinstance(data_key, bytes)
    identity = sealing.unseal_identity(row, data_key, Sealer())
    assert [grant.mark for grant in identity.grants] == [bank.mark(strong)]


def test_budgets_bound_the_messages_to_a_customer_and_give_room_again(bank: Bank) -> None:
    bank.phone()
    for _ in range(4):
        bank.sent()

    reply = bank.send()
    assert isinstance(reply, Failed)
    assert reply.reason == "SEND_BUDGET_SPENT"
    bank.clock.wait(round(reply.retry_after_seconds * f.SECOND_US))
    assert isinstance(bank.send(), CodeReply)


def test_numbers_that_differ_in_their_last_digits_only_are_sent_to_sparingly() -> None:
    bank = Bank()
    replies = []
    for n in range(11):
        customer = f"eve-{n}"
        bank.do(f.open_line(f"open {n}", customer_id=customer))
        number = f"+861381234500{n % 10}" if n < 10 else "+8613812345999"
        mark = number.encode()
        replies.append(
            bank.ask(
                c.EnrollPhone, customer_id=customer, number=number, grant=b"", masked="", mark=mark,
                prefix=mark[:-3], region="CN",
            )
        )  # fmt: skip

    assert all(isinstance(reply, FactorReply) for reply in replies[:10])
    assert refused(replies[10]) == "SEND_BUDGET_SPENT"


def test_one_number_keeps_one_budget_when_the_key_of_its_mark_is_renewed() -> None:
    bank = Bank()
    old, new, number = b"old mark", b"new mark", "+8613812345678"
    replies = []
    for n, (mark, others) in enumerate([(old, ())] * 5 + [(new, ((old, b"old"),)), (new, ())]):
        customer = f"eve-{n}"
        bank.do(f.open_line(f"open {n}", customer_id=customer))
        replies.append(
            bank.ask(
                c.EnrollPhone, customer_id=customer, number=number, grant=b"", masked="", mark=mark,
                prefix=mark[:3], region="CN", other_marks=others,
            )
        )  # fmt: skip

    assert all(isinstance(reply, FactorReply) for reply in replies[:5])
    assert refused(replies[5]) == "SEND_BUDGET_SPENT"
    assert isinstance(replies[6], FactorReply), "as if nobody knew it: the old key is gone"


def test_a_number_that_is_confirmed_is_known_whatever_its_mark() -> None:
    bank = Bank()
    bank.phone()

    assert refused(bank.enroll_phone(mark=b"another", prefix=b"ano")) == "FACTOR_EXISTS"


def test_wrong_codes_of_a_whole_tenant_stop_being_compared_and_another_tenant_goes_on() -> None:
    from riskgate_server.domain.identity.limits import ProofLimits  # noqa: PLC0415
    from riskgate_server.engine.bounds import Bounds  # noqa: PLC0415

    bank = Bank()
    limits = ProofLimits(wrong_codes_per_tenant_hour=7)
    bank.pipeline = f.make_pipeline(
        bank.store, vault=bank.vault, clock=bank.clock, secrets=bank.secrets, bounds=Bounds(proofs=limits)
    )
    answers = []
    for n in range(20):
        customer = f"victim-{n}"
        bank.do(f.open_line(f"open {n}", customer_id=customer))
        enrolled = bank.ask(c.EnrollTotp, f"enrol {n}", customer_id=customer, label="x", grant=b"")
        assert isinstance(enrolled, FactorReply)
        answers.append(
            refused(bank.ask(c.ConfirmFactor, customer_id=customer, factor_id=enrolled.factor.factor_id, code="000000"))
        )
    assert answers == ["PROOF_WRONG"] * 7 + ["PROOF_LOCKED"] * 13
    bank.clock.wait(2 * f.HOUR_US)
    assert isinstance(bank.enroll_phone(), FactorReply)


def test_recovery_codes_are_spent_one_by_one_and_new_ones_end_the_old(bank: Bank) -> None:
    bank.phone()
    made = bank.ask(c.MakeRecoveryCodes, "make", grant=bank.binding_grant())
    assert isinstance(made, FactorReply)
    assert made.factor.codes_left == 10
    codes = bank.secrets.recovery_codes(made.key_id, KEY, "make")

    first = bank.ask(c.VerifyRecoveryCode, code=codes[3], purpose=Purpose.SIGN_IN)
    assert isinstance(first, GrantReply)
    assert first.codes_left == 9
    assert refused(bank.ask(c.VerifyRecoveryCode, code=codes[3], purpose=Purpose.SIGN_IN)) == "PROOF_WRONG"
    bank.clock.wait(2 * f.DAY_US)
    again = bank.ask(c.VerifyRecoveryCode, code=codes[4], purpose=Purpose.BINDING)
    assert isinstance(again, GrantReply)
    challenge_id = bank.sent(Purpose.BINDING)
    both = bank.check(challenge_id, bank.code(challenge_id))
    assert isinstance(both, GrantReply)
    assert both.level == 2
    anew = bank.ask(c.MakeRecoveryCodes, "anew", grant=bank.mark(both))
    assert isinstance(anew, FactorReply)
    assert refused(bank.ask(c.VerifyRecoveryCode, code=codes[5], purpose=Purpose.SIGN_IN)) == "PROOF_WRONG"
    assert bank.verify() == []


def test_a_recovery_code_of_today_binds_nothing_and_it_is_told_from_when_on_one_does(bank: Bank) -> None:
    """Its grant is of the level that is asked for: what is wrong with it is only the cool-down."""
    bank.phone()
    made = bank.ask(c.MakeRecoveryCodes, "make", grant=bank.binding_grant())
    assert isinstance(made, FactorReply)
    codes = bank.secrets.recovery_codes(made.key_id, KEY, "make")
    early = bank.ask(c.VerifyRecoveryCode, code=codes[0], purpose=Purpose.BINDING)
    assert isinstance(early, GrantReply)
    assert early.level == 1

    refusal = bank.ask(c.EnrollTotp, label="ada", grant=bank.mark(early))
    assert cooling_until(refusal) == bank.clock.us + f.DAY_US


def test_a_revoked_phone_takes_its_codes_and_grants_with_it(bank: Bank) -> None:
    factor_id = bank.phone()
    grant = bank.binding_grant()
    challenge_id = bank.sent()
    reply = bank.ask(c.RevokeFactor, factor_id=factor_id, reason_code="LOST", actor_id="olga")

    assert isinstance(reply, RevokedReply)
    assert refused(bank.check(challenge_id, bank.code(challenge_id))) == "CHALLENGE_SUPERSEDED"
    assert refused(bank.ask(c.MakeRecoveryCodes, grant=grant)) == "FACTOR_NOT_ACTIVE"
    assert bank.verify() == []


def test_a_factor_that_is_revoked_again_is_told_from_one_that_never_was(bank: Bank) -> None:
    """As a device is. Where codes are asked for, and who exists is not told, both are as unknown."""
    factor_id = bank.phone()

    def revoke(factor_id: str) -> Reply:
        return bank.ask(c.RevokeFactor, factor_id=factor_id, reason_code="LOST", actor_id="olga")

    assert isinstance(revoke(factor_id), RevokedReply)
    assert refused(revoke(factor_id)) == "FACTOR_REVOKED"
    assert refused(revoke("f-99")) == "FACTOR_NOT_FOUND"
    assert refused(bank.send(factor_id=factor_id)) == refused(bank.send(factor_id="f-99")) == "FACTOR_NOT_FOUND"
    assert bank.verify() == []


def test_a_code_for_a_factor_that_is_not_confirmed_is_told_what_takes_it(bank: Bank) -> None:
    enrolled = bank.enroll_phone()
    assert isinstance(enrolled, FactorReply)
    assert enrolled.code is not None
    challenge_id = enrolled.code.challenge_id

    answer = bank.check(challenge_id, bank.code(challenge_id))
    assert isinstance(answer, Refusal)
    assert (answer.reason, "ConfirmFactor" in answer.message) == ("FACTOR_NOT_ACTIVE", True)


def test_what_was_begun_without_a_grant_is_forgotten_once_something_is_bound(bank: Bank) -> None:
    thief = bank.enroll_phone("+8613900000000")
    assert isinstance(thief, FactorReply)
    assert thief.code is not None
    bank.phone()

    late = bank.ask(c.ConfirmFactor, factor_id=thief.factor.factor_id, code=bank.code(thief.code.challenge_id))
    assert refused(late) == "FACTOR_NOT_FOUND"
    assert bank.verify() == []


def test_what_a_grant_began_ends_with_the_phone_that_gave_it(bank: Bank) -> None:
    stolen = bank.phone()
    thief = bank.enroll_phone("+8613900000000", bank.binding_grant())
    assert isinstance(thief, FactorReply)
    assert thief.code is not None
    bank.ask(c.RevokeFactor, factor_id=stolen, reason_code="LOST", actor_id="olga")

    late = bank.ask(c.ConfirmFactor, factor_id=thief.factor.factor_id, code=bank.code(thief.code.challenge_id))
    assert refused(late) == "FACTOR_NOT_FOUND"
    assert bank.verify() == []


def test_a_phone_whose_code_was_forgotten_is_to_be_enrolled_anew(bank: Bank) -> None:
    first = bank.enroll_phone()
    assert isinstance(first, FactorReply)
    assert first.code is not None
    code = bank.code(first.code.challenge_id)
    for n in range(8):
        other = bank.enroll_phone(f"+861390{n}000000")
        assert isinstance(other, FactorReply), other
        assert other.code is not None
        message_id, challenge_id = other.code.message_id, other.code.challenge_id
        bank.do(
            c.SettleMessage(
                tenant_id=f.TENANT, customer_id=f.CUSTOMER, message_id=message_id, outcome="UNSENT",
                unsent_challenge=challenge_id,
            )
        )  # fmt: skip

    assert refused(bank.ask(c.ConfirmFactor, factor_id=first.factor.factor_id, code=code)) == "CHALLENGE_EXPIRED"


def test_one_code_of_a_phone_does_not_live_on_by_codes_of_an_app(bank: Bank) -> None:
    bank.phone()
    factor_id, app = bank.app(bank.binding_grant())
    challenge_id = bank.sent()
    bank.check(challenge_id, bank.code(challenge_id))
    levels = []
    for _ in range(3):
        bank.clock.wait(4 * f.MINUTE_US)
        reply = bank.check_app(factor_id, app.at(bank.clock.us // 1_000_000))
        assert isinstance(reply, GrantReply)
        levels.append(reply.level)

    assert levels == [2, 1, 1]


def test_a_code_for_a_purchase_names_amount_and_payee_and_only_one_that_waits_takes_it(bank: Bank) -> None:
    bank.phone()
    assert refused(bank.send(Purpose.TRANSACTION, "t-1")) == "TRANSACTION_NOT_FOUND"
    plain = bank.do(f.check("t-0", 100))
    assert isinstance(plain, DecisionReply)
    assert refused(bank.send(Purpose.TRANSACTION, "t-0")) == "STEP_UP_NOT_ASKED"
    asked = bank.do(f.check("t-1", 4_200, "step_up"))
    assert isinstance(asked, DecisionReply)
    assert asked.decided.outcome is Outcome.STEP_UP

    bank.sent(Purpose.TRANSACTION, "t-1")
    message = next(m for m in bank.messages() if isinstance(m, CodeMessage) and m.purpose is Purpose.TRANSACTION)
    assert (message.amount_minor, message.currency, message.payee) == (4_200, "CNY", "m-1")
    bank.clock.wait(15 * f.MINUTE_US)
    assert refused(bank.send(Purpose.TRANSACTION, "t-1")) == "STEP_UP_EXPIRED"


def test_what_a_message_cost_is_given_back_when_it_certainly_reached_nobody(bank: Bank) -> None:
    bank.phone()
    for _ in range(3):
        bank.sent()
    reply = bank.send()
    assert isinstance(reply, CodeReply)
    assert refused(bank.send()) == "SEND_BUDGET_SPENT"

    settled = c.SettleMessage(
        tenant_id=f.TENANT, customer_id=f.CUSTOMER, message_id=reply.code.message_id, outcome="REFUSED",
        unsent_challenge=reply.code.challenge_id,
    )  # fmt: skip
    bank.do(settled)
    assert isinstance(bank.ask(c.ResendCode, challenge_id=reply.code.challenge_id), CodeReply)
    assert refused(bank.send()) == "SEND_BUDGET_SPENT"
    assert bank.verify() == []


def test_a_code_is_worth_nothing_to_another_customer_and_unknown_ids_are_not_found(bank: Bank) -> None:
    bank.phone()
    challenge_id = bank.sent()
    bank.do(f.open_line("open bo", customer_id="bo"))

    reply = bank.ask(
        c.VerifyCode, customer_id="bo", challenge_id=challenge_id, factor_id="", code=bank.code(challenge_id),
        purpose=None, transaction_id="",
    )  # fmt: skip
    assert refused(reply) == "CHALLENGE_NOT_FOUND"
    assert refused(bank.check("c-unknown", "000000")) == "CHALLENGE_NOT_FOUND"


def test_factors_are_bounded_and_their_states_told(bank: Bank) -> None:
    enrolled = bank.enroll_phone()
    assert isinstance(enrolled, FactorReply)
    assert enrolled.factor.state is FactorState.PENDING
    assert refused(bank.send(factor_id=enrolled.factor.factor_id)) == "FACTOR_NOT_ACTIVE"
    apps = [bank.ask(c.EnrollTotp, label=f"app {n}", grant=b"") for n in range(16)]

    assert all(isinstance(reply, FactorReply) for reply in apps[:15])
    assert refused(apps[15]) == "BOUND_REACHED"
