"""
`riskgate init`: everything a server needs, made once, with the first credential shown once.

A marker file stands in the directory from the first step to the last. While it is there nothing in
the directory has been used by anyone, so an interrupted init starts over; once it is gone nothing is
ever made anew.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec

from riskgate_server.cli.certificates import names_option
from riskgate_server.cli.common import json_option, say, who
from riskgate_server.crypto import tls
from riskgate_server.crypto.keys import (
    FINGERPRINT,
    HEADS,
    MASTER,
    PROOFS,
    SECRET_BYTES,
    MasterKey,
    encode_ring,
)
from riskgate_server.crypto.signing import HeadSigner
from riskgate_server.datadir import DataDirectory, make_private_directory, sync_directory, write_file
from riskgate_server.scopes import ADMIN
from riskgate_server.stores.access.editor import CallerEditor, EditRefused, check_name
from riskgate_server.stores.sqlite.store import create_store
from riskgate_server.stores.sqlite.vault import create_vault

ADMIN_CALLER: Final = "admin"
_NOT_OURS: Final = frozenset({"lost+found"})
"""The root of a mounted disk is not quite empty."""
_MARKER_TEXT: Final = b"`riskgate init` is at work here, or was interrupted. Run it again to finish.\n"


class Initialised(msgspec.Struct, frozen=True):
    """What init made. The key exists in clear only here."""

    data: str
    tenant: str
    caller: str
    api_key: str
    ca_certificate: str
    heads_public_key: str
    server_names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Initialised({self.data}, ***)"


class InitRefused(Exception):
    """The directory is not one to be initialised. Nothing in it was changed."""


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@names_option
@click.option("--tenant", default="default", show_default=True, help="Tenant meant when a command names none.")
@click.option(
    "--clock",
    type=click.Choice(["system", "data"]),
    help="Clock the store lives by for good; unless given, that of its first `riskgate serve`.",
)
@json_option
def init(directory: Path, names: tuple[str, ...], tenant: str, clock: str | None, as_json: bool) -> None:
    """
    Make the data directory DIR with keys, certificates and a first credential.

    The administrator's API key is shown once. If it is lost, `riskgate callers rotate admin` makes another.
    """
    try:
        check_name("tenant", tenant)
    except EditRefused as error:
        raise click.BadParameter(str(error), param_hint="--tenant") from error
    try:
        made = initialise(directory.absolute(), names=names, tenant=tenant, clock=clock)
    except InitRefused as error:
        raise click.BadParameter(str(error), param_hint="DIR") from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or directory}: {error.strerror or error}") from error
    text = (
        f"Data directory   {made.data}\n"
        f"Server names     {', '.join(made.server_names)}\n"
        f"CA certificate   {made.ca_certificate}   (copy it to callers; the directory stays closed)\n"
        f"Verify heads     {made.heads_public_key}   (keep a copy elsewhere)\n"
        f"Administrator    {made.caller} of tenant {made.tenant}, API key, shown this once:\n\n"
        f"    {made.api_key}\n\n"
        f"Back up {made.data}/secrets apart from the rest: without it the store is unreadable.\n"
        f"Next: riskgate serve --data {directory}"
    )
    say(msgspec.to_builtins(made), text, as_json=as_json)


def initialise(root: Path, *, names: tuple[str, ...], tenant: str, clock: str | None = None) -> Initialised:
    """
    Make a data directory, or finish one whose making was interrupted.

    Raises:
        InitRefused: there is something at `root` that is not ours to start over.
    """
    directory = DataDirectory(root)
    if not root.parent.is_dir():
        raise InitRefused(f"{root.parent} does not exist")
    if not root.exists() and not os.access(root.parent, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise InitRefused(f"this user may not make a directory in {root.parent}")
    _refuse_what_is_not_ours(directory)
    make_private_directory(root)
    with _marked(directory):
        # Once more, now that nobody else can be at it.
        _refuse_what_is_not_ours(directory)
        _clear(directory)
        if clock:
            directory.live_by(clock)
        return _make(directory, names=names, tenant=tenant)


def _make(directory: DataDirectory, *, names: tuple[str, ...], tenant: str) -> Initialised:
    now = datetime.now(UTC)
    make_private_directory(directory.secrets)
    make_private_directory(directory.tls)

    secrets = {kind: os.urandom(SECRET_BYTES) for kind in (MASTER, FINGERPRINT, PROOFS, HEADS)}
    for kind, secret in secrets.items():
        write_file(directory.secret(kind), encode_ring(kind, {int(now.timestamp()): secret}))
    write_file(directory.heads_public_key, HeadSigner(secrets[HEADS]).public_key_pem())

    authority = tls.new_authority(now)
    server = tls.issue_server(authority, names, now)
    write_file(directory.ca_key, authority.key_pem)
    write_file(directory.ca_certificate, authority.certificate_pem)
    write_file(directory.server_key, server.key_pem)
    write_file(directory.server_certificate, server.certificate_pem)

    # On both, so that neither is taken for the other directory's.
    mark = int.from_bytes(os.urandom(4), "big") >> 1 or 1
    create_store(directory.store, mark=mark)
    create_vault(directory.vault, MasterKey(secrets[MASTER]).wrap, mark=mark)
    editor = CallerEditor(directory.access, who=who(), default_tenant_if_new=tenant)
    try:
        key = editor.add((tenant, ADMIN_CALLER), scopes=[ADMIN], certificates_allowed=False, with_key=True)
    finally:
        editor.close()
    assert key is not None
    return Initialised(
        data=str(directory.root),
        tenant=tenant,
        caller=ADMIN_CALLER,
        api_key=key.text,
        ca_certificate=str(directory.ca_certificate),
        heads_public_key=str(directory.heads_public_key),
        server_names=tls.names_of(server.certificate_pem),
    )


def _refuse_what_is_not_ours(directory: DataDirectory) -> None:
    root = directory.root
    if not root.exists():
        return
    if not root.is_dir():
        raise InitRefused(f"{root} is not a directory")
    present = {path.name for path in root.iterdir()} - _NOT_OURS
    if not present:
        return
    if directory.unfinished.exists():
        foreign = present - _names_made_here(directory)
        if foreign:
            raise InitRefused(f"{root} holds what init did not make: {', '.join(sorted(foreign))}")
        return
    if directory.master_key.exists():
        raise InitRefused(f"{root} was initialised before; nothing was changed")
    raise InitRefused(f"{root} is not empty; nothing was changed")


def _names_made_here(directory: DataDirectory) -> set[str]:
    paths = (*directory.required_files(), *directory.private_files(), directory.clock, directory.unfinished)
    names = {path.relative_to(directory.root).parts[0] for path in paths}
    return names | {f".{name}.new" for name in names}


def _clear(directory: DataDirectory) -> None:
    """Take away what an interrupted init left; nobody has used any of it."""
    for name in _names_made_here(directory) - {directory.unfinished.name}:
        path = directory.root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    sync_directory(directory.root)


@contextmanager
def _marked(directory: DataDirectory) -> Iterator[None]:
    """Keep the marker standing and locked for the time of the making; it goes only when all went well."""
    marker = directory.unfinished
    descriptor = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InitRefused(f"another init is at work in {directory.root}") from None
        if os.fstat(descriptor).st_nlink == 0:
            raise InitRefused(f"{directory.root} was initialised by another init just now")
        os.pwrite(descriptor, _MARKER_TEXT, 0)
        os.fsync(descriptor)
        sync_directory(directory.root)
        yield
        marker.unlink()
        sync_directory(directory.root)
    finally:
        os.close(descriptor)
