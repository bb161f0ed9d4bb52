"""A person is forgotten: nothing of theirs can be read any more, and the books still verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from riskgate.credit.v1 import credit_line_service_pb2 as line_pb
from riskgate.identity.v1 import otp_service_pb2 as otp_pb
from riskgate.operations.v1 import customer_service_pb2 as pb
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.storing import NoKey
from riskgate_server.opening import master_keys, verify_directory
from riskgate_server.stores.sqlite.vault import SqliteVault
from tests import postgres
from tests.rpc.calling import refused
from tests.rpc.phones import confirmed_phone, sent, whose
from tests.rpc.requests import buy, buying, capturing, closing, open_line, paying
from tests.rpc.serving import Deployment, Loop, Running, Tenant, serving


@contextmanager
def serving_keys(running: Running) -> Iterator[Callable[[CustomerKey], bytes | NoKey]]:
    """Look into the vault of a running server."""
    directory = running.deployment.directory
    master = master_keys(directory)
    vault = SqliteVault(directory.vault, wrap=master.wrap, unwrap=master.unwrap, read_only=True)
    try:
        yield lambda key: vault.keys([key])[key]
    finally:
        vault.close()


CANARIES = [b"canary-shop", b"canary-phone", b"13812345678"]


def erasing(customer: str = "ada") -> pb.EraseCustomerRequest:
    return pb.EraseCustomerRequest(**whose(customer), reason_code="CUSTOMER_ASKED", actor_id="olga")


def live(tenant: Tenant) -> None:
    """Leave traces everywhere a customer leaves traces."""
    api = tenant.api
    open_line(api)
    confirmed_phone(tenant)
    sent(tenant)
    held = buy(api, amount=1_000, phone="canary-phone", merchant={"merchant_id": "canary-shop"})
    api.ledger.CaptureHold(capturing(held.transaction_id))
    api.ledger.RecordPayment(paying(1_000))


def test_a_customer_whose_line_is_open_is_not_erased(tenant: Tenant) -> None:
    open_line(tenant.api)

    refusal = refused(lambda: tenant.api.customers.EraseCustomer(erasing()))
    assert refusal.name == "FAILED_PRECONDITION LINE_IN_USE"
    assert buy(tenant.api).held_amount.amount_minor


def test_who_was_erased_is_refused_from_then_on_and_the_repeated_request_is_answered(tenant: Tenant) -> None:
    live(tenant)
    tenant.api.lines.CloseCreditLine(closing())
    request = erasing()
    answers = [tenant.api.customers.EraseCustomer(request) for _ in range(3)]

    assert answers[0] == answers[1] == answers[2]
    for call in (
        lambda: tenant.api.risk.CheckTransaction(buying()),
        lambda: open_line(tenant.api, line_id="another"),
        lambda: tenant.api.otp.ListFactors(otp_pb.ListFactorsRequest(customer_id="ada")),
        lambda: tenant.api.customers.EraseCustomer(erasing()),
    ):
        assert refused(call).name == "FAILED_PRECONDITION CUSTOMER_ERASED"
    line = tenant.api.lines.GetCreditLine(line_pb.GetCreditLineRequest(customer_id="ada")).credit_line
    assert line.state == line_pb.LINE_STATE_CLOSED


def test_nothing_of_an_erased_customer_is_in_any_file_and_the_ledger_verifies(
    loop: Loop,
    tmp_path: Path,
) -> None:
    deployment = Deployment(tmp_path / "data")
    backup = tmp_path / "backup"
    with serving(loop, deployment) as running:
        tenant = running.tenant()
        live(tenant)
        tenant.api.lines.CloseCreditLine(closing())
        key = (tenant.name, "ada")
        with serving_keys(running) as keys:
            data_key = keys(key)
        assert isinstance(data_key, bytes)
        shutil.copytree(deployment.directory.root, backup)
        tenant.api.customers.EraseCustomer(erasing())

    files = {path: path.read_bytes() for path in deployment.directory.root.rglob("*") if path.is_file()}
    # In development phones are a file, and what a phone shows is not the engine's to forget.
    files.pop(deployment.directory.outbox)
    for canary in [*CANARIES, data_key]:
        found = [path.name for path, content in files.items() if canary in content or canary.hex().encode() in content]
        assert found == []
    report = verify_directory(deployment.directory, lambda *_: None)
    assert (report.faults, report.erased) == ([], 1)

    # The vault is restored from a backup that still has the key: the server destroys it again as it starts.
    bring_back(deployment.directory.vault, backup)
    with serving(loop, deployment) as running, serving_keys(running) as keys:
        assert keys(key) is NoKey.FORGOTTEN
    deployment.close()


def bring_back(vault: Path, backup: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{vault}{suffix}").unlink(missing_ok=True)
        if (copy := Path(f"{backup / vault.name}{suffix}")).exists():
            shutil.copy(copy, f"{vault}{suffix}")


def told_of(erased: Path) -> list[tuple[str, str]]:
    """Whom the file of the erased names."""
    lines = [json.loads(line) for line in erased.read_bytes().splitlines() if line]
    return [(line["tenant_id"], line["customer_id"]) for line in lines]


def test_an_erasure_that_a_crash_left_in_the_journal_alone_is_finished_at_the_next_start(
    loop: Loop, tmp_path: Path
) -> None:
    """Between the commit and the file nothing else knows of it, and nobody may ever repeat the request."""
    deployment = Deployment(tmp_path / "data")
    directory, backup = deployment.directory, tmp_path / "backup"
    with serving(loop, deployment) as running:
        tenant = running.tenant()
        live(tenant)
        tenant.api.lines.CloseCreditLine(closing())
        shutil.copytree(directory.root, backup)
        tenant.api.customers.EraseCustomer(erasing())
    bring_back(directory.vault, backup)
    shutil.copy(backup / directory.erased.name, directory.erased)
    assert told_of(directory.erased) == []
    key = (tenant.name, "ada")

    for _ in range(2):
        with serving(loop, deployment) as running, serving_keys(running) as keys:
            assert keys(key) is NoKey.FORGOTTEN
        assert told_of(directory.erased) == [key]
    deployment.close()


@pytest.fixture
def dsn(tmp_path: Path) -> Iterator[str]:
    yield postgres.database(tmp_path)
    postgres.give_back(tmp_path)


def test_an_erasure_that_a_crash_left_in_a_database_is_finished_at_the_next_start(
    loop: Loop, tmp_path: Path, dsn: str
) -> None:
    deployment = Deployment(tmp_path / "data")
    erased = deployment.directory.erased
    with psycopg.connect(dsn, autocommit=True) as database:
        with serving(loop, deployment, store=dsn) as running:
            tenant = running.tenant()
            live(tenant)
            tenant.api.lines.CloseCreditLine(closing())
            ((wrapped,),) = database.execute("SELECT wrapped FROM vault.keys").fetchall()
            tenant.api.customers.EraseCustomer(erasing())
        database.execute("UPDATE vault.keys SET wrapped = %s", (wrapped,))
        database.execute("UPDATE riskgate.customers SET forgotten = false")
        erased.write_bytes(b"")
        key = (tenant.name, "ada")

        for _ in range(2):
            with serving(loop, deployment, store=dsn):
                ((now,),) = database.execute("SELECT wrapped FROM vault.keys").fetchall()
                assert now == bytes(len(wrapped))
                assert database.execute("SELECT forgotten FROM riskgate.customers").fetchall() == [(True,)]
            assert told_of(erased) == [key]
    deployment.close()
