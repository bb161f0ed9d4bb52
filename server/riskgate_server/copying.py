"""
Moves a store, rows and keys, to another place, and proves that it arrived.

Each place says in a mark of its own which end of which move it is (`stores/moves.py`). The source is marked before the
first row is read, so that no server changes it from then on; the target is marked before the first row is written,
and with every piece of rows says how far it is, in the same commit. So a move that was killed goes on where it was. At
the end the source is retired first and the target released second: at no instant can both be served. Just before, the
keys of the source are read once more: one that was destroyed meanwhile must not live on in the copy.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from riskgate_server.crypto.keys import HEADS, MasterKeyMismatch
from riskgate_server.crypto.ringed import MasterKeys
from riskgate_server.crypto.signing import HeadLog
from riskgate_server.datadir import DataDirectory
from riskgate_server.engine.failures import StoreInUse
from riskgate_server.opening import (
    driver,
    head_signers,
    master_keys,
    open_files,
    refuse_beginning_anew,
    refuse_other_past,
    ring_file,
)
from riskgate_server.stores.moves import FILES, KEYS, TABLES, Cursor, Mark, Page, Place, Tally, date, why_not_served
from riskgate_server.stores.refusals import MoveRefused, VaultUnusable
from riskgate_server.stores.sqlite.moves import SQLitePlace, make_files, require_one_lane

ROWS: Final = 2_000
"""In one commit: all that is in memory at a time, a few megabytes."""

DATABASE: Final = ("postgresql://", "postgres://")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many rows of it are done, and how many there are."""


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished move came to."""

    source: str
    target: str
    rows: dict[str, int]
    """By table."""
    lanes: dict[int, tuple[int, bytes]]
    """The last batch of each writer and its hash, the same in both places."""
    before: bool
    """Whether an earlier run had finished it; then nothing was done."""


class CopyDiffers(Exception):
    """The target does not have what the source has. It stays an unfinished copy, which nobody serves."""


# --- The move itself, between any two places. ---


def move(source: Place, target: Place, progress: Progress, now: Callable[[], float] = time.time) -> Copied:
    """
    Copy everything, or what is missing of it, and release the target in place of the source.

    Raises:
        MoveRefused: the two are not the ends of one move, and cannot become it.
        StoreInUse: somebody serves one of them.
        CopyDiffers: something changed on the way.
    """
    ours, theirs = source.mark(), target.mark()
    if ours and theirs and ours.move == theirs.move and theirs.role == "target":
        if theirs.finished:
            return _done(source, target, theirs, before=True)
        _keep_others_away(source, target)
        mark = theirs
    else:
        mark = _begin(source, target, ours, theirs, date(now()))
    total = source.counts()
    mark = _copy_rows(source, target, mark, total, progress)
    _compare(source, target, mark, total, progress)
    mark = _copy_keys_again(source, target, mark)
    at = date(now())
    source.set_mark(Mark(move=mark.move, role="source", other=target.name, at=at, finished=True))
    mark = msgspec.structs.replace(mark, finished=True, at=at)
    target.finish(mark)
    return _done(source, target, mark, before=False)


def give_up(source: Place) -> None:
    """
    Let a store be served again whose move was not finished. What was copied can never be finished, nor served.

    Raises:
        MoveRefused: it is not being moved, or the move is finished.
    """
    mark = source.mark()
    if mark is None or mark.role != "source":
        raise MoveRefused(f"{source.name} is not being copied")
    if mark.finished:
        raise MoveRefused(why_not_served(mark, source.name))
    source.set_mark(None)


def _begin(source: Place, target: Place, ours: Mark | None, theirs: Mark | None, at: str) -> Mark:
    begun = ours if ours and ours.role == "source" and not ours.finished else None
    if begun is None and (why := why_not_served(ours, source.name)):
        raise MoveRefused(why)
    if theirs:
        raise MoveRefused(
            f"{target.name} holds another copy, of {theirs.other}: nothing was changed; empty it, or name another place"
        )
    if begun and begun.other != target.name:
        raise MoveRefused(why_not_served(begun, source.name))
    target.take(source.lanes())
    if faults := source.faults():
        raise MoveRefused(f"{source.name}: {'; '.join(faults)}; `riskgate ledger verify` says more")
    before = None if begun else ours
    name = begun.move if begun else uuid.uuid4().hex
    mark = Mark(move=name, role="target", other=source.name, at=at)
    source.set_mark(Mark(move=name, role="source", other=target.name, at=at))
    try:
        source.keep_others_away()
        target.begin(mark)
    except (MoveRefused, MasterKeyMismatch, StoreInUse, VaultUnusable):
        source.set_mark(before)
        raise
    try:
        target.keep_others_away()
    except StoreInUse:
        target.set_mark(None)
        source.set_mark(before)
        raise
    return mark


def _keep_others_away(*places: Place) -> None:
    for place in places:
        place.keep_others_away()


def _copy_rows(source: Place, target: Place, mark: Mark, total: Mapping[str, int], progress: Progress) -> Mark:
    cursor = mark.cursor
    if cursor and cursor.part not in source.parts:
        raise MoveRefused(f"the copy in {target.name} was begun by another version of this program: use that one")
    for number, part in enumerate(source.parts):
        if cursor and source.parts.index(cursor.part) > number:
            continue
        at = cursor if cursor and cursor.part == part else Cursor(part)
        whole = False
        while not whole:
            page = source.page(at, ROWS)
            copied = dict(mark.copied)
            for table, rows in page.rows.items():
                copied[table] = copied.get(table, Tally()).plus(rows)
            at, whole = page.cursor, page.last
            mark = msgspec.structs.replace(mark, cursor=at, copied=copied)
            # A mark without rows can wait for those that follow: what is read again then is nothing.
            if any(page.rows.values()):
                target.write(page.rows, mark)
            for table in page.rows:
                progress(table, copied[table].rows, total[table])
    return mark


def _compare(source: Place, target: Place, mark: Mark, total: Mapping[str, int], progress: Progress) -> None:
    """
    Read the target back, every row, and compare with what the source gave and with what it says it has.

    Not the keys, which may still change: they are compared when they are read again.
    """
    found: dict[str, Tally] = {}
    everything = sum(total.values()) - total[KEYS]
    for part in target.parts:
        if part == KEYS:
            continue
        for _, page in _pages(target, part):
            for table, rows in page.rows.items():
                found[table] = found.get(table, Tally()).plus(rows)
            progress("compared", sum(tally.rows for tally in found.values()), everything)
    differ = [
        _difference(table, total[table], found[table].rows)
        for table in TABLES
        if table != KEYS and (found[table] != mark.copied[table] or found[table].rows != total[table])
    ]
    if source.lanes() != target.lanes():
        differ.append("the journals do not end in the same batches")
    _refuse(source, target, differ)


def _copy_keys_again(source: Place, target: Place, mark: Mark) -> Mark:
    """
    Have the target know the keys as the source does by now, and compare them.

    Last of all: a server that is just stopping writes no journal any more, but may still destroy the key of somebody
    whose erasure it has committed.
    """
    given, found = Tally(), Tally()
    for at, page in _pages(source, KEYS):
        rows = page.rows[KEYS]
        given = given.plus(rows)
        # The target has no keys but the source's, so that as many cover the same customers.
        had = set(target.page(at, ROWS).rows[KEYS])
        target.change_keys([row for row in rows if row not in had])
    for _, page in _pages(target, KEYS):
        found = found.plus(page.rows[KEYS])
    _refuse(source, target, [] if found == given else [_difference(KEYS, given.rows, found.rows)])
    return msgspec.structs.replace(mark, copied=mark.copied | {KEYS: given})


def _pages(place: Place, part: str) -> Iterator[tuple[Cursor, Page]]:
    """Yield all rows of a part, each page with where it was read from."""
    at, whole = Cursor(part), False
    while not whole:
        page = place.page(at, ROWS)
        yield at, page
        at, whole = page.cursor, page.last


def _difference(table: str, given: int, found: int) -> str:
    return f"{table}: {given:,} in the source, {found:,} in the copy{'' if found != given else ', not the same'}"


def _refuse(source: Place, target: Place, differ: Sequence[str]) -> None:
    if differ:
        raise CopyDiffers(f"{target.name} is not what {source.name} is: {'; '.join(differ)}; empty it and copy again")


def _done(source: Place, target: Place, mark: Mark, *, before: bool) -> Copied:
    rows = {table: mark.copied[table].rows for table in TABLES}
    return Copied(source=source.name, target=target.name, rows=rows, lanes=dict(source.lanes()), before=before)


# --- Which places. ---


class PlaceUnknown(ValueError):
    """A place is neither `sqlite:DIR` nor `postgresql://…`. The message says what is wrong with it."""


def secrets_of(places: tuple[str, ...], data: Path | None) -> DataDirectory:
    """
    Return the data directory whose secrets both places are under: the one that is named, or the only one there is.

    Raises:
        PlaceUnknown: a place is of no known kind, or there is no one directory.
    """
    for place in places:
        if not place.startswith((FILES, *DATABASE)) or place == FILES:
            raise PlaceUnknown(f"{place.split('://')[0]}: a place is sqlite:DIR or postgresql://…")
    if len(places) > 1 and all(place.startswith(FILES) for place in places):
        raise PlaceUnknown("one of the two places must be a database: files are copied as files, while none is served")
    roots = {Path(place.removeprefix(FILES)).absolute() for place in places if place.startswith(FILES)}
    roots |= {data.absolute()} if data else set()
    if not roots:
        raise PlaceUnknown("between two databases, --data names the directory whose secrets they are under")
    if len(roots) > 1:
        raise PlaceUnknown("the two places must be under the secrets of one data directory")
    return DataDirectory(roots.pop())


def copy(directory: DataDirectory, source: str, target: str, progress: Progress) -> Copied:
    """
    Move a store between two places that `secrets_of` accepted.

    Raises:
        As `move`, and whatever keeps either place from being opened.
    """
    directory.check(store_here=source.startswith(FILES))
    with contextlib.ExitStack() as undoing, contextlib.ExitStack() as closing:
        # A key that is still wrapped under an old master key must not arrive after that one was taken away.
        closing.enter_context(directory.secrets_held())
        master = master_keys(directory)
        here = _open_source(directory, source, master, closing)
        _refuse_other_past(directory, here)
        if target.startswith(FILES):
            require_one_lane(here.lanes())
            if not (directory.store.exists() or directory.vault.exists()):
                # Empty ones that are left behind would look like a store that was lost. Not before they are closed.
                undoing.callback(_remove_files, directory)
            make_files(directory.store, directory.vault, master.wrap)
            there = _files(directory, master, closing)
        else:
            there = _database(target, master, closing)
        try:
            copied = move(here, there, progress)
        except BaseException:
            if _has_begun(there):
                undoing.pop_all()
            raise
        undoing.pop_all()
        return copied


def _has_begun(target: Place) -> bool:
    """Whether the copy goes on with what is there. Where that cannot be said, nothing is to be taken away."""
    try:
        return target.mark() is not None
    except Exception:  # noqa: BLE001 - what it was is raised already
        return True


def _remove_files(directory: DataDirectory) -> None:
    """Take away what `make_files` and opening made, by exact names: what lies beside may be somebody's only copy."""
    for path in (directory.store, directory.vault):
        for suffix in ("", "-wal", "-shm", ".lock"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def give_up_copy(directory: DataDirectory, source: str) -> str:
    """
    Let the source of an unfinished move be served again, and return its name.

    Raises:
        As `give_up`, and whatever keeps it from being opened.
    """
    directory.check(store_here=source.startswith(FILES))
    with contextlib.ExitStack() as closing:
        here = _open_source(directory, source, master_keys(directory), closing)
        give_up(here)
        return here.name


def _open_source(directory: DataDirectory, place: str, master: MasterKeys, closing: contextlib.ExitStack) -> Place:
    if place.startswith(FILES):
        return _files(directory, master, closing)
    with driver():
        from riskgate_server.stores.postgres.store import PostgresSnapshots  # noqa: PLC0415 - an extra, see driver
        from riskgate_server.stores.postgres.vault import PostgresVault  # noqa: PLC0415
    with contextlib.closing(PostgresSnapshots(place)) as found:
        if not found.version:
            raise MoveRefused("there is no store in the database to be copied")
    PostgresVault(place, wrap=master.wrap, unwrap=master.unwrap, read_only=True).close()
    return _database(place, master, closing)


def _files(directory: DataDirectory, master: MasterKeys, closing: contextlib.ExitStack) -> Place:
    store, vault = open_files(directory, master, closing)
    return SQLitePlace(store, vault, f"{FILES}{directory.root}")


def _database(dsn: str, master: MasterKeys, closing: contextlib.ExitStack) -> Place:
    with driver():
        from riskgate_server.stores.postgres.moves import PostgresPlace  # noqa: PLC0415 - an extra, see driver
        from riskgate_server.stores.postgres.store import PostgresStore  # noqa: PLC0415
    place = PostgresPlace(PostgresStore(dsn, readers=1), dsn, wrap=master.wrap, unwrap=master.unwrap)
    closing.callback(place.close)
    return place


def _refuse_other_past(directory: DataDirectory, source: Place) -> None:
    """Refuse to move what a server would refuse to go on from; what was moved long ago may be behind."""
    mark = source.mark()
    moved = mark is not None and mark.role == "source" and mark.finished
    path = directory.heads_of(source.store.writer)
    if path.exists() and not moved:
        refuse_beginning_anew(directory, source.store)
        with contextlib.closing(HeadLog(path, *head_signers(ring_file(HEADS, directory.heads_key)))) as heads:
            refuse_other_past(heads, source.store)
