"""Bytes that were requests once: whatever is done to them, the answer is one of the published ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from tests.rpc.calling import Api, refused_of
from tests.rpc.contract import EVERY, SERVED, sample
from tests.rpc.logs import Lines
from tests.rpc.requests import buy, capturing, open_line, paying
from tests.rpc.test_bad_requests import TELLTALE

SEED: Final = 20_261_123
EACH: Final = 150
"""Mutations of each request in an ordinary run; the long one takes a hundred times as many."""

ANSWERS: Final = frozenset({
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
})  # fmt: skip
"""What an administrator within its rate may be answered by a healthy server, whatever it sends."""

CANARY: Final = "canary-5f1e"


def flip(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << chance.randrange(8)]) + raw[at + 1 :]


def cut(raw: bytes, chance: random.Random) -> bytes:
    return raw[: chance.randrange(len(raw))]


def insert(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(raw))
    return raw[:at] + chance.randbytes(chance.randrange(1, 9)) + raw[at:]


def repeat(raw: bytes, chance: random.Random) -> bytes:
    start, end = sorted((chance.randrange(len(raw)), chance.randrange(len(raw))))
    return raw[:end] + raw[start:end] * chance.randrange(1, 50) + raw[end:]


def swap(raw: bytes, chance: random.Random) -> bytes:
    first, second = sorted((chance.randrange(len(raw)), chance.randrange(len(raw))))
    return raw[second:] + raw[first:second] + raw[:first]


def nest(raw: bytes, chance: random.Random) -> bytes:
    """Bury the request in groups, as deep as the recursion limit and deeper."""
    depth = chance.randrange(1, 400)
    return raw + b"\xa3\x06" * depth + b"\xa4\x06" * chance.choice((depth, depth - 1, depth + 1))


def grow(raw: bytes, chance: random.Random) -> bytes:
    """Add a field the contract does not know, up to some hundred kilobytes."""
    size = chance.choice((0, 1, 127, 128, 70_000))
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
    return raw + b"\xa2\x06" + (length if size >= 128 * 128 else bytes([min(size, 127)])) + b"\xff" * size


def noise(raw: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(200))


WAYS: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (flip, cut, insert, repeat, swap, nest, grow, noise)


def mutated(raw: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        raw = chance.choice(WAYS)(raw or b"\x00", chance)
    return raw


def answered_wrongly(api: Api, method: MethodDescriptor, times: int) -> list[str]:
    chance = random.Random(f"{SEED} {method.full_name}")
    wrong = []
    for _ in range(times):
        raw = mutated(sample(method).SerializeToString(), chance)
        try:
            api.send(method, raw, timeout=5)
        except grpc.RpcError as error:
            refusal = refused_of(error)
            if refusal.code not in ANSWERS or TELLTALE.search(str(refusal).replace("<StatusCode", "")):
                wrong.append(f"{raw.hex()}: {refusal}")
    return wrong


@pytest.fixture
def furnished(api: Api) -> Api:
    open_line(api)
    buy(api, transaction_id="t-1", merchant={"merchant_id": CANARY})
    api.ledger.CaptureHold(capturing("t-1", 500))
    api.ledger.RecordPayment(paying(1, payment_id="p-1"))
    return api


@pytest.mark.parametrize("method", SERVED, ids=lambda method: method.name)
def test_mutated_requests_get_published_answers(furnished: Api, method: MethodDescriptor, log: Lines) -> None:
    wrong = answered_wrongly(furnished, method, EACH)

    assert wrong == []
    assert [event for event in log.events if event["level"] in {"error", "critical"}] == []
    assert buy(furnished, amount=0, line_id="main").decision_id


def test_mutated_requests_to_what_is_not_served_get_published_answers(furnished: Api, log: Lines) -> None:
    for method in EVERY:
        if method not in SERVED:
            assert answered_wrongly(furnished, method, 5) == []
    assert [event for event in log.events if event["level"] in {"error", "critical"}] == []


@pytest.mark.long
@pytest.mark.parametrize("method", SERVED, ids=lambda method: method.name)
def test_many_more_mutated_requests_get_published_answers(furnished: Api, method: MethodDescriptor, log: Lines) -> None:
    assert answered_wrongly(furnished, method, 100 * EACH) == []
    assert [event for event in log.events if event["level"] in {"error", "critical"}] == []


@pytest.mark.parametrize("depth", [99, 101, 1_000, 100_000])
def test_nesting_is_bounded(furnished: Api, depth: int) -> None:
    raw = b"\xa3\x06" * depth + b"\xa4\x06" * depth

    answer = furnished.answer(SERVED[0], raw)

    assert answer.split()[1] in {"FIELD_INVALID", "MESSAGE_MALFORMED", "MESSAGE_TOO_LARGE"}


NO_MESSAGES: Final = {
    "length beyond the end": b"\x0a\xff\xff\xff\xff\x0f",
    "no UTF-8": b"\x0a\x02\xff\xfe",
    "wire type 7": b"\x0f",
    "endless number": b"\xff" * 11,
    "no length": b"\x0a",
    "field 0": b"\x00",
    "cut number": b"\x0a\x80\x80\x80\x80\x80",
}


@pytest.mark.parametrize("raw", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_bytes_that_are_no_message_are_refused_as_such(api: Api, raw: bytes) -> None:
    # An item of a stream is answered, not refused: see test_streaming.
    answers = {method.name: api.answer(method, raw) for method in SERVED if not method.client_streaming}

    assert set(answers.values()) == {"INVALID_ARGUMENT MESSAGE_MALFORMED"}
