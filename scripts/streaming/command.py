"""The command line of `stream_transactions.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from scripts.streaming.connect import Connection, connection, connection_options
from scripts.streaming.history import BadRow, History, HistoryUnusable
from scripts.streaming.mapping import Mapping, MappingInvalid, load_mapping
from scripts.streaming.plan import plan_of
from scripts.streaming.position import Position, PositionUnusable, load_position, save_position, source_of
from scripts.streaming.progress import StreamProgress, console
from scripts.streaming.purchase import Purchase
from scripts.streaming.report import print_report, report_as_data
from scripts.streaming.sender import Sender, chunked
from scripts.streaming.tally import Tally

from riskgate_client import AsyncRiskgate, PermissionDenied, RiskgateError

CHUNK: Final = 5_000
"""Purchases sent between two places to stop at."""
POSITION_SECONDS: Final = 1.0
"""The position is written at most so often, and always at the end."""
_PAGE: Final = 500
_READY_SECONDS: Final = 30.0


class Stopped(Exception):
    """The stream ended early; the message says why."""


class Interruption:
    """Whether somebody asked to stop; the stream then ends at its next position."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as a wish to stop: the first is heard at the next position, the second at once."""
        loop = asyncio.get_running_loop()

        def ask() -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


class Run:
    """One run over a history."""

    def __init__(self, out: Console, history: History, mapping: Mapping, position: Position) -> None:
        self._out, self._history, self._mapping, self.position = out, history, mapping, position
        self.tally = Tally(position.counts)
        self.interruption = Interruption()

    async def go(self, connected: Connection, *, limit: int, state: Path | None, skip_bad_rows: bool) -> None:
        """Connect and stream."""
        async with connected.client() as client:
            await client.wait_until_ready(_READY_SECONDS)
            await self.stream(client, limit=limit, state=state, skip_bad_rows=skip_bad_rows)

    async def stream(self, client: AsyncRiskgate, *, limit: int, state: Path | None, skip_bad_rows: bool) -> None:
        """Stream the history from the position on, writing the position down between chunks."""
        position, tally = self.position, self.tally
        total = min(self._history.count(), limit or 2**62)
        if position.rows:
            self._out.print(f"Going on after row {position.rows:,}.")
        sender = Sender(
            client,
            plan_of(self._mapping),
            tally,
            accounts=position.accounts,
            due=position.due,
            held=position.held,
        )
        progress = StreamProgress(self._out, "streaming", total, state=self._approved)
        saved = time.monotonic()
        first = position.rows
        rows = self._history.rows(after=position.rows, limit=limit)
        with progress, self.interruption.watched():
            progress.begin_at(position.rows)
            for taken in chunked(rows, CHUNK, _time_of):
                began = time.monotonic()
                purchases = [self._accepted(row, skip_bad_rows=skip_bad_rows) for row in taken]
                before, sender.answered = position.rows, 0
                async with progress.following(lambda: before + sender.answered):  # noqa: B023  used up within the turn
                    await sender.send([purchase for purchase in purchases if purchase is not None])
                position.rows += len(taken)
                tally.counts.seconds += time.monotonic() - began
                asked = self.interruption.asked
                if state and (asked or position.rows == total or began - saved > POSITION_SECONDS):
                    saved = began
                    position.due, position.held = sender.due, sorted(sender.held)
                    position.counts = tally.written()
                    save_position(state, position)
                if asked:
                    break
        if first and position.rows == first and not self.interruption.asked:
            self._out.print(
                "There was nothing to do: all rows were answered by earlier runs, which these figures are of."
            )
        if sender.due:
            waiting = sum(due.transaction_id in sender.held for due in sender.due)
            self._out.print(f"{waiting:,} captures would fall due after the last row and were not made.")

    def _accepted(self, row: Purchase | BadRow, *, skip_bad_rows: bool) -> Purchase | None:
        if isinstance(row, Purchase):
            return row
        if not skip_bad_rows:
            raise Stopped(
                f"{row}\nNothing of this part was sent. With --bad-rows skip such rows are counted and listed."
            )
        self.tally.bad_row(str(row))
        return None

    def _approved(self) -> str:
        outcomes = self.tally.outcomes()
        total = sum(outcomes.values())
        return f"{100 * outcomes['APPROVE'] / total:.1f} % approved" if total else ""


def _time_of(row: Purchase | BadRow) -> int | None:
    return row.at_us if isinstance(row, Purchase) else None


async def answered_once(out: Console, connected: Connection, history: History, *, rows: int) -> list[str]:
    """Return what is wrong when the server's decisions are compared with the rows: none missing, none twice."""
    wanted = {row.transaction_id for row in history.rows(limit=rows) if isinstance(row, Purchase)}
    found: Counter[str] = Counter()
    async with connected.client() as client:
        with StreamProgress(out, "reading back", len(wanted), state=str) as progress:
            async for decision in client.risk.list_decisions(page_size=_PAGE):
                if decision.transaction_id in wanted:
                    found[decision.transaction_id] += 1
                    progress.show(len(found))
    missing = wanted - found.keys()
    twice = [name for name, count in found.items() if count > 1]
    faults = [f"{len(missing):,} purchases have no decision, such as {min(missing)}"] if missing else []
    return faults + ([f"{len(twice):,} purchases have several decisions, such as {min(twice)}"] if twice else [])


def size_of(directory: Path) -> int:
    """Return how many bytes a data directory takes on disk."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data",
    "data_path",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The history: .parquet, or CSV with headings.",
)
@click.option(
    "--mapping",
    "mapping_path",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What its columns mean: a YAML file, see scripts/README.md.",
)
@connection_options
@click.option("--limit", type=click.IntRange(1), help="Stream only so many rows, from the first in time.")
@click.option(
    "--state",
    "state_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the position is kept: a later run with the same file goes on from there.",
)
@click.option(
    "--bad-rows",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do with a row that is no purchase; skipped rows are counted and listed.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The server's data directory, to tell bytes per decision.",
)
@click.option(
    "--prove",
    is_flag=True,
    help="At the end read all decisions back (risk:read) and make sure that every row has exactly one.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the summary here too."
)
def main(  # noqa: PLR0917  click passes every option, by name
    data_path: Path,
    mapping_path: Path,
    address: str,
    ca_path: Path,
    api_key_file: Path | None,
    certificate_path: Path | None,
    key_path: Path | None,
    limit: int | None,
    state_path: Path | None,
    bad_rows: str,
    data_dir: Path | None,
    prove: bool,  # noqa: FBT001  click passes flags as booleans
    json_path: Path | None,
) -> None:
    """
    Stream a transaction history through a running server.

    The server must be one for histories, started with `--clock data` on a directory of its own, for its time is
    what the rows say. The credential needs the scopes risk:check, risk:history, line:open and ledger:write. Every
    row is answered exactly once, in order for each customer; running the same command again changes nothing that
    was done.
    """
    connected = connection(
        address=address,
        ca_path=ca_path,
        api_key_file=api_key_file,
        certificate_path=certificate_path,
        key_path=key_path,
    )
    try:
        mapping = load_mapping(mapping_path)
        history = History(data_path, mapping)
        source = source_of(data_path, mapping_path)
        position = load_position(state_path, source) if state_path else Position(source)
    except (MappingInvalid, HistoryUnusable, PositionUnusable) as error:
        raise click.ClickException(str(error)) from error
    out = console()
    run = Run(out, history, mapping, position)
    size_before = size_of(data_dir) if data_dir else 0
    decided_before = sum(run.tally.outcomes().values())
    refused_before = sum(run.tally.counts.failed.values())
    faults: list[str] = []
    try:
        asyncio.run(run.go(connected, limit=limit or 0, state=state_path, skip_bad_rows=bad_rows == "skip"))
        per_decision = None
        decided = sum(run.tally.outcomes().values()) - decided_before
        if data_dir and decided:
            per_decision = (size_of(data_dir) - size_before) / decided
        print_report(out, run.tally, bytes_per_decision=per_decision)
        if json_path:
            data = report_as_data(run.tally, bytes_per_decision=per_decision)
            json_path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
        refused = sum(run.tally.counts.failed.values()) - refused_before
        if refused:
            faults.append(f"{refused:,} {'row was' if refused == 1 else 'rows were'} refused by the server")
        if run.interruption.asked:
            faults.append("stopped when asked to" + ("; run the same command to go on" if state_path else ""))
        elif prove:
            unproved = asyncio.run(answered_once(out, connected, history, rows=run.position.rows))
            faults += unproved
            if not unproved:
                out.print("Read back: every row has exactly one decision.")
    except Stopped as error:
        raise click.ClickException(str(error)) from error
    except RiskgateError as error:
        raise click.ClickException(_explained(error, address, state_path)) from error
    finally:
        history.close()
    if faults:
        raise click.ClickException("; ".join(faults))


def _explained(error: RiskgateError, address: str, state: Path | None) -> str:
    text = f"{address}: {error}"
    if error.reason == "HISTORY_FORBIDDEN":
        text += "\nThe credential needs the scope risk:history."
    elif error.reason == "EVENT_TIME_OUT_OF_RANGE":
        text += (
            "\nThis server's time is the system's. Start another with `--clock data`, on a directory of its own that"
            " holds nothing but histories: see scripts/README.md."
        )
    elif isinstance(error, PermissionDenied):
        text += "\nThe credential needs risk:check, risk:history, line:open and ledger:write."
    if state and state.exists():
        text += f"\nThe same command goes on from {os.fspath(state)}."
    return text
