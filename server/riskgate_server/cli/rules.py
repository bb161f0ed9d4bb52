"""`riskgate rules`: looks at rulesets, and needs neither a directory nor a server."""

from __future__ import annotations

from pathlib import Path

import click

from riskgate_server.cli.common import counted, json_option, say


@click.group()
def rules() -> None:
    """Look at rulesets before they are served."""


@rules.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """
    Check a ruleset as `riskgate serve --ruleset FILE` does, and tell its version and hash.

    Every fault is a line, FILE:LINE: path: what is wrong. Exit code 0 when it may be served, 1 when not.
    """
    from riskgate_server.rules.reading import RulesetRefused, read_ruleset

    try:
        compiled, _ = read_ruleset(str(file))
    except RulesetRefused as error:
        raise click.ClickException(str(error)) from error
    ruleset = compiled.ruleset
    answer = {"name": ruleset.name, "version": ruleset.version, "hash": ruleset.hash, "rules": len(ruleset.rules)}
    text = f"{file} may be served: {ruleset.name}, version {ruleset.version}, {counted(len(ruleset.rules), 'rule')}"
    say(answer, f"{text}, hash {ruleset.hash}", as_json=as_json)
