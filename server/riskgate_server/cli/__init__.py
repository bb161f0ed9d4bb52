"""What people say to Riskgate at a terminal."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final, cast

import click

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "init": (
        "riskgate_server.cli.init:init",
        "Make a data directory: keys, certificates, a first credential.",
    ),
    "serve": (
        "riskgate_server.cli.serve:serve",
        "Serve until told to stop.",
    ),
    "copy": (
        "riskgate_server.cli.copy:copy",
        "Move a store to another place, and prove that it arrived.",
    ),
    "rules": (
        "riskgate_server.cli.rules:rules",
        "Look at rulesets before they are served: check.",
    ),
    "ledger": (
        "riskgate_server.cli.ledger:ledger",
        "Prove that the books are right: verify.",
    ),
    "keys": (
        "riskgate_server.cli.keys:keys",
        "Renew secrets and certificate while serving: rotate, list, certificate.",
    ),
    "callers": (
        "riskgate_server.cli.callers:callers",
        "Say who may call: add, change, rotate, revoke, list, log, scopes.",
    ),
}
"""Name → where the command is, and its line in the help. A command is imported when it is run."""


class LazyGroup(click.Group):
    """A group that imports a command only to run it: `riskgate --help` and every other command stay fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of their table."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        return cast("click.Command", getattr(import_module(module), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's
        """Write the commands' lines without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _take_standard_streams() -> None:
    """
    Open what whoever started this process has closed of standard input, output and errors, on nothing.

    The next file to be opened would be there instead, and a line of the log would be written into it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as the process lives


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="riskgate")
def main() -> None:
    """Decide about purchases, reserve the credit for them, and prove it."""
    _take_standard_streams()
    # What lies in memory is in clear: keys, and what they opened. A dump would lie where others look.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
