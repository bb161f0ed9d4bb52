"""
What the client takes and gives of proofs: factors, codes and grants, in the manner of `riskgate_client.values`.

Seeds, recovery codes and tokens are secrets: they do not show when a value is printed.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from enum import StrEnum


class ProofPurpose(StrEnum):
    """What a proof is asked for. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    TRANSACTION = "TRANSACTION"
    BINDING = "BINDING"
    SIGN_IN = "SIGN_IN"
    UNLOCK = "UNLOCK"
    LIMIT_OFFER = "LIMIT_OFFER"


class FactorKind(StrEnum):
    """What a customer proves themselves with. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    SMS = "SMS"
    TOTP = "TOTP"
    DEVICE_KEY = "DEVICE_KEY"
    RECOVERY_CODE = "RECOVERY_CODE"


class FactorState(StrEnum):
    """How far a factor has come. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    LOCKED = "LOCKED"


@dataclass(frozen=True, slots=True)
class Factor:
    """Something a customer can prove themselves with by a code."""

    factor_id: str
    kind: FactorKind
    state: FactorState
    display_name: str
    enroll_time: dt.datetime
    full_strength_time: dt.datetime | None
    lock_end_time: dt.datetime | None
    codes_left: int


@dataclass(frozen=True, slots=True)
class CodeChallenge:
    """A code on its way to a customer."""

    challenge_id: str
    factor_id: str
    masked_destination: str
    expire_time: dt.datetime
    resend_time: dt.datetime
    checks_left: int


@dataclass(frozen=True, slots=True)
class EnrolledPhone:
    """A phone that waits to be confirmed, and the code that was sent to it."""

    factor: Factor
    challenge: CodeChallenge


@dataclass(frozen=True, slots=True)
class EnrolledTotp:
    """An authenticator app that waits to be confirmed. The seed is shown this once."""

    factor: Factor
    otpauth_uri: str = field(repr=False)
    seed_base32: str = field(repr=False)
    expire_time: dt.datetime


@dataclass(frozen=True, slots=True)
class Grant:
    """Evidence that the customer proved themselves, for one use. `token` is a bearer secret."""

    token: str = field(repr=False)
    purpose: ProofPurpose
    transaction_id: str
    level: int
    methods: tuple[FactorKind, ...]
    expire_time: dt.datetime


@dataclass(frozen=True, slots=True)
class RecoveryCodes:
    """Ten codes to be written down, shown this once."""

    codes: tuple[str, ...] = field(repr=False)
    factor: Factor


@dataclass(frozen=True, slots=True)
class RecoveryGrant:
    """The grant that a recovery code gave, and how many codes are left."""

    grant: Grant
    codes_left: int


# --- Devices ---


class DevicePlatform(StrEnum):
    """What kind of device holds a key. UNSPECIFIED is one newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    WEBAUTHN = "WEBAUTHN"
    ANDROID_KEYSTORE = "ANDROID_KEYSTORE"
    IOS_SECURE_ENCLAVE = "IOS_SECURE_ENCLAVE"
    JOSE = "JOSE"


class BootState(StrEnum):
    """How a device was found to have started. UNSPECIFIED means not attested."""

    UNSPECIFIED = "UNSPECIFIED"
    VERIFIED = "VERIFIED"
    SELF_SIGNED = "SELF_SIGNED"
    UNVERIFIED = "UNVERIFIED"


@dataclass(frozen=True, slots=True)
class Assurance:
    """What is known about a device's key."""

    hardware_backed: bool
    device_bound: bool
    attested: bool
    user_verified_per_use: bool
    boot_state: BootState
    level: int


@dataclass(frozen=True, slots=True)
class DeviceCredential:
    """A registered key."""

    credential_id: str
    platform: DevicePlatform
    display_name: str
    assurance: Assurance
    enroll_time: dt.datetime
    full_strength_time: dt.datetime
    last_use_time: dt.datetime | None


@dataclass(frozen=True, slots=True)
class EnrollmentChallenge:
    """What a new key must answer."""

    enrollment_id: str
    challenge: bytes
    creation_options_json: str
    signing_input: bytes
    expire_time: dt.datetime


@dataclass(frozen=True, slots=True)
class DeviceChallenge:
    """What a registered key must answer. `signing_input` is to be shown to the customer before it is signed."""

    challenge_id: str
    request_options_json: str
    signing_input: bytes
    expire_time: dt.datetime


@dataclass(frozen=True, slots=True)
class RevokedDevices:
    """The keys that were revoked, and when."""

    credential_ids: tuple[str, ...]
    revoke_time: dt.datetime


@dataclass(frozen=True, slots=True)
class AppAttestation:
    """First evidence of an App Attest key of iOS."""

    key_id: str
    attestation_object: bytes


@dataclass(frozen=True, slots=True)
class RawKeyAnswer:
    """A public key, the proof that its holder has the private one, and what vouches for it."""

    public_key: bytes
    signature: bytes
    android_chain: tuple[bytes, ...] = ()
    app_attest: AppAttestation | None = None
