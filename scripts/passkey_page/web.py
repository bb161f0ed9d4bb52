"""
The page over HTTP on this machine: three files, a session, and a few calls that answer with JSON.

Its log-in is made up: whoever opens the page says which customer they are. That is the part a real backend already
has; all else here is what it needs for passkeys.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from scripts.passkey_page.shop import Shop

from riskgate_client import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    RiskgateError,
)

CUSTOMERS: Final = ("ada", "ben")
BODY_BYTES_MAX: Final = 65_536
IDLE_SECONDS: Final = 10.0
COOKIE: Final = "shop-session"

_FOLDER: Final = Path(__file__).parent
_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS: Final = {
    # What is on the page comes from here, and no other page may frame it: an approval is not clicked by accident.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_STATUS_OF: Final[dict[type[RiskgateError], HTTPStatus]] = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    PermissionDenied: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    AlreadyExists: HTTPStatus.CONFLICT,
    FailedPrecondition: HTTPStatus.CONFLICT,
    ResourceExhausted: HTTPStatus.TOO_MANY_REQUESTS,
}
"""All others are no fault of who sits before the page."""


class Refused(Exception):
    """The backend itself does not do it."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Page(ThreadingHTTPServer):
    """Serves the page to browsers of this machine. Each server has sessions of its own, in memory."""

    daemon_threads = True

    def __init__(self, port: int, customers: tuple[str, ...] = CUSTOMERS) -> None:
        """
        Take the port; nothing is answered before `serve_forever`.

        Args:
            port: 0 takes any free one.
            customers: who may be chosen.
        """
        super().__init__(("127.0.0.1", port), _Handler)
        self.customers = customers
        self.sessions: dict[str, str] = {}
        self.shop: Shop | None = None

    @property
    def host(self) -> str:
        """What the browser must have been told to open. To a browser `localhost` is safe, and may use passkeys."""
        return f"localhost:{self.server_port}"

    @property
    def origin(self) -> str:
        """The page's origin, for `RISKGATE_ORIGINS`."""
        return f"http://{self.host}"


class _Handler(BaseHTTPRequestHandler):
    server: Page
    timeout = IDLE_SECONDS
    _cookie = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a terminal is no place for what customers do."""

    def do_GET(self) -> None:
        """Answer with a file, or with what the page shows."""
        if self.path in _FILES:
            name, kind = _FILES[self.path]
            self._send(HTTPStatus.OK, kind, (_FOLDER / name).read_bytes())
            return
        self._answer(self._read)

    def do_POST(self) -> None:
        """Do what the page asks for the customer of its session."""
        self._answer(lambda: self._do(self._body()))

    def _read(self) -> dict[str, Any]:
        self._require_host()
        return self._state() if self.path == "/api/state" else _unknown()

    def _do(self, body: bytes) -> dict[str, Any]:
        self._require_host()
        # A page of somebody else can make a browser send our cookie, but neither this header nor this type.
        if self.headers.get("Origin") != self.server.origin:
            raise Refused(HTTPStatus.FORBIDDEN, "FOREIGN_ORIGIN")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON_EXPECTED")
        given = _texts(body)
        if self.path == "/api/session":
            return self._log_in(given("customer"))
        shop, customer_id = self._shop(), self._customer()
        match self.path:
            case "/api/passkeys/begin":
                return shop.begin_enrolment(customer_id)
            case "/api/passkeys/finish":
                return shop.finish_enrolment(customer_id, given("enrollment_id"), given("registration"))
            case "/api/purchases":
                article_id = given("article")
                if article_id not in shop.articles:
                    raise Refused(HTTPStatus.NOT_FOUND, "NO_SUCH_ARTICLE")
                return shop.buy(customer_id, article_id)
            case "/api/approvals/begin":
                return shop.begin_approval(customer_id, given("transaction_id"))
            case "/api/approvals/finish":
                return shop.finish_approval(customer_id, given("challenge_id"), given("assertion"))
        return _unknown()

    def _require_host(self) -> None:
        # A name that leads to this machine is not enough: whose pages use that name is not ours to know.
        if self.headers.get("Host") != self.server.host:
            raise Refused(HTTPStatus.FORBIDDEN, "FOREIGN_HOST")

    def _log_in(self, customer_id: str) -> dict[str, Any]:
        """Believe whoever says who they are. A real backend asks for more."""
        if customer_id not in self.server.customers:
            raise Refused(HTTPStatus.NOT_FOUND, "NO_SUCH_CUSTOMER")
        session = secrets.token_urlsafe(32)
        self.server.sessions[session] = customer_id
        self._cookie = f"{COOKIE}={session}; HttpOnly; SameSite=Strict; Path=/"
        return {"customer": customer_id}

    def _state(self) -> dict[str, Any]:
        shop = self._shop()
        customer_id = self.server.sessions.get(self._session(), "")
        return {
            "customers": self.server.customers,
            "customer": customer_id,
            "passkeys": shop.passkeys(customer_id) if customer_id else [],
            "articles": [
                {"id": article_id, "name": article.name, "payee": article.payee_id, "amount": str(article.amount)}
                for article_id, article in shop.articles.items()
            ],
        }

    def _shop(self) -> Shop:
        if self.server.shop is None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "NOT_OPEN_YET")
        return self.server.shop

    def _customer(self) -> str:
        customer_id = self.server.sessions.get(self._session())
        if customer_id is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, "NOT_LOGGED_IN")
        return customer_id

    def _session(self) -> str:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return ""
        return cookies[COOKIE].value if COOKIE in cookies else ""

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "BODY_TOO_LARGE")
        return self.rfile.read(int(length))

    def _answer(self, what: Callable[[], dict[str, Any]]) -> None:
        status, answer = HTTPStatus.OK, {}
        try:
            answer = what()
        except Refused as refused:
            status, answer = refused.status, {"reason": refused.reason}
        except RiskgateError as error:
            status = _STATUS_OF.get(type(error), HTTPStatus.BAD_GATEWAY)
            answer = {"reason": error.reason or error.status.name}
        self._send(status, "application/json", json.dumps(answer).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if self._cookie:
            self.send_header("Set-Cookie", self._cookie)
        self.end_headers()
        self.wfile.write(body)


def _texts(body: bytes) -> Callable[[str], str]:
    """Return how to get a text out of a body, by its name."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(HTTPStatus.BAD_REQUEST, "NOT_JSON") from None

    def given(name: str) -> str:
        value = read.get(name) if isinstance(read, dict) else None
        if not isinstance(value, str):
            raise Refused(HTTPStatus.BAD_REQUEST, "FIELD_MISSING")
        return value

    return given


def _unknown() -> dict[str, Any]:
    raise Refused(HTTPStatus.NOT_FOUND, "NO_SUCH_PAGE")
