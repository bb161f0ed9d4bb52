"""What `docs/devices.md` tells those who write apps is what the engine asks and takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Final

from riskgate_server.crypto.proofs import tokens
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import Algorithm, Fault, Platform
from riskgate_server.domain.identity.passkey_options import creation_options
from riskgate_server.relying_party import read_policy, read_trust
from riskgate_server.settings import Settings
from tests.style.paths import ROOT
from tests.unit.crypto.proofs.asking import ASKED, POLICY

PAGE: Final = (ROOT / "docs" / "devices.md").read_text("utf-8")


def test_the_example_is_what_is_signed() -> None:
    (shown,) = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)

    assert shown == challenges.signing_input(ASKED).decode()


def test_the_challenge_can_be_computed_as_the_page_says() -> None:
    asked = json.loads(challenges.signing_input(ASKED))
    purchase = asked["transaction"]
    parts = [
        asked["tenant_id"].encode(),
        purchase["transaction_id"].encode(),
        purchase["amount_minor"].to_bytes(8, "big"),
        purchase["currency"].encode(),
        purchase["payee_id"].encode(),
        purchase["account_id"].encode(),
        purchase["instalment_count"].to_bytes(8, "big"),
    ]
    digest = hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
    nonce = base64.urlsafe_b64decode(asked["nonce"] + "=")

    assert asked["digest"] == challenges.base64url(digest)
    assert asked["challenge"] == challenges.base64url(
        hashlib.sha256(b"riskgate/transaction" + b"\x01" + nonce + digest).digest()
    )


def test_every_platform_and_algorithm_is_named() -> None:
    assert [platform.name for platform in Platform if f"`{platform.name}`" not in PAGE] == []
    names = {Algorithm.EDDSA: "EdDSA"}
    assert [one.name for one in Algorithm if names.get(one, one.name) not in PAGE] == []
    assert tokens.TYPE in PAGE
    assert POLICY.audience in PAGE


def test_what_no_setting_switches_on_is_said_not_to_be_taken() -> None:
    """The code can do both; who reads the page must not count on it."""
    bank = Settings(data="data", rp_id="bank.example", origins="https://bank.example", attestation="android")
    options = creation_options(
        read_policy(bank), challenge=bytes(32), user_handle=b"ada", user_name="Ada", timeout_seconds=600
    )

    assert read_policy(bank).payment_instrument is None
    assert read_trust(bank).passkey_roots == {}
    assert json.loads(options)["attestation"] == "none"
    words = " ".join(PAGE.split())
    assert "a passkey reaches level 2: browsers are asked for no attestation" in words
    assert "Secure Payment Confirmation (`payment.get`) is not taken" in words


def test_reasons_of_refusals_and_the_settings_to_look_at_are_what_they_are_called() -> None:
    settings, reasons = PAGE.partition("## Settings")[2].split("| `reason` | look at |")
    told = re.findall(r"^\| (`[A-Z_`, ]+) \| (.*) \|$", reasons, re.MULTILINE)
    named = {reason for cell, _ in told for reason in re.findall(r"\w+", cell)}

    assert len(named) > 10
    assert named <= {fault.name for fault in Fault}
    assert {name for _, cell in told for name in re.findall(r"RISKGATE_\w+", cell)} <= set(
        re.findall(r"RISKGATE_\w+", settings)
    )
