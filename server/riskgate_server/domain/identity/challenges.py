"""
What a device is asked to sign. Every byte of it is made here, by the engine, from what the engine stored.

    challenge = SHA-256(label ‖ version ‖ nonce ‖ SHA-256(canonical transaction))

So even the plain signature of a passkey, which shows its owner nothing, covers amount and payee (Delegated Regulation
2018/389, article 5: dynamic linking). Keys that sign text sign `signing_input`: JSON that names all of it, to be shown
before it is signed.
"""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import Final

import msgspec

VERSION: Final = 1
NONCE_BYTES: Final = 32
DIGEST_BYTES: Final = 32
_LABEL: Final = "riskgate/"

ENROLMENT: Final = "ENROLMENT"
"""Purpose of what a new key signs. The others are the names of `ProofPurpose` in the contract."""


class Transaction(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """
    The purchase a proof is bound to, as the engine stored it.

    `amount_minor` in minor units of `currency` (ISO 4217, upper case). `payee_id` is the merchant, `account_id` the
    credit line, `instalment_count` 0 when it is paid at once.
    """

    transaction_id: str
    amount_minor: int
    currency: str
    payee_id: str
    account_id: str
    instalment_count: int = 0


class Asked(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """
    Everything one challenge says.

    Attributes:
        purpose: `ENROLMENT`, or the name of a `ProofPurpose`: TRANSACTION, BINDING …
        subject_id: the challenge's id, or the enrolment's.
        nonce: 32 random bytes.
        expires_us: until when it may be answered, UTC µs.
        audience: `aud` that a compact JWS must name; empty where none is taken.
        credential_ids: the keys that may answer; empty for an enrolment.
        transaction: the purchase; required for TRANSACTION, absent otherwise.
    """

    tenant_id: str
    customer_id: str
    purpose: str
    subject_id: str
    nonce: bytes
    expires_us: int
    audience: str = ""
    credential_ids: tuple[str, ...] = ()
    transaction: Transaction | None = None


def transaction_digest(tenant_id: str, transaction: Transaction) -> bytes:
    """Return SHA-256 of the canonical transaction: 32 bytes, different if any field is."""
    return sha256(canonical_transaction(tenant_id, transaction)).digest()


def canonical_transaction(tenant_id: str, transaction: Transaction) -> bytes:
    """
    Return the one encoding of a purchase: its fields in a fixed order, each behind its length.

    Tenant, transaction id, amount in minor units (int64), currency, payee, account, instalment count (int64). Lengths
    are 4 bytes, all numbers big-endian.
    """
    return _joined(
        tenant_id.encode(),
        transaction.transaction_id.encode(),
        transaction.amount_minor.to_bytes(8, "big", signed=True),
        transaction.currency.encode(),
        transaction.payee_id.encode(),
        transaction.account_id.encode(),
        transaction.instalment_count.to_bytes(8, "big", signed=True),
    )


def digest(asked: Asked) -> bytes:
    """Return the digest of what is asked for: of the purchase, or of whom it concerns where there is none."""
    if asked.transaction is not None:
        return transaction_digest(asked.tenant_id, asked.transaction)
    return sha256(_joined(asked.tenant_id.encode(), asked.customer_id.encode(), asked.subject_id.encode())).digest()


def challenge(asked: Asked) -> bytes:
    """Return the 32 bytes that passkeys, tokens and platform attestations answer."""
    assert len(asked.nonce) == NONCE_BYTES
    assert (asked.transaction is not None) == (asked.purpose == "TRANSACTION")
    # All that follows the label has a fixed length, so no two questions share an encoding.
    return sha256(_label(asked).encode() + bytes([VERSION]) + asked.nonce + digest(asked)).digest()


def signing_input(asked: Asked) -> bytes:
    """
    Return the exact bytes that raw keys sign: UTF-8 JSON, one spelling per question.

    It carries all that a device needs to answer in whatever form it has: bytes are Base64url without padding, times
    whole seconds of UTC.
    """
    transaction = asked.transaction
    return msgspec.json.encode(
        _SigningInput(
            label=_label(asked),
            version=VERSION,
            tenant_id=asked.tenant_id,
            customer_id=asked.customer_id,
            purpose=asked.purpose,
            challenge_id=asked.subject_id,
            credential_ids=asked.credential_ids,
            nonce=base64url(asked.nonce),
            challenge=base64url(challenge(asked)),
            expires=asked.expires_us // 1_000_000,
            audience=asked.audience,
            digest=base64url(digest(asked)),
            transaction=transaction,
        )
    )


def base64url(value: bytes) -> str:
    """Return Base64url without padding (RFC 4648, 5), as JOSE and WebAuthn write bytes."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


class _SigningInput(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    label: str
    version: int
    tenant_id: str
    customer_id: str
    purpose: str
    challenge_id: str
    credential_ids: tuple[str, ...]
    nonce: str
    challenge: str
    expires: int
    audience: str
    digest: str
    transaction: Transaction | None


def _label(asked: Asked) -> str:
    return _LABEL + asked.purpose.lower()


def _joined(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
