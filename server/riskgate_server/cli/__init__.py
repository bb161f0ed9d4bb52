"""What people say to Riskgate at a terminal."""

from __future__ import annotations

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="riskgate")
def main() -> None:
    """Decide about purchases, reserve the credit for them, and prove it."""
