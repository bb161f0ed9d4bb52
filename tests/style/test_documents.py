"""What the documents say of files, commands and targets is so."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click

from riskgate_server.cli import COMMANDS, main
from riskgate_server.datadir import DataDirectory
from tests.style.paths import ROOT


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_every_file_of_a_data_directory_is_in_the_table() -> None:
    (table,) = re.findall(r"## On disk\n(.*?)\n## ", read("ARCHITECTURE.md"), re.DOTALL)
    directory = DataDirectory(Path("DIR"))
    found = {getattr(directory, name) for name, kind in vars(DataDirectory).items() if isinstance(kind, property)}

    assert {path.name for path in found if not re.search(rf"`{re.escape(path.name)}/?`", table)} == set()


def test_every_path_of_the_map_exists() -> None:
    (table,) = re.findall(r"\| to find \| look in \|\n(.*?)\n\n", read("ARCHITECTURE.md"), re.DOTALL)
    named = re.findall(r"`([a-z_/]+\.(?:py|yaml|md))`", table)

    assert len(named) > 10
    assert [
        name for name in named if not ((ROOT / "server/riskgate_server" / name).exists() or (ROOT / name).exists())
    ] == []


def test_the_help_names_every_subcommand() -> None:
    for name, (_, line) in COMMANDS.items():
        command = main.get_command(click.Context(main), name)
        if isinstance(command, click.Group):
            assert set(re.findall(r"\w+", line.rpartition(":")[2])) == set(command.commands), name


def test_every_target_that_is_named_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))

    for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "scripts/README.md", "docs/rules.md"):
        assert set(re.findall(r"`make ([a-z-]+)", read(name))) <= targets, name


def test_every_link_leads_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "scripts/README.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page


def test_make_lists_every_target_that_has_words() -> None:
    described = set(re.findall(r"^([a-z.-]+):.*## ", read("Makefile"), re.MULTILINE))

    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    assert set(re.findall(r"^make (\S+)", listed, re.MULTILINE)) == described
