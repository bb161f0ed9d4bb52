from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from riskgate_server.cli import COMMANDS, main
from riskgate_server.cli import init as module
from riskgate_server.crypto.keys import MASTER, MasterKey
from riskgate_server.crypto.signing import HeadSigner, HeadVerifier
from riskgate_server.datadir import DataDirectory, DataDirectoryError
from riskgate_server.opening import secret
from riskgate_server.rpc.callers import Authenticator
from riskgate_server.stores.access.registry import CallerRegistry
from riskgate_server.stores.sqlite.vault import SqliteVault


def riskgate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def initialised(root: Path, *options: str) -> dict[str, Any]:
    result = riskgate("init", root, "--json", *options)
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def who_calls(root: Path, key: str) -> str:
    registry = CallerRegistry(DataDirectory(root).access)
    try:
        caller = Authenticator(registry).by_key((("authorization", f"Bearer {key}"),))
        return f"{caller.tenant_id}/{caller.caller_id}" + ("!" if caller.may("rules:approve") else "")
    finally:
        registry.close()


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def assert_whole(root: Path, key: str) -> None:
    directory = DataDirectory(root)
    directory.check()
    assert who_calls(root, key) == "default/admin!"
    master = MasterKey(secret(MASTER, directory.master_key))
    SqliteVault(directory.vault, wrap=master.wrap, unwrap=master.unwrap).close()
    signer = HeadSigner(secret("heads", directory.heads_key))
    assert HeadVerifier(directory.heads_public_key.read_bytes()).key_id == signer.key_id
    assert not [path for path in root.rglob("*") if path.name.endswith(".new")]


def test_a_fresh_directory_is_whole_private_and_opens_to_the_administrator(tmp_path: Path) -> None:
    root = tmp_path / "data"
    answer = initialised(root, "--name", "risk.example.com")

    assert answer["server_names"] == ["localhost", "127.0.0.1", "::1", "risk.example.com"]
    assert_whole(root, answer["api_key"])
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for path in root.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_umask_neither_opens_nor_closes_anything(tmp_path: Path) -> None:
    modes = []
    for umask in (0o000, 0o077, 0o777):
        before = os.umask(umask)
        try:
            root = tmp_path / str(umask)
            initialised(root)
        finally:
            os.umask(before)
        DataDirectory(root).check()
        modes.append({name: stat.S_IMODE((root / name).stat().st_mode) for name in contents(root)})

    assert modes[0] == modes[1] == modes[2]


def test_the_credential_is_shown_once_and_kept_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "data"
    result = riskgate("init", root)

    key = next(word for word in result.stdout.split() if word.startswith("rgk_"))
    assert result.stdout.count(key) == 1
    assert who_calls(root, key) == "default/admin!"
    assert not [name for name, content in contents(root).items() if key[-43:].encode() in content]


def test_two_directories_share_no_secret(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    initialised(one)
    initialised(two)

    same = {name for name, content in contents(one).items() if contents(two)[name] == content}
    assert same == set()


def test_an_initialised_directory_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    initialised(tmp_path / "data")
    before = contents(tmp_path / "data")
    result = riskgate("init", tmp_path / "data")

    assert result.exit_code == 2
    assert "initialised before" in result.stderr
    assert contents(tmp_path / "data") == before


@pytest.mark.parametrize("name", ["notes.txt", "riskgate.db", "tls", "secrets"])
def test_a_directory_with_anything_else_in_it_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    result = riskgate("init", tmp_path)

    assert result.exit_code == 2
    assert "not empty" in result.stderr
    assert contents(tmp_path) == {name: b"mine"}


def test_the_root_of_a_fresh_disk_will_do(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()

    assert_whole(tmp_path, initialised(tmp_path)["api_key"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "not a host"], "--name"),
        (["--name", "*.example.com"], "--name"),
        (["--tenant", "Big Bank"], "--tenant"),
        (["--tenant", ""], "--tenant"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_input_names_the_option_exits_2_and_makes_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = riskgate("init", tmp_path / "data", *arguments)

    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "data").exists()


def test_a_missing_parent_and_a_file_in_place_of_the_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for place in (tmp_path / "absent" / "data", tmp_path / "file", tmp_path / "file" / "data"):
        assert riskgate("init", place).exit_code == 2


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing cleans up."""


def steps(monkeypatch: pytest.MonkeyPatch, die_at: int) -> list[str]:
    """Make every step of init count, and the chosen one the last."""
    taken: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            taken.append(name)
            if len(taken) == die_at:
                raise Killed
            return original(*arguments, **named)

        return step

    for name in ("make_private_directory", "write_file", "create_vault", "CallerEditor", "sync_directory"):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return taken


def test_an_init_killed_at_any_step_is_unusable_until_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        everything = steps(patched, die_at=0)
        initialised(tmp_path / "whole")
    assert len(everything) > 15
    for step in range(1, len(everything) + 1):
        root = tmp_path / str(step)
        with monkeypatch.context() as patched:
            steps(patched, die_at=step)
            with pytest.raises(Killed):
                module.initialise(root, names=(), tenant="default")
        if step == len(everything):
            # Only the last sync was missing: the marker is gone, so it is whole, though its key was never shown.
            assert riskgate("init", root).exit_code == 2
            rotated = riskgate("callers", "rotate", "admin", "--data", root, "--json")
            assert_whole(root, json.loads(rotated.stdout)["key"]["api_key"])
            continue
        with pytest.raises(DataDirectoryError, match="riskgate init"):
            DataDirectory(root).check()

        assert_whole(root, initialised(root)["api_key"])


def test_an_init_really_killed_at_random_is_finished_by_the_next(tmp_path: Path) -> None:
    outcomes = set()
    for attempt in range(6):
        root = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", "from riskgate_server.cli import main; main()", "init", str(root)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not root.exists():
            time.sleep(0.001)
        time.sleep(0.008 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        result = riskgate("init", root, "--json")
        outcomes.add(result.exit_code)
        if result.exit_code == 0:
            assert_whole(root, json.loads(result.stdout)["api_key"])
        else:
            assert "initialised before" in result.stderr
            DataDirectory(root).check()

    assert 0 in outcomes


def test_what_init_did_not_make_is_never_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "INITIALISING").write_text("")
    (tmp_path / "precious").write_text("mine")
    result = riskgate("init", tmp_path)

    assert result.exit_code == 2
    assert "precious" in result.stderr
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_second_init_beside_a_running_one_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "INITIALISING"
    with marker.open("w") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        result = riskgate("init", tmp_path)

    assert result.exit_code == 2
    assert "another init" in result.stderr
    assert contents(tmp_path) == {"INITIALISING": b""}


@pytest.mark.parametrize(
    "name",
    [
        "secrets/master.key",
        "secrets/heads.key",
        "tls/ca.key",
        "tls/server.key",
        "vault.db",
        "access.db",
        ".",
        "secrets",
    ],
)
@pytest.mark.parametrize("mode", [0o040, 0o004, 0o002])
def test_a_directory_open_to_others_is_refused_naming_the_remedy(tmp_path: Path, name: str, mode: int) -> None:
    root = tmp_path / "data"
    initialised(root)
    path = root / name
    path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)

    with pytest.raises(DataDirectoryError, match=r"chmod go-rwx"):
        DataDirectory(root).check()
    assert riskgate("callers", "list", "--data", root).exit_code == 1


def test_the_stores_own_files_are_checked_too(tmp_path: Path) -> None:
    root = tmp_path / "data"
    initialised(root)
    for name in ("riskgate.db", "riskgate.db-wal"):
        path = root / name
        path.write_bytes(b"")
        path.chmod(0o644)
        with pytest.raises(DataDirectoryError, match=name):
            DataDirectory(root).check()
        path.chmod(0o600)

    DataDirectory(root).check()


def test_a_missing_secret_is_said_and_never_made_anew(tmp_path: Path) -> None:
    root = tmp_path / "data"
    initialised(root)
    for path in DataDirectory(root).required_files():
        away = path.with_name("away")
        path.rename(away)
        with pytest.raises(DataDirectoryError, match="backup"):
            DataDirectory(root).check()
        assert riskgate("init", root).exit_code == 2
        assert not path.exists()
        away.rename(path)

    DataDirectory(root).check()


def test_help_lists_every_command_without_importing_any() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from riskgate_server.cli import main;"
        "result = CliRunner().invoke(main, ['--help']); print(result.output);"
        "sys.exit(any(name in sys.modules for name in ('cryptography', 'sqlite_utils', 'grpc')))"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)

    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists_and_explains_itself(name: str) -> None:
    result = riskgate(name, "--help")

    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_an_unknown_command_is_refused() -> None:
    assert riskgate("frobnicate").exit_code == 2


def test_what_callers_get_is_a_copy_and_the_directory_stays_closed(tmp_path: Path) -> None:
    said = riskgate("init", tmp_path / "data").stdout

    assert f"{tmp_path}/data/tls/ca.crt   (copy it to callers; the directory stays closed)" in said
