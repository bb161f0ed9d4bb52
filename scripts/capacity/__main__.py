"""`python -m scripts.capacity`: what a load needs; with --measure, points of this machine first."""

from __future__ import annotations

import click
import msgspec
from scripts.capacity.model import POINTS, Needs, fit, needs, read_points


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--measure", is_flag=True, help="Measure anew, for some minutes, and write points.json.")
@click.option("--store", type=click.Choice(["sqlite", "postgresql"]), default="postgresql", show_default=True)
@click.option("--rate", type=click.FloatRange(1), default=1_000.0, show_default=True, help="Decisions per second.")
@click.option("--per-call", type=click.IntRange(1, 500), default=1, show_default=True, help="Purchases in a call.")
@click.option("--per-commit", type=click.IntRange(1, 500), default=50, show_default=True, help="In a commit of a lane.")
@click.option("--customers", type=click.IntRange(1), default=1_000_000, show_default=True)
@click.option("--commit-ms", type=click.FloatRange(0.1), default=10.0, show_default=True, help="How long one takes.")
def main(
    *, measure: bool, store: str, rate: float, per_call: int, per_commit: int, customers: int, commit_ms: float
) -> None:
    """Say what a load needs, by the model that is fitted to the measured points."""
    if measure:
        from scripts.capacity.measure import STORES  # noqa: PLC0415 - brings a database along
        from scripts.capacity.measure import measure as measured  # noqa: PLC0415 - as above

        points = [point for name in STORES for point in measured(name)]
        POINTS.write_bytes(msgspec.json.format(msgspec.json.encode(points), indent=1) + b"\n")
    found = needs(
        fit(read_points(), store),
        decisions_per_second=rate,
        per_call=per_call,
        per_commit=per_commit,
        customers=customers,
        commit_seconds=commit_ms / 1_000,
    )
    for name in Needs.__struct_fields__:
        click.echo(f"{name.replace('_', ' '):26} {getattr(found, name):10,.3f}")


if __name__ == "__main__":
    main()
