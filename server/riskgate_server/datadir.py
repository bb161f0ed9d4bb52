"""A data directory: where everything is, who may read it, and how files are put there."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

PRIVATE_FILE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700
_NOT_OWNER: Final = 0o077


class DataDirectoryError(Exception):
    """The directory cannot be used as it is. The message names the path and the remedy."""


class DataDirectory(msgspec.Struct, frozen=True):
    """All paths of a data directory."""

    root: Path

    @property
    def unfinished(self) -> Path:
        """Present while `riskgate init` works; whatever else is there counts for nothing until it is gone."""
        return self.root / "INITIALISING"

    @property
    def lock(self) -> Path:
        """Held by the process that serves the directory."""
        return self.root / "lock"

    @property
    def store(self) -> Path:
        """Journal and state."""
        return self.root / "riskgate.db"

    @property
    def vault(self) -> Path:
        """Customers' data keys, each wrapped under the master key."""
        return self.root / "vault.db"

    @property
    def access(self) -> Path:
        """Callers, their keys, and the log of changes to them."""
        return self.root / "access.db"

    def heads_of(self, writer: int) -> Path:
        """Signed heads of a writer's lane, one JSON object per line."""
        return self.root / (f"heads-{writer}.log" if writer else "heads.log")

    def all_heads(self) -> list[Path]:
        """Return every file of heads that is here, by name: each process that served the directory wrote its own."""
        return sorted(self.root.glob("heads*.log"))

    @property
    def clock(self) -> Path:
        """By which clock the store lives, `system` or `data`, from its first serving on."""
        return self.root / "clock"

    @property
    def heads_public_key(self) -> Path:
        """What the heads are verified with; may be given to anyone."""
        return self.root / "heads.pub"

    @property
    def tls(self) -> Path:
        """The local certificate authority and what it issued to the server."""
        return self.root / "tls"

    @property
    def ca_certificate(self) -> Path:
        """What callers verify the server with, and the server its callers."""
        return self.tls / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Issues certificates. The server never reads it."""
        return self.tls / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """The server's certificate."""
        return self.tls / "server.crt"

    @property
    def server_key(self) -> Path:
        """The key of the server's certificate; behind it that of the one before, since it was renewed."""
        return self.tls / "server.key"

    @property
    def secrets(self) -> Path:
        """Keys that nothing can replace: without them the store is unreadable."""
        return self.root / "secrets"

    def secret(self, kind: str) -> Path:
        """The ring of one kind of secret (`crypto.rings`)."""
        return self.secrets / f"{kind}.key"

    @property
    def rotation(self) -> Path:
        """Which rings a `riskgate keys rotate` is renewing, while it does."""
        return self.secrets / "rotation"

    @property
    def master_key(self) -> Path:
        """Wraps the customers' data keys."""
        return self.secret("master")

    @property
    def fingerprint_key(self) -> Path:
        """Keys the hashes that stand for values which must not be stored in clear."""
        return self.secret("fingerprint")

    @property
    def heads_key(self) -> Path:
        """Signs the heads of the journal."""
        return self.secret("heads")

    @property
    def erased(self) -> Path:
        """Who was erased, so that a restored backup does not bring them back."""
        return self.root / "erased.log"

    @property
    def proofs_key(self) -> Path:
        """Keys that codes, grants and seeds are derived from; the last one is current."""
        return self.secret("proofs")

    @property
    def outbox(self) -> Path:
        """What the gateway for development stands for: messages with numbers and codes, in clear. Nothing else is."""
        return self.root / "messages-in-clear.jsonl"

    def private_files(self) -> tuple[Path, ...]:
        """Files that nobody but the owner may read."""
        databases = (self.store, self.vault, self.access)
        beside = tuple(Path(f"{path}{suffix}") for path in databases for suffix in ("-wal", "-shm", "-journal"))
        return (
            self.master_key,
            self.fingerprint_key,
            self.heads_key,
            self.proofs_key,
            self.erased,
            self.ca_key,
            self.server_key,
            self.outbox,
            *databases,
            *beside,
        )

    def required_files(self) -> tuple[Path, ...]:
        """Files that every finished `riskgate init` has left here."""
        return (
            self.master_key,
            self.fingerprint_key,
            self.heads_key,
            self.proofs_key,
            self.heads_public_key,
            self.ca_certificate,
            self.ca_key,
            self.server_certificate,
            self.server_key,
            self.store,
            self.vault,
            self.access,
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """
        Hold the directory for this process; the kernel lets go when it ends, however it ends.

        Raises:
            DataDirectoryError: another process serves it.
        """
        create_empty_private(self.lock)
        with self.lock.open("r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read().strip() or "another process"
                raise DataDirectoryError(f"{self.root} is served by {holder}; a directory takes one server") from None
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            yield

    @contextmanager
    def secrets_held(self) -> Iterator[None]:
        """
        Hold the secrets for this process: nobody else renews them, or copies what they wrap.

        Raises:
            DataDirectoryError: somebody does.
        """
        path = self.secrets / "lock"
        create_empty_private(path)
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another `riskgate keys` or `copy` is at work under the secrets of {self.root}"
                raise DataDirectoryError(message) from None
            yield

    def live_by(self, clock: str) -> None:
        """
        Have the store live by a clock for good; again is no effect.

        Raises:
            DataDirectoryError: it lives by another one. Time that leaps would end every open hold.
        """
        if not self.clock.exists():
            write_file(self.clock, f"{clock}\n".encode())
        recorded = self.clock.read_text(encoding="utf-8", errors="replace").strip()
        if recorded != clock:
            raise DataDirectoryError(
                f"{self.root} lives by the {recorded} clock: serve it with `--clock {recorded}`, or make another"
                f" directory with `riskgate init DIR --clock {clock}`"
            )

    def check(self, *, store_here: bool = True) -> None:
        """
        Refuse a directory that is unfinished, incomplete, or readable by others.

        Unless the store is here, its files and the vault's are not asked for.

        Raises:
            DataDirectoryError: with the first thing that is wrong and what to do about it.
        """
        _require_rights(self.root)
        if not self.root.is_dir():
            raise DataDirectoryError(f"{self.root} is not a directory: create it with `riskgate init {self.root}`")
        if self.unfinished.exists():
            raise DataDirectoryError(
                f"{self.root} was left by an interrupted init: finish it with `riskgate init {self.root}`"
            )
        if not self.access.exists() and not self.master_key.exists():
            raise DataDirectoryError(f"{self.root} is not a data directory: create one with `riskgate init DIR`")
        for path in (self.secrets, self.tls):
            _require_rights(path)
        elsewhere = () if store_here else (self.store, self.vault)
        for path in self.required_files():
            if path in elsewhere:
                continue
            # Never made anew: a fresh master key beside an old store would look like total loss.
            if not path.is_file():
                database = ", or name the database that this directory has instead with --store"
                what_to_do = f"restore it from a backup{database if path in (self.store, self.vault) else ''}"
                raise DataDirectoryError(f"{path} is missing: {what_to_do}")
        for path in (self.root, self.secrets, self.tls, *self.private_files()):
            _refuse_if_open_to_others(path)


def _require_rights(path: Path) -> None:
    """Refuse a directory whose files this user cannot even ask for: it would look as if they were not there."""
    try:
        owner = path.stat().st_uid
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise DataDirectoryError(f"{path}: this user may not search a directory above it") from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        who = f"uid {os.geteuid()} may not read, write and search it"
        raise DataDirectoryError(f"{path}: {who}; run as its owner (uid {owner})")


def _refuse_if_open_to_others(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & _NOT_OWNER:
        raise DataDirectoryError(f"{path} is open to other users (mode {mode:04o}): run `chmod go-rwx {path}`")
    if status.st_uid not in (os.geteuid(), 0):
        raise DataDirectoryError(f"{path} belongs to another user (uid {status.st_uid}): chown it to the server's")


def make_private_directory(path: Path) -> None:
    """Create `path` for its owner only, durably; one that exists is made private."""
    path.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
    path.chmod(PRIVATE_DIRECTORY)
    sync_directory(path.parent)


def write_file(path: Path, content: bytes, *, mode: int = PRIVATE_FILE) -> None:
    """Put a whole new file at `path`, durably: readers see none or all of it, and others never see it."""
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        # The umask may have taken bits away that the file is meant to have.
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    staged.replace(path)
    sync_directory(path.parent)


def create_empty_private(path: Path) -> None:
    """Create an empty file for its owner only, before a library follows the umask; one that exists stays."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    except FileExistsError:
        return
    os.fchmod(descriptor, PRIVATE_FILE)
    os.close(descriptor)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
