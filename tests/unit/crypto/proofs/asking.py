"""What the engine asks in these tests, and what it finds: one tenant, one purchase, a clock that stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import pytest

from riskgate_client import RawKeyAnswer
from riskgate_client.phone import AndroidPhone, IPhone, JoseApp, Passkey
from riskgate_server.crypto.proofs import AttestationTrust, ProofVerifier
from riskgate_server.domain.errors import InvalidRequest
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    AppAttestObject,
    Credential,
    DeviceKey,
    Fault,
    PasskeyAssertion,
    PasskeyRegistration,
    Platform,
    Proof,
    ProofAsked,
    ProofPolicy,
    ProofRefused,
    ProofVerdict,
    RawKeyRegistration,
    Registration,
    RegistrationAsked,
    RegistrationVerdict,
)
from riskgate_server.domain.identity.passkey_options import creation_options, request_options

NOW_US: Final = 1_795_000_000_000_000
SECOND_US: Final = 1_000_000

WEB: Final = "https://bank.example"
APP: Final = "android:apk-key-hash:pNiP5iKyQ8JwgGOaKA1zGPUPJIS-0H1xKCQcfIoGLck"
POLICY: Final = ProofPolicy(rp_id="bank.example", rp_name="Bank", origins=(WEB, APP), audience="riskgate:bank")

PURCHASE: Final = challenges.Transaction(
    transaction_id="T1", amount_minor=12_900, currency="CNY", payee_id="M1", account_id="main", instalment_count=3
)
ASKED: Final = challenges.Asked(
    tenant_id="bank",
    customer_id="ada",
    purpose="TRANSACTION",
    subject_id="CH1",
    nonce=bytes(range(32)),
    expires_us=NOW_US + 120 * SECOND_US,
    audience=POLICY.audience,
    credential_ids=("k1",),
    transaction=PURCHASE,
)
ENROLMENT: Final = msgspec.structs.replace(
    ASKED, purpose=challenges.ENROLMENT, subject_id="E1", credential_ids=(), transaction=None
)

VERIFIER: Final = ProofVerifier(AttestationTrust())


def enrolment(platform: Platform, asked: challenges.Asked = ENROLMENT) -> RegistrationAsked:
    return RegistrationAsked(
        platform=platform, challenge=challenges.challenge(asked), signing_input=challenges.signing_input(asked)
    )


def proof_of(*keys: DeviceKey, asked: challenges.Asked = ASKED) -> ProofAsked:
    """What was asked, with the keys k1, k2 … that may answer."""
    return ProofAsked(
        challenge_id=asked.subject_id,
        challenge=challenges.challenge(asked),
        signing_input=challenges.signing_input(asked),
        digest=challenges.digest(asked),
        transaction=asked.transaction,
        credentials=tuple(Credential(f"k{number}", key) for number, key in enumerate(keys, 1)),
    )


def register(
    answer: Registration,
    platform: Platform,
    *,
    policy: ProofPolicy = POLICY,
    verifier: ProofVerifier = VERIFIER,
    asked: challenges.Asked = ENROLMENT,
    now_us: int = NOW_US,
) -> RegistrationVerdict:
    return verifier.verify_registration(answer, enrolment(platform, asked), policy, now_us=now_us)


def prove(
    answer: Proof,
    *keys: DeviceKey,
    asked: challenges.Asked = ASKED,
    policy: ProofPolicy = POLICY,
    now_us: int = NOW_US,
) -> ProofVerdict:
    return VERIFIER.verify_proof(answer, proof_of(*keys, asked=asked), policy, now_us=now_us)


def registration_of(key: RawKeyAnswer, app_attest: AppAttestObject | None = None) -> RawKeyRegistration:
    return RawKeyRegistration(key.public_key, key.signature, key.android_chain, app_attest)


def key_of(device: AndroidPhone | IPhone | JoseApp | Passkey) -> DeviceKey:
    """Enrol a device and return its key as the engine would store it."""
    if isinstance(device, Passkey):
        return register(PasskeyRegistration(device.create(creation(ENROLMENT))), Platform.WEBAUTHN).key
    platform = {
        AndroidPhone: Platform.ANDROID_KEYSTORE,
        IPhone: Platform.IOS_SECURE_ENCLAVE,
        JoseApp: Platform.JOSE,
    }[type(device)]
    return register(registration_of(device.enrol(challenges.signing_input(ENROLMENT))), platform).key


def creation(asked: challenges.Asked = ENROLMENT) -> str:
    return creation_options(
        POLICY,
        challenge=challenges.challenge(asked),
        user_handle=b"handle of ada",
        user_name="Ada",
        timeout_seconds=300,
    )


def request(asked: challenges.Asked = ASKED, *allow: bytes) -> str:
    return request_options(POLICY, challenge=challenges.challenge(asked), allow=allow, timeout_seconds=120)


def answered(passkey: Passkey, asked: challenges.Asked = ASKED, **changes: Any) -> PasskeyAssertion:
    return PasskeyAssertion(passkey.get(request(asked), **changes))


@contextmanager
def refused(fault: Fault) -> Iterator[None]:
    """`with refused(Fault.X):` the proof can be read, and does not hold, for this reason."""
    with pytest.raises(ProofRefused) as caught:
        yield
    assert caught.value.fault is fault


def malformed(field: str) -> Any:
    """`with malformed("compact_jws"):` it cannot be read, and the refusal names the field."""
    return pytest.raises(InvalidRequest, match=f"^PROOF_MALFORMED: {field}")
