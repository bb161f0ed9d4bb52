"""A vault is turned to another master key beside a server that goes on with it, whichever store it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from riskgate_server.crypto.keys import MasterKeyMismatch
from riskgate_server.crypto.ringed import MasterKeys
from riskgate_server.crypto.rings import Ring
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import StoreBusy
from riskgate_server.engine.storing import NoKey, Vault
from riskgate_server.stores.postgres.rewrapping import PostgresRewrapping
from riskgate_server.stores.postgres.vault import PostgresVault
from riskgate_server.stores.postgres.vault import create_vault as create_postgres_vault
from riskgate_server.stores.sqlite.rewrapping import SqliteRewrapping
from riskgate_server.stores.sqlite.vault import SqliteVault, create_vault
from riskgate_server.stores.wrapping import Rewrapping
from tests import postgres

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
BEFORE, BOTH, AFTER = (MasterKeys(Ring(ring)) for ring in ({1: OLD}, {1: OLD, 2: NEW}, {2: NEW}))
CUSTOMERS = {("t", f"c{number}"): bytes([number]) * 32 for number in range(7)}
FIRST = ("t", "c0")
NEWCOMER = ("a", "before all others")


class Place:
    """Where a vault is: opened with the master keys of one process or another."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind
        self._opened: list[Vault | Rewrapping] = []
        if kind == "sqlite":
            create_vault(folder / "vault.db", BEFORE.wrap)
        else:
            create_postgres_vault(postgres.database(folder), BEFORE.wrap)

    def vault(self, masters: MasterKeys) -> Vault:
        if self._kind == "sqlite":
            vault: Vault = SqliteVault(self._folder / "vault.db", wrap=masters.wrap, unwrap=masters.unwrap)
        else:
            vault = PostgresVault(postgres.database(self._folder), wrap=masters.wrap, unwrap=masters.unwrap)
        self._opened.append(vault)
        return vault

    def rewrapping(self) -> Rewrapping:
        if self._kind == "sqlite":
            return SqliteRewrapping(self._folder / "vault.db")
        self._opened.append(found := PostgresRewrapping(postgres.database(self._folder)))
        return found

    def content(self) -> bytes:
        """What lies on the disk."""
        if self._kind == "sqlite":
            return b"".join(path.read_bytes() for path in sorted(self._folder.glob("vault.db*")))
        return b"".join(self._table(name) for name in ("keys", "proof"))

    def _table(self, name: str) -> bytes:
        import psycopg  # noqa: PLC0415 - only here

        with psycopg.connect(postgres.database(self._folder), autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            statement = f"SELECT pg_read_binary_file(pg_relation_filepath('vault.{name}'))"
            (content,) = connection.execute(statement, binary=True).fetchone() or (b"",)
        return bytes(content)

    def close(self) -> None:
        for each in self._opened:
            closing: Callable[[], None] = each.close  # type: ignore[union-attr]
            closing()


@pytest.fixture(params=["sqlite", "postgres"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    place = Place(tmp_path, request.param)
    yield place
    place.close()


def rewrap(rewrapping: Rewrapping, header: bytes, limit: int = 3) -> tuple[int, int]:
    """Rewrap everything, a few at a time; return how many were changed, and how many cannot be read."""
    changed = unreadable = 0
    after: CustomerKey | None = ("", "")
    while after is not None:
        page = rewrapping.rewrap(BOTH.wrap, BOTH.unwrap, header=header, after=after, limit=limit)
        changed, unreadable, after = changed + page.changed, unreadable + page.unreadable, page.last
    return changed, unreadable


def test_afterwards_the_new_master_key_alone_opens_every_customer_and_nothing_old_is_left(place: Place) -> None:
    vault = place.vault(BOTH)
    vault.create(CUSTOMERS)
    vault.forget(FIRST)
    rewrapping = place.rewrapping()
    (old,) = rewrapping.in_use()

    header = rewrapping.turn(BOTH.wrap, BOTH.unwrap)
    assert rewrap(rewrapping, header) == (6, 0)
    assert rewrapping.in_use() == {header: 6}
    rewrapping.scrub([old])

    expected = CUSTOMERS | {FIRST: NoKey.FORGOTTEN}
    assert place.vault(AFTER).keys(list(CUSTOMERS)) == vault.keys(list(CUSTOMERS)) == expected
    assert old not in place.content()
    with pytest.raises(MasterKeyMismatch):
        place.vault(BEFORE)


def test_from_the_turn_on_nothing_is_kept_under_the_old_key(place: Place) -> None:
    vault = place.vault(BOTH)
    vault.create({FIRST: CUSTOMERS[FIRST]})
    rewrapping = place.rewrapping()
    (old,) = rewrapping.in_use()
    assert rewrapping.in_use() == {old: 1}, "the newest of the ring is not yet used"
    header = rewrapping.turn(BOTH.wrap, BOTH.unwrap)

    vault.create({NEWCOMER: bytes(32)})

    assert rewrapping.in_use() == {header: 1, old: 1}
    assert rewrap(rewrapping, header) == (1, 0)


def test_a_server_without_the_new_key_keeps_nothing_rather_than_wrap_under_the_old_one(place: Place) -> None:
    behind = place.vault(BEFORE)
    place.rewrapping().turn(BOTH.wrap, BOTH.unwrap)

    with pytest.raises(StoreBusy, match=r"secrets/master\.key"):
        behind.create({NEWCOMER: bytes(32)})
    assert place.vault(BOTH).keys([NEWCOMER]) == {NEWCOMER: NoKey.ABSENT}


def test_again_is_no_effect_and_a_damaged_key_is_left_as_it_is(place: Place) -> None:
    place.vault(BOTH).create(CUSTOMERS)
    rewrapping = place.rewrapping()
    header = rewrapping.turn(BOTH.wrap, BOTH.unwrap)
    # A key of another customer's does not open: as good as damaged.
    page = rewrapping.rewrap(
        BOTH.wrap, lambda customer, wrapped: BEFORE.unwrap(FIRST, wrapped), header=header, after=("", ""), limit=3
    )
    assert (page.seen, page.changed, page.unreadable, page.last) == (3, 1, 2, ("t", "c2"))

    assert rewrapping.turn(BOTH.wrap, BOTH.unwrap) == header
    assert [rewrap(rewrapping, header), rewrap(rewrapping, header)] == [(6, 0), (0, 0)]
    assert place.vault(AFTER).keys(list(CUSTOMERS)) == CUSTOMERS
