"""
The lanes of a store: walked from first to last for verification.

Every writer chains its commits in a lane of its own. Customers are everybody's: their chains lead through all lanes
(`refold.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from riskgate_server.engine import sealing
from riskgate_server.engine.rows import BatchRow, Lane
from riskgate_server.engine.storing import Snapshot

BATCHES_AT_ONCE: Final = 200

Fault = Callable[[str], None]


class LaneReport(msgspec.Struct):
    """What one lane holds; `head` is the hash that its next batch follows."""

    writer: int
    head: bytes
    batches: int = 0
    entries: int = 0
    heads: int = 0
    """Signed heads that vouch for it."""


def walk(snapshot: Snapshot, report: LaneReport, signed: dict[int, bytes], fault: Fault) -> Iterator[None]:
    """
    Compare a lane with itself and with what was signed of it, sequence → hash; yield when it is further, now and then.

    Its batches must be dense and chained from the lane's genesis, each with the Merkle root of as many entries as
    it counts, at dense positions; and it must end where its writer will go on.
    """
    writer = report.writer
    report.heads = len(signed)
    unmet = dict(signed)
    if unmet.pop(0, report.head) != report.head:
        fault("another beginning was signed")
    position = 0
    while batches := snapshot.batches(writer, after=report.batches, limit=BATCHES_AT_ONCE):
        for batch in batches:
            _look_at(snapshot, batch, report, position, fault)
            if unmet.pop(batch.sequence, batch.hash) != batch.hash:
                fault(f"batch {batch.sequence}: another one was signed in its place")
            position += batch.count
            report.head, report.batches = batch.hash, batch.sequence
        yield
    for sequence in sorted(unmet):
        fault(f"batch {sequence} was signed and is gone")
    if snapshot.entries_by_position(writer, after=position, limit=1):
        fault(f"entries above position {position} belong to no batch")
    _look_at_the_end(snapshot, report, position, fault)
    yield


def _look_at(snapshot: Snapshot, batch: BatchRow, report: LaneReport, position: int, fault: Fault) -> None:
    entries = snapshot.entries_by_position(batch.writer, after=position, limit=batch.count)
    hashes = [entry.hash for entry in entries]
    if batch.sequence != report.batches + 1:
        fault(f"batch {batch.sequence} follows batch {report.batches}")
    if batch.hash != sealing.batch_hash(batch, report.head):
        fault(f"batch {batch.sequence}: its hash does not follow from the batch before it")
    if [entry.position for entry in entries] != list(range(position + 1, position + batch.count + 1)):
        fault(f"batch {batch.sequence}: positions are not dense")
    elif any(entry.batch != batch.sequence for entry in entries):
        fault(f"batch {batch.sequence}: an entry names another batch")
    if not hashes or batch.root != sealing.merkle_root(hashes):
        fault(f"batch {batch.sequence}: its Merkle root is not that of its entries")
    report.entries += len(entries)


def _look_at_the_end(snapshot: Snapshot, report: LaneReport, position: int, fault: Fault) -> None:
    """Compare the end of the rows with the one that is stored for the writer: a tail may have been cut."""
    lane = lane_of(snapshot, report.writer)
    if lane is None:
        fault("nothing says where it ends: the row of its writer is gone")
        return
    end = lane.batch.sequence if lane.batch else 0
    if (end, lane.position) != (report.batches, position):
        fault(
            f"its writer went on to batch {end} and position {lane.position},"
            f" its rows end at batch {report.batches} and position {position}"
        )
    elif lane.batch and lane.batch.hash != report.head:
        fault(f"its writer would go on from another batch {end} than is stored")


def nothing_committed(snapshot: Snapshot) -> bool:
    """Whether no lane has a commit yet."""
    return not any(lane.batch for lane in snapshot.lanes())


def lane_of(snapshot: Snapshot, writer: int) -> Lane | None:
    """Return where a writer's lane ends; None when nothing says so."""
    return next((lane for lane in snapshot.lanes() if lane.writer == writer), None)
