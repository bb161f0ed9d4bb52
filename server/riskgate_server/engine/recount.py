"""
Facts across customers, counted anew from what the journal says of each, beside what is stored.

Of a budget only what still counts: once its period is over nobody asks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from riskgate_server.domain.calendar import DAY_US
from riskgate_server.domain.events import Event
from riskgate_server.domain.identity.budgets import BUCKETS, UNSPENT, Budget
from riskgate_server.domain.identity.events import CodeSent, CodeUnsent, ProofFailed
from riskgate_server.domain.identity.identity import Identity
from riskgate_server.domain.identity.limits import HOUR_US
from riskgate_server.engine import across
from riskgate_server.engine.across import ScopeKind
from riskgate_server.engine.report import Report
from riskgate_server.engine.rows import ScopeKey, ScopeRow
from riskgate_server.engine.storing import Snapshot

CHUNK: Final = 2_000
_LONGEST_US: Final = DAY_US + DAY_US // BUCKETS
"""What is older counts in no budget any more."""


class Recount:
    """Of one store, up to `end_us`: when its last commit was, UTC µs."""

    def __init__(self, end_us: int) -> None:
        self._end_us = end_us
        self._counts: dict[ScopeKey, dict[int, Counter[int]]] = {}
        """By scope and period in µs: how much in which bucket."""
        self._seen: dict[ScopeKey, dict[bytes, set[int]]] = {}
        """By prefix of numbers: when messages went to which of them."""
        self._nowhere: dict[str, Counter[int]] = {}
        """By tenant: messages to countries that nobody can read any more, for the customers were erased."""
        self._given_up: set[str] = set()
        self.claimed: Counter[str] = Counter()
        """By tenant: how many marks of devices' keys are customers'."""

    def give_up(self, tenant_id: str) -> None:
        """Compare nothing of a tenant any more: a customer's journal cannot be read to its end."""
        self._given_up.add(tenant_id)

    def take(self, tenant_id: str, event: Event, at_us: int, identity: Identity) -> None:
        """Count what an event of a customer was counted as; `identity` is theirs after it."""
        match event:
            case CodeSent():
                self._take_send(tenant_id, event.factor_id, at_us, identity, 1)
            case CodeUnsent():
                for challenge in identity.codes:
                    if challenge.challenge_id == event.challenge_id:
                        self._take_send(tenant_id, challenge.factor_id, challenge.sent_us, identity, -1)
            case ProofFailed(reason="CODE_WRONG"):
                self._count(across.wrong_code_scope(tenant_id), HOUR_US, at_us, 1)

    def _take_send(self, tenant_id: str, factor_id: str, at_us: int, identity: Identity, times: int) -> None:
        factor = next((factor for factor in identity.factors if factor.factor_id == factor_id), None)
        if factor is None or self._is_over(at_us):
            return
        recipient = across.recipient_of(factor)
        for scope, period_us in across.charged_by_send(tenant_id, recipient):
            if scope[1] == ScopeKind.COUNTRY and not factor.region:
                self._nowhere.setdefault(tenant_id, Counter())[_bucket(at_us, period_us)] += times
            else:
                self._count(scope, period_us, at_us, times)
        if times > 0:
            prefix = (tenant_id, ScopeKind.PREFIX, recipient.prefix)
            self._seen.setdefault(prefix, {}).setdefault(recipient.mark, set()).add(at_us)

    def _count(self, scope: ScopeKey, period_us: int, at_us: int, times: int) -> None:
        if not self._is_over(at_us):
            self._end_us = max(self._end_us, at_us)
            budgets = self._counts.setdefault(scope, {})
            budgets.setdefault(period_us, Counter())[_bucket(at_us, period_us)] += times

    def _is_over(self, at_us: int) -> bool:
        return at_us <= self._end_us - _LONGEST_US

    def compare(self, snapshot: Snapshot, report: Report) -> None:
        """Compare with what is stored; faults go to the report."""
        claims: Counter[str] = Counter()
        for row in _scopes(snapshot):
            tenant_id, kind, _ = row.scope
            claims[tenant_id] += kind == ScopeKind.CREDENTIAL
            try:
                right = self._is_right(row)
            except Exception:  # noqa: BLE001 - whatever a damaged row breaks is a finding, not a crash
                right = False
            if not right:
                report.fault(f"{_named(row.scope)} is not what the journal gives")
        for scope in sorted(self._counts.keys() | self._seen.keys()):
            if not self._is_right(ScopeRow(scope, b"")):
                report.fault(f"{_named(scope)} is not stored")
        for tenant_id, number in sorted(claims.items()):
            # Of one that is missing, or another's, its customer was told.
            if number > self.claimed[tenant_id] and tenant_id not in self._given_up:
                enrolled = self.claimed[tenant_id]
                report.fault(f"{tenant_id}: {number} marks of devices' keys are stored, the journal has {enrolled}")

    def _is_right(self, row: ScopeRow) -> bool:
        """Compare a row with what was counted for it, which is then forgotten; empty for one that is not stored."""
        tenant_id, kind, _ = row.scope
        counted, times = self._counts.pop(row.scope, {}), self._seen.pop(row.scope, {})
        stored: dict[int, Budget] = {}
        marks: dict[bytes, int] = {}
        if row.state:
            stored = dict(across.budgets_in(kind, row.state))
            if kind in {ScopeKind.PREFIX, ScopeKind.OFFERED}:
                marks = dict(across.seen_in(row.state))
        # Who offered a grant that was not theirs is not in the journal by its mark.
        if tenant_id in self._given_up or kind == ScopeKind.OFFERED:
            return True
        unread = self._nowhere.get(tenant_id, Counter()) if kind == ScopeKind.COUNTRY else Counter()
        return self._is_seen(times, marks) and all(
            self._is_spent(period_us, counted.get(period_us, Counter()), stored.get(period_us, UNSPENT), unread)
            for period_us in counted.keys() | stored.keys()
        )

    def _is_spent(self, period_us: int, counted: Counter[int], budget: Budget, unread: Counter[int]) -> bool:
        """Whether a budget has what was counted, and of what cannot be read no more than there was."""
        first = _bucket(self._end_us - period_us, period_us)
        stored = Counter(dict(budget.buckets))
        live = {bucket for bucket in (*counted, *stored) if bucket >= first}
        return all(0 <= stored[bucket] - counted[bucket] <= unread[bucket] for bucket in live)

    def _is_seen(self, times: Mapping[bytes, Collection[int]], marks: Mapping[bytes, int]) -> bool:
        """Whether numbers that messages went to within a day are there, each with a time when one did."""
        since = self._end_us - DAY_US
        wanted = {mark for mark, at_us in times.items() if max(at_us) > since}
        return wanted <= marks.keys() and all(
            at_us in times.get(mark, ()) for mark, at_us in marks.items() if at_us > since
        )


def _bucket(at_us: int, period_us: int) -> int:
    return at_us // (period_us // BUCKETS)


def _named(scope: ScopeKey) -> str:
    tenant_id, kind, scope_id = scope
    name = next((known.name for known in ScopeKind if known == kind), str(kind))
    return f"{tenant_id}: what is known across customers of {name} {scope_id.hex()[:16]}".rstrip()


def _scopes(snapshot: Snapshot) -> Iterator[ScopeRow]:
    after: ScopeKey = ("", 0, b"")
    while rows := snapshot.all_scopes(after=after, limit=CHUNK):
        yield from rows
        after = rows[-1].scope
