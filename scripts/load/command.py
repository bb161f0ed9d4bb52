"""The command line of `loadtest.py`."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from scripts.load.driver import Measured, begin_process, drive, open_customers, run_name
from scripts.load.report import Result, plot, print_result, result_as_data
from scripts.load.schedule import CUSTOMERS_MAX, Load, LoadInvalid, check_load, is_loopback, read_mix
from scripts.streaming.connect import Connection, connection, connection_options
from scripts.streaming.progress import StreamProgress, console

from riskgate_client import RiskgateError

START_SECONDS: Final = 3.0
"""Time for every process to connect before the schedule begins."""
PROCESSES_MAX: Final = 64


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@connection_options
@click.option("--rate", type=float, default=200.0, show_default=True, help="Calls per second; a batch is one call.")
@click.option("--duration", type=float, default=30.0, show_default=True, help="Seconds measured.")
@click.option("--warm-up", type=float, default=5.0, show_default=True, help="Seconds before, not measured.")
@click.option(
    "--mix",
    default="check=70,limit=20,capture=10",
    show_default=True,
    help="Shares of check, batch, limit, capture and repay.",
)
@click.option("--customers", type=click.IntRange(1, CUSTOMERS_MAX), default=1_000, show_default=True)
@click.option("--batch-size", type=click.IntRange(1, 500), default=100, show_default=True, help="Purchases in a batch.")
@click.option("--processes", type=click.IntRange(1, PROCESSES_MAX), default=1, show_default=True)
@click.option("--in-flight-max", type=click.IntRange(1, 100_000), default=2_000, show_default=True)
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds a call may take.")
@click.option("--currency", default="CNY", show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed is the same schedule.")
@click.option("--skip-opening", is_flag=True, help="The customers' lines were opened by an earlier run.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False), help="Write a plot (SVG) here.")
@click.option(
    "--i-own-this-host", is_flag=True, help="Needed for any address that is not on this machine: load is an attack."
)
def main(**given: Any) -> None:
    """
    Put a fixed schedule of calls on a server and measure every answer from its planned start.

    The credential needs risk:check, limit:read, line:open and ledger:write, and a rate (`riskgate callers add --rate`)
    above the one asked for here. Purchases carry no event time: use a server on the system's clock.
    """
    try:
        connected, load = _asked(given)
    except LoadInvalid as error:
        raise click.UsageError(str(error)) from error
    out = console()
    try:
        if not given["skip_opening"]:
            asyncio.run(_open(out, connected, load))
        measured, stopped = _drive(out, connected, load, given["processes"])
    except RiskgateError as error:
        raise click.ClickException(f"{connected.address}: {error}") from error
    result = Result(load, measured, stopped=stopped)
    print_result(out, result)
    if given["json_path"]:
        given["json_path"].write_text(json.dumps(result_as_data(result), indent=2) + "\n")
    if given["plot_path"]:
        plot(result, given["plot_path"])
    if stopped:
        raise click.ClickException("stopped when asked to; the figures are of what was done until then")
    if not result.done():
        raise click.ClickException("not one call succeeded")


def _asked(given: dict[str, Any]) -> tuple[Connection, Load]:
    if not is_loopback(given["address"]) and not given["i_own_this_host"]:
        raise LoadInvalid(f"{given['address']} is not on this machine; if it is yours to burden, say --i-own-this-host")
    load = Load(
        rate=given["rate"],
        seconds=given["duration"],
        warm_up_seconds=given["warm_up"],
        mix=read_mix(given["mix"]),
        customers=given["customers"],
        batch_size=given["batch_size"],
        in_flight_max=given["in_flight_max"],
        timeout_seconds=given["timeout"],
        seed=given["seed"],
        currency=given["currency"],
    )
    check_load(load)
    names = ("address", "ca_path", "api_key_file", "certificate_path", "key_path")
    return connection(**{name: given[name] for name in names}), load


async def _open(out: Console, connected: Connection, load: Load) -> None:
    with StreamProgress(out, "opening lines", load.customers, state=str) as progress:
        await open_customers(connected, load, progress.show)


def _drive(out: Console, connected: Connection, load: Load, processes: int) -> tuple[list[Measured], bool]:
    """Return what every process measured, and whether somebody asked to stop before the end."""
    begin = time.monotonic() + START_SECONDS
    ends = begin + load.warm_up_seconds + load.seconds
    run = run_name()
    out.print(
        f"{load.rate:g} calls per second for {load.seconds:g} s after {load.warm_up_seconds:g} s of warm-up, processes:"
        f" {processes}, customers: {load.customers:,}, to {connected.address}"
    )
    # Spawned, not forked: gRPC's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=begin_process, initargs=(stop,))
    total = round(ends - begin)
    # A ctrl-C reaches every process of the terminal. Those that are made now never hear it; this one hears it then.
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with pool, StreamProgress(out, "second", total) as progress:
        waiting = [pool.submit(drive, connected, load, number, processes, run, begin) for number in range(processes)]
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
            while not all(future.done() for future in waiting):
                progress.show(max(0, min(total, round(time.monotonic() - begin))))
                time.sleep(0.2)
        except KeyboardInterrupt:
            stop.set()
        return [future.result() for future in waiting], stop.is_set()
