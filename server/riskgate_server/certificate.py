"""
The server's own certificate: whether it can be used, how long still, and how it is issued anew.

Two files cannot be replaced in one step. A renewal therefore puts the new key before the old one, in one file, and then
the new certificate in its place: whoever reads the certificate first finds its key, whatever was interrupted when.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import structlog

from riskgate_server.crypto import tls
from riskgate_server.datadir import DataDirectory, DataDirectoryError, write_file

log = structlog.get_logger()

WARN_BEFORE: Final = timedelta(days=30)
"""How long before its end the log speaks of a certificate."""

LOOK_SECONDS: Final = 86_400.0
"""How often a server that runs looks at it."""


class Standing(msgspec.Struct, frozen=True):
    """A certificate of the data directory as it is."""

    file: str
    expires: str
    server_names: tuple[str, ...]


class Renewed(msgspec.Struct, frozen=True):
    """A certificate that has just been issued."""

    certificate_file: str
    server_names: tuple[str, ...]
    expires: str
    expires_with_authority: bool


def read_pair(directory: DataDirectory) -> tuple[bytes, bytes]:
    """
    Return the server's key and certificate as they stand, which belong together beside a renewal too.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    while True:
        # In this order: a key is in its file before its certificate is, and stays until the renewal after.
        certificate = directory.server_certificate.read_bytes()
        try:
            return tls.key_of(certificate, directory.server_key.read_bytes()), certificate
        except ValueError:
            if directory.server_certificate.read_bytes() == certificate:
                raise
            # Two renewals passed between the one file and the other.


def require_readable(directory: DataDirectory) -> None:
    """
    Name the file that is no good: the RPC library only says that it could not listen.

    Raises:
        DataDirectoryError: a certificate or the key is damaged.
    """
    try:
        where = directory.ca_certificate
        tls.require_certificate(where.read_bytes())
        where = directory.server_certificate
        tls.require_certificate(where.read_bytes())
        where = directory.server_key
        read_pair(directory)
    except ValueError as error:
        raise DataDirectoryError(f"{where}: {error}; restore it from a backup") from error


def require_usable(directory: DataDirectory, now: datetime) -> None:
    """
    Refuse to serve with what no caller would accept.

    Raises:
        DataDirectoryError: a file is damaged, or the certificate has ended.
    """
    require_readable(directory)
    where = directory.server_certificate
    ends = tls.end_of(where.read_bytes())
    if ends <= now:
        raise DataDirectoryError(
            f"{where} ended {_written(ends)}: issue it anew with `riskgate keys certificate --data {directory.root}`"
        )


def standing(directory: DataDirectory) -> list[Standing]:
    """
    Return the authority's certificate and the server's, which ends no later.

    Raises:
        DataDirectoryError: one is damaged.
    """
    require_readable(directory)
    found = []
    for path in (directory.ca_certificate, directory.server_certificate):
        pem = path.read_bytes()
        found.append(Standing(path.name, _written(tls.end_of(pem)), tls.names_of(pem)))
    return found


def renew(directory: DataDirectory, names: tuple[str, ...], *, keep_names: bool, now: datetime) -> Renewed:
    """
    Issue the server's certificate anew, with a new key, for localhost, `names` and unless told otherwise those it had.

    Servers that run go on, and show it from their next handshake on. Interrupted, the old one stays.

    Raises:
        DataDirectoryError: a file is damaged, or the authority has ended, or it did not issue what is here.
    """
    require_readable(directory)
    authority = tls.Credential(directory.ca_certificate.read_bytes(), directory.ca_key.read_bytes())
    if authority.expires() <= now:
        raise DataDirectoryError(
            f"{directory.ca_certificate} ended {_written(authority.expires())}: nothing can be issued under it any more"
        )
    old_key, old = read_pair(directory)
    if not tls.was_issued_by(authority.certificate_pem, old):
        raise DataDirectoryError(
            f"{directory.server_certificate} was not issued by {directory.ca_certificate}: renew it where it was"
        )
    fresh = tls.issue_server(authority, (*(tls.names_of(old) if keep_names else ()), *names), now)
    write_file(directory.server_key, fresh.key_pem + old_key)
    write_file(directory.server_certificate, fresh.certificate_pem)
    return Renewed(
        certificate_file=str(directory.server_certificate),
        server_names=tls.names_of(fresh.certificate_pem),
        expires=_written(fresh.expires()),
        expires_with_authority=fresh.expires() == authority.expires(),
    )


async def watch(
    directory: DataDirectory,
    address: str,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Say at once what keeps callers from coming in, or soon will; then once a day how long the certificate lasts."""
    first = True
    while True:
        try:
            _, certificate = read_pair(directory)
        except Exception:  # noqa: BLE001 - whatever it is, it must not end the server's own end
            # What was read before is served on; the next start names the file.
            log.warning("certificate cannot be read", file=directory.server_certificate.name)
        else:
            if first:
                _warn_of_names(certificate, address)
            _warn_of_end(certificate, now())
        first = False
        await sleep(LOOK_SECONDS)


def _warn_of_names(certificate: bytes, address: str) -> None:
    if not _is_loopback(address) and set(tls.names_of(certificate)) <= set(tls.ALWAYS_NAMED):
        log.warning(
            "certificate names only localhost",
            address=address,
            so="callers elsewhere refuse it",
            remedy="riskgate keys certificate --name HOST",
        )


def _warn_of_end(certificate: bytes, now: datetime) -> None:
    ends = tls.end_of(certificate)
    told = {"ends": _written(ends), "remedy": "riskgate keys certificate"}
    if ends <= now:
        log.error("certificate has ended", **told)
    elif ends <= now + WARN_BEFORE:
        log.warning("certificate ends soon", **told, days=(ends - now).days)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def _written(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
