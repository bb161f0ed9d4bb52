"""Request ids that come again: what is kept of an answer, and how it is given a second time."""

from __future__ import annotations

from riskgate_server.domain import errors
from riskgate_server.domain.events import CommandRefused, PurchaseDecided
from riskgate_server.engine import sealing
from riskgate_server.engine.commands import Command
from riskgate_server.engine.replies import PRIVATE, STICKY, DecisionReply, Reply, forgotten, request_id_reused
from riskgate_server.engine.rows import RequestRow
from riskgate_server.engine.work import Batch, Work


def repeated(batch: Batch, known: RequestRow, command: Command) -> Reply:
    """Answer a request id that was used before: the same content gets the same answer."""
    if known.fingerprint != command.fingerprint and known.fingerprint not in command.other_fingerprints:
        raise request_id_reused(command.request_id)
    if known.reply:
        if not sealing.is_sealed(known.reply):
            return sealing.decode_reply(known.reply)
        if known.key in batch.refused:
            raise errors.PreconditionFailed(*batch.refused[known.key])
        return sealing.open_reply(
            known.key, known.request_id, known.reply, data_key=batch.kept[known.key].data_key, sealer=batch.sealer
        )
    entries = [e for e in batch.entries if e.key == known.key and e.sequence == known.sequence]
    entry = (entries or batch.tx.entries(known.key, after=known.sequence - 1, limit=1))[0]
    event = sealing.open_clear(entry).event
    if isinstance(event, PurchaseDecided):
        return DecisionReply(entry.key, entry.sequence, entry.at_us, entry.request_id, event)
    if isinstance(event, CommandRefused):
        raise STICKY[event.family](event.reason, "refused before under this request id")
    raise forgotten(event, sequence=entry.sequence, at_us=entry.at_us)


def remembered(batch: Batch, command: Command, reply: Reply, work: Work) -> RequestRow:
    """Return what is kept of a request, so that its repetition is answered as it was."""
    sequence, stored = work.customer.sequence, b""
    if isinstance(reply, DecisionReply):
        # A purchase's answer is rebuilt from its journal entry: nothing is stored twice.
        sequence = reply.sequence
    elif isinstance(reply, PRIVATE):
        stored = sealing.seal_reply(
            work.key,
            command.request_id,
            reply,
            data_key=work.data_key,
            nonce=batch.nonce(),
            sealer=batch.sealer,
        )
    else:
        stored = sealing.encode_reply(reply)
    return RequestRow(work.key, command.request_id, command.fingerprint, sequence, work.now_us, stored)
