"""The scripts as people run them: processes against a real server over TLS."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts.demonstration.process import DemoServer, riskgate
from scripts.streaming.progress import PLAIN_WIDTH

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
SCOPES = ("risk:check", "risk:history", "risk:read", "line:open", "ledger:write", "limit:read")

pytestmark = pytest.mark.process


def run(script: str, *arguments: object, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        timeout=120,
    )


@pytest.fixture(scope="module")
def importer() -> Iterator[tuple[DemoServer, str]]:
    """One server for all tests, and a key: whatever they stream, they stream the same rows."""
    with tempfile.TemporaryDirectory() as root, DemoServer(Path(root)) as made:
        key = made.add_caller_with_key("importer", SCOPES, rate=100_000)
        made.start()
        yield made, key


@pytest.fixture
def server(importer: tuple[DemoServer, str], tmp_path: Path) -> DemoServer:
    made, key = importer
    (tmp_path / "key").write_text(key)
    return made


def stream(server: DemoServer, tmp_path: Path, *more: object, data: str = "example.csv") -> Any:
    given = data if Path(data).is_absolute() else SCRIPTS / "mappings" / data
    return run(
        "stream_transactions.py",
        *("--data", given, "--mapping", SCRIPTS / "mappings" / "example.yaml"),
        *("--address", server.by_key("").address, "--ca", server.data / "tls" / "ca.crt"),
        *("--api-key-file", tmp_path / "key", *more),
        directory=tmp_path,
    )


def test_a_history_is_streamed_in_parts_and_every_row_answered_once(server: DemoServer, tmp_path: Path) -> None:
    first = stream(server, tmp_path, "--state", "position.json", "--limit", 5)
    rest = stream(server, tmp_path, "--state", "position.json", "--prove", "--data-dir", server.data)

    assert first.returncode == 0, first.stderr
    assert rest.returncode == 0, rest.stderr
    assert "Going on after row 5." in rest.stdout
    assert "8 purchases answered" in rest.stdout
    assert "every row has exactly one decision" in rest.stdout

    again = stream(server, tmp_path, "--prove")
    assert again.returncode == 0, again.stderr
    entries = riskgate("ledger", "verify", "--data", str(server.data))["entries"]
    stream(server, tmp_path)
    report = riskgate("ledger", "verify", "--data", str(server.data))
    assert report["clean"]
    assert report["entries"] == entries


def test_a_bad_row_stops_the_stream_or_is_listed(server: DemoServer, tmp_path: Path) -> None:
    rows = (SCRIPTS / "mappings" / "example.csv").read_text("utf-8").splitlines()
    rows[3] = rows[3].replace("32.00", "a lot")
    broken = tmp_path / "broken.csv"
    broken.write_text("\n".join(rows) + "\n", "utf-8")

    stopped = stream(server, tmp_path, data=str(broken))
    skipped = stream(server, tmp_path, "--bad-rows", "skip", data=str(broken))

    assert stopped.returncode == 1
    assert "row 3 of the file: column 'price' (amount) is 'a lot'" in stopped.stderr
    assert skipped.returncode == 0, skipped.stderr
    assert "Rows not sent because they are no purchases: 1." in skipped.stdout
    assert "7 purchases answered" in skipped.stdout


def test_a_history_that_is_done_says_so(server: DemoServer, tmp_path: Path) -> None:
    stream(server, tmp_path, "--state", "position.json")

    again = stream(server, tmp_path, "--state", "position.json")

    assert again.returncode == 0, again.stderr
    assert "There was nothing to do: all rows were answered by earlier runs" in again.stdout


def test_rows_the_server_refuses_make_the_run_fail(server: DemoServer, tmp_path: Path) -> None:
    rows = (SCRIPTS / "mappings" / "example.csv").read_text("utf-8").replace("A-1003", "A-2003").splitlines()
    other = tmp_path / "other.csv"
    # A-1001 again, with another amount: the server knows it, and not so.
    other.write_text("\n".join([rows[0], rows[1].replace("18.50", "18.60")]) + "\n", "utf-8")
    stream(server, tmp_path)

    refused = stream(server, tmp_path, data=str(other))

    assert refused.returncode == 1
    assert "1 row was refused by the server" in refused.stderr


def test_a_server_of_another_authority_is_told_at_once(server: DemoServer, tmp_path: Path) -> None:
    riskgate("init", str(tmp_path / "other"))
    elsewhere = tmp_path / "other" / "tls" / "ca.crt"

    refused = stream(server, tmp_path, "--ca", elsewhere)
    nothing = stream(server, tmp_path, "--ca", tmp_path / "key")

    assert refused.returncode == nothing.returncode == 2
    assert f"Invalid value for --ca: {elsewhere} did not issue the certificate" in refused.stderr
    assert "Invalid value for --ca: there is no certificate in" in nothing.stderr


def test_an_interrupted_load_tells_what_it_measured(server: DemoServer, tmp_path: Path) -> None:
    command = [
        sys.executable, str(SCRIPTS / "loadtest.py"), "--duration", "300", "--warm-up", "0", "--rate", "20",
        "--customers", "5", "--mix", "limit=1", "--processes", "2", "--json", "figures.json",
        "--address", server.by_key("").address, "--ca", str(server.data / "tls" / "ca.crt"),
        "--api-key-file", "key",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as load:
        assert load.stdout is not None
        assert load.stderr is not None
        for line in load.stdout:
            if line.startswith("second:"):
                break
        # As a terminal does: to everybody.
        os.killpg(load.pid, signal.SIGINT)
        out, err = load.stdout.read(), load.stderr.read()

    assert load.returncode == 1
    assert "stopped when asked to" in err
    assert "Traceback" not in err
    assert "Stopped after" in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["stopped"]
    assert figures["done"] > 0
    assert figures["failed"] == 0


def test_a_wrong_key_is_told_plainly(server: DemoServer, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("rgk_wrong_wrong")

    refused = stream(server, tmp_path)

    assert refused.returncode == 1
    assert "CREDENTIAL_INVALID" in refused.stderr
    assert "Traceback" not in refused.stderr


def without_chance(output: str) -> str:
    """Without codes and the number of commits, which are others each time."""
    return re.sub(r"\b\d{6}\b|(?<=验证码)\d{6}", "CODE", re.sub(r"[\d,]+ commits", "N commits", output))


def story_of(output: str) -> str:
    """The part of it that no clock and no address is in."""
    return without_chance(output).partition("One line's story")[2].partition("The books")[0]


def excerpt() -> list[str]:
    """What the README shows of the demonstration, line by line."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"`make demo` ends like this.*?```\n(.*?)```", readme, re.DOTALL)
    return without_chance(shown).splitlines()


def undated(line: str) -> str:
    """A line of the story without its date, which a shorter life of the city moves."""
    return re.sub(r"^  \d\d \w{3} \d\d:\d\d|\d\d \w{3} (?=\d\d:\d\d)", "", line).strip()


@pytest.fixture(scope="module")
def stories() -> set[str]:
    return set()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Outside pytest's own folders, which every other run of it closes to the user that PostgreSQL runs as."""
    with tempfile.TemporaryDirectory(prefix="rgdemo") as folder:
        yield Path(folder)


@pytest.mark.parametrize("store", [[], ["--store", "postgresql"]], ids=["embedded", "postgresql"])
def test_the_demonstration_succeeds_and_leaves_nothing(
    tmp_path: Path, scratch: Path, store: list[str], stories: set[str]
) -> None:
    # Where a login has its runtime files: the embedded database's library keeps a lock file there for good.
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "demo.py"), "--customers", "60", "--days", "8", *store],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **os.environ,
            "TMPDIR": str(scratch),
            "XDG_RUNTIME_DIR": str(runtime),
            "FORCE_COLOR": "1",
            "COLUMNS": "40",
        },
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("riskgate ledger verify: clean", "SUSPENDED", "the line is ACTIVE", "the same answer", "False alarms"):
        assert said in done.stdout
    assert [line for line in done.stdout.splitlines() if line != line.rstrip() or len(line) > PLAIN_WIDTH] == []
    assert list(scratch.iterdir()) == []
    stories.add(story_of(done.stdout))
    assert len(stories) == 1, "the story is another one on another store"
    told = {undated(line) for line in without_chance(done.stdout).splitlines()}
    shown = excerpt()
    story = shown[next(at for at, line in enumerate(shown) if "One line's story" in line) : -2]
    assert [line for line in story if undated(line) not in told] == [], "the README tells another story"


@pytest.mark.long
def test_the_readme_shows_what_the_demonstration_prints(tmp_path: Path) -> None:
    done = run("demo.py", directory=tmp_path)

    printed = without_chance(done.stdout).splitlines()
    assert [line for line in excerpt() if line not in printed] == []


def test_an_interrupted_demonstration_leaves_nothing(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        [sys.executable, str(SCRIPTS / "demo.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "customers with habits" in line:
                break
        log = next(scratch.glob("*/server.log"))
        demo.send_signal(signal.SIGTERM)
        ends = time.monotonic() + 60
        while demo.poll() is None and time.monotonic() < ends:
            demo.stdout.readline()

        assert demo.returncode == 1
        assert demo.stderr is not None
        assert "interrupted" in demo.stderr.read()
    assert not log.exists()
    assert list(scratch.iterdir()) == []
