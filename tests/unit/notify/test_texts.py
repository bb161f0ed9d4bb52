"""Texts of messages: complete, in both languages, and filled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.engine import otp
from riskgate_server.engine.envelopes import decimal_amount, printable
from riskgate_server.notify.texts import LANGUAGES, Texts, TextsInvalid, own_texts

PURCHASE = {"code": "012345", "amount": "12.30", "currency": "CNY", "payee": "{code} {0.__class__}"}
ENGINE = Path(otp.__file__).parent


def test_there_is_a_text_for_every_code_and_every_notice() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in ENGINE.glob("*.py"))
    notices = set(re.findall(r'_?tell\(\s*work,[^"]*?"([A-Z_]+)"\)', sources))

    assert {"FACTOR_BOUND", "FACTOR_REVOKED", "RECOVERY_CODES_MADE"} <= notices
    assert notices | {f"CODE_{purpose.name}" for purpose in Purpose} <= own_texts().templates


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("template", sorted(own_texts().templates))
def test_every_text_is_filled_in(template: str, language: str) -> None:
    text = own_texts()(template, language, PURCHASE)

    if template.startswith("CODE_"):
        assert "012345" in text
    if template == "CODE_TRANSACTION":
        # What a payee is called is not read as a text of ours.
        assert "CNY 12.30" in text
        assert "{code} {0.__class__}" in text


@pytest.mark.parametrize(
    "source",
    [
        "A: {en: only}",
        "A: {en: one, zh-Hans: two, fr: trois}",
        "A: {en: '{code}', zh-Hans: '{amount}'}",
        "A: {en: '{code.real}', zh-Hans: '{code.real}'}",
        "A: {en: '{0}', zh-Hans: '{0}'}",
        "A: {en: '{code!r}', zh-Hans: '{code!r}'}",
        "A: {en: '{code', zh-Hans: '{code'}",
        f"A: {{en: {'x' * 161}, zh-Hans: x}}",
        "A: {en: '', zh-Hans: x}",
        "- A",
        "{",
    ],
)
def test_texts_that_are_no_good_are_refused(source: str) -> None:
    with pytest.raises(TextsInvalid):
        Texts(source)


@pytest.mark.parametrize(
    ("minor", "currency", "shown"),
    [
        (1, "CNY", "0.01"),
        (123_456, "CNY", "1234.56"),
        (500, "JPY", "500"),
        (1_234, "KWD", "1.234"),
        (10**15, "USD", "10000000000000.00"),
    ],
)
def test_an_amount_has_the_decimals_of_its_currency(minor: int, currency: str, shown: str) -> None:
    assert decimal_amount(minor, currency) == shown


@pytest.mark.parametrize(
    ("payee", "shown"),
    [
        ("晨光超市", "晨光超市"),
        ("Shop\u2028Your code", "Shop Your code"),
        ("\u202egro.knab\u202c", "gro.knab"),
        ("x" * 64, "x" * 39 + "…"),
    ],
)
def test_a_payee_cannot_break_a_text(payee: str, shown: str) -> None:
    assert printable(payee) == shown
