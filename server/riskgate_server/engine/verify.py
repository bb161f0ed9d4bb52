"""
Is the book right? Recompute everything from the journal and compare with what is stored.

Two passes. Over batches: every commit's Merkle root and the chain from commit to commit, dense from
the first. Over customers, one at a time (`refold.py`): the chain, the events folded anew, and every
stored row. What then is stored beyond what was compared belongs to nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final, Protocol

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine import sealing
from riskgate_server.engine.ports import CustomerRow, ReadFailed, Sealer, Snapshot, Snapshots, StoreBusy, Vault
from riskgate_server.engine.refold import refold
from riskgate_server.engine.report import Report

CHUNK: Final = 2_000
Progress = Callable[[str, int, int], None]
"""Called with what is being verified, how many are done, and how many there are."""


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
    try:
        with snapshots.snapshot() as snapshot:
            _verify_batches(snapshot, report, snapshot.counts()["batches"], progress, signed)
            _verify_customers(snapshot, vault, sealer, progress, report)
    except (ReadFailed, StoreBusy) as error:
        report.fault(f"the store cannot be read any further: {error}")
    return report


def _verify_customers(snapshot: Snapshot, vault: Vault, sealer: Sealer, progress: Progress, report: Report) -> None:
    counts = snapshot.counts()
    seen: Counter[str] = Counter()
    rulesets: set[bytes] = set()
    for rows in _customers(snapshot):
        keys = vault.keys([row.key for row in rows])
        for row in rows:
            folded = refold(snapshot, row, keys[row.key], sealer, report)
            seen.update(folded.counts)
            rulesets |= folded.rulesets
            report.customers += 1
        progress("customers", report.customers, counts["customers"])
    if report.entries != counts["entries"]:
        report.fault(f"{counts['entries']} entries are stored, {report.entries} belong to a batch")
    # Whatever is stored beyond that was not compared with anything.
    for kind in ("entries", "purchases", "payments", "requests", "identities", "messages"):
        if seen[kind] != counts[kind]:
            report.fault(f"{counts[kind]} {kind} are stored, {seen[kind]} belong to a customer")
    _verify_rulesets(snapshot, rulesets, report)


def _verify_rulesets(snapshot: Snapshot, hashes: Iterable[bytes], report: Report) -> None:
    for ruleset_hash in sorted(hashes):
        source = snapshot.ruleset_source(ruleset_hash)
        if source is None:
            report.fault(f"ruleset {ruleset_hash.hex()} decided here and is gone")
        elif sha256(source.encode("utf-8", "surrogatepass")).digest() != ruleset_hash:
            report.fault(f"ruleset {ruleset_hash.hex()} is not the text that decided here")


def _customers(snapshot: Snapshot) -> Iterator[Sequence[CustomerRow]]:
    after: CustomerKey = ("", "")
    while rows := snapshot.customers(after=after, limit=CHUNK):
        yield rows
        after = rows[-1].key


def _verify_batches(
    snapshot: Snapshot, report: Report, total: int, progress: Progress, signed: dict[int, bytes]
) -> None:
    if signed.pop(0, sealing.GENESIS) != sealing.GENESIS:
        report.fault("another beginning was signed")
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
