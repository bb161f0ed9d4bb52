"""
What is stored, read without the engine's help and held against the model and against the invariants.

Rows are decoded as plain lists and the books are added up here a second time, entry by entry, so
that an invariant holds at every prefix of the journal and not only where somebody looked.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

import msgspec

from riskgate_server.engine import replies as r
from riskgate_server.engine.rows import EntryRow
from riskgate_server.engine.storing import Snapshot
from tests.simulation import model as m
from tests.simulation.oracle import Model

COMMITMENT, UNUSED, DRAWN, PRINCIPAL, CASH, PAYABLE, SUSPENSE, CREDIT = range(8)
PENDING_LAYER, POSTED_LAYER = 0, 1
EVERYTHING: Final = 10**9

_decode = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode


class Discrepancy(AssertionError):
    """The engine did something else than the model, or an invariant does not hold."""


def expect(holds: object, what: str, *seen: object) -> None:
    """Raise `Discrepancy` unless `holds`."""
    if not holds:
        raise Discrepancy(" ".join((what, *map(repr, seen))))


def plain(reply: r.Reply) -> m.Answer:
    """A reply as the model says it."""
    if isinstance(reply, r.DecisionReply):
        d = reply.decided
        return (
            "decision", reply.sequence, reply.at_us, reply.request_id, d.line_id, d.transaction_id, int(d.outcome),
            d.reasons, d.currency, d.requested_minor, d.held_minor, d.available_minor, d.event_us, d.expires_us,
            d.review_deadline_us, d.step_up_expires_us, d.block_id, d.replaces_event_us, d.step_up_level,
        )  # fmt: skip
    if isinstance(reply, r.HoldReply):
        return ("hold", reply.currency, _row(reply.purchase)[:19], reply.to_credit_minor)
    if isinstance(reply, r.PaymentReply):
        return ("payment", reply.currency, _row(reply.payment)[:8], reply.available_minor)
    if isinstance(reply, r.LineReply):
        block = _row(reply.block)[:7] if reply.block else None
        return ("line", reply.sequence, reply.at_us, line_row(_row(reply.line)), block, reply.lifted)
    if isinstance(reply, r.AnnotationReply):
        return ("annotation", reply.decision_sequence, int(reply.label), reply.actor_id, reply.at_us)
    if isinstance(reply, r.Refusal):
        return ("refused", reply.family, reply.reason)
    if isinstance(reply, r.Settled):
        return ("settled", reply.holds)
    assert isinstance(reply, r.Failed)
    return ("failed", reply.family, reply.reason)


def _row(value: object) -> list[Any]:
    row: list[Any] = _decode(_encode(value))
    return row


def balance(books: list[int], account: int, layer: int = POSTED_LAYER) -> int:
    """Debits minus credits."""
    at = 4 * account + 2 * layer
    return books[at] - books[at + 1]


def line_row(row: list[Any]) -> m.Answer:
    """A stored line as the model says it, its accounts read as balances."""
    line_id, currency, _product, _zone, opened_us, _reference, life, books, blocks = row[:9]
    held = balance(books, UNUSED, PENDING_LAYER)
    owed = balance(books, PRINCIPAL)
    unused, drawn = -balance(books, UNUSED), -balance(books, DRAWN)
    expect(drawn == owed, "drawn differs from outstanding (18)", drawn, owed)
    for layer in (PENDING_LAYER, POSTED_LAYER):
        expect(sum(balance(books, a, layer) for a in range(8)) == 0, "debits and credits differ (2)", books)
    expect(balance(books, SUSPENSE) == 0, "suspense is not empty", books)
    expect(unused + drawn == -balance(books, UNUSED) + owed, "limit is not unused plus drawn (18)", books)
    blocks = [block[:7] for block in blocks]
    return (line_id, currency, opened_us, life, unused + drawn, held, owed, -balance(books, CREDIT), blocks)


class Chain:
    """One customer's journal as followed so far: its hash chain, its books, and what happened to each hold."""

    def __init__(self, key: m.Key) -> None:
        self.key = key
        self.entries: list[EntryRow] = []
        self.books: dict[str, list[int]] = {}
        self.overdrawn: set[str] = set()
        self._head = bytes(32)
        self._line_of: dict[str, str] = {}
        self._left: dict[str, int] = {}
        self._lapses: dict[str, tuple[int, int]] = {}

    def follow(self, rows: list[EntryRow]) -> list[EntryRow]:
        """Take the whole journal again; return what is new in it."""
        known = len(self.entries)
        expect(rows[:known] == self.entries, "an entry changed or vanished (4)", self.key)
        for row in rows[known:]:
            self._take(row)
        return rows[known:]

    def _take(self, row: EntryRow) -> None:
        number = len(self.entries) + 1
        expect(row.sequence == number, "sequence is not dense (5)", row.sequence, number)
        expect(not self.entries or row.at_us >= self.entries[-1].at_us, "time went back", number)
        header = _encode((*self.key, row.sequence, row.at_us, row.tag, row.request_id))
        sizes = b"%d.%d.%d." % (len(header), len(row.clear), len(row.sealed))
        digest = sha256(self._head + sizes + header + row.clear + row.nonce + row.sealed).digest()
        expect(row.hash == digest, "the chain breaks (5)", number)
        self._head = digest
        event, transfers = _decode(row.clear)[:2]
        expect(event[0] == row.tag, "filed under another kind", number)
        self._happened(row.tag, event, row)
        self._post(self._line_of_event(row.tag, event), transfers, row)
        self.entries.append(row)

    def _happened(self, tag: int, event: list[Any], row: EntryRow) -> None:
        name = event[2] if tag == m.DECIDED else event[1]
        left = self._left.get(name, 0)
        if tag == m.DECIDED:
            # A purchase without a hold may be decided again; one that has or had a hold never.
            expect(name not in self._left, "a second hold for one purchase", name)
            line_id, held = event[1], event[12]
            self._line_of[name] = line_id
            if held:
                free = self.free(line_id, row.at_us)
                self._lapses[name] = (event[15], event[16])
                expect(0 < held <= free, "a hold beyond what was available (14)", row.sequence, held, free)
                self._left[name] = held
        elif tag == m.RAISED:
            free = self.free(self._line_of[name], row.at_us)
            expect(left > 0 and 0 < event[2] <= free, "raised beyond what was available (14)", row.sequence)
            self._left[name] += event[2]
        elif tag in (m.GIVEN_UP, m.ENDED):
            expect(left > 0 and event[2] == left, "a hold ended twice, or by half (13)", name, event[2], left)
            self._left[name] = 0
        elif tag == m.TAKEN:
            _, _, captured, released, forced = event[:5]
            expect(bool(forced) is (left == 0), "force is for holds that ended, and only force (13)", name)
            expect(forced or captured + released <= left, "more captured than held", name)
            self._left[name] -= 0 if forced else captured + released
        elif tag == m.PASSED:
            self._lapses[name] = (self._lapses[name][0], 0)
        elif tag == m.PAID:
            self._line_of[f"payment {event[2]}"] = event[1]

    def free(self, line_id: str, at_us: int) -> int:
        """Unused credit that no hold reserves: none whose time is not over."""
        books = self.books[line_id]
        over = [
            name
            for name, (expires_us, review_us) in self._lapses.items()
            if self._line_of[name] == line_id and at_us >= min(expires_us, review_us or expires_us)
        ]
        freed = sum(self._left[name] for name in over)
        return freed - balance(books, UNUSED) - balance(books, UNUSED, PENDING_LAYER)

    def _line_of_event(self, tag: int, event: list[Any]) -> str:
        if tag in (m.OPENED, m.DECIDED, m.PAID, m.BLOCKED, m.LIFTED, m.SHUT, m.USED):
            line_id: str = event[1]
            return line_id
        if tag == m.RETURNED:
            return self._line_of[f"payment {event[1]}"]
        return self._line_of.get(str(event[1]), "")

    def _post(self, line_id: str, transfers: list[list[Any]], row: EntryRow) -> None:
        if not transfers:
            return
        books = self.books.setdefault(line_id, [0] * 32)
        before = self.free(line_id, row.at_us)
        for debit, credit, layer, amount in transfers:
            expect(type(amount) is int and 0 < amount < 2**63, "an amount out of bounds (10)", amount)
            expect(debit != credit and layer in (0, 1), "a transfer to itself (1)", row.sequence)
            books[4 * debit + 2 * layer] += amount
            books[4 * credit + 2 * layer + 1] += amount
        if self.free(line_id, row.at_us) < min(before, 0):
            self.overdrawn.add(line_id)


class Auditor:
    """Holds what is stored against the model, customer by customer."""

    def __init__(self) -> None:
        self.chains: dict[m.Key, Chain] = {}

    def audit(self, snapshot: Snapshot, key: m.Key, model: Model) -> list[EntryRow]:
        """Compare everything stored of one customer with the model; return its new entries."""
        expected = model.customers.get(key)
        stored = snapshot.customer(key)
        if expected is None:
            expect(stored is None, "a customer out of nowhere", key)
            return []
        expect(stored is not None, "a customer is missing", key)
        assert stored is not None
        chain = self.chains.setdefault(key, Chain(key))
        new = chain.follow(list(snapshot.entries(key, after=0, limit=EVERYTHING)))
        told = [(e.tag, e.at_us, e.request_id) for e in chain.entries]
        expect(told == expected.journal, "the journal tells another story", key, told[-3:], expected.journal[-3:])
        sequence, last_us, head, lines = _decode(stored.state)[:4]
        expect(stored.sequence == sequence == len(told), "sequence", sequence)
        expect((last_us, head) == (chain.entries[-1].at_us, chain.entries[-1].hash), "head of the chain", key)
        self._audit_lines(chain, lines, expected)
        self._audit_purchases(snapshot, key, expected, stored.next_lapse_us)
        payments = [_decode(row.state)[:8] for row in snapshot.payments(key)]
        expect(payments == [expected.payments[i].row() for i in sorted(expected.payments)], "payments", key, payments)
        return new

    def _audit_lines(self, chain: Chain, lines: list[Any], expected: m.Customer) -> None:
        rows = [line_row(line) for line in lines]
        expect(rows == [line.row() for line in expected.lines.values()], "lines", rows, expected.lines)
        for line in lines:
            books = chain.books[line[0]]
            expect(line[7] == books, "counters are not the sums of the entries (3)", line[7], books)
            free, may = chain.free(line[0], expected.last_us), expected.lines[line[0]].overdrawn
            expect(free >= 0 or may, "available below zero (14)", line[0], free)
            expect(may or line[0] not in chain.overdrawn, "overdrawn without force (14)", line[0])
            unused = expected.lines[line[0]].credits
            expect(line[10] == unused, "credit is not of whom it should be", line[10], unused)
            expect(sum(credit[1] for credit in unused) == -balance(books, CREDIT), "credit of a line", unused)
            mine = [p for p in expected.purchases.values() if p.line_id == line[0]]
            held = sum(p.left for p in mine if p.state == m.PENDING)
            expect(line[9] == sum(p.state == m.PENDING for p in mine), "open holds are not counted right", line[9])
            expect(held == balance(books, UNUSED, PENDING_LAYER), "held is not the sum of open holds (11)", held)
            expect(sum(p.owed for p in mine) == balance(books, PRINCIPAL), "owed is not the sum of purchases", mine)

    def _audit_purchases(self, snapshot: Snapshot, key: m.Key, expected: m.Customer, next_lapse_us: int) -> None:
        stored = snapshot.purchases(key, after="", limit=EVERYTHING, only_open=False)
        purchases = [_decode(row.state)[:19] for row in stored]
        wanted = [expected.purchases[i].row() for i in sorted(expected.purchases)]
        if purchases != wanted:
            found, missed = [p for p in purchases if p not in wanted], [p for p in wanted if p not in purchases]
            raise Discrepancy(f"purchases of {key}: found {found}, wanted {missed}")
        for row, p in zip(stored, (expected.purchases[i] for i in sorted(expected.purchases)), strict=True):
            whole = p.captured + p.released + p.expired + p.left
            expect(p.authorised == whole and p.left >= 0, "authorised is not the sum of its parts (12)", p)
            expect(p.state == m.PENDING or not p.left, "an ended hold has something left (13)", p)
            expect(p.forced <= p.expired and p.refunded <= p.captured + p.forced, "more than held", p)
            expect(not (p.review_us and p.captured + p.forced), "taken although no reviewer passed it", p)
            expect(row.lapses_us == (p.lapses_us if p.state == m.PENDING else 0), "lapse of a row", row)
            expect(row.owed_since == (p.owed_since if p.owed else 0), "owed since, of a row", row)
            if p.state == m.PENDING:
                expect(0 < next_lapse_us <= p.lapses_us, "a hold would lapse unnoticed (16)", p)
