"""How the engine is reached: credentials, settings of the channel, and what every call carries."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import grpc

from riskgate_client.certificates import OwnCertificate

__version__: Final = version("riskgate")
USER_AGENT: Final = f"riskgate-python/{__version__}"

KEEPALIVE_SECONDS: Final = 60
KEEPALIVE_TIMEOUT_SECONDS: Final = 20
CONNECT_SECONDS: Final = 5
"""How long one attempt to connect may take."""
RECONNECT_FIRST_SECONDS: Final = 0.1
RECONNECT_MAX_SECONDS: Final = 2
"""gRPC's own two minutes would keep us away long after the engine is back."""
RECEIVE_BYTES_MAX: Final = 16 * 1024 * 1024
SEND_BYTES_MAX: Final = 4 * 1024 * 1024

OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.primary_user_agent", USER_AGENT),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    # A watch may be silent for hours, and yet we want to notice when nobody is there any more.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", int(RECONNECT_FIRST_SECONDS * 1000)),
    ("grpc.min_reconnect_backoff_ms", CONNECT_SECONDS * 1000),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_SECONDS * 1000),
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", SEND_BYTES_MAX),
)

_PRIVATE_KEY: Final = b"PRIVATE KEY-----"
_API_KEY: Final = re.compile(r"rgk_[A-Za-z0-9_-]+")

Pem = str | os.PathLike[str] | bytes
"""A PEM file by its path, or its content as bytes."""
Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What proves who is who: TLS, what goes with every call, and the certificate of this client if it has one."""

    tls: grpc.ChannelCredentials
    metadata: Metadata
    own: OwnCertificate | None


def credentials(*, ca: Pem | None, api_key: str | None, certificate: Pem | None, key: Pem | None) -> Credentials:
    """
    Return what proves who is who: TLS both ways, or TLS one way and a key with every call.

    Raises:
        ValueError: there is not exactly one credential, or what is given is none.
    """
    if (certificate is None) != (key is None):
        raise ValueError("certificate and key go together")
    if (api_key is None) == (certificate is None):
        raise ValueError("give either api_key, or certificate and key")
    authority, own_certificate = _certificate("ca", ca), _certificate("certificate", certificate)
    # As plain metadata: gRPC's own call credentials start a thread for every call. Nothing here is ever
    # sent without TLS, for there is no way to make a channel without.
    metadata = (("authorization", f"Bearer {_api_key(api_key)}"),) if api_key is not None else ()
    own_key = _pem(key)
    own = None
    if own_certificate is not None and own_key is not None:
        try:
            own = OwnCertificate(own_certificate, own_key, authority)
        except ValueError as fault:
            raise ValueError(f"key {fault}: {_named(key)}") from None
    return Credentials(grpc.ssl_channel_credentials(authority, own_key, own_certificate), metadata, own)


def _api_key(given: str) -> str:
    # Pasted from a file or a terminal, it often brings the end of its line.
    api_key = given.strip()
    if not _API_KEY.fullmatch(api_key):
        fault = "is none" if api_key else "is empty"
        raise ValueError(f"api_key {fault}: a key looks like rgk_…, as `riskgate callers add` printed it")
    return api_key


def _certificate(name: str, source: Pem | None) -> bytes | None:
    pem = _pem(source)
    if pem is not None:
        try:
            # gRPC itself would only say, at every call, that it could not connect.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
        except (ssl.SSLError, ValueError):
            fault = "is a private key, not a certificate" if _PRIVATE_KEY in pem else "is no certificate in PEM"
            raise ValueError(f"{name} {fault}: {_named(source)}") from None
    return pem


def _named(source: Pem | None) -> str:
    return "the given bytes" if isinstance(source, bytes) else str(source)


def _pem(source: Pem | None) -> bytes | None:
    return source if source is None or isinstance(source, bytes) else Path(source).read_bytes()


class AuthenticatedChannel:
    """
    What a generated stub needs of a channel, blocking or asyncio alike.

    Calls made through it carry the credential, and those that get one answer a deadline, unless they bring theirs.
    """

    def __init__(self, channel: Any, metadata: Metadata, timeout_seconds: float) -> None:
        self._channel = channel
        self._metadata = metadata
        self._timeout_seconds = timeout_seconds

    def unary_unary(self, *args: Any, **kwargs: Any) -> _Callable:
        """Return what calls a method that takes one message and gives one."""
        return _Callable(self._channel.unary_unary(*args, **kwargs), self._metadata, self._timeout_seconds)

    def unary_stream(self, *args: Any, **kwargs: Any) -> _Callable:
        """Return what calls a method that takes one message and gives many."""
        return _Callable(self._channel.unary_stream(*args, **kwargs), self._metadata, None)

    def stream_unary(self, *args: Any, **kwargs: Any) -> _Callable:
        """Return what calls a method that takes many messages and gives one."""
        return _Callable(self._channel.stream_unary(*args, **kwargs), self._metadata, None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> _Callable:
        """Return what calls a method that takes many messages and gives many."""
        return _Callable(self._channel.stream_stream(*args, **kwargs), self._metadata, None)


class _Callable:
    """A method of a stub, called with the credential."""

    __slots__ = ("_inner", "_metadata", "_timeout_seconds")

    def __init__(self, inner: Any, metadata: Metadata, timeout_seconds: float | None) -> None:
        self._inner = inner
        self._metadata = metadata
        self._timeout_seconds = timeout_seconds

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Sequence[Any] | None = None, **kwargs: Any
    ) -> Any:
        return self._inner(request, **self._with_ours(timeout, metadata), **kwargs)

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Sequence[Any] | None = None, **kwargs: Any
    ) -> Any:
        """Call, and return the answer with the call; not for asyncio."""
        return self._inner.with_call(request, **self._with_ours(timeout, metadata), **kwargs)

    def future(
        self, request: Any, timeout: float | None = None, metadata: Sequence[Any] | None = None, **kwargs: Any
    ) -> Any:
        """Call without waiting; not for asyncio."""
        return self._inner.future(request, **self._with_ours(timeout, metadata), **kwargs)

    def _with_ours(self, timeout: float | None, metadata: Sequence[Any] | None) -> dict[str, Any]:
        return {
            "timeout": self._timeout_seconds if timeout is None else timeout,
            "metadata": (*self._metadata, *(metadata or ())),
        }
