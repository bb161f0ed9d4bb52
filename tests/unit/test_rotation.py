"""Secrets are renewed one step at a time, and whatever interrupts a step, the next run finishes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from riskgate_server import copying
from riskgate_server import rotation as module
from riskgate_server.cli import main
from riskgate_server.cli.init import initialise
from riskgate_server.crypto.keys import HEADS, MASTER, MasterKeyMismatch
from riskgate_server.crypto.rings import LOOK_SECONDS, RingFile, in_force
from riskgate_server.crypto.signing import HeadLog
from riskgate_server.datadir import DataDirectory, DataDirectoryError, write_file
from riskgate_server.opening import (
    head_signers,
    master_keys,
    open_store,
    renew_signer,
    ring_file,
    secret_ring,
    sign_head,
    verify_directory,
)
from riskgate_server.rotation import DAY_SECONDS, KINDS, SECRETS_MAX, Report, Rotation, RotationRefused
from riskgate_server.stores.moves import Mark
from riskgate_server.stores.sqlite.moves import SQLitePlace
from riskgate_server.stores.sqlite.store import SQLiteStore
from riskgate_server.stores.sqlite.vault import SqliteVault
from tests.factories import TENANT, check, make_pipeline, open_line

ALL: Final = ("add", "rewrap", "retire")
CUSTOMERS: Final = [(TENANT, f"c{number}") for number in range(20)]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> DataDirectory:
    """A directory with customers, entries and signed heads."""
    root = tmp_path_factory.mktemp("lived") / "data"
    initialise(root, names=(), tenant="default")
    directory = DataDirectory(root)
    opened = open_store(directory)
    log = HeadLog(directory.heads_of(0), *head_signers(ring_file(HEADS, directory.heads_key)))
    with closing(opened), closing(log) as heads:
        sign_head(heads, opened.store)
        pipeline = make_pipeline(store=opened.store, vault=opened.vault, sealer=opened.sealer)
        pipeline.run([open_line(customer_id=customer_id) for _, customer_id in CUSTOMERS])
        pipeline.run([check("p1", customer_id=customer_id) for _, customer_id in CUSTOMERS])
        sign_head(heads, opened.store)
    return directory


@pytest.fixture
def directory(lived: DataDirectory, tmp_path: Path) -> DataDirectory:
    shutil.copytree(lived.root, tmp_path / "data")
    return DataDirectory(tmp_path / "data")


def numbers(directory: DataDirectory, kind: str) -> list[int]:
    return sorted(secret_ring(kind, directory.secret(kind)))


def begun(directory: DataDirectory) -> int:
    return numbers(directory, MASTER)[0]


def rotate(
    directory: DataDirectory, *kinds: str, days: float = 1, steps: Sequence[str] = ALL, seconds: float = 0
) -> Report:
    """Rotate so many days after the directory was made."""
    now = begun_at(directory) + days * DAY_SECONDS + seconds
    return Rotation(directory, now=lambda: now, pause=lambda _: None).run(kinds or KINDS, steps)


def begun_at(directory: DataDirectory) -> int:
    return int(directory.ca_key.stat().st_mtime)


def serve_for_a_moment(directory: DataDirectory) -> None:
    opened = open_store(directory)
    ring = ring_file(HEADS, directory.heads_key)
    with closing(opened), closing(HeadLog(directory.heads_of(0), *head_signers(ring))) as heads:
        sign_head(heads, opened.store)
        renew_signer(heads, ring)


def opened_vault(directory: DataDirectory) -> SqliteVault:
    masters = master_keys(directory)
    return SqliteVault(directory.vault, wrap=masters.wrap, unwrap=masters.unwrap)


def assert_whole(directory: DataDirectory) -> None:
    directory.check()
    report = verify_directory(directory, lambda *_: None)
    assert report.faults == []
    assert report.customers == len(CUSTOMERS)
    with closing(opened_vault(directory)) as vault:
        assert all(isinstance(key, bytes) for key in vault.keys(CUSTOMERS).values())


def test_every_ring_gets_a_secret_and_old_ones_stay_while_something_needs_them(directory: DataDirectory) -> None:
    first = begun(directory)

    report = rotate(directory)

    second = report.added[MASTER]
    assert report.added == dict.fromkeys(KINDS, second)
    assert report.retired == {MASTER: [first]}
    assert report.rewrapped == len(CUSTOMERS)
    assert set(report.waiting) == {"fingerprint", "proofs", "heads"}
    assert [numbers(directory, kind) for kind in KINDS] == [[second], *([[first, second]] * 3)]
    assert_whole(directory)


def test_secrets_go_when_nothing_needs_them_and_not_before(directory: DataDirectory) -> None:
    rotate(directory, steps=["add"])

    soon = rotate(directory, days=2, steps=["retire"])
    assert set(soon.waiting) == {"master", "fingerprint", "proofs", "heads"}
    assert soon.retired == {}
    assert "proofs" not in rotate(directory, days=8.9, steps=["retire"]).retired
    assert "proofs" in rotate(directory, days=9.1, steps=["retire"]).retired
    assert "fingerprint" not in rotate(directory, days=90.9, steps=["retire"]).retired
    assert "fingerprint" in rotate(directory, days=91.1, steps=["retire"]).retired
    serve_for_a_moment(directory)
    assert rotate(directory, "heads", days=2, steps=["retire"]).retired.keys() == {"heads"}
    assert_whole(directory)


def test_a_copy_of_heads_pub_from_before_proves_the_heads_of_after(directory: DataDirectory) -> None:
    before = directory.heads_public_key.read_bytes()
    for days in (1, 2):
        rotate(directory, days=days)
        serve_for_a_moment(directory)

    assert directory.heads_public_key.read_bytes().startswith(before)
    assert directory.heads_public_key.read_bytes().count(b"BEGIN PUBLIC KEY") == 3
    directory.heads_public_key.write_bytes(before)
    report = verify_directory(directory, lambda *_: None)
    assert (report.faults, report.heads) == ([], 2)


def test_the_new_master_key_alone_opens_a_copy_and_the_old_one_opens_nothing(
    directory: DataDirectory, tmp_path: Path
) -> None:
    old = directory.master_key.read_bytes()
    rotate(directory, "master")
    shutil.copytree(directory.root, tmp_path / "copy")

    assert_whole(DataDirectory(tmp_path / "copy"))
    directory.master_key.write_bytes(old)
    with pytest.raises(MasterKeyMismatch, match="another master key"):
        open_store(directory)


class Killed(BaseException):
    """The end of the process: nothing is tidied up."""


@pytest.mark.parametrize("survived", range(16))
def test_a_run_that_ended_anywhere_is_finished_by_the_next_and_adds_nothing_twice(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    monkeypatch.setattr(module, "PAGE", 7)
    left = survived

    def may_die(*_: object) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1

    def replace_file(path: Path, content: bytes) -> None:
        may_die()
        write_file(path, content)
        may_die()

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(module, "write_file", replace_file)
        now = begun_at(directory) + DAY_SECONDS
        Rotation(directory, now=lambda: now, pause=lambda _: None, progress=may_die).run(KINDS, ALL)
    assert_whole(directory)

    rotate(directory, days=1, seconds=100)
    assert [len(numbers(directory, kind)) for kind in KINDS] == [1, 2, 2, 2]
    assert not directory.rotation.exists()
    assert_whole(directory)


def test_an_interrupted_run_is_finished_with_the_kinds_it_had_begun(directory: DataDirectory) -> None:
    first = begun(directory)
    directory.rotation.write_bytes(json.dumps({"number": first + 7, "kinds": ["proofs"]}).encode())

    report = rotate(directory, "heads")

    assert report.added == {"proofs": first + 7, "heads": first + 7}


def test_two_rotations_at_once_are_refused(directory: DataDirectory) -> None:
    with directory.secrets_held():
        code, said = riskgate("keys", "rotate", "all", "--data", directory.root)

    assert code == 1
    assert "another `riskgate keys` or `copy` is at work" in said
    assert len(numbers(directory, MASTER)) == 1


def test_while_a_store_is_being_copied_its_keys_are_in_two_vaults_and_master_keys_stay(
    directory: DataDirectory,
) -> None:
    with closing(SQLiteStore(directory.store)) as store, closing(opened_vault(directory)) as vault:
        mark = Mark(move="m", role="source", other="postgresql://elsewhere", at="2026-01-01T00:00:00Z")
        SQLitePlace(store, vault, "here").set_mark(mark)

    with pytest.raises(RotationRefused, match="is being copied to postgresql://elsewhere"):
        rotate(directory)
    assert [len(numbers(directory, kind)) for kind in KINDS] == [1] * 4
    assert rotate(directory, "proofs").added.keys() == {"proofs"}


def test_a_store_is_copied_although_its_log_is_not_passed_on_yet(directory: DataDirectory) -> None:
    rotate(directory, "heads")

    with closing(SQLiteStore(directory.store)) as store, closing(opened_vault(directory)) as vault:
        copying._refuse_other_past(directory, SQLitePlace(store, vault, "here"))


def test_before_a_first_commit_an_old_master_key_stays_for_nothing_tells_whose_it_is(tmp_path: Path) -> None:
    initialise(tmp_path / "data", names=(), tenant="default")
    directory = DataDirectory(tmp_path / "data")
    assert "master" in rotate(directory).retired, "nobody was ever served"
    serve_for_a_moment(directory)

    report = rotate(directory, days=2)

    assert "master" not in report.retired
    assert "a first commit" in report.waiting["master"]
    assert len(numbers(directory, MASTER)) == 2


def test_a_ring_does_not_grow_without_end(directory: DataDirectory) -> None:
    for number in range(SECRETS_MAX - 1):
        rotate(directory, "proofs", seconds=number)

    with pytest.raises(RotationRefused, match=f"proofs: {SECRETS_MAX} secrets are kept already"):
        rotate(directory, "proofs")


@pytest.mark.parametrize("kind", KINDS)
def test_a_ring_that_is_missing_damaged_or_of_another_kind_is_said(directory: DataDirectory, kind: str) -> None:
    path = directory.secret(kind)
    content = path.read_bytes()
    other = directory.secret("master" if kind != "master" else "proofs").read_bytes()

    for wrong in (b"", content[:-5], other):
        path.write_bytes(wrong)
        with pytest.raises(DataDirectoryError, match=f"{kind}.key: .*restore it from a backup"):
            rotate(directory)
    path.unlink()
    with pytest.raises(DataDirectoryError, match=f"{kind}.key is missing"):
        rotate(directory)


def test_a_ring_is_read_again_within_two_seconds_and_at_once_by_who_looks(directory: DataDirectory) -> None:
    at = 0.0
    ring = RingFile("proofs", directory.proofs_key, monotonic=lambda: at)
    (first,) = ring.secrets()
    rotate(directory, "proofs", steps=["add"])

    assert list(ring.secrets()) == [first]
    at = LOOK_SECONDS
    assert len(ring.secrets()) == 2
    rotate(directory, "proofs", days=2, steps=["add"])
    assert (len(ring.secrets()), len(ring.look())) == (2, 3)
    directory.proofs_key.write_bytes(b"half a line")
    assert len(ring.look()) == 3


def test_a_secret_is_in_force_from_its_number_on() -> None:
    ring = {10: b"", 20: b""}

    assert [in_force(ring, now) for now in (5, 10, 19.9, 20, 99)] == [10, 10, 10, 20, 20]


def riskgate(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout + result.stderr


def test_the_command_tells_numbers_and_needs_and_never_a_secret(directory: DataDirectory) -> None:
    code, said = riskgate("keys", "rotate", "all", "--data", directory.root, "--json")
    listed: dict[str, Any] = json.loads(riskgate("keys", "list", "--data", directory.root, "--json")[1])
    shown = riskgate("keys", "list", "--data", directory.root)[1]

    report = json.loads(said)
    assert (code, set(report["added"]), report["rewrapped"]) == (0, set(KINDS), len(CUSTOMERS))
    assert [(one["kind"], one["in_force"]) for one in listed["secrets"]] == [
        ("master", True), ("fingerprint", True), ("fingerprint", False), ("proofs", True), ("proofs", False),
        ("heads", False), ("heads", True),
    ]  # fmt: skip
    needs = [one["needed"] for one in listed["secrets"] if one["kind"] in {"master", "heads"}]
    assert needs == ["20 customers' keys", "heads.log", "the next head"]
    states = {
        (line.split()[0], line.partition("Z  ")[2].split("  ")[0])
        for line in shown.partition("\n\n")[0].splitlines()[1:]
    }
    assert {("proofs", "in force"), ("proofs", "from then on"), ("heads", "before"), ("heads", "in force")} <= states
    secrets = [secret.hex() for kind in KINDS for secret in secret_ring(kind, directory.secret(kind)).values()]
    assert not [secret for secret in secrets if secret in said + shown + json.dumps(listed)]


def test_the_command_says_in_one_line_what_is_wrong(directory: DataDirectory) -> None:
    directory.master_key.write_bytes(b"")

    code, said = riskgate("keys", "rotate", "master", "--data", directory.root)
    assert code == 1
    assert said.startswith("Error: ")
    assert "master.key: no secret of kind master; restore it from a backup" in said
