"""What a message came to is asked again and again while it is sent: it reads little, however long the journal is."""

from __future__ import annotations

import pytest

from riskgate_server.engine import commands as c
from riskgate_server.engine.messages import entries_before, message_id_of
from riskgate_server.engine.replies import CodeReply
from riskgate_server.stores.memory.store import MemorySnapshot
from tests import factories as f
from tests.bank import KEY
from tests.devices import DeviceBank


@pytest.fixture
def bank() -> DeviceBank:
    bank = DeviceBank()
    bank.phone()
    return bank


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries each question to the store was answered with."""
    counts: list[int] = []
    for name in ("entries", "customer_entries_before"):
        real = getattr(MemorySnapshot, name)

        def counted(*args: object, real: object = real, **fields: object) -> object:
            rows = real(*args, **fields)  # type: ignore[operator]  # either of two methods
            counts.append(len(rows))
            return rows

        monkeypatch.setattr(MemorySnapshot, name, counted)
    return counts


def sent(bank: DeviceBank) -> str:
    bank.clock.wait(3 * f.HOUR_US)
    reply = bank.send()
    assert isinstance(reply, CodeReply), reply
    return reply.code.message_id


def settled(bank: DeviceBank, message_id: str, outcome: str = "DELIVERED") -> None:
    bank.do(
        c.SettleMessage(tenant_id=f.TENANT, customer_id=f.CUSTOMER, request_id="", message_id=message_id,
                        outcome=outcome)
    )  # fmt: skip


def test_a_message_that_waits_is_found_by_its_key_alone(bank: DeviceBank, read: list[int]) -> None:
    message_id = sent(bank)
    read.clear()

    assert bank.queries.message_outcome(KEY, message_id) == ""
    assert read == []


def test_what_came_of_an_early_message_is_found_where_it_happened(bank: DeviceBank, read: list[int]) -> None:
    early = sent(bank)
    settled(bank, early, "REFUSED")
    for _ in range(50):
        late = sent(bank)
        settled(bank, late)
    read.clear()

    assert bank.queries.message_outcome(KEY, early) == "REFUSED"
    assert bank.queries.message_outcome(KEY, late) == "DELIVERED"
    assert sum(read) < 40


def test_what_came_of_a_message_long_after_it_was_written_is_found_too(bank: DeviceBank) -> None:
    message_id = sent(bank)
    for number in range(50):
        bank.do(f.check(f"t-{number}", 1))
    settled(bank, message_id, "EXPIRED")

    assert bank.queries.message_outcome(KEY, message_id) == "EXPIRED"


def test_what_came_of_messages_written_with_the_last_entry_of_a_command_is_found(bank: DeviceBank) -> None:
    """Their ids name an entry that was never theirs: the next may be the one that says what they came to."""
    bank.do(
        c.RevokeFactor(tenant_id=f.TENANT, customer_id=f.CUSTOMER, request_id="revoke", factor_id="f-2",
                       reason_code="LOST", actor_id="olga")
    )  # fmt: skip
    with bank.store.snapshot() as snapshot:
        waiting = sorted((row.message_id for row in snapshot.messages(KEY)), key=entries_before, reverse=True)
    assert entries_before(waiting[0]) == end_of_chain(bank)
    for message_id in waiting:
        settled(bank, message_id)

    assert {bank.queries.message_outcome(KEY, message_id) for message_id in waiting} == {"DELIVERED"}
    assert bank.queries.message_outcome(KEY, message_id_of(10_000, 0)) == ""


def end_of_chain(bank: DeviceBank) -> int:
    with bank.store.snapshot() as snapshot:
        row = snapshot.customer(KEY)
    assert row is not None
    return row.sequence


def test_an_id_names_an_entry_before_it() -> None:
    assert entries_before(message_id_of(7, 2)) == 6
