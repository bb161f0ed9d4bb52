"""Proofs that come too late, too early or again, at a server whose time passes when a test says so."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import pyotp
import pytest

from riskgate.identity.v1 import otp_service_pb2 as pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_client.phone import AndroidPhone, JoseApp, Passkey
from tests.rpc.attacks import EXPIRED, INVALID, LOCKED, NO_GRANT, WRONG
from tests.rpc.calling import REPEATS, at_once, refused
from tests.rpc.devices import WEB, AnyDevice, asked, begin, enrol, proof, registration
from tests.rpc.phones import (
    TRANSACTION,
    code_of,
    confirm_app,
    confirmed_phone,
    enrolled_app,
    granted,
    never,
    sent,
    verify,
    verify_app,
    whose,
)
from tests.rpc.requests import buy, open_line, resuming
from tests.rpc.serving import Deployment, Loop, Tenant
from tests.rpc.standing import StandingClock, standing

STEP: Final = 30


@pytest.fixture(scope="module")
def timed(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, StandingClock]]:
    deployment, clock = Deployment(tmp_path_factory.mktemp("times") / "data"), StandingClock()
    with standing(loop, deployment, clock) as running:
        yield running, clock
    deployment.close()


@pytest.fixture
def clock(timed: tuple[Any, StandingClock]) -> StandingClock:
    return timed[1]


@pytest.fixture
def ada_at(timed: tuple[Any, StandingClock]) -> Tenant:
    """A tenant whose customer ada has a line."""
    tenant: Tenant = timed[0].tenant()
    open_line(tenant.api)
    return tenant


def code_at(app: pyotp.TOTP, clock: StandingClock, steps: int = 0) -> str:
    return app.at(clock.us // 1_000_000 + steps * STEP)


@pytest.mark.attack("late-code")
def test_a_code_after_its_five_minutes(ada_at: Tenant, clock: StandingClock) -> None:
    confirmed_phone(ada_at)
    challenge_id = sent(ada_at)
    code = code_of(ada_at, challenge_id)
    clock.wait(299)
    # Sent again it is the same, and lives no longer.
    resent = ada_at.api.otp.ResendCode(pb.ResendCodeRequest(**whose(), challenge_id=challenge_id))
    assert resent.challenge.challenge_id == challenge_id
    clock.wait(1)

    assert refused(lambda: verify(ada_at, challenge_id, code)).name == EXPIRED


@pytest.mark.attack("late-proof")
@pytest.mark.parametrize("make", [AndroidPhone, JoseApp, partial(Passkey, WEB)], ids=["key", "token", "passkey"])
def test_a_proof_after_its_two_minutes(ada_at: Tenant, clock: StandingClock, make: Any) -> None:
    device: AnyDevice = make()
    credential_id = enrol(ada_at, device)
    in_time, late = (asked(ada_at) for _ in range(2))
    clock.wait(119)
    assert ada_at.api.devices.VerifyChallenge(proof(device, in_time, credential_id)).grant.level == 2
    clock.wait(1)

    request = proof(device, late, credential_id)
    assert refused(lambda: ada_at.api.devices.VerifyChallenge(request)).name == EXPIRED


@pytest.mark.attack("late-proof")
def test_a_registration_after_its_ten_minutes(ada_at: Tenant, clock: StandingClock) -> None:
    phone = AndroidPhone()
    request = registration(phone, begin(ada_at, phone))
    clock.wait(600)

    assert refused(lambda: ada_at.api.devices.FinishEnrollment(request)).name == EXPIRED


@pytest.mark.attack("app-code-again")
def test_a_code_of_an_app_is_taken_once(ada_at: Tenant, clock: StandingClock) -> None:
    factor_id, app = enrolled_app(ada_at)
    confirming = code_at(app, clock)
    confirm_app(ada_at, factor_id, confirming)
    assert refused(lambda: verify_app(ada_at, factor_id, confirming)).name == WRONG
    clock.wait(STEP)
    code = code_at(app, clock)
    assert verify_app(ada_at, factor_id, code).level == 1

    assert refused(lambda: verify_app(ada_at, factor_id, code)).name == WRONG
    # One step later it would still be in time.
    clock.wait(STEP)
    assert refused(lambda: verify_app(ada_at, factor_id, code)).name == WRONG
    assert verify_app(ada_at, factor_id, code_at(app, clock)).level == 1


@pytest.mark.attack("app-code-again")
def test_of_64_at_once_with_the_right_code_of_an_app_exactly_one_is_let_in(
    ada_at: Tenant, clock: StandingClock
) -> None:
    factor_id, app = enrolled_app(ada_at)
    confirm_app(ada_at, factor_id, code_at(app, clock))
    for n in range(REPEATS):
        # Whatever the others made of it is over.
        clock.wait(3_600)
        found = at_once([partial(verify_app, ada_at, factor_id, code_at(app, clock))] * 64)
        assert found["OK"] == 1, n
        assert set(found) <= {"OK", WRONG, LOCKED}


@pytest.mark.attack("app-code-of-before")
def test_a_code_of_the_step_before_counts_only_while_none_of_this_one_did(ada_at: Tenant, clock: StandingClock) -> None:
    factor_id, app = enrolled_app(ada_at)
    confirm_app(ada_at, factor_id, code_at(app, clock))
    clock.wait(3 * STEP)
    assert verify_app(ada_at, factor_id, code_at(app, clock, -1)).level == 1
    assert verify_app(ada_at, factor_id, code_at(app, clock)).level == 1

    assert refused(lambda: verify_app(ada_at, factor_id, code_at(app, clock, -1))).name == WRONG


@pytest.mark.attack("app-code-too-far")
@pytest.mark.parametrize("steps", [-2, 2])
def test_a_code_of_an_app_two_steps_off(ada_at: Tenant, clock: StandingClock, steps: int) -> None:
    factor_id, app = enrolled_app(ada_at)
    confirm_app(ada_at, factor_id, code_at(app, clock))
    clock.wait(10 * STEP)

    assert refused(lambda: verify_app(ada_at, factor_id, code_at(app, clock, steps))).name == WRONG
    assert verify_app(ada_at, factor_id, code_at(app, clock, steps // 2)).level == 1


@pytest.mark.attack("leading-zeros")
def test_a_code_may_begin_with_a_zero(ada_at: Tenant, clock: StandingClock) -> None:
    factor_id, app = enrolled_app(ada_at)
    confirm_app(ada_at, factor_id, code_at(app, clock))
    clock.wait(STEP)
    while not code_at(app, clock).startswith("0"):
        clock.wait(STEP)
    assert verify_app(ada_at, factor_id, code_at(app, clock)).level == 1

    # One in ten does.
    for n in range(200):
        customer = f"c{n}"
        open_line(ada_at.api, customer)
        # Numbers far apart, for those alike have a budget.
        request = pb.EnrollPhoneRequest(**whose(customer), phone_number=f"+86 138 {n:04d} 0000")
        enrolled = ada_at.api.otp.EnrollPhone(request)
        code = code_of(ada_at, enrolled.challenge.challenge_id, customer)
        assert len(code) == 6
        if code.startswith("0"):
            break
    assert code.startswith("0")
    confirming = pb.ConfirmFactorRequest(**whose(customer), factor_id=enrolled.factor.factor_id, code=code)
    assert ada_at.api.otp.ConfirmFactor(confirming).factor.state == pb.FACTOR_STATE_ACTIVE


@pytest.mark.attack("late-confirmation")
def test_a_seed_that_is_confirmed_after_its_ten_minutes(ada_at: Tenant, clock: StandingClock) -> None:
    factor_id, app = enrolled_app(ada_at)
    clock.wait(599)
    assert refused(lambda: confirm_app(ada_at, factor_id, never(app, clock.us // 1_000_000))).name == WRONG
    clock.wait(1)

    late = refused(lambda: confirm_app(ada_at, factor_id, code_at(app, clock)))
    assert late.name == "FAILED_PRECONDITION FACTOR_EXPIRED"


@pytest.mark.attack("second-confirmation")
def test_a_factor_that_is_confirmed_is_not_confirmed_again(ada_at: Tenant, clock: StandingClock) -> None:
    factor_id, app = enrolled_app(ada_at)
    confirm_app(ada_at, factor_id, code_at(app, clock))
    clock.wait(STEP)

    again = refused(lambda: confirm_app(ada_at, factor_id, code_at(app, clock)))
    assert again.name == "FAILED_PRECONDITION FACTOR_CONFIRMED"


@pytest.mark.attack("clients-clock")
def test_the_time_a_caller_says_prolongs_nothing(ada_at: Tenant, clock: StandingClock) -> None:
    confirmed_phone(ada_at)
    demanded = buy(ada_at.api, phone="ask")
    token = granted(ada_at, demanded.transaction_id)
    before = clock.us // 1_000_000
    clock.wait(300)
    said = {"seconds": before + 1}

    resumes = [resuming(demanded.transaction_id, token, event_time=said), resuming(demanded.transaction_id, token)]
    first, second = (refused(partial(ada_at.api.risk.CheckTransaction, resume)) for resume in resumes)
    assert (first.name, set(first.fields)) == (INVALID, {"event_time"})
    assert second.name == NO_GRANT
    far = refused(lambda: buy(ada_at.api, event_time={"seconds": before - 1}))
    assert far.name == "INVALID_ARGUMENT EVENT_TIME_OUT_OF_RANGE"
    again = buy(ada_at.api, transaction_id=demanded.transaction_id, phone="ask", event_time=said)
    assert again.outcome == risk_pb.OUTCOME_STEP_UP
    assert again.decide_time.seconds == before + 300
    asking = pb.SendCodeRequest(**whose(), purpose=TRANSACTION, transaction_id=demanded.transaction_id)
    assert ada_at.api.otp.SendCode(asking).challenge.expire_time.seconds == before + 600


@pytest.mark.attack("confused-token")
def test_no_claim_of_a_token_prolongs_it(ada_at: Tenant, clock: StandingClock) -> None:
    app = JoseApp()
    credential_id = enrol(ada_at, app)
    challenge = asked(ada_at)
    now = clock.us // 1_000_000

    for changes in ({"exp": now}, {"exp": now + 121}, {"nbf": now + 1}):
        token = app.sign(challenge.signing_input, credential_id, **changes)
        request = proof(app, challenge, credential_id, compact_jws=token)
        assert refused(partial(ada_at.api.devices.VerifyChallenge, request)).name == WRONG
