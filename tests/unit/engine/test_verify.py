from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskgate_server.crypto.seal import Sealer
from riskgate_server.engine import sealing
from riskgate_server.engine.failures import ReadFailed
from riskgate_server.engine.replies import DecisionReply, PaymentReply
from riskgate_server.engine.report import Report
from riskgate_server.engine.storing import NoKey
from riskgate_server.engine.verify import verify
from riskgate_server.stores.memory import MemoryStore, MemoryVault
from riskgate_server.stores.memory.store import MemorySnapshot
from tests.factories import (
    CUSTOMER,
    DAY_US,
    NOW_US,
    TENANT,
    FixedClock,
    annotate,
    capture,
    check,
    make_customer,
    make_pipeline,
    open_line,
    pay,
    place_block,
)

KEY = (TENANT, CUSTOMER)


class Books:
    """A store with a short history in it, and the vault that opens it."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.vault = MemoryVault()
        pipeline = make_pipeline(self.store, vault=self.vault, clock=FixedClock())
        make_customer(pipeline)
        pipeline.run([open_line(customer_id="bo"), check("t1", 500), check("t2", 70, "review")])
        pipeline.run([capture("c1", "t1", 300), capture("c2", "t9", 1)])
        pipeline.run([pay("p1", 100), place_block("b1"), annotate("a1", 2, note="seen")])
        pipeline.run([check("t1", 500, customer_id="bo")])

    @property
    def tables(self) -> Any:
        return self.store._tables

    def verify(self) -> Report:
        return verify(self.store, self.vault, Sealer())

    def put(self, position: int, row: Any) -> None:
        """Store an entry in place of another, as somebody with the file could."""
        self.tables.journal[position - 1] = row
        self.tables.chains[row.key][row.sequence - 1] = row


@pytest.fixture
def books() -> Books:
    return Books()


def test_books_that_nobody_touched_are_clean_and_summed_up(books: Books) -> None:
    report = books.verify()

    assert report.faults == []
    assert (report.customers, report.batches, report.entries) == (2, 5, 10)
    assert report.outstanding_minor == {"CNY": 200}
    assert report.held_minor == {"CNY": 200 + 70 + 500}


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    position=st.integers(1, 10),
    name=st.sampled_from(("clear", "nonce", "sealed", "hash")),
    byte=st.integers(0, 10_000),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_of_an_entry_is_found_at_that_entry(position: int, name: str, byte: int, bit: int) -> None:
    books = Books()
    entry = books.tables.journal[position - 1]
    content = bytearray(getattr(entry, name))
    if not content:
        return
    content[byte % len(content)] ^= 1 << bit
    books.put(position, msgspec.structs.replace(entry, **{name: bytes(content)}))

    faults = books.verify().faults

    assert any(f"{'/'.join(entry.key)}: entry {entry.sequence} " in fault for fault in faults), faults


@pytest.mark.parametrize("change", [{"at_us": 7}, {"tag": 4}, {"request_id": "other"}, {"batch": 9}])
def test_a_changed_header_is_found(books: Books, change: dict[str, Any]) -> None:
    entry = books.tables.journal[4]
    books.put(5, msgspec.structs.replace(entry, **change))

    assert books.verify().faults


@pytest.mark.parametrize("name", ["at_us", "first_position", "root", "hash"])
def test_a_changed_batch_row_is_found(books: Books, name: str) -> None:
    batch = books.tables.batches[2]
    value = getattr(batch, name)
    changed = bytes(reversed(value)) if isinstance(value, bytes) else value + 1
    books.tables.batches[2] = msgspec.structs.replace(batch, **{name: changed})

    assert any(fault.startswith(("batch 3:", "batch 4:")) for fault in books.verify().faults)


def test_a_missing_customer_is_found(books: Books) -> None:
    del books.tables.customers[KEY]

    assert any("belong to a customer" in fault for fault in books.verify().faults)


def test_a_cut_tail_of_one_customer_is_found(books: Books) -> None:
    del books.tables.chains[KEY][-1]

    assert books.verify().faults


def test_a_missing_batch_is_found(books: Books) -> None:
    del books.tables.batches[2]

    assert books.verify().faults


@pytest.mark.parametrize("field", ["state", "profile", "sequence"])
def test_a_customers_row_that_the_journal_does_not_give_is_found(books: Books, field: str) -> None:
    row = books.tables.customers[KEY]
    other = books.tables.customers[TENANT, "bo"]
    books.tables.customers[KEY] = msgspec.structs.replace(row, **{field: getattr(other, field)})

    assert any(fault.startswith("acme/ada:") for fault in books.verify().faults)


def test_a_hold_that_would_lapse_unnoticed_is_found(books: Books) -> None:
    row = books.tables.customers[KEY]
    books.tables.customers[KEY] = msgspec.structs.replace(row, next_lapse_us=0)

    assert any("lapse" in fault for fault in books.verify().faults)


@pytest.mark.parametrize("kind", ["purchases", "payments"])
def test_a_changed_row_of_a_purchase_or_payment_is_found(books: Books, kind: str) -> None:
    rows = getattr(books.tables, kind)[KEY]
    name, row = next(iter(rows.items()))
    rows[name] = msgspec.structs.replace(row, state=row.state[:-1] + b"\x05")

    assert any(kind[:-1] in fault for fault in books.verify().faults)


@pytest.mark.parametrize("kind", ["purchases", "payments"])
def test_a_missing_row_of_a_purchase_or_payment_is_found(books: Books, kind: str) -> None:
    getattr(books.tables, kind)[KEY].popitem()

    assert any(kind in fault for fault in books.verify().faults)


def test_a_missing_request_is_found(books: Books) -> None:
    """Its id could have its effect a second time."""
    del books.tables.requests[KEY, "c1"]

    assert books.verify().faults == ["acme/ada: 7 requests are stored, the journal has 8"]


def test_a_planted_request_is_found(books: Books) -> None:
    """Its id would be answered without having had an effect."""
    row = books.tables.requests[KEY, "c1"]
    books.tables.requests[KEY, "c3"] = msgspec.structs.replace(row, request_id="c3")

    assert "acme/ada: request c3 is stored, and the journal has nothing of it" in books.verify().faults


@pytest.mark.parametrize("change", [{"fingerprint": b"other"}, {"sequence": 1}, {"at_us": 7}, {"reply": b"other"}])
@pytest.mark.parametrize("request_id", ["check t2", "c1", "c2", "a1"])
def test_a_changed_request_is_found(books: Books, request_id: str, change: dict[str, Any]) -> None:
    row = books.tables.requests[KEY, request_id]
    books.tables.requests[KEY, request_id] = msgspec.structs.replace(row, **change)

    (fault,) = books.verify().faults

    assert fault.startswith(f"acme/ada: request {request_id} ")


def test_a_request_whose_reply_was_forgotten_is_clean(books: Books) -> None:
    assert books.store.forget_replies(NOW_US + 1, 1_000) > 0

    assert books.verify().faults == []


def test_a_request_that_ended_holds_first_is_clean() -> None:
    """Its first entries are the clock's, and its own come after them."""
    books, clock = Books(), FixedClock()
    clock.wait(30 * DAY_US)
    pipeline = make_pipeline(books.store, vault=books.vault, clock=clock)
    replies = pipeline.run([check("t3", 500), pay("p2", 50)])

    assert [type(reply) for reply in replies] == [DecisionReply, PaymentReply]
    assert books.verify().faults == []


def test_entries_written_before_requests_were_vouched_for_are_still_compared_with_them(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = sealing.seal_entry
    monkeypatch.setattr(sealing, "seal_entry", lambda *a, **k: seal(*a, **(k | {"vouched": ()})))
    make_pipeline(books.store, vault=books.vault).run([capture("c3", "t1", 10)])

    clean = books.verify().faults
    del books.tables.requests[KEY, "c3"]

    assert clean == []
    assert books.verify().faults == ["acme/ada: 8 requests are stored, the journal has 9"]


@pytest.mark.parametrize("kind", ["purchases", "payments"])
def test_rows_of_a_customer_who_is_not_there_are_found(books: Books, kind: str) -> None:
    rows = getattr(books.tables, kind)
    rows[TENANT, "ghost"] = dict(rows[KEY])

    (fault,) = books.verify().faults

    assert kind in fault


def test_a_request_of_a_customer_who_is_not_there_is_found(books: Books) -> None:
    books.tables.requests[(TENANT, "ghost"), "c1"] = books.tables.requests[KEY, "c1"]

    assert books.verify().faults == ["11 requests are stored, 10 belong to a customer"]


def test_a_ruleset_that_decided_here_and_is_gone_or_changed_is_found(books: Books) -> None:
    (ruleset_hash,) = books.tables.rulesets
    books.tables.rulesets[ruleset_hash] += " "
    changed = books.verify().faults
    books.tables.rulesets.clear()
    missing = books.verify().faults

    assert changed == [f"ruleset {ruleset_hash.hex()} is not the text that decided here"]
    assert missing == [f"ruleset {ruleset_hash.hex()} decided here and is gone"]


@pytest.mark.parametrize("lost", [NoKey.ABSENT, NoKey.DAMAGED])
def test_a_key_that_was_lost_is_told_from_one_that_was_forgotten(books: Books, lost: NoKey) -> None:
    books.vault._keys[KEY] = lost

    report = books.verify()

    assert report.erased == 0
    assert [fault.startswith("acme/ada: the key ") for fault in report.faults] == [True]


def test_a_store_that_cannot_be_read_to_its_end_is_a_finding(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise ReadFailed("the disk")

    monkeypatch.setattr(MemorySnapshot, "requests", fail)

    assert books.verify().faults == ["the store cannot be read any further: the disk"]


def test_an_erased_customer_still_verifies_but_for_the_profile(books: Books) -> None:
    books.vault.forget(KEY)

    report = books.verify()

    assert report.erased == 1
    assert report.faults == []
