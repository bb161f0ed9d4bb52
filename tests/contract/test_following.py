"""What a server of a shared database learns of the others' commits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from riskgate_server.engine import following
from riskgate_server.engine.failures import ReadFailed
from riskgate_server.engine.following import Follower
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.stores.memory import MemoryVault
from riskgate_server.stores.postgres.reads import PostgresSnapshot
from riskgate_server.stores.postgres.store import PostgresStore
from tests import factories as f


@pytest.fixture
def stores(dsn: str) -> Iterator[list[PostgresStore]]:
    stores = [PostgresStore(dsn, writer) for writer in range(3)]
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def servers(stores: list[PostgresStore]) -> list[Pipeline]:
    vault = MemoryVault()
    return [f.make_pipeline(store, vault=vault) for store in stores]


def test_at_first_anybody_may_have_changed_and_then_nobody_has(stores: list[PostgresStore]) -> None:
    follower = Follower(stores[0])

    assert [follower.changed(), follower.changed()] == [None, set()]


def test_whom_others_changed_is_told_once(stores: list[PostgresStore], servers: list[Pipeline]) -> None:
    follower = Follower(stores[0])
    follower.changed()
    for number, server in enumerate(servers):
        server.run([f.open_line(customer_id=f"c{number}"), f.check("t1", customer_id=f"c{number}")])

    # Its own commits are announced as they happen.
    assert follower.changed() == {(f.TENANT, "c1"), (f.TENANT, "c2")}
    assert follower.changed() == set()
    servers[1].run([f.check("t2", customer_id="c2")])
    assert follower.changed() == {(f.TENANT, "c2")}


def test_beyond_so_many_entries_it_may_be_anybody(
    stores: list[PostgresStore], servers: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "CHANGED_MAX", 2)
    follower = Follower(stores[0])
    follower.changed()
    servers[1].run([f.open_line(customer_id=f"c{number}") for number in range(2)])
    two = follower.changed()
    servers[1].run([f.open_line(customer_id=f"d{number}") for number in range(3)])

    assert two == {(f.TENANT, "c0"), (f.TENANT, "c1")}
    assert [follower.changed(), follower.changed()] == [None, set()]


def test_a_look_that_failed_loses_nothing(
    stores: list[PostgresStore], servers: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ReadFailed("gone")

    follower = Follower(stores[0])
    follower.changed()
    servers[1].run([f.open_line()])
    with monkeypatch.context() as patch:
        patch.setattr(PostgresSnapshot, "changed", fail)
        with pytest.raises(ReadFailed):
            follower.changed()

    assert follower.changed() == {(f.TENANT, f.CUSTOMER)}
