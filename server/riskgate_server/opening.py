"""
Opens the rows, keys and signed heads of a data directory, and refuses those that do not belong together.

Rows and keys may be in a PostgreSQL database instead, which a DSN names; all else stays in the directory.

For the server, and for whoever verifies its books.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from riskgate_server.crypto.keys import MASTER, MasterKeyMismatch, SecretFileBroken
from riskgate_server.crypto.ringed import MasterKeys
from riskgate_server.crypto.rings import Ring, RingFile
from riskgate_server.crypto.seal import Sealer
from riskgate_server.crypto.signing import (
    Head,
    HeadLog,
    HeadsBroken,
    HeadSigner,
    HeadsInUse,
    HeadVerifier,
    read_heads,
    without_torn_end,
)
from riskgate_server.datadir import DataDirectory, DataDirectoryError, create_empty_private
from riskgate_server.engine.failures import ReadFailed, StoreBroken, StoreBusy
from riskgate_server.engine.lanes import lane_of, nothing_committed
from riskgate_server.engine.report import Report
from riskgate_server.engine.sealing import batch_hash, genesis, merkle_root
from riskgate_server.engine.storing import Snapshots, Store, Vault
from riskgate_server.engine.verify import Progress, verify
from riskgate_server.engine.writer import BATCH_MAX
from riskgate_server.stores.moves import FILES, Mark, why_not_served
from riskgate_server.stores.refusals import SchemaTooNew, SettingsRefused, StoreMoved, VaultUnusable
from riskgate_server.stores.sqlite.snapshots import SQLiteSnapshots
from riskgate_server.stores.sqlite.store import SQLiteStore
from riskgate_server.stores.sqlite.vault import SqliteVault

if TYPE_CHECKING:
    from riskgate_server.stores.postgres.store import PostgresStore

log = structlog.get_logger()

KEYS_OF_A_CRASH_MAX: Final = BATCH_MAX
"""Keys without a customer that the end of a process can leave: they are durable before the batch that uses them."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)

_STRANGERS: Final = "do not belong together: restore both from one backup"


class OpenedStore(msgspec.Struct, frozen=True):
    """Rows and keys, opened; `close` finishes with both."""

    store: Store
    vault: Vault
    sealer: Sealer
    close: Callable[[], None]


def ring_file(kind: str, path: Path) -> RingFile:
    """Return a ring of secrets of the data directory, or raise `DataDirectoryError`."""
    try:
        return RingFile(kind, path)
    except FileNotFoundError as error:
        raise DataDirectoryError(f"{path} is missing: restore it from a backup") from error
    except SecretFileBroken as error:
        raise DataDirectoryError(f"{path}: {error}; restore it from a backup") from error


def secret_ring(kind: str, path: Path) -> Mapping[int, bytes]:
    """Return what a ring of the data directory holds now, or raise `DataDirectoryError`."""
    return ring_file(kind, path).secrets()


def secret(kind: str, path: Path) -> bytes:
    """Return the newest secret of a ring of the data directory, or raise `DataDirectoryError`."""
    secrets = secret_ring(kind, path)
    return secrets[max(secrets)]


def master_keys(directory: DataDirectory) -> MasterKeys:
    """Return the master keys of the data directory, or raise `DataDirectoryError`."""
    return MasterKeys(ring_file(MASTER, directory.master_key))


def open_store(
    directory: DataDirectory,
    dsn: str = "",
    *,
    synchronous: str = "FULL",
    readers: int = 1,
    writer: int | None = None,
    may_take: Callable[[int], bool] = lambda _: True,
) -> OpenedStore:
    """
    Open the rows and keys of a checked data directory, or of a database, for writing; only one process may.

    With so many connections that read. The tables of a database are made at its first opening; several processes may
    write it, each under a number of its own: the lowest that is free, and `may_take` accepts, unless one is named.

    Raises:
        DataDirectoryError: the store cannot be read, or is not the one that belongs to the vault.
        SettingsRefused: the database, or what speaks to it, is not what durability needs.
        StoreBusy: the database cannot be reached.
        StoreMoved: it is not the end of a move that is served.
    """
    master = master_keys(directory)
    with contextlib.ExitStack() as closing:
        store: Store
        vault: Vault
        if dsn:
            store = _open_database(dsn, readers, writer, may_take, closing)
            # After its lane was taken: who marks a store looks for lanes that are taken afterwards.
            _refuse_moved(store.move, "the database")
            _refuse_beside_files(directory, store)
            vault = _open_its_vault(dsn, store, master, closing)
        else:
            store, vault = open_files(directory, master, closing, synchronous=synchronous, readers=readers)
            _refuse_moved(store.move, str(directory.store))
        return OpenedStore(store, vault, Sealer(), closing.pop_all().close)


def _refuse_moved(mark: Mark | None, name: str) -> None:
    if why := why_not_served(mark, name):
        raise StoreMoved(why)


def _refuse_beside_files(directory: DataDirectory, database: Snapshots) -> None:
    """
    Refuse a database with nothing in it beside files with customers who are still served from there.

    Raises:
        DataDirectoryError: the store of the directory is in files.
    """
    if _has_customers(database) or not directory.store.exists():
        return
    # What cannot be read serves nobody, and is no reason against the database.
    with contextlib.suppress(ReadFailed), contextlib.closing(SQLiteSnapshots(directory.store)) as files:
        if _has_customers(files) and why_not_served(files.move, "") is None:
            raise DataDirectoryError(
                f"the database is empty, and this directory's store is in files, {directory.store}: move it with"
                f" `riskgate copy --from {FILES}{directory.root} --to DSN`, or begin in another directory"
            )


def open_files(
    directory: DataDirectory,
    master: MasterKeys,
    closing: contextlib.ExitStack,
    *,
    synchronous: str = "FULL",
    readers: int = 1,
) -> tuple[SQLiteStore, SqliteVault]:
    """
    Open the rows and keys of a checked data directory, whatever move they are an end of.

    Raises:
        As `open_store`, but for StoreMoved.
    """
    try:
        store = SQLiteStore(directory.store, synchronous=synchronous, readers=readers)
    except (ReadFailed, StoreBroken) as error:
        raise DataDirectoryError(f"{directory.store} cannot be read: {error}") from error
    closing.callback(store.close)
    vault = SqliteVault(directory.vault, wrap=master.wrap, unwrap=master.unwrap)
    closing.callback(vault.close)
    if store.mark != vault.mark:
        raise DataDirectoryError(f"{directory.store} and {directory.vault} {_STRANGERS}")
    if not _has_customers(store) and not store.move:
        _refuse_keys_of_nobody(vault.count(), str(directory.store), str(directory.vault))
    return store, vault


def _open_database(
    dsn: str,
    readers: int,
    writer: int | None,
    may_take: Callable[[int], bool],
    closing: contextlib.ExitStack,
) -> PostgresStore:
    with driver():
        from riskgate_server.stores.postgres.store import PostgresStore  # noqa: PLC0415 - an extra, see driver
    store = PostgresStore(dsn, writer, readers=readers, may_take=may_take)
    closing.callback(store.close)
    return store


def _open_its_vault(dsn: str, store: Store, master: MasterKeys, closing: contextlib.ExitStack) -> Vault:
    from riskgate_server.stores.postgres.vault import PostgresVault, create_vault  # noqa: PLC0415 - as above

    begun = _has_customers(store)
    if not begun:
        # Never beside customers: a vault that was lost must not come back empty.
        create_vault(dsn, master.wrap)
    vault = PostgresVault(dsn, wrap=master.wrap, unwrap=master.unwrap)
    closing.callback(vault.close)
    if not begun:
        _refuse_keys_of_nobody(vault.count(), "the database", "its vault")
    return vault


def store_name(dsn: str) -> str:
    """Return where a store is, as people may read it: `files`, or the database without user and password."""
    if not dsn:
        return "files"
    with driver():
        from riskgate_server.stores.postgres.moves import place_name  # noqa: PLC0415 - an extra, see driver
    return place_name(dsn)


@contextlib.contextmanager
def driver() -> Iterator[None]:
    """Import what speaks PostgreSQL: its driver is an extra, which who stays with one file need not install."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = "a store in PostgreSQL needs its driver: install the extra `postgres` of riskgate"
        raise SettingsRefused(message) from error


def _has_customers(store: Snapshots) -> bool:
    with store.snapshot() as snapshot:
        return bool(snapshot.customers(after=("", ""), limit=1))


def _refuse_keys_of_nobody(keys: int, store: str, vault: str) -> None:
    """Refuse a store without a customer whose vault has keys of many: going on would begin anew."""
    if keys > KEYS_OF_A_CRASH_MAX:
        raise DataDirectoryError(
            f"{store} has no customers, and {vault} has keys of {keys}:"
            " restore the store from the backup that belongs to the vault"
        )


UNREADABLE: Final = (
    DataDirectoryError,
    MasterKeyMismatch,
    SchemaTooNew,
    SettingsRefused,
    StoreBusy,
    VaultUnusable,
    StoreMoved,
    OSError,
)
"""Why a directory, or a database, cannot even be looked at."""


def verify_directory(directory: DataDirectory, progress: Progress, dsn: str = "") -> Report:
    """
    Verify a data directory, with the database a DSN names, whether or not a server is running on it.

    Raises:
        One of `UNREADABLE`: it cannot be looked at.
    """
    faults: list[str] = []
    heads, empty = _signed_heads(directory, faults)
    if not dsn and not directory.store.exists():
        missing = f"{directory.store.name} is missing; --store names the database of a directory that has one"
        return Report(heads=len(heads), faults=[*faults, missing])
    master = master_keys(directory)
    with contextlib.ExitStack() as closing:
        try:
            snapshots, vault, broken = (
                _look_at_database(directory, dsn, master, faults, closing)
                if dsn
                else _look_at_files(directory, master, faults, closing)
            )
        except ReadFailed as error:
            name = "the database" if dsn else directory.store.name
            return Report(heads=len(heads), faults=[*faults, f"{name} cannot be read: {error}"])
        if broken:
            return Report(heads=len(heads), faults=faults)
        report = verify(snapshots, vault, Sealer(), progress, heads)
        # What cannot be read is a fault that is told already.
        with contextlib.suppress(ReadFailed), snapshots.snapshot() as snapshot:
            if any(head.batch for head in heads) and nothing_committed(snapshot):
                faults.append(f"the store is another than the one whose heads were signed: {NOTHING_HERE}")
    # Every server signs where it begins, before anything is written. Others may serve from other directories.
    if not faults:
        written = [directory.heads_of(lane.writer).name for lane in report.lanes if lane.entries]
        lost = [name for name in written if name in empty or not heads]
        faults.extend(f"{name} has no head of its lane: it was lost or emptied" for name in lost)
    report.faults[:0] = faults
    return report


def _look_at_files(
    directory: DataDirectory, master: MasterKeys, faults: list[str], closing: contextlib.ExitStack
) -> tuple[Snapshots, Vault, bool]:
    """Return rows and keys to read, and whether the schema is too damaged for it; what is found is a fault."""
    vault = SqliteVault(directory.vault, wrap=master.wrap, unwrap=master.unwrap, read_only=True)
    closing.callback(vault.close)
    snapshots = SQLiteSnapshots(directory.store)
    closing.callback(snapshots.close)
    broken, foreign = snapshots.schema_differences()
    if not broken:
        if misfiled := snapshots.misfiled():
            faults.append(f"{misfiled} records are of no kind, or are not what their kind is")
        _tell_unfinished(snapshots.move, str(directory.store), faults)
    if snapshots.mark != vault.mark:
        faults.append(f"{directory.store.name} and {directory.vault.name} {_STRANGERS}")
    faults += broken + foreign
    return snapshots, vault, bool(broken)


def _look_at_database(
    directory: DataDirectory, dsn: str, master: MasterKeys, faults: list[str], closing: contextlib.ExitStack
) -> tuple[Snapshots, Vault, bool]:
    """Return rows and keys to read, and whether the schema is too damaged for it; what is found is a fault."""
    with driver():
        from riskgate_server.stores.postgres.store import PostgresSnapshots  # noqa: PLC0415 - as above
        from riskgate_server.stores.postgres.vault import PostgresVault  # noqa: PLC0415
    snapshots = PostgresSnapshots(dsn)
    closing.callback(snapshots.close)
    broken, foreign = snapshots.schema_differences()
    if not broken:
        _tell_unfinished(snapshots.move, "the database", faults)
        # Before the vault, which such a database need not have.
        _refuse_beside_files(directory, snapshots)
    vault = PostgresVault(dsn, wrap=master.wrap, unwrap=master.unwrap, read_only=True)
    closing.callback(vault.close)
    faults += broken + foreign
    return snapshots, vault, bool(broken)


def _tell_unfinished(mark: Mark | None, name: str, faults: list[str]) -> None:
    """
    Note a copy that lacks rows.

    Raises:
        StoreMoved: it was moved away: the heads go on with the other place, and what is found here is not the truth.
    """
    if mark is None:
        return
    if mark.role == "target" and (why := why_not_served(mark, name)):
        faults.append(why)
    elif mark.finished:
        _refuse_moved(mark, name)


def _signed_heads(directory: DataDirectory, faults: list[str]) -> tuple[list[Head], set[str]]:
    """Return the heads of every log up to the first that is no good, which is a fault; and the names of empty logs."""
    verifier = HeadVerifier(directory.heads_public_key.read_bytes())
    heads: list[Head] = []
    empty = set()
    for path in directory.all_heads():
        lines = without_torn_end(path.read_bytes()).splitlines(keepends=True)
        if not lines:
            empty.add(path.name)
        try:
            heads.extend(read_heads(lines, verifier))
        except HeadsBroken as error:
            faults.append(f"{path.name}: {error}")
    return heads, empty


NOTHING_HERE: Final = (
    "nothing was ever committed to it; name the database that the directory was served from with --store, leave"
    " --store away if it was served from its own files, or restore the right file"
)


class OtherPast(Exception):
    """The store is not the one whose heads were signed: it is missing, older, or was rewritten."""


def refuse_beginning_anew(directory: DataDirectory, store: Store) -> None:
    """
    Refuse an empty store in a directory that has signed for another, in whichever lane.

    Raises:
        OtherPast: a file was lost, or the journal is elsewhere.
    """
    with store.snapshot() as snapshot:
        if not nothing_committed(snapshot):
            return
    heads, _ = _signed_heads(directory, [])
    if signed := max((head.batch for head in heads), default=0):
        raise OtherPast(f"the store does not hold commit {signed}, whose head was signed: {NOTHING_HERE}")


def refuse_other_past(heads: HeadLog, store: Store) -> None:
    """
    Refuse to go on in the store's own lane if it contradicts the last head that was signed of it, or itself.

    Others may have gone on from that head since, under the same number from another directory.

    Raises:
        OtherPast: a file was lost, an old copy restored, or history rewritten.
    """
    signed, writer = heads.last, store.writer
    if signed is not None and signed.writer != writer:
        raise OtherPast(
            f"the heads of lane {signed.writer} are in the file of lane {writer}: put each where it belongs"
        )
    with store.snapshot() as snapshot:
        lane = lane_of(snapshot, writer)
        end = lane.batch.sequence if lane and lane.batch else 0
        stored = snapshot.batches(writer, after=max(end - 1, 0), limit=2)
        if [(b.sequence, b.hash) for b in stored] != ([(end, lane.batch.hash)] if lane and lane.batch else []):
            raise OtherPast(
                f"lane {writer} would go on from commit {end}, which is not the last one stored: rows are missing, or"
                " the row of its writer is from another time; restore the database as a whole"
            )
        if signed is None or not signed.batch:
            return
        batches = snapshot.batches(writer, after=signed.batch - 2, limit=2)
        found = next((batch for batch in batches if batch.sequence == signed.batch), None)
        if found is None or found.hash != signed.batch_hash or end < signed.batch:
            raise OtherPast(
                f"the store does not hold commit {signed.batch}, whose head was signed: it is missing, older or"
                f" rewritten; restore the right file, or move {heads.name} away to accept this one"
            )
        before = batches[0].hash if signed.batch > 1 else genesis(writer)
        entries = snapshot.entries_by_position(writer, after=signed.entries - found.count, limit=found.count)
    hashes = [entry.hash for entry in entries if entry.batch == signed.batch]
    whole = len(hashes) == found.count and entries[-1].position == signed.entries
    if not whole or merkle_root(hashes) != found.root or batch_hash(found, before) != found.hash:
        raise OtherPast(
            f"the store does not hold the entries of commit {signed.batch}, whose head was signed: some are missing"
            " or rewritten; restore the right file"
        )


class LaneLogs:
    """
    The logs of heads of a directory, for a process that looks for a lane: one log, held from before its lane is taken.

    A process that stands still for longer than its lease holds its log all the same. Its lane would be of no use to
    another of the directory, and the process could not go on with it.
    """

    def __init__(self, directory: DataDirectory, signing_keys: Ring) -> None:
        self._directory = directory
        self._signing_keys = signing_keys
        self._held: tuple[int, HeadLog] | None = None

    def may_take(self, writer: int) -> bool:
        """
        Hold the log of a lane instead of any other; False if another process of the directory holds it.

        Raises:
            HeadsBroken: as `HeadLog`.
        """
        self.close()
        path = self._directory.heads_of(writer)
        # Not made before the lane is ours: another directory's lane must not seem to have lost its heads in this one.
        if path.exists():
            try:
                self._held = (writer, HeadLog(path, *head_signers(self._signing_keys)))
            except HeadsInUse:
                return False
        return True

    def of(self, writer: int) -> HeadLog:
        """
        Return the log of the lane that was taken.

        Raises:
            HeadsBroken, HeadsInUse: as `HeadLog`.
        """
        if self._held is None or self._held[0] != writer:
            self.close()
            path = self._directory.heads_of(writer)
            # Its name must be as durable as its lines.
            create_empty_private(path)
            self._held = (writer, HeadLog(path, *head_signers(self._signing_keys)))
        return self._held[1]

    def close(self) -> None:
        """Let go of the log."""
        held, self._held = self._held, None
        if held is not None:
            held[1].close()


def head_of(store: Store) -> Head:
    """Return the head of the store's own lane, as it stands now."""
    with store.snapshot() as snapshot:
        lane = lane_of(snapshot, store.writer)
    if lane is None or lane.batch is None:
        return Head(writer=store.writer, batch=0, batch_hash=genesis(store.writer), entries=0, at_us=0)
    batch = lane.batch
    return Head(
        writer=store.writer, batch=batch.sequence, batch_hash=batch.hash, entries=lane.position, at_us=batch.at_us
    )


def head_signers(ring: Ring) -> list[HeadSigner]:
    """Return who may sign heads, the newest last."""
    return [HeadSigner(secret) for _, secret in sorted(ring.look().items())]


def renew_signer(heads: HeadLog, ring: Ring) -> None:
    """Let the newest key of a ring sign the heads from now on, which the one before it says in the log."""
    try:
        heads.pass_on(head_signers(ring))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        log.exception("heads not passed on to the newest key")


def sign_head(heads: HeadLog, store: Store) -> None:
    """Write the head of the store's own lane, signed, outside the database: who rewrites that cannot rewrite this."""
    try:
        head = head_of(store)
    except ReadFailed:
        # The next head vouches for what this one would have.
        log.exception("head put off")
        return
    try:
        heads.append(head)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        # The journal cannot grow either; when there is room again, both go on.
        log.exception("head not signed")
