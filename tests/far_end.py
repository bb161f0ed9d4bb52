"""A webhook's other end over real HTTP on this machine: checks what it gets, honours keys, misbehaves at will."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = bytes(range(32))
WRITTEN_SECRET = f"whsec_{base64.b64encode(SECRET).decode()}"

PIECES_MAX = 2_000


class FarEnd:
    """
    What it does with each request, the last for all that follow.

    A number is a status it answers with, without doing anything; "503 7" is one with Retry-After. ok: it delivers.
    drop: it hangs up, having done nothing; late: it delivers and hangs up; stuck: it delivers and never answers;
    endless: it delivers, and its answer has no end; elsewhere: it answers with a redirect to itself.
    """

    def __init__(self, plan: Sequence[str] = ("ok",)) -> None:
        self.plan = list(plan)
        self.secret = SECRET
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.delivered: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        self.now: list[str] = []
        """Keys of the requests under way."""
        self.endless_bytes = 0
        self.overlapping = 0
        """How often a request came while another one with its key was under way."""
        self.before: Callable[[], object] = lambda: None
        """Called when a message has arrived, before it is delivered."""
        self.host, self.port = "", 0
        self.ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/messages?token=t0ken-5f1e"

    @property
    def keys(self) -> list[str]:
        return [key for key, _, _ in self.requests]

    def judge(self, body: bytes, headers: dict[str, str]) -> tuple[str, str]:
        """Take a request; return its key and what to do."""
        key = headers["webhook-id"]
        content = f"{key}.{headers['webhook-timestamp']}.".encode() + body
        wanted = "v1," + base64.b64encode(hmac.new(self.secret, content, hashlib.sha256).digest()).decode()
        data = json.loads(body)["data"]
        with self._lock:
            if wanted not in headers["webhook-signature"].split(" "):
                self.faults.append("signature")
            if headers["idempotency-key"] != f'"{key}"' or data["id"] != key:
                self.faults.append("key")
            self.overlapping += key in self.now
            self.now.append(key)
            self.requests.append((key, data, headers))
            return key, self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]

    def deliver(self, key: str) -> None:
        data = next(data for known, data, _ in self.requests if known == key)
        with self._lock:
            self.delivered.setdefault(key, data)


def _handler(far_end: FarEnd) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            key, what = far_end.judge(body, {name.lower(): value for name, value in self.headers.items()})
            try:
                self._do(key, what)
            finally:
                with far_end._lock:
                    far_end.now.remove(key)

        def _do(self, key: str, what: str) -> None:
            far_end.before()
            status, _, wait = what.partition(" ")
            if status.isdigit():
                return self._answer(int(status), {"retry-after": wait} if wait else {})
            if what == "elsewhere":
                return self._answer(307, {"location": far_end.url})
            if what == "drop":
                self.close_connection = True
                return None
            far_end.deliver(key)
            if what == "late":
                self.close_connection = True
            elif what == "stuck":
                far_end.ended.wait()
                self.close_connection = True
            elif what == "endless":
                self._endless()
            else:
                self._answer(200, {})
            return None

        def _answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def _endless(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(1 << 40))
            self.end_headers()
            self.close_connection = True
            try:
                for _ in range(PIECES_MAX):
                    far_end.endless_bytes += self.wfile.write(bytes(1 << 16))
            except OSError:
                return
            far_end.faults.append("read to the end")

    return Handler


@contextmanager
def listening(far_end: FarEnd, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[FarEnd]:
    """Have it listen on a free port of this machine."""
    server = ThreadingHTTPServer((host, 0), _handler(far_end))
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a handshake that fails is the claim
    far_end.host, far_end.port = host, server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield far_end
    finally:
        far_end.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
