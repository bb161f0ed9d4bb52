"""The phone made of software, as a backend's own tests would use it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from riskgate_client.phone import AndroidPhone, IPhone, JoseApp, Passkey


def test_the_client_does_without_what_its_phone_needs() -> None:
    """The phone is for tests; who only calls the engine loads no cryptography."""
    asked = "import sys, riskgate_client; print(sorted({'cryptography', 'cbor2'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("phone", [AndroidPhone(), IPhone()], ids=["Android", "iOS"])
def test_a_phone_signs_the_exact_bytes(phone: AndroidPhone | IPhone) -> None:
    signature = phone.sign(b"asked")

    phone.key.public_key().verify(signature, b"asked", ec.ECDSA(SHA256()))
    with pytest.raises(InvalidSignature):
        phone.key.public_key().verify(signature, b"asked ", ec.ECDSA(SHA256()))


def test_two_phones_have_two_keys() -> None:
    assert AndroidPhone().public_key != AndroidPhone().public_key
    assert JoseApp("EdDSA").public_key != JoseApp("EdDSA").public_key


def test_a_passkey_counts_its_uses_unless_it_is_synced() -> None:
    options = json.dumps({"challenge": "AAAA", "rpId": "bank.example"})
    bound, synced = Passkey(origin="https://bank.example"), Passkey(origin="https://bank.example", synced=True)

    for passkey in (bound, bound, synced, synced):
        passkey.get(options)

    assert (bound.sign_count, synced.sign_count) == (2, 0)
