"""The same commands on memory, SQLite and PostgreSQL: byte-equal replies, equal rows, equal hashes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from riskgate_server.engine.decide import USE_CASES
from riskgate_server.engine.replies import Reply
from riskgate_server.engine.sealing import NONCE_SIZE
from tests import factories as f
from tests import postgres
from tests.contract.backends import BACKENDS
from tests.traces.lockstep import CACHED_CUSTOMERS, Course, Different, Engine, Lockstep

ROOT: Final = Path(__file__).parents[2]
COMMANDS: Final = 4_000


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    folder = tmp_path_factory.mktemp("trace")
    yield Lockstep(folder, seed=1, commands=COMMANDS).run()
    postgres.give_back(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    postgres.give_back(tmp_path)


def test_every_store_gives_the_same_replies_and_the_same_journal(course: Course) -> None:
    assert set(CACHED_CUSTOMERS) == set(BACKENDS)
    assert course.commands == COMMANDS
    assert course.entries > COMMANDS // 2
    assert len(course.head) == 64


def test_the_trace_has_every_command_and_every_reply(course: Course) -> None:
    """Whoever adds a command adds it to a source in `tests/traces` or to `tests/simulation/commands.py`."""
    assert set(course.kinds) == {kind.__name__ for kind in USE_CASES}
    assert set(course.replies) >= {kind.__name__ for kind in get_args(Reply)}


def test_the_trace_has_refusals_duplicates_other_content_lapses_and_what_was_forgotten(course: Course) -> None:
    reasons = {name for name in course.replies if name.isupper()}

    assert len(reasons) > 40, reasons
    assert reasons >= {"REQUEST_ID_REUSED", "REPLY_FORGOTTEN", "DEADLINE_PASSED", "INTERNAL", "BOUND_REACHED"}
    assert course.replies["GrantReply"] > 10
    assert course.replies["DeviceReply"] >= 3
    assert course.repeated > COMMANDS / 15
    assert course.altered > COMMANDS / 60
    assert course.lapsed > 10
    assert course.forgotten > 100


def other_nonces(engine: Engine) -> None:
    """Nobody is answered otherwise, but what is sealed differs, and every hash over it."""
    chance = f.SeededEntropy(1)

    def entropy(size: int, /) -> bytes:
        made = chance(size)
        return made[::-1] if size % NONCE_SIZE == 0 else made

    engine.pipeline._entropy = entropy


def lapsed_holds_overlooked(engine: Engine) -> None:
    """A question that one store answers otherwise."""
    transaction = engine.store.transaction

    class Overlooking:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def lapsed(self, key: Any, now_us: int) -> Any:
            return self._inner.lapsed(key, now_us - f.HOUR_US)

    class Around:
        def __init__(self) -> None:
            self._inner: Any = transaction()

        def __enter__(self) -> Any:
            return Overlooking(self._inner.__enter__())

        def __exit__(self, *error: object) -> Any:
            return self._inner.__exit__(*error)

    engine.store.transaction = Around  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "told"),
    [(other_nonces, r"memory keeps EntryRow.*, sqlite EntryRow"), (lapsed_holds_overlooked, r"batch \d+, \w+ \w*: ")],
)
def test_a_store_that_differs_in_anything_is_told_apart(folder: Path, change: Any, told: str) -> None:
    with pytest.raises(Different, match=told):
        Lockstep(folder, seed=1, commands=COMMANDS, changed={"sqlite": change}).run()


def test_a_seed_is_the_same_trace_in_another_process_with_other_hashing() -> None:
    told = [
        subprocess.run(
            [sys.executable, "-m", "tests.traces", "--commands", "600", "--seed", "2"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashing},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.rpartition(";")[0]
        for hashing in ("1", "2")
    ]

    assert told[0].startswith("600 commands")
    assert told[0] == told[1]
