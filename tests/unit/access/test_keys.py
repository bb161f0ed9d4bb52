from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskgate_server.engine.callers import (
    KEY_ID_ALPHABET,
    caller_uri,
    format_api_key,
    key_id_of,
    parse_api_key,
    parse_caller_uri,
    secret_digest,
    secret_matches,
)

SECRET = bytes(range(32))
KEY_ID = "0123456789ab"
KEY = format_api_key(KEY_ID, SECRET)


@given(st.binary(min_size=12, max_size=12), st.binary(min_size=32, max_size=32))
def test_a_key_reads_back_as_it_was_written(random_bytes: bytes, secret: bytes) -> None:
    text = format_api_key(key_id_of(random_bytes), secret)

    assert parse_api_key(text) == (key_id_of(random_bytes), secret)
    assert len(text) == len("rgk_") + 12 + 1 + 43


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rgk_",
        KEY[:-1],
        KEY + "A",
        KEY + "=",
        KEY + "\n",
        " " + KEY,
        KEY.upper(),
        KEY.replace("rgk", "sk"),
        KEY.replace("0123", "012i"),
        KEY[:-1] + "é",
        KEY.replace("_", "-", 1),
        f"{KEY},{KEY}",
        "rgk_" + "0" * 10_000,
    ],
)
def test_what_is_not_exactly_a_key_is_none(text: str) -> None:
    assert parse_api_key(text) is None


def test_a_key_has_one_spelling_only() -> None:
    """The last of 43 characters carries two bits that belong to no byte."""
    same_bytes = [
        KEY[:-1] + last
        for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        if base64.urlsafe_b64decode(KEY[17:-1] + last + "=") == SECRET
    ]

    assert len(same_bytes) == 4
    assert [text for text in same_bytes if parse_api_key(text)] == [KEY]


def test_key_ids_use_the_whole_alphabet_evenly() -> None:
    ids = "".join(key_id_of(bytes([number] * 12)) for number in range(256))

    assert {ids.count(character) for character in KEY_ID_ALPHABET} == {256 * 12 // 32}


def test_a_secret_matches_its_own_digest_only() -> None:
    assert secret_matches(SECRET, secret_digest(SECRET))
    assert not secret_matches(SECRET[:-1] + b"\0", secret_digest(SECRET))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://riskgate/tenant/t/caller/",
        "spiffe://riskgate/tenant//caller/c",
        "spiffe://riskgate/tenant/t/caller/c/",
        "spiffe://riskgate/tenant/t/caller/c\n",
        "spiffe://riskgate/tenant/t/caller/c?x=1",
        "spiffe://riskgate/tenant/t/x/caller/c",
        "spiffe://riskgate/tenant/../caller/c",
        "spiffe://riskgate/tenant/T/caller/c",
        "spiffe://other/tenant/t/caller/c",
        "SPIFFE://riskgate/tenant/t/caller/c",
        "spiffe://riskgate/caller/c/tenant/t",
        "spiffe://riskgate/tenant/t/caller/" + "c" * 64,
        "spiffe://riskgate/tenant/t/caller/%63",
    ],
)
def test_a_uri_that_is_not_exactly_a_callers_names_nobody(uri: str) -> None:
    assert parse_caller_uri(uri) is None


def test_a_callers_uri_reads_back() -> None:
    assert parse_caller_uri(caller_uri("bank-1", "mobile.backend_2")) == ("bank-1", "mobile.backend_2")
