"""
The names in the server's certificate, and the files of a client's.

Those are issued beside the change that registers the certificate, and kept only if that succeeds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import click

from riskgate_server.cli.common import show_time
from riskgate_server.crypto import tls
from riskgate_server.datadir import DataDirectory, make_private_directory, write_file
from riskgate_server.engine.callers import CallerKey, caller_uri, certificate_id
from riskgate_server.stores.access.editor import IssuedCertificate

_F = TypeVar("_F", bound=Callable[..., Any])


def names_option(function: _F) -> _F:
    """Add `--name HOST`, as often as wanted; each is one that a certificate can carry."""
    return click.option(
        "--name",
        "names",
        multiple=True,
        metavar="HOST",
        callback=_checked_names,
        help="A DNS name or address by which callers reach the server, beside localhost. Repeatable.",
    )(function)


def _checked_names(_context: click.Context, _option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        try:
            tls.alternative_name(name)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--name") from error
    return names


class CertificateFiles:
    """A certificate whose files are written."""

    def __init__(self, credential: tls.Credential, certificate: Path, key: Path, ca: Path) -> None:
        expires_us = int(credential.expires().timestamp()) * 1_000_000
        self.issued = IssuedCertificate(credential.certificate_sha256(), expires_us)
        self._paths = (certificate, key, ca)

    def answer(self) -> dict[str, Any]:
        """Say it to programs."""
        certificate, key, ca = map(str, self._paths)
        return {
            "certificate_id": certificate_id(self.issued.sha256),
            "expires": show_time(self.issued.expires_us),
            "certificate_file": certificate,
            "key_file": key,
            "ca_file": ca,
        }

    def text(self) -> str:
        """Say it to people."""
        certificate, key, ca = self._paths
        until = show_time(self.issued.expires_us)
        return (
            f"Certificate {certificate_id(self.issued.sha256)}, until {until}:\n\n"
            f"    {certificate}\n    {key}\n    {ca}\n"
        )


def _make_out(out: Path) -> bool:
    """Make the directory of --out for its owner only; return whether it was made now."""
    if out.exists():
        return False
    try:
        make_private_directory(out)
    except OSError as error:
        raise click.BadParameter(f"{out} cannot be made: {error.strerror}", param_hint="--out") from error
    return True


def _free_names(out: Path, name: str) -> tuple[Path, Path]:
    """
    Return where a certificate and its key go: NAME.crt and NAME.key, or NAME-2 and so on beside earlier ones.

    Nothing is overwritten: the old pair still works, and whoever uses it changes over when it suits them.
    """
    for number in count(1):
        stem = name if number == 1 else f"{name}-{number}"
        paths = (out / f"{stem}.crt", out / f"{stem}.key")
        if not any(os.path.lexists(path) for path in paths):
            return paths
    raise AssertionError  # `count` does not end


@contextmanager
def certificate_files(
    directory: DataDirectory, caller: CallerKey, out: Path | None, expires_days: int | None, *, wanted: bool
) -> Iterator[CertificateFiles | None]:
    """Issue a certificate into files, which stay only if what follows succeeds."""
    if not wanted:
        yield None
        return
    assert out is not None
    made = _make_out(out)
    paths = _free_names(out, caller[1])
    authority = tls.Credential(directory.ca_certificate.read_bytes(), directory.ca_key.read_bytes())
    lifetime = tls.CLIENT_LIFETIME if expires_days is None else timedelta(days=expires_days)
    credential = tls.issue_client(authority, caller_uri(*caller), datetime.now(UTC), lifetime)
    try:
        write_file(paths[1], credential.key_pem)
        write_file(paths[0], credential.certificate_pem, mode=0o644)
        ca = out / "riskgate-ca.crt"
        # Put in its place whole: a copy would follow a link that somebody left in a directory of many.
        write_file(ca, authority.certificate_pem, mode=0o644)
        yield CertificateFiles(credential, *paths, ca)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        if made:
            shutil.rmtree(out)
        raise
