"""Calls of DeviceService: enrol device keys, ask them, and check what they sign."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Final, Unpack

from riskgate.identity.v1 import device_service_pb2 as pb
from riskgate.identity.v1.device_service_pb2_grpc import DeviceServiceStub
from riskgate_client.call import Call, CommandOptions, QuestionOptions, Verbs, require_one, tuple_of
from riskgate_client.proofs import (
    DeviceChallenge,
    DeviceCredential,
    DevicePlatform,
    EnrollmentChallenge,
    Grant,
    ProofPurpose,
    RawKeyAnswer,
    RevokedDevices,
)
from riskgate_client.reading import moment, number_of, only, reader

_devices: Final = Verbs(DeviceServiceStub)
_credential: Final = only("credential", DeviceCredential)
_grant: Final = only("grant", Grant)


def begin_enrollment(
    *,
    customer_id: str,
    platform: DevicePlatform,
    display_name: str,
    binding_grant: str = "",
    account_name: str = "",
    **options: Unpack[CommandOptions],
) -> Call[EnrollmentChallenge]:
    """Make the challenge of a new key; once the customer has a factor or device it takes a grant for BINDING."""
    request = pb.BeginEnrollmentRequest(
        customer_id=customer_id,
        platform=number_of("platform", platform, DevicePlatform),  # type: ignore[arg-type]  # a number of the contract's
        display_name=display_name,
        binding_grant=binding_grant,
        account_name=account_name,
    )
    return _devices.command("BeginEnrollment", request, reader(EnrollmentChallenge), options)


def finish_enrollment(
    *,
    customer_id: str,
    enrollment_id: str,
    webauthn_registration_json: str = "",
    raw_key: RawKeyAnswer | None = None,
    **options: Unpack[CommandOptions],
) -> Call[DeviceCredential]:
    """Check the answer of a new key, a passkey's or a raw one's, and register it."""
    require_one(webauthn_registration_json=webauthn_registration_json, raw_key=raw_key)
    request = pb.FinishEnrollmentRequest(customer_id=customer_id, enrollment_id=enrollment_id)
    if webauthn_registration_json:
        request.webauthn_registration_json = webauthn_registration_json
    if raw_key is not None:
        request.raw_key.public_key = raw_key.public_key
        request.raw_key.signature = raw_key.signature
        request.raw_key.android_chain.extend(raw_key.android_chain)
        if raw_key.app_attest is not None:
            request.raw_key.app_attest.key_id = raw_key.app_attest.key_id
            request.raw_key.app_attest.attestation_object = raw_key.app_attest.attestation_object
    return _devices.command("FinishEnrollment", request, _credential, options)


def begin_challenge(
    *,
    customer_id: str,
    purpose: ProofPurpose,
    transaction_id: str = "",
    credential_ids: Iterable[str] = (),
    **options: Unpack[CommandOptions],
) -> Call[DeviceChallenge]:
    """Make the challenge that a registered key must answer; for a purchase, one that covers its amount and payee."""
    request = pb.BeginChallengeRequest(
        customer_id=customer_id,
        purpose=number_of("purpose", purpose, ProofPurpose),  # type: ignore[arg-type]  # a number of the contract's
        transaction_id=transaction_id,
        credential_ids=credential_ids,
    )
    return _devices.command("BeginChallenge", request, reader(DeviceChallenge), options)


def verify_challenge(
    *,
    customer_id: str,
    challenge_id: str,
    webauthn_assertion_json: str = "",
    credential_id: str = "",
    signature: bytes = b"",
    compact_jws: str = "",
    app_attest_assertion: bytes = b"",
    **options: Unpack[CommandOptions],
) -> Call[Grant]:
    """
    Check an answer and, when it holds, return a grant.

    Exactly one of a passkey's assertion, a `signature` by `credential_id`, and a compact JWS is given.
    """
    require_one(
        webauthn_assertion_json=webauthn_assertion_json,
        signature=credential_id or signature,
        compact_jws=compact_jws,
    )
    request = pb.VerifyChallengeRequest(
        customer_id=customer_id, challenge_id=challenge_id, app_attest_assertion=app_attest_assertion
    )
    if webauthn_assertion_json:
        request.webauthn_assertion_json = webauthn_assertion_json
    if compact_jws:
        request.compact_jws = compact_jws
    if credential_id or signature:
        request.device_signature.credential_id = credential_id
        request.device_signature.signature = signature
    return _devices.command("VerifyChallenge", request, _grant, options)


def list_devices(customer_id: str, **options: Unpack[QuestionOptions]) -> Call[tuple[DeviceCredential, ...]]:
    """List a customer's devices, oldest first."""
    request = pb.ListDevicesRequest(customer_id=customer_id)
    return _devices.question("ListDevices", request, tuple_of("credentials", reader(DeviceCredential)), options)


def revoke_device(
    *, customer_id: str, credential_id: str, reason_code: str, actor_id: str, **options: Unpack[CommandOptions]
) -> Call[dt.datetime]:
    """Make one key worthless at once, and return when it was."""
    request = pb.RevokeDeviceRequest(
        customer_id=customer_id, credential_id=credential_id, reason_code=reason_code, actor_id=actor_id
    )
    return _devices.command("RevokeDevice", request, moment("revoke_time"), options)


def revoke_all_devices(
    *, customer_id: str, reason_code: str, actor_id: str, **options: Unpack[CommandOptions]
) -> Call[RevokedDevices]:
    """Make all keys of a customer worthless at once, as after a takeover."""
    request = pb.RevokeAllDevicesRequest(customer_id=customer_id, reason_code=reason_code, actor_id=actor_id)
    return _devices.command("RevokeAllDevices", request, reader(RevokedDevices), options)
