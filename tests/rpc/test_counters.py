"""Counters of passkeys over the wire: what one that does not grow is worth, and that the rules get to know of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_client.phone import Passkey
from tests.rpc.attacks import WRONG
from tests.rpc.calling import refused
from tests.rpc.devices import WEB, asked, enrol, proof, proven
from tests.rpc.requests import buy, open_line
from tests.rpc.serving import Deployment, Loop, Running, Tenant, serving


@pytest.fixture(scope="module")
def ruled(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with the rules that come with the program."""
    deployment = Deployment(tmp_path_factory.mktemp("ruled") / "data")
    with serving(loop, deployment, ruleset="") as running:
        yield running
    deployment.close()


@pytest.fixture
def ada_at(ruled: Running) -> Tenant:
    """A tenant whose customer ada has a line, and buys at a shop."""
    tenant = ruled.tenant()
    open_line(tenant.api)
    assert buy(tenant.api, amount=100).outcome == risk_pb.OUTCOME_APPROVE
    return tenant


def told_to_the_rules(tenant: Tenant) -> bool:
    decision = buy(tenant.api, amount=100)
    told = {reason.code for reason in decision.reasons}
    return decision.outcome == risk_pb.OUTCOME_REVIEW and "DEVICE_COPIED" in told


@pytest.mark.attack("counter-back")
@pytest.mark.parametrize("shown", [0, 5, 6], ids=["none", "lower", "equal"])
def test_a_counter_that_does_not_grow_of_a_key_that_cannot_be_copied(ada_at: Tenant, shown: int) -> None:
    passkey = Passkey(WEB, sign_count=5)
    credential_id = enrol(ada_at, passkey)
    assert proven(ada_at, passkey, credential_id).level == 2
    assert not told_to_the_rules(ada_at)
    # It counts up before it answers; a copy did not see how far the first one came.
    passkey.sign_count = shown - 1
    request = proof(passkey, asked(ada_at), credential_id)

    assert refused(lambda: ada_at.api.devices.VerifyChallenge(request)).name == WRONG
    assert told_to_the_rules(ada_at)


@pytest.mark.attack("counter-of-copies")
def test_a_counter_that_does_not_grow_of_a_key_with_copies(ada_at: Tenant) -> None:
    passkey = Passkey(WEB, synced=True, sign_count=5)
    credential_id = enrol(ada_at, passkey)
    assert not told_to_the_rules(ada_at)

    assert proven(ada_at, passkey, credential_id).level == 2
    assert told_to_the_rules(ada_at)


@pytest.mark.attack("no-counter")
@pytest.mark.parametrize("synced", [False, True], ids=["device-bound", "synced"])
def test_a_key_that_never_counts_is_as_good_as_any(ada_at: Tenant, *, synced: bool) -> None:
    passkey = Passkey(WEB, synced=synced)
    credential_id = enrol(ada_at, passkey)
    levels = []
    for _ in range(3):
        passkey.sign_count = 0 if synced else -1
        levels.append(proven(ada_at, passkey, credential_id).level)

    assert levels == [2, 2, 2]
    assert not told_to_the_rules(ada_at)
