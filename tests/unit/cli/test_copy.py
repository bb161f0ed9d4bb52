"""What `riskgate copy` says, and what it does not accept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from riskgate_server.cli import main
from riskgate_server.cli.init import initialise
from riskgate_server.stores.postgres.store import PostgresStore
from tests import postgres
from tests.acceptance.deployment import FREE_PORTS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    initialise(tmp_path / "data", names=(), tenant="default")
    return tmp_path / "data"


@pytest.fixture
def dsn(tmp_path: Path) -> Iterator[str]:
    yield postgres.database(tmp_path)
    postgres.give_back(tmp_path)


def copy(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["copy", *arguments])


def test_a_copy_answers_with_what_was_moved_and_names_no_password(data: Path, dsn: str) -> None:
    secret = dsn.replace("postgres:@", "postgres:secret@")

    answer = copy("--from", f"sqlite:{data}", "--to", secret, "--json")
    again = copy("--from", f"sqlite:{data}", "--to", secret)
    served = CliRunner().invoke(main, ["serve", "--data", str(data), *FREE_PORTS])

    found = json.loads(answer.stdout)
    assert found["from"] == f"sqlite:{data}"
    assert (found["finished_before"], found["heads"], found["rows"]["entries"]) == (False, [], 0)
    assert "before; nothing was done" in again.stdout
    assert "riskgate ledger verify --data DIR --store DSN" in again.stdout
    assert served.exit_code == 1
    assert f"Error: {data}/riskgate.db was moved to postgresql://" in served.output
    assert "secret" not in answer.output + again.output + served.output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--from", "sqlite:DATA"], "name either a place to copy --to, or --give-up"),
        (["--from", "sqlite:DATA", "--to", "postgresql://x/y", "--give-up"], "name either a place"),
        (["--from", "DATA", "--to", "postgresql://x/y"], "a place is sqlite:DIR or postgresql://"),
        (["--from", "sqlite:", "--to", "postgresql://x/y"], "a place is sqlite:DIR or postgresql://"),
        (["--from", "sqlite:DATA", "--to", "sqlite:DATA"], "one of the two places must be a database"),
        (["--from", "postgresql://a/b", "--to", "postgresql://x/y"], "--data names the directory"),
        (["--from", "sqlite:DATA", "--to", "postgresql://x/y", "--data", "OTHER"], "one data directory"),
    ],
)
def test_places_that_make_no_sense_are_refused(data: Path, given: list[str], words: str) -> None:
    result = copy(*[argument.replace("DATA", str(data)) for argument in given])

    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--from", "sqlite:DATA", "--to", "postgresql:///x?host=/nowhere"], "run the same command again"),
        (["--from", "sqlite:DATA", "--to", "postgresql:///x?nonsense=1"], "the DSN cannot be read"),
        (["--from", "sqlite:DATA/none", "--to", "postgresql://x/y"], "is not a directory"),
        (["--from", "sqlite:DATA", "--give-up"], "is not being copied"),
    ],
)
def test_what_cannot_be_moved_is_said_in_a_line(data: Path, given: list[str], words: str) -> None:
    result = copy(*[argument.replace("DATA", str(data)) for argument in given])

    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert words in result.output


def test_a_database_without_a_store_is_nothing_to_copy_from(data: Path, dsn: str) -> None:
    for path in (data / "riskgate.db", data / "vault.db"):
        path.unlink()

    result = copy("--from", dsn, "--to", f"sqlite:{data}")

    assert result.exit_code == 1
    assert "there is no store in the database" in result.output


def test_a_database_that_is_served_is_to_be_stopped_first(data: Path, dsn: str) -> None:
    with closing(PostgresStore(dsn)):
        result = copy("--from", f"sqlite:{data}", "--to", dsn)

    assert result.exit_code == 1
    assert result.output.strip().endswith(": stop it first")
