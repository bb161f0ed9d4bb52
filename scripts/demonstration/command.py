"""The command line of `demo.py`, and the order of its acts."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import click
from rich.console import Console
from scripts.city import City, CitySpec, build
from scripts.demonstration.process import DemoServer, ServerFailed
from scripts.demonstration.story import CUSTOMER, Story, StoryBroken, check_explanation, print_explanation
from scripts.demonstration.town_life import LIMIT, Record, plan_for, purchases_of
from scripts.own_postgres import serving
from scripts.streaming.connect import Connection
from scripts.streaming.progress import StreamProgress, console
from scripts.streaming.purchase import GENUINE, Purchase
from scripts.streaming.report import latency_table, money, outcome_table, plain_table, share
from scripts.streaming.sender import Sender, chunked
from scripts.streaming.tally import Tally

from riskgate_client import RiskgateError

CHUNK: Final = 2_000
LANES, BATCH, FOLLOW_UPS = 4, 32, 32
"""Enough to keep the server busy; more would only wait there, and show as latency."""
READY_SECONDS: Final = 30.0
GENUINE_APPROVED_LEAST: Final = 0.95
OWN_DATABASE: Final = "postgresql"
"""What `--store` says for a database that is started for the occasion."""
_RATE: Final = 100_000
_PAGE: Final = 500
_DAY_US: Final = 86_400_000_000

SHOP_SCOPES: Final = (
    "risk:check", "risk:history", "line:open", "ledger:write",
    "otp:enroll", "otp:send", "otp:verify", "device:enroll", "device:verify",
)  # fmt: skip
DESK_SCOPES: Final = ("risk:read", "limit:read", "ledger:read", "line:block", "block:lift:fraud_soft")


class Demonstration:
    """Everything `make demo` does."""

    def __init__(self, out: Console, city: City, store: str = "") -> None:
        """
        Plan it.

        Args:
            store: DSN of a PostgreSQL database without tables of ours; empty for an embedded database.
        """
        self._out, self._city, self._store = out, city, store
        self._tally = Tally()
        self._record = Record(city)
        self._owed_minor = 0
        self.faults: list[str] = []

    def run(self, root: Path) -> None:
        """
        Make a server in a directory, live through the city and the story, stop it, and verify its books.

        Raises:
            ServerFailed: the server or its command line failed.
            StoryBroken: the server answered something else than the story needs.
            RiskgateError: the server refused a call.
        """
        out = self._out
        with DemoServer(root, self._store) as server:
            out.print("[bold]A server[/bold]")
            made = "keys and certificates" if self._store else "keys, certificates, an embedded database"
            out.print(f"  riskgate init {server.data}: {made}")
            shop_key = server.add_caller_with_key("shop", SHOP_SCOPES, rate=_RATE)
            out.print(f"  riskgate callers add shop --key: {', '.join(SHOP_SCOPES)}")
            certificate, key = server.add_caller_with_certificate("desk", DESK_SCOPES, rate=_RATE)
            out.print(f"  riskgate callers add desk --certificate: {', '.join(DESK_SCOPES)}")
            server.start()
            shop, desk = server.by_key(shop_key), server.by_certificate(certificate, key)
            # Never the DSN itself: there may be a password in it.
            where = " --store postgresql://…" if self._store else ""
            out.print(
                f"  riskgate serve --clock data{where}: keys over TLS at {shop.address}, certificates at {desk.address}"
            )
            asyncio.run(self._live(shop, desk, server.inbox))
            seconds = server.stop()
            self.faults += [f"the server complained: {line}" for line in server.complaints()]
            self._verify(server, seconds)

    async def _live(self, shop: Connection, desk: Connection, inbox: Path) -> None:
        async with shop.client() as shop_client, desk.client() as desk_client:
            await shop_client.wait_until_ready(READY_SECONDS)
            await self._stream(shop_client)
            self._tell_results()
            await self._count_decisions(desk_client)
            spec = self._city.spec
            self._out.print(f"\n[bold]One line's story[/bold] ({CUSTOMER}, all answers from the server)")
            begin = spec.start + timedelta(days=spec.days + 1)
            story = Story(self._out, shop_client, desk_client, inbox=inbox, begin=begin, zone=spec.time_zone)
            caught = await story.tell()
            self._out.print("\n[bold]Why that purchase was refused[/bold] (ExplainDecision)")
            explanation = await desk_client.risk.explain_decision(customer_id=CUSTOMER, decision_id=caught.decision_id)
            print_explanation(self._out, explanation)
            check_explanation(explanation)

    async def _stream(self, client: Any) -> None:
        city, out = self._city, self._out
        purchases = purchases_of(city)
        out.print("\n[bold]A city[/bold]")
        out.print(
            f"  {len(city.customers):,} customers with habits and phones, {len(city.merchants):,} merchants,"
            f" {city.spec.days} days: {len(purchases):,} purchases, seed {city.spec.seed}"
        )
        sender = Sender(
            client, plan_for(city), self._tally, seen=self._record.seen, lanes=LANES, batch=BATCH, follow_ups=FOLLOW_UPS
        )
        progress = StreamProgress(out, "  streaming", len(purchases), state=lambda: self._day(purchases, sender))
        began = time.monotonic()
        with progress:
            async with progress.following(lambda: sender.answered):
                for chunk in chunked(purchases, CHUNK, lambda purchase: purchase.at_us):
                    await sender.send(chunk)
        self._tally.counts.seconds = time.monotonic() - began
        self._owed_minor = sum(account.owed_minor for account in sender.accounts.values())
        if sender.answered != len(purchases):
            self.faults.append(f"{len(purchases)} purchases were sent and {sender.answered} answered")

    def _day(self, purchases: list[Purchase], sender: Sender) -> str:
        at_us = purchases[min(sender.answered, len(purchases) - 1)].at_us
        day = (at_us - purchases[0].at_us) // _DAY_US + 1
        return f"day {day} of {self._city.spec.days}"

    def _tell_results(self) -> None:
        out, tally, currency = self._out, self._tally, self._city.spec.currency
        out.print()
        out.print(outcome_table(tally))
        table = plain_table(
            "Fraud: what thieves tried, and what they got", "", "incidents", "noticed", "purchases", "stopped",
            "tried", "stopped", "lost",
        )  # fmt: skip
        results = self._record.scenarios()
        for result in results:
            lost = result.amount_minor - result.stopped_minor
            table.add_row(
                result.name, str(result.incidents), str(result.noticed), str(result.purchases), str(result.stopped),
                *(money(amount, currency) for amount in (result.amount_minor, result.stopped_minor, lost)),
            )  # fmt: skip
        tried, stopped = (sum(r.amount_minor for r in results), sum(r.stopped_minor for r in results))
        out.print()
        out.print(table)
        out.print(
            f"  {share(stopped, tried)} of the money was stopped. What one tampered terminal charges many customers,"
            " and a quiet thief who spends like the victim, cannot be seen in one customer's past."
        )
        genuine = tally.number(GENUINE)
        alarms = self._record.false_alarms()
        false = sum(count for what, count in alarms.items() if what != LIMIT)
        out.print(f"\n[bold]False alarms[/bold]: {false:,} of {genuine:,} genuine purchases ({share(false, genuine)})")
        for what, count in alarms.most_common():
            out.print(f"  {count:>5,}  {what}")
        out.print()
        out.print(latency_table(tally))
        besides = ", ".join(f"{count:,} {what}" for what, count in sorted(tally.counts.ledger.items()))
        rate = tally.counts.answered / tally.counts.seconds
        out.print(f"  {tally.counts.seconds:,.1f} s, {rate:,.0f} purchases per second. Besides: {besides}.")
        self._judge(alarms.total(), genuine)

    def _judge(self, alarms: int, genuine: int) -> None:
        counts = self._tally.counts
        self.faults += [f"{count} purchases were answered with {reason}" for reason, count in counts.failed.items()]
        self.faults += [f"{count} × {what}" for what, count in counts.ledger.items() if what.startswith("not ")]
        if genuine - alarms < GENUINE_APPROVED_LEAST * genuine:
            self.faults.append(f"only {share(genuine - alarms, genuine)} of the genuine purchases were approved")
        unseen = [result.name for result in self._record.scenarios() if result.incidents and not result.noticed]
        self.faults += [f"no incident of kind {name!r} was noticed" for name in unseen if name != "terminal"]

    async def _count_decisions(self, client: Any) -> None:
        found: set[str] = set()
        async for decision in client.risk.list_decisions(page_size=_PAGE):
            if decision.transaction_id in found:
                self.faults.append(f"{decision.transaction_id} has two decisions")
            found.add(decision.transaction_id)
        missing = {bought.transaction_id for bought in self._city.purchases} - found
        if missing:
            self.faults.append(f"{len(missing)} purchases have no decision on the server")
        self._out.print(f"  Read back: {len(found):,} decisions, one for every purchase.")

    def _verify(self, server: DemoServer, seconds: float) -> None:
        out, currency = self._out, self._city.spec.currency
        out.print(f"\n[bold]The books[/bold]\n  SIGTERM: the server finished its work and ended in {seconds:.1f} s.")
        report = server.verify()
        verdict = "clean" if report["clean"] else "NOT CLEAN"
        out.print(
            f"  riskgate ledger verify: {verdict}; {report['entries']:,} entries of {report['customers']:,} customers"
            f" in {report['batches']:,} commits, every hash chain and every balance recomputed."
        )
        owed = report["outstanding_minor"].get(currency, 0)
        out.print(
            f"  Customers owe {money(owed, currency)}; the shop's own sums say {money(self._owed_minor, currency)}."
        )
        self.faults += [f"ledger verify: {fault}" for fault in report["faults"]]
        if owed != self._owed_minor:
            self.faults.append("the ledger and the shop's own sums differ")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, default=CitySpec().seed, show_default=True, help="Another seed is another city.")
@click.option("--customers", type=click.IntRange(20, 5_000), default=CitySpec().customers, show_default=True)
@click.option("--days", type=click.IntRange(7, 28), default=CitySpec().days, show_default=True)
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave the server's data in this new directory."
)
@click.option(
    "--store",
    default="",
    metavar="DSN",
    help="postgresql://… of an empty database to keep it all in; `postgresql` alone starts one, and removes it.",
)
def main(seed: int, customers: int, days: int, keep: Path | None, store: str) -> None:
    """Let a simulated city live on a real server for four weeks, and tell what came of it."""
    signal.signal(signal.SIGTERM, _interrupted)
    began = time.monotonic()
    out = console()
    if store and not store.startswith(("postgresql://", "postgres://")) and store != OWN_DATABASE:
        raise click.UsageError(f"--store: {store} is neither a DSN (postgresql://…) nor `{OWN_DATABASE}`")
    try:
        with ExitStack() as closing:
            if store == OWN_DATABASE:
                _, store = closing.enter_context(serving())
            city = build(CitySpec(seed=seed, customers=customers, days=days))
            demonstration = Demonstration(out, city, store)
            if keep is None:
                root = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="riskgate-demo-")))
            else:
                keep.mkdir(parents=True, mode=0o700)
                root = keep.absolute()
            demonstration.run(root)
    except FileExistsError:
        raise click.ClickException(f"{keep} exists already") from None
    except (ServerFailed, StoryBroken, RiskgateError) as error:
        raise click.ClickException(f"the demonstration failed: {error}") from error
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; the server was stopped and its data removed") from None
    if demonstration.faults:
        for fault in demonstration.faults:
            out.print(f"  FAULT: {fault}", markup=False)
        sys.exit(1)
    left = f"its data is in {keep}" if keep else "nothing is left behind"
    out.print(f"\nAll of it in {time.monotonic() - began:.0f} s; {left}.")


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
