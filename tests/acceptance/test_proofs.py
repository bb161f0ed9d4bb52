"""`kill -9` forgets no wrong answer, lock, message, proof or grant: what was answered about them is on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from riskgate.identity.v1 import otp_service_pb2 as pb
from riskgate_client.phone import AndroidPhone
from tests.acceptance.deployment import Deployment
from tests.rpc.attacks import BURNED, LOCKED, NO_GRANT, SPENT, USED, WRONG
from tests.rpc.calling import Api, Channels, answer
from tests.rpc.devices import again, asked, begin, enrol, proof, proven
from tests.rpc.phones import BINDING, confirm_app, enrolled_app, never, verify_app, whose
from tests.rpc.requests import open_line
from tests.rpc.serving import Tenant

pytestmark = pytest.mark.process


class Reached(Tenant):
    """The tenant of a deployment's caller, as far as calls go."""

    def __init__(self, api: Api) -> None:
        self.api = api


@contextmanager
def until_killed(deployment: Deployment) -> Iterator[Reached]:
    """Serve a deployment, and take the process away the moment the last answer is there."""
    deployment.started()
    channels = Channels(deployment.ca_certificate)
    yield Reached(Api(channels.to(deployment.port), (("authorization", f"Bearer {deployment.api_key}"),)))
    deployment.kill()
    channels.close()


def test_a_server_that_is_killed_remembers_who_guessed_and_what_was_used(deployment: Deployment) -> None:
    phone = AndroidPhone()
    with until_killed(deployment) as bank:
        open_line(bank.api)
        credential_id = enrol(bank, phone)
        binding = proven(bank, phone, credential_id, purpose=BINDING).token
        factor_id, app = enrolled_app(bank, binding)
        confirm_app(bank, factor_id, app.at(time.time() - 30))
        tried, used = asked(bank), asked(bank)
        answered = proof(phone, used, credential_id)
        bank.api.devices.VerifyChallenge(answered)
        wrong = [proof(AndroidPhone(), tried, credential_id) for _ in range(3)]
        assert [answer(partial(bank.api.devices.VerifyChallenge, each)) for each in wrong] == [WRONG] * 3
        assert [answer(lambda: verify_app(bank, factor_id, never(app, time.time()))) for _ in range(5)] == [WRONG] * 5
        for customer in ("c0", "c1", "c2", "c3", "c4"):
            open_line(bank.api, customer)
            bank.api.otp.EnrollPhone(pb.EnrollPhoneRequest(**whose(customer), phone_number="+86 138 1234 5678"))

    with until_killed(deployment) as bank:
        # The lock of 30 seconds may be over by now on a slow machine; the count of what led to it is not.
        if answer(lambda: verify_app(bank, factor_id, never(app, time.time()))) != LOCKED:
            assert answer(lambda: verify_app(bank, factor_id, app.now())) == LOCKED
        assert answer(partial(bank.api.devices.VerifyChallenge, proof(phone, tried, credential_id))) == BURNED
        assert answer(partial(bank.api.devices.VerifyChallenge, again(answered))) == USED
        assert bank.api.devices.VerifyChallenge(answered).grant.level == 2
        assert answer(lambda: begin(bank, AndroidPhone(), grant=binding)) == NO_GRANT
        open_line(bank.api, "c5")
        sixth = pb.EnrollPhoneRequest(**whose("c5"), phone_number="+86 138 1234 5678")
        assert answer(partial(bank.api.otp.EnrollPhone, sixth)) == SPENT

    assert deployment.verify()["clean"]
