from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from riskgate_server.domain.errors import InternalError
from riskgate_server.engine.callers import CallersSnapshot, parse_api_key, secret_matches
from riskgate_server.scopes import SCOPES
from riskgate_server.stores.access import registry as registry_module
from riskgate_server.stores.access.editor import CallerEditor, EditRefused, IssuedCertificate, IssuedKey
from riskgate_server.stores.access.registry import CallerRegistry, RegistryUnusable
from riskgate_server.stores.access.schema import MIGRATION_NAMES, migrations, open_database

BACKEND = ("bank", "backend")
HOUR_US = 3_600_000_000


class Clock:
    """Both clocks: microseconds for the editor, seconds for the reader."""

    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000

    def __call__(self) -> int:
        self.us += 1
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6

    def pass_seconds(self, seconds: float) -> None:
        self.us += int(seconds * 1e6)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.db"


@pytest.fixture
def editor(path: Path, clock: Clock) -> Iterator[CallerEditor]:
    editor = CallerEditor(path, who="alice", clock=clock, default_tenant_if_new="bank")
    yield editor
    editor.close()


@pytest.fixture
def first_key(editor: CallerEditor) -> IssuedKey:
    issued = editor.add(BACKEND, scopes=["risk:check"], certificates_allowed=False, with_key=True)
    assert issued is not None
    return issued


@pytest.fixture
def registry(
    path: Path, clock: Clock, first_key: IssuedKey, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CallerRegistry]:
    # Servers that other tests share look all the time; here it is once a second, as shipped.
    monkeypatch.setattr(registry_module, "CHECK_SECONDS", 1.0)
    registry = CallerRegistry(path, monotonic=clock.monotonic)
    yield registry
    registry.close()


def active(editor: CallerEditor) -> set[str]:
    return {key.key_id for key in editor.snapshot().keys.values() if key.active}


def test_only_the_hash_of_a_secret_is_stored(path: Path, editor: CallerEditor, first_key: IssuedKey) -> None:
    parsed = parse_api_key(first_key.text)
    assert parsed is not None
    key_id, secret = parsed

    assert secret_matches(secret, editor.snapshot().keys[key_id].secret_sha256)
    content = path.read_bytes()
    assert secret not in content
    assert first_key.text[-43:].encode() not in content
    assert first_key.text not in repr(first_key)


def test_the_registry_file_is_private(path: Path, editor: CallerEditor) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_third_rotation_partner_never_exists(editor: CallerEditor, first_key: IssuedKey) -> None:
    second = editor.rotate(BACKEND)
    assert active(editor) == {first_key.key_id, second.issued.key_id}
    assert second.revoked == ()
    third = editor.rotate(BACKEND)

    assert third.revoked == (first_key.key_id,)
    assert [key.key_id for key in third.still_active] == [second.issued.key_id]
    assert active(editor) == {second.issued.key_id, third.issued.key_id}


def test_the_file_itself_refuses_a_third_active_key(path: Path, editor: CallerEditor, first_key: IssuedKey) -> None:
    editor.rotate(BACKEND)
    connection = sqlite3.connect(path)

    for slot in (1, 2):
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(
                "INSERT INTO keys VALUES ('x', 'bank', 'backend', x'00', 1, 0, 1, ?)",
                (slot,),
            )
    connection.close()


def test_grace_ends_the_old_key_but_never_prolongs_it(editor: CallerEditor, first_key: IssuedKey, clock: Clock) -> None:
    short = editor.rotate(BACKEND, expires_us=clock.us + HOUR_US).issued
    rotation = editor.rotate(BACKEND, grace_us=24 * HOUR_US)
    assert [(key.key_id, key.expires_us) for key in rotation.still_active] == [(short.key_id, short.expires_us)]

    rotation = editor.rotate(BACKEND, grace_us=HOUR_US)
    (old,) = rotation.still_active
    assert old.expires_us == clock.us + HOUR_US
    assert old.usable(old.expires_us - 1)
    assert not old.usable(old.expires_us)


def test_an_expired_key_does_not_take_a_place(editor: CallerEditor, first_key: IssuedKey, clock: Clock) -> None:
    short = editor.rotate(BACKEND, expires_us=clock.us + HOUR_US).issued
    clock.pass_seconds(3601)
    rotation = editor.rotate(BACKEND)

    assert [key.key_id for key in rotation.still_active] == [first_key.key_id]
    assert rotation.revoked == (short.key_id,)


def test_rotations_at_once_leave_two_keys_and_all_are_logged(
    path: Path, editor: CallerEditor, first_key: IssuedKey
) -> None:
    issued: list[str] = []
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def rotate_often() -> None:
        own = CallerEditor(path, who="bob")
        start.wait()
        try:
            issued.extend(own.rotate(BACKEND).issued.key_id for _ in range(5))
        except BaseException as error:  # noqa: BLE001  judged below
            failures.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=rotate_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(set(issued)) == 20
    assert len(active(editor)) == 2
    assert active(editor) <= set(issued)
    assert sum(change.what == "key rotated" for change in editor.changes(100)) == 20


def test_revoking_a_caller_takes_everything_it_holds_and_keeps_its_name(
    editor: CallerEditor, first_key: IssuedKey
) -> None:
    editor.register_certificate(BACKEND, IssuedCertificate(b"c" * 32, HOUR_US))
    editor.revoke_caller(BACKEND)
    editor.revoke_caller(BACKEND)

    snapshot = editor.snapshot()
    assert not snapshot.callers[BACKEND].enabled
    assert not any(key.active for key in snapshot.keys.values())
    assert not any(certificate.active for certificate in snapshot.certificates.values())
    attempts: list[Callable[[], object]] = [
        lambda: editor.add(BACKEND, scopes=["risk:check"], certificates_allowed=True, with_key=True),
        lambda: editor.rotate(BACKEND),
        lambda: editor.change(BACKEND, rate_per_second=5),
        lambda: editor.register_certificate(BACKEND, IssuedCertificate(b"d" * 32, HOUR_US)),
    ]
    for attempt in attempts:
        with pytest.raises(EditRefused) as refusal:
            attempt()
        assert refusal.value.about == "caller"


def test_one_key_or_one_certificate_can_be_revoked_alone(editor: CallerEditor, first_key: IssuedKey) -> None:
    editor.register_certificate(BACKEND, IssuedCertificate(b"c" * 32, HOUR_US))
    second = editor.rotate(BACKEND).issued

    assert editor.revoke_credential(first_key.key_id) == BACKEND
    assert active(editor) == {second.key_id}
    assert editor.revoke_credential((b"c" * 8).hex()) == BACKEND
    assert not editor.snapshot().certificates[b"c" * 32].active
    with pytest.raises(EditRefused, match="no key or certificate"):
        editor.revoke_credential("nothing")


@pytest.mark.parametrize(
    ("about", "change"),
    [
        ("scope", {"scopes": ["risk:check", "risk:chek"]}),
        ("scope", {"scopes": []}),
        ("rate", {"rate_per_second": 0}),
        ("rate", {"rate_per_second": 1_000_001}),
        ("burst", {"burst": 0}),
        ("expiry", {"expires_us": 5}),
        ("tenant", {"caller": ("Bank", "backend")}),
        ("caller", {"caller": ("bank", "back end")}),
        ("caller", {"caller": ("bank", "a" * 64)}),
        ("caller", {"caller": ("bank", "a/../b")}),
        ("caller", {"caller": ("bank", "")}),
    ],
)
def test_a_bad_caller_is_refused_whole_naming_what_is_wrong(
    editor: CallerEditor, about: str, change: dict[str, object]
) -> None:
    arguments: dict[str, Any] = {
        "caller": BACKEND,
        "scopes": ["risk:check"],
        "certificates_allowed": False,
        "with_key": True,
        **change,
    }
    caller = arguments.pop("caller")

    with pytest.raises(EditRefused) as refusal:
        editor.add(caller, **arguments)
    assert refusal.value.about == about
    assert editor.snapshot() == CallersSnapshot(callers={}, keys={}, certificates={})
    assert editor.changes(10) == []


def test_an_unknown_scope_is_refused_with_the_list_of_known_ones(editor: CallerEditor) -> None:
    with pytest.raises(EditRefused) as refusal:
        editor.add(BACKEND, scopes=["risk:everything"], certificates_allowed=False, with_key=True)

    assert "risk:everything" in str(refusal.value)
    assert all(scope in str(refusal.value) for scope in SCOPES)


def test_changing_rights_replaces_what_was_given_and_a_burst_nobody_chose_follows_the_rate(
    editor: CallerEditor, first_key: IssuedKey
) -> None:
    faster = editor.change(BACKEND, rate_per_second=50)
    assert (faster.rate_per_second, faster.burst, faster.scopes) == (50, 50, frozenset({"risk:check"}))
    narrower = editor.change(BACKEND, scopes=["limit:read"], burst=7)
    assert (narrower.rate_per_second, narrower.burst, narrower.scopes) == (50, 7, frozenset({"limit:read"}))

    assert editor.change(BACKEND, rate_per_second=60).burst == 7


def test_every_change_is_logged_once_with_who_when_and_what_and_no_secret(
    editor: CallerEditor, first_key: IssuedKey, clock: Clock
) -> None:
    issued = editor.rotate(BACKEND).issued
    editor.change(BACKEND, rate_per_second=3)
    editor.revoke_credential(issued.key_id)
    editor.revoke_caller(BACKEND)
    changes = editor.changes(100)

    assert [change.what for change in changes] == [
        "caller added",
        "key rotated",
        "caller changed",
        "key revoked",
        "caller revoked",
    ]
    assert {change.who for change in changes} == {"alice"}
    assert [change.sequence for change in changes] == [1, 2, 3, 4, 5]
    assert all(before.at_us < after.at_us for before, after in pairwise(changes))
    assert issued.text[-43:] not in json.dumps([change.details for change in changes])
    assert [change.sequence for change in editor.changes(2)] == [4, 5]


def test_a_reader_sees_a_change_one_second_later_and_not_by_looking_more_often(
    registry: CallerRegistry, editor: CallerEditor, clock: Clock
) -> None:
    before = registry.refresh()
    editor.revoke_caller(BACKEND)
    clock.pass_seconds(0.9)
    assert registry.refresh() is before
    clock.pass_seconds(0.2)

    assert not registry.refresh().callers[BACKEND].enabled
    assert registry.snapshot() is registry.refresh()


def test_without_a_change_the_snapshot_stays_the_same_object(registry: CallerRegistry, clock: Clock) -> None:
    before = registry.refresh()
    for _ in range(5):
        clock.pass_seconds(2)
        assert registry.refresh() is before


def test_a_change_by_another_process_is_seen(registry: CallerRegistry, path: Path, clock: Clock) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from riskgate_server.stores.access.editor import CallerEditor;"
        "CallerEditor(Path(sys.argv[1]), who='other').revoke_caller(('bank', 'backend'))"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    clock.pass_seconds(1.1)

    assert not registry.refresh().callers[BACKEND].enabled


def test_a_file_put_in_place_of_the_old_one_is_read(
    registry: CallerRegistry, path: Path, editor: CallerEditor, clock: Clock
) -> None:
    backup = path.with_name("backup.db")
    shutil.copy(path, backup)
    editor.revoke_caller(BACKEND)
    clock.pass_seconds(1.1)
    assert not registry.refresh().callers[BACKEND].enabled
    backup.replace(path)
    clock.pass_seconds(1.1)

    assert registry.refresh().callers[BACKEND].enabled


def test_a_locked_or_missing_file_is_bridged_for_ten_seconds_and_then_nobody_is_let_in(
    registry: CallerRegistry, path: Path, clock: Clock
) -> None:
    before = registry.refresh()
    path.rename(path.with_name("away.db"))
    for _ in range(9):
        clock.pass_seconds(1)
        assert registry.refresh() is before
    clock.pass_seconds(2)
    with pytest.raises(InternalError):
        registry.refresh()
    path.with_name("away.db").rename(path)

    clock.pass_seconds(1)
    assert registry.refresh().callers.keys() == before.callers.keys()


def test_a_writer_in_the_middle_of_a_change_does_not_stop_readers_nor_show_half_of_it(
    registry: CallerRegistry, path: Path, clock: Clock
) -> None:
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("UPDATE callers SET enabled = 0")
    clock.pass_seconds(1.1)
    assert registry.refresh().callers[BACKEND].enabled
    writer.execute("COMMIT")
    writer.close()
    clock.pass_seconds(0.3)

    assert not registry.refresh().callers[BACKEND].enabled


def test_what_a_killed_editor_left_behind_is_undone_by_the_reader(
    path: Path, registry: CallerRegistry, clock: Clock
) -> None:
    program = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN IMMEDIATE'); c.execute('UPDATE callers SET enabled = 0');"
        "[c.execute('INSERT INTO settings VALUES (?, ?)', (str(n), 'x' * 2000)) for n in range(200)];"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert path.with_name("access.db-journal").exists()
    clock.pass_seconds(1.1)

    assert registry.refresh().callers[BACKEND].enabled


@pytest.mark.parametrize("content", [None, b"", b"not a database at all, but long enough to be mistaken" * 20])
def test_a_registry_that_is_none_is_refused_and_not_made_anew(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RegistryUnusable):
        CallerRegistry(path)
    with pytest.raises(RegistryUnusable):
        CallerEditor(path, who="alice")

    assert (path.read_bytes() if path.exists() else None) == content


def test_a_file_of_a_newer_version_is_refused_untouched(path: Path, editor: CallerEditor) -> None:
    connection = sqlite3.connect(path)
    connection.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('riskgate.access', 'later', '')"
    )
    connection.commit()
    connection.close()
    before = path.read_bytes()

    with pytest.raises(RegistryUnusable, match="newer"):
        CallerEditor(path, who="alice")
    assert path.read_bytes() == before


def test_opening_twice_at_once_migrates_once(tmp_path: Path) -> None:
    path = tmp_path / "fresh.db"
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def open_it() -> None:
        start.wait()
        try:
            open_database(path, create=True).close()
        except BaseException as error:  # noqa: BLE001  judged below
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    db = open_database(path)
    assert [each.name for each in migrations.applied(db)] == sorted(MIGRATION_NAMES)
    assert all(table.strict for table in db.tables if not table.name.startswith(("_", "sqlite")))
    db.close()


def test_reading_the_registry_does_not_load_the_editor() -> None:
    """sqlite-utils takes longer to import than the rest of the server's start takes to run."""
    program = (
        "import sys, riskgate_server.stores.access.registry, riskgate_server.rpc.callers;"
        "sys.exit('sqlite_utils' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
