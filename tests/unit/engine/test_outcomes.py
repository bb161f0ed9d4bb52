"""What a message came to is asked again and again while it is sent: it reads little, however long the journal is."""

from __future__ import annotations

import pytest

from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.engine import commands as c
from riskgate_server.engine import sealing
from riskgate_server.engine.messages import decode_payload, message_id_of
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


def test_a_message_that_nothing_is_known_of_came_to_nothing(bank: DeviceBank) -> None:
    assert bank.queries.message_outcome(KEY, message_id_of(10_000, 0)) == ""


def test_a_message_does_not_take_the_place_of_one_that_still_waits(bank: DeviceBank) -> None:
    """Whoever bound a phone of theirs could have the notice of it disappear by having a code sent at once."""
    other = bank.phone("+8613900000000", bank.binding_grant())
    bank.clock.wait(3 * f.HOUR_US)
    before = {row_id for row_id, kind in waiting(bank) if kind == "NoticeMessage"}

    reply = bank.ask(c.SendCode, factor_id=other, purpose=Purpose.SIGN_IN, transaction_id="", language="")
    assert isinstance(reply, CodeReply), reply
    assert len(before) == 1
    assert {row_id for row_id, kind in waiting(bank) if kind == "NoticeMessage"} == before
    assert bank.verify() == []


def waiting(bank: DeviceBank) -> list[tuple[str, str]]:
    """The messages that wait: what each is named, and of which kind it is."""
    (data_key,) = bank.vault.keys([KEY]).values()
    assert isinstance(data_key, bytes)
    with bank.store.snapshot() as snapshot:
        rows = snapshot.messages(KEY)
    opened = [(row.message_id, decode_payload(sealing.unseal_message(row, data_key, Sealer()))) for row in rows]
    return [(message_id, type(payload).__name__) for message_id, payload in opened]
