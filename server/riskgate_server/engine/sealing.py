"""
How state and journal entries become bytes: what is in clear, what is sealed, and what is chained.

An entry's hash covers the hash before it, the header, the clear part and the *ciphertext*, so the
chain still verifies after a customer's key was destroyed.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Final

import msgspec

from riskgate_server.domain.credit.line import CreditLine
from riskgate_server.domain.customer import Customer, CustomerKey
from riskgate_server.domain.events import Event, Happening, Sealed
from riskgate_server.domain.fraud.profile import EMPTY_PROFILE, Profile
from riskgate_server.domain.identity.identity import Identity
from riskgate_server.domain.ledger.holds import HoldState, Purchase
from riskgate_server.domain.ledger.postings import Transfer
from riskgate_server.domain.ledger.repayment import Payment
from riskgate_server.engine.ports import Sealer
from riskgate_server.engine.replies import Reply
from riskgate_server.engine.rows import (
    BatchRow,
    CustomerRow,
    EntryRow,
    IdentityRow,
    MessageRow,
    PaymentRow,
    PurchaseRow,
)
from riskgate_server.engine.storing import NoKey

NONCE_SIZE: Final = 12
REPLY_DIGEST_SIZE: Final = 16


class ClearPart(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    What anybody with the database may read of an entry. Stored, so fields may only follow at the end, with a default.

    The first entry that a request caused vouches for the request: it has its fingerprint, and the digest of the
    reply kept for it (empty for a purchase, whose reply is the entry itself).
    """

    event: Event
    transfers: tuple[Transfer, ...]
    fingerprint: bytes = b""
    reply_digest: bytes = b""


class _State(msgspec.Struct, frozen=True, gc=False, array_like=True):
    sequence: int
    last_us: int
    head: bytes
    lines: tuple[CreditLine, ...]
    erased: bool = False


encode: Final = msgspec.msgpack.Encoder().encode
_decode_clear: Final = msgspec.msgpack.Decoder(ClearPart).decode
_decode_sealed: Final[Callable[[bytes], Sealed]] = msgspec.msgpack.Decoder(Sealed).decode
_decode_state: Final = msgspec.msgpack.Decoder(_State).decode
_decode_identity: Final = msgspec.msgpack.Decoder(Identity).decode
_decode_profile: Final = msgspec.msgpack.Decoder(Profile).decode
decode_purchase: Final = msgspec.msgpack.Decoder(Purchase).decode
decode_payment: Final = msgspec.msgpack.Decoder(Payment).decode
decode_reply: Final[Callable[[bytes], Reply]] = msgspec.msgpack.Decoder(Reply).decode
encode_reply = encode
EMPTY_PROFILE_BYTES: Final = encode(EMPTY_PROFILE)
EVENT_TAGS: Final[dict[type, int]] = {event: event.__struct_config__.tag for event in Event.__args__}


def _header(key: CustomerKey, sequence: int, at_us: int, tag: int, request_id: str) -> bytes:
    return encode((key[0], key[1], sequence, at_us, tag, request_id))


def _chain(head: bytes, header: bytes, clear: bytes, nonce: bytes, sealed: bytes) -> bytes:
    # Lengths are in front of every part that may vary, so no two entries share a byte string.
    return sha256(
        b"%b%d.%d.%d.%b%b%b%b" % (head, len(header), len(clear), len(sealed), header, clear, nonce, sealed)
    ).digest()


def seal_entry(
    happening: Happening,
    *,
    key: CustomerKey,
    sequence: int,
    position: int,
    batch: int,
    writer: int,
    at_us: int,
    request_id: str,
    head: bytes,
    vouched: tuple[bytes, bytes],
    data_key: bytes,
    nonce: bytes,
    sealer: Sealer,
) -> EntryRow:
    """
    Return the entry as it will be stored.

    `vouched` is the fingerprint of the request and the digest of its reply, empty but on a request's first entry.
    """
    tag = EVENT_TAGS[type(happening.event)]
    header = _header(key, sequence, at_us, tag, request_id)
    clear = encode((happening.event, happening.transfers, *vouched))
    if happening.sealed is None:
        nonce = sealed = b""
    else:
        sealed = sealer.seal(data_key, nonce, header, encode(happening.sealed))
    digest = _chain(head, header, clear, nonce, sealed)
    return EntryRow(key, sequence, position, batch, at_us, tag, request_id, clear, nonce, sealed, digest, writer)


def reply_digest(reply: bytes) -> bytes:
    """Return what a journal entry keeps of a reply."""
    return sha256(reply).digest()[:REPLY_DIGEST_SIZE] if reply else b""


def entry_hash(row: EntryRow, head: bytes) -> bytes:
    """Recompute an entry's hash from what is stored and the hash of the entry before it."""
    header = _header(row.key, row.sequence, row.at_us, row.tag, row.request_id)
    return _chain(head, header, row.clear, row.nonce, row.sealed)


def open_clear(row: EntryRow) -> ClearPart:
    """Decode the clear part of an entry."""
    return _decode_clear(row.clear)


def open_secrets(row: EntryRow, data_key: bytes | NoKey, sealer: Sealer) -> Sealed | None:
    """Decrypt the sealed part of an entry; None when it has none, or when there is no key."""
    if not row.sealed or isinstance(data_key, NoKey):
        return None
    header = _header(row.key, row.sequence, row.at_us, row.tag, row.request_id)
    return _decode_sealed(sealer.open_sealed(data_key, row.nonce, header, row.sealed))


def seal_profile(
    key: CustomerKey, sequence: int, profile: bytes, *, data_key: bytes, nonce: bytes, sealer: Sealer
) -> bytes:
    """Return an encoded profile as it will be stored."""
    return nonce + sealer.seal(data_key, nonce, _profile_aad(key, sequence), profile)


def encode_state(customer: Customer) -> bytes:
    """Encode everything but the profile."""
    return encode((customer.sequence, customer.last_us, customer.head, customer.lines, customer.erased))


def _profile_aad(key: CustomerKey, sequence: int) -> bytes:
    return encode((key[0], key[1], sequence, "profile"))


def decode_customer(key: CustomerKey, state: bytes, profile: bytes = EMPTY_PROFILE_BYTES) -> Customer:
    """Decode a customer from the encoded state and, unless only the state is wanted, the encoded profile."""
    s = _decode_state(state)
    return Customer(key[0], key[1], s.sequence, s.last_us, s.head, s.lines, _decode_profile(profile), s.erased)


def unseal_profile(row: CustomerRow, data_key: bytes, sealer: Sealer) -> bytes:
    """Decrypt the customer's encoded profile."""
    nonce, text = row.profile[:NONCE_SIZE], row.profile[NONCE_SIZE:]
    return sealer.open_sealed(data_key, nonce, _profile_aad(row.key, row.sequence), text)


def seal_identity(
    key: CustomerKey, identity: Identity, *, data_key: bytes, nonce: bytes, sealer: Sealer
) -> IdentityRow:
    """Return what a customer can prove themselves with as it will be stored."""
    return IdentityRow(key, nonce + sealer.seal(data_key, nonce, encode((*key, "identity")), encode(identity)))


def unseal_identity(row: IdentityRow, data_key: bytes, sealer: Sealer) -> Identity:
    """Decrypt what a customer can prove themselves with."""
    nonce, text = row.state[:NONCE_SIZE], row.state[NONCE_SIZE:]
    return _decode_identity(sealer.open_sealed(data_key, nonce, encode((*row.key, "identity")), text))


_SEALED: Final = b"\xc1"
"""Begins a reply that is sealed: no MessagePack does (its specification leaves 0xc1 unused)."""


def seal_reply(
    key: CustomerKey, request_id: str, reply: Reply, *, data_key: bytes, nonce: bytes, sealer: Sealer
) -> bytes:
    """Return a reply that shows something of a person as it will be stored."""
    aad = encode((*key, "reply", request_id))
    return _SEALED + nonce + sealer.seal(data_key, nonce, aad, encode_reply(reply))


def is_sealed(stored: bytes) -> bool:
    """Whether a stored reply is sealed."""
    return stored[:1] == _SEALED


def open_reply(key: CustomerKey, request_id: str, stored: bytes, *, data_key: bytes, sealer: Sealer) -> Reply:
    """Return a reply that was stored sealed."""
    nonce, text = stored[1 : 1 + NONCE_SIZE], stored[1 + NONCE_SIZE :]
    return decode_reply(sealer.open_sealed(data_key, nonce, encode((*key, "reply", request_id)), text))


def seal_message(
    key: CustomerKey, message_id: str, payload: bytes, *, data_key: bytes, nonce: bytes, sealer: Sealer
) -> bytes:
    """Return a message as it waits in the store."""
    return nonce + sealer.seal(data_key, nonce, encode((*key, "message", message_id)), payload)


def unseal_message(row: MessageRow, data_key: bytes, sealer: Sealer) -> bytes:
    """Decrypt a message."""
    nonce, text = row.sealed[:NONCE_SIZE], row.sealed[NONCE_SIZE:]
    return sealer.open_sealed(data_key, nonce, encode((*row.key, "message", row.message_id)), text)


def purchase_row(key: CustomerKey, purchase: Purchase) -> PurchaseRow:
    """Return a purchase as it will be stored."""
    lapses_us = purchase.lapses_us if purchase.state is HoldState.PENDING else 0
    owed_since = purchase.owed_since if purchase.principal_minor else 0
    return PurchaseRow(key, purchase.transaction_id, lapses_us, owed_since, encode(purchase))


def payment_row(key: CustomerKey, payment: Payment) -> PaymentRow:
    """Return a payment as it will be stored."""
    return PaymentRow(key, payment.payment_id, encode(payment))


def merkle_root(hashes: list[bytes]) -> bytes:
    """Return the Merkle tree hash of RFC 9162 section 2.1.1 over entry hashes; at least one."""
    level = [sha256(b"\x00" + leaf).digest() for leaf in hashes]
    return _subtree(level)


def _subtree(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01" + _subtree(leaves[:split]) + _subtree(leaves[split:])).digest()


def batch_row(
    previous: BatchRow | None, *, at_us: int, first_position: int, hashes: list[bytes], writer: int
) -> BatchRow:
    """Return the row of one commit, chained to the commit before it."""
    sequence = previous.sequence + 1 if previous else 1
    root = merkle_root(hashes)
    row = BatchRow(sequence, at_us, first_position, len(hashes), root, b"", writer)
    return msgspec.structs.replace(row, hash=batch_hash(row, previous.hash if previous else genesis(writer)))


def genesis(writer: int) -> bytes:
    """Return the hash that the first batch row of a lane follows: no two lanes begin alike."""
    return sha256(b"riskgate lane %d" % writer).digest()


def batch_hash(row: BatchRow, previous: bytes) -> bytes:
    """Return the hash of a batch row that follows the row with hash `previous`; in another lane it is another one."""
    fields = (row.writer, row.sequence, row.at_us, row.first_position, row.count, row.root)
    return sha256(previous + encode(fields)).digest()
