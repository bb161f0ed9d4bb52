"""RiskService: decides about purchases and remembers what it decided."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_server.domain.errors import (
    InvalidRequest,
    PermissionRefused,
    ResourceExhausted,
    RiskgateError,
    Unauthenticated,
)
from riskgate_server.domain.events import Label, Outcome
from riskgate_server.engine import commands
from riskgate_server.engine.places import token_invalid
from riskgate_server.engine.replies import AnnotationReply, DecisionReply, Failed, Refusal, Reply, error_of
from riskgate_server.rpc import service
from riskgate_server.rpc.callers import Caller
from riskgate_server.rpc.convert import (
    annotation_to_proto,
    check_command,
    decision_sequence_from,
    explanation_to_proto,
    resume_command,
    time_from,
)
from riskgate_server.rpc.door import Call, end_of_stream, given_up, is_being_cancelled, sorting_out
from riskgate_server.rpc.reading import parsed
from riskgate_server.rpc.service import Rooms, key_of, page_size_of
from riskgate_server.rpc.status import proto_of
from riskgate_server.rpc.watching import DecisionWatches, Told

IN_FLIGHT_MAX: Final = 256
"""Purchases of one stream that are decided at the same time; the stream is not read further until one is done."""

ITEM: Final = "riskgate.risk.v1.RiskService/CheckTransaction"
"""What an item of a batch or a stream is called in the log: the call it stands for."""


class RiskServicer:
    """Serves `riskgate.risk.v1.RiskService`."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._watches = DecisionWatches(rooms)

    async def CheckTransaction(self, request: pb.CheckTransactionRequest, call: Call) -> pb.CheckTransactionResponse:
        """Decide about one purchase."""
        reply = await self._rooms.gateway.submit(self._command(request, call))
        assert isinstance(reply, DecisionReply)
        response = pb.CheckTransactionResponse()
        self._rooms.write_decision(reply, response.decision)
        return response

    def _command(self, request: pb.CheckTransactionRequest, call: Call) -> commands.CheckTransaction:
        rooms = self._rooms
        if request.grant:
            return resume_command(request, rooms.head(request, call))
        amount = request.amount
        terms = f"{amount.currency_code} {amount.amount_minor} {request.line_id} {request.merchant.merchant_id}"
        digest, others = rooms.fingerprint(key_of(request, call), terms.encode())
        return check_command(
            request,
            rooms.head(request, call),
            terms=digest,
            other_terms=others,
            event_us=rooms.event_time(time_from(request, "event_time"), call),
        )

    @sorting_out
    async def BatchCheckTransactions(
        self, request: pb.BatchCheckTransactionsRequest, call: Call
    ) -> pb.BatchCheckTransactionsResponse:
        """Decide about many purchases; each has its own answer."""
        rooms = self._rooms
        spoiled = rooms.door.reader.sort_out(request, "checks")
        rooms.door.charge_whole(call.caller, len(request.checks))
        rooms.gateway.admit(len(request.checks))
        response = pb.BatchCheckTransactionsResponse()
        results = [response.results.add(request_id=check.request_id) for check in request.checks]
        waiting = []
        batch = []
        for place, (check, result) in enumerate(zip(request.checks, results, strict=True)):
            if place in spoiled:
                self._refuse(result, spoiled[place], call)
                continue
            try:
                batch.append(self._command(check, call))
                waiting.append(result)
            except Exception as error:  # noqa: BLE001 - one bad item spoils only itself, whatever is bad about it
                self._refuse(result, error, call)
        if batch:
            for result, reply in zip(waiting, await rooms.gateway.submit_many(batch), strict=True):
                self._fill(result, reply, call)
        return response

    def _fill(self, result: pb.CheckResult, reply: Reply, call: Call) -> None:
        if isinstance(reply, Refusal | Failed):
            self._refuse(result, error_of(reply), call)
        else:
            assert isinstance(reply, DecisionReply)
            self._rooms.write_decision(reply, result.decision)

    def _refuse(self, result: pb.CheckResult, error: Exception, call: Call) -> None:
        result.error.CopyFrom(proto_of(self._rooms.door.refusal(error, ITEM, call.context, call.caller)))

    async def StreamCheckTransactions(
        self, incoming: Any, call: Call
    ) -> AsyncIterator[pb.StreamCheckTransactionsResponse]:
        """Decide about purchases as they come, and answer each as soon as it is decided."""
        gateway, door = self._rooms.gateway, self._rooms.door
        answers: asyncio.Queue[pb.StreamCheckTransactionsResponse | None] = asyncio.Queue()
        room = asyncio.Semaphore(IN_FLIGHT_MAX)
        dismissed: list[RiskgateError] = []

        def caller_now() -> Caller | None:
            """Whose rights the next item has; None when the caller may no longer be here, which ends the stream."""
            try:
                return door.confirm(call.caller, call.scopes)
            except (Unauthenticated, PermissionRefused) as error:
                dismissed.append(error)
                return None

        async def read_all(deciding: asyncio.TaskGroup) -> None:
            while (raw := await call.context.read()) is not end_of_stream:
                await room.acquire()
                caller = caller_now()
                if caller is None:
                    return
                deciding.create_task(self._answer(raw, call.renewed(caller), answers))

        async def take_all() -> None:
            try:
                async with asyncio.TaskGroup() as deciding:
                    reading = deciding.create_task(read_all(deciding))
                    # A stopping server, or one that dismissed the caller, reads no further; what it read it answers.
                    with gateway.closing(reading.cancel):
                        while not (await asyncio.wait({reading}, timeout=service.CONFIRM_SECONDS))[0]:
                            if caller_now() is None:
                                reading.cancel()
            finally:
                await answers.put(None)

        taking = asyncio.create_task(take_all())
        try:
            while (answer := await answers.get()) is not None:
                yield answer
                # Only now, so that a reader who does not read stops us from deciding further.
                room.release()
            await taking
            if dismissed:
                raise dismissed[0]
            gateway.require_open()
        finally:
            taking.cancel()

    async def _answer(
        self, raw: bytes, call: Call, answers: asyncio.Queue[pb.StreamCheckTransactionsResponse | None]
    ) -> None:
        result = pb.CheckResult()
        try:
            door = self._rooms.door
            try:
                # Bytes that are no message are work too, and no way around the rate.
                door.charge(call.caller)
            except ResourceExhausted:
                # Whoever is to come back must know with what.
                with contextlib.suppress(InvalidRequest):
                    result.request_id = _item(raw).check.request_id
                raise
            item = _item(raw)
            result.request_id = item.check.request_id
            door.reader.validate(item)
            door.reader.validate(item.check)
            self._fill(result, await self._rooms.gateway.submit(self._command(item.check, call)), call)
        except Exception as error:  # noqa: BLE001 - one bad item spoils only itself, whatever is bad about it
            self._refuse(result, error, call)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            # Nobody cancelled this item: something inside raised it.
            self._refuse(result, given_up(), call)
        await answers.put(pb.StreamCheckTransactionsResponse(result=result))

    async def AnnotateDecision(self, request: pb.AnnotateDecisionRequest, call: Call) -> pb.AnnotateDecisionResponse:
        """Record what a purchase later turned out to be."""
        command = commands.AnnotateDecision(
            **self._rooms.head(request, call),
            decision_sequence=decision_sequence_from(request.decision_id),
            label=Label(request.label),
            actor_id=request.actor_id,
            note=request.note,
        )
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, AnnotationReply)
        return pb.AnnotateDecisionResponse(annotation=annotation_to_proto(reply))

    async def GetDecision(self, request: pb.GetDecisionRequest, call: Call) -> pb.GetDecisionResponse:
        """Return one decision as it was answered."""
        rooms = self._rooms
        sequence = decision_sequence_from(request.decision_id)
        reply = await rooms.readers.ask(rooms.queries.decision, key_of(request, call), sequence)
        response = pb.GetDecisionResponse()
        rooms.write_decision(reply, response.decision)
        return response

    async def ListDecisions(self, request: pb.ListDecisionsRequest, call: Call) -> pb.ListDecisionsResponse:
        """List decisions, newest first."""
        rooms = self._rooms
        listed = ("ListDecisions", *key_of(request, call))
        page = await rooms.readers.ask(
            rooms.queries.decisions,
            call.caller.tenant_id,
            request.customer_id,
            outcomes=frozenset(map(Outcome, request.outcomes)),
            before=rooms.places.places(listed, request.page_token, "page_token"),
            limit=page_size_of(request),
        )
        response = pb.ListDecisionsResponse()
        if page.next_before:
            response.next_page_token = rooms.places.token(listed, page.next_before)
        for reply in page.decisions:
            rooms.write_decision(reply, response.decisions.add())
        return response

    async def ExplainDecision(self, request: pb.ExplainDecisionRequest, call: Call) -> pb.ExplainDecisionResponse:
        """Return one decision with what the rules saw and made of it."""
        rooms = self._rooms
        sequence = decision_sequence_from(request.decision_id)
        explanation = await rooms.readers.ask(rooms.queries.explain, key_of(request, call), sequence)
        return explanation_to_proto(explanation, rooms.write_decision)

    async def WatchDecisions(
        self, request: pb.WatchDecisionsRequest, call: Call
    ) -> AsyncIterator[pb.WatchDecisionsResponse]:
        """Stream decisions as they become durable."""
        rooms = self._rooms
        tenant_id = call.caller.tenant_id
        purpose = ("WatchDecisions", tenant_id)
        given = rooms.places.places(purpose, request.resume_token, "resume_token")
        async with self._watches.seat(tenant_id, request.customer_id) as (seat, ends):
            if any(position > ends.get(writer, 0) for writer, position in given.items()):
                # Of a store that was lost since: going on would silently leave out what is decided until then.
                raise token_invalid("resume_token", "is of a decision this store does not hold")
            places = given if request.resume_token else ends
            with rooms.gateway.closing(seat.changed.set):
                yield pb.WatchDecisionsResponse(
                    resume_token=request.resume_token or rooms.places.token(purpose, places)
                )
                while True:
                    rooms.door.confirm(call.caller, call.scopes)
                    before = places
                    found, places = await seat.take(before)
                    for told in found:
                        yield self._message(told, purpose)
                    # A page may hold nothing for this watcher and yet not be the last.
                    if places == before:
                        await rooms.change(seat.changed)

    def _message(self, told: Told, purpose: tuple[str, ...]) -> pb.WatchDecisionsResponse:
        """Return the message that tells a decision: the same one to all of its tenant who watch."""
        if told.message is None:
            told.message = pb.WatchDecisionsResponse(resume_token=self._rooms.places.token(purpose, told.after))
            self._rooms.write_decision(told.reply, told.message.decision)
        return told.message


def _item(raw: bytes) -> pb.StreamCheckTransactionsRequest:
    item = parsed(pb.StreamCheckTransactionsRequest, raw)
    assert isinstance(item, pb.StreamCheckTransactionsRequest)
    return item
