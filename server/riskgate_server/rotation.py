"""
Renews the secrets of a data directory, whether or not a server is running on it.

Three steps, each of which may be interrupted anywhere and run again: `add` gives a ring a new secret, `rewrap` turns
the vault to the newest master key, `retire` takes away what nothing needs any more. Files are replaced as a whole.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from riskgate_server.crypto.keys import (
    FINGERPRINT,
    HEADS,
    MASTER,
    PROOFS,
    SECRET_BYTES,
    MasterKey,
    MasterKeyMismatch,
    encode_ring,
)
from riskgate_server.crypto.ringed import MasterKeys
from riskgate_server.crypto.rings import Ring, in_force
from riskgate_server.crypto.signing import End, HeadSigner, end_of
from riskgate_server.datadir import DataDirectory, sync_directory, write_file
from riskgate_server.engine.failures import ReadFailed, StoreBusy, StoreInUse
from riskgate_server.engine.writer import REPLY_LIFETIME_US
from riskgate_server.opening import driver, secret_ring
from riskgate_server.stores.moves import why_not_served
from riskgate_server.stores.sqlite.rewrapping import SqliteRewrapping
from riskgate_server.stores.sqlite.snapshots import SQLiteSnapshots
from riskgate_server.stores.wrapping import Rewrapping

if TYPE_CHECKING:
    from riskgate_server.stores.postgres.store import PostgresSnapshots

KINDS: Final = (MASTER, FINGERPRINT, PROOFS, HEADS)

LEAD_SECONDS: Final = 5
"""From when a new secret is in force: by then every process of the directory has read it."""

DAY_SECONDS: Final = 86_400
KEPT_SECONDS: Final[Mapping[str, int]] = {
    # What was derived is told again while its reply is kept; grants and codes live for minutes.
    PROOFS: REPLY_LIFETIME_US // 1_000_000 + DAY_SECONDS,
    # A request id from before is refused as used afterwards, instead of being answered again.
    FINGERPRINT: 90 * DAY_SECONDS,
}
"""How long a secret stays in its ring after the next one is in force."""

SECRETS_MAX: Final = 16
"""In a ring. Every request is hashed once for each of the fingerprint's."""

PAGE: Final = 500
"""Customers' keys wrapped anew in one commit: a few milliseconds in which the server's own wait."""

BUSY_TRIES: Final = 30

_T = TypeVar("_T")

Progress = Callable[[str, int, int], object]


class RotationRefused(Exception):
    """Nothing was changed; the message says why."""


class Report(msgspec.Struct):
    """
    What was done.

    Args:
        added: kind → number of its new secret.
        rewrapped: customers' keys that were wrapped under another master key.
        unreadable: customers' keys that no master key of the ring opens; they were left as they are.
        retired: kind → numbers of the secrets that were taken away.
        waiting: kind → what an old secret is still kept for.
    """

    added: dict[str, int] = msgspec.field(default_factory=dict)
    rewrapped: int = 0
    unreadable: int = 0
    retired: dict[str, list[int]] = msgspec.field(default_factory=dict)
    waiting: dict[str, str] = msgspec.field(default_factory=dict)


class Held(msgspec.Struct, frozen=True):
    """A secret of a ring: from when it is in force, seconds UTC, whether it is, and what needs it."""

    kind: str
    number: int
    in_force: bool
    needed: str


class _Plan(msgspec.Struct):
    """Which rings get a secret of which number: what an interrupted rotation had begun, the next one finishes."""

    number: int
    kinds: list[str]


class Rotation:
    """
    Renews the secrets of one directory; only one at a time: see `DataDirectory.secrets_held`.

    `now` is seconds UTC, and new secrets are in force so many seconds later.
    """

    def __init__(
        self,
        directory: DataDirectory,
        dsn: str = "",
        *,
        lead_seconds: int = LEAD_SECONDS,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], object] = time.sleep,
        progress: Progress = lambda *_: None,
    ) -> None:
        self._directory = directory
        self._dsn = dsn
        self._lead_seconds = lead_seconds
        self._now = now
        self._pause = pause
        self._progress = progress
        self.report = Report()

    def run(self, kinds: Sequence[str], steps: Sequence[str]) -> Report:
        """
        Do some of the steps `add`, `rewrap`, `retire` for some kinds, and for those an interrupted run had begun.

        Raises:
            RotationRefused, DataDirectoryError, MasterKeyMismatch, StoreBusy, VaultUnusable, OSError, SettingsRefused:
                the rest can be done by running it again.
        """
        for kind in KINDS:
            self._ring(kind)
        begun = self._unfinished()
        if MASTER in {*kinds, *(begun.kinds if begun else ())} and {"rewrap", "retire"} & set(steps):
            self._refuse_other_store()
        if "add" in steps:
            kinds = self._add(kinds)
        if MASTER in kinds and {"rewrap", "retire"} & set(steps):
            with contextlib.closing(self._rewrapping()) as vault:
                if "rewrap" in steps:
                    self._rewrap(vault)
                if "retire" in steps:
                    self._retire_master(vault)
        if "retire" in steps:
            for kind in kinds:
                if kind in KEPT_SECONDS:
                    self._retire_by_age(kind)
                elif kind == HEADS:
                    self._retire_signers()
        if self._directory.rotation.exists():
            self._directory.rotation.unlink()
            sync_directory(self._directory.secrets)
        return self.report

    def list(self) -> list[Held]:
        """
        Return every secret, oldest first of each kind.

        Raises:
            RotationRefused: the vault is not the one whose keys are in use, so that none of them would be counted.
        """
        self._refuse_other_store()
        found: list[Held] = []
        with contextlib.closing(self._rewrapping()) as vault:
            in_use = vault.in_use()
        turned_to = next(iter(in_use))
        signing = self._signing()
        for kind in KINDS:
            ring = self._ring(kind)
            current = in_force(ring, self._now())
            for number, secret in sorted(ring.items()):
                needed, forced = "", number == current
                if kind == MASTER:
                    header = MasterKey(secret).header
                    forced = header == turned_to
                    needed = f"{in_use.get(header, 0):,} customers' keys"
                elif kind == HEADS:
                    forced = number == max(ring)
                    logs = [name for name, key_id in signing.items() if key_id == HeadSigner(secret).key_id]
                    needed = ", ".join(logs) or ("the next head" if forced else "nothing")
                elif number < max(ring):
                    left = self._left_seconds(kind, ring, number)
                    needed = f"for {-(-left // DAY_SECONDS)} more days" if left > 0 else "nothing"
                found.append(Held(kind, number, forced, needed))
        return found

    def _add(self, kinds: Sequence[str]) -> Sequence[str]:
        """Give each ring a secret of one number; return the kinds, with those of an interrupted run."""
        rings = {kind: self._ring(kind) for kind in KINDS}
        plan = self._unfinished()
        if plan is None:
            newest = max(max(ring) for ring in rings.values())
            plan = _Plan(max(int(self._now()) + self._lead_seconds, newest + 1), [])
        if missing := [kind for kind in kinds if kind not in plan.kinds]:
            plan = _Plan(plan.number, plan.kinds + missing)
            if full := [kind for kind in plan.kinds if len(rings[kind]) >= SECRETS_MAX]:
                raise RotationRefused(
                    f"{full[0]}: {SECRETS_MAX} secrets are kept already: `riskgate keys list` says what needs them"
                )
            write_file(self._directory.rotation, msgspec.json.encode(plan))
        for kind in plan.kinds:
            ring = rings[kind]
            if max(ring) < plan.number:
                ring = {**ring, plan.number: os.urandom(SECRET_BYTES)}
                self._write(kind, ring)
                self.report.added[kind] = plan.number
            if kind == HEADS:
                self._publish(ring)
        return plan.kinds

    def _unfinished(self) -> _Plan | None:
        try:
            return msgspec.json.decode(self._directory.rotation.read_bytes(), type=_Plan)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise RotationRefused(f"{self._directory.rotation} is damaged: remove it and begin again") from error

    def _publish(self, ring: Mapping[int, bytes]) -> None:
        """Add to the public keys what signs heads from now on; those that ever did stay."""
        path = self._directory.heads_public_key
        content = path.read_bytes()
        for _, secret in sorted(ring.items()):
            public = HeadSigner(secret).public_key_pem()
            if public not in content:
                content += public
        if content != path.read_bytes():
            write_file(path, content)

    def _rewrap(self, vault: Rewrapping) -> None:
        masters = MasterKeys(Ring(self._ring(MASTER)))
        total = sum(vault.in_use().values())
        # First of all: from here on nothing is wrapped under an older key, so one pass finds everything.
        header = self._patiently(lambda: vault.turn(masters.wrap, masters.unwrap))
        done, after = 0, ("", "")
        self.report.unreadable = 0
        while True:
            began = time.monotonic()
            page = self._patiently(
                partial(vault.rewrap, masters.wrap, masters.unwrap, header=header, after=after, limit=PAGE)
            )
            self.report.rewrapped += page.changed
            self.report.unreadable += page.unreadable
            done += page.seen
            self._progress("rewrap", done, max(total, done))
            if page.last is None:
                return
            after = page.last
            # As long again for the server: whoever waits for a lock comes seldom, and would find it taken.
            self._pause(time.monotonic() - began)

    def _retire_master(self, vault: Rewrapping) -> None:
        ring = self._ring(MASTER)
        in_use = self._patiently(vault.in_use)
        turned_to = next(iter(in_use))
        headers = {number: MasterKey(secret).header for number, secret in ring.items()}
        if turned_to not in headers.values():
            raise MasterKeyMismatch
        if headers[max(ring)] != turned_to:
            self.report.waiting[MASTER] = "customers' keys are still wrapped under it: run the step `rewrap`"
            return
        old = [number for number in ring if number < max(ring)]
        if not old:
            return
        ends = self._ends()
        if ends and not any(end.head.batch for end in ends.values()):
            self.report.waiting[MASTER] = (
                "a first commit: until its head is signed, nothing tells which store is served"
            )
            return
        if set(in_use) != {turned_to}:
            # What a second pass leaves is damaged, and as good without the key as with it.
            self._rewrap(vault)
        try:
            self._patiently(lambda: vault.scrub([headers[number] for number in old]), busy=(StoreBusy, StoreInUse))
        except StoreInUse as error:
            self.report.waiting[MASTER] = f"{error}: run it again when `ledger verify`, or a backup, has ended"
            return
        self._take_away(MASTER, ring, old)

    def _retire_by_age(self, kind: str) -> None:
        ring = self._ring(kind)
        old = [number for number in ring if number < max(ring)]
        over = [number for number in old if self._left_seconds(kind, ring, number) <= 0]
        if len(over) < len(old):
            first = min(self._left_seconds(kind, ring, number) for number in old if number not in over)
            self.report.waiting[kind] = f"what was made with it: {-(-first // DAY_SECONDS)} more days"
        self._take_away(kind, ring, over)

    def _left_seconds(self, kind: str, ring: Mapping[int, bytes], number: int) -> int:
        """Return for how long an older secret is still needed; 0 or less when it is not."""
        successor = min(later for later in ring if later > number)
        return successor + KEPT_SECONDS[kind] - int(self._now())

    def _retire_signers(self) -> None:
        ring = self._ring(HEADS)
        newest = HeadSigner(ring[max(ring)]).key_id
        if still := sorted(name for name, key_id in self._signing().items() if key_id != newest):
            self.report.waiting[HEADS] = (
                f"{', '.join(still)}: a server passes it on with its next head, within about ten seconds, or as it"
                " starts; run this again then"
            )
            return
        self._take_away(HEADS, ring, [number for number in ring if number < max(ring)])

    def _signing(self) -> dict[str, str]:
        """Return name → id of the key that signs next, of every log with a head."""
        return {name: end.signs_next for name, end in self._ends().items()}

    def _ends(self) -> dict[str, End]:
        ends = ((path, end_of(path)) for path in self._directory.all_heads())
        return {path.name: end for path, end in ends if end}

    def _refuse_other_store(self) -> None:
        """
        Refuse a vault that is not the one whose keys are in use: its old master key would be taken from the other.

        The heads tell, which are signed of what is served. A store that is being copied has keys in two vaults.
        """
        name = "the database" if self._dsn else str(self._directory.store)
        # Before the store: what it is asked for is then durable, whatever a server signs meanwhile.
        heads = [end.head for end in self._ends().values() if end.head.batch]
        try:
            with contextlib.closing(self._snapshots()) as snapshots:
                if why := why_not_served(snapshots.move, name):
                    raise RotationRefused(why)
                with snapshots.snapshot() as snapshot:
                    for head in heads:
                        found = snapshot.batches(head.writer, after=head.batch - 1, limit=1)
                        if [(batch.sequence, batch.hash) for batch in found] != [(head.batch, head.batch_hash)]:
                            raise RotationRefused(
                                f"{name} is not what is served here: it does not hold commit {head.batch} of lane"
                                f" {head.writer}, whose head was signed; name the one that is, with or without --store"
                            )
        except ReadFailed as error:
            raise RotationRefused(f"{name} cannot be read: {error}") from error

    def _snapshots(self) -> SQLiteSnapshots | PostgresSnapshots:
        if not self._dsn:
            return SQLiteSnapshots(self._directory.store)
        with driver():
            from riskgate_server.stores.postgres.store import PostgresSnapshots  # noqa: PLC0415 - an extra
        return PostgresSnapshots(self._dsn)

    def _take_away(self, kind: str, ring: Mapping[int, bytes], numbers: Sequence[int]) -> None:
        if numbers:
            self._write(kind, {number: secret for number, secret in ring.items() if number not in numbers})
            self.report.retired[kind] = sorted(numbers)

    def _ring(self, kind: str) -> Mapping[int, bytes]:
        return secret_ring(kind, self._directory.secret(kind))

    def _write(self, kind: str, ring: Mapping[int, bytes]) -> None:
        write_file(self._directory.secret(kind), encode_ring(kind, ring))
        self._progress(kind, 1, 1)

    def _rewrapping(self) -> Rewrapping:
        if not self._dsn:
            return SqliteRewrapping(self._directory.vault)
        with driver():
            from riskgate_server.stores.postgres.rewrapping import PostgresRewrapping  # noqa: PLC0415 - an extra
        return PostgresRewrapping(self._dsn)

    def _patiently(self, step: Callable[[], _T], busy: tuple[type[Exception], ...] = (StoreBusy,)) -> _T:
        """Do a step again while others hold the vault."""
        for left in reversed(range(BUSY_TRIES)):
            try:
                return step()
            except busy:
                if not left:
                    raise
                self._pause(0.1)
        raise AssertionError
