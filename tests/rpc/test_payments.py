"""Repayments, and taking them back."""

from __future__ import annotations

from riskgate.credit.v1 import ledger_service_pb2 as pb
from tests.rpc.calling import Api, refused
from tests.rpc.requests import capturing, entries_of, hold, line_of, open_line, paying, returning


def owing(api: Api, *amounts: int) -> list[str]:
    """Buy and capture, one after the other; return the purchases."""
    bought = [hold(api, amount) for amount in amounts]
    for hold_id in bought:
        api.ledger.CaptureHold(capturing(hold_id))
    return bought


def shares(payment: pb.Payment) -> list[tuple[str, int]]:
    return [(share.transaction_id, share.amount.amount_minor) for share in payment.allocations]


def test_a_payment_repays_the_oldest_purchase_first_and_the_rest_is_owed_to_the_customer(ada: Api) -> None:
    first, second = owing(ada, 600, 500)

    part = ada.ledger.RecordPayment(paying(700))
    rest = ada.ledger.RecordPayment(paying(900))

    assert shares(part.payment) == [(first, 600), (second, 100)]
    assert part.available.amount_minor == 99_600
    assert shares(rest.payment) == [(second, 400)]
    assert rest.payment.to_customer_credit.amount_minor == 500
    line = line_of(ada)
    assert (line.outstanding.amount_minor, line.customer_credit.amount_minor) == (0, 500)


def test_the_purchase_captured_first_is_the_oldest(ada: Api) -> None:
    placed_first, placed_last = hold(ada, 100), hold(ada, 100)
    ada.ledger.CaptureHold(capturing(placed_last))
    ada.ledger.CaptureHold(capturing(placed_first))

    payment = ada.ledger.RecordPayment(paying(150)).payment

    assert shares(payment) == [(placed_last, 100), (placed_first, 50)]


def test_a_reversal_restores_what_was_owed_even_over_the_limit(ada: Api) -> None:
    (bought,) = owing(ada, 80_000)
    payment_id = ada.ledger.RecordPayment(paying(80_000)).payment.payment_id
    owing(ada, 70_000)

    reversal = ada.ledger.ReversePayment(returning(payment_id))

    assert reversal.payment.state == pb.PAYMENT_STATE_REVERSED
    assert shares(reversal.payment) == [(bought, 80_000)]
    assert reversal.available.amount_minor == -50_000
    assert line_of(ada).outstanding.amount_minor == 150_000


def test_a_payment_is_reversed_once(ada: Api) -> None:
    payment_id = ada.ledger.RecordPayment(paying(100)).payment.payment_id
    ada.ledger.ReversePayment(returning(payment_id))

    again = refused(lambda: ada.ledger.ReversePayment(returning(payment_id)))
    unknown = refused(lambda: ada.ledger.ReversePayment(returning("nobody-paid")))

    assert again.name == "FAILED_PRECONDITION PAYMENT_ALREADY_REVERSED"
    assert unknown.name == "NOT_FOUND PAYMENT_NOT_FOUND"
    assert line_of(ada).customer_credit.amount_minor == 0


def test_a_payment_id_is_booked_once(ada: Api) -> None:
    ada.ledger.RecordPayment(paying(100, payment_id="p-1"))

    again = refused(lambda: ada.ledger.RecordPayment(paying(100, payment_id="p-1")))

    assert again.name == "ALREADY_EXISTS PAYMENT_EXISTS"
    assert line_of(ada).customer_credit.amount_minor == 100


def test_every_movement_is_a_journal_entry_whose_debits_are_its_credits(ada: Api) -> None:
    (bought,) = owing(ada, 1_000)
    payment_id = ada.ledger.RecordPayment(paying(1_500)).payment.payment_id
    ada.ledger.ReversePayment(returning(payment_id))

    entries = entries_of(ada)

    assert [entry.kind for entry in entries] == [
        "LINE_OPENED", "PURCHASE_DECIDED", "HOLD_CAPTURED", "PAYMENT_RECORDED", "PAYMENT_REVERSED",
    ]  # fmt: skip
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.reference_id for entry in entries] == ["", bought, bought, payment_id, payment_id]
    assert all(transfer.amount.amount_minor > 0 for entry in entries for transfer in entry.transfers)
    assert all(transfer.debit_account != transfer.credit_account for e in entries for transfer in e.transfers)
    assert {len(entry.entry_hash) for entry in entries} == {32}
    booked, undone = entries[3].transfers, entries[4].transfers
    assert {(t.debit_account, t.credit_account, t.amount.amount_minor) for t in booked} == {
        (t.credit_account, t.debit_account, t.amount.amount_minor) for t in undone
    }


def test_entries_come_in_stable_pages(ada: Api) -> None:
    owing(ada, 1, 2, 3)
    everything = entries_of(ada)
    found: list[pb.JournalEntry] = []
    token = ""

    while len(found) < len(everything):
        page = ada.ledger.ListEntries(pb.ListEntriesRequest(customer_id="ada", page_size=2, page_token=token))
        found += page.entries
        token = page.next_page_token

    assert found == everything
    assert not token


def test_entries_are_in_the_currency_of_their_line_and_name_it(api: Api) -> None:
    open_line(api, line_id="yuan")
    open_line(api, line_id="yen", currency="JPY")
    hold_id = hold(api, line_id="yen", currency="JPY")
    api.ledger.CaptureHold(capturing(hold_id))

    told = [
        (entry.kind, entry.line_id, {transfer.amount.currency_code for transfer in entry.transfers})
        for entry in entries_of(api)
    ]

    assert told == [
        ("LINE_OPENED", "yuan", {"CNY"}),
        ("LINE_OPENED", "yen", {"JPY"}),
        ("PURCHASE_DECIDED", "yen", {"JPY"}),
        ("HOLD_CAPTURED", "yen", {"JPY"}),
    ]


def test_a_payment_counts_from_the_day_its_channel_says(ada: Api) -> None:
    payment = ada.ledger.RecordPayment(paying(100, value_time={"seconds": 1_700_000_000})).payment

    assert payment.value_time.seconds == 1_700_000_000
    assert payment.record_time.seconds > 1_700_000_000
