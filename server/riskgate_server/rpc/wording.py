"""The contract's rules in words, where the library has none: what whoever was refused can do something with."""

from __future__ import annotations

from typing import Final

_ID: Final = "begin with a letter or digit and hold at most 64 of letters, digits, . _ : -"

PATTERNS: Final = {
    "^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$": f"must {_ID}",
    "^([A-Za-z0-9][A-Za-z0-9._:-]{0,63})?$": f"must be empty, or {_ID}",
    "^[A-Z][A-Z0-9_]{0,63}$": "must begin with a capital letter and hold at most 64 of capital letters, digits, _",
    "^[a-z][a-z0-9_]{0,63}$": "must begin with a small letter and hold at most 64 of small letters, digits, _",
    "^[a-z][a-z_]*(:[a-z][a-z_]*)*$": "must be words of small letters and _, joined by colons, such as risk:check",
    "^[A-Z]{3}$": "must be three capital letters, such as CNY",
    "^([A-Z]{2})?$": "must be empty, or two capital letters, such as CN",
    "^([0-9]{4})?$": "must be empty, or four digits",
    "^[^\\x00-\\x1f\\x7f]*$": "must hold no control characters",
    "^[0-9A-Fa-f:.]*$": "must be an IPv4 or IPv6 address",
    "^[0-9]{6}$": "must be six digits",
    "^[0-9a-f]{64}$": "must be 64 digits and letters a to f",
    "^[A-Za-z0-9 -]{16,32}$": "must hold 16 to 32 of letters, digits, spaces, -",
    "^[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]+$": "must be a compact JWS: three parts of Base64url and dots",
    "^(\\+|00)[0-9 ().-]{6,28}$": "must be a phone number in international form, such as +86 138 1234 5678",
}


def in_words(pattern: str) -> str:
    """Return what a text must be to match one of the contract's patterns."""
    return PATTERNS[pattern]


NOT_TAKEN: Final = {("purpose", 1): "must be for something else: a recovery code buys nothing"}
"""By field and number: values of enums that are not taken somewhere. 0 is never taken: it says nothing."""


def not_taken(field: str, number: int) -> str:
    """Return why a value of an enum that the contract defines is not taken."""
    return NOT_TAKEN[field, number] if number else "must not be unspecified"
