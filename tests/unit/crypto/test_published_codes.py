"""One-time codes are those of the RFCs, as every authenticator app makes them."""

from __future__ import annotations

import base64
from typing import Any, Final

import pyotp
import pytest

from riskgate_server.crypto.derived import DerivedSecrets
from tests.vectors import load, published

pytestmark = published

SECRETS: Final = DerivedSecrets({1: bytes(32)})
SEED: Final = b"12345678901234567890"
SECOND_US: Final = 1_000_000


def of_rfc_6238() -> list[dict[str, Any]]:
    """The cases of appendix B that are ours: SHA-1."""
    return [case for case in load("rfc/rfc6238_totp.json").get("vectors", []) if case["algorithm"] == "SHA1"]


def test_codes_by_count_are_those_of_rfc_4226() -> None:
    expected = [case["hotp"] for case in load("rfc/rfc4226_hotp.json")["vectors"]]

    assert [pyotp.HOTP(base64.b32encode(SEED).decode()).at(count) for count in range(10)] == expected


@pytest.mark.parametrize("case", of_rfc_6238(), ids=lambda case: str(case["unix_time"]))
def test_a_code_of_rfc_6238_is_right_in_its_step_and_the_two_beside_it(case: dict[str, Any]) -> None:
    step = int(case["T_hex"], 16)
    # The first case lies too near the epoch to be asked for two steps before it.
    steps_away = [away for away in range(-2, 3) if step + away > 0]

    found = {
        away: SECRETS.totp_step(SEED, case["totp6"], (case["unix_time"] + 30 * away) * SECOND_US) for away in steps_away
    }

    assert found == {away: step if abs(away) < 2 else None for away in steps_away}


def test_there_are_six_of_them() -> None:
    assert len(of_rfc_6238()) == 6
