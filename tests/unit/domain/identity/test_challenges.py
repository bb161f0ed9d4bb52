"""What a device is asked to sign says all of it, and nothing can be changed without changing what is signed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskgate_server.domain.identity.challenges import (
    ENROLMENT,
    Asked,
    Transaction,
    base64url,
    canonical_transaction,
    challenge,
    digest,
    signing_input,
    transaction_digest,
)

PURCHASE = Transaction(
    transaction_id="T1", amount_minor=12_900, currency="CNY", payee_id="M1", account_id="main", instalment_count=3
)
ASKED = Asked(
    tenant_id="shop",
    customer_id="ada",
    purpose="TRANSACTION",
    subject_id="CH1",
    nonce=bytes(range(32)),
    expires_us=1_795_000_000_000_000,
    audience="riskgate:shop",
    credential_ids=("phone", "tablet"),
    transaction=PURCHASE,
)
SIGN_IN = msgspec.structs.replace(ASKED, purpose="SIGN_IN", transaction=None)

OTHERS: dict[str, Any] = {
    "transaction_id": "T2",
    "amount_minor": 12_901,
    "currency": "USD",
    "payee_id": "M2",
    "account_id": "other",
    "instalment_count": 0,
}


def test_the_canonical_purchase_is_its_fields_each_behind_its_length() -> None:
    assert canonical_transaction("shop", PURCHASE) == (
        b"\0\0\0\4shop"
        b"\0\0\0\2T1"
        b"\0\0\0\x08" + (12_900).to_bytes(8, "big") + b"\0\0\0\3CNY"
        b"\0\0\0\2M1"
        b"\0\0\0\4main"
        b"\0\0\0\x08" + (3).to_bytes(8, "big")
    )


def test_the_challenge_is_the_hash_of_label_version_nonce_and_digest() -> None:
    inner = hashlib.sha256(canonical_transaction("shop", PURCHASE)).digest()

    made = challenge(ASKED)

    assert made == hashlib.sha256(b"riskgate/transaction" + b"\1" + bytes(range(32)) + inner).digest()


@pytest.mark.parametrize("field", OTHERS)
def test_another_purchase_is_another_digest_and_another_challenge(field: str) -> None:
    other = msgspec.structs.replace(PURCHASE, **{field: OTHERS[field]})

    assert transaction_digest("shop", other) != transaction_digest("shop", PURCHASE)
    assert challenge(msgspec.structs.replace(ASKED, transaction=other)) != challenge(ASKED)
    assert signing_input(msgspec.structs.replace(ASKED, transaction=other)) != signing_input(ASKED)


@given(st.text(max_size=6), st.text(max_size=6), st.text(max_size=6), st.text(max_size=6))
def test_no_two_purchases_share_an_encoding(tenant: str, other_tenant: str, name: str, other_name: str) -> None:
    one = canonical_transaction(tenant, msgspec.structs.replace(PURCHASE, transaction_id=name))
    other = canonical_transaction(other_tenant, msgspec.structs.replace(PURCHASE, transaction_id=other_name))

    assert (one == other) == ((tenant, name) == (other_tenant, other_name))


@pytest.mark.parametrize(
    "change",
    [{"tenant_id": "x"}, {"customer_id": "x"}, {"subject_id": "x"}, {"nonce": bytes(32)}, {"purpose": ENROLMENT}],
    ids=lambda change: next(iter(change)),
)
def test_without_a_purchase_the_challenge_covers_whom_it_concerns_and_what_for(change: dict[str, Any]) -> None:
    assert challenge(msgspec.structs.replace(SIGN_IN, **change)) != challenge(SIGN_IN)


def test_the_signing_input_names_everything_in_one_spelling() -> None:
    made = signing_input(ASKED)

    assert json.loads(made) == {
        "label": "riskgate/transaction",
        "version": 1,
        "tenant_id": "shop",
        "customer_id": "ada",
        "purpose": "TRANSACTION",
        "challenge_id": "CH1",
        "credential_ids": ["phone", "tablet"],
        "nonce": base64url(bytes(range(32))),
        "challenge": base64url(challenge(ASKED)),
        "expires": 1_795_000_000,
        "audience": "riskgate:shop",
        "digest": base64url(digest(ASKED)),
        "transaction": {
            "transaction_id": "T1",
            "amount_minor": 12_900,
            "currency": "CNY",
            "payee_id": "M1",
            "account_id": "main",
            "instalment_count": 3,
        },
    }
    assert made == signing_input(msgspec.structs.replace(ASKED))


def test_a_proof_for_a_purchase_cannot_be_asked_for_without_one() -> None:
    with pytest.raises(AssertionError):
        challenge(msgspec.structs.replace(ASKED, transaction=None))
    with pytest.raises(AssertionError):
        challenge(msgspec.structs.replace(ASKED, purpose="SIGN_IN"))
