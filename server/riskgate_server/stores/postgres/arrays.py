"""
Whole columns as one parameter of a statement, in PostgreSQL's binary form of arrays.

Many rows go in one statement as `unnest` of an array per column. The driver's own way takes every element's type
anew; a column has one type, so its array is put together here at a third of the cost.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

_EMPTY: Final = Struct("!iii")
"""Dimensions, whether there are nulls, type of the elements."""
_HEAD: Final = Struct("!iiiii")
"""The same, then length and lower bound of the one dimension."""
_LENGTH: Final = Struct("!i")
_NUMBER: Final = Struct("!iq")

_BYTEA: Final = 17
_INT8: Final = 20
_TEXT: Final = 25


class Texts(list[str]):
    """A text[] parameter."""

    __slots__ = ()


class Numbers(list[int]):
    """A bigint[] parameter."""

    __slots__ = ()


class Blobs(list[bytes]):
    """A bytea[] parameter."""

    __slots__ = ()


def _array(element: int, count: int, body: bytes) -> bytes:
    if not count:
        return _EMPTY.pack(0, 0, element)
    return _HEAD.pack(1, 0, element, count, 1) + body


def _pieces(values: list[bytes]) -> bytes:
    parts: list[bytes] = []
    length = _LENGTH.pack
    for value in values:
        parts.append(length(len(value)))
        parts.append(value)
    return b"".join(parts)


class _TextsDumper(Dumper):
    format = Format.BINARY
    oid = 1009

    def dump(self, obj: Texts) -> Buffer:
        """Return the array."""
        return _array(_TEXT, len(obj), _pieces([text.encode() for text in obj]))


class _NumbersDumper(Dumper):
    format = Format.BINARY
    oid = 1016

    def dump(self, obj: Numbers) -> Buffer:
        """Return the array."""
        pack = _NUMBER.pack
        return _array(_INT8, len(obj), b"".join([pack(8, number) for number in obj]))


class _BlobsDumper(Dumper):
    format = Format.BINARY
    oid = 1001

    def dump(self, obj: Blobs) -> Buffer:
        """Return the array."""
        return _array(_BYTEA, len(obj), _pieces(obj))


def register(context: AdaptContext) -> None:
    """
    Give a connection these parameters, and one type to every number and every text.

    The driver would choose among three types of integer by the value, and the server would plan each anew.
    """
    adapters = context.adapters
    adapters.register_dumper(Texts, _TextsDumper)
    adapters.register_dumper(Numbers, _NumbersDumper)
    adapters.register_dumper(Blobs, _BlobsDumper)
    adapters.register_dumper(int, Int8BinaryDumper)
    adapters.register_dumper(str, StrBinaryDumper)
