"""
A TCP proxy before a PostgreSQL server that knows so much of the protocol that it can cut a connection at a COMMIT.

It also knows what the client then does not: whether the server committed. Connections are reset, not closed.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from enum import Enum
from typing import Final
from urllib.parse import quote


class Cut(Enum):
    """Where the connection that writes is reset."""

    AT_BEGIN = "before the server hears of the transaction"
    WHILE_LOCKING = "between two statements, before anything is decided"
    WHILE_WRITING = "between two statements, after everything is decided"
    BEFORE_COMMIT = "the COMMIT never reaches the server"
    AFTER_COMMIT = "the server has committed, and its answer is lost"
    LATE_COMMIT = "the COMMIT reaches the server when the client has long connected anew"


AT_COMMIT: Final = frozenset({Cut.BEFORE_COMMIT, Cut.AFTER_COMMIT, Cut.LATE_COMMIT})

_BEGIN: Final = b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE\0"
_COMMIT: Final = b"COMMIT\0"
_RESET: Final = struct.pack("ii", 1, 0)
"""As SO_LINGER: what is unsent is dropped, and the other side hears a reset."""
_SECONDS: Final = 10.0


class Wire:
    """
    Listens on a port of its own and passes everything on to the server's socket.

    A test sets `cut` (and `after`, for the cuts between statements) before a transaction and afterwards looks at
    `fired` and `committed`.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._links: list[_Link] = []
        self._late: _Link | None = None
        self._closed = False
        self.cut: Cut | None = None
        self.after = 0
        """Statements that are still let through before a cut between two of them."""
        self.fired: Cut | None = None
        self.committed = False
        """Whether the transaction that was cut stands."""
        threading.Thread(target=self._accept, daemon=True).start()

    def dsn(self, user: str, database: str, options: str = "") -> str:
        """Return the DSN of a database behind the proxy."""
        port = self._listening.getsockname()[1]
        plain = "sslmode=disable&gssencmode=disable"
        return f"postgresql://{user}@127.0.0.1:{port}/{database}?{plain}&options={quote(options)}"

    def arm(self, cut: Cut | None, after: int = 0) -> None:
        """Say where the next transaction is cut."""
        self.cut, self.after = cut, after
        self.fired, self.committed = None, False

    @property
    def late(self) -> bool:
        """Whether a COMMIT is still under way to the server."""
        return self._late is not None

    def deliver(self) -> None:
        """Let the COMMIT that is under way arrive."""
        link, self._late = self._late, None
        if link is not None:
            assert link.commit(), "the server did not take a COMMIT that was late"

    def close(self) -> None:
        """Finish with every connection."""
        self._closed = True
        self.deliver()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for link in self._links:
            link.end()

    def _accept(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                client, _ = self._listening.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                link = _Link(self, client, server)
                self._links = [*(each for each in self._links if not each.ended), link]
                threading.Thread(target=link.run, daemon=True).start()

    def hold(self, link: _Link) -> None:
        """Keep a connection whose COMMIT arrives late."""
        self._late = link


class _Link:
    """One connection: the client's messages are looked at on the way, the server's are not."""

    def __init__(self, wire: Wire, client: socket.socket, server: socket.socket) -> None:
        self.ended = False
        self._wire = wire
        self._client = client
        self._server = server
        self._writing = False
        self._answers = threading.Thread(target=self._pass_answers, daemon=True)
        self._kept = False
        """Whether the server's side stays, for a COMMIT that is late."""
        self._mute = threading.Event()
        self._last = b""

    def run(self) -> None:
        """Pass on what the client says, until it has been cut off or has gone."""
        try:
            with contextlib.suppress(OSError, EOFError):
                self._answers.start()
                self._server.sendall(self._startup())
                self._converse()
        finally:
            if not self._kept:
                self.end()

    def _converse(self) -> None:
        for kind, message in self._messages():
            cut = self._falls(kind, message)
            if cut is not None:
                self._fall(cut)
                return
            self._server.sendall(message)
            if self._wire.late and kind == b"S":
                # Whoever connected anew already waits for what the lost transaction holds.
                self._wire.deliver()

    def _falls(self, kind: bytes, message: bytes) -> Cut | None:
        """Return the cut that is due at this message."""
        wire = self._wire
        if kind == b"P" and _BEGIN in message:
            self._writing = True
            return wire.cut if wire.cut is Cut.AT_BEGIN else None
        if not self._writing or wire.cut is None:
            return None
        if kind == b"Q" and message.endswith(_COMMIT):
            # A cut between statements that was still to come comes now.
            return wire.cut if wire.cut in AT_COMMIT else Cut.BEFORE_COMMIT
        if kind == b"E" and wire.cut in (Cut.WHILE_LOCKING, Cut.WHILE_WRITING):
            wire.after -= 1
            return wire.cut if wire.after < 0 else None
        return None

    def _fall(self, cut: Cut) -> None:
        wire = self._wire
        wire.cut, wire.fired = None, cut
        if cut is Cut.AFTER_COMMIT:
            wire.committed = self.commit()
        elif cut is Cut.LATE_COMMIT:
            self._kept = wire.committed = True
            wire.hold(self)
        if not self._kept:
            self._close(self._server)
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close(self._client)

    def commit(self) -> bool:
        """Have the server commit, keep its answer to ourselves, and return whether it did."""
        self._mute.set()
        self._server.sendall(b"Q" + struct.pack("!i", 4 + len(_COMMIT)) + _COMMIT)
        self._answers.join(_SECONDS)
        self._close(self._server)
        self.ended = True
        return b"COMMIT\0" in self._last

    def _pass_answers(self) -> None:
        with contextlib.suppress(OSError):
            while said := self._server.recv(1 << 16):
                if self._mute.is_set():
                    self._last += said
                    if b"Z\0\0\0\5" in self._last:
                        return
                else:
                    with contextlib.suppress(OSError):
                        self._client.sendall(said)
        if not self._mute.is_set():
            self._close(self._client)

    def _startup(self) -> bytes:
        head = self._exactly(4)
        return head + self._exactly(struct.unpack("!i", head)[0] - 4)

    def _messages(self) -> Iterator[tuple[bytes, bytes]]:
        while True:
            head = self._exactly(5)
            yield head[:1], head + self._exactly(struct.unpack("!i", head[1:])[0] - 4)

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self._client.recv(size - len(found))
            if not more:
                raise EOFError
            found += more
        return found

    def end(self) -> None:
        """Close both sides."""
        self._close(self._server)
        self._close(self._client)
        self.ended = True

    @staticmethod
    def _close(side: socket.socket) -> None:
        # A shutdown wakes whoever reads on it; where a reset is due, it must not say good-bye first.
        with contextlib.suppress(OSError):
            if not side.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
                side.shutdown(socket.SHUT_RDWR)
        side.close()
