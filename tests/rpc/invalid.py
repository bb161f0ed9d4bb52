"""Every way in which a request breaks the contract, read from its descriptor and the rules on its fields."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from riskgate.common.v1.money_pb2 import Money

RULES: Final[Any] = descriptor_pool.Default().FindExtensionByName("buf.validate.field")
TEXTS: Final = (
    "", " ", "!", "a b", "-a", "a\n", "a\x00b", "\u202eabc", "ad\u0430", "a/b", "../etc", "' OR 1=1 --", "\u0661",
    "a" * 65,
)  # fmt: skip
"""For fields with a pattern; those that match it are left out."""
INT64_MAX: Final = 2**63 - 1
INTEGERS: Final = (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_INT32)
TIMES: Final = (
    {"seconds": -1}, {"seconds": 0}, {"seconds": 253_402_300_800}, {"seconds": INT64_MAX}, {"seconds": -(2**63)},
    {"seconds": 1, "nanos": -1}, {"seconds": 1, "nanos": 10**9}, {"seconds": 1, "nanos": 2**31 - 1},
)  # fmt: skip


class Broken(NamedTuple):
    """A request that breaks one rule of one field."""

    path: str
    how: str
    message: Message


Change = Callable[[Any], object]


def rules_of(field: Any) -> Any:
    return field.GetOptions().Extensions[RULES]


def broken(good: Message) -> Iterator[Broken]:
    """Yield a copy of a good request for every way to break one of its fields."""
    yield from _broken(good, good, lambda root: root, "")


def _broken(root: Message, at: Message, find: Callable[[Any], Any], prefix: str) -> Iterator[Broken]:
    for field in at.DESCRIPTOR.fields:
        name = field.name
        if field.message_type is not None and not field.is_repeated and at.HasField(name):
            child = getattr(at, name)
            if not isinstance(child, Timestamp):
                yield from _broken(root, child, _below(find, name), f"{prefix}{name}.")
        for path, how, change in _changes(field, at):
            copy = type(root)()
            copy.CopyFrom(root)
            change(find(copy))
            yield Broken(prefix + path, how, copy)


def _below(find: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    return lambda root: getattr(find(root), name)


def _changes(field: Any, at: Message) -> Iterator[tuple[str, str, Change]]:
    """Yield path, name and way of every wrong thing to do to one field of a message."""
    rules, name = rules_of(field), field.name
    if field.is_repeated:
        yield from _list_changes(field, rules, len(getattr(at, name)))
    elif field.message_type is None:
        for value in _wrong_values(field, rules, at):
            yield name, repr(value)[:40], partial(_put, name, value)
    else:
        if rules.required:
            yield name, "missing", partial(_clear, name)
        if at.HasField(name) and isinstance(getattr(at, name), Timestamp):
            for time in TIMES:
                yield name, str(time), partial(_put_time, name, time)


def _list_changes(field: Any, rules: Any, length: int) -> Iterator[tuple[str, str, Change]]:
    name, most = field.name, rules.repeated.max_items
    if rules.repeated.min_items:
        yield name, "none", partial(_clear, name)
    if most:
        yield name, "too many", partial(_repeat, name, most + 1 - length)
    if field.enum_type is not None:
        for value in (0, 99, -1):
            yield f"{name}[{length}]", f"enum {value}", partial(_append, name, value)


def _clear(name: str, parent: Any) -> None:
    parent.ClearField(name)


def _put(name: str, value: object, parent: Any) -> None:
    setattr(parent, name, value)


def _put_time(name: str, parts: dict[str, int], parent: Any) -> None:
    getattr(parent, name).CopyFrom(Timestamp(seconds=parts["seconds"], nanos=parts.get("nanos", 0)))


def _repeat(name: str, times: int, parent: Any) -> None:
    getattr(parent, name).extend([getattr(parent, name)[0]] * times)


def _append(name: str, value: int, parent: Any) -> None:
    getattr(parent, name).append(value)


def _wrong_values(field: Any, rules: Any, at: Message) -> Iterator[object]:
    if field.enum_type is not None:
        if rules.enum.defined_only:
            yield from (99, -1, 2**31 - 1)
        yield from rules.enum.not_in
    elif field.type == FieldDescriptor.TYPE_STRING:
        if rules.string.pattern:
            # `$` is the very end here: what comes after a line break counts.
            pattern = re.compile(rules.string.pattern.replace("$", r"\Z"))
            yield from (text for text in TEXTS if not pattern.search(text))
        if rules.string.min_len or rules.required:
            yield ""
        if rules.string.max_len:
            yield "x" * (rules.string.max_len + 1)
            yield "\u989d" * (rules.string.max_len + 1)
        if isinstance(at, Money):
            yield "ZZZ"
    elif field.type in INTEGERS:
        kind: Any = getattr(rules, "int64" if field.type == FieldDescriptor.TYPE_INT64 else "uint32")
        largest = INT64_MAX if field.type == FieldDescriptor.TYPE_INT64 else 2**32 - 1
        if kind.HasField("lte"):
            yield from (kind.lte + 1, largest)
        if kind.HasField("gte") and kind.gte > 0:
            yield kind.gte - 1
        if isinstance(at, Money):
            yield from (-1, -(10**15) - 1, -(2**63))
    elif field.type == FieldDescriptor.TYPE_DOUBLE:
        bounds = rules.double
        if bounds.HasField("lte"):
            yield from (bounds.lte + 0.001, bounds.gte - 0.001, math.nan, math.inf, -math.inf)
