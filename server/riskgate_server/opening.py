"""
Opens the rows, keys and signed heads of a data directory, and refuses those that do not belong together.

For the server, and for whoever verifies its books.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import Final

import msgspec
import structlog

from riskgate_server.crypto.keys import MASTER, MasterKey, MasterKeyMismatch, SecretFileBroken, decode_secret
from riskgate_server.crypto.seal import Sealer
from riskgate_server.crypto.signing import (
    Head,
    HeadLog,
    HeadsBroken,
    HeadVerifier,
    read_heads,
    without_torn_end,
)
from riskgate_server.datadir import DataDirectory, DataDirectoryError
from riskgate_server.engine.ports import ReadFailed, Store, StoreBroken
from riskgate_server.engine.report import Report
from riskgate_server.engine.sealing import GENESIS, batch_hash, merkle_root
from riskgate_server.engine.verify import Progress, verify
from riskgate_server.engine.writer import BATCH_MAX
from riskgate_server.stores.refusals import SchemaTooNew, VaultUnusable
from riskgate_server.stores.sqlite.store import SQLiteSnapshots, SQLiteStore
from riskgate_server.stores.sqlite.vault import SqliteVault

log = structlog.get_logger()

KEYS_OF_A_CRASH_MAX: Final = BATCH_MAX
"""Keys without a customer that the end of a process can leave: they are durable before the batch that uses them."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)

_STRANGERS: Final = "do not belong together: restore both from one backup"

WRITER: Final = "w0"
"""Name of the one writer of an embedded store, in signed heads."""


class OpenedStore(msgspec.Struct, frozen=True):
    """A data directory's rows and keys, opened."""

    store: SQLiteStore
    vault: SqliteVault
    sealer: Sealer

    def close(self) -> None:
        """Finish with both."""
        self.store.close()
        self.vault.close()


def secret(kind: str, path: Path) -> bytes:
    """Return a secret of the data directory, or raise `DataDirectoryError`."""
    try:
        return decode_secret(kind, path.read_bytes())
    except SecretFileBroken as error:
        raise DataDirectoryError(f"{path}: {error}; restore it from a backup") from error


def open_store(directory: DataDirectory, *, synchronous: str = "FULL", readers: int = 1) -> OpenedStore:
    """
    Open a checked data directory for writing, with so many connections that read; only one process may.

    Raises:
        DataDirectoryError: the store cannot be read, or is not the one that belongs to the vault.
    """
    try:
        store = SQLiteStore(directory.store, synchronous=synchronous, readers=readers)
    except (ReadFailed, StoreBroken) as error:
        raise DataDirectoryError(f"{directory.store} cannot be read: {error}") from error
    try:
        master = MasterKey(secret(MASTER, directory.master_key))
        vault = SqliteVault(directory.vault, wrap=master.wrap, unwrap=master.unwrap)
    except BaseException:
        store.close()
        raise
    opened = OpenedStore(store, vault, Sealer())
    try:
        _refuse_strangers(directory, opened)
    except BaseException:
        opened.close()
        raise
    return opened


def _refuse_strangers(directory: DataDirectory, opened: OpenedStore) -> None:
    """Refuse a store that is not the one whose customers have keys in the vault: going on would begin anew."""
    if opened.store.mark != opened.vault.mark:
        raise DataDirectoryError(f"{directory.store} and {directory.vault} {_STRANGERS}")
    with opened.store.snapshot() as snapshot:
        if snapshot.customers(after=("", ""), limit=1):
            return
    keys = opened.vault.count()
    if keys > KEYS_OF_A_CRASH_MAX:
        raise DataDirectoryError(
            f"{directory.store} has no customers, and {directory.vault} has keys of {keys}:"
            " restore the store from the backup that belongs to the vault"
        )


UNREADABLE: Final = (DataDirectoryError, MasterKeyMismatch, SchemaTooNew, VaultUnusable, OSError)
"""Why a directory cannot even be looked at."""


def verify_directory(directory: DataDirectory, progress: Progress) -> Report:
    """
    Verify a data directory, whether or not a server is running on it.

    Raises:
        One of `UNREADABLE`: it cannot be looked at.
    """
    faults: list[str] = []
    heads = _signed_heads(directory, faults)
    if not directory.store.exists():
        return Report(heads=len(heads), faults=[*faults, f"{directory.store.name} is missing"])
    master = MasterKey(secret(MASTER, directory.master_key))
    with contextlib.ExitStack() as closing:
        vault = SqliteVault(directory.vault, wrap=master.wrap, unwrap=master.unwrap, read_only=True)
        closing.callback(vault.close)
        try:
            snapshots = SQLiteSnapshots(directory.store)
            closing.callback(snapshots.close)
            broken, foreign = snapshots.schema_differences()
            if not broken and (misfiled := snapshots.misfiled()):
                faults.append(f"{misfiled} records are of no kind, or are not what their kind is")
            if snapshots.mark != vault.mark:
                faults.append(f"{directory.store.name} and {directory.vault.name} {_STRANGERS}")
        except ReadFailed as error:
            return Report(heads=len(heads), faults=[*faults, f"{directory.store.name} cannot be read: {error}"])
        faults += broken + foreign
        if broken:
            return Report(heads=len(heads), faults=faults)
        report = verify(snapshots, vault, Sealer(), progress, heads)
    # Every server signs where it begins, before anything is written.
    if report.entries and not heads and not faults:
        faults.append(f"{directory.heads.name} has no head of this journal: it was lost or emptied")
    report.faults[:0] = faults
    return report


def _signed_heads(directory: DataDirectory, faults: list[str]) -> list[Head]:
    """Return the heads of the log up to the first that is no good, which is a fault."""
    verifier = HeadVerifier(directory.heads_public_key.read_bytes())
    heads: list[Head] = []
    if directory.heads.exists():
        lines = without_torn_end(directory.heads.read_bytes()).splitlines(keepends=True)
        try:
            heads.extend(read_heads(lines, verifier))
        except HeadsBroken as error:
            faults.append(f"{directory.heads.name}: {error}")
    return heads


class OtherPast(Exception):
    """The store is not the one whose heads were signed: it is missing, older, or was rewritten."""


def refuse_other_past(heads: HeadLog, store: Store) -> None:
    """
    Refuse to go on from a store that contradicts the last signed head.

    Raises:
        OtherPast: a file was lost, an old copy restored, or history rewritten.
    """
    signed = heads.last
    if signed is None or not signed.batch:
        return
    with store.snapshot() as snapshot:
        batches = snapshot.batches(after=signed.batch - 2, limit=2)
        found = batches[-1] if batches else None
        if found is None or (found.sequence, found.hash) != (signed.batch, signed.batch_hash):
            raise OtherPast(
                f"the store does not hold commit {signed.batch}, whose head was signed: it is missing, older or"
                " rewritten; restore the right file, or move heads.log away to accept this one"
            )
        before = batches[0].hash if signed.batch > 1 else GENESIS
        entries = snapshot.entries_by_position(after=signed.entries - found.count, limit=found.count)
    hashes = [entry.hash for entry in entries if entry.batch == signed.batch]
    whole = len(hashes) == found.count and entries[-1].position == signed.entries
    if not whole or merkle_root(hashes) != found.root or batch_hash(found, before) != found.hash:
        raise OtherPast(
            f"the store does not hold the entries of commit {signed.batch}, whose head was signed: some are missing"
            " or rewritten; restore the right file"
        )


def sign_head(heads: HeadLog, store: Store) -> None:
    """Write the journal's head, signed, outside the database: who rewrites the database cannot rewrite this."""
    try:
        with store.snapshot() as snapshot:
            position = snapshot.last_position()
            batch = snapshot.last_batch()
    except ReadFailed:
        # The next head vouches for what this one would have.
        log.exception("head put off")
        return
    if batch is None:
        head = Head(writer=WRITER, batch=0, batch_hash=GENESIS, entries=0, at_us=0)
    else:
        head = Head(writer=WRITER, batch=batch.sequence, batch_hash=batch.hash, entries=position, at_us=batch.at_us)
    try:
        heads.append(head)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        # The journal cannot grow either; when there is room again, both go on.
        log.exception("head not signed")
