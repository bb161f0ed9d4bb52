"""The server's certificate is issued anew beside who serves it, and spoken of before it ends."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from riskgate_server.certificate import LOOK_SECONDS, WARN_BEFORE, read_pair, renew, watch
from riskgate_server.cli import main
from riskgate_server.cli.init import initialise
from riskgate_server.crypto import tls
from riskgate_server.datadir import DataDirectory, DataDirectoryError, write_file
from tests.rpc.logs import Lines, logs

HERE = ["localhost", "127.0.0.1", "::1"]
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "data"
    initialise(root, names=("risk.example.com",), tenant="default")
    return root


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> DataDirectory:
    shutil.copytree(made, tmp_path / "data")
    return DataDirectory(tmp_path / "data")


@pytest.fixture
def log() -> Iterator[Lines]:
    with logs() as lines:
        yield lines


def asked(directory: DataDirectory, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", "certificate", "--data", str(directory.root), *arguments])


def renewed(directory: DataDirectory, *arguments: str) -> dict[str, Any]:
    result = asked(directory, *arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_names_it_has_stay_unless_they_are_to_be_replaced(directory: DataDirectory) -> None:
    assert renewed(directory)["server_names"] == [*HERE, "risk.example.com"]
    added = renewed(directory, "--name", "10.0.0.7", "--name", "RISK.example.com", "--name", "0:0::1")["server_names"]
    assert added == [*HERE, "risk.example.com", "10.0.0.7"]
    assert renewed(directory, "--replace-names", "--name", "new.example.com")["server_names"] == [
        *HERE,
        "new.example.com",
    ]
    assert renewed(directory, "--replace-names")["server_names"] == HERE


def test_it_has_a_new_key_and_its_whole_time_under_the_same_authority(directory: DataDirectory) -> None:
    authority = directory.ca_certificate.read_bytes()
    old_key, old = read_pair(directory)
    now = datetime.now(UTC).replace(microsecond=0) + 800 * DAY
    renew(directory, (), keep_names=True, now=now)
    key, certificate = read_pair(directory)

    assert directory.ca_certificate.read_bytes() == authority
    assert tls.was_issued_by(authority, certificate)
    assert tls.end_of(certificate) == now + tls.SERVER_LIFETIME
    assert key != old_key
    assert certificate != old
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.tls.iterdir()} == {0o600}
    DataDirectory(directory.root).check()


def test_of_keys_only_the_one_before_stays(directory: DataDirectory) -> None:
    for _ in range(4):
        renewed(directory)

    assert directory.server_key.read_bytes().count(b"BEGIN PRIVATE KEY") == 2


@pytest.mark.parametrize("name", ["server.key", "server.crt"])
def test_interrupted_before_either_file_the_old_one_is_served_and_the_next_run_renews(
    directory: DataDirectory, name: str
) -> None:
    before = read_pair(directory)
    # What a file is staged as cannot be written: the run ends there.
    obstacle = directory.tls / f".{name}.new"
    obstacle.mkdir()
    interrupted = asked(directory)
    after = read_pair(directory)
    obstacle.rmdir()

    assert interrupted.exit_code == 1
    assert "Traceback" not in interrupted.output
    assert after == before
    renewed(directory)
    assert read_pair(directory) != before


def test_whoever_reads_beside_renewals_finds_a_key_and_its_certificate(directory: DataDirectory) -> None:
    seen: set[bytes] = set()
    faults: list[Exception] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                seen.add(read_pair(directory)[1])
            except ValueError as fault:
                faults.append(fault)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(40):
        renew(directory, (), keep_names=True, now=datetime.now(UTC))
    over.set()
    reader.join()

    assert faults == []
    assert len(seen) > 1


def test_a_name_that_no_certificate_carries_is_refused_and_changes_nothing(directory: DataDirectory) -> None:
    before = directory.server_key.read_bytes()
    result = asked(directory, "--name", "https://host")

    assert result.exit_code == 2
    assert "--name" in result.output
    assert directory.server_key.read_bytes() == before


def test_one_that_another_authority_issued_is_not_replaced(directory: DataDirectory) -> None:
    now = datetime.now(UTC)
    foreign = tls.issue_server(tls.new_authority(now), (), now)
    write_file(directory.server_key, foreign.key_pem)
    write_file(directory.server_certificate, foreign.certificate_pem)
    result = asked(directory)

    assert result.exit_code == 1
    assert "was not issued by" in result.output
    assert directory.server_certificate.read_bytes() == foreign.certificate_pem


def test_nothing_is_issued_beyond_the_authoritys_end(directory: DataDirectory) -> None:
    end = tls.end_of(directory.ca_certificate.read_bytes())

    assert renew(directory, (), keep_names=True, now=end - DAY).expires_with_authority
    assert tls.end_of(directory.server_certificate.read_bytes()) == end
    with pytest.raises(DataDirectoryError, match="nothing can be issued under it any more"):
        renew(directory, (), keep_names=True, now=end)


def test_two_renewals_at_once_are_refused_in_a_line(directory: DataDirectory) -> None:
    with directory.secrets_held():
        result = asked(directory)

    assert result.exit_code == 1
    assert "another `riskgate keys`" in result.output


def test_the_list_of_keys_tells_when_certificates_end(directory: DataDirectory) -> None:
    answer = CliRunner().invoke(main, ["keys", "list", "--data", str(directory.root), "--json"])
    authority, server = json.loads(answer.stdout)["certificates"]

    assert (authority["file"], server["file"]) == ("ca.crt", "server.crt")
    assert server["expires"] < authority["expires"]
    assert server["server_names"] == [*HERE, "risk.example.com"]


class Days:
    """A clock that sleeps a day at a time, and renews the certificate in the night after a given one."""

    def __init__(self, directory: DataDirectory, begins: datetime, *, renewed_after: int, last: int) -> None:
        self.now = begins
        self._directory = directory
        self._renewed_after = renewed_after
        self._last = last
        self._day = 0

    async def sleep(self, seconds: float) -> None:
        assert seconds == LOOK_SECONDS
        if self._day == self._last:
            raise asyncio.CancelledError
        if self._day == self._renewed_after:
            renew(self._directory, (), keep_names=True, now=self.now)
        self._day += 1
        self.now += DAY


def watched(directory: DataDirectory, days: Days, address: str = "127.0.0.1") -> None:
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch(directory, address, now=lambda: days.now, sleep=days.sleep))


def test_a_server_that_runs_speaks_daily_of_its_end_until_it_is_renewed(directory: DataDirectory, log: Lines) -> None:
    end = tls.end_of(directory.server_certificate.read_bytes())
    watched(directory, Days(directory, end - WARN_BEFORE - 2 * DAY, renewed_after=34, last=40))

    assert [event["days"] for event in log.of("certificate ends soon")] == list(range(30, 0, -1))
    assert len(log.of("certificate has ended")) == 3
    assert {event["remedy"] for event in log.events} == {"riskgate keys certificate"}


def test_a_certificate_that_cannot_be_read_is_spoken_of_and_the_looking_goes_on(
    directory: DataDirectory, log: Lines
) -> None:
    directory.server_certificate.unlink()
    watched(directory, Days(directory, datetime.now(UTC), renewed_after=9, last=1))

    assert len(log.of("certificate cannot be read")) == 2


@pytest.mark.parametrize(
    ("address", "names", "warned"),
    [
        ("0.0.0.0", (), True),
        ("::", (), True),
        ("10.0.0.7", (), True),
        ("risk.example.com", (), True),
        ("10.0.0.7", ("10.0.0.7",), False),
        ("0.0.0.0", ("risk.example.com",), False),
        ("127.0.0.1", (), False),
        ("127.0.0.2", (), False),
        ("::1", (), False),
        ("localhost", (), False),
    ],
)
def test_who_listens_elsewhere_under_no_name_but_localhost_is_warned(
    directory: DataDirectory, log: Lines, address: str, names: tuple[str, ...], *, warned: bool
) -> None:
    renew(directory, names, keep_names=False, now=datetime.now(UTC))
    watched(directory, Days(directory, datetime.now(UTC), renewed_after=9, last=1), address)

    assert len(log.of("certificate names only localhost")) == warned
