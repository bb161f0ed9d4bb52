"""Facts across customers over a database that several servers share: nobody waits for who waits for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from riskgate_client.phone import AndroidPhone
from riskgate_server.engine import commands as c
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.replies import DeviceReply, Failed, Refusal, Reply
from riskgate_server.stores.postgres.store import PostgresStore
from tests import factories as f
from tests import postgres
from tests.devices import DeviceBank

ROUNDS = 20


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[PostgresStore]]:
    dsn = postgres.database(tmp_path)
    stores = [PostgresStore(dsn, writer) for writer in range(2)]
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def bank(stores: list[PostgresStore]) -> DeviceBank:
    """On the first of the two servers."""
    return DeviceBank(stores[0])


@pytest.fixture
def servers(bank: DeviceBank, stores: list[PostgresStore]) -> list[Pipeline]:
    other = f.make_pipeline(
        stores[1], vault=bank.vault, clock=bank.clock, secrets=bank.secrets, entropy=f.SeededEntropy(1)
    )
    return [bank.pipeline, other]


def told(reply: Reply) -> str:
    return reply.reason if isinstance(reply, Refusal | Failed) else type(reply).__name__


def enrolment(customer_id: str, number: str, request_id: str) -> c.EnrollPhone:
    mark = number.encode()
    return c.EnrollPhone(
        tenant_id=f.TENANT, customer_id=customer_id, request_id=request_id, number=number, grant=b"", masked="",
        mark=mark, prefix=mark[:-3], region="CN",
    )  # fmt: skip


def test_two_servers_that_send_to_the_same_numbers_in_any_order_are_never_in_each_others_way(
    servers: list[Pipeline],
) -> None:
    numbers = ["+8613800000001", "+8613900000002"]
    for n in range(2 * ROUNDS):
        servers[0].run([f.open_line(f"open {n}", customer_id=f"c{n}")])

    def live(place: int) -> list[Reply]:
        order = numbers if place else numbers[::-1]
        return [
            reply
            for n in range(ROUNDS)
            for reply in servers[place].run([
                enrolment(f"c{2 * n + place}", number, f"{number} {n}") for number in order
            ])
        ]  # fmt: skip

    with capture_logs() as logs, ThreadPoolExecutor(2) as threads:
        replies = [reply for done in threads.map(live, range(2)) for reply in done]
    assert [line["why"] for line in logs if line["event"] in {"write conflict", "store busy"}] == []
    # Five messages to each number, whichever server counted them.
    assert Counter(map(told, replies)) == {"FactorReply": 10, "SEND_BUDGET_SPENT": 4 * ROUNDS - 10}


def test_one_key_for_two_customers_at_two_servers_at_once_is_one_customers(
    bank: DeviceBank, servers: list[Pipeline]
) -> None:
    for n in range(5):
        phone, finishing = AndroidPhone(), []
        for customer_id in (f"a{n}", f"b{n}"):
            bank.do(f.open_line(f"open {n}", customer_id=customer_id))
            begun = bank.begin(phone, customer_id=customer_id)
            name = begun.enrolment.challenge_id
            judged = bank.judge.registration(begun.key, name, bank.registration(phone, begun))
            finishing.append(
                c.FinishEnrolment(
                    tenant_id=f.TENANT,
                    customer_id=customer_id,
                    request_id=f"finish {n}",
                    enrolment_id=name,
                    found=judged.found,
                    judged=judged.judged,
                    marks=judged.marks,
                )
            )
        with ThreadPoolExecutor(2) as threads:
            done = list(threads.map(lambda server, command: server.run([command])[0], servers, finishing))

        assert sorted(map(told, done)) == ["CREDENTIAL_EXISTS", DeviceReply.__name__]


def test_one_proof_that_goes_to_two_servers_at_once_passes_once(bank: DeviceBank, servers: list[Pipeline]) -> None:
    phone = AndroidPhone()
    bank.enrol(phone)
    for n in range(5):
        asked = bank.asked()
        fields = bank.judged(asked.challenge.challenge_id, bank.answer(phone, asked))
        attempts = [
            c.VerifyChallenge(tenant_id=f.TENANT, customer_id=f.CUSTOMER, request_id=f"verify {n} {place}", **fields)
            for place in range(2)
        ]
        with ThreadPoolExecutor(2) as threads:
            done = list(threads.map(lambda server, command: server.run([command])[0], servers, attempts))

        assert sorted(map(told, done)) == ["CHALLENGE_USED", "GrantReply"]
