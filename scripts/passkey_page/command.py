"""The command line of `passkey.py`."""

from __future__ import annotations

import errno
import signal
import tempfile
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from scripts.demonstration.process import DemoServer, ServerFailed
from scripts.passkey_page.shop import SCOPES, Shop
from scripts.passkey_page.web import Page

from riskgate_client import Riskgate, RiskgateError

_RATE = 100


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="Of the page; 0 takes any free one."
)
def main(port: int) -> None:
    """Serve a page on which a browser enrols a passkey and approves a purchase with it, until Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        with (
            Page(port) as page,
            tempfile.TemporaryDirectory(prefix="riskgate-passkey-") as root,
            DemoServer(Path(root)) as server,
        ):
            api_key = server.add_caller_with_key("shop", SCOPES, rate=_RATE)
            # Passkeys are taken from this very origin; the port is ours already.
            server.start(clock="system", settings={"origins": page.origin})
            connection = server.by_key(api_key)
            with Riskgate(connection.address, ca=connection.ca, api_key=api_key) as gate:
                gate.wait_until_ready()
                page.shop = Shop(gate)
                for customer_id in page.customers:
                    page.shop.open_line(customer_id)
                print(f"Open {page.origin} in a browser of this machine. Ctrl-C ends it.", flush=True)
                page.serve_forever()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise click.ClickException(f"port {port} is taken; choose another with --port") from None
    except (ServerFailed, RiskgateError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        print("\nThe server was stopped and its data removed; the passkey is yours to delete from the browser.")


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
