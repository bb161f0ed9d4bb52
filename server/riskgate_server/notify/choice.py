"""Opens the gateway that the operator chose."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from riskgate_server.engine.ports import MessageGateway
from riskgate_server.notify.apprise import AppriseServices, addresses_from
from riskgate_server.notify.outbox import FileOutbox
from riskgate_server.notify.refusals import GatewayUnusable
from riskgate_server.notify.webhook import Webhook, require_address, secrets_from

Kind = Literal["file", "webhook", "apprise"]

_URL: Final = "RISKGATE_GATEWAY_URL"
_AUTHORITIES: Final = "RISKGATE_GATEWAY_AUTHORITIES"
_SECRETS: Final = "--gateway-secrets"
"""As whoever starts the server writes them."""

_OTHERS: int = stat.S_IRWXG | stat.S_IRWXO


def open_gateway(
    kind: Kind, *, outbox: Path, url: str, secrets: str, authorities: str, seconds: float, driven_by_data: bool
) -> MessageGateway:
    """
    Return the gateway of a kind.

    Args:
        outbox: the file of the development gateway.
        url: of the webhook.
        secrets: file with the webhook's secrets, or with Apprise's addresses.
        authorities: file of the authorities that vouch for the webhook; empty for the system's.
        seconds: how long one attempt may take.
        driven_by_data: whether time is what the events say.

    Raises:
        GatewayUnusable: what is set does not fit together, cannot be read, or is no good.
    """
    if driven_by_data and kind != "file":
        raise GatewayUnusable(
            f"the gateway is {kind} and the clock data, by which a code is good for as long as events say: it is for"
            " histories, and sends nobody a message; serve with `--gateway file`"
        )
    if kind != "webhook" and (url or authorities):
        raise GatewayUnusable(f"{_URL} and {_AUTHORITIES} are for the webhook; the gateway is {kind}")
    if kind == "file":
        if secrets:
            raise GatewayUnusable(f"{_SECRETS} is set; the gateway is file, which has none")
        return FileOutbox(outbox)
    if outbox.exists():
        raise GatewayUnusable(f"{outbox} has numbers and codes in clear, of a gateway for development: remove it")
    if not secrets:
        raise GatewayUnusable(f"{_SECRETS} is not set; the gateway {kind} needs it")
    if kind == "webhook" and not url:
        raise GatewayUnusable(f"{_URL} is not set; the gateway webhook needs it")
    if kind == "webhook":
        with _named(_URL):
            require_address(url)
    with _named(f"{_SECRETS}: {secrets}"):
        text = _read_private(Path(secrets))
        found = addresses_from(text) if kind == "apprise" else secrets_from(text)
    if isinstance(found, dict):
        with _named("--gateway apprise"):
            return AppriseServices(found)
    with _named(_AUTHORITIES):
        return Webhook(url, found, seconds=seconds, authorities=Path(authorities) if authorities else None)


@contextlib.contextmanager
def _named(setting: str) -> Iterator[None]:
    """Write the setting that is no good in front of what is wrong with it."""
    try:
        yield
    except GatewayUnusable as error:
        raise GatewayUnusable(f"{setting}: {error}") from error


def _read_private(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & _OTHERS:
                raise GatewayUnusable(f"open to other users (mode {mode:04o}): run `chmod go-rwx {path}`")
            return file.read(64 * 1024)
    except OSError as error:
        raise GatewayUnusable(error.strerror) from error
    except UnicodeDecodeError:
        raise GatewayUnusable("not UTF-8 text") from None
