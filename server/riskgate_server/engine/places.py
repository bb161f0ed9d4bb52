"""
Where a reader is in what several writers wrote: a position in the lane of each, and the tokens that stand for it.

Positions count everybody's entries, so a token is sealed: a tenant could read the others' volume from it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from riskgate_server.domain.errors import FieldViolation, InvalidRequest
from riskgate_server.engine.ports import TokenRefused, Tokens

Places = Mapping[int, int]
"""Writer → position in its lane. A lane that is not named is at its beginning."""

TOKEN_CHARACTERS_MAX: Final = 8_192
"""What the contract has room for."""

_VERSION: Final = "1"
"""Of what is sealed: part of every purpose, so that a later form is never read as this one."""
_PLACE: Final = struct.Struct(">HQ")
"""Writer and position. As long for a small position as for a large one, or the length would tell what is sealed."""


class PlaceTokens:
    """Writes and reads the tokens of pages and watches. What a token is for is bound to it: the call and the tenant."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def token(self, purpose: tuple[str, ...], places: Places) -> str:
        """Return the token of some places."""
        packed = b"".join(_PLACE.pack(*place) for place in places.items())
        # Also without a place there is something to seal.
        return self._tokens.seal((_VERSION, *purpose), b"\0" + packed)

    def places(self, purpose: tuple[str, ...], token: str, field: str) -> dict[int, int]:
        """
        Return the places of a token; none for an empty one.

        Raises:
            InvalidRequest: it was not made here, or for another call or tenant; names the field.
        """
        if not token:
            return {}
        try:
            return dict(_PLACE.iter_unpack(self._tokens.open_token((_VERSION, *purpose), token)[1:]))
        except (TokenRefused, struct.error):
            raise token_invalid(field, "was not made by this call") from None


def token_invalid(field: str, description: str) -> InvalidRequest:
    """Return the refusal of a token."""
    return InvalidRequest("TOKEN_INVALID", f"the token {description}", FieldViolation(field, description))
