"""The ids that messages have at gateways."""

from __future__ import annotations

import msgspec

from riskgate_server.engine.messages import CodeMessage, encode_payload
from riskgate_server.engine.rows import MessageRow
from riskgate_server.engine.sealing import seal_message
from tests import factories as f
from tests.bank import KEY
from tests.post import Post


def test_an_id_is_a_messages_own_and_tells_nothing() -> None:
    """A store that was restored gives the same number to another message: a gateway must not take it for the first."""
    post = Post()
    other = (f.TENANT, "bo")
    post.bank.do(f.open_line(customer_id="bo"))
    reply = post.bank.enroll_phone()
    assert reply is not None
    with post.store.snapshot() as snapshot:
        (row,) = snapshot.messages(KEY)
    keys = post.bank.vault.keys([KEY, other])
    (payload,) = post.bank.messages()
    assert isinstance(payload, CodeMessage)

    def sealed(nonce: bytes, key: tuple[str, str] = KEY) -> MessageRow:
        data_key = keys[key]
        assert isinstance(data_key, bytes)
        text = seal_message(
            key, row.message_id, encode_payload(payload), data_key=data_key, nonce=nonce, sealer=post.envelopes._sealer
        )
        return MessageRow(key, row.message_id, 0, text)

    restored, elsewhere, later = sealed(bytes(12)), sealed(bytes(12), other), msgspec.structs.replace(row, due_us=9)
    opened = post.envelopes.open([row, later, restored, elsewhere])
    first, again, second, third = [found.message.id for found in opened if found]
    post.close()

    assert first == again
    assert len({first, second, third}) == 3
    assert KEY[1] not in first


def test_of_several_messages_one_that_cannot_be_read_spoils_no_other() -> None:
    post = Post()
    post.bank.enroll_phone()
    with post.store.snapshot() as snapshot:
        (row,) = snapshot.messages(KEY)
    damaged = msgspec.structs.replace(row, sealed=row.sealed[:-1])
    unknown = msgspec.structs.replace(row, key=(f.TENANT, "nobody"))
    opened = post.envelopes.open([damaged, row, unknown])
    post.close()

    assert [found is None for found in opened] == [True, False, True]
