"""Gateways that Apprise speaks to: with its own JSON service, against a real HTTP server on this machine."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import msgspec
import pytest

from riskgate_server.engine.messages import Channel
from riskgate_server.engine.ports import DeliveryUnknown, MessageRefused
from riskgate_server.notify.apprise import AppriseServices, addresses_from
from riskgate_server.notify.refusals import GatewayUnusable
from tests.unit.notify.test_webhook import MESSAGE


@contextmanager
def service(status: int = 200) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """An address, and what arrives there."""
    arrived: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            arrived.append((self.path, json.loads(body)))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"json://127.0.0.1:{server.server_address[1]}/to/{{destination}}", arrived
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(address: str, channel: Channel = Channel.SMS) -> None:
    async def go() -> None:
        services = AppriseServices({Channel.SMS: address})
        await services.send(msgspec.structs.replace(MESSAGE, channel=channel))
        await services.close()

    asyncio.run(go())


def test_a_message_goes_to_its_number() -> None:
    with service() as (address, arrived):
        send(address)

    ((path, body),) = arrived
    assert path in ("/to/+8613812345678", "/to/%2B8613812345678", "/to/%2B8613812345678/", "/to/+8613812345678/")
    assert body["message"] == MESSAGE.text


def test_of_a_failure_nobody_knows_more_and_nothing_is_told(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with service(500) as (address, arrived), pytest.raises(DeliveryUnknown):
        send(address)

    assert len(arrived) == 1
    said = caplog.text + "".join(capfd.readouterr())
    assert "13812345678" not in said
    assert "012345" not in said


def test_a_channel_without_an_address_is_refused() -> None:
    with service() as (address, _), pytest.raises(MessageRefused):
        send(address, Channel.PUSH)


def test_who_has_not_installed_it_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(GatewayUnusable, match="the extra `messages`"):
        AppriseServices({Channel.SMS: "json://127.0.0.1/{destination}"})


def test_an_address_that_it_cannot_read_is_refused_and_not_repeated() -> None:
    with pytest.raises(GatewayUnusable, match="SMS") as caught:
        AppriseServices({Channel.SMS: "t0ken-5f1e://{destination}"})

    assert "5f1e" not in str(caught.value)
    assert "5f1e" not in repr(AppriseServices({Channel.SMS: "json://t0ken-5f1e/{destination}"}))


def test_addresses_are_read_by_their_channels() -> None:
    found = addresses_from("# ours\n\nSMS json://a/{destination}\nPUSH  json://b/?to={destination}\n")

    assert found == {Channel.SMS: "json://a/{destination}", Channel.PUSH: "json://b/?to={destination}"}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "SMS json://a5f1e/",
        "FAX json://a5f1e/{destination}",
        "json://a5f1e/{destination}",
        "SMS json://a5f1e/{destination}\nSMS json://b5f1e/{destination}",
    ],
)
def test_a_file_of_addresses_that_is_no_good_is_refused_and_not_repeated(line: str) -> None:
    with pytest.raises(GatewayUnusable) as caught:
        addresses_from(line)

    assert "5f1e" not in str(caught.value)
