"""`python -m tests.simulation --seeds 1000 --start 0`: runs seeds; the first that fails is told in one line."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.backings import BACKINGS, workshop
from tests.simulation.fleet import FleetSimulation
from tests.simulation.simulator import SeedFailed, Simulation

FLEET = "fleet"


def main() -> int:
    """Run the seeds asked for."""
    parser = argparse.ArgumentParser(prog="tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--store",
        choices=(*BACKINGS, FLEET),
        default="",
        help="where; by itself each seed takes memory or a SQLite file. fleet: several processes on one database",
    )
    parser.add_argument("--digest", action="store_true", help="print each seed's digest")
    options = parser.parse_args()
    faults: Counter[str] = Counter()
    commands = restarts = unknown = repeated = 0
    began = time.monotonic()
    with workshop() as folder:
        for seed in range(options.start, options.start + options.seeds):
            try:
                if options.store == FLEET:
                    tally = FleetSimulation(seed, folder).run()
                else:
                    tally = Simulation(seed, folder, store=options.store).run()
            except SeedFailed as failed:
                print(failed)  # noqa: T201 - speaks to a person
                return 1
            commands += tally.commands
            restarts += tally.restarts
            unknown += tally.unknown
            repeated += tally.repeated
            faults.update(tally.faults)
            if options.digest:
                print(seed, tally.digest)  # noqa: T201 - as above
    seconds = time.monotonic() - began
    injected = sum(times for name, times in faults.items() if name != "NONE")
    print(  # noqa: T201 - as above
        f"{options.seeds} seeds, 0 failures: {commands} commands, {repeated} repeated, {injected} faults, "
        f"{restarts} starts, {unknown} unknown outcomes resolved; {seconds:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
