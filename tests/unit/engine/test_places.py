from __future__ import annotations

import pytest

from riskgate_server.crypto.tokens import SealedTokens
from riskgate_server.domain.errors import InvalidRequest
from riskgate_server.engine.places import TOKEN_CHARACTERS_MAX, PlaceTokens
from riskgate_server.engine.storing import WRITERS_MAX

PURPOSE = ("WatchDecisions", "acme", "")
SEALED = SealedTokens(bytes(32))
TOKENS = PlaceTokens(SEALED)


@pytest.mark.parametrize("places", [{}, {0: 1}, {0: 7, 3: 2**62, 255: 1}])
def test_places_come_back_from_their_token(places: dict[int, int]) -> None:
    assert TOKENS.places(PURPOSE, TOKENS.token(PURPOSE, places), "page_token") == places


def test_an_empty_token_is_no_place() -> None:
    assert TOKENS.places(PURPOSE, "", "page_token") == {}


def test_a_token_of_as_many_writers_as_may_be_has_room_in_the_contract() -> None:
    places = dict.fromkeys(range(WRITERS_MAX), 2**63 - 1)

    assert len(TOKENS.token(PURPOSE, places)) <= TOKEN_CHARACTERS_MAX


@pytest.mark.parametrize("content", [bytes(10), bytes(12), bytes(32)])
def test_a_token_of_something_else_is_refused_by_its_field(content: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TOKENS.places(PURPOSE, SEALED.seal(("1", *PURPOSE), content), "resume_token")

    assert caught.value.reason == "TOKEN_INVALID"
    assert [violation.field for violation in caught.value.violations] == ["resume_token"]


def test_the_length_of_a_token_does_not_tell_the_position() -> None:
    assert len({len(TOKENS.token(PURPOSE, {0: position})) for position in (1, 200, 70_000, 2**40)}) == 1
