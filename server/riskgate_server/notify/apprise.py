"""SMS gateways and push services that Apprise speaks to: the extra `riskgate[messages]`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import quote

from riskgate_server.engine.messages import Channel, Message
from riskgate_server.engine.ports import DeliveryUnknown, MessageRefused
from riskgate_server.notify.refusals import GatewayUnusable

DESTINATION: Final = "{destination}"

_THREADS: Final = 8
"""Requests at once: Apprise blocks."""

_NOBODY: Final = "+15005550006"
"""A number to try an address with; nothing is sent to it."""


class AppriseServices:
    """
    Keeps `ports.MessageGateway`.

    Apprise says of a message that failed neither why nor whether it was delivered after all, and passes no idempotency
    key on: then it is sent again, and may arrive twice.

    Args:
        addresses: for each channel an address as Apprise reads it, with {destination} where a number or token belongs.

    Raises, when made:
        GatewayUnusable: Apprise is not installed, or cannot read an address.
    """

    def __init__(self, addresses: Mapping[Channel, str]) -> None:
        try:
            import apprise  # noqa: PLC0415 - an extra, and it reads a hundred modules
        except ModuleNotFoundError as error:
            raise GatewayUnusable("this gateway needs Apprise: install the extra `messages` of riskgate") from error
        # They tell of requests with numbers and answers in them.
        for library in ("apprise", "urllib3"):
            logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        self._instantiate: Any = apprise.Apprise.instantiate
        self._addresses = dict(addresses)
        for channel in self._addresses:
            if self._service(channel, _NOBODY) is None:
                raise GatewayUnusable(f"Apprise cannot read the address for {channel.name}")
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="apprise")

    def __repr__(self) -> str:
        return "AppriseServices(***)"

    def _service(self, channel: Channel, destination: str) -> Any:
        address = self._addresses[channel].replace(DESTINATION, quote(destination, safe=""))
        return self._instantiate(address, suppress_exceptions=True)

    async def send(self, message: Message) -> None:
        """Have Apprise send a message."""
        if message.channel not in self._addresses:
            raise MessageRefused(f"no address for {message.channel.name}")
        if not await asyncio.get_running_loop().run_in_executor(self._threads, self._notify, message):
            raise DeliveryUnknown("Apprise says no more than that it failed")

    def _notify(self, message: Message) -> bool:
        service = self._service(message.channel, message.destination)
        return service is not None and bool(service.notify(body=message.text))

    async def close(self) -> None:
        """Let go of the threads; one that is still sending ends by its own timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def addresses_from(text: str) -> dict[Channel, str]:
    """
    Return the addresses of a file: one per line, after the channel it is for: "SMS twilio://…/{destination}".

    Raises:
        GatewayUnusable: a line is none. The line is not repeated.
    """
    found: dict[Channel, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, address = line.strip().partition(" ")
        if name not in Channel.__members__ or DESTINATION not in address:
            names = " or ".join(Channel.__members__)
            raise GatewayUnusable(f"line {number}: not {names}, a space, and an address with {DESTINATION} in it")
        if Channel[name] in found:
            raise GatewayUnusable(f"line {number}: a second address for {name}")
        found[Channel[name]] = address.strip()
    if not found:
        raise GatewayUnusable("no address")
    return found
