"""
The gateway for development: a file that stands for the phones of all customers.

It holds numbers and codes in clear, which nothing else here does. So it lies apart under a name that says so, is its
owner's only, and is not to be there when messages go through a real gateway.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import msgspec

from riskgate_server.engine.messages import Message
from riskgate_server.engine.ports import GatewayDown

OUTBOX_BYTES_MAX: Final = 16 * 1024 * 1024
"""Size at which the file is begun anew: about 40,000 messages."""

_PRIVATE: Final = 0o600


class FileOutbox:
    """
    Keeps `ports.MessageGateway`: appends one JSON object per message and syncs it to disk.

    A message that was sent twice is there twice, under one id: whoever reads drops the second.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()

    async def send(self, message: Message) -> None:
        """Append a message."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._append, line_of(message))
            except OSError as error:
                raise GatewayDown(f"the file outbox: {error.strerror}") from error

    async def close(self) -> None:
        """Nothing is open."""

    def _append(self, line: bytes) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, _PRIVATE)
        try:
            size = os.fstat(descriptor).st_size
            if size + len(line) > OUTBOX_BYTES_MAX:
                os.ftruncate(descriptor, 0)
                size = 0
            # A line that was cut short, by a crash or a full disk, must not spoil the next.
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise OSError(0, "cut short")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def line_of(message: Message) -> bytes:
    """Return a message as one line of JSON."""
    shown = msgspec.to_builtins(message) | {"channel": message.channel.name}
    return msgspec.json.encode(shown) + b"\n"
