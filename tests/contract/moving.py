"""A store that was lived in, and both ends of its move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Final

from riskgate_server import copying
from riskgate_server.crypto.keys import HEADS
from riskgate_server.crypto.signing import HeadLog, HeadSigner
from riskgate_server.datadir import DataDirectory
from riskgate_server.opening import (
    master_keys,
    open_store,
    refuse_other_past,
    secret,
    sign_head,
    verify_directory,
)
from riskgate_server.stores.moves import TABLES, Cursor, Place
from tests.contract.rows import BO, commit, identity, message, scope
from tests.factories import capture, check, make_customer, make_pipeline, open_line, pay

QUIET: Final = lambda *_: None  # noqa: E731
LOST: Final = ("acme", "lost")


def live(directory: DataDirectory, dsn: str = "", *, again: str = "") -> None:
    """Serve for a while: two customers, an open hold, a capture, a payment, a key that was forgotten."""
    with closing(open_store(directory, dsn)) as opened, closing(heads_of(directory)) as heads:
        refuse_other_past(heads, opened.store)
        sign_head(heads, opened.store)
        pipeline = make_pipeline(opened.store, vault=opened.vault)
        if not again:
            make_customer(pipeline)
            pipeline.run([open_line(customer_id="bo"), check("t1", 500), check("t1", 70, customer_id="bo")])
            pipeline.run([capture("c1", "t1", 300), pay("p1", 100)])
            opened.vault.create({LOST: bytes(32)})
            opened.vault.forget(LOST)
        pipeline.run([check(f"t2{again}", 50), check(f"t3{again}", 60, customer_id="bo")])
        sign_head(heads, opened.store)


def heads_of(directory: DataDirectory) -> HeadLog:
    return HeadLog(directory.heads_of(0), HeadSigner(secret(HEADS, directory.heads_key)))


def files(directory: DataDirectory) -> str:
    return f"sqlite:{directory.root}"


@contextmanager
def place(directory: DataDirectory, dsn: str = "") -> Iterator[Place]:
    """One end of a move, opened as `riskgate copy` does."""
    master = master_keys(directory)
    with ExitStack() as closing:
        if dsn:
            yield copying._database(dsn, master, closing)
        else:
            yield copying._files(directory, master, closing)


def rows_in(directory: DataDirectory, dsn: str = "") -> dict[str, list[Any]]:
    """Every row of every table, sorted."""
    found: dict[str, list[Any]] = {table: [] for table in TABLES}
    with place(directory, dsn) as there:
        for part in there.parts:
            for table, rows in there.page(Cursor(part), 10_000).rows.items():
                found[table] += rows
    return {table: sorted(rows) for table, rows in found.items()}


def faults_of(directory: DataDirectory, dsn: str = "") -> list[str]:
    return verify_directory(directory, QUIET, dsn).faults


def with_everything(directory: DataDirectory) -> DataDirectory:
    """Rows of the kinds that a life of purchases alone does not leave; to a move they are bytes."""
    with place(directory) as there:
        commit(there.store, identity(), identity(BO), scope(), scope(b"\0\xff", kind=7), message(), message("m2", BO))
    return directory
