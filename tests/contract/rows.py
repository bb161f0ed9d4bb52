"""Rows for stores: to a store they are ids, numbers and bytes, so any will do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from riskgate_server.engine.rows import (
    BatchRow,
    BatchWrite,
    CustomerRow,
    EntryRow,
    IdentityRow,
    MessageRow,
    PaymentRow,
    PurchaseRow,
    RequestRow,
    ScopeRow,
)
from riskgate_server.engine.storing import Store

Key = tuple[str, str]
ADA: Final = ("acme", "ada")
BO: Final = ("acme", "bo")
ADA_ELSEWHERE: Final = ("zeta", "ada")
INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)


def customer(key: Key = ADA, sequence: int = 1, next_lapse_us: int = 0, state: bytes = b"state") -> CustomerRow:
    return CustomerRow(key, sequence, next_lapse_us, state, b"profile")


def purchase(name: str = "t1", key: Key = ADA, *, lapses_us: int = 0, owed_since: int = 0) -> PurchaseRow:
    return PurchaseRow(key, name, lapses_us, owed_since, f"state of {name}".encode())


def payment(name: str = "p1", key: Key = ADA) -> PaymentRow:
    return PaymentRow(key, name, f"state of {name}".encode())


def request(name: str = "r1", key: Key = ADA, *, at_us: int = 10, reply: bytes = b"reply") -> RequestRow:
    return RequestRow(key, name, b"fingerprint", 1, at_us, reply)


def identity(key: Key = ADA, state: bytes = b"sealed identity") -> IdentityRow:
    return IdentityRow(key, state)


def scope(name: bytes = b"number", tenant_id: str = "acme", *, kind: int = 1, state: bytes = b"budget") -> ScopeRow:
    return ScopeRow((tenant_id, kind, name), state)


def message(name: str = "m1", key: Key = ADA, *, due_us: int = 10) -> MessageRow:
    return MessageRow(key, name, due_us, b"sealed message")


def entry(sequence: int = 1, position: int = 1, key: Key = ADA, *, tag: int = 2, batch: int = 1) -> EntryRow:
    at_us, request_id = 100 + position, f"r{position}"
    return EntryRow(key, sequence, position, batch, at_us, tag, request_id, b"clear", b"nonce", b"sealed", b"hash")


def batch(sequence: int = 1, first: int = 1, count: int = 1) -> BatchRow:
    return BatchRow(sequence, 100, first, count, b"root", b"hash")


def batch_write(*rows: Any) -> BatchWrite:
    """One commit's worth of rows, each put where its kind belongs."""

    def of(kind: type) -> list[Any]:
        return [row for row in rows if isinstance(row, kind)]

    batches: Iterable[BatchRow] = of(BatchRow)
    return BatchWrite(
        customers=of(CustomerRow),
        purchases=of(PurchaseRow),
        payments=of(PaymentRow),
        requests=of(RequestRow),
        entries=of(EntryRow),
        batch=next(iter(batches), None),
        identities=of(IdentityRow),
        scopes=of(ScopeRow),
        messages=of(MessageRow),
    )


def commit(store: Store, *rows: Any) -> None:
    with store.transaction() as tx:
        written = batch_write(*rows)
        tx.lock([row.key for row in written.customers])
        tx.scopes([row.scope for row in written.scopes])
        tx.write(written)


def everything() -> tuple[Any, ...]:
    """Return a row of every kind."""
    return customer(), purchase(), payment(), request(), entry(), batch(), identity(), scope(), message()
