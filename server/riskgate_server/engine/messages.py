"""
Messages to customers: as they wait in the store, sealed, and as they are handed to a gateway.

How each is worded is the edge's business.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from riskgate_server.domain.identity.grants import Purpose


class Channel(IntEnum):
    """How a message reaches a phone."""

    SMS = 1
    PUSH = 2


def message_id_of(sequence: int, number: int) -> str:
    """Name a customer's message by the one entry that tells of it, and its number beside others of that entry."""
    return f"m-{sequence}-{number}"


def entry_of(message_id: str) -> int:
    """
    Return the sequence of the entry that tells of a message: what it came to is told by a later one.

    Raises:
        ValueError: it is no message's id.
    """
    _, sequence, _ = message_id.split("-")
    return int(sequence)


class CodeMessage(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """
    A one-time code. The code is not in it: `key_id` and `challenge_id` give it again when it is sent.

    Amount and payee are those of the purchase it is for, empty otherwise.
    """

    number: str
    language: str
    purpose: Purpose
    key_id: int
    challenge_id: str
    expires_us: int
    amount_minor: int = 0
    currency: str = ""
    payee: str = ""


class NoticeMessage(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """A notice that something about the customer's account changed: `notice` names the text, such as FACTOR_BOUND."""

    number: str
    language: str
    notice: str
    expires_us: int


Payload = CodeMessage | NoticeMessage

encode_payload = msgspec.msgpack.Encoder().encode
decode_payload = msgspec.msgpack.Decoder(Payload).decode


class Message(msgspec.Struct, frozen=True, gc=False):
    """
    A message as a gateway gets it: a person's data, which is handed over and kept nowhere.

    Attributes:
        id: the idempotency key: equal for every attempt, and for no two messages of anybody. Tells nothing of whom it
            is for.
        destination: E.164 number for SMS, the push service's token for PUSH.
        template: names the text, for gateways that word messages themselves; `parameters` are what it is filled with.
        text: the whole text, in `language`.
        not_after_us: when the message is worthless, UTC µs. It is never sent later.
    """

    id: str
    tenant_id: str
    channel: Channel
    destination: str
    template: str
    parameters: dict[str, str]
    text: str
    language: str
    not_after_us: int

    def __repr__(self) -> str:
        """Tell which message it is, and not what it says or to whom."""
        return f"Message({self.id})"
