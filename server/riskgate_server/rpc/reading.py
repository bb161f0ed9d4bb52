"""What the bytes of a request are: a message of its type, within the bounds its proto declares, or a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

import protovalidate
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from riskgate_server.domain.errors import FieldViolation, InvalidRequest
from riskgate_server.rpc.wording import in_words, not_taken

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""What gRPC reads at all, and so what a request of many items may be."""

REQUEST_BYTES_MAX: Final = 64 * 1024
"""Any other request. Its fields need a tenth; the rest is unknown ones, which cost many times their size in memory."""


class RequestReader:
    """Reads requests by the rules of the contract."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()

    def decode(self, message_class: type[Message], raw: bytes) -> Message:
        """
        Return the message in `raw`, well formed and within the contract's bounds.

        Raises:
            InvalidRequest: it is not.
        """
        message = parsed(message_class, raw)
        self.validate(message)
        return message

    def validate(self, message: Message) -> None:
        """
        Check a message against the rules its proto declares.

        Raises:
            InvalidRequest: naming every field that breaks one.
        """
        found = [FieldViolation(_path(v.proto.field.elements), _rule(v)) for v in self._violations(message)]
        if found:
            raise _fields_invalid(found)

    def sort_out(self, message: Message, items: str) -> dict[int, InvalidRequest]:
        """
        Check a message, and return what is wrong with single ones of its `items` by their place.

        All in one question: asked one by one, a purchase of a hundred would cost nearly twice as much to check.

        Raises:
            InvalidRequest: naming every field that breaks a rule outside of the items.
        """
        spoiled: dict[int, list[FieldViolation]] = {}
        found = []
        for violation in self._violations(message):
            first, *rest = violation.proto.field.elements
            if first.field_name == items and rest:
                spoiled.setdefault(first.subscript.value, []).append(FieldViolation(_path(rest), _rule(violation)))
            else:
                found.append(FieldViolation(_path([first, *rest]), _rule(violation)))
        if found:
            raise _fields_invalid(found)
        return {place: _fields_invalid(violations) for place, violations in spoiled.items()}

    def _violations(self, message: Message) -> list[Any]:
        return self._validator.collect_violations(message)


def parsed(message_class: type[Message], raw: bytes) -> Message:
    """
    Return the message in `raw`, whatever its fields are.

    Raises:
        InvalidRequest: it is too large, or none of this type.
    """
    bytes_max = request_bytes_max(message_class.DESCRIPTOR)
    if len(raw) > bytes_max:
        raise InvalidRequest("MESSAGE_TOO_LARGE", f"the request has {len(raw)} bytes, more than {bytes_max}")
    try:
        return message_class.FromString(raw)
    except DecodeError:
        raise InvalidRequest("MESSAGE_MALFORMED", "the bytes are not a message of this type") from None


@cache
def request_bytes_max(request: Descriptor) -> int:
    """Return how large a request may be: one that carries many messages as large as gRPC takes, any other little."""
    many = any(field.is_repeated and field.message_type for field in request.fields)
    return MESSAGE_BYTES_MAX if many else REQUEST_BYTES_MAX


def _rule(violation: Any) -> str:
    """Write the rule a field breaks: protovalidate's own words, but where they are of no use."""
    if violation.proto.rule_id == "string.pattern":
        return in_words(violation.rule_value)
    if violation.proto.rule_id == "enum.not_in":
        return not_taken(violation.proto.field.elements[-1].field_name, violation.field_value)
    return str(violation.proto.message)


def _fields_invalid(found: Sequence[FieldViolation]) -> InvalidRequest:
    return InvalidRequest("FIELD_INVALID", "one or more fields are invalid", *found)


def _path(elements: Iterable[Any]) -> str:
    """Write a violation's path as the proto does: `checks[3].amount.currency_code`."""
    parts = []
    for element in elements:
        index = f"[{element.subscript.value}]" if element.subscript else ""
        parts.append(f"{element.field_name}{index}")
    return ".".join(parts)
