"""
A call, described but not yet made.

Builders such as `riskgate_client.check` return one; `blocking` and `asynchronous` make it. So what a call
sends and how its answer is read is written once for both clients.
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, ParamSpec, TypedDict, TypeVar
from uuid import uuid4

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from riskgate.common.v1 import money_pb2
from riskgate_client.values import Money, Page

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_SECONDS: Final = 5.0
"""How long a call may take with all its tries, unless the client or the call says otherwise."""

HANDING_OVER_SECONDS: Final = 10.0
"""The same of a call that waits for a message's gateway, which the engine tries for 5 seconds and one attempt of 3."""


class QuestionOptions(TypedDict, total=False):
    """What every call takes: `timeout`, seconds for the whole call with all its tries, instead of the client's."""

    timeout: float | None


class CommandOptions(QuestionOptions, total=False):
    """What a command takes besides: `request_id`, to repeat an earlier attempt; a new UUID unless given."""

    request_id: str | None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call of the contract with what it sends. `command` tells those that may have an effect."""

    # Requests may carry grants and notes: only their kind is shown.
    stub: Callable[[Any], Any] = field(repr=False)
    method: str
    request: Any = field(repr=False)
    read: Callable[[Any], T] = field(repr=False)
    command: bool
    request_id: str | None = None
    timeout: float | None = None
    usual_seconds: float = TIMEOUT_SECONDS
    """How long it may take where nobody said."""


@dataclass(frozen=True, slots=True)
class WatchStep(Generic[T]):
    """One message of a watch: what it tells, if anything, and where to resume after it."""

    item: T | None
    resume_token: str = ""


class Verbs:
    """Describes calls of one service."""

    def __init__(self, stub: Callable[[Any], Any]) -> None:
        self._stub = stub

    def command(
        self,
        method: str,
        request: Message,
        read: Callable[[Any], T],
        options: CommandOptions,
        *,
        usual_seconds: float = TIMEOUT_SECONDS,
    ) -> Call[T]:
        """Describe a call that may have an effect, and name the attempt."""
        _refuse_unknown(options, CommandOptions)
        request_id = options.get("request_id") or str(uuid4())
        request.request_id = request_id  # type: ignore[attr-defined]  # every command has one; a test sees to it
        return Call(self._stub, method, request, read, True, request_id, options.get("timeout"), usual_seconds)

    def question(self, method: str, request: Message, read: Callable[[Any], T], options: QuestionOptions) -> Call[T]:
        """Describe a call that changes nothing."""
        _refuse_unknown(options, QuestionOptions)
        return Call(self._stub, method, request, read, False, None, options.get("timeout"))

    def commands(self, method: str, request: Message, read: Callable[[Any], T], options: QuestionOptions) -> Call[T]:
        """Describe a call that carries many commands, each with a request id of its own."""
        _refuse_unknown(options, QuestionOptions)
        return Call(self._stub, method, request, read, True, None, options.get("timeout"))


def at_page(call: Call[T], page_token: str) -> Call[T]:
    """Return the same list from another page on."""
    request = _copy(call.request)
    request.page_token = page_token
    return replace(call, request=request)


def from_token(call: Call[Any], resume_token: str) -> Any:
    """Return what a watch sends to go on after a token."""
    if not resume_token:
        return call.request
    request = _copy(call.request)
    request.resume_token = resume_token
    return request


def _copy(request: Any) -> Any:
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


def page_of(items: str, read: Callable[[Any], T]) -> Callable[[Any], Page[T]]:
    """Return a function that reads a page out of a response."""
    return lambda response: Page(tuple(map(read, getattr(response, items))), response.next_page_token)


def tuple_of(items: str, read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Return a function that reads all items of a response."""
    return lambda response: tuple(map(read, getattr(response, items)))


def require_one(**given: object) -> None:
    """
    Refuse what the contract has room for one of: setting another would take the first away unseen.

    Raises:
        ValueError: none is given, or several are.
    """
    if sum(map(bool, given.values())) != 1:
        raise ValueError(f"give exactly one of {', '.join(given)}")


_PLAIN: Final[Mapping[str, type]] = {"str": str, "int": int, "bool": bool, "bytes": bytes}


def described(describe: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """
    Return the call that a builder describes.

    Raises:
        TypeError: an argument is of the wrong kind; named, which the protobuf library does not do.
    """
    try:
        return describe(*args, **kwargs)
    except TypeError:
        signature = inspect.signature(describe)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kind = _PLAIN.get(str(signature.parameters[name].annotation))
            if kind is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be {kind.__name__}, not {type(value).__name__}") from None
        raise


def money(amount: Money | None, field: str = "amount") -> money_pb2.Money | None:
    """
    Write an amount.

    Raises:
        TypeError: it is none; a bare number would have no currency.
    """
    if amount is None:
        return None
    if not isinstance(amount, Money):
        raise TypeError(f"{field} must be Money, not {type(amount).__name__}")
    return money_pb2.Money(currency_code=amount.currency_code, amount_minor=amount.amount_minor)


def timestamp(time: dt.datetime | None) -> Timestamp | None:
    """
    Write a time.

    Raises:
        ValueError: it has no time zone, so it names no instant.
    """
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time must have a time zone, such as datetime.now(UTC)")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def _refuse_unknown(options: Mapping[str, Any], known: Any) -> None:
    unknown = options.keys() - known.__optional_keys__
    if unknown:
        raise TypeError(f"unexpected keyword argument {min(unknown)!r}")
