"""The examples of the README, and of the page about proofs, do what they say against the server its commands start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import conninfo
from scripts.own_postgres import DATABASE, programs, serving

from riskgate_server.rpc.server import LATER
from tests.acceptance.deployment import FREE_PORTS
from tests.buf import find_buf
from tests.rpc.contract import LATER_METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PURCHASE, STEP_UP = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
IDENTITY = (ROOT / "docs" / "identity.md").read_text(encoding="utf-8")
(CODES,) = re.findall(r"```python\n(.*?)```", IDENTITY, re.DOTALL)

pytestmark = pytest.mark.process


def _riskgate(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "riskgate_server", *arguments]


def _added(caller: str, where: Path) -> Any:
    """Run one of the README's `callers add` commands and return its answer."""
    (line,) = re.findall(rf"^riskgate (callers add {caller} (?:.*\\\n)*.*)$", README, re.MULTILINE)
    command = _riskgate(*line.replace("\\\n", " ").split(), "--json")
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=where).stdout)


class Served(msgspec.Struct):
    """A server made by the README's commands, in a directory of its own."""

    where: Path
    ports: dict[str, int]
    answers: dict[str, Any]
    """What the README's commands answered, by caller."""
    server: subprocess.Popen[str]

    def key(self, caller: str) -> str:
        """Return a caller's key."""
        return str(self.answers[caller]["key"]["api_key"])

    def stop(self) -> None:
        """Stop the server, as `kill %1` does where it was pasted."""
        self.server.terminate()
        assert self.server.wait(30) == 0

    def here(self, text: str) -> str:
        """Return a piece of the README with the ports of this server."""
        return re.sub(r"localhost:(\d+)", lambda found: f"localhost:{self.ports[found[1]]}", text)

    def run(self, python: str) -> subprocess.CompletedProcess[str]:
        """Run a piece of Python of the README."""
        return subprocess.run(
            [sys.executable, "-c", self.here(python)],
            cwd=self.where,
            env={**os.environ, "SHOP_KEY": self.key("shop")},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    data = tmp_path / "data"
    subprocess.run(_riskgate("init", str(data)), check=True, capture_output=True)
    # Before the server starts: it follows what is changed beside it, but not at once.
    answers = {caller: _added(caller, tmp_path) for caller in ("shop", "terminal", "web")}
    with subprocess.Popen(
        _riskgate("serve", "--data", str(data), *FREE_PORTS), stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        serving = json.loads(server.stderr.readline())
        ports_used = {"7443": serving["certificate_port"], "7444": serving["key_port"]}
        try:
            yield Served(tmp_path, ports_used, answers, server)
        finally:
            server.terminate()
            server.communicate(timeout=30)


@pytest.fixture(scope="module")
def buf() -> str:
    return find_buf()


def test_the_example_works_as_pasted_and_may_be_run_again(served: Served) -> None:
    first, second = served.run(PURCHASE), served.run(PURCHASE)

    assert first.stderr == second.stderr == ""
    assert first.stdout == "APPROVE CNY 4,871.00\n"
    assert second.stdout == first.stdout


def test_a_step_up_is_carried_through_as_pasted(served: Served) -> None:
    served.run(PURCHASE)

    done = served.run(STEP_UP)

    assert (done.stderr, done.stdout) == ("", "STEP_UP FIRST_PURCHASE_LARGE\nAPPROVE\n")


def test_a_code_carries_a_step_up_through_as_pasted(served: Served) -> None:
    done = served.run(CODES)

    assert (done.stderr, done.stdout) == ("", "STEP_UP 1 AMOUNT_UNUSUAL\nAPPROVE\n")
    assert "It prints `STEP_UP 1 AMOUNT_UNUSUAL`, then `APPROVE`" in IDENTITY


def test_the_call_by_certificate_works_as_pasted(served: Served) -> None:
    (client,) = re.findall(r"^Riskgate\(.*\)$", README, re.MULTILINE)

    done = served.run(f"from riskgate_client import Riskgate\n{client}.lines.get('nobody')")

    assert done.stderr.rstrip().endswith("CUSTOMER_NOT_FOUND: no such customer")


def test_the_call_without_python_works_as_pasted(served: Served, buf: str) -> None:
    served.run(PURCHASE)
    (command,) = re.findall(r"^npx @bufbuild/(buf curl (?:.*\\\n)*.*)$", README, re.MULTILINE)

    done = subprocess.run(
        ["bash", "-c", served.here(command).replace("buf curl", f"{buf} curl")],
        cwd=served.where,
        env={**os.environ, "TERMINAL_KEY": served.key("terminal")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["creditLine"]["available"]["amountMinor"] == "487100"


def test_the_lines_for_postgresql_work_as_pasted_and_take_along_what_was_bought(served: Served) -> None:
    """All but the first, which would install what is there; the server in the background, on ports of its own."""
    (block,) = re.findall(r"### On PostgreSQL\n.*?```\n(.*?)```", README, re.DOTALL)
    install, make, export, copy, serve, verify = block.splitlines()
    served.run(PURCHASE)
    served.stop()
    with serving() as (server, _):
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {DATABASE}")
        connect = conninfo.conninfo_to_dict(server.get_uri())
        script = f"""
            set -e
            {make}
            {export}
            {copy.partition("#")[0]} > copied
            {serve.rpartition("&")[0]} 2> log &
            until grep -q '"serving"' log; do kill -0 $!; done
            {verify} --json
            kill $!
            wait $!
        """
        ports = {f"RISKGATE_{name}_PORT": "0" for name in ("KEY", "CERTIFICATE")} | {"RISKGATE_METRICS_PORT": "-1"}
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=served.where,
            env={
                **os.environ,
                **ports,
                "PATH": f"{Path(sys.executable).parent}:{programs()}:{os.environ['PATH']}",
                "PGHOST": str(connect["host"]),
                "PGUSER": str(connect["user"]),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert install.startswith('pip install ".[postgres]"')
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["clean"]
    assert report["outstanding_minor"] == {"CNY": 12_900}


def test_what_is_not_served_yet_is_named_and_nothing_else() -> None:
    (said,) = re.findall(r"answered `UNIMPLEMENTED` until built:(.*?)\n- ", README, re.DOTALL)
    whole = {service.name for service in LATER}
    single = LATER_METHODS - {method.name for service in LATER for method in service.methods}

    assert set(re.findall(r"`(\w+)`", said)) == whole | single


def test_every_target_it_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert set(re.findall(r"\bmake ([a-z]+)", README)) - {"are"} <= targets
