"""Where a server listens, and why it cannot: the RPC library only says that it could not."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import msgspec

from riskgate_server.settings import Settings

METRICS_ADDRESS: Final = "127.0.0.1"
"""Metrics are not encrypted: they stay on the machine."""


class Listening(msgspec.Struct, frozen=True):
    """Where the server listens."""

    address: str
    certificate_port: int
    key_port: int
    metrics_port: int


class ListenRefused(Exception):
    """The server cannot listen where it was told to. The message names option, address and port."""


def require_ports(settings: Settings) -> None:
    """
    Try to open every port that is this process's to open; one of several shares those for calls.

    Raises:
        ListenRefused: one is taken, wanted twice, not to be opened by this user, or its address is not ours.
    """
    taken: dict[int, str] = {}
    for option, address, port in _wanted(settings):
        if port < 0:
            continue
        if port in taken:
            raise ListenRefused(f"{option}: {port} is {taken[port]} already")
        if port:
            taken[port] = option
        with _listen_faults(option, address, port):
            _bound(address, port).close()


def _wanted(settings: Settings) -> Iterator[tuple[str, str, int]]:
    if settings.process < 0:
        yield "--certificate-port", settings.address, settings.certificate_port
        yield "--key-port", settings.address, settings.key_port
        for process in range(settings.processes):
            yield "--metrics-port", METRICS_ADDRESS, metrics_port(settings, process)
    else:
        yield "--metrics-port", METRICS_ADDRESS, settings.metrics_port


def metrics_port(settings: Settings, process: int) -> int:
    """Return where one of several processes answers scrapes: each has its own figures, and so a port."""
    return settings.metrics_port + process if settings.metrics_port > 0 else settings.metrics_port


@contextmanager
def reserved_ports(settings: Settings) -> Iterator[tuple[int, int]]:
    """
    Keep the two ports for calls for several processes to share, and return their numbers: 0 is any free one.

    Nobody is connected to a socket that does not listen, but its port is no other user's and no other program's.

    Raises:
        ListenRefused: one cannot be had.
    """
    numbers = []
    with ExitStack() as kept:
        for option, port in (
            ("--certificate-port", settings.certificate_port),
            ("--key-port", settings.key_port),
        ):
            with _listen_faults(option, settings.address, port):
                place = kept.enter_context(_bound(settings.address, port, socket.SO_REUSEPORT))
                numbers.append(int(place.getsockname()[1]))
        yield numbers[0], numbers[1]


def _bound(address: str, port: int, *options: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        # As servers do: connections of an earlier one that linger do not keep a port.
        for option in (socket.SO_REUSEADDR, *options):
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(where)
    except BaseException:
        bound.close()
        raise
    return bound


@contextmanager
def _listen_faults(option: str, address: str, port: int) -> Iterator[None]:
    try:
        yield
    except socket.gaierror as error:
        raise ListenRefused(f"--address: {address} is no address that can be found: {error.strerror}") from error
    except OSError as error:
        raise ListenRefused(_listen_fault(option, address, port, error)) from error


def _listen_fault(option: str, address: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"{option}: port {port} of {address} is taken by another process"
        case errno.EADDRNOTAVAIL:
            return f"--address: {address} is not an address of this machine"
        case errno.EACCES | errno.EPERM:
            return f"{option}: this user may not open port {port} of {address}; those below 1024 are the system's"
    return f"{option}: port {port} of {address}: {error.strerror}"
