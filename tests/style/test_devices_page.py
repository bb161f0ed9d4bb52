"""What `docs/devices.md` tells those who write apps is what the engine asks and takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Final

from riskgate_server.crypto.proofs import tokens
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import Algorithm, Platform
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
