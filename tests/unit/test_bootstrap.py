"""Signed heads between the store and their log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from riskgate_server.bootstrap import _sign_head
from riskgate_server.crypto.signing import HeadLog, HeadSigner
from riskgate_server.engine.ports import ReadFailed
from riskgate_server.stores.memory import MemoryStore
from riskgate_server.stores.memory.store import MemorySnapshot
from tests.factories import make_customer, make_pipeline


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

    _sign_head(heads, store)
    signed = [heads.last]
    store.readable = True
    _sign_head(heads, store)
    signed.append(heads.last)

    assert [head and head.batch for head in signed] == [None, 1]
