"""
Is the book right? Recompute everything from the journal and compare with what is stored.

Two passes. Over batches: every commit's Merkle root and the chain from commit to commit, dense from
the first. Over customers: every entry's hash in the customer's own chain, then the events folded
through the same `evolve` that the live engine uses, and the result compared with the stored rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

import msgspec

from riskgate_server.domain.customer import CustomerKey, new_customer
from riskgate_server.domain.journal import Aggregate, Happening, evolve
from riskgate_server.domain.ledger import postings
from riskgate_server.domain.ledger.holds import HoldState
from riskgate_server.domain.ledger.postings import Account, Layer
from riskgate_server.engine import sealing
from riskgate_server.engine.ports import CustomerRow, EntryRow, Sealer, Snapshot, Snapshots, Vault

CHUNK: Final = 2_000
FAULTS_MAX: Final = 100
"""Faults that are told one by one; a store with more is broken as a whole."""

Progress = Callable[[str, int, int], None]
"""Called with what is being verified, how many are done, and how many there are."""


class Report(msgspec.Struct):
    """What verification found. Clean when `faults` is empty."""

    customers: int = 0
    entries: int = 0
    batches: int = 0
    heads: int = 0
    erased: int = 0
    outstanding_minor: dict[str, int] = msgspec.field(default_factory=dict)
    held_minor: dict[str, int] = msgspec.field(default_factory=dict)
    head: bytes = sealing.GENESIS
    faults: list[str] = msgspec.field(default_factory=list)

    def fault(self, text: str) -> None:
        """Note a fault."""
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)


class SignedHead(Protocol):
    """The end of the journal as it was signed at some instant, outside the database."""

    @property
    def batch(self) -> int:
        """Sequence of the last batch row."""

    @property
    def batch_hash(self) -> bytes:
        """Its hash."""


def verify(
    snapshots: Snapshots,
    vault: Vault,
    sealer: Sealer,
    progress: Progress = lambda *_: None,
    heads: Iterable[SignedHead] = (),
) -> Report:
    """Recompute the whole store from its journal. Reads one snapshot, so it may run beside a live server."""
    report = Report()
    # Heads first: those signed after the snapshot was taken would seem to be cut off.
    signed = {head.batch: head.batch_hash for head in heads}
    report.heads = len(signed)
    with snapshots.snapshot() as snapshot:
        counts = snapshot.counts()
        _verify_batches(snapshot, report, counts["batches"], progress, signed)
        if report.entries != counts["entries"]:
            report.fault(f"{counts['entries']} entries are stored, {report.entries} belong to a batch")
        verified_entries = 0
        for rows in _customers(snapshot):
            keys = vault.keys([row.key for row in rows])
            for row in rows:
                verified_entries += _verify_customer(snapshot, row, keys[row.key], sealer, report)
                report.customers += 1
            progress("customers", report.customers, counts["customers"])
        if verified_entries != report.entries:
            report.fault(f"{report.entries} entries are in batches, {verified_entries} belong to a customer")
    return report


def _customers(snapshot: Snapshot) -> Iterator[Sequence[CustomerRow]]:
    after: CustomerKey = ("", "")
    while rows := snapshot.customers(after=after, limit=CHUNK):
        yield rows
        after = rows[-1].key


def _verify_batches(
    snapshot: Snapshot, report: Report, total: int, progress: Progress, signed: dict[int, bytes]
) -> None:
    position = 0
    while batches := snapshot.batches(after=report.batches, limit=CHUNK // 10):
        for batch in batches:
            entries = snapshot.entries_by_position(after=position, limit=batch.count)
            hashes = [entry.hash for entry in entries]
            if batch.sequence != report.batches + 1:
                report.fault(f"batch {batch.sequence} follows batch {report.batches}")
            if batch.hash != sealing.batch_hash(batch, report.head):
                report.fault(f"batch {batch.sequence}: its hash does not follow from the batch before it")
            if [entry.position for entry in entries] != list(range(position + 1, position + batch.count + 1)):
                report.fault(f"batch {batch.sequence}: positions are not dense")
            elif any(entry.batch != batch.sequence for entry in entries):
                report.fault(f"batch {batch.sequence}: an entry names another batch")
            if not hashes or batch.root != sealing.merkle_root(hashes):
                report.fault(f"batch {batch.sequence}: its Merkle root is not that of its entries")
            if signed.pop(batch.sequence, batch.hash) != batch.hash:
                report.fault(f"batch {batch.sequence}: another one was signed in its place")
            position += batch.count
            report.head = batch.hash
            report.entries += len(entries)
            report.batches = batch.sequence
        progress("batches", report.batches, total)
    for sequence in sorted(signed):
        report.fault(f"batch {sequence} was signed and is gone")


def _verify_customer(
    snapshot: Snapshot, row: CustomerRow, data_key: bytes | None, sealer: Sealer, report: Report
) -> int:
    """Fold one customer's journal and compare. Returns how many entries it has."""
    who = "/".join(row.key)
    aggregate = Aggregate(new_customer(*row.key))
    for entry in _entries(snapshot, row.key):
        before = aggregate.customer
        if entry.sequence != before.sequence + 1:
            report.fault(f"{who}: entry {entry.sequence} follows entry {before.sequence}")
            return entry.sequence
        if entry.hash != sealing.entry_hash(entry, before.head):
            report.fault(f"{who}: entry {entry.sequence} is not what was hashed")
        if entry.at_us < before.last_us:
            report.fault(f"{who}: time goes back at entry {entry.sequence}")
        try:
            clear = sealing.open_clear(entry)
            if entry.tag != sealing.EVENT_TAGS[type(clear.event)]:
                report.fault(f"{who}: entry {entry.sequence} is filed under another kind")
            sealed = sealing.open_secrets(entry, data_key, sealer)
            evolve(
                aggregate,
                Happening(clear.event, clear.transfers, sealed),
                sequence=entry.sequence,
                at_us=entry.at_us,
                head=entry.hash,
            )
        except Exception as error:  # noqa: BLE001 - whatever a damaged entry breaks is a finding, not a crash
            report.fault(f"{who}: entry {entry.sequence} cannot be applied: {type(error).__name__}")
            return entry.sequence
    _compare_state(row, aggregate, data_key, sealer, report)
    _compare_purchases(snapshot, row, aggregate, report)
    _compare_payments(snapshot, row, aggregate, report)
    _check_books(aggregate, who, report)
    return aggregate.customer.sequence


def _entries(snapshot: Snapshot, key: CustomerKey) -> Iterator[EntryRow]:
    after = 0
    while rows := snapshot.entries(key, after=after, limit=CHUNK):
        yield from rows
        after = rows[-1].sequence


def _compare_state(
    row: CustomerRow, aggregate: Aggregate, data_key: bytes | None, sealer: Sealer, report: Report
) -> None:
    who = "/".join(row.key)
    customer = aggregate.customer
    if row.sequence != customer.sequence or row.state != sealing.encode_state(customer):
        report.fault(f"{who}: the stored state is not what the journal gives")
    if data_key is None:
        report.erased += 1
        return
    try:
        if sealing.unseal_profile(row, data_key, sealer) != sealing.encode(customer.profile):
            report.fault(f"{who}: the stored profile is not what the journal gives")
    except Exception as error:  # noqa: BLE001 - see above
        report.fault(f"{who}: the stored profile does not open: {type(error).__name__}")


def _compare_payments(snapshot: Snapshot, row: CustomerRow, aggregate: Aggregate, report: Report) -> None:
    stored = {payment.payment_id: payment for payment in snapshot.payments(row.key)}
    if stored != {i: sealing.payment_row(row.key, payment) for i, payment in aggregate.payments.items()}:
        report.fault(f"{'/'.join(row.key)}: the stored payments are not what the journal gives")


def _compare_purchases(snapshot: Snapshot, row: CustomerRow, aggregate: Aggregate, report: Report) -> None:
    who = "/".join(row.key)
    expected = {i: sealing.purchase_row(row.key, purchase) for i, purchase in aggregate.purchases.items()}
    after = ""
    seen = 0
    while stored := snapshot.purchases(row.key, after=after, limit=CHUNK, only_open=False):
        for purchase in stored:
            if purchase != expected.get(purchase.transaction_id):
                report.fault(f"{who}: purchase {purchase.transaction_id} is not what the journal gives")
        seen += len(stored)
        after = stored[-1].transaction_id
    if seen != len(expected):
        report.fault(f"{who}: {seen} purchases are stored, the journal has {len(expected)}")
    lapses = [p.lapses_us for p in aggregate.purchases.values() if p.state is HoldState.PENDING]
    if lapses and not 0 < row.next_lapse_us <= min(lapses):
        report.fault(f"{who}: a hold would lapse unnoticed")


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
