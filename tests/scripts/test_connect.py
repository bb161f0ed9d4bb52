"""Whether the server is whom --ca vouches for is known at once."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from scripts.streaming.connect import require_trust

from riskgate_server.cli.init import initialise


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tls") / "data"
    initialise(root, names=(), tenant="default")
    return root / "tls"


@pytest.fixture
def port(tls: Path) -> Iterator[int]:
    """A server that shakes hands on all loopback addresses, of which its certificate names one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    with socket.create_server(("0.0.0.0", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken, _ = listening.accept()
                    with contextlib.suppress(OSError), context.wrap_socket(taken, server_side=True):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_server_of_our_authority_is_trusted(tls: Path, port: int) -> None:
    require_trust(f"localhost:{port}", tls / "ca.crt")
    require_trust(f"127.0.0.1:{port}", tls / "ca.crt")


def test_another_authority_is_the_fault_of_ca(tls: Path, port: int, tmp_path: Path) -> None:
    initialise(tmp_path / "other", names=(), tenant="default")
    other = tmp_path / "other" / "tls" / "ca.crt"

    with pytest.raises(click.BadParameter, match=f"{other} did not issue the certificate") as refusal:
        require_trust(f"localhost:{port}", other)

    assert refusal.value.param_hint == "--ca"


def test_another_name_is_the_fault_of_the_address(tls: Path, port: int) -> None:
    with pytest.raises(click.BadParameter, match=r"the server's certificate is not for 127\.0\.0\.2") as refusal:
        require_trust(f"127.0.0.2:{port}", tls / "ca.crt")

    assert refusal.value.param_hint == "--address"


def test_what_is_no_certificate_is_named(tls: Path) -> None:
    with pytest.raises(click.BadParameter, match="there is no certificate in"):
        require_trust("localhost:1", tls / "server.key")


def test_a_server_that_is_not_there_is_waited_for(tls: Path) -> None:
    require_trust("localhost:1", tls / "ca.crt")
