"""What lies beside the customers' rows, taken out or changed by somebody with the file: verification finds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from riskgate_client.phone import AndroidPhone
from riskgate_server.crypto.seal import Sealer
from riskgate_server.engine import commands as c
from riskgate_server.engine import sealing
from riskgate_server.engine.across import ScopeKind
from riskgate_server.engine.messages import CodeMessage, NoticeMessage, decode_payload
from riskgate_server.engine.rows import MessageRow
from tests import factories as f
from tests.bank import KEY
from tests.devices import DeviceBank

GIVEN_AWAY = "acme/ada: the key of a device is not stored as the customer's"


@pytest.fixture
def bank() -> DeviceBank:
    bank = DeviceBank()
    bank.phone()
    bank.enrol(AndroidPhone(), bank.binding_grant())
    bank.sent()
    assert bank.verify() == []
    return bank


def tables_of(bank: DeviceBank) -> Any:
    store: Any = bank.store
    return store._tables


def claim(tables: Any) -> Any:
    (scope,) = [scope for scope in tables.scopes if scope[1] == ScopeKind.CREDENTIAL]
    return scope


def given_to_another(tables: Any) -> None:
    scope = claim(tables)
    tables.scopes[scope] = msgspec.structs.replace(tables.scopes[scope], state=msgspec.msgpack.encode(["bo"]))


def taken_out(tables: Any) -> None:
    del tables.scopes[claim(tables)]


def garbled(tables: Any) -> None:
    scope = claim(tables)
    tables.scopes[scope] = msgspec.structs.replace(tables.scopes[scope], state=b"\xc1")


@pytest.mark.parametrize("damage", [given_to_another, taken_out, garbled])
def test_a_device_key_that_could_be_enrolled_for_another_is_found(
    bank: DeviceBank, damage: Callable[[Any], None]
) -> None:
    damage(tables_of(bank))

    assert bank.verify() == [GIVEN_AWAY]


def test_the_key_of_a_revoked_device_is_the_customers_still(bank: DeviceBank) -> None:
    (device,) = bank.identity().devices
    bank.revoke(device.credential_id)
    assert bank.verify() == []
    taken_out(tables_of(bank))

    assert bank.verify() == [GIVEN_AWAY]


def test_a_code_that_will_never_be_sent_is_found(bank: DeviceBank) -> None:
    messages = tables_of(bank).messages
    message_id = max((i for key, i in messages if key == KEY), key=lambda i: int(i.split("-")[1]))
    del messages[KEY, message_id]

    assert bank.verify() == [f"acme/ada: message {message_id} waits to be sent and is not stored"]


def bound_another_phone(bank: DeviceBank) -> None:
    bank.clock.wait(f.HOUR_US)
    bank.phone("+8613900000000", bank.binding_grant())


def revoked_the_device(bank: DeviceBank) -> None:
    (device,) = bank.identity().devices
    bank.revoke(device.credential_id)


def revoked_all_devices(bank: DeviceBank) -> None:
    bank.ask(c.RevokeAllDevices, reason_code="LOST", actor_id="olga")


def revoked_the_phone(bank: DeviceBank) -> None:
    (phone,) = bank.queries.factors(KEY)
    bank.ask(c.RevokeFactor, factor_id=phone.factor_id, reason_code="LOST", actor_id="olga")


def made_recovery_codes(bank: DeviceBank) -> None:
    bank.clock.wait(f.HOUR_US)
    bank.ask(c.MakeRecoveryCodes, grant=bank.binding_grant())


@pytest.mark.parametrize(
    "change",
    [bound_another_phone, revoked_the_device, revoked_all_devices, revoked_the_phone, made_recovery_codes],
    ids=lambda change: change.__name__,
)
def test_a_notice_that_the_customer_will_never_get_is_found(
    bank: DeviceBank, change: Callable[[DeviceBank], None]
) -> None:
    """Of a phone or device that was bound, or made worthless: whoever took over the account takes it out."""
    messages = tables_of(bank).messages
    before = set(messages)
    change(bank)
    with bank.store.snapshot() as snapshot:
        names: dict[type, list[str]] = {NoticeMessage: [], CodeMessage: []}
        for row in snapshot.messages(KEY):
            if (KEY, row.message_id) not in before:
                names[type(opened(bank, row))].append(row.message_id)
    assert bank.verify() == []
    (message_id,) = names[NoticeMessage]
    del messages[KEY, message_id]

    assert bank.verify() == [f"acme/ada: message {message_id} waits to be sent and is not stored"]


def opened(bank: DeviceBank, row: MessageRow) -> object:
    (data_key,) = bank.vault.keys([KEY]).values()
    assert isinstance(data_key, bytes)
    return decode_payload(sealing.unseal_message(row, data_key, Sealer()))


def test_a_notice_that_was_delivered_is_not_missed(bank: DeviceBank) -> None:
    revoked_the_device(bank)
    messages = [message_id for key, message_id in tables_of(bank).messages if key == KEY]
    for message_id in messages:
        bank.do(
            c.SettleMessage(tenant_id=f.TENANT, customer_id=f.CUSTOMER, request_id="", message_id=message_id,
                            outcome="DELIVERED")
        )  # fmt: skip

    assert bank.verify() == []
    assert not tables_of(bank).messages


def test_a_message_that_was_put_back_is_found(bank: DeviceBank) -> None:
    messages = tables_of(bank).messages
    before = dict(messages)
    (where, row) = next(item for item in before.items() if item[0][0] == KEY)
    bank.do(
        c.SettleMessage(tenant_id=f.TENANT, customer_id=f.CUSTOMER, request_id="", message_id=where[1],
                        outcome="DELIVERED")
    )  # fmt: skip
    messages[where] = row

    assert bank.verify() == [f"acme/ada: message {where[1]} came to its end and would be sent again"]


def test_a_message_that_was_changed_is_found(bank: DeviceBank) -> None:
    messages = tables_of(bank).messages
    first, second, *_ = sorted(where for where in messages if where[0] == KEY)
    messages[first] = msgspec.structs.replace(messages[first], sealed=messages[second].sealed)

    (fault,) = bank.verify()
    assert fault.startswith(f"acme/ada: message {first[1]} does not open: ")


def test_no_message_of_who_was_erased_is_missed(bank: DeviceBank) -> None:
    bank.do(f.close("close"))
    bank.ask(c.EraseCustomer, reason_code="ASKED", actor_id="olga")

    assert bank.verify() == []
    assert not tables_of(bank).messages
