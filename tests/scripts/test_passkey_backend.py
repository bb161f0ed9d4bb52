"""The backend of the passkey page, without a browser and without a server behind it: whom it answers at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection

import httpx
import pytest
from scripts.passkey_page.shop import Shop
from scripts.passkey_page.web import BODY_BYTES_MAX, Page

from tests.scripts.answering import answering


@pytest.fixture
def page() -> Iterator[Page]:
    with Page(0) as made, answering(made):
        yield made


@pytest.fixture
def http(page: Page) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"http://127.0.0.1:{page.server_port}",
        headers={"Host": page.host, "Origin": page.origin},
        trust_env=False,
    ) as client:
        yield client


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["reason"]


def test_the_backend_answers_its_own_page_only(http: httpx.Client, page: Page) -> None:
    elsewhere = {"Origin": f"http://127.0.0.1:{page.server_port}"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    said = [
        refusal(http.post("/api/session", json={"customer": "ada"}, headers=elsewhere)),
        refusal(http.post("/api/session", content=b"{}", headers=form)),
        refusal(http.post("/api/session", json={"customer": "ada"}, headers={"Host": "bank.example"})),
    ]

    assert said == [(403, "FOREIGN_ORIGIN"), (415, "JSON_EXPECTED"), (403, "FOREIGN_HOST")]


def test_nobody_who_is_not_logged_in_is_served(http: httpx.Client, page: Page) -> None:
    page.shop = Shop(None)  # type: ignore[arg-type]  # nobody gets that far
    paths = ("passkeys/begin", "passkeys/finish", "purchases", "approvals/begin", "approvals/finish")

    said = {refusal(http.post(f"/api/{path}", json={})) for path in paths}

    assert said == {(401, "NOT_LOGGED_IN")}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", (400, "NOT_JSON")),
        (b"[" * 60_000, (400, "NOT_JSON")),
        (b"[]", (400, "FIELD_MISSING")),
        (b'{"customer": 1}', (400, "FIELD_MISSING")),
        (b'{"customer": "eve"}', (404, "NO_SUCH_CUSTOMER")),
    ],
    ids=["no JSON", "deep", "no object", "no text", "nobody"],
)
def test_what_the_page_would_never_send_is_refused(http: httpx.Client, body: bytes, said: tuple[int, str]) -> None:
    answered = refusal(http.post("/api/session", content=body, headers={"Content-Type": "application/json"}))

    assert answered == said


@pytest.mark.parametrize("length", ["", "-1", "1e3", str(BODY_BYTES_MAX + 1)])
def test_a_body_of_no_or_too_much_length_is_not_read(page: Page, length: str) -> None:
    with closing(HTTPConnection("127.0.0.1", page.server_port)) as connection:
        connection.putrequest("POST", "/api/session", skip_host=True)
        for name, value in (("Host", page.host), ("Origin", page.origin), ("Content-Length", length)):
            connection.putheader(name, value)
        connection.endheaders()

        response = connection.getresponse()
        assert (response.status, json.load(response)) == (413, {"reason": "BODY_TOO_LARGE"})
