from __future__ import annotations

import json
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from riskgate_server.cli import main
from riskgate_server.datadir import DataDirectory
from riskgate_server.domain.errors import Unauthenticated
from riskgate_server.rpc.callers import Authenticator, Caller
from riskgate_server.scopes import SCOPES
from riskgate_server.stores.access.registry import CallerRegistry


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "data"
    assert CliRunner().invoke(main, ["init", str(root), "--tenant", "bank"]).exit_code == 0
    return root


@pytest.fixture
def data(made_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_once, tmp_path / "data"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    return out


def callers(data: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["callers", *map(str, arguments), "--data", str(data)])


def answered(data: Path, *arguments: str | Path) -> dict[str, Any]:
    result = callers(data, *arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def let_in(data: Path, key: str) -> Caller:
    registry = CallerRegistry(DataDirectory(data).access)
    try:
        return Authenticator(registry).by_key((("authorization", f"Bearer {key}"),))
    finally:
        registry.close()


def refused(data: Path, key: str) -> bool:
    try:
        let_in(data, key)
    except Unauthenticated:
        return True
    return False


def add(data: Path, name: str = "backend", *more: str | Path) -> dict[str, Any]:
    return answered(data, "add", name, "--scope", "risk:check", "--key", *more)


def test_an_added_caller_is_let_in_with_what_it_was_given(data: Path) -> None:
    answer = add(data, "backend", "--scope", "limit:read", "--rate", "50", "--burst", "70")
    caller = let_in(data, answer["key"]["api_key"])

    assert (caller.tenant_id, caller.caller_id) == ("bank", "backend")
    assert caller.scopes == {"risk:check", "limit:read"}
    assert (caller.rate_per_second, caller.burst) == (50, 70)


def test_callers_of_the_same_name_in_two_tenants_are_two(data: Path) -> None:
    first = add(data)["key"]["api_key"]
    second = add(data, "backend", "--tenant", "shop", "--new-tenant")["key"]["api_key"]
    callers(data, "revoke", "backend", "--tenant", "shop")

    assert let_in(data, first).tenant_id == "bank"
    assert refused(data, second)


def test_a_tenant_begins_only_when_told_to(data: Path) -> None:
    more = ("--scope", "risk:check", "--key", "--tenant")
    slip = callers(data, "add", "backend", *more, "bnak")
    begun = callers(data, "add", "backend", *more, "shop", "--new-tenant")
    again = callers(data, "add", "other", *more, "shop", "--new-tenant")
    second = callers(data, "add", "other", *more, "shop")

    assert slip.exit_code == 2
    assert "--new-tenant: needed to begin tenant 'bnak': there is none of that name, only bank" in slip.stderr
    assert "Tenant shop is new" in begun.stdout
    assert again.exit_code == 2
    assert "--new-tenant" in again.stderr
    assert second.exit_code == 0
    assert "is new" not in second.stdout


def test_a_certificate_comes_with_its_key_and_the_ca_and_is_private(data: Path, out: Path) -> None:
    answer = answered(
        data, "add", "backend", "--scope", "risk:check", "--certificate", "--out", out, "--expires-days", "30"
    )
    certificate = x509.load_pem_x509_certificate((out / "backend.crt").read_bytes())

    assert "key" not in answer
    assert answer["certificate"]["certificate_id"] == certificate.fingerprint(hashes.SHA256()).hex()[:16]
    assert stat.S_IMODE((out / "backend.key").stat().st_mode) == 0o600
    assert (out / "riskgate-ca.crt").read_bytes() == DataDirectory(data).ca_certificate.read_bytes()
    life = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < life <= timedelta(days=30)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://riskgate/tenant/bank/caller/backend")]


def test_a_refused_addition_leaves_neither_files_nor_a_caller(data: Path, out: Path) -> None:
    result = callers(data, "add", "backend", "--scope", "nonsense", "--certificate", "--out", out)

    assert result.exit_code == 2
    assert not list(out.glob("backend*"))
    assert [each["caller"] for each in answered(data, "list")["callers"]] == ["admin"]


def test_an_existing_file_is_never_overwritten_and_the_new_pair_goes_beside_it(data: Path, out: Path) -> None:
    (out / "backend.key").write_text("mine")
    first = answered(data, "add", "backend", "--scope", "risk:check", "--certificate", "--out", out)
    second = answered(data, "rotate", "backend", "--certificate", "--out", out)

    assert (out / "backend.key").read_text() == "mine"
    assert not (out / "backend.crt").exists()
    for answer, stem in ((first, "backend-2"), (second, "backend-3")):
        assert answer["certificate"]["certificate_file"] == str(out / f"{stem}.crt")
        certificate = x509.load_pem_x509_certificate((out / f"{stem}.crt").read_bytes())
        assert certificate.fingerprint(hashes.SHA256()).hex().startswith(answer["certificate"]["certificate_id"])
        assert (out / f"{stem}.key").exists()


def test_a_link_that_was_left_in_the_directory_is_replaced_and_what_it_points_to_stays(
    data: Path, out: Path, tmp_path: Path
) -> None:
    """In a directory of many, such as /tmp, anybody may know what the files will be called."""
    precious = tmp_path / "precious"
    precious.write_text("somebody's")
    (out / "riskgate-ca.crt").symlink_to(precious)

    answered(data, "add", "backend", "--scope", "risk:check", "--certificate", "--out", out)

    ca = out / "riskgate-ca.crt"
    assert precious.read_text() == "somebody's"
    assert not ca.is_symlink()
    assert ca.read_bytes() == DataDirectory(data).ca_certificate.read_bytes()
    assert stat.S_IMODE(ca.stat().st_mode) == 0o644


def test_the_directory_for_a_certificate_is_made_for_its_owner_only(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "certs"
    refused = callers(data, "add", "backend", "--scope", "nonsense", "--certificate", "--out", out)
    assert refused.exit_code == 2
    assert not out.exists()

    answered(data, "add", "backend", "--scope", "risk:check", "--certificate", "--out", out)

    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {path.name for path in out.iterdir()} == {"backend.crt", "backend.key", "riskgate-ca.crt"}


def test_the_old_key_works_until_the_second_rotation(data: Path) -> None:
    first = add(data)["key"]["api_key"]
    second = answered(data, "rotate", "backend")
    assert second["still_active"] == [{"key_id": first[4:16], "expires": None}]
    assert not refused(data, first)
    third = answered(data, "rotate", "backend")

    assert third["revoked"] == [first[4:16]]
    assert refused(data, first)
    assert not refused(data, second["key"]["api_key"])
    assert not refused(data, third["key"]["api_key"])


def test_without_grace_the_old_key_stops_at_once_when_told_zero_hours(data: Path) -> None:
    first = add(data)["key"]["api_key"]
    rotated = answered(data, "rotate", "backend", "--grace-hours", "0")

    assert refused(data, first)
    assert (rotated["still_active"], rotated["ended"], rotated["revoked"]) == ([], [first[4:16]], [])


def test_a_key_can_be_given_an_end(data: Path) -> None:
    answer = add(data, "backend", "--expires-days", "7")

    ends = datetime.fromisoformat(answer["key"]["expires"])
    assert abs(ends - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=1)


def test_a_revoked_key_is_refused_and_the_other_one_is_not(data: Path) -> None:
    first = add(data)["key"]["api_key"]
    second = answered(data, "rotate", "backend")["key"]["api_key"]
    answer = answered(data, "revoke", "--credential", first[4:16])

    assert answer == {"tenant": "bank", "caller": "backend", "revoked": first[4:16]}
    assert refused(data, first)
    assert not refused(data, second)


def test_a_revoked_caller_is_refused_whatever_it_presents(data: Path) -> None:
    key = add(data)["key"]["api_key"]
    answered(data, "revoke", "backend")

    assert refused(data, key)
    assert callers(data, "rotate", "backend").exit_code == 2


def test_changed_rights_are_the_only_ones(data: Path) -> None:
    key = add(data)["key"]["api_key"]
    answered(data, "change", "backend", "--scope", "limit:read", "--rate", "5")
    caller = let_in(data, key)

    assert (caller.scopes, caller.rate_per_second, caller.burst) == (frozenset({"limit:read"}), 5, 5)


def test_neither_list_nor_log_ever_shows_a_secret(data: Path, out: Path) -> None:
    texts = [
        callers(data, "add", "backend", "--scope", "risk:check", "--key", "--certificate", "--out", out).stdout,
        callers(data, "rotate", "backend").stdout,
    ]
    secrets = [word[-43:] for text in texts for word in text.split() if word.startswith("rgk_")]
    assert len(secrets) == 2

    for shown in (
        callers(data, "list").stdout,
        callers(data, "list", "--json").stdout,
        callers(data, "log").stdout,
        callers(data, "log", "--json").stdout,
    ):
        assert "backend" in shown
        assert not [secret for secret in secrets if secret in shown]


def test_the_list_tells_the_state_of_every_credential(data: Path) -> None:
    first = add(data)["key"]["key_id"]
    second = answered(data, "rotate", "backend")["key"]["key_id"]
    answered(data, "revoke", "--credential", first)
    (backend,) = [each for each in answered(data, "list")["callers"] if each["caller"] == "backend"]

    assert {key["key_id"]: key["state"] for key in backend["keys"]} == {first: "revoked", second: "active"}
    assert answered(data, "list", "--tenant", "nobody") == {"callers": []}


def test_the_log_tells_who_did_what(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "carol")
    monkeypatch.setenv("SUDO_USER", "dave")
    add(data)
    change = answered(data, "log", "--limit", "1")["changes"][0]

    assert (change["who"], change["what"], change["caller"]) == ("dave as carol", "caller added", "backend")


def test_the_log_is_in_words(data: Path, out: Path) -> None:
    first = add(data, "backend", "--scope", "limit:read", "--rate", "1")["key"]["key_id"]
    second = answered(data, "rotate", "backend")["key"]["key_id"]
    third = answered(data, "rotate", "backend")["key"]["key_id"]
    answered(data, "change", "backend", "--certificates", "--rate", "1200")
    certificate = answered(data, "rotate", "backend", "--certificate", "--out", out)["certificate"]["certificate_id"]
    answered(data, "revoke", "backend")

    said = [line.split("bank/backend")[1].strip() for line in callers(data, "log").stdout.splitlines()[2:]]

    assert said == [
        f"key {first}, may limit:read risk:check, 1 call per second, 1 at once, no certificates",
        f"key {second}, {first} still works",
        f"key {third}, {second} still works, {first} revoked",
        "may limit:read risk:check, 1,200 calls per second, 1,200 at once, certificates accepted",
        f"certificate {certificate}",
        f"with keys {second}, {third}",
    ]


def test_the_log_tells_until_when_an_older_key_works(data: Path) -> None:
    first = add(data)["key"]["key_id"]
    rotated = answered(data, "rotate", "backend", "--grace-hours", "24")
    second, ends = rotated["key"]["key_id"], rotated["still_active"][0]["expires"]
    third = callers(data, "rotate", "backend", "--grace-hours", "0").stdout

    details = [change["details"] for change in answered(data, "log")["changes"][-2:]]
    said = [line.split("bank/backend")[1].strip() for line in callers(data, "log").stdout.splitlines()[-2:]]

    assert said == [
        f"key {second}, {first} works until {ends}",
        f"key {details[1]['key_id']}, {second} ended, {first} revoked",
    ]
    assert [(each["kept"], each["kept_until"], each["ended"]) for each in details] == [
        ([], {first: ends}, []),
        ([], {}, [second]),
    ]
    assert f"Key {second} has ended." in third
    assert "stays active" not in third


def test_the_list_tells_when_a_credential_ends(data: Path, out: Path) -> None:
    add(data, "backend", "--expires-days", "7", "--certificate", "--out", out)
    add(data, "other")

    lines = callers(data, "list").stdout.splitlines()
    ends = (datetime.now(UTC) + timedelta(days=7)).date().isoformat()

    assert next(line for line in lines if " backend " in line).count(f" until {ends}") == 2
    assert "until" not in next(line for line in lines if " other " in line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "Backend", "--scope", "risk:check", "--key"], "NAME"),
        (["add", "../backend", "--scope", "risk:check", "--key"], "NAME"),
        (["add", "backend", "--key"], "--scope"),
        (["add", "backend", "--scope", "risk:chekc", "--key"], "--scope"),
        (["add", "backend", "--scope", "risk:check"], "--key"),
        (["add", "backend", "--scope", "risk:check", "--key", "--rate", "0"], "--rate"),
        (["add", "backend", "--scope", "risk:check", "--key", "--rate", "many"], "--rate"),
        (["add", "backend", "--scope", "risk:check", "--key", "--burst", "-1"], "--burst"),
        (["add", "backend", "--scope", "risk:check", "--key", "--tenant", "A B"], "--tenant"),
        (["add", "backend", "--scope", "risk:check", "--key", "--tenant", "shop"], "--new-tenant"),
        (["add", "backend", "--scope", "risk:check", "--key", "--new-tenant"], "--new-tenant"),
        (["add", "backend", "--scope", "risk:check", "--key", "--expires-days", "0"], "--expires-days"),
        (["add", "backend", "--scope", "risk:check", "--certificate"], "--out"),
        (["add", "backend", "--scope", "risk:check", "--certificate", "--out", "/proc/none/certs"], "--out"),
        (["add", "backend", "--scope", "risk:check", "--key", "--out", "."], "--out"),
        (
            ["add", "backend", "--scope", "risk:check", "--certificate", "--out", ".", "--expires-days", "900"],
            "--expires-days",
        ),
        (["add", "admin", "--scope", "risk:check", "--key"], "NAME"),
        (["rotate", "nobody"], "NAME"),
        (["rotate", "admin", "--grace-hours", "-1"], "--grace-hours"),
        (["rotate", "admin", "--certificate", "--out", ".", "--grace-hours", "1"], "--grace-hours"),
        (["revoke"], "--credential"),
        (["revoke", "admin", "--credential", "x"], "--credential"),
        (["revoke", "--credential", "x"], "--credential"),
        (["revoke", "nobody"], "NAME"),
        (["change", "admin"], "--scope"),
        (["change", "nobody", "--rate", "5"], "NAME"),
        (["log", "--limit", "0"], "--limit"),
    ],
)
def test_bad_input_names_the_option_exits_2_and_changes_nothing(data: Path, arguments: list[str], said: str) -> None:
    before = answered(data, "list"), answered(data, "log")
    result = callers(data, *arguments)

    assert result.exit_code == 2, result.output
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output
    assert (answered(data, "list"), answered(data, "log")) == before


def test_an_unknown_scope_is_answered_with_those_there_are(data: Path) -> None:
    result = callers(data, "add", "backend", "--scope", "x", "--key")

    assert all(scope in result.stderr for scope in SCOPES)
    assert CliRunner().invoke(main, ["callers", "scopes"]).stdout.count("\n") == len(SCOPES) + 1


def test_a_place_that_is_no_data_directory_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        result = callers(place, "list")
        assert result.exit_code == 1
        assert "riskgate init" in result.stderr


def test_the_data_directory_may_come_from_the_environment(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKGATE_DATA", str(data))

    assert CliRunner().invoke(main, ["callers", "list"]).exit_code == 0
