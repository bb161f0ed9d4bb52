"""Every secret is renewed while calls go on: none fails, and what was made under an old one still counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pyotp
import pytest

from riskgate.identity.v1 import otp_service_pb2 as otp_pb
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_server.crypto.keys import FINGERPRINT, HEADS
from riskgate_server.crypto.rings import in_force
from riskgate_server.crypto.signing import HeadSigner, end_of
from riskgate_server.opening import secret, secret_ring, verify_directory
from riskgate_server.rotation import DAY_SECONDS, KINDS, LEAD_SECONDS, Report, Rotation, RotationRefused
from tests import postgres
from tests.rpc.calling import Api, refused, refused_of
from tests.rpc.phones import BINDING, TRANSACTION, code_of, confirmed_phone, sent, verify, whose
from tests.rpc.requests import buy, buying, capturing, new_id, open_line
from tests.rpc.serving import Deployment, Loop, Running, Tenant, serving

SHOPPERS = 3
NOTICED_SECONDS = 10.0


@pytest.fixture
def dsn(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The database; empty while rows and keys are in the directory, as they are unless a test asks for one."""
    if not getattr(request, "param", ""):
        yield ""
        return
    yield postgres.database(tmp_path)
    postgres.give_back(tmp_path)


@pytest.fixture
def running(loop: Loop, tmp_path: Path, dsn: str) -> Iterator[Running]:
    """A server of its own: its secrets are nobody else's."""
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment, heads_seconds=0.05, store=dsn) as running:
        yield running
    deployment.close()


@pytest.fixture
def tenant(running: Running) -> Tenant:
    return running.tenant()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + NOTICED_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not within ten seconds"
        time.sleep(0.05)


def rotate(
    running: Running, dsn: str = "", *, days: float = 0, steps: tuple[str, ...] = ("add", "rewrap", "retire")
) -> Report:
    """
    Renew everything as if it were so many days later, and wait until the server goes by it.

    Without the lead that other processes are given.
    """
    directory = running.deployment.directory
    rotation = Rotation(directory, dsn, now=lambda: time.time() - LEAD_SECONDS + days * DAY_SECONDS)
    report = rotation.run(KINDS, steps)
    if not days:

        def signed_by() -> str:
            end = end_of(directory.heads_of(0))
            return end.signs_next if end else ""

        ring = secret_ring(FINGERPRINT, directory.fingerprint_key)
        until(lambda: in_force(ring, time.time() - 1.5) == max(ring))
        newest = HeadSigner(secret(HEADS, directory.heads_key)).key_id
        until(lambda: signed_by() == newest)
    return report


class Shoppers:
    """Threads that open customers, buy, capture, and repeat what they did before; every call must succeed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._over = threading.Event()
        self._numbers = count()
        self.failed: list[Any] = []
        self.calls = 0
        self.customers: list[str] = []

    def _shop(self) -> None:
        first: list[tuple[Any, Any]] = []
        try:
            while not self._over.is_set():
                customer = f"shopper-{next(self._numbers)}"
                open_line(self._api, customer)
                self.customers.append(customer)
                request = buying(customer)
                decision = self._api.risk.CheckTransaction(request)
                hold_id = decision.decision.transaction_id
                self._api.ledger.CaptureHold(capturing(hold_id, customer_id=customer))
                first = first or [(request, decision)]
                for each, answer in (*first, (request, decision)):
                    assert self._api.risk.CheckTransaction(each) == answer
                self.calls += 5
        except (grpc.RpcError, AssertionError) as error:
            self.failed.append(error)

    @contextmanager
    def shopping(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._shop) for _ in range(SHOPPERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("dsn", ["", "postgres"], ids=["sqlite", "postgres"], indirect=True)
def test_every_secret_is_renewed_twice_under_load_without_a_failed_call(
    running: Running, tenant: Tenant, dsn: str
) -> None:
    directory = running.deployment.directory
    shoppers = Shoppers(tenant.api)
    # Somebody's key is there before any shopper's is.
    open_line(tenant.api, "first")
    shoppers.customers.append("first")
    with shoppers.shopping():
        reports = [rotate(running, dsn), rotate(running, dsn)]

    assert (shoppers.failed, [report.unreadable for report in reports]) == ([], [0, 0])
    assert shoppers.calls > 100
    assert [len(secret_ring(kind, directory.secret(kind))) for kind in KINDS[:3]] == [1, 3, 3]
    assert reports[1].rewrapped > reports[0].rewrapped > 0
    for customer in shoppers.customers:
        assert buy(tenant.api, customer).held_amount.amount_minor
    report = verify_directory(directory, lambda *_: None, dsn)
    assert report.faults == []
    assert report.customers == len(shoppers.customers)


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_the_files_of_a_directory_that_serves_a_database_are_not_taken_for_it(
    running: Running, tenant: Tenant, dsn: str
) -> None:
    """Otherwise the database's vault would lose its master key."""
    directory = running.deployment.directory
    open_line(tenant.api)
    until(lambda: (end := end_of(directory.heads_of(0))) is not None and end.head.batch > 0)
    before = directory.master_key.read_bytes()

    with pytest.raises(RotationRefused, match="is not what is served here"):
        rotate(running)
    assert directory.master_key.read_bytes() == before
    assert "master" in rotate(running, dsn).retired


@pytest.fixture
def ada(tenant: Tenant) -> Api:
    """The administrator of a tenant whose customer ada has a line and a phone."""
    open_line(tenant.api)
    confirmed_phone(tenant)
    return tenant.api


@pytest.mark.attack("key-gone-early")
def test_codes_grants_seeds_and_repeated_ids_outlive_a_rotation(running: Running, tenant: Tenant, ada: Api) -> None:
    challenge_id = sent(tenant, purpose=BINDING)
    binding = verify(tenant, challenge_id, code_of(tenant, challenge_id), purpose=BINDING).token
    in_flight = sent(tenant)
    bought = buying()
    decided = ada.risk.CheckTransaction(bought)
    rotate(running)

    enrolling = otp_pb.EnrollTotpRequest(**whose(), label="ada's phone", binding_grant=binding)
    enrolled = ada.otp.EnrollTotp(enrolling)
    rotate(running)

    assert ada.otp.EnrollTotp(enrolling) == enrolled
    code = pyotp.TOTP(enrolled.seed_base32).now()
    ada.otp.ConfirmFactor(otp_pb.ConfirmFactorRequest(**whose(), factor_id=enrolled.factor.factor_id, code=code))
    assert verify(tenant, in_flight, code_of(tenant, in_flight)).token
    assert ada.risk.CheckTransaction(bought) == decided
    bought.amount.amount_minor += 1
    assert refused(lambda: ada.risk.CheckTransaction(bought)).name == "ALREADY_EXISTS REQUEST_ID_REUSED"


def test_a_purchase_that_waits_for_a_proof_keeps_its_terms_across_rotations(
    running: Running, tenant: Tenant, ada: Api
) -> None:
    asked = buy(ada, phone="ask")
    again: dict[str, Any] = {"transaction_id": asked.transaction_id, "phone": "ask"}
    challenge_id = sent(tenant, purpose=TRANSACTION, transaction_id=asked.transaction_id)
    rotate(running)

    # Decided anew under the new key, then proven with the code that was sent under the old one.
    assert buy(ada, **again).outcome == risk_pb.OUTCOME_STEP_UP
    assert refused(lambda: buy(ada, amount=999, **again)).name == "FAILED_PRECONDITION TRANSACTION_CHANGED"
    grant = verify(
        tenant, challenge_id, code_of(tenant, challenge_id), purpose=TRANSACTION, transaction_id=asked.transaction_id
    ).token
    rotate(running)

    resume = risk_pb.CheckTransactionRequest(
        request_id=new_id(), customer_id="ada", transaction_id=asked.transaction_id, grant=grant
    )
    assert ada.risk.CheckTransaction(resume).decision.outcome == risk_pb.OUTCOME_APPROVE


def test_what_was_made_under_a_key_that_is_gone_is_refused_and_never_done_twice(
    running: Running, tenant: Tenant, ada: Api
) -> None:
    bought = buying()
    ada.risk.CheckTransaction(bought)
    rotate(running)
    retired = rotate(running, days=100, steps=("retire",)).retired
    assert {"fingerprint", "proofs"} <= set(retired)

    def repeated() -> str:
        try:
            ada.risk.CheckTransaction(bought)
        except grpc.RpcError as error:
            return refused_of(error).name
        return ""

    until(lambda: bool(repeated()))
    assert repeated() == "ALREADY_EXISTS REQUEST_ID_REUSED"
    challenge_id = sent(tenant)
    assert verify(tenant, challenge_id, code_of(tenant, challenge_id)).token
