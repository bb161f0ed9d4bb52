"""
CBOR as authenticators write it (CTAP2 canonical form, less its order): measured before it is decoded.

A decoder that believes a length allocates it, and one that follows nesting recurses. So the bytes are walked first:
what is refused here has cost nothing.
"""

from __future__ import annotations

from typing import Any, Final

import cbor2

from riskgate_server.crypto.proofs.reading import Unreadable

DEPTH_MAX: Final = 8
ITEMS_MAX: Final = 256

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_KEYS: Final = frozenset({_UNSIGNED, _NEGATIVE, _TEXT})
_SIMPLE_VALUES: Final = frozenset({20, 21, 22})
"""False, true and null. No floats: nothing in a proof is one."""
_LENGTH_FOLLOWS: Final = {24: 1, 25: 2, 26: 4, 27: 8}


def decode(data: bytes) -> Any:
    """
    Return the one item that `data` is, to its last byte.

    Raises:
        Unreadable: it is more or less than one, too deep, or has a tag, a float, an open length or a key twice.
    """
    if item_end(data, 0) != len(data):
        raise Unreadable("bytes after the end of CBOR")
    return _decoded(data)


def decode_first(data: bytes, start: int) -> tuple[Any, int]:
    """Return the item at `start` and where it ends. Raises Unreadable like `decode`."""
    end = item_end(data, start)
    return _decoded(data[start:end]), end


def item_end(data: bytes, start: int) -> int:
    """Return where the item at `start` ends. Raises Unreadable like `decode`, but for keys that occur twice."""
    return _Walk(data).end_of(start, 1)


class _Walk:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._items = 0

    def end_of(self, at: int, depth: int, *, key: bool = False) -> int:
        self._items += 1
        if depth > DEPTH_MAX or self._items > ITEMS_MAX:
            raise Unreadable("CBOR too deep or too large")
        kind, value, at = self._head(at)
        if key and kind not in _KEYS:
            raise Unreadable("a key of CBOR that is neither a number nor text")
        if kind in {_UNSIGNED, _NEGATIVE}:
            return at
        if kind in {_BYTES, _TEXT}:
            if value > len(self._data) - at:
                raise Unreadable("CBOR cut short")
            return at + value
        if kind == _ARRAY:
            for _ in range(value):
                at = self.end_of(at, depth + 1)
            return at
        if kind == _MAP:
            for _ in range(value):
                at = self.end_of(at, depth + 1, key=True)
                at = self.end_of(at, depth + 1)
            return at
        if kind == _SIMPLE and value in _SIMPLE_VALUES:
            return at
        raise Unreadable("CBOR that no authenticator writes")

    def _head(self, at: int) -> tuple[int, int, int]:
        """Return the kind of the item at `at`, its value or length, and where its content begins."""
        if at >= len(self._data):
            raise Unreadable("CBOR cut short")
        kind, short = self._data[at] >> 5, self._data[at] & 31
        at += 1
        if short < 24:  # noqa: PLR2004  RFC 8949, 3: below 24 it is the value itself
            return kind, short, at
        width = _LENGTH_FOLLOWS.get(short, 0)
        if not width or kind == _SIMPLE:
            raise Unreadable("CBOR that no authenticator writes")
        if width > len(self._data) - at:
            raise Unreadable("CBOR cut short")
        return kind, int.from_bytes(self._data[at : at + width], "big"), at + width


def _decoded(data: bytes) -> Any:
    try:
        return cbor2.loads(data, allow_duplicate_keys=False)
    except (cbor2.CBORDecodeError, ValueError):
        # Its UTF-8 is wrong, or a key occurs twice.
        raise Unreadable("not CBOR") from None
