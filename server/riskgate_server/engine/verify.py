"""
Is the book right? Recompute everything from the journal and compare with what is stored.

Two passes. Over every writer's lane (`lanes.py`): each commit's Merkle root and the chain from commit to
commit, dense from the first to where the writer goes on. Over customers, one at a time (`refold.py`): the
chain, the events folded anew, and every stored row. What then is stored beyond what was compared belongs
to nobody. What concerns several customers is counted anew from all of them (`recount.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final, Protocol

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import ReadFailed, StoreBusy
from riskgate_server.engine.lanes import LaneReport, walk
from riskgate_server.engine.ports import Sealer
from riskgate_server.engine.recount import Recount
from riskgate_server.engine.refold import refold
from riskgate_server.engine.report import Report
from riskgate_server.engine.rows import CustomerRow
from riskgate_server.engine.sealing import genesis
from riskgate_server.engine.storing import Snapshot, Snapshots, Vault

CHUNK: Final = 2_000
Progress = Callable[[str, int, int], None]
"""Called with what is being verified, how many are done, and how many there are."""


class SignedHead(Protocol):
    """The end of a lane as it was signed at some instant, outside the database."""

    @property
    def writer(self) -> int:
        """Whose lane it is."""

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
    signed = _by_lane(heads, report)
    try:
        with snapshots.snapshot() as snapshot:
            _verify_lanes(snapshot, report, snapshot.counts()["batches"], progress, signed)
            _verify_customers(snapshot, vault, sealer, progress, report)
    except (ReadFailed, StoreBusy) as error:
        report.fault(f"the store cannot be read any further: {error}")
    return report


def _verify_customers(snapshot: Snapshot, vault: Vault, sealer: Sealer, progress: Progress, report: Report) -> None:
    counts = snapshot.counts()
    seen: Counter[str] = Counter()
    rulesets: set[bytes] = set()
    recount = Recount(max((lane.batch.at_us for lane in snapshot.lanes() if lane.batch), default=0))
    for rows in _customers(snapshot):
        keys = vault.keys([row.key for row in rows])
        for row in rows:
            folded = refold(snapshot, row, keys[row.key], sealer, report=report, recount=recount)
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
    recount.compare(snapshot, report)
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


def _by_lane(heads: Iterable[SignedHead], report: Report) -> dict[int, dict[int, bytes]]:
    """Return what was signed: writer → sequence → hash. The same lane may have been signed in several files."""
    signed: dict[int, dict[int, bytes]] = {}
    for head in heads:
        report.heads += 1
        if signed.setdefault(head.writer, {}).setdefault(head.batch, head.batch_hash) != head.batch_hash:
            report.fault(f"batch {head.batch} of lane {head.writer} was signed twice, and not the same")
    return signed


def _verify_lanes(
    snapshot: Snapshot, report: Report, total: int, progress: Progress, signed: dict[int, dict[int, bytes]]
) -> None:
    writers = sorted({*snapshot.writers(), *signed})
    for writer in writers:
        # Whoever has one lane need not know that there could be more.
        prefix = f"lane {writer}: " if len(writers) > 1 else ""
        lane = LaneReport(writer, genesis(writer))
        report.lanes.append(lane)
        for _ in walk(snapshot, lane, signed.get(writer, {}), _told_of(report, prefix)):
            progress("batches", report.batches + lane.batches, total)
        report.batches += lane.batches
        report.entries += lane.entries


def _told_of(report: Report, prefix: str) -> Callable[[str], None]:
    return lambda text: report.fault(prefix + text)
