"""`python -m tests.traces --commands 100000`: one trace on every store, and what it went through."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests import postgres
from tests.traces.lockstep import Different, Lockstep

TOLD_EVERY_SECONDS = 10.0


def main() -> int:
    """Run the trace asked for."""
    parser = argparse.ArgumentParser(prog="tests.traces", description=__doc__)
    parser.add_argument("--commands", type=int, default=100_000, help="how many commands")
    parser.add_argument("--seed", type=int, default=1, help="another seed is another trace")
    options = parser.parse_args()
    began = told = time.monotonic()

    def say(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_EVERY_SECONDS:
            told = time.monotonic()
            print(f"{done:,} of {options.commands:,} commands; {told - began:.0f} s", file=sys.stderr)  # noqa: T201

    with tempfile.TemporaryDirectory(prefix="riskgate-trace-") as name:
        folder = Path(name)
        try:
            course = Lockstep(folder, seed=options.seed, commands=options.commands, said=say).run()
        except Different as different:
            print(different)  # noqa: T201 - speaks to a person
            return 1
        finally:
            postgres.give_back(folder)
    refused = course.replies["Refusal"] + course.replies["Failed"]
    print(  # noqa: T201 - as above
        f"{course.commands:,} commands in {course.batches:,} batches on memory, SQLite and PostgreSQL, no difference:"
        f" {refused:,} refused, {course.repeated:,} repeated ({course.altered:,} with other content),"
        f" {course.lapsed:,} customers with lapsed holds, {course.forgotten:,} replies forgotten;"
        f" {course.entries:,} entries, replies {course.replies_hash[:16]}, head {course.head[:16]};"
        f" {time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
