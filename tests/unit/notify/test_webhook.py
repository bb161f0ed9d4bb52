"""The webhook against a real HTTP server on this machine that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest

from riskgate_server.crypto import tls
from riskgate_server.engine.messages import Channel, Message
from riskgate_server.engine.ports import DeliveryUnknown, GatewayDown, MessageRefused
from riskgate_server.notify.refusals import GatewayUnusable
from riskgate_server.notify.webhook import Webhook, retry_after, secrets_from, signed
from tests.far_end import SECRET, WRITTEN_SECRET, FarEnd, listening

SECONDS = 0.5
MESSAGE = Message(
    id="msg_2b",
    tenant_id="acme",
    channel=Channel.SMS,
    destination="+8613812345678",
    template="CODE_SIGN_IN",
    parameters={"code": "012345"},
    text="验证码012345，您正在登录。",
    language="zh-Hans",
    not_after_us=1_780_000_300_000_000,
)


@pytest.fixture
def far_end() -> Iterator[FarEnd]:
    with listening(FarEnd()) as far_end:
        yield far_end


def send(url: str, *, times: int = 1, secrets: tuple[bytes, ...] = (SECRET,), authorities: Path | None = None) -> None:
    async def go() -> None:
        webhook = Webhook(url, secrets, seconds=SECONDS, authorities=authorities)
        try:
            for _ in range(times):
                async with asyncio.timeout(SECONDS):
                    await webhook.send(MESSAGE)
        finally:
            await webhook.close()

    asyncio.run(go())


def test_a_message_arrives_whole_and_signed(far_end: FarEnd) -> None:
    send(far_end.url)

    assert far_end.faults == []
    assert far_end.delivered == {
        "msg_2b": {
            "id": "msg_2b",
            "tenant_id": "acme",
            "channel": "SMS",
            "destination": "+8613812345678",
            "template": "CODE_SIGN_IN",
            "parameters": {"code": "012345"},
            "text": "验证码012345，您正在登录。",
            "language": "zh-Hans",
            "not_after": "2026-05-28T20:31:40Z",
        }
    }


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification's reference libraries."""
    (secret,) = secrets_from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', 1614265330, [secret])

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-timestamp"] == "1614265330"


def test_while_secrets_rotate_each_of_them_signs(far_end: FarEnd) -> None:
    send(far_end.url, secrets=(bytes(24), SECRET))

    assert far_end.faults == []
    assert far_end.requests[0][2]["webhook-signature"].count("v1,") == 2


def test_every_attempt_has_the_same_body_and_key(far_end: FarEnd) -> None:
    send(far_end.url, times=3)

    assert far_end.keys == ["msg_2b"] * 3
    assert len({json.dumps(data) for _, data, _ in far_end.requests}) == 1
    assert len(far_end.delivered) == 1


@pytest.mark.parametrize("status", [429, 503, 301, 302, 307, 308])
def test_what_was_certainly_not_taken_is_said_to_be_so(far_end: FarEnd, status: int) -> None:
    far_end.plan = [str(status)]
    with pytest.raises(GatewayDown, match=f"HTTP {status}") as caught:
        send(far_end.url)

    assert not isinstance(caught.value, DeliveryUnknown)


@pytest.mark.parametrize("status", [408, 409, 425, 500, 502, 504])
def test_what_nobody_knows_is_said_to_be_so(far_end: FarEnd, status: int) -> None:
    far_end.plan = [str(status)]
    with pytest.raises(DeliveryUnknown, match=f"HTTP {status}"):
        send(far_end.url)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422])
def test_a_message_that_is_refused_is_refused_for_good(far_end: FarEnd, status: int) -> None:
    far_end.plan = [str(status)]
    with pytest.raises(MessageRefused, match=f"HTTP {status}"):
        send(far_end.url)


@pytest.mark.parametrize("what", ["drop", "late"])
def test_a_connection_that_is_cut_leaves_it_unknown(far_end: FarEnd, what: str) -> None:
    far_end.plan = [what]
    with pytest.raises(DeliveryUnknown):
        send(far_end.url)


def test_an_answer_that_never_comes_is_not_waited_for(far_end: FarEnd) -> None:
    far_end.plan = ["stuck"]
    with pytest.raises((DeliveryUnknown, TimeoutError)):
        send(far_end.url)


def test_an_answer_without_an_end_is_not_read_to_its_end(far_end: FarEnd) -> None:
    far_end.plan = ["endless"]
    send(far_end.url)

    assert far_end.faults == []
    # What lay between the two is about four megabytes.
    assert far_end.endless_bytes < 16 << 20


def test_a_redirect_is_not_followed(far_end: FarEnd) -> None:
    far_end.plan = ["elsewhere", "ok"]
    with pytest.raises(GatewayDown, match="redirects"):
        send(far_end.url)

    assert len(far_end.requests) == 1


def test_nobody_listening_is_a_gateway_that_is_down() -> None:
    with listening(FarEnd()) as gone:
        pass
    with pytest.raises(GatewayDown) as caught:
        send(gone.url)

    assert not isinstance(caught.value, DeliveryUnknown)


def test_retry_after_is_handed_on(far_end: FarEnd) -> None:
    far_end.plan = ["503 7"]
    with pytest.raises(GatewayDown) as caught:
        send(far_end.url)

    assert caught.value.retry_after_seconds == 7


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 59),
        ("Fri, 31 Dec 1999 23:58:59 GMT", 0),
        ("", 0),
        ("-5", 0),
        ("soon", 0),
        ("٣", 0),
        ("9" * 400, 999_999_999),
        ("Fri, 99 Dec 99999 23:59:59 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert retry_after(value, datetime(1999, 12, 31, 23, 59, tzinfo=UTC).timestamp()) == seconds


@pytest.mark.parametrize(("host", "known"), [("127.0.0.1", True), ("127.0.0.1", False), ("127.0.0.2", True)])
def test_over_tls_the_other_end_must_be_who_it_says(tmp_path: Path, host: str, known: bool) -> None:  # noqa: FBT001
    right = known and host == "127.0.0.1"
    with over_tls(tmp_path, host) as far_end:
        url = far_end.url.replace("http:", "https:")
        with nullcontext() if right else pytest.raises(GatewayDown):
            send(url, authorities=tmp_path / "ca.pem" if known else None)

    assert len(far_end.requests) == right


def test_the_keys_of_a_connection_are_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL writes them where SSLKEYLOGFILE says, and developers set it for every program they start."""
    told = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(told))

    with over_tls(tmp_path, "127.0.0.1") as far_end:
        send(far_end.url.replace("http:", "https:"), authorities=tmp_path / "ca.pem")

    assert len(far_end.requests) == 1
    assert "SECRET" not in (told.read_text() if told.exists() else "")


@contextmanager
def over_tls(tmp_path: Path, host: str) -> Iterator[FarEnd]:
    """A gateway whose certificate names 127.0.0.1, by the authority in `ca.pem`."""
    authority = tls.new_authority(datetime.now(UTC))
    server = tls.issue_server(authority, ("127.0.0.1",), datetime.now(UTC))
    (tmp_path / "server.pem").write_bytes(server.certificate_pem + server.key_pem)
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with listening(FarEnd(), context, host) as far_end:
        yield far_end


@pytest.mark.parametrize(
    "url",
    [
        "http://gateway.example/messages",
        "http://127.0.0.1.example/",
        "ftp://127.0.0.1/",
        "https://user:pass@gateway.example/",
        "https:///messages",
        "https://gateway.example/#part",
        "https://gateway.example:port/",
        "gateway.example",
        "",
    ],
)
def test_an_address_that_is_no_good_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(GatewayUnusable) as caught:
        Webhook(url, [SECRET], seconds=1)

    assert url == "" or url not in str(caught.value)
    assert "pass" not in str(caught.value)


def test_a_file_of_authorities_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(GatewayUnusable, match="authorities"):
        Webhook("https://gateway.example/", [SECRET], seconds=1, authorities=tmp_path / "ca.pem")


@pytest.mark.parametrize(
    "line",
    [
        "s5f1e",
        WRITTEN_SECRET.removeprefix("whsec_"),
        f"x{WRITTEN_SECRET}",
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_????",
        "whsec_é",
    ],
)
def test_a_secret_that_is_no_good_is_refused_and_not_repeated(line: str) -> None:
    with pytest.raises(GatewayUnusable, match="line 2") as caught:
        secrets_from(f"{WRITTEN_SECRET}\n{line}\n")

    assert line not in str(caught.value)


def test_neither_secret_nor_message_is_in_what_is_shown() -> None:
    assert repr(Webhook("https://gateway.example/?token=x", [SECRET], seconds=1)) == "Webhook(***)"
    assert repr(MESSAGE) == str(MESSAGE) == "Message(msg_2b)"
