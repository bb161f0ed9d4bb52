"""A customer's devices over the wire: software phones that answer what the server asks."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from riskgate.identity.v1 import device_service_pb2 as pb
from riskgate.identity.v1 import grant_pb2
from riskgate_client.phone import AndroidPhone, IPhone, JoseApp, Passkey
from tests.rpc.phones import SIGN_IN, whose
from tests.rpc.requests import CUSTOMER
from tests.rpc.serving import Tenant

WEB: Final = "http://localhost:8080"
"""Where a server that is not told otherwise expects passkeys."""

P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SPOILT: Final[dict[str, Callable[[int, int], bytes]]] = {
    "r=0": lambda r, s: encode_dss_signature(0, s),
    "s=0": lambda r, s: encode_dss_signature(r, 0),
    "r=n": lambda r, s: encode_dss_signature(P256_ORDER, s),
    "s=n": lambda r, s: encode_dss_signature(r, P256_ORDER),
    "r+n": lambda r, s: encode_dss_signature(r + P256_ORDER, s),
    "extra byte": lambda r, s: encode_dss_signature(r, s) + b"\0",
    "long length": lambda r, s: b"\x30\x81" + encode_dss_signature(r, s)[1:],
    "open length": lambda r, s: b"\x30\x80" + encode_dss_signature(r, s)[2:] + b"\0\0",
    "r and s": lambda r, s: r.to_bytes(32, "big") + s.to_bytes(32, "big"),
}
"""Ways to write a good signature (r, s) in which it is none, or none in DER."""

AnyDevice = AndroidPhone | IPhone | JoseApp | Passkey


def platform_of(device: AnyDevice) -> pb.DevicePlatform.ValueType:
    match device:
        case AndroidPhone():
            return pb.DEVICE_PLATFORM_ANDROID_KEYSTORE
        case IPhone():
            return pb.DEVICE_PLATFORM_IOS_SECURE_ENCLAVE
        case JoseApp():
            return pb.DEVICE_PLATFORM_JOSE
    return pb.DEVICE_PLATFORM_WEBAUTHN


def begin(tenant: Tenant, device: AnyDevice, customer: str = CUSTOMER, grant: str = "") -> pb.BeginEnrollmentResponse:
    request = pb.BeginEnrollmentRequest(
        **whose(customer), platform=platform_of(device), display_name="a phone", binding_grant=grant
    )
    return tenant.api.devices.BeginEnrollment(request)


def registration(
    device: AnyDevice, begun: pb.BeginEnrollmentResponse, customer: str = CUSTOMER
) -> pb.FinishEnrollmentRequest:
    """What a device answers; every time a request of its own."""
    fields: dict[str, Any] = whose(customer)
    request = pb.FinishEnrollmentRequest(**fields, enrollment_id=begun.enrollment_id)
    if isinstance(device, Passkey):
        request.webauthn_registration_json = device.create(begun.creation_options_json)
        return request
    given = (begun.signing_input, begun.challenge) if isinstance(device, AndroidPhone) else (begun.signing_input,)
    key = device.enrol(*given)
    request.raw_key.CopyFrom(
        pb.RawKeyRegistration(public_key=key.public_key, signature=key.signature, android_chain=key.android_chain)
    )
    return request


def enrol(tenant: Tenant, device: AnyDevice, customer: str = CUSTOMER, grant: str = "") -> str:
    """Enrol a device and return its credential's id."""
    request = registration(device, begin(tenant, device, customer, grant), customer)
    credential_id: str = tenant.api.devices.FinishEnrollment(request).credential.credential_id
    return credential_id


def asked(
    tenant: Tenant, customer: str = CUSTOMER, purpose: Any = SIGN_IN, transaction_id: str = "", names: Any = ()
) -> pb.BeginChallengeResponse:
    request = pb.BeginChallengeRequest(
        **whose(customer), purpose=purpose, transaction_id=transaction_id, credential_ids=names
    )
    return tenant.api.devices.BeginChallenge(request)


def proof(
    device: AnyDevice,
    challenge: pb.BeginChallengeResponse,
    credential_id: str,
    customer: str = CUSTOMER,
    **changes: Any,
) -> pb.VerifyChallengeRequest:
    """What a device answers; `changes` replace fields of the request."""
    fields: dict[str, Any] = {**whose(customer), "challenge_id": challenge.challenge_id}
    match device:
        case Passkey():
            fields["webauthn_assertion_json"] = device.get(challenge.request_options_json)
        case JoseApp():
            fields["compact_jws"] = device.sign(challenge.signing_input, credential_id)
        case _:
            fields["device_signature"] = pb.DeviceSignature(
                credential_id=credential_id, signature=device.sign(challenge.signing_input)
            )
    return pb.VerifyChallengeRequest(**(fields | changes))


def proven(
    tenant: Tenant, device: AnyDevice, credential_id: str, customer: str = CUSTOMER, **how: Any
) -> grant_pb2.Grant:
    """Ask a device, have it answer, and return the grant."""
    challenge = asked(tenant, customer, names=[credential_id], **how)
    return tenant.api.devices.VerifyChallenge(proof(device, challenge, credential_id, customer)).grant


def again(request: Any) -> Any:
    """The same content under another request id."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = whose()["request_id"]
    return copy


def revoking(credential_id: str, customer: str = CUSTOMER) -> pb.RevokeDeviceRequest:
    return pb.RevokeDeviceRequest(
        **whose(customer), credential_id=credential_id, reason_code="PHONE_STOLEN", actor_id="olga"
    )


def devices_of(tenant: Tenant, customer: str = CUSTOMER) -> list[pb.DeviceCredential]:
    return list(tenant.api.devices.ListDevices(pb.ListDevicesRequest(customer_id=customer)).credentials)


def b64(value: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")


def jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """A key on P-256 as JOSE writes it (RFC 7518, 6.2)."""
    numbers = key.public_numbers()
    x, y = (b64(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}
