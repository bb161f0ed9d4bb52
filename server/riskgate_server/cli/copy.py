"""`riskgate copy`: moves a store to another place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riskgate_server.cli.common import Bars, json_option, say

if TYPE_CHECKING:
    from riskgate_server.copying import Copied


@click.command()
@click.option("--from", "source", metavar="PLACE", required=True, help="What to move: sqlite:DIR or postgresql://…")
@click.option("--to", "target", metavar="PLACE", help="Where to: the same, with no store in it yet.")
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Data directory with the secrets; needed between two databases only.",
)
@click.option("--give-up", is_flag=True, help="Do not finish a copy that was begun: PLACE may be served again.")
@json_option
def copy(source: str, target: str | None, data: Path | None, give_up: bool, as_json: bool) -> None:
    """
    Move journal, state and customers' keys to another place, and prove that they arrived.

    Neither place may be served meanwhile. Nothing is made anew: positions, hashes and wrapped keys stay what they are.
    If it is interrupted, the same command goes on where it was. In the end the copy is the store to serve, and the
    one it was made from is served no more.
    """
    from riskgate_server.copying import CopyDiffers, PlaceUnknown, give_up_copy, secrets_of
    from riskgate_server.copying import copy as copy_store
    from riskgate_server.engine.failures import (
        OutcomeUnknown,
        ReadFailed,
        StoreBroken,
        StoreBusy,
        StoreFull,
        StoreInUse,
    )
    from riskgate_server.opening import UNREADABLE, OtherPast
    from riskgate_server.stores.refusals import MoveRefused

    if give_up == bool(target):
        raise click.UsageError("name either a place to copy --to, or --give-up")
    refusals = (*UNREADABLE, CopyDiffers, MoveRefused, OtherPast)
    interruptions = (OutcomeUnknown, ReadFailed, StoreBroken, StoreBusy, StoreFull)
    try:
        directory = secrets_of((source, target) if target else (source,), data)
        if not target:
            name = give_up_copy(directory, source)
            say({"served_again": name}, f"{name} may be served again", as_json=as_json)
            return
        with Bars(shown=not as_json) as progress:
            copied = copy_store(directory, source, target, progress)
    except PlaceUnknown as error:
        raise click.UsageError(str(error)) from error
    except interruptions as error:
        raise click.ClickException(f"{error}; what was copied is kept: run the same command again") from error
    except StoreInUse as error:
        raise click.ClickException(f"{error}: stop it first") from error
    except refusals as error:
        raise click.ClickException(str(error)) from error
    say(_answer(copied), _text(copied, target), as_json=as_json)


def _answer(copied: Copied) -> dict[str, Any]:
    return {
        "from": copied.source,
        "to": copied.target,
        "finished_before": copied.before,
        "rows": copied.rows,
        "heads": [
            {"writer": writer, "batch": batch, "hash": last.hex()}
            for writer, (batch, last) in sorted(copied.lanes.items())
        ],
    }


def _text(copied: Copied, target: str) -> str:
    heads = [
        f"writer {writer} ends with commit {batch}, {last.hex()}" for writer, (batch, last) in copied.lanes.items()
    ]
    store = " --store DSN" if target.startswith("postgres") else ""
    return "\n".join(
        [
            f"{copied.source} was moved to {copied.target}{' before; nothing was done' if copied.before else ''}",
            ", ".join(f"{number:,} {table}" for table, number in copied.rows.items() if number) or "nothing was in it",
            *heads,
            "Every row was read back and is the same; the old place is served no more.",
            f"Next: riskgate serve --data DIR{store}; and, beside it, riskgate ledger verify --data DIR{store}",
        ]
    )
