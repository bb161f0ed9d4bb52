"""
A gateway of the operator's own: one signed HTTP request per message.

The request follows Standard Webhooks 1.0 (standardwebhooks.com): headers webhook-id, webhook-timestamp and
webhook-signature, the last an HMAC-SHA256 over "id.timestamp.body" under each of the secrets. The id is also the
Idempotency-Key (draft-ietf-httpapi-idempotency-key-header), equal for every attempt, as is the body.

What the answer means: 2xx the message was taken; 429 and 503 it was not, try again (after Retry-After); 408, 409, 425
and every other 5xx nobody knows, try again; 3xx the address is wrong, which somebody may mend; any other 4xx it is
refused for good.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec

from riskgate_server.engine.messages import Message
from riskgate_server.engine.ports import DeliveryUnknown, GatewayDown, MessageRefused
from riskgate_server.notify.refusals import GatewayUnusable

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with
SECRET_BYTES_MIN: Final = 24
SECRET_BYTES_MAX: Final = 64
"""Both as Standard Webhooks says."""

SECRETS_MAX: Final = 4

ANSWER_BYTES_MAX: Final = 16 * 1024
"""Of an answer, which says nothing we need: read so that the connection can be used again, and no further."""

ANSWER_SECONDS: Final = 0.25

CONNECTIONS_MAX: Final = 32

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

# They tell every address at level INFO, and an address may have a token in it.
for _library in ("httpx", "httpcore"):
    logging.getLogger(_library).setLevel(logging.WARNING)


class Webhook:
    """
    Keeps `ports.MessageGateway`.

    Args:
        url: https, or http to this machine.
        secrets: keys of the signature, the current one first; several while they rotate.
        seconds: how long connecting, and each part of the answer, may take.
        authorities: PEM file of the authorities that vouch for the other end; None for the system's.
        now: UTC seconds.

    Raises, when made:
        GatewayUnusable: the address or a secret is no good.
    """

    def __init__(
        self,
        url: str,
        secrets: Sequence[bytes],
        *,
        seconds: float,
        authorities: Path | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        require_address(url)
        assert 1 <= len(secrets) <= SECRETS_MAX
        self._url = url
        self._secrets = tuple(secrets)
        self._now = now
        try:
            context = ssl.create_default_context(cafile=authorities)
            # Set where the environment happens to name a file: who reads that reads the codes.
            context.keylog_filename = None  # type: ignore[assignment]  # typeshed knows no way to switch it off
        except OSError as error:
            # ssl.SSLError is one.
            raise GatewayUnusable(f"{authorities}: no certificates of authorities in PEM") from error
        self._client = httpx.AsyncClient(
            verify=context,
            # Half of the time for connecting: what is left tells a machine that is away from one that is slow.
            timeout=httpx.Timeout(seconds, connect=seconds / 2),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
            follow_redirects=False,
            # Neither a proxy nor a .netrc that the environment happens to name.
            trust_env=False,
            headers={"user-agent": "riskgate"},
        )

    def __repr__(self) -> str:
        return "Webhook(***)"

    async def send(self, message: Message) -> None:
        """Send one request."""
        body = body_of(message)
        headers = {"content-type": "application/json", **signed(message.id, body, int(self._now()), self._secrets)}
        try:
            async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                await _read_some(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            # Nothing was sent. The text of these may have the address in it, so it is not repeated.
            raise GatewayDown(type(error).__name__) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DeliveryUnknown(type(error).__name__) from None
        self._judge(response)

    def _judge(self, response: httpx.Response) -> None:
        status = response.status_code
        why = f"HTTP {status}"
        if 200 <= status < 300:  # noqa: PLR2004 - the class of success
            return
        wait = retry_after(response.headers.get("retry-after", ""), self._now())
        match status:
            case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
                raise GatewayDown(why, retry_after_seconds=wait)
            case HTTPStatus.REQUEST_TIMEOUT | HTTPStatus.CONFLICT | HTTPStatus.TOO_EARLY:
                # 409: another attempt under the same key is under way there.
                raise DeliveryUnknown(why, retry_after_seconds=wait)
        if 400 <= status < 500:  # noqa: PLR2004 - the class of refusals
            raise MessageRefused(why)
        if status < 400:  # noqa: PLR2004
            raise GatewayDown(f"{why}: redirects are not followed")
        raise DeliveryUnknown(why, retry_after_seconds=wait)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def body_of(message: Message) -> bytes:
    """Return the request's body: the same bytes for every attempt."""
    not_after = datetime.fromtimestamp(message.not_after_us // 1_000_000, UTC)
    data = {
        "id": message.id,
        "tenant_id": message.tenant_id,
        "channel": message.channel.name,
        "destination": message.destination,
        "template": message.template,
        "parameters": message.parameters,
        "text": message.text,
        "language": message.language,
        "not_after": not_after.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return msgspec.json.encode({"type": "message.send", "data": data})


def signed(message_id: str, body: bytes, at: int, secrets: Sequence[bytes]) -> dict[str, str]:
    """Return the headers of Standard Webhooks, and the idempotency key."""
    content = b"%b.%d.%b" % (message_id.encode(), at, body)
    digests = (hmac.digest(secret, content, hashlib.sha256) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
        # A string of RFC 9651: in quotes.
        "idempotency-key": f'"{message_id}"',
    }


def secrets_from(text: str) -> list[bytes]:
    """
    Return the secrets of a file, one per line: "whsec_" and Base64 of 24 to 64 bytes.

    Raises:
        GatewayUnusable: a line is none. The line is not repeated.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        prefix, given, encoded = line.strip().partition(SECRET_PREFIX)
        try:
            secret = base64.b64decode(encoded, validate=True) if given and not prefix else b""
        except (ValueError, binascii.Error):
            secret = b""
        if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
            size = f"{SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}"
            raise GatewayUnusable(f"line {number}: no secret, which is {SECRET_PREFIX} and Base64 of {size} bytes")
        found.append(secret)
    if not 1 <= len(found) <= SECRETS_MAX:
        raise GatewayUnusable(f"{len(found)} secrets; the webhook needs 1 to {SECRETS_MAX}")
    return found


def retry_after(value: str, now: float) -> float:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3), given as such or as a date; 0 if it is neither."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


async def _read_some(response: httpx.Response) -> None:
    """Read what is left of an answer, within bounds. Its status has said all; nothing that fails here changes it."""
    read = 0
    with contextlib.suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(ANSWER_SECONDS):
            async for piece in response.aiter_raw():
                read += len(piece)
                if read > ANSWER_BYTES_MAX:
                    return


def require_address(url: str) -> None:
    """Raise `GatewayUnusable` for an address that is no good. It is not repeated: it may have a token in it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise GatewayUnusable("no URL") from None
    if parts.username or parts.password:
        raise GatewayUnusable("it has a user in it: requests are signed instead")
    if not host or parts.fragment or not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)):
        raise GatewayUnusable("must begin with https:// (http:// for this machine only)")
