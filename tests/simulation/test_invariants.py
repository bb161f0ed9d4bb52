"""
The engine beside the model, step by step: the invariants of the ledger after every step of a random life.

Numbers in brackets, here and in `world.py`, count the invariants: 1-3 books, 4-5 journal, 6-8 request
ids and refusals, 10 amounts, 11-13 holds, 14 the limit, 16 expiry, 17 captures, 18 memo accounts,
21-22 blocks. (15, many at once, is `tests/unit/engine/test_writer.py`.)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from structlog.testing import capture_logs

from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.credit.line import BlockKind
from riskgate_server.domain.events import Label
from riskgate_server.engine import commands as c
from riskgate_server.engine.rows import EntryRow
from riskgate_server.engine.storing import Store
from riskgate_server.engine.verify import verify
from riskgate_server.stores.memory import MemoryStore, MemoryVault
from riskgate_server.stores.sqlite.store import SQLiteStore
from tests import factories as f
from tests.simulation import model as m
from tests.simulation.backings import fast_folder
from tests.simulation.commands import CommandSource
from tests.simulation.oracle import Model
from tests.simulation.plants import planted
from tests.simulation.world import Auditor, Discrepancy, expect, plain

KEYS: Final = ((f.TENANT, f.CUSTOMER), (f.TENANT, "bo"))
RISKS: Final = (
    *("",) * 5, "step_up", "strong_step_up", "review", "review", "alarm", "decline", "flood", "broken",
)  # fmt: skip
KINDS: Final = tuple(BlockKind)

whose = st.sampled_from(KEYS)
picks = st.integers(0, 255)
amounts = st.integers(1, 1_023)
"""Every eighth stands for the amount that matters (what is available, left, owed), or one beside it."""
actors = st.sampled_from(("olga", "Olga ", "peer"))
flags = st.booleans()
rarely = st.integers(0, 15).map(lambda n: n == 0)


def near(amount: int, interesting: int) -> int:
    return max(interesting + amount // 8 % 5 - 2 if amount % 8 == 0 else amount, 1)


class Life(RuleBasedStateMachine):
    """Two customers of one tenant, each with up to three lines."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = f.FixedClock()
        self.vault = MemoryVault()
        self.store = self.make_store()
        self.entropy = f.SeededEntropy()
        self.model = Model()
        self.auditor = Auditor()
        self.chance = Random(0)
        self.source = CommandSource(self.chance, self.model)
        self.sent: list[c.Command] = []
        self.touched: dict[m.Key, None] = {}
        self.logs = capture_logs()
        self.logs.__enter__()
        self.start()

    def make_store(self) -> Store:
        return MemoryStore()

    def start(self) -> None:
        self.pipeline = f.make_pipeline(
            self.store,
            clock=self.clock,
            vault=self.vault,
            entropy=self.entropy,
            cached_customers=1,
            bounds=self.model.bounds,
        )
        self.model.harmful.clear()

    @initialize()
    def both_open(self) -> None:
        for tenant, customer in KEYS:
            self.do(f.open_line("open", tenant_id=tenant, customer_id=customer, limit_minor=9_000))

    def do(self, *commands: c.Command) -> list[m.Answer]:
        """Run one batch in the engine and in the model; the answers must be equal."""
        before = {command.key: self.stored(command.key) for command in commands}
        replies = [plain(reply) for reply in self.pipeline.run(commands)]
        for command, reply in zip(commands, replies, strict=True):
            answer = self.model.answer(command, self.clock.us)
            expect(reply == answer, f"{type(command).__name__} was answered", reply, "not", answer)
            self.touched[command.key] = None
        if len(commands) == 1:
            self.check_refusal(replies[0], before[commands[0].key], self.stored(commands[0].key))
        self.sent.extend(command for command in commands if command.request_id)
        return replies

    def stored(self, key: m.Key) -> tuple[Any, ...]:
        with self.store.snapshot() as snapshot:
            row = snapshot.customer(key)
            purchases = list(snapshot.purchases(key, after="", limit=10**6, only_open=False))
            state = msgspec.msgpack.decode(row.state) if row else None
            return (state and state[3], purchases, list(snapshot.payments(key)), state and state[0])

    def check_refusal(self, reply: m.Answer, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
        """A refusal changes nothing but its own record, and ends what had lapsed anyway (8)."""
        if reply[0] == "failed":
            expect(before == after, "a failure left something behind (8)", reply)
        elif reply[0] == "refused" and after[3] == (before[3] or 0) + 1:
            expect(before[:3] == after[:3], "a refusal moved something (8)", reply)

    # --- What customers and their backends do. ---

    def place(self, key: m.Key) -> dict[str, str]:
        return {"tenant_id": key[0], "customer_id": key[1]}

    def some(self, fits: Callable[[m.Purchase], bool]) -> bool:
        return any(fits(p) for who in self.model.customers.values() for p in who.purchases.values())

    def fresh(self) -> str:
        return f"s{len(self.sent)}"

    def line_of(self, key: m.Key, pick: int) -> tuple[str, m.Line | None]:
        """A line by name, or unnamed: wrong if there are several."""
        lines = list(self.model.customers[key].lines.values())
        line = lines[pick % len(lines)]
        return ("" if pick % 8 == 0 or len(lines) == 1 else line.line_id), line

    def purchase_of(self, key: m.Key, pick: int, *states: int) -> m.Purchase | None:
        """A purchase, preferably in one of the states."""
        purchases = list(self.model.customers[key].purchases.values())
        fitting = [p for p in purchases if p.state in states]
        pool = fitting if fitting and pick % 8 else purchases
        return pool[pick // 8 % len(pool)] if pool else None

    @precondition(lambda self: any(len(who.lines) < 3 for who in self.model.customers.values()))
    @rule(key=whose, number=st.integers(1, 3), again=rarely)
    def open(self, *, key: m.Key, number: int, again: bool) -> None:
        if len(self.model.customers[key].lines) < 3 and (number == 1 or again):
            number = len(self.model.customers[key].lines) + 1 if again else number
        self.do(
            f.open_line(
                self.fresh(),
                line_id=f"line-{number}" if number == 1 or again else f.LINE,
                limit_minor=1_000,
                currency="JPY" if number == 3 else f.CURRENCY,
                **self.place(key),
            )
        )

    def a_check(self, key: m.Key, pick: int, amount: int, risk: str, **more: Any) -> c.CheckTransaction:
        line_id, line = self.line_of(key, pick)
        assert line
        # The currency is the line's, but for one in sixteen.
        currency = "USD" if pick % 16 == 3 else line.currency
        minor = 0 if amount == 9 else near(amount, line.available)
        name = f"s{len(self.sent)}"
        return f.check(
            name, minor, risk, request_id=self.fresh(), line_id=line_id, currency=currency, **self.place(key), **more
        )

    @rule(key=whose, pick=picks, amount=amounts, risk=st.sampled_from(RISKS), partial=flags, dry=rarely, brief=flags)
    def check(self, *, key: m.Key, pick: int, amount: int, risk: str, partial: bool, dry: bool, brief: bool) -> None:
        lifetime = f.MINUTE_US if brief else 0
        command = self.a_check(
            key, pick, amount, risk, allow_partial=partial, validate_only=dry, hold_lifetime_us=lifetime
        )
        (answer,) = self.do(command)
        if answer[0] == "decision" and answer[4] and command.facts.channel != "broken":
            line = self.model.customers[key].lines[answer[4]]
            suspended_now = answer[16]
            blocked = any(block[0] != suspended_now for block in line.standing(answer[2]))
            expect(("LINE_BLOCKED" in answer[7]) is (blocked and line.life == m.ACTIVE), "blocks are ANDed (21)")

    @rule(key=whose, pick=picks, amounts=st.lists(amounts, min_size=2, max_size=4))
    def check_several_at_once(self, key: m.Key, pick: int, amounts: list[int]) -> None:
        first = self.a_check(key, pick, amounts[0], "")
        self.do(
            *(
                msgspec.structs.replace(
                    first,
                    transaction_id=f"{first.transaction_id}.{n}",
                    request_id=f"{first.request_id}.{n}",
                    facts=msgspec.structs.replace(first.facts, amount_minor=near(amount, 300)),
                )
                for n, amount in enumerate(amounts)
            )
        )

    @rule(key=whose, pick=picks, risk=st.sampled_from(RISKS), same_terms=flags)
    def check_again_after_step_up(self, *, key: m.Key, pick: int, risk: str, same_terms: bool) -> None:
        purchase = self.purchase_of(key, pick, m.NONE)
        if purchase is None:
            return
        line = self.model.customers[key].lines.get(purchase.line_id)
        amount = int(purchase.terms.split()[0])
        self.do(
            f.check(
                purchase.transaction_id,
                amount if same_terms else amount + 1,
                risk,
                request_id=self.fresh(),
                line_id=purchase.line_id,
                currency=line.currency if line else f.CURRENCY,
                **self.place(key),
            )
        )

    @precondition(lambda self: self.some(lambda p: p.state != m.NONE))
    @rule(key=whose, pick=picks, amount=st.none() | amounts, final=flags, force=flags)
    def capture(self, *, key: m.Key, pick: int, amount: int | None, final: bool, force: bool) -> None:
        purchase = self.purchase_of(key, pick, *((m.CAPTURED, m.VOIDED, m.EXPIRED) if force else (m.PENDING,)))
        left = purchase.left if purchase else 1
        wanted = None if amount is None else near(amount, left)
        name = purchase.transaction_id if purchase else "nothing"
        line = self.model.customers[key].lines.get(purchase.line_id) if purchase else None
        currency = line.currency if line else f.CURRENCY
        was_open = (
            purchase is not None
            and purchase.state == m.PENDING
            and self.now(key) < purchase.lapses_us
            and not purchase.review_us
            and (wanted is None or wanted <= left)
        )
        command = f.capture(self.fresh(), name, wanted, currency=currency, final=final, force=force, **self.place(key))
        (answer,) = self.do(command)
        expect(not was_open or answer[0] == "hold", "an open hold could not be captured (17)", answer)

    def now(self, key: m.Key) -> int:
        return max(self.clock.us, self.model.customers[key].last_us)

    @precondition(lambda self: self.some(lambda p: p.state == m.PENDING))
    @rule(key=whose, pick=picks, amount=amounts)
    def increment(self, key: m.Key, pick: int, amount: int) -> None:
        purchase = self.purchase_of(key, pick, m.PENDING)
        line = self.model.customers[key].lines.get(purchase.line_id) if purchase else None
        name, available = (purchase.transaction_id, line.available) if purchase and line else ("nothing", 1)
        currency = line.currency if line else f.CURRENCY
        self.do(f.increment(self.fresh(), name, near(amount, available), currency=currency, **self.place(key)))

    @precondition(lambda self: self.some(lambda p: p.state == m.PENDING))
    @rule(key=whose, pick=picks)
    def void(self, key: m.Key, pick: int) -> None:
        purchase = self.purchase_of(key, pick, m.PENDING)
        self.do(f.void(self.fresh(), purchase.transaction_id if purchase else "nothing", **self.place(key)))

    @precondition(lambda self: self.some(lambda p: p.captured + p.forced > 0))
    @rule(key=whose, pick=picks, amount=amounts)
    def refund(self, key: m.Key, pick: int, amount: int) -> None:
        purchase = self.purchase_of(key, pick, m.CAPTURED)
        line = self.model.customers[key].lines.get(purchase.line_id) if purchase else None
        taken = purchase.captured + purchase.forced - purchase.refunded if purchase else 1
        name = purchase.transaction_id if purchase else "nothing"
        currency = line.currency if line else f.CURRENCY
        self.do(f.refund(self.fresh(), name, near(amount, taken), currency=currency, **self.place(key)))

    @rule(key=whose, pick=picks, amount=amounts, taken=rarely)
    def pay(self, *, key: m.Key, pick: int, amount: int, taken: bool) -> None:
        line_id, line = self.line_of(key, pick)
        assert line
        payments = list(self.model.customers[key].payments)
        payment_id = payments[pick % len(payments)] if payments and taken else f"s{len(self.sent)}"
        self.do(
            f.pay(
                payment_id,
                near(amount, line.owed),
                request_id=self.fresh(),
                line_id=line_id,
                currency=line.currency,
                **self.place(key),
            )
        )

    @precondition(lambda self: any(who.payments for who in self.model.customers.values()))
    @rule(key=whose, pick=picks)
    def reverse(self, key: m.Key, pick: int) -> None:
        payments = list(self.model.customers[key].payments)
        name = payments[pick % len(payments)] if payments else "nothing"
        self.do(f.reverse(self.fresh(), name, **self.place(key)))

    @rule(key=whose, pick=picks, kind=st.sampled_from(KINDS), hours=st.integers(-1, 30))
    def block(self, key: m.Key, pick: int, kind: BlockKind, hours: int) -> None:
        line_id, _ = self.line_of(key, pick)
        until = self.clock.us + hours * f.HOUR_US if pick % 3 == 0 else 0
        self.do(f.place_block(self.fresh(), kind, line_id=line_id, expires_us=until, **self.place(key)))

    @rule(key=whose, pick=picks, liftable=st.integers(0, 63) | st.just(63), actor=actors)
    def lift(self, key: m.Key, pick: int, liftable: int, actor: str) -> None:
        line_id, line = self.line_of(key, pick)
        assert line
        blocks = line.blocks
        name = blocks[pick // 8 % len(blocks)][0] if blocks else "b-1"
        kinds = frozenset(kind for kind in KINDS if liftable >> (kind - 1) & 1)
        (answer,) = self.do(
            f.lift(self.fresh(), name, line_id=line_id, actor_id=actor, liftable=kinds, **self.place(key))
        )
        if answer[0] == "line":
            others = [block for block in blocks if block[0] != name]
            now = [block for block in self.model.customers[key].lines[line.line_id].blocks if block[0] != name]
            expect(others == now, "lifting one block touched another (21)", others, now)
            expect(answer[4][1] in kinds, "a block was lifted by who may not lift it (22)", answer)

    @precondition(lambda self: len(self.sent) > 40)
    @rule(key=whose, pick=picks, really=rarely)
    def close(self, *, key: m.Key, pick: int, really: bool) -> None:
        line_id, line = self.line_of(key, pick)
        assert line
        if really or line.owed or line.held:
            self.do(f.close(self.fresh(), line_id=line_id, **self.place(key)))

    @precondition(lambda self: any(who.decisions for who in self.model.customers.values()))
    @rule(key=whose, pick=picks, label=st.sampled_from(tuple(Label)))
    def annotate(self, key: m.Key, pick: int, label: Label) -> None:
        self.do(f.annotate(self.fresh(), pick, label=label, **self.place(key)))

    @precondition(lambda self: self.some(lambda p: p.review_us > 0 and p.state == m.PENDING))
    @rule(key=whose, pick=picks, approve=flags)
    def resolve(self, *, key: m.Key, pick: int, approve: bool) -> None:
        waiting = [p for p in self.model.customers[key].purchases.values() if p.review_us and p.state == m.PENDING]
        other = self.purchase_of(key, pick, m.PENDING)
        purchase = waiting[pick % len(waiting)] if waiting else other
        name = purchase.transaction_id if purchase else "nothing"
        self.do(f.resolve(self.fresh(), name, approve=approve, **self.place(key)))

    @rule(key=whose, seed=st.integers(0, 2**24))
    def anything(self, key: m.Key, seed: int) -> None:
        """What the simulator would do: aimed at what stands, so that histories go deep."""
        self.chance.seed(seed)
        self.do(self.source.next(key))

    @rule(key=whose, seed=st.integers(0, 2**24))
    def anything_again(self, key: m.Key, seed: int) -> None:
        """Twice as likely."""
        self.anything(key, seed)

    @rule(seed=st.integers(0, 2**24), size=st.integers(2, 5))
    def a_batch(self, seed: int, size: int) -> None:
        self.chance.seed(seed)
        self.do(*(self.source.next(self.chance.choice(KEYS)) for _ in range(size)))

    # --- What goes wrong, and time. ---

    @precondition(lambda self: self.sent)
    @rule(pick=st.integers(0, 2**12), changed=rarely)
    def repeat(self, *, pick: int, changed: bool) -> None:
        """The same id again, at once or long after; with its own content or with other (6, 7)."""
        command = self.sent[pick % len(self.sent)]
        if changed:
            command = msgspec.structs.replace(command, fingerprint=b"other")
        self.do(command)
        self.sent.pop()

    @rule(us=st.sampled_from((1, f.SECOND_US, f.MINUTE_US, f.HOUR_US, f.DAY_US, 8 * f.DAY_US, -f.HOUR_US)))
    def wait(self, us: int) -> None:
        self.clock.wait(us)

    @rule(key=whose, pick=picks, off=st.integers(-1, 1))
    def wait_for_a_lapse(self, key: m.Key, pick: int, off: int) -> None:
        """To the very moment a hold ends, or beside it; the next decision must see the credit, sweeper or not (16)."""
        purchase = self.purchase_of(key, pick, m.PENDING)
        if purchase is None or purchase.state != m.PENDING:
            return
        self.clock.us = purchase.lapses_us + off
        line = self.model.customers[key].lines[purchase.line_id]
        line_now = self.now(key)
        everything = self.model.customers[key].purchases.values()
        over = [p for p in everything if p.line_id == line.line_id]
        freed = sum(p.left for p in over if p.state == m.PENDING and line_now >= p.lapses_us)
        available = line.limit - line.owed - line.held + freed
        still_open = sum(p.state == m.PENDING and line_now < p.lapses_us for p in everything)
        crowded = still_open >= self.model.bounds.open_holds
        if available > 0 and not crowded and line.life == m.ACTIVE and not line.standing(line_now):
            for amount, held in ((available, available), (available + 1, 0)):
                command = f.check(
                    f"s{len(self.sent)} {amount}",
                    amount,
                    request_id=self.fresh(),
                    line_id=line.line_id,
                    currency=line.currency,
                    validate_only=True,
                    **self.place(key),
                )
                (answer,) = self.do(command)
                expect(answer[10] == held, "the credit of a lapsed hold is not there, or too soon (16)", answer)

    @rule()
    def sweep(self) -> None:
        while due := self.store.customers_due(self.clock.us, 10):
            self.do(*(f.settle(tenant, customer) for tenant, customer in due))
        for key in KEYS:
            lapsed = self.now(key)
            open_holds = [p for p in self.model.customers[key].purchases.values() if p.state == m.PENDING]
            expect(all(p.lapses_us > self.clock.us for p in open_holds), "the sweep left a lapsed hold", lapsed)

    @rule()
    def restart(self) -> None:
        """The process ends and another begins over the same rows."""
        self.start()

    # --- What must hold after every step. ---

    @invariant()
    def what_is_stored_is_what_the_model_says(self) -> None:
        with self.store.snapshot() as snapshot:
            for key in self.touched:
                self.auditor.audit(snapshot, key, self.model)
        self.touched.clear()

    def teardown(self) -> None:
        try:
            report = verify(self.store, self.vault, Sealer())
            expect(not report.faults, "verify found", report.faults[:3])
            self.damage_is_found()
        finally:
            self.logs.__exit__(None, None, None)
            self.store.close()

    def damage_is_found(self) -> None:
        """Flip one bit in each part of some entries: verification must name the very row (5)."""
        if not isinstance(self.store, MemoryStore):
            return
        tables = self.store._tables
        entry = tables.journal[len(self.sent) % len(tables.journal)]
        for damaged in one_bit_each(entry, len(self.sent)):
            tables.journal[entry.position - 1] = tables.chains[entry.key][entry.sequence - 1] = damaged
            faults = verify(self.store, self.vault, Sealer()).faults
            expect(any(f"entry {entry.sequence} " in fault for fault in faults), "damage unseen (5)", entry, damaged)
        tables.journal[entry.position - 1] = tables.chains[entry.key][entry.sequence - 1] = entry


def one_bit_each(entry: EntryRow, pick: int) -> list[EntryRow]:
    damaged = []
    for name in ("clear", "nonce", "sealed", "hash"):
        content = bytearray(getattr(entry, name))
        if content:
            content[pick % len(content)] ^= 1 << pick % 8
            damaged.append(msgspec.structs.replace(entry, **{name: bytes(content)}))
    damaged.append(msgspec.structs.replace(entry, at_us=entry.at_us ^ 1 << pick % 40))
    damaged.append(msgspec.structs.replace(entry, request_id=entry.request_id + "x"))
    damaged.append(msgspec.structs.replace(entry, tag=entry.tag % 16 + 1))
    return damaged


@cache
def empty_file() -> bytes:
    """A migrated file without a row: making one takes longer than a life."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        SQLiteStore(Path(folder) / "empty.db").close()
        return (Path(folder) / "empty.db").read_bytes()


class LifeOnAFile(Life):
    """The same over SQLite."""

    def make_store(self) -> Store:
        self.folder = Path(tempfile.mkdtemp(prefix="riskgate-life-", dir=fast_folder()))
        (self.folder / "life.db").write_bytes(empty_file())
        return SQLiteStore(self.folder / "life.db")

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self.folder)


CHECKED: Final = settings(
    # Some lives end early, where hypothesis repeats a choice it knows: about 220 of these take all 100 steps.
    max_examples=300,
    stateful_step_count=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    report_multiple_bugs=False,
    # Making a failing life small takes minutes; `make test-long` does, and the steps are printed either way.
    phases=(Phase.generate,),
)

TestLife = Life.TestCase
TestLife.settings = CHECKED
TestLifeOnAFile = LifeOnAFile.TestCase
TestLifeOnAFile.settings = settings(CHECKED, max_examples=30)


class LongLife(Life):
    """Thousands of lives, and others every time."""


LongLife.TestCase.settings = settings(
    CHECKED, max_examples=3_000, derandomize=False, print_blob=True, phases=(Phase.generate, Phase.shrink)
)
TestLongLife = pytest.mark.long(LongLife.TestCase)


# The other plants show only when a commit fails, which is the simulator's matter.
@pytest.mark.parametrize("bug", ["lost_idempotency_row", "limit_read_outside_the_batch", "expiry_counted_twice"])
def test_a_planted_bug_is_caught_by_the_life_of_a_customer(bug: str) -> None:
    class Planted(Life):
        pass

    Planted.TestCase.settings = settings(CHECKED, max_examples=500)
    life = Planted.TestCase("runTest")
    with planted(bug), pytest.raises(Discrepancy):
        life.runTest()
