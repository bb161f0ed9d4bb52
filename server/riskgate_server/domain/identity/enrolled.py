"""A customer's devices as the engine keeps them: enrolled, being enrolled, revoked; and what they were asked."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

import msgspec

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.challenges import Asked, Transaction
from riskgate_server.domain.identity.devices import Assurance, Credential, DeviceKey, Fault, Platform
from riskgate_server.domain.identity.grants import Use


class Device(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    A registered key. Times in UTC µs, 0 where they do not apply.

    Attributes:
        marks: keyed hashes of the public key and, of a passkey, of its id: by them it is found to be taken.
        full_strength_us: from when on it does what a code alone does not.
        failures: wrong proofs in a row.
    """

    credential_id: str
    key: DeviceKey
    assurance: Assurance
    display_name: str
    marks: tuple[bytes, ...]
    enrolled_us: int
    full_strength_us: int
    last_use_us: int = 0
    failures: int = 0
    locked_until_us: int = 0


class Enrolment(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    What a new key was asked. `challenge_id` is the enrolment's id.

    `granted` says that a grant was spent on it. Without one it is good only while the customer has nothing else to
    prove themselves with. `ended` as of a code.
    """

    challenge_id: str
    platform: Platform
    nonce: bytes
    display_name: str
    granted: bool
    expires_us: int
    wrong: int = 0
    ended: str = ""


class DeviceChallenge(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    What registered keys were asked. Only `credential_ids` may answer.

    `transaction` is the purchase as it was when it was asked about; None when it is about none. `ended` as of a code,
    or DEVICE_REVOKED when nobody is left who may answer.
    """

    challenge_id: str
    use: Use
    credential_ids: tuple[str, ...]
    nonce: bytes
    transaction: Transaction | None
    expires_us: int
    wrong: int = 0
    ended: str = ""


class ProofFault(msgspec.Struct, frozen=True, gc=False):
    """A proof or registration that does not hold; `credential_id` is whose it claimed to be, empty if unknown."""

    fault: Fault
    credential_id: str = ""


def enrolment_asked(key: CustomerKey, enrolment: Enrolment, audience: str) -> Asked:
    """Return everything that a new key was asked."""
    tenant_id, customer_id = key
    return Asked(
        tenant_id=tenant_id,
        customer_id=customer_id,
        purpose=challenges.ENROLMENT,
        subject_id=enrolment.challenge_id,
        nonce=enrolment.nonce,
        expires_us=enrolment.expires_us,
        audience=audience,
    )


def challenge_asked(key: CustomerKey, challenge: DeviceChallenge, audience: str) -> Asked:
    """Return everything that registered keys were asked."""
    tenant_id, customer_id = key
    return Asked(
        tenant_id=tenant_id,
        customer_id=customer_id,
        purpose=challenge.use.purpose.name,
        subject_id=challenge.challenge_id,
        nonce=challenge.nonce,
        expires_us=challenge.expires_us,
        audience=audience,
        credential_ids=challenge.credential_ids,
        transaction=challenge.transaction,
    )


def credential_of(device: Device) -> Credential:
    """Return a device as proofs are held against it."""
    return Credential(device.credential_id, device.key)


_encode: Final = msgspec.msgpack.Encoder().encode


def enrolment_judged(enrolment: Enrolment) -> bytes:
    """Return the digest of what a registration is held against, without what attempts at it change."""
    return sha256(_encode(msgspec.structs.replace(enrolment, wrong=0, ended=""))).digest()


def challenge_judged(challenge: DeviceChallenge, device: Device | None) -> bytes:
    """
    Return the digest of what a proof is held against: the challenge, and the key it claims to be by.

    Without what attempts at either change; counters are not part of it, for they are compared as they stand when the
    proof is counted.
    """
    asked = msgspec.structs.replace(challenge, wrong=0, ended="")
    key = device and msgspec.structs.replace(device.key, sign_count=0, app_attest=_without_count(device.key))
    return sha256(_encode((asked, device and device.credential_id, key))).digest()


def _without_count(key: DeviceKey) -> object:
    return key.app_attest and msgspec.structs.replace(key.app_attest, sign_count=0)


def went_back(stored: int, shown: int) -> bool:
    """
    Whether a counter did not grow, as that of a copied key does not (WebAuthn Level 3, 6.1.1).

    Both zero is a key without a counter.
    """
    return shown <= stored and (stored, shown) != (0, 0)


def with_changed(devices: tuple[Device, ...], credential_id: str, **changes: Any) -> tuple[Device, ...]:
    """Return the devices with one of them changed."""
    return tuple(
        msgspec.structs.replace(device, **changes) if device.credential_id == credential_id else device
        for device in devices
    )


def with_counters(device: Device, *, sign_count: int, app_sign_count: int) -> DeviceKey:
    """Return a device's key after it showed these counters; App Attest's only if there was such evidence (not 0)."""
    app = device.key.app_attest
    if app is not None and app_sign_count:
        app = msgspec.structs.replace(app, sign_count=app_sign_count)
    return msgspec.structs.replace(device.key, sign_count=sign_count, app_attest=app)
