"""What an operator may set of the gateway, and what does not fit together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from riskgate_server.notify.apprise import AppriseServices
from riskgate_server.notify.choice import open_gateway
from riskgate_server.notify.outbox import FileOutbox
from riskgate_server.notify.refusals import GatewayUnusable
from riskgate_server.notify.webhook import Webhook
from tests.far_end import WRITTEN_SECRET

URL = "https://gateway.example/?token=t0ken-5f1e"


def choose(folder: Path, kind: Any, **given: Any) -> Any:
    parts: dict[str, Any] = {
        "outbox": folder / "in-clear", "url": "", "secrets": "", "authorities": "", "seconds": 1,
        "driven_by_data": False,
    }  # fmt: skip
    return open_gateway(kind, **(parts | given))


def private(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_each_kind_of_gateway_is_opened(tmp_path: Path) -> None:
    secrets = private(tmp_path / "secrets", WRITTEN_SECRET)
    addresses = private(tmp_path / "addresses", "SMS json://127.0.0.1/{destination}")

    assert isinstance(choose(tmp_path, "file"), FileOutbox)
    assert isinstance(choose(tmp_path, "webhook", url=URL, secrets=secrets), Webhook)
    assert isinstance(choose(tmp_path, "apprise", secrets=addresses), AppriseServices)


@pytest.mark.parametrize("kind", ["webhook", "apprise"])
def test_where_time_is_what_events_say_no_phone_is_reached(tmp_path: Path, kind: str) -> None:
    """A code would be good for as long as whoever sends events likes."""
    with pytest.raises(GatewayUnusable, match=f"^the gateway is {kind} and the clock data"):
        choose(tmp_path, kind, driven_by_data=True)

    assert isinstance(choose(tmp_path, "file", driven_by_data=True), FileOutbox)


def test_a_file_with_codes_in_clear_is_not_left_beside_a_real_gateway(tmp_path: Path) -> None:
    secrets = private(tmp_path / "secrets", WRITTEN_SECRET)
    (tmp_path / "in-clear").write_text("{}\n")

    with pytest.raises(GatewayUnusable, match="in-clear has numbers and codes in clear"):
        choose(tmp_path, "webhook", url=URL, secrets=secrets)


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        ("file", {"url": URL}, "RISKGATE_GATEWAY_URL and RISKGATE_GATEWAY_AUTHORITIES are for the webhook"),
        (
            "file",
            {"authorities": "ca.pem"},
            "RISKGATE_GATEWAY_URL and RISKGATE_GATEWAY_AUTHORITIES are for the webhook",
        ),
        ("file", {"secrets": "secrets"}, "--gateway-secrets is set"),
        ("webhook", {"url": URL}, "--gateway-secrets is not set"),
        ("webhook", {"secrets": "good"}, "RISKGATE_GATEWAY_URL is not set"),
        ("webhook", {"url": "gateway.example", "secrets": "good"}, "RISKGATE_GATEWAY_URL: must begin with https://"),
        ("webhook", {"url": URL, "secrets": "absent"}, "--gateway-secrets: FILE: No such file"),
        ("webhook", {"url": URL, "secrets": "empty"}, "--gateway-secrets: FILE: 0 secrets"),
        ("webhook", {"url": URL, "secrets": "open"}, "--gateway-secrets: FILE: open to other users"),
        ("webhook", {"url": URL, "secrets": "bytes"}, "--gateway-secrets: FILE: not UTF-8 text"),
        ("webhook", {"url": URL, "secrets": "addresses"}, "--gateway-secrets: FILE: line 1: no secret"),
        (
            "webhook",
            {"url": URL, "secrets": "good", "authorities": "empty"},
            "RISKGATE_GATEWAY_AUTHORITIES: FILE: no certificates",
        ),
        ("apprise", {}, "--gateway-secrets is not set"),
        ("apprise", {"secrets": "good"}, "--gateway-secrets: FILE: line 1: not SMS"),
        ("apprise", {"secrets": "addresses", "url": URL}, "RISKGATE_GATEWAY_URL and RISKGATE_GATEWAY_AUTHORITIES are"),
    ],
)
def test_what_does_not_fit_together_is_refused_and_no_secret_repeated(
    tmp_path: Path, kind: str, given: dict[str, str], told: str
) -> None:
    """And what is wrong is named as it was set, and nothing else."""
    private(tmp_path / "good", WRITTEN_SECRET)
    private(tmp_path / "open", WRITTEN_SECRET, 0o640)
    private(tmp_path / "empty", "")
    private(tmp_path / "addresses", "SMS json://t0ken-5f1e/{destination}")
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "bytes").chmod(0o600)
    found = {name: value if name == "url" else str(tmp_path / value) for name, value in given.items()}

    with pytest.raises(GatewayUnusable) as caught:
        choose(tmp_path, kind, **found)
    files = [found[name] for name in ("secrets", "authorities") if name in found]
    assert str(caught.value).startswith(told) or any(
        str(caught.value).startswith(told.replace("FILE", file)) for file in files
    )
    assert "5f1e" not in str(caught.value)
    assert WRITTEN_SECRET not in str(caught.value)


def test_apprise_is_not_imported_for_who_does_not_use_it() -> None:
    code = "import riskgate_server.bootstrap, sys; sys.exit('apprise' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
