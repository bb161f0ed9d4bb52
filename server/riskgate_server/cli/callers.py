"""`riskgate callers`: who may call. Works beside a running server, which follows within two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from riskgate_server.cli.certificates import certificate_files
from riskgate_server.cli.common import (
    checked_directory,
    counted,
    data_option,
    json_option,
    say,
    show_time,
    table,
    who,
)
from riskgate_server.crypto import tls
from riskgate_server.datadir import DataDirectory
from riskgate_server.engine.callers import (
    CallerKey,
    CallerRecord,
    CallersSnapshot,
    KeyRecord,
)
from riskgate_server.scopes import SCOPES
from riskgate_server.stores.access.editor import (
    CHANGES_PAGE_MAX,
    RATE_DEFAULT,
    CallerEditor,
    EditRefused,
    IssuedKey,
    check_name,
    now_us,
)
from riskgate_server.stores.access.registry import RegistryUnusable

_F = TypeVar("_F", bound=Callable[..., Any])

DAYS_MAX: Final = 3650
HOURS_MAX: Final = 24 * 365
_DAY_US: Final = 86_400_000_000
_HOUR_US: Final = 3_600_000_000

_OPTIONS: Final = {
    "tenant": "--tenant",
    "new tenant": "--new-tenant",
    "caller": "NAME",
    "scope": "--scope",
    "rate": "--rate",
    "burst": "--burst",
    "key": "--credential",
    "expiry": "--expires-days",
}
"""What an edit is refused for → where the person said it."""


@click.group()
def callers() -> None:
    """Say who may call: services, their scopes, rates, keys and certificates."""


def _tenant_option(function: _F) -> _F:
    return click.option("--tenant", metavar="T", help="Tenant of the caller; by default the one named at init.")(
        function
    )


def _rights_options(function: _F) -> _F:
    function = click.option("--burst", type=int, help="Calls at once after a pause; by default a second's worth.")(
        function
    )
    function = click.option("--rate", type=int, help="Calls per second, in each process that serves.")(function)
    return click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="May do this. Repeatable.")(function)


def _out_option(function: _F) -> _F:
    return click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help="Directory for the certificate, its key and the CA's certificate; made, for its owner only, if there is"
        " none.",
    )(function)


def _expires_option(function: _F) -> _F:
    return click.option(
        "--expires-days",
        type=click.IntRange(1, DAYS_MAX),
        help=f"Days of validity. Without it a key does not expire and a certificate does"
        f" after {tls.CLIENT_LIFETIME.days}; a certificate takes at most {tls.CLIENT_LIFETIME_MAX.days}.",
    )(function)


@callers.command()
@click.argument("name", metavar="NAME")
@data_option
@_tenant_option
@click.option("--new-tenant", is_flag=True, help="The tenant is new: this is its first caller.")
@_rights_options
@click.option("--key", "with_key", is_flag=True, help="Issue an API key, shown once.")
@click.option("--certificate", "with_certificate", is_flag=True, help="Issue a client certificate into --out.")
@_out_option
@_expires_option
@json_option
def add(  # noqa: PLR0917  click passes every option, by name
    name: str,
    data: Path,
    tenant: str | None,
    new_tenant: bool,
    scopes: tuple[str, ...],
    rate: int | None,
    burst: int | None,
    with_key: bool,
    with_certificate: bool,
    out: Path | None,
    expires_days: int | None,
    as_json: bool,
) -> None:
    """Add the caller NAME with at least one scope, and issue a key, a certificate, or both."""
    if not with_key and not with_certificate:
        raise click.UsageError("a caller needs a credential: give --key, --certificate or both")
    _check_certificate_options(out, expires_days, with_certificate=with_certificate)
    with _editing(data) as (directory, editor):
        caller = _named(editor, tenant, name)
        first = caller[0] not in {known for known, _ in editor.snapshot().callers}
        if new_tenant and not first:
            raise click.BadParameter(f"tenant {caller[0]} has callers already", param_hint="--new-tenant")
        with certificate_files(directory, caller, out, expires_days, wanted=with_certificate) as certificate:
            issued = editor.add(
                caller,
                scopes=scopes,
                rate_per_second=RATE_DEFAULT if rate is None else rate,
                burst=burst,
                certificates_allowed=with_certificate,
                with_key=with_key,
                expires_us=_key_expiry(expires_days),
                certificate=None if certificate is None else certificate.issued,
                tenant_may_be_new=new_tenant,
            )
        record = editor.snapshot().callers[caller]
    scopes_text = ", ".join(sorted(record.scopes))
    lines = [f"Tenant {caller[0]} is new: it has no customers, and its callers see none of another's."] if first else []
    lines.append(f"Caller {name} of tenant {caller[0]} added: {scopes_text}; {_rate_text(record)}.")
    answer: dict[str, Any] = {
        "tenant": caller[0],
        "tenant_is_new": first,
        "caller": name,
        "scopes": sorted(record.scopes),
        "rate_per_second": record.rate_per_second,
        "burst": record.burst,
    }
    if issued is not None:
        answer["key"] = _key_answer(issued)
        lines.append(_key_text(issued))
    if certificate is not None:
        answer["certificate"] = certificate.answer()
        lines.append(certificate.text())
    say(answer, "\n".join(lines), as_json=as_json)


@callers.command()
@click.argument("name", metavar="NAME")
@data_option
@_tenant_option
@_rights_options
@click.option(
    "--certificates/--no-certificates",
    "certificates",
    default=None,
    help="Whether certificates are accepted.",
)
@json_option
def change(  # noqa: PLR0917  as above
    name: str,
    data: Path,
    tenant: str | None,
    scopes: tuple[str, ...],
    rate: int | None,
    burst: int | None,
    certificates: bool | None,
    as_json: bool,
) -> None:
    """Replace the scopes, the rate or the burst of the caller NAME. What is not given stays."""
    if not scopes and rate is None and burst is None and certificates is None:
        raise click.UsageError("nothing to change: give --scope, --rate, --burst or --[no-]certificates")
    with _editing(data) as (_, editor):
        caller = _named(editor, tenant, name)
        record = editor.change(
            caller,
            scopes=scopes or None,
            rate_per_second=rate,
            burst=burst,
            certificates_allowed=certificates,
        )
    answer = {
        "tenant": caller[0],
        "caller": name,
        "scopes": sorted(record.scopes),
        "rate_per_second": record.rate_per_second,
        "burst": record.burst,
        "certificates_allowed": record.certificates_allowed,
    }
    text = (
        f"Caller {name} of tenant {caller[0]} now: {', '.join(sorted(record.scopes))};"
        f" {_rate_text(record)};"
        f" certificates {'accepted' if record.certificates_allowed else 'refused'}."
    )
    say(answer, text, as_json=as_json)


@callers.command()
@click.argument("name", metavar="NAME")
@data_option
@_tenant_option
@click.option("--certificate", "with_certificate", is_flag=True, help="A new certificate instead of a new key.")
@click.option(
    "--grace-hours",
    type=click.IntRange(0, HOURS_MAX),
    help="End the old key after so many hours, 0 at once. Without it the old key stays until it is rotated out.",
)
@_out_option
@_expires_option
@json_option
def rotate(  # noqa: PLR0917  as above
    name: str,
    data: Path,
    tenant: str | None,
    with_certificate: bool,
    grace_hours: int | None,
    out: Path | None,
    expires_days: int | None,
    as_json: bool,
) -> None:
    """
    Issue a new key (or certificate) to the caller NAME while the old one still works.

    At most two keys are active: a second rotation revokes the older of the two. Old certificates
    stay until they expire or are revoked by their id.
    """
    _check_certificate_options(out, expires_days, with_certificate=with_certificate)
    if with_certificate and grace_hours is not None:
        raise click.BadParameter("is for keys; revoke a certificate by its id", param_hint="--grace-hours")
    with _editing(data) as (directory, editor):
        caller = _named(editor, tenant, name)
        answer: dict[str, Any] = {"tenant": caller[0], "caller": name}
        if with_certificate:
            with certificate_files(directory, caller, out, expires_days, wanted=True) as certificate:
                assert certificate is not None
                editor.register_certificate(caller, certificate.issued)
            answer["certificate"] = certificate.answer()
            text = certificate.text()
        else:
            grace_us = None if grace_hours is None else grace_hours * _HOUR_US
            done = editor.rotate(caller, expires_us=_key_expiry(expires_days), grace_us=grace_us)
            answer["key"] = _key_answer(done.issued)
            answer["still_active"] = [_old_key(key) for key in done.still_active]
            answer["ended"] = list(done.ended)
            answer["revoked"] = list(done.revoked)
            kept = [
                f"Key {key.key_id} stays active" + (f" until {show_time(key.expires_us)}." if key.expires_us else ".")
                for key in done.still_active
            ]
            gone = [f"Key {key_id} has ended." for key_id in done.ended]
            gone += [f"Key {key_id} is revoked." for key_id in done.revoked]
            text = "\n".join([_key_text(done.issued), *kept, *gone])
    say(answer, text, as_json=as_json)


@callers.command()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--credential", metavar="ID", help="Revoke only this key or certificate.")
@data_option
@_tenant_option
@json_option
def revoke(name: str | None, credential: str | None, data: Path, tenant: str | None, as_json: bool) -> None:
    """Revoke the caller NAME with everything it holds, or one credential by its id. Within two seconds."""
    if (name is None) == (credential is None):
        raise click.UsageError("say what to revoke: either NAME or --credential ID")
    with _editing(data) as (_, editor):
        if name is not None:
            caller = _named(editor, tenant, name)
            editor.revoke_caller(caller)
            text = f"Caller {name} of tenant {caller[0]} is revoked, with every key and certificate it holds."
        else:
            assert credential is not None
            caller = editor.revoke_credential(credential)
            text = f"Credential {credential} of caller {caller[1]} of tenant {caller[0]} is revoked."
    say({"tenant": caller[0], "caller": caller[1], "revoked": credential or caller[1]}, text, as_json=as_json)


@callers.command(name="list")
@data_option
@_tenant_option
@json_option
def list_(data: Path, tenant: str | None, as_json: bool) -> None:
    """List callers with their rights and credentials. Secrets are not kept, so none are shown."""
    with _editing(data) as (_, editor):
        snapshot = editor.snapshot()
    found = [_caller_answer(snapshot, key) for key in snapshot.callers if tenant is None or key[0] == tenant]
    rows: list[tuple[str, ...]] = [
        (
            each["tenant"],
            each["caller"],
            each["state"],
            str(each["rate_per_second"]),
            _credentials_text(each),
            " ".join(each["scopes"]),
        )
        for each in found
    ]
    text = table(("TENANT", "CALLER", "STATE", "RATE", "CREDENTIALS", "SCOPES"), rows) if rows else "No callers."
    say({"callers": found}, text, as_json=as_json)


@callers.command()
@data_option
@click.option("--limit", type=click.IntRange(1, CHANGES_PAGE_MAX), default=50, show_default=True)
@json_option
def log(data: Path, limit: int, as_json: bool) -> None:
    """Show who changed what and when, the latest last."""
    with _editing(data) as (_, editor):
        changes = editor.changes(limit)
    found = [
        {
            "sequence": each.sequence,
            "time": show_time(each.at_us),
            "who": each.who,
            "what": each.what,
            "tenant": each.tenant_id,
            "caller": each.caller_id,
            "details": _details_answer(each.details),
        }
        for each in changes
    ]
    rows: list[tuple[str, ...]] = [
        (
            show_time(each.at_us) or "",
            each.who,
            each.what,
            f"{each.tenant_id}/{each.caller_id}",
            _details_text(each.details),
        )
        for each in changes
    ]
    say({"changes": found}, table(("TIME", "WHO", "WHAT", "CALLER", "DETAILS"), rows), as_json=as_json)


@callers.command()
@json_option
def scopes(as_json: bool) -> None:
    """List the scopes there are."""
    say({"scopes": SCOPES}, table(("SCOPE", "MAY"), list(SCOPES.items())), as_json=as_json)


def _check_certificate_options(out: Path | None, expires_days: int | None, *, with_certificate: bool) -> None:
    if with_certificate and out is None:
        raise click.BadParameter("is needed with --certificate", param_hint="--out")
    if out is not None and not with_certificate:
        raise click.BadParameter("is only for --certificate", param_hint="--out")
    if with_certificate and expires_days is not None and expires_days > tls.CLIENT_LIFETIME_MAX.days:
        raise click.BadParameter(
            f"a certificate lives at most {tls.CLIENT_LIFETIME_MAX.days} days", param_hint="--expires-days"
        )


@contextmanager
def _editing(data: Path) -> Iterator[tuple[DataDirectory, CallerEditor]]:
    """Open the registry and turn its refusals into words about the command's options."""
    directory = checked_directory(data, store_here=False)
    try:
        editor = CallerEditor(directory.access, who=who())
    except RegistryUnusable as error:
        raise click.ClickException(str(error)) from error
    try:
        yield directory, editor
    except EditRefused as error:
        _refuse(error)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
    finally:
        editor.close()


def _refuse(error: EditRefused) -> NoReturn:
    raise click.BadParameter(str(error), param_hint=_OPTIONS[error.about]) from error


def _rate_text(record: CallerRecord) -> str:
    return f"{counted(record.rate_per_second, 'call')} per second, {record.burst:,} at once"


def _named(editor: CallerEditor, tenant: str | None, name: str) -> CallerKey:
    tenant = editor.default_tenant() if tenant is None else tenant
    check_name("tenant", tenant)
    # Before files are named after it.
    check_name("caller", name)
    return tenant, name


def _key_expiry(expires_days: int | None) -> int:
    return 0 if expires_days is None else now_us() + expires_days * _DAY_US


def _key_answer(issued: IssuedKey) -> dict[str, Any]:
    return {"key_id": issued.key_id, "api_key": issued.text, "expires": show_time(issued.expires_us)}


def _key_text(issued: IssuedKey) -> str:
    until = f", until {show_time(issued.expires_us)}" if issued.expires_us else ""
    return f"API key {issued.key_id}{until}, shown this once:\n\n    {issued.text}\n"


def _old_key(key: KeyRecord) -> dict[str, Any]:
    return {"key_id": key.key_id, "expires": show_time(key.expires_us)}


def _caller_answer(snapshot: CallersSnapshot, caller: CallerKey) -> dict[str, Any]:
    record = snapshot.callers[caller]
    at_us = now_us()
    return {
        "tenant": caller[0],
        "caller": caller[1],
        "state": "enabled" if record.enabled else "revoked",
        "scopes": sorted(record.scopes),
        "rate_per_second": record.rate_per_second,
        "burst": record.burst,
        "certificates_allowed": record.certificates_allowed,
        "created": show_time(record.created_us),
        "keys": [
            {
                "key_id": key.key_id,
                "state": _state(active=key.active, expires_us=key.expires_us, at_us=at_us),
                "created": show_time(key.created_us),
                "expires": show_time(key.expires_us),
            }
            for key in snapshot.keys.values()
            if (key.tenant_id, key.caller_id) == caller
        ],
        "certificates": [
            {
                "certificate_id": certificate.certificate_id,
                "state": _state(active=certificate.active, expires_us=certificate.expires_us, at_us=at_us),
                "created": show_time(certificate.created_us),
                "expires": show_time(certificate.expires_us),
            }
            for certificate in snapshot.certificates.values()
            if (certificate.tenant_id, certificate.caller_id) == caller
        ],
    }


_DETAILS: Final[dict[str, Callable[[Any], str]]] = {
    "key_id": "key {}".format,
    "certificate_id": "certificate {}".format,
    "keys": lambda keys: f"with {'keys' if len(keys) > 1 else 'key'} {', '.join(keys)}",
    "kept": lambda keys: f"{', '.join(keys)} still works",
    "kept_until": lambda ends: ", ".join(f"{key} works until {show_time(us)}" for key, us in ends.items()),
    "ended": lambda keys: f"{', '.join(keys)} ended",
    "revoked": lambda keys: f"{', '.join(keys)} revoked",
    "scopes": lambda scopes: f"may {' '.join(scopes)}",
    "rate_per_second": lambda rate: f"{counted(rate, 'call')} per second",
    "burst": "{:,} at once".format,
    "certificates_allowed": lambda allowed: "certificates accepted" if allowed else "no certificates",
}
"""What a change says of itself → the words for it, in the order of the sentence."""


def _details_answer(details: Mapping[str, Any]) -> dict[str, Any]:
    ends = {key: show_time(us) for key, us in details.get("kept_until", {}).items()}
    return {name: ends if name == "kept_until" else value for name, value in details.items()}


def _details_text(details: Mapping[str, Any]) -> str:
    known = [(name, details[name]) for name in _DETAILS if name in details]
    return ", ".join(_DETAILS[name](value) for name, value in known if value not in (None, [], {}))


def _state(*, active: bool, expires_us: int, at_us: int) -> str:
    if not active:
        return "revoked"
    return "expired" if expires_us and expires_us <= at_us else "active"


def _credentials_text(answer: dict[str, Any]) -> str:
    found = [("key", each["key_id"], each) for each in answer["keys"]]
    found += [("certificate", each["certificate_id"], each) for each in answer["certificates"]]
    active = [
        f"{kind} {name}" + (f" until {each['expires'][:10]}" if each["expires"] else "")
        for kind, name, each in found
        if each["state"] == "active"
    ]
    return ", ".join(active) or "none"
