"""Facts across customers that somebody with the store changed, planted or took out: verification finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from riskgate_client.phone import AndroidPhone
from riskgate_server.domain.identity.limits import PROOF_LIMITS
from riskgate_server.engine import commands as c
from riskgate_server.engine.across import ScopeKind, offered_scope
from riskgate_server.engine.replies import CodeReply
from riskgate_server.engine.rows import BatchWrite, ScopeKey, ScopeRow
from riskgate_server.engine.storing import Store
from tests import factories as f
from tests.bank import KEY, NUMBER
from tests.devices import DeviceBank

MARK = NUMBER.encode()
DAY = f.DAY_US


@pytest.fixture
def bank(store: Store) -> DeviceBank:
    """A customer with a phone that was guessed at, and a device."""
    bank = DeviceBank(store)
    bank.phone()
    bank.enrol(AndroidPhone(), bank.binding_grant())
    bank.wrong(bank.sent())
    assert bank.verify() == []
    return bank


def write(bank: DeviceBank, *rows: ScopeRow) -> None:
    with bank.store.transaction() as tx:
        tx.scopes([row.scope for row in rows])
        tx.write(BatchWrite([], [], [], [], [], None, scopes=list(rows)))


def of(kind: ScopeKind) -> ScopeKey:
    """The scope of that kind that concerns the customer."""
    ids = {ScopeKind.NUMBER: MARK, ScopeKind.PREFIX: MARK[:-3], ScopeKind.COUNTRY: b"CN"}
    return (f.TENANT, kind, ids.get(kind, b""))


def stored(bank: DeviceBank, scope: ScopeKey) -> Any:
    with bank.store.snapshot() as snapshot:
        (row,) = snapshot.scopes([scope])
    return msgspec.msgpack.decode(row.state)


def changed(bank: DeviceBank, scope: ScopeKey, change: Callable[[Any], Any]) -> None:
    write(bank, ScopeRow(scope, msgspec.msgpack.encode(change(stored(bank, scope)))))


BUDGETS = [ScopeKind.NUMBER, ScopeKind.COUNTRY, ScopeKind.SENDS, ScopeKind.WRONG_CODES]


def counts(state: Any, by: int) -> Any:
    """The same budgets with other counts."""
    if state and all(isinstance(part, int) for part in state):
        return [state[0], state[1] + by]
    return [counts(part, by) for part in state]


@pytest.mark.parametrize("by", [1, -1], ids=["more", "less"])
@pytest.mark.parametrize("kind", BUDGETS, ids=lambda kind: kind.name)
def test_a_budget_that_was_changed_is_found(bank: DeviceBank, kind: ScopeKind, by: int) -> None:
    """Less, and more can be guessed or sent; more, and nobody of the tenant gets in."""
    changed(bank, of(kind), lambda state: counts(state, by))

    (fault,) = bank.verify()
    assert fault.startswith(f"acme: what is known across customers of {kind.name}")
    assert fault.endswith("is not what the journal gives")


@pytest.mark.parametrize("kind", [*BUDGETS, ScopeKind.PREFIX], ids=lambda kind: kind.name)
def test_what_was_counted_and_is_taken_out_is_found(bank: DeviceBank, kind: ScopeKind) -> None:
    write(bank, ScopeRow(of(kind), b""))

    (fault,) = bank.verify()
    assert fault.startswith(f"acme: what is known across customers of {kind.name}")


def test_a_number_that_no_message_went_to_is_found(bank: DeviceBank) -> None:
    changed(bank, of(ScopeKind.PREFIX), lambda state: [[*state[0], [b"planted", bank.clock.us]]])

    assert len(bank.verify()) == 1


def test_the_claim_of_a_key_that_nobody_enrolled_is_found(bank: DeviceBank) -> None:
    """Its owner could never enrol it."""
    write(bank, ScopeRow((f.TENANT, ScopeKind.CREDENTIAL, b"planted"), msgspec.msgpack.encode(["bo"])))

    assert bank.verify() == ["acme: 2 marks of devices' keys are stored, the journal has 1"]


def test_a_budget_of_a_number_that_nobody_has_is_found(bank: DeviceBank) -> None:
    state = stored(bank, of(ScopeKind.NUMBER))
    write(bank, ScopeRow((f.TENANT, ScopeKind.NUMBER, b"planted"), msgspec.msgpack.encode(state)))

    assert len(bank.verify()) == 1


@pytest.mark.parametrize("kind", [*BUDGETS, ScopeKind.PREFIX, ScopeKind.OFFERED, 99], ids=str)
def test_what_cannot_be_read_is_found(bank: DeviceBank, kind: int) -> None:
    write(bank, ScopeRow((f.TENANT, kind, b"planted"), b"\xc1"))

    (fault,) = bank.verify()
    assert fault.endswith("706c616e746564 is not what the journal gives")


def test_what_is_counted_rightly_is_never_a_fault(bank: DeviceBank) -> None:
    """Over days, with messages sent again, given back and refused, a guess, an offer, and somebody erased."""
    for day in range(3):
        for number in range(2):
            bank.clock.wait(11 * f.MINUTE_US + number)
            reply = bank.send()
            assert isinstance(reply, CodeReply), reply
            assert bank.verify() == []
            bank.clock.wait(PROOF_LIMITS.resend_us)
            again = bank.ask(c.ResendCode, challenge_id=reply.code.challenge_id)
            assert isinstance(again, CodeReply), again
            settle(bank, again, ("DELIVERED", "UNSENT", "REFUSED")[(day + number) % 3])
            bank.wrong(reply.code.challenge_id)
            assert bank.verify() == []
        bank.do(f.check(f"t-{day}", 1, request_id=f"offer {day}", grant=b"of nobody"))
        bank.clock.wait(30 * f.HOUR_US)
        assert bank.verify() == []
    with bank.store.snapshot() as snapshot:
        assert snapshot.scopes([offered_scope(f.TENANT, b"of nobody")])
    bank.sent()
    bank.do(f.close("close"))
    bank.ask(c.EraseCustomer, reason_code="ASKED", actor_id="olga")
    assert bank.verify() == []
    bank.vault.forget(KEY)
    assert bank.verify() == []
    changed(bank, of(ScopeKind.COUNTRY), lambda state: counts(state, 9))
    assert len(bank.verify()) == 1


def settle(bank: DeviceBank, reply: CodeReply, outcome: str) -> None:
    unsent = reply.code.challenge_id if outcome == "UNSENT" else ""
    bank.do(
        c.SettleMessage(
            tenant_id=f.TENANT, customer_id=f.CUSTOMER, request_id="", message_id=reply.code.message_id,
            outcome=outcome, unsent_challenge=unsent,
        )
    )  # fmt: skip


def test_what_no_longer_counts_is_not_looked_at(bank: DeviceBank) -> None:
    bank.clock.wait(2 * DAY)
    bank.do(f.check("t-1", 1))
    changed(bank, of(ScopeKind.SENDS), lambda state: counts(state, 1))

    assert bank.verify() == []
