"""
One customer's journal, folded anew through the same `evolve` that the live engine uses, beside what is stored.

What is kept here lives as long as one customer is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from riskgate_server.domain.customer import new_customer
from riskgate_server.domain.events import CustomerErased, Event, Happening, PurchaseDecided
from riskgate_server.domain.identity.events import CodeSent, DeviceEnrolled, MessageSettled
from riskgate_server.domain.identity.identity import EMPTY_IDENTITY
from riskgate_server.domain.journal import Aggregate, evolve
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.holds import HoldState
from riskgate_server.domain.ledger.postings import Account, Layer
from riskgate_server.engine import across, sealing
from riskgate_server.engine.messages import decode_payload, message_id_of
from riskgate_server.engine.ports import Sealer
from riskgate_server.engine.recount import Recount
from riskgate_server.engine.report import Report
from riskgate_server.engine.rows import CustomerRow, EntryRow, PurchaseRow, RequestRow
from riskgate_server.engine.storing import NoKey, Snapshot

CHUNK: Final = 2_000

_NO_KEY: Final = {
    NoKey.ABSENT: "the key is not in the vault, and was not erased",
    NoKey.DAMAGED: "the key in the vault does not open",
}


class Request(msgspec.Struct, gc=False):
    """What the journal says of one request id."""

    sequence: int
    at_us: int
    fingerprint: bytes
    reply_digest: bytes
    decided: bool


class Folded(msgspec.Struct):
    """How many rows of each kind were compared, and by which rulesets was decided."""

    counts: Counter[str] = msgspec.field(default_factory=Counter)
    rulesets: set[bytes] = msgspec.field(default_factory=set)


class _Fold:
    """A customer in the making."""

    def __init__(
        self, row: CustomerRow, data_key: bytes | NoKey, sealer: Sealer, *, report: Report, recount: Recount
    ) -> None:
        self.recount = recount
        self.row = row
        self.who = "/".join(row.key)
        self.data_key = data_key
        self.sealer = sealer
        self.report = report
        self.aggregate = Aggregate(new_customer(*row.key))
        self.aggregate.identity = EMPTY_IDENTITY
        self.requests: dict[str, Request] = {}
        self.rulesets: set[bytes] = set()
        self.claimed: set[bytes] = set()
        """Marks of all device keys that were ever the customer's."""
        self.waiting: set[str] = set()
        """Messages that nothing came of yet."""
        self.settled: set[str] = set()
        """Messages that came to something."""

    def fault(self, text: str) -> None:
        self.report.fault(f"{self.who}: {text}")

    def take(self, entry: EntryRow) -> bool:
        """Apply the next entry; False when nothing after it can be."""
        before = self.aggregate.customer
        if entry.sequence != before.sequence + 1:
            self.fault(f"entry {entry.sequence} follows entry {before.sequence}")
            return False
        if entry.hash != sealing.entry_hash(entry, before.head):
            self.fault(f"entry {entry.sequence} is not what was hashed")
        if entry.at_us < before.last_us:
            self.fault(f"time goes back at entry {entry.sequence}")
        try:
            clear = sealing.open_clear(entry)
            if entry.tag != sealing.EVENT_TAGS[type(clear.event)]:
                self.fault(f"entry {entry.sequence} is filed under another kind")
            sealed = sealing.open_secrets(entry, self.data_key, self.sealer)
            evolve(
                self.aggregate,
                Happening(clear.event, clear.transfers, sealed),
                sequence=entry.sequence,
                at_us=entry.at_us,
                head=entry.hash,
            )
        except Exception as error:  # noqa: BLE001 - whatever a damaged entry breaks is a finding, not a crash
            self.fault(f"entry {entry.sequence} cannot be applied: {type(error).__name__}")
            return False
        if isinstance(clear.event, PurchaseDecided):
            self.rulesets.add(clear.event.ruleset_hash)
        self._note_beside(clear.event, entry)
        if entry.request_id:
            self._note_request(entry, clear)
        return True

    def _note_beside(self, event: Event, entry: EntryRow) -> None:
        assert self.aggregate.identity is not None
        self.recount.take(entry.key[0], event, entry.at_us, self.aggregate.identity)
        self.waiting.update(message_id_of(entry.sequence, number) for number in range(getattr(event, "told", 0)))
        match event:
            case DeviceEnrolled():
                self.claimed.update(event.marks)
            case CodeSent():
                self.waiting.add(event.message_id)
            case MessageSettled():
                self.waiting.discard(event.message_id)
                self.settled.add(event.message_id)
            case CustomerErased():
                self.waiting.clear()

    def _note_request(self, entry: EntryRow, clear: sealing.ClearPart) -> None:
        decided = isinstance(clear.event, PurchaseDecided)
        request = self.requests.get(entry.request_id)
        if request is None:
            self.requests[entry.request_id] = Request(
                entry.sequence, entry.at_us, clear.fingerprint, clear.reply_digest, decided
            )
        elif not request.decided:
            # A request points at its decision, any other at the last of its entries.
            request.sequence, request.decided = entry.sequence, decided


def refold(
    snapshot: Snapshot, row: CustomerRow, data_key: bytes | NoKey, sealer: Sealer, *, report: Report, recount: Recount
) -> Folded:
    """
    Fold one customer's journal and compare everything that is stored of them; faults go to the report.

    What the journal says of facts across customers goes to `recount`.
    """
    fold = _Fold(row, data_key, sealer, report=report, recount=recount)
    if isinstance(data_key, NoKey) and data_key in _NO_KEY:
        fold.fault(_NO_KEY[data_key])
    taken = 0
    whole = True
    for entry in _entries(snapshot, row):
        taken += 1
        whole = fold.take(entry)
        if not whole:
            break
    folded = Folded(Counter(entries=taken), fold.rulesets)
    if not whole:
        recount.give_up(row.key[0])
        # What follows is not compared, yet it belongs to this customer.
        folded.counts["entries"] = row.sequence
        folded.counts.update(_stored(snapshot, row))
        return folded
    _compare_state(fold)
    folded.counts["identities"] = _compare_identity(snapshot, fold)
    folded.counts["messages"] = _compare_messages(snapshot, fold)
    _compare_claims(snapshot, fold)
    recount.claimed[row.key[0]] += len(fold.claimed)
    folded.counts["purchases"] = _compare_purchases(snapshot, fold)
    folded.counts["payments"] = _compare_payments(snapshot, fold)
    folded.counts["requests"] = _compare_requests(snapshot, fold)
    _check_books(fold.aggregate, fold.who, report)
    return folded


def _entries(snapshot: Snapshot, row: CustomerRow) -> Iterator[EntryRow]:
    after = 0
    while rows := snapshot.entries(row.key, after=after, limit=CHUNK):
        yield from rows
        after = rows[-1].sequence


def _requests(snapshot: Snapshot, row: CustomerRow) -> Iterator[RequestRow]:
    after = ""
    while rows := snapshot.requests(row.key, after=after, limit=CHUNK):
        yield from rows
        after = rows[-1].request_id


def _purchases(snapshot: Snapshot, row: CustomerRow) -> Iterator[PurchaseRow]:
    after = ""
    while rows := snapshot.purchases(row.key, after=after, limit=CHUNK, only_open=False):
        yield from rows
        after = rows[-1].transaction_id


def _stored(snapshot: Snapshot, row: CustomerRow) -> dict[str, int]:
    return {
        "purchases": sum(1 for _ in _purchases(snapshot, row)),
        "payments": len(snapshot.payments(row.key)),
        "identities": int(snapshot.identity(row.key) is not None),
        "messages": len(snapshot.messages(row.key)),
        "requests": sum(1 for _ in _requests(snapshot, row)),
    }


def _compare_state(fold: _Fold) -> None:
    row, customer = fold.row, fold.aggregate.customer
    if row.sequence != customer.sequence or row.state != sealing.encode_state(customer):
        fold.fault("the stored state is not what the journal gives")
    if isinstance(fold.data_key, NoKey):
        fold.report.erased += fold.data_key is NoKey.FORGOTTEN
        return
    try:
        if sealing.unseal_profile(row, fold.data_key, fold.sealer) != sealing.encode(customer.profile):
            fold.fault("the stored profile is not what the journal gives")
    except Exception as error:  # noqa: BLE001 - see above
        fold.fault(f"the stored profile does not open: {type(error).__name__}")


def _compare_identity(snapshot: Snapshot, fold: _Fold) -> int:
    stored = snapshot.identity(fold.row.key)
    if isinstance(fold.data_key, NoKey):
        return int(stored is not None)
    if stored is None:
        if fold.aggregate.identity != EMPTY_IDENTITY:
            fold.fault("what the customer proves themselves with is not stored")
        return 0
    try:
        if sealing.unseal_identity(stored, fold.data_key, fold.sealer) != fold.aggregate.identity:
            fold.fault("what the customer proves themselves with is not what the journal gives")
    except Exception as error:  # noqa: BLE001 - see above
        fold.fault(f"what the customer proves themselves with does not open: {type(error).__name__}")
    return 1


def _compare_messages(snapshot: Snapshot, fold: _Fold) -> int:
    stored = snapshot.messages(fold.row.key)
    for message_id in sorted(fold.waiting - {row.message_id for row in stored}):
        fold.fault(f"message {message_id} waits to be sent and is not stored")
    for message_id in sorted(fold.settled & {row.message_id for row in stored}):
        fold.fault(f"message {message_id} came to its end and would be sent again")
    if not isinstance(fold.data_key, NoKey):
        for row in stored:
            try:
                decode_payload(sealing.unseal_message(row, fold.data_key, fold.sealer))
            except Exception as error:  # noqa: BLE001 - see above
                fold.fault(f"message {row.message_id} does not open: {type(error).__name__}")
    return len(stored)


def _compare_claims(snapshot: Snapshot, fold: _Fold) -> None:
    """Without its row a device's key could be enrolled for somebody else."""
    tenant_id, customer_id = fold.row.key
    scopes = across.credential_scopes(tenant_id, sorted(fold.claimed))
    stored = {row.scope: row.state for row in snapshot.scopes(scopes)}
    for scope in scopes:
        try:
            owned = scope in stored and across.owner_of(stored[scope]) == customer_id
        except Exception:  # noqa: BLE001 - see above
            owned = False
        if not owned:
            fold.fault("the key of a device is not stored as the customer's")


def _compare_payments(snapshot: Snapshot, fold: _Fold) -> int:
    key = fold.row.key
    stored = {payment.payment_id: payment for payment in snapshot.payments(key)}
    if stored != {i: sealing.payment_row(key, payment) for i, payment in fold.aggregate.payments.items()}:
        fold.fault("the stored payments are not what the journal gives")
    return len(stored)


def _compare_purchases(snapshot: Snapshot, fold: _Fold) -> int:
    purchases = fold.aggregate.purchases
    expected = {i: sealing.purchase_row(fold.row.key, purchase) for i, purchase in purchases.items()}
    seen = 0
    for purchase in _purchases(snapshot, fold.row):
        seen += 1
        if purchase != expected.get(purchase.transaction_id):
            fold.fault(f"purchase {purchase.transaction_id} is not what the journal gives")
    if seen != len(expected):
        fold.fault(f"{seen} purchases are stored, the journal has {len(expected)}")
    lapses = [p.lapses_us for p in purchases.values() if p.state is HoldState.PENDING]
    if lapses and not 0 < fold.row.next_lapse_us <= min(lapses):
        fold.fault("a hold would lapse unnoticed")
    return seen


def _compare_requests(snapshot: Snapshot, fold: _Fold) -> int:
    """Without its row a request would have its effect again; with another row it would get another's answer."""
    seen = 0
    for row in _requests(snapshot, fold.row):
        seen += 1
        told = fold.requests.get(row.request_id)
        if told is None:
            fold.fault(f"request {row.request_id} is stored, and the journal has nothing of it")
        elif (row.sequence, row.at_us) != (told.sequence, told.at_us):
            fold.fault(f"request {row.request_id} points at another entry than its own")
        # Entries of the first version vouch for neither.
        elif told.fingerprint and row.fingerprint != told.fingerprint:
            fold.fault(f"request {row.request_id} has another fingerprint than the journal")
        elif row.reply and told.fingerprint and sealing.reply_digest(row.reply) != told.reply_digest:
            fold.fault(f"request {row.request_id} has another reply than was given")
    if seen != len(fold.requests):
        fold.fault(f"{seen} requests are stored, the journal has {len(fold.requests)}")
    return seen


def _check_books(aggregate: Aggregate, who: str, report: Report) -> None:
    """The invariants of the ledger that hold at every entry of every customer."""
    for line in aggregate.customer.lines:
        purchases = [p for p in aggregate.purchases.values() if p.line_id == line.line_id]
        books = line.books
        outstanding, held = postings.outstanding(books), postings.held(books)
        if held != sum(p.remaining_minor for p in purchases if p.state is HoldState.PENDING):
            report.fault(f"{who}: what line {line.line_id} holds is not the sum of its open holds")
        if line.open_holds != sum(p.is_open for p in purchases):
            report.fault(f"{who}: line {line.line_id} counts another number of holds than are open")
        if postings.customer_credit(books) != sum(credit.amount_minor for credit in line.credits):
            report.fault(f"{who}: what line {line.line_id} owes its customer is not the sum of what was left on it")
        if outstanding != sum(p.principal_minor for p in purchases):
            report.fault(f"{who}: what line {line.line_id} owes is not the sum of its purchases")
        if -postings.debit_balance(books, Account.DRAWN) != outstanding:
            report.fault(f"{who}: line {line.line_id} has drawn another sum than it owes")
        if any(sum(postings.debit_balance(books, account, layer) for account in Account) for layer in Layer):
            report.fault(f"{who}: debits and credits of line {line.line_id} differ")
        if postings.debit_balance(books, Account.PAYMENT_SUSPENSE):
            report.fault(f"{who}: money of line {line.line_id} is neither allocated nor credited")
        report.outstanding_minor[line.currency] = report.outstanding_minor.get(line.currency, 0) + outstanding
        report.held_minor[line.currency] = report.held_minor.get(line.currency, 0) + held
