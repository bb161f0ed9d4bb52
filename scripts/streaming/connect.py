"""How a script is told where the server is and who calls."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from riskgate_client import AsyncRiskgate, Retry

_F = TypeVar("_F", bound=Callable[..., Any])

TIMEOUT_SECONDS: Final = 30.0
TRUST_SECONDS: Final = 5.0
"""How long the server may take to show its certificate; one that does not is left to the client to wait for."""


_OTHER_NAME: Final = frozenset({62, 64})
"""OpenSSL's codes for a certificate that is for other host names or other addresses."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is, and the credential. Plain data: it may be handed to another process."""

    address: str
    ca: bytes
    api_key: str | None = None
    certificate: bytes | None = None
    key: bytes | None = None

    def __repr__(self) -> str:
        return f"Connection({self.address}, ***)"

    def client(self, *, timeout_seconds: float = TIMEOUT_SECONDS, retry: Retry | None = None) -> AsyncRiskgate:
        """Return a client. Make it where the event loop runs."""
        return AsyncRiskgate(
            self.address,
            ca=self.ca,
            api_key=self.api_key,
            certificate=self.certificate,
            key=self.key,
            timeout=timeout_seconds,
            retry=retry,
        )


def connection_options(function: _F) -> _F:
    """Add the options of `connection`."""
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for option in (
        click.option("--private-key", "key_path", type=file, help="Private key of --certificate."),
        click.option(
            "--certificate", "certificate_path", type=file, help="Client certificate; use the port for certificates."
        ),
        click.option(
            "--api-key-file",
            type=file,
            help="File with the API key; the key itself as an argument could be read by others on the machine.",
        ),
        click.option("--ca", "ca_path", type=file, required=True, help="Certificate of the server's authority."),
        click.option("--address", default="localhost:7444", show_default=True, help="Host and port of the server."),
    ):
        function = option(function)
    return function


def connection(
    *,
    address: str,
    ca_path: Path,
    api_key_file: Path | None,
    certificate_path: Path | None,
    key_path: Path | None,
) -> Connection:
    """
    Return the connection that was asked for.

    Raises:
        click.UsageError: there is not exactly one credential, or the server is not whom --ca vouches for.
    """
    api_key = api_key_file.read_text("utf-8").strip() if api_key_file else None
    if (certificate_path is None) != (key_path is None):
        raise click.UsageError("--certificate and --private-key go together")
    if (certificate_path is None) == (not api_key):
        raise click.UsageError("give one credential: --api-key-file, or --certificate with --private-key")
    require_trust(address, ca_path)
    return Connection(
        address=address,
        ca=ca_path.read_bytes(),
        api_key=api_key or None,
        certificate=certificate_path.read_bytes() if certificate_path else None,
        key=key_path.read_bytes() if key_path else None,
    )


def require_trust(address: str, ca_path: Path) -> None:
    """
    Look at the server's certificate before anything waits for the server.

    To the RPC library a certificate it does not trust is a server that is not there yet: it would go on trying.

    Raises:
        click.BadParameter: the authority's file is none, it did not issue what the server shows, or the
            certificate is for other names.
    """
    try:
        context = ssl.create_default_context(cafile=ca_path)
    except ssl.SSLError as error:
        raise click.BadParameter(f"there is no certificate in {ca_path}", param_hint="--ca") from error
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    host = host.removeprefix("[").removesuffix("]")
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), TRUST_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _OTHER_NAME:
            message = f"the server's certificate is not for {host}: {error.verify_message}"
            raise click.BadParameter(message, param_hint="--address") from error
        message = f"{ca_path} did not issue the certificate that {address} shows: {error.verify_message}"
        raise click.BadParameter(message, param_hint="--ca") from error
    except OSError:
        # Not there yet, or not for us: the call itself will tell.
        return
