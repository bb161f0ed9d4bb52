"""
What comes from a device is read strictly: one spelling for each value, and bounds before anything is built.

Lenient readers are how two programs see two things in the same bytes: names that occur twice, padding that may or may
not be there, text behind the end. None of that gets past here.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final, NoReturn

from riskgate_server.domain.errors import FieldViolation, InvalidRequest

JSON_DEPTH_MAX: Final = 8
_INTEGER_DIGITS_MAX: Final = 16
"""More than any number in a proof has; Python's own limit is about 4300."""

_STRUCTURE: Final = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)


class Unreadable(Exception):
    """The bytes are not what they must be. `what` says so without quoting them."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def malformed(field: str, what: str) -> InvalidRequest:
    """Return the refusal of a request whose `field` cannot be read."""
    return InvalidRequest("PROOF_MALFORMED", f"{field}: {what}", FieldViolation(field, what))


def json_object(text: bytes, *, bytes_max: int) -> dict[str, Any]:
    """
    Return the object that `text` is, as RFC 8259 has it: UTF-8 without a mark, no name twice, at most 8 levels.

    Raises:
        Unreadable: it is longer, deeper, or not one.
    """
    if len(text) > bytes_max:
        raise Unreadable(f"more than {bytes_max} bytes")
    _check_depth(text)
    try:
        # Not json.loads(bytes): that guesses the encoding.
        value = json.loads(
            text.decode("utf-8", "strict"),
            object_pairs_hook=_named_once,
            parse_constant=_refused_constant,
            parse_int=_bounded_integer,
        )
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise Unreadable("not JSON in UTF-8") from None
    if type(value) is not dict:
        raise Unreadable("not a JSON object")
    return value


def base64url(text: object, *, bytes_max: int) -> bytes:
    """
    Return the bytes of Base64url without padding (RFC 4648, 5; RFC 7515, 2).

    Raises:
        Unreadable: it is not text of that alphabet, has padding or stray bits, or stands for more bytes.
    """
    if type(text) is not str or not _BASE64URL.fullmatch(text):
        raise Unreadable("not Base64url without padding")
    if len(text) * 3 // 4 > bytes_max:
        raise Unreadable(f"more than {bytes_max} bytes")
    try:
        value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise Unreadable("not Base64url without padding") from None
    # The last character may carry bits that stand for nothing: four spellings of the same bytes.
    if base64.urlsafe_b64encode(value).rstrip(b"=") != text.encode():
        raise Unreadable("not Base64url without padding")
    return value


def text_of(value: object, what: str) -> str:
    """
    Return the text that `value` is.

    Raises:
        Unreadable: it is something else, or holds half a character.
    """
    if type(value) is not str:
        raise Unreadable(f"{what} must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unreadable(f"{what} must be text") from None
    return value


def _check_depth(text: bytes) -> None:
    """Count brackets outside strings: the reader behind would answer too many with a RecursionError."""
    depth, quoted = 0, False
    for found in _STRUCTURE.finditer(text):
        mark = found.group()
        if mark == b'"':
            quoted = not quoted
        elif quoted or len(mark) > 1:
            continue
        elif mark in b"[{":
            depth += 1
            if depth > JSON_DEPTH_MAX:
                raise Unreadable(f"more than {JSON_DEPTH_MAX} levels of JSON")
        else:
            depth -= 1


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) != len(pairs):
        raise Unreadable("a name occurs twice")
    return named


def _refused_constant(_: str) -> NoReturn:
    raise Unreadable("not JSON in UTF-8")


def _bounded_integer(digits: str) -> int:
    if len(digits) > _INTEGER_DIGITS_MAX:
        raise Unreadable("a number is too long")
    return int(digits)
