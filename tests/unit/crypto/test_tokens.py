from __future__ import annotations

import copy
import pickle

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from hypothesis import given, settings
from hypothesis import strategies as st

from riskgate_server.crypto.tokens import SealedTokens
from riskgate_server.engine.ports import TokenRefused

SECRET = bytes(range(32))
TOKENS = SealedTokens(SECRET)
PURPOSE = ("ListDecisions", "acme", "ada")


def refused(tokens: SealedTokens, purpose: tuple[str, ...], token: str) -> bool:
    try:
        tokens.open_token(purpose, token)
    except TokenRefused:
        return True
    return False


def test_the_published_example_of_the_cipher_is_met() -> None:
    """RFC 5297, A.2: what the tokens rely on, with a nonce among the associated strings."""
    key = bytes.fromhex("7f7e7d7c7b7a79787776757473727170404142434445464748494a4b4c4d4e4f")
    associated = [
        bytes.fromhex("00112233445566778899aabbccddeeffdeaddadadeaddadaffeeddccbbaa99887766554433221100"),
        bytes.fromhex("102030405060708090a0"),
        bytes.fromhex("09f911029d74e35bd84156c5635688c0"),
    ]
    text = b"this is some plaintext to encrypt using SIV-AES"

    sealed = AESSIV(key).encrypt(text, associated)

    assert sealed.hex() == (
        "7bdb6e3b432667eb06f4d14bff2fbd0fcb900f2fddbe404326601965c889bf17dba77ceb094fa663b7a3f748ba8af829ea64ad544a272e9c485b62a3fd5c0d"
    )


@given(content=st.binary(min_size=1, max_size=4_000), purpose=st.lists(st.text(max_size=9), max_size=4).map(tuple))
@settings(deadline=None)
def test_what_was_sealed_is_opened_for_the_same_purpose_by_every_server(
    content: bytes, purpose: tuple[str, ...]
) -> None:
    token = TOKENS.seal(purpose, content)

    assert SealedTokens(SECRET).open_token(purpose, token) == content
    assert token.isascii()
    assert "=" not in token


def test_a_token_is_for_one_purpose_and_one_key() -> None:
    token = TOKENS.seal(PURPOSE, b"place")

    assert refused(TOKENS, ("ListDecisions", "acme", "bo"), token)
    assert refused(TOKENS, ("ListDecisions", "acmeada", ""), token)
    assert refused(TOKENS, ("ListDecisionsacme", "", "ada"), token)
    assert refused(SealedTokens(bytes(32)), PURPOSE, token)


@pytest.mark.parametrize("token", ["", "A", "AA", "nonsense", "٣" * 60, "a b", "\x00", "=" * 4, "A" * 37, "A" * 8_192])
def test_what_is_no_token_is_refused(token: str) -> None:
    assert refused(TOKENS, PURPOSE, token)


def test_no_character_of_a_token_can_be_changed_left_out_or_added() -> None:
    token = TOKENS.seal(PURPOSE, b"place")

    for at in range(len(token)):
        other = "B" if token[at] == "A" else "A"
        for changed in (
            token[:at] + other + token[at + 1 :],
            token[:at] + token[at + 1 :],
            token[:at] + " " + token[at:],
        ):
            assert refused(TOKENS, PURPOSE, changed)
    assert refused(TOKENS, PURPOSE, token + "=")
    assert refused(TOKENS, PURPOSE, token + "\n")


def test_the_same_content_is_never_the_same_token_twice() -> None:
    assert len({TOKENS.seal(PURPOSE, b"place") for _ in range(50)}) == 50


def test_the_key_shows_nowhere() -> None:
    assert repr(TOKENS) == "SealedTokens(***)"
    with pytest.raises(TypeError):
        copy.copy(TOKENS)
    with pytest.raises(TypeError):
        pickle.dumps(TOKENS)
