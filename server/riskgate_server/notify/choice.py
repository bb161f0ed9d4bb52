"""Opens the gateway that the operator chose."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

from riskgate_server.engine.ports import MessageGateway
from riskgate_server.notify.apprise import AppriseServices, addresses_from
from riskgate_server.notify.outbox import FileOutbox
from riskgate_server.notify.refusals import GatewayUnusable
from riskgate_server.notify.webhook import Webhook, secrets_from

Kind = Literal["file", "webhook", "apprise"]

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
        raise GatewayUnusable(f"gateway_url and gateway_authorities are for the webhook; the gateway is {kind}")
    if kind == "file":
        if secrets:
            raise GatewayUnusable("gateway_secrets is set; the gateway is file, which has none")
        return FileOutbox(outbox)
    if outbox.exists():
        raise GatewayUnusable(f"{outbox} has numbers and codes in clear, of a gateway for development: remove it")
    if not secrets:
        raise GatewayUnusable(f"gateway_secrets is not set; the gateway {kind} needs it")
    if kind == "webhook" and not url:
        raise GatewayUnusable("gateway_url is not set; the gateway webhook needs it")
    text = _read_private(Path(secrets))
    try:
        if kind == "apprise":
            return AppriseServices(addresses_from(text))
        return Webhook(url, secrets_from(text), seconds=seconds, authorities=Path(authorities) if authorities else None)
    except GatewayUnusable as error:
        raise GatewayUnusable(f"gateway {kind}: {error} (gateway_secrets: {secrets})") from error


def _read_private(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & _OTHERS:
                raise GatewayUnusable(f"{path} is open to other users (mode {mode:04o}): run `chmod go-rwx {path}`")
            return file.read(64 * 1024)
    except OSError as error:
        raise GatewayUnusable(f"gateway_secrets: {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise GatewayUnusable(f"gateway_secrets: {path}: not UTF-8 text") from None
