"""`riskgate keys`: renews the secrets of a data directory, and the server's certificate, while it is served."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from riskgate_server.cli.certificates import names_option
from riskgate_server.cli.common import (
    Bars,
    checked_directory,
    counted,
    data_option,
    json_option,
    say,
    show_time,
    store_option,
    table,
)

if TYPE_CHECKING:
    from riskgate_server.rotation import Held, Report

_KINDS: Final = ("master", "fingerprint", "proofs", "heads")
_STEPS: Final = ("add", "rewrap", "retire")


@click.group()
def keys() -> None:
    """Renew the secrets of a data directory, and the server's certificate. No secret is ever shown."""


@keys.command()
@data_option
@store_option
@click.argument("kind", metavar="{master|fingerprint|proofs|heads|all}", type=click.Choice([*_KINDS, "all"]))
@click.option(
    "--step",
    "steps",
    multiple=True,
    type=click.Choice(_STEPS),
    help="Do this step alone, for servers on several hosts: see docs/keys.md. Repeatable; unless given, all three.",
)
@click.option(
    "--lead",
    "lead_seconds",
    type=click.IntRange(5, 7 * 86_400),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="When new secrets come into force: time to copy them to other hosts.",
)
@json_option
def rotate(data: Path, store: str, kind: str, steps: tuple[str, ...], *, lead_seconds: int, as_json: bool) -> None:
    """
    Give secrets of one kind, or of all, a successor, and take away those that nothing needs any more.

    Servers may run meanwhile, and go on without a failed call. Interrupted, it is finished by running it again.
    """
    from riskgate_server.rotation import Rotation

    directory = checked_directory(data, store_here=not store)
    with _refused(), directory.secrets_held(), Bars(shown=not as_json) as progress:
        rotation = Rotation(directory, store, lead_seconds=lead_seconds, progress=progress)
        report = rotation.run(_KINDS if kind == "all" else (kind,), steps or _STEPS)
    say(msgspec.to_builtins(report), _text(report), as_json=as_json)


@keys.command("list")
@data_option
@store_option
@json_option
def list_(data: Path, store: str, as_json: bool) -> None:
    """
    List the secrets by kind and number: since when each is in force, and what still needs it.

    And the certificates of authority and server: when each ends, and the names that the server's carries.
    """
    from riskgate_server.certificate import standing
    from riskgate_server.rotation import Rotation

    directory = checked_directory(data, store_here=not store)
    with _refused():
        held = Rotation(directory, store).list()
        certificates = standing(directory)
    now = time.time()
    rows: list[tuple[str, ...]] = [
        (one.kind, str(one.number), show_time(one.number * 1_000_000) or "", _state(one, now), one.needed)
        for one in held
    ]
    files: list[tuple[str, ...]] = [(one.file, one.expires, ", ".join(one.server_names)) for one in certificates]
    text = (
        table(("KIND", "NUMBER", "SINCE", "STATE", "NEEDED BY"), rows)
        + "\n\n"
        + table(("CERTIFICATE", "UNTIL", "NAMES"), files)
    )
    answer = {"secrets": msgspec.to_builtins(held), "certificates": msgspec.to_builtins(certificates)}
    say(answer, text, as_json=as_json)


@keys.command()
@data_option
@names_option
@click.option(
    "--replace-names",
    is_flag=True,
    help="Name localhost and what --name says, and nothing else that the certificate names now.",
)
@json_option
def certificate(data: Path, names: tuple[str, ...], *, replace_names: bool, as_json: bool) -> None:
    """
    Issue the server's certificate anew, with a new key, under the same authority. The names it has stay.

    A server may run meanwhile: it shows the new certificate to every connection that begins afterwards, and needs no
    restart. Callers keep their ca.crt.
    """
    from riskgate_server.certificate import renew

    directory = checked_directory(data, store_here=False)
    with _refused(), directory.secrets_held():
        renewed = renew(directory, names, keep_names=not replace_names, now=datetime.now(UTC))
    end = ", when its authority ends too" if renewed.expires_with_authority else ""
    text = (
        f"Certificate      {renewed.certificate_file}, until {renewed.expires}{end}\n"
        f"Server names     {', '.join(renewed.server_names)}\n\n"
        "A server that runs shows it to every new connection, without a restart; those that are open end within about"
        " half an hour."
    )
    say(msgspec.to_builtins(renewed), text, as_json=as_json)


def _state(one: Held, now: float) -> str:
    if one.in_force:
        return "in force"
    return "from then on" if one.number > now else "before"


def _text(report: Report) -> str:
    lines = [f"{kind}: secret {number} was added" for kind, number in report.added.items()]
    if report.rewrapped:
        lines.append(f"master: {counted(report.rewrapped, 'key')} of customers wrapped anew")
    if report.unreadable:
        lines.append(f"master: {counted(report.unreadable, 'key')} of customers cannot be read, and stay as they are")
    for kind, numbers in report.retired.items():
        lines.append(f"{kind}: {', '.join(map(str, numbers))} taken away")
    lines += [f"{kind}: an older secret stays for {what}" for kind, what in report.waiting.items()]
    return "\n".join(lines) or "nothing to do"


class _refused:  # noqa: N801 - used as a function
    """Say in one line what an operator can mend."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from riskgate_server.crypto.signing import HeadsBroken
        from riskgate_server.opening import UNREADABLE
        from riskgate_server.rotation import RotationRefused

        if isinstance(error, (*UNREADABLE, HeadsBroken, RotationRefused)):
            raise click.ClickException(str(error)) from error
