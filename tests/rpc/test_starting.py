"""Starting: what is wrong is said in a line that names it, quickly, and nothing is touched."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
import yaml
from click.testing import CliRunner

from riskgate_server import bootstrap
from riskgate_server.cli import main
from riskgate_server.cli.init import initialise
from riskgate_server.crypto.tls import SERVER_LIFETIME, Credential, issue_server, new_authority
from riskgate_server.datadir import DataDirectory, DataDirectoryError
from tests.acceptance.deployment import FREE_PORTS, free_port, riskgate
from tests.rpc.requests import buy, open_line
from tests.rpc.serving import Running
from tests.unit.rules.documents import ruleset_document

NOBODY: Final = 65_534


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "data"
    initialise(root, names=(), tenant="default")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A data directory of its own."""
    copy = tmp_path / "data"
    shutil.copytree(made, copy)
    return copy


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gets through every check must not serve for ever in here."""

    def started(*_: object, **__: object) -> None:
        raise RuntimeError("it started")

    monkeypatch.setattr(bootstrap, "open_store", started)


def served(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    """Try to serve in this process; every test here is about a server that refuses to start."""
    result = CliRunner().invoke(main, ["serve", *FREE_PORTS, *map(str, arguments)], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


OPTIONS: Final = {
    "certificate-port": ["-1", "65536", "x", "7443.5", ""],
    "key-port": ["-1", "65536", "x"],
    "metrics-port": ["-2", "65536", "x"],
    "clock": ["", "System", "SYSTEM", "ntp"],
    "drain-seconds": ["-1", "601", "x", "nan", "inf", ""],
    "log-level": ["", "INFO", "trace", "x"],
}
VARIABLES: Final = {
    "RISKGATE_CERTIFICATE_PORT": ["-1", "65536", "x"],
    "RISKGATE_KEY_PORT": ["-1", "70000", ""],
    "RISKGATE_METRICS_PORT": ["-2", "x"],
    "RISKGATE_CLOCK": ["", "utc"],
    "RISKGATE_WAITING_MAX": ["0", "-1", "100001", "x", "4_096"],
    "RISKGATE_CACHED_CUSTOMERS": ["0", "x", "10000001"],
    "RISKGATE_DRAIN_SECONDS": ["-0.1", "601", "ten"],
    "RISKGATE_HEADS_SECONDS": ["0", "0.01", "86401", "x"],
    "RISKGATE_LOG_LEVEL": ["warn", "1"],
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option in OPTIONS for value in OPTIONS[option]])
def test_an_option_out_of_bounds_is_named(made: Path, option: str, value: str) -> None:
    code, output = served("--data", made, f"--{option}", value)

    assert code == 2
    assert option in output.replace("_", "-")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in VARIABLES for value in VARIABLES[name]])
def test_a_variable_out_of_bounds_is_named(made: Path, name: str, value: str) -> None:
    result = CliRunner().invoke(main, ["serve", "--data", str(made)], env={name: value})

    assert result.exit_code == 2
    assert f"{name}: must be " in result.output


@pytest.mark.parametrize("name", ["RISKGATE_KEYPORT", "RISKGATE_", "RISKGATE_DATA_", "RISKGATE_SYNCHRONOUS"])
def test_a_variable_that_means_nothing_is_named(made: Path, name: str) -> None:
    code, output = served("--data", made, **{name: "1"})

    assert code == 2
    assert name in output


def test_without_a_data_directory_nothing_starts(tmp_path: Path) -> None:
    assert served()[0] == 2
    assert "data" in served()[1]
    code, output = served("--data", tmp_path / "nowhere")
    assert code == 1
    assert "riskgate init" in output


def private(root: Path) -> list[Path]:
    return [path for path in DataDirectory(root).private_files() if path.exists()]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_secret_that_others_may_read_or_write_is_refused(root: Path, mode: int) -> None:
    for path in private(root):
        path.chmod(mode)
        code, output = served("--data", root)
        path.chmod(0o600)

        assert code == 1
        assert str(path) in output
        assert "chmod go-rwx" in output


@pytest.mark.parametrize("name", ["", "secrets", "tls"])
def test_a_directory_that_is_open_to_others_is_refused(root: Path, name: str) -> None:
    (root / name).chmod(0o755)

    code, output = served("--data", root)

    assert code == 1
    assert f"chmod go-rwx {root / name}".rstrip("/") in output


def test_a_file_that_is_missing_is_named_and_never_made_anew(root: Path) -> None:
    for path in DataDirectory(root).required_files():
        moved = path.rename(path.with_suffix(".away"))
        code, output = served("--data", root)
        assert not path.exists()
        moved.rename(path)

        assert code == 1
        assert str(path) in output


def foreign(path: Path) -> bytes:
    """A key of the right form that is nobody's."""
    return new_authority(datetime.now(UTC)).key_pem


DAMAGES: Final[dict[str, Callable[[Path], bytes]]] = {
    "secrets/master.key": lambda path: b"not a key",
    "secrets/heads.key": lambda path: b"",
    "secrets/fingerprint.key": lambda path: path.read_bytes()[:-3],
    "tls/server.key": foreign,
    "tls/server.crt": lambda path: b"nonsense",
    "tls/ca.crt": lambda path: path.read_bytes()[100:],
    "access.db": lambda path: b"SQLite format 3\x00" + b"\xff" * 500,
    "vault.db": lambda path: b"\xff" * 500,
    "riskgate.db": lambda path: b"\xff" * 5_000,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named_in_a_line(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    damaged = root / name
    damaged.touch(mode=0o600)
    damaged.write_bytes(DAMAGES[name](damaged))

    code, output = served("--data", root)

    assert code == 1
    assert str(damaged) in output


def test_a_certificate_that_has_ended_is_refused_in_a_line_whose_remedy_helps(root: Path) -> None:
    directory = DataDirectory(root)
    authority = Credential(directory.ca_certificate.read_bytes(), directory.ca_key.read_bytes())
    ended = issue_server(authority, (), datetime.now(UTC) - SERVER_LIFETIME - timedelta(minutes=1))
    directory.server_key.write_bytes(ended.key_pem)
    directory.server_certificate.write_bytes(ended.certificate_pem)

    code, output = served("--data", root)

    assert code == 1
    assert output.startswith(f"Error: {directory.server_certificate} ended 20")
    remedy = f"keys certificate --data {root}"
    assert output.endswith(f"issue it anew with `riskgate {remedy}`\n")
    assert CliRunner().invoke(main, remedy.split()).exit_code == 0
    with pytest.raises(AssertionError, match="it started"):
        served("--data", root)


def test_too_few_files_are_refused_in_a_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)

    code, output = served("--data", root)

    assert code == 1
    assert "may open 100 files, and needs 256" in output


def test_as_many_files_may_be_opened_as_the_system_allows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 4_096))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: asked.append((what, limits)))

    with pytest.raises(AssertionError, match="it started"):
        served("--data", root)

    assert [limits for what, limits in asked if what == resource.RLIMIT_NOFILE] == [(4_096, 4_096)]


@pytest.mark.parametrize(("lives_by", "asked"), [("data", "system"), ("system", "data")])
def test_a_store_that_lives_by_another_clock_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives_by: str, asked: str
) -> None:
    """One call on the data's clock could end every hold of a live store, for good."""
    monkeypatch.undo()
    root = tmp_path / "data"
    initialise(root, names=(), tenant="default", clock=lives_by)

    code, output = served("--data", root, "--clock", asked)

    assert code == 1
    assert f"lives by the {lives_by} clock: serve it with `--clock {lives_by}`" in output


def test_a_clock_that_is_none_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (root / "clock").write_bytes(b"\xff\n")

    assert served("--data", root)[0] == 1


def test_an_interrupted_init_is_not_served(root: Path) -> None:
    (root / "INITIALISING").touch()

    code, output = served("--data", root)

    assert code == 1
    assert "interrupted init" in output


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "name: x",
        "name: x\nversion: '1'\ngroups: {}\nwindows: []\nreasons: {}\nrules: []\nmore: 1",
        "\x00",
        "{",
    ],
)
def test_a_ruleset_that_is_none_is_refused_in_a_line(root: Path, tmp_path: Path, text: str) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(text)

    code, output = served("--data", root, "--ruleset", rules)

    assert code == 1
    assert "ruleset" in output
    assert "Traceback" not in output


def test_a_ruleset_that_is_not_there_or_unreadable_is_named_with_its_option(root: Path, tmp_path: Path) -> None:
    absent, binary = tmp_path / "no.yaml", tmp_path / "binary.yaml"
    binary.write_bytes(b"name: \xff")

    for path, said in (
        (absent, "No such file or directory"),
        (tmp_path, "Is a directory"),
        (binary, "not UTF-8 text (byte 6)"),
    ):
        code, output = served("--data", root, "--ruleset", path)

        assert code == 1
        assert output == f"Error: --ruleset: {path}: {said}\n"


@pytest.mark.parametrize(
    ("name", "value"), [("RISKGATE_ORIGINS", "http://bank.example"), ("RISKGATE_APPLE_ROOTS", "/nowhere.pem")]
)
def test_a_relying_party_that_is_set_up_wrongly_is_told_so_in_a_line(root: Path, name: str, value: str) -> None:
    code, output = served("--data", root, **{name: value})

    assert code == 1
    assert output.startswith(f"Error: {name}: {value}")
    assert len(output.splitlines()) == 1


def test_every_fault_of_a_ruleset_is_a_line_with_its_place(root: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    document = ruleset_document("amount_minr > 1", "is_night", "currency > 1")
    rules.write_text(yaml.safe_dump(document, sort_keys=False))
    text = rules.read_text().splitlines()

    code, output = served("--data", root, "--ruleset", rules)

    head, *faults = output.splitlines()
    assert code == 1
    assert head == "Error: the ruleset is refused"
    for fault, position, when in ((faults[0], 0, "amount_minr > 1"), (faults[1], 2, "currency > 1")):
        line = text.index(f"  when: {when}") + 1
        assert fault.startswith(f"{rules}:{line}: rules[{position}].when: rule rule-{position}: line 1, column ")
    assert faults[0].endswith("nothing is called amount_minr; did you mean amount_minor?")
    assert len(faults) == 2


@pytest.mark.parametrize("option", ["--certificate-port", "--key-port", "--metrics-port"])
def test_a_port_that_is_taken_is_named(root: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, output = served("--data", root, option, port)

    assert (code, output) == (1, f"Error: {option}: port {port} of 127.0.0.1 is taken by another process\n")


def test_a_port_that_is_wanted_twice_is_named(root: Path) -> None:
    port = str(free_port())
    code, output = served("--data", root, "--certificate-port", port, "--key-port", port)

    assert (code, output) == (1, f"Error: --key-port: {port} is --certificate-port already\n")


def test_an_address_that_is_not_ours_is_told_from_a_port(root: Path) -> None:
    # Set aside for documentation: nobody's.
    code, output = served("--data", root, "--address", "192.0.2.1")
    assert (code, output) == (1, "Error: --address: 192.0.2.1 is not an address of this machine\n")

    code, output = served("--data", root, "--address", "no such host")
    assert code == 1
    assert output.startswith("Error: --address: no such host is no address that can be found")


def test_a_port_without_the_right_to_it_is_told_from_one_that_is_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    code, output = served("--data", root, "--key-port", "443")

    assert code == 1
    assert "this user may not open port" in output


@pytest.mark.parametrize("name", ["", "secrets", "tls"])
def test_a_directory_without_the_rights_is_named_and_no_file_in_it(made: Path, name: str) -> None:
    somebody_else = os.geteuid() or NOBODY
    with tempfile.TemporaryDirectory() as outer:
        root = Path(shutil.copytree(made, Path(outer) / "data"))
        for path in (Path(outer), root, root / "secrets", root / "tls"):
            path.chmod(0o777)
        (root / name).chmod(0)
        # Root may everything.
        os.seteuid(somebody_else)
        try:
            with pytest.raises(DataDirectoryError) as refusal:
                DataDirectory(root).check()
        finally:
            os.seteuid(os.getuid())
        (root / name).chmod(0o700)

    assert str(refusal.value).startswith(f"{root / name}: uid {somebody_else} may not read, write and search it")


@pytest.mark.process
def test_a_second_server_on_the_same_directory_is_refused_and_the_first_serves_on(running: Running) -> None:
    api = running.tenant().api
    open_line(api)
    root = running.deployment.directory.root

    done = riskgate("serve", "--data", root, *FREE_PORTS)

    assert done.returncode == 1
    assert str(root) in done.stderr
    assert "is served by process" in done.stderr
    assert "Traceback" not in done.stderr
    assert buy(api).decision_id
