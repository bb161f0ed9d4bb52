"""A hundred copies of one call have one effect and one answer, to the byte, through a kill and for ever after."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from itertools import pairwise

import grpc
import pytest
from google.protobuf.message import Message

from riskgate.credit.v1 import ledger_service_pb2 as ledger
from tests.acceptance import books, witness
from tests.acceptance.calling import Backend, Told, check, connections, money, open_line
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import PYTHON, Deployment
from tests.acceptance.planted import planted

pytestmark = pytest.mark.process

KEYS = int(os.environ.get("KEYS", "2"))
"""Keys of each kind."""
COPIES = 100
CONNECTIONS = 4
PURCHASE_MINOR = 1_000
PART_MINOR = 100
LIMIT_MINOR = 1_000_000


def keyed(number: int) -> list[Message]:
    """Return calls of every kind that would have a second effect if they ran a second time, each with its key."""
    customer = f"c{number}"
    return [
        open_line(f"new-{number}", LIMIT_MINOR),
        check(customer, "check", "t-new", PURCHASE_MINOR),
        ledger.CaptureHoldRequest(
            customer_id=customer, request_id="capture", hold_id="t-held", amount=money(PART_MINOR)
        ),
        ledger.RecordPaymentRequest(
            customer_id=customer, request_id="pay", payment_id="p", amount=money(PART_MINOR)
        ),
        # Refused by the domain, and refused it stays.
        ledger.CaptureHoldRequest(customer_id=customer, request_id="too-much", hold_id="t-held", amount=money(10**9)),
    ]  # fmt: skip


def with_other_content(request: Message) -> Message:
    """Return the same call with one field changed."""
    changed = type(request)()
    changed.CopyFrom(request)
    amount = changed.limit if hasattr(changed, "limit") else changed.amount  # type: ignore[attr-defined]  # every one has either
    amount.amount_minor += 1
    return changed


async def copies_of(deployment: Deployment, requests: Sequence[Message], program: tuple[str, ...]) -> list[list[Told]]:
    """Send a hundred copies of each call at once and kill the server as soon as the first is answered."""
    async with connections(deployment, CONNECTIONS) as backends:
        for number in range(KEYS):
            assert (await backends[0].settle(open_line(f"c{number}", LIMIT_MINOR))).done
            assert (await backends[0].settle(check(f"c{number}", "held", "t-held", PURCHASE_MINOR))).done
        answered = asyncio.Event()

        async def one(request: Message, backend: Backend) -> Told:
            told = await backend.settle(request)
            answered.set()
            return told

        async def killer() -> None:
            await answered.wait()
            deployment.kill()
            deployment.start(program=program)

        async with asyncio.TaskGroup() as group:
            # Copies of different keys come mixed, and those of one key over all the connections.
            calls = [
                [group.create_task(one(request, backends[copy % CONNECTIONS])) for request in requests]
                for copy in range(COPIES)
            ]
            group.create_task(killer())
        return [[task.result() for task in tasks] for tasks in zip(*calls, strict=True)]


async def again(deployment: Deployment, requests: Sequence[Message]) -> list[Told]:
    """Send each call once more."""
    async with Backend(deployment) as backend:
        return [await backend.settle(request) for request in requests]


def unlike(answers: Sequence[Told]) -> list[tuple[Told, Told]]:
    """Return neighbours that differ."""
    return [(one, other) for one, other in pairwise(answers) if one.words != other.words]


def test_a_hundred_copies_of_a_key_have_one_effect_and_one_answer(deployment: Deployment, figures: Figures) -> None:
    requests = [request for number in range(KEYS) for request in keyed(number)]
    deployment.started()
    told = asyncio.run(copies_of(deployment, requests, PYTHON))
    deployment.kill()
    deployment.started()
    repeated = asyncio.run(again(deployment, requests))
    before = len(books.read(deployment.store))
    changed = asyncio.run(again(deployment, [with_other_content(request) for request in requests]))

    assert deployment.stop() == 0
    entries = books.read(deployment.store)
    different = [pair for answers, last in zip(told, repeated, strict=True) for pair in unlike([*answers, last])]
    figures(
        keys=len(requests),
        copies=sum(map(len, told)),
        asked_more_than_once=sum(answer.attempts > 1 for answers in told for answer in answers),
        different_answers=len(different),
        doubled=len(witness.doubled(entries)),
        changed_and_refused=sum(answer.reason == "REQUEST_ID_REUSED" for answer in changed),
    )
    assert different == []
    assert witness.missing(repeated, entries) == []
    assert witness.doubled(entries) == []
    assert {(answer.code, answer.reason) for answer in changed} == {
        (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    }
    assert len(entries) == before
    assert deployment.verify()["faults"] == []


def test_the_copies_find_a_forgotten_key(deployment: Deployment, figures: Figures) -> None:
    program = planted("forgotten-keys")
    requests = keyed(0)
    deployment.started(program=program)
    told: list[list[Told]] = []
    failed = 0
    try:
        told = asyncio.run(copies_of(deployment, requests, program))
    except ExceptionGroup as group:
        # Answers that no caller should ever see.
        failed = len(group.exceptions)
    deployment.kill()
    doubled = witness.doubled(books.read(deployment.store))
    different = [pair for answers in told for pair in unlike(answers)]
    figures(different_answers=len(different), failed=failed, doubled=len(doubled))

    assert different or failed
