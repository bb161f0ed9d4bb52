"""`riskgate copy` is killed with `kill -9` at random instants, and goes on where it was."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from riskgate_server.datadir import DataDirectory
from riskgate_server.opening import open_store, sign_head
from riskgate_server.stores.moves import decode_mark
from riskgate_server.stores.postgres.schema import SCHEMA
from riskgate_server.stores.sqlite.reads import ENTRY
from tests import postgres
from tests.acceptance.conftest import Figures
from tests.acceptance.deployment import FREE_PORTS, PYTHON, answer, environment, riskgate, until
from tests.contract.moving import heads_of
from tests.factories import CUSTOMER, check, make_customer, make_pipeline, open_line, pay

pytestmark = pytest.mark.process

KILLS = int(os.environ.get("COPY_KILLS", "20"))
CUSTOMERS: Final = 400
PURCHASES: Final = 10
BATCH: Final = "sequence, at_us, first_position, count, root, hash"


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with some thousand entries, signed at both ends."""
    root = tmp_path_factory.mktemp("lived") / "data"
    answer("init", root)
    directory = DataDirectory(root)
    with closing(open_store(directory)) as opened, closing(heads_of(directory)) as heads:
        sign_head(heads, opened.store)
        pipeline = make_pipeline(opened.store, vault=opened.vault)
        make_customer(pipeline)
        names = [CUSTOMER, *(f"c{number}" for number in range(CUSTOMERS))]
        pipeline.run([open_line(customer_id=name) for name in names[1:]])
        for number in range(PURCHASES):
            pipeline.run([check(f"t{number}", 10 + number, customer_id=name) for name in names])
        pipeline.run([pay("p", 5, customer_id=name) for name in names])
        sign_head(heads, opened.store)
    return root


@pytest.fixture
def dsn(tmp_path: Path) -> Iterator[str]:
    yield postgres.database(tmp_path)
    postgres.give_back(tmp_path)


def journal_in_files(root: Path) -> tuple[list[Any], list[Any]]:
    with closing(sqlite3.connect(root / "riskgate.db")) as db:
        return (
            db.execute(f"SELECT {ENTRY} FROM entries ORDER BY position").fetchall(),
            db.execute(f"SELECT {BATCH} FROM batches ORDER BY sequence").fetchall(),
        )


def journal_in_database(dsn: str) -> tuple[list[Any], list[Any]]:
    with psycopg.connect(dsn, options=f"-c search_path={SCHEMA}") as db:
        return (
            db.execute(f"SELECT {ENTRY} FROM entries ORDER BY position").fetchall(),
            db.execute(f"SELECT {BATCH} FROM batches ORDER BY sequence").fetchall(),
        )


def under_way(dsn: str) -> bool:
    """Whether a copy into the database was begun and is not finished."""
    with psycopg.connect(dsn, options=f"-c search_path={SCHEMA}") as db:
        try:
            row = db.execute("SELECT mark FROM moves").fetchone()
        except psycopg.errors.UndefinedTable:
            return False
    return row is not None and not decode_mark(row[0]).finished


def sessions(dsn: str) -> set[int]:
    name = dsn.split("/")[3].split("?", maxsplit=1)[0]
    return {row[0] for row in postgres.admin("SELECT pid FROM pg_stat_activity WHERE datname = %s", name)}


def begun(command: list[str], dsn: str) -> subprocess.Popen[bytes]:
    """Start a copy and wait until it has found the database: half of its time goes by before."""
    until(lambda: not sessions(dsn), seconds=30, what="the end of who was killed before")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
    until(lambda: bool(sessions(dsn)) or process.poll() is not None, seconds=60, what="begin of a copy")
    return process


def ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it came to its end, and was not killed before."""
    _, said = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), said.decode()
    return process.returncode == 0


def test_a_copy_that_is_killed_again_and_again_loses_and_doubles_nothing(
    lived_in: Path, tmp_path: Path, dsn: str, figures: Figures
) -> None:
    """Only kills on the way count. When a copy has come to its end, the next begins into an emptied database."""
    before = journal_in_files(lived_in)
    chance = random.Random(KILLS)
    root = tmp_path / "data"
    command = [*PYTHON, "copy", "--from", f"sqlite:{root}", "--to", dsn]
    copies, kills, seconds = 0, 0, 0.0
    while kills < KILLS or not copies:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(lived_in, root)
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("SET client_min_messages = warning; DROP SCHEMA IF EXISTS riskgate, vault CASCADE")
        finished = False
        while not finished:
            process = begun(command, dsn)
            at = time.monotonic()
            # The first is left alone, to learn how long one takes.
            if copies and kills < KILLS:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(chance.uniform(0, seconds))
                process.kill()
            finished = ended(process)
            seconds = seconds if copies else time.monotonic() - at
            kills += not finished and under_way(dsn)
        copies += 1
        assert journal_in_database(dsn) == before

    report = answer("ledger", "verify", "--data", root, "--store", dsn)
    refused = riskgate("serve", "--data", root, *FREE_PORTS)
    figures(kills=kills, copies=copies, entries=len(before[0]), seconds=round(seconds, 2))
    assert report["clean"], report
    assert report["entries"] == len(before[0])
    assert refused.returncode == 1
    assert "was moved to postgresql://" in refused.stderr
