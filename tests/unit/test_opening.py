"""A data directory as a whole: what does not belong together is refused, and what was taken away is found."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from riskgate_server.cli import main
from riskgate_server.cli.init import initialise
from riskgate_server.crypto.keys import HEADS
from riskgate_server.crypto.signing import HeadLog, HeadSigner
from riskgate_server.datadir import DataDirectory, DataDirectoryError
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import ReadFailed
from riskgate_server.opening import (
    KEYS_OF_A_CRASH_MAX,
    OpenedStore,
    OtherPast,
    open_store,
    refuse_other_past,
    secret,
    sign_head,
    verify_directory,
)
from riskgate_server.stores.memory import MemoryStore
from riskgate_server.stores.memory.store import MemorySnapshot
from tests.factories import TENANT, capture, check, make_customer, make_pipeline, open_line, pay

Change = Callable[[DataDirectory], object]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> DataDirectory:
    """A directory that was initialised and never served."""
    root = tmp_path_factory.mktemp("empty") / "data"
    initialise(root, names=(), tenant="default")
    return DataDirectory(root)


def copied(directory: DataDirectory, to: Path) -> DataDirectory:
    shutil.copytree(directory.root, to)
    return DataDirectory(to)


def head_log(directory: DataDirectory) -> HeadLog:
    return HeadLog(directory.heads_of(0), HeadSigner(secret(HEADS, directory.heads_key)))


def live(directory: DataDirectory, life: Callable[[OpenedStore], None]) -> None:
    """Serve for a while, with a head signed at the beginning and at the end."""
    opened = open_store(directory)
    with closing(opened), closing(head_log(directory)) as heads:
        sign_head(heads, opened.store)
        life(opened)
        sign_head(heads, opened.store)


def shop(opened: OpenedStore) -> None:
    pipeline = make_pipeline(opened.store, vault=opened.vault)
    make_customer(pipeline)
    pipeline.run([open_line(customer_id="bo"), check("t1", 500), check("t1", 70, customer_id="bo")])
    pipeline.run([capture("c1", "t1", 300), pay("p1", 100)])


@pytest.fixture(scope="module")
def lived_in(empty: DataDirectory, tmp_path_factory: pytest.TempPathFactory) -> DataDirectory:
    directory = copied(empty, tmp_path_factory.mktemp("lived") / "data")
    live(directory, shop)
    return directory


@pytest.fixture
def directory(lived_in: DataDirectory, tmp_path: Path) -> DataDirectory:
    """A directory with two customers, for this test alone."""
    return copied(lived_in, tmp_path / "data")


def sql(*statements: str, vault: bool = False) -> Change:
    def change(directory: DataDirectory) -> None:
        with closing(sqlite3.connect(directory.vault if vault else directory.store, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    return change


def faults_of(directory: DataDirectory) -> list[str]:
    return verify_directory(directory, lambda *_: None).faults


# --- What verification finds in the files. ---


def test_a_directory_that_was_lived_in_is_clean(directory: DataDirectory) -> None:
    report = verify_directory(directory, lambda *_: None)

    assert report.faults == []
    assert (report.customers, report.entries, report.heads) == (2, 6, 2)


def test_a_directory_that_was_never_served_is_clean(empty: DataDirectory) -> None:
    assert faults_of(empty) == []


def test_a_store_with_a_page_that_is_no_good_is_reported_and_not_the_end_of_it(directory: DataDirectory) -> None:
    with closing(sqlite3.connect(directory.store)) as db:
        ((page, size),) = db.execute(
            "SELECT rootpage, page_size FROM sqlite_schema, pragma_page_size WHERE name = 'batches'"
        )
    with directory.store.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(100))

    assert "the store cannot be read any further" in "; ".join(faults_of(directory))


ADA: Final = "customer_id = 'ada'"
DAMAGES: Final[dict[str, tuple[Change, str]]] = {
    "no store": (lambda d: d.store.unlink(), "riskgate.db is missing"),
    "no heads": (lambda d: d.heads_of(0).unlink(), "heads.log has no head"),
    "emptied heads": (lambda d: d.heads_of(0).write_bytes(b""), "heads.log has no head"),
    "a trigger": (
        sql("CREATE TRIGGER x AFTER INSERT ON records BEGIN DELETE FROM records WHERE id = new.id; END"),
        "the schema has a foreign trigger x",
    ),
    "a view": (sql("CREATE VIEW v AS SELECT 1"), "the schema has a foreign view v"),
    "no index": (sql("DROP INDEX records_owed"), "the schema lacks index records_owed"),
    "another index": (
        sql("DROP INDEX records_owed", "CREATE INDEX records_owed ON records (owed_since)"),
        "the schema has another index records_owed",
    ),
    "no request": (sql("DELETE FROM records WHERE kind = 0 AND id = 'c1'"), "acme/ada: 3 requests are stored"),
    "an open hold that would never lapse": (sql("UPDATE records SET kind = 2 WHERE kind = 1"), "2 records are of no"),
    "a request that seems to owe": (
        sql(f"UPDATE records SET owed_since = 5 WHERE kind = 0 AND id = 'c1' AND {ADA}"),
        "1 records are of no kind",
    ),
    "a record of no kind": (
        sql("INSERT INTO records (tenant_id, customer_id, kind, id, state) VALUES ('acme', 'ada', 9, 'x', x'')"),
        "1 records are of no kind",
    ),
    "no vault row": (sql(f"DELETE FROM keys WHERE {ADA}", vault=True), "acme/ada: the key is not in the vault"),
    "a damaged vault row": (
        sql(f"UPDATE keys SET wrapped = CAST(x'01' || zeroblob(64) AS BLOB) WHERE {ADA}", vault=True),
        "acme/ada: the key in the vault does not open",
    ),
    "no ruleset": (sql("DELETE FROM rulesets"), "decided here and is gone"),
    "another store": (sql("PRAGMA application_id = 1"), "do not belong together"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_the_files_is_found(directory: DataDirectory, name: str) -> None:
    damage, fault = DAMAGES[name]
    damage(directory)

    assert any(fault in found for found in faults_of(directory)), faults_of(directory)


def test_a_file_that_is_no_database_is_a_finding(directory: DataDirectory) -> None:
    directory.store.write_bytes(b"\xff" * 5_000)

    (fault,) = faults_of(directory)

    assert fault.startswith("riskgate.db cannot be read")


def test_an_erased_customer_is_no_fault(directory: DataDirectory) -> None:
    live(directory, lambda opened: opened.vault.forget((TENANT, "ada")))
    report = verify_directory(directory, lambda *_: None)

    assert (report.faults, report.erased) == ([], 1)


def test_what_cannot_be_verified_is_said_in_a_line(directory: DataDirectory) -> None:
    directory.vault.write_bytes(b"\xff" * 500)

    result = CliRunner().invoke(main, ["ledger", "verify", "--data", str(directory.root)])

    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert str(directory.vault) in result.output


# --- What is not gone on from. ---


def test_a_store_of_another_directory_is_refused(directory: DataDirectory, tmp_path: Path) -> None:
    """As empty as its own once was: every customer would begin anew, beside the keys of those who were lost."""
    initialise(tmp_path / "other", names=(), tenant="default")
    shutil.copy(DataDirectory(tmp_path / "other").store, directory.store)

    with pytest.raises(DataDirectoryError, match=r"riskgate\.db and .*vault\.db do not belong together"):
        open_store(directory)


def test_an_emptied_store_beside_a_vault_with_keys_is_refused(empty: DataDirectory, tmp_path: Path) -> None:
    directory = copied(empty, tmp_path / "data")
    keys: dict[CustomerKey, bytes] = {(TENANT, f"c{n}"): bytes(32) for n in range(KEYS_OF_A_CRASH_MAX + 1)}
    opened = open_store(directory)
    opened.vault.create(keys)
    opened.close()

    with pytest.raises(DataDirectoryError, match=r"has no customers, and .* has keys of 513"):
        open_store(directory)


def test_keys_that_a_crash_left_without_their_customers_are_gone_on_from(empty: DataDirectory, tmp_path: Path) -> None:
    directory = copied(empty, tmp_path / "data")
    with closing(open_store(directory)) as opened:
        opened.vault.create({(TENANT, "ada"): bytes(32)})

    live(directory, shop)

    assert faults_of(directory) == []


@pytest.mark.parametrize(
    "lost",
    [
        "DELETE FROM entries WHERE position = 6",
        "DELETE FROM entries WHERE position = 5",
        "UPDATE entries SET hash = zeroblob(32) WHERE position = 6",
        "UPDATE entries SET batch = 1 WHERE position = 6",
        "UPDATE batches SET root = zeroblob(32) WHERE sequence = 3",
        "UPDATE batches SET count = 1 WHERE sequence = 3",
        "DELETE FROM batches WHERE sequence = 3",
    ],
)
def test_a_store_without_what_the_last_head_vouches_for_is_refused(directory: DataDirectory, lost: str) -> None:
    sql(lost)(directory)

    with (
        closing(open_store(directory)) as opened,
        closing(head_log(directory)) as heads,
        pytest.raises(OtherPast),
    ):
        refuse_other_past(heads, opened.store)


def test_a_store_that_holds_what_the_last_head_vouches_for_is_gone_on_from(directory: DataDirectory) -> None:
    with closing(open_store(directory)) as opened, closing(head_log(directory)) as heads:
        refuse_other_past(heads, opened.store)


def test_every_file_of_a_directory_is_its_owners_alone(empty: DataDirectory, tmp_path: Path) -> None:
    directory = copied(empty, tmp_path / "data")
    before = os.umask(0)
    try:
        with closing(open_store(directory)) as opened, closing(head_log(directory)):
            shop(opened)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.root.rglob("*")}
    finally:
        os.umask(before)

    assert "riskgate.db.lock" in modes
    assert {name: mode for name, mode in modes.items() if mode != 0o600} == {"secrets": 0o700, "tls": 0o700}


# --- Signing. ---


class ShyStore(MemoryStore):
    """A store that cannot be read for a while."""

    readable = False

    def snapshot(self) -> MemorySnapshot:
        if not self.readable:
            raise ReadFailed("no file")
        return super().snapshot()


@pytest.fixture
def heads(tmp_path: Path) -> Iterator[HeadLog]:
    log = HeadLog(tmp_path / "heads.log", HeadSigner(bytes(32)))
    yield log
    log.close()


def test_a_head_that_cannot_be_read_now_is_signed_the_next_time(heads: HeadLog) -> None:
    store = ShyStore()
    make_customer(make_pipeline(store))

    sign_head(heads, store)
    signed = [heads.last]
    store.readable = True
    sign_head(heads, store)
    signed.append(heads.last)

    assert [head and head.batch for head in signed] == [None, 1]


def test_the_beginning_is_signed_too_and_once(heads: HeadLog) -> None:
    store = MemoryStore()

    for _ in range(2):
        sign_head(heads, store)

    assert heads.last is not None
    assert (heads.last.batch, heads.last.entries) == (0, 0)
    assert heads._path.read_bytes().count(b"\n") == 1
