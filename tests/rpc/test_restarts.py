"""
A restart of the server forgets no try, lock, budget, proof or grant: what counts is in the store.

Its clock stands meanwhile, so that nothing is over only because time passed. What a process leaves that is killed is in
`tests/acceptance/test_proofs.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import pyotp
import pytest

from riskgate.identity.v1 import device_service_pb2 as device_pb
from riskgate.identity.v1 import otp_service_pb2 as pb
from riskgate_client.phone import AndroidPhone, Passkey
from riskgate_server.opening import verify_directory
from riskgate_server.rpc import server
from tests.rpc.attacks import BURNED, EXPIRED, LOCKED, NO_GRANT, OTHER_GRANT, SPENT, USED, WRONG
from tests.rpc.calling import answer, at_once, refused
from tests.rpc.devices import WEB, again, asked, begin, devices_of, enrol, proof, proven, registration
from tests.rpc.phones import (
    BINDING,
    SIGN_IN,
    binding_grant,
    code_of,
    confirm_app,
    confirmed_phone,
    enrolled_app,
    granted,
    never,
    other_than,
    sent,
    verify,
    verify_app,
    whose,
)
from tests.rpc.requests import buy, open_line, resuming
from tests.rpc.serving import Deployment, Loop, Running, Tenant
from tests.rpc.standing import StandingClock, standing

GUESSES: Final = 1_000
"""Wrong codes of a tenant in an hour after which none is compared (`ProofLimits`)."""


class Bank:
    """A tenant of a server that may be started anew."""

    def __init__(self, loop: Loop, root: Path, serving: ExitStack) -> None:
        self.clock = StandingClock()
        self.deployment = Deployment(root)
        self._loop, self._serving = loop, serving
        self.tenant = self._served().tenant()

    def _served(self) -> Running:
        return self._serving.enter_context(standing(self._loop, self.deployment, self.clock))

    def restart(self) -> Tenant:
        """Stop the server and start another one on the same files; the tenant is the same."""
        self._serving.close()
        self.tenant = Tenant(self._served(), self.tenant.name)
        return self.tenant


@pytest.fixture
def bank(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bank]:
    """A bank whose customer ada has a line; at the end its books verify."""
    # Nobody calls while it stops.
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.0)
    with ExitStack() as serving:
        bank = Bank(loop, tmp_path / "data", serving)
        open_line(bank.tenant.api)
        yield bank
    assert verify_directory(bank.deployment.directory, lambda *_: None).faults == []
    bank.deployment.close()


def checked(tenant: Tenant, request: device_pb.VerifyChallengeRequest) -> str:
    return answer(lambda: tenant.api.devices.VerifyChallenge(request))


def code_at(app: pyotp.TOTP, bank: Bank) -> str:
    return app.at(bank.clock.us // 1_000_000)


def wrong(app: pyotp.TOTP, bank: Bank) -> str:
    return never(app, bank.clock.us // 1_000_000)


# --- tries ---


@pytest.mark.attack("restart-for-tries")
def test_wrong_codes_are_counted_on(bank: Bank) -> None:
    confirmed_phone(bank.tenant)
    challenge_id = sent(bank.tenant)
    code = code_of(bank.tenant, challenge_id)
    for n in range(5):
        if n == 3:
            bank.restart()
        assert answer(partial(verify, bank.tenant, challenge_id, other_than(code))) == WRONG

    assert answer(lambda: verify(bank.tenant, challenge_id, code)) == BURNED


@pytest.mark.attack("restart-for-tries")
def test_wrong_answers_of_devices_are_counted_on(bank: Bank) -> None:
    phone = AndroidPhone()
    credential_id = enrol(bank.tenant, phone)
    challenge = asked(bank.tenant)
    for n in range(3):
        if n == 2:
            bank.restart()
        assert checked(bank.tenant, proof(AndroidPhone(), challenge, credential_id)) == WRONG

    assert checked(bank.tenant, proof(phone, challenge, credential_id)) == BURNED


@pytest.mark.attack("restart-for-tries")
def test_wrong_registrations_are_counted_on(bank: Bank) -> None:
    phone = AndroidPhone()
    begun = begin(bank.tenant, phone)
    for n in range(3):
        if n == 2:
            bank.restart()
        answered = registration(phone, begun)
        answered.raw_key.signature = AndroidPhone().enrol(begun.signing_input).signature
        assert answer(partial(bank.tenant.api.devices.FinishEnrollment, answered)) == WRONG

    assert answer(lambda: bank.tenant.api.devices.FinishEnrollment(registration(phone, begun))) == BURNED


# --- locks ---


@pytest.mark.attack("restart-for-locks")
def test_a_locked_app_stays_locked_and_the_next_lock_is_twice_as_long(bank: Bank) -> None:
    factor_id, app = enrolled_app(bank.tenant)
    confirm_app(bank.tenant, factor_id, code_at(app, bank))
    for _ in range(5):
        assert answer(lambda: verify_app(bank.tenant, factor_id, wrong(app, bank))) == WRONG
    bank.clock.wait(29)
    bank.restart()

    locked = refused(lambda: verify_app(bank.tenant, factor_id, code_at(app, bank)))
    assert (locked.name, locked.retry_seconds) == (LOCKED, 1)
    bank.clock.wait(1)
    assert answer(lambda: verify_app(bank.tenant, factor_id, wrong(app, bank))) == WRONG
    bank.restart()
    assert refused(lambda: verify_app(bank.tenant, factor_id, code_at(app, bank))).retry_seconds == 60
    bank.clock.wait(60)
    assert verify_app(bank.tenant, factor_id, code_at(app, bank)).level == 1


@pytest.mark.attack("restart-for-locks")
def test_what_is_locked_for_good_is_locked_for_good(bank: Bank) -> None:
    factor_id, app = enrolled_app(bank.tenant)
    confirm_app(bank.tenant, factor_id, code_at(app, bank))
    for _ in range(20):
        bank.clock.wait(3_600)
        assert answer(lambda: verify_app(bank.tenant, factor_id, wrong(app, bank))) == WRONG
    bank.restart()
    bank.clock.wait(7 * 24 * 3_600)

    assert answer(lambda: verify_app(bank.tenant, factor_id, code_at(app, bank))) == LOCKED


@pytest.mark.attack("restart-for-locks")
def test_a_locked_device_and_a_locked_phone_stay_locked(bank: Bank) -> None:
    phone = AndroidPhone()
    credential_id = enrol(bank.tenant, phone)
    grant = proven(bank.tenant, phone, credential_id, purpose=BINDING).token
    enrolled = bank.tenant.api.otp.EnrollPhone(
        pb.EnrollPhoneRequest(**whose(), phone_number="+86 138 1234 5678", binding_grant=grant)
    )
    code = code_of(bank.tenant, enrolled.challenge.challenge_id)
    confirm_app(bank.tenant, enrolled.factor.factor_id, code)
    open_before, challenge_id = asked(bank.tenant), sent(bank.tenant)
    for challenge in (first := asked(bank.tenant), first, asked(bank.tenant), open_before, open_before):
        assert checked(bank.tenant, proof(AndroidPhone(), challenge, credential_id)) == WRONG
    code = code_of(bank.tenant, challenge_id)
    for _ in range(4):
        assert answer(lambda: verify(bank.tenant, challenge_id, other_than(code))) == WRONG
    challenge_id = sent(bank.tenant)
    code = code_of(bank.tenant, challenge_id)
    assert answer(lambda: verify(bank.tenant, challenge_id, other_than(code))) == WRONG
    bank.restart()

    assert checked(bank.tenant, proof(phone, open_before, credential_id)) == LOCKED
    assert answer(lambda: asked(bank.tenant)) == LOCKED
    assert answer(lambda: verify(bank.tenant, challenge_id, code)) == LOCKED
    assert answer(lambda: sent(bank.tenant)) == LOCKED


@pytest.mark.attack("restart-for-locks")
def test_guesses_at_all_of_a_tenants_customers_are_counted_on(bank: Bank) -> None:
    confirmed_phone(bank.tenant)
    challenge_id = sent(bank.tenant)
    code = code_of(bank.tenant, challenge_id)
    assert set(guessed(bank, range(GUESSES // 10))) == {WRONG}
    bank.restart()
    assert set(guessed(bank, range(GUESSES // 10, GUESSES // 5))) == {WRONG}
    assert answer(lambda: verify(bank.tenant, challenge_id, code)) == LOCKED
    bank.restart()

    assert answer(lambda: verify(bank.tenant, challenge_id, code)) == LOCKED


def guessed(bank: Bank, customers: range) -> dict[str, int]:
    """Have five wrong codes tried at each of so many customers."""
    api = bank.tenant.api
    asked_for: list[pb.ConfirmFactorRequest] = []

    def enrol_app(customer: str) -> None:
        open_line(api, customer)
        enrolled = api.otp.EnrollTotp(pb.EnrollTotpRequest(**whose(customer), label="a phone"))
        for _ in range(5):
            said = {"factor_id": enrolled.factor.factor_id, "code": wrong(pyotp.TOTP(enrolled.seed_base32), bank)}
            asked_for.append(pb.ConfirmFactorRequest(**whose(customer), **said))

    assert at_once([partial(enrol_app, f"c{n}") for n in customers]) == {"OK": len(customers)}
    return at_once([partial(api.otp.ConfirmFactor, request) for request in asked_for])


# --- budgets ---


@pytest.mark.attack("restart-for-budgets")
def test_messages_to_a_customer_are_counted_on_whichever_number_they_went_to(bank: Bank) -> None:
    confirmed_phone(bank.tenant)
    second = pb.EnrollPhoneRequest(
        **whose(), phone_number="+86 139 0000 0000", binding_grant=binding_grant(bank.tenant)
    )
    enrolled = bank.tenant.api.otp.EnrollPhone(second)
    factor_id = enrolled.factor.factor_id
    confirm_app(bank.tenant, factor_id, code_of(bank.tenant, enrolled.challenge.challenge_id))

    def sent_there() -> str:
        request = pb.SendCodeRequest(**whose(), factor_id=factor_id, purpose=SIGN_IN)
        return answer(lambda: bank.tenant.api.otp.SendCode(request))

    assert [sent_there() for _ in range(2)] == ["OK"] * 2
    bank.restart()

    # Three went to this number, and five to the customer.
    assert sent_there() == SPENT


@pytest.mark.attack("restart-for-budgets")
def test_messages_to_a_number_are_counted_on(bank: Bank) -> None:
    confirmed_phone(bank.tenant)
    for n in range(4):
        if n == 2:
            bank.restart()
        sent(bank.tenant)

    assert answer(lambda: sent(bank.tenant)) == SPENT
    open_line(bank.tenant.api, "bo")
    same = pb.EnrollPhoneRequest(**whose("bo"), phone_number="+86 138 1234 5678")
    assert answer(lambda: bank.tenant.api.otp.EnrollPhone(same)) == SPENT
    bank.clock.wait(660)
    assert answer(lambda: sent(bank.tenant)) == "OK"
    for _ in range(4):
        sent(bank.tenant)
    # Ten in a day, and a bucket more.
    bank.clock.wait(660)
    bank.restart()
    assert answer(lambda: sent(bank.tenant)) == SPENT
    bank.clock.wait(86_400 + 8_640)
    assert answer(lambda: sent(bank.tenant)) == "OK"


@pytest.mark.attack("restart-for-budgets")
def test_numbers_alike_are_counted_on(bank: Bank) -> None:
    found = []
    for n in range(11):
        open_line(bank.tenant.api, f"c{n}")
        request = pb.EnrollPhoneRequest(**whose(f"c{n}"), phone_number=f"+86 138 1234 5{n:03d}")
        if n == 10:
            bank.restart()
        found.append(answer(partial(bank.tenant.api.otp.EnrollPhone, request)))

    assert found == ["OK"] * 10 + [SPENT]


# --- what was used ---


@pytest.mark.attack("restart-for-challenges")
def test_a_code_that_was_taken_is_taken_and_its_request_has_the_same_grant(bank: Bank) -> None:
    confirmed_phone(bank.tenant)
    challenge_id = sent(bank.tenant)
    code = code_of(bank.tenant, challenge_id)
    grant = verify(bank.tenant, challenge_id, code, request_id="same")
    bank.restart()

    assert answer(lambda: verify(bank.tenant, challenge_id, code)) == USED
    assert verify(bank.tenant, challenge_id, code, request_id="same") == grant


@pytest.mark.attack("restart-for-challenges")
def test_a_proof_that_was_taken_is_taken_and_what_was_asked_outlives_a_restart_but_not_its_time(bank: Bank) -> None:
    phone, passkey = AndroidPhone(), Passkey(WEB)
    credential_id = enrol(bank.tenant, phone)
    enrol(bank.tenant, passkey, grant=proven(bank.tenant, phone, credential_id, purpose=BINDING).token)
    used, raced, late = (asked(bank.tenant) for _ in range(3))
    answered = proof(phone, used, credential_id)
    grant = bank.tenant.api.devices.VerifyChallenge(answered).grant
    bank.restart()

    assert bank.tenant.api.devices.VerifyChallenge(answered).grant == grant
    assert checked(bank.tenant, again(answered)) == USED
    proofs = [proof(phone, raced, credential_id) for _ in range(64)]
    assert at_once([partial(bank.tenant.api.devices.VerifyChallenge, each) for each in proofs]) == {"OK": 1, USED: 63}
    bank.clock.wait(120)
    assert checked(bank.tenant, proof(phone, late, credential_id)) == EXPIRED
    every = device_pb.RevokeAllDevicesRequest(**whose(), reason_code="ACCOUNT_TAKEOVER", actor_id="olga")
    assert len(bank.tenant.api.devices.RevokeAllDevices(every).credential_ids) == 2


@pytest.mark.attack("restart-for-challenges")
def test_an_enrolment_that_was_finished_is_finished(bank: Bank) -> None:
    phone = AndroidPhone()
    request = registration(phone, begin(bank.tenant, phone))
    bank.tenant.api.devices.FinishEnrollment(request)
    bank.restart()

    assert answer(lambda: bank.tenant.api.devices.FinishEnrollment(again(request))) == USED
    assert len(devices_of(bank.tenant)) == 1


@pytest.mark.attack("restart-for-grants")
def test_a_grant_that_was_used_or_destroyed_is_gone_and_one_that_was_not_is_not(bank: Bank) -> None:
    confirmed_phone(bank.tenant)
    binding = binding_grant(bank.tenant)
    enrolled_app(bank.tenant, binding)
    first, second, third = (buy(bank.tenant.api, phone="ask", amount=amount).transaction_id for amount in (1, 2, 3))
    tokens = [granted(bank.tenant, each) for each in (first, second)]
    resumed = partial(_resumed, bank)
    assert resumed(third, tokens[0]) == OTHER_GRANT
    bank.restart()

    assert answer(lambda: enrolled_app(bank.tenant, binding)) == NO_GRANT
    assert resumed(first, tokens[0]) == NO_GRANT
    assert resumed(second, tokens[1]) == "OK"
    bank.restart()
    assert resumed(first, tokens[1]) == NO_GRANT


@pytest.mark.attack("restart-for-grants")
def test_a_grant_lives_no_longer(bank: Bank) -> None:
    confirmed_phone(bank.tenant)
    waits = buy(bank.tenant.api, phone="ask").transaction_id
    token = granted(bank.tenant, waits)
    bank.clock.wait(300)
    bank.restart()

    assert _resumed(bank, waits, token) == NO_GRANT


def _resumed(bank: Bank, transaction_id: str, token: str) -> str:
    return answer(lambda: bank.tenant.api.risk.CheckTransaction(resuming(transaction_id, token)))


@pytest.mark.attack("restart-for-app-codes")
def test_a_code_of_an_app_and_a_spare_one_are_taken_once(bank: Bank) -> None:
    factor_id, app = enrolled_app(bank.tenant)
    confirm_app(bank.tenant, factor_id, code_at(app, bank))
    bank.clock.wait(30)
    binding = verify_app(bank.tenant, factor_id, code_at(app, bank), BINDING).token
    making = pb.GenerateRecoveryCodesRequest(**whose(), binding_grant=binding)
    spare = bank.tenant.api.otp.GenerateRecoveryCodes(making).codes

    def with_spare(code: str) -> str:
        request = pb.VerifyRecoveryCodeRequest(**whose(), code=code, purpose=SIGN_IN)
        return answer(lambda: bank.tenant.api.otp.VerifyRecoveryCode(request))

    assert with_spare(spare[0]) == "OK"
    bank.restart()

    assert answer(lambda: verify_app(bank.tenant, factor_id, code_at(app, bank))) == WRONG
    assert with_spare(spare[0]) == WRONG
    assert with_spare(spare[1]) == "OK"
