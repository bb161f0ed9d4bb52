"""
What is asked of a customer's device, what it answers, and what the answer was found to be worth.

Plain data: the edge fills it in, `crypto/proofs` judges it before the writer's queue, and what it found
travels with the command. Nothing in here knows a key from a stone.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from riskgate_server.domain.identity.challenges import Transaction

PROOF_LIFETIME_MAX_SECONDS: Final = 120
"""How far ahead of the server's clock a compact JWS may expire."""

CREDENTIALS_ASKED_MAX: Final = 16
"""Keys that may answer one challenge."""


class Platform(IntEnum):
    """What kind of device holds a key, which fixes how it answers; equal to `riskgate.identity.v1.DevicePlatform`."""

    WEBAUTHN = 1
    ANDROID_KEYSTORE = 2
    IOS_SECURE_ENCLAVE = 3
    JOSE = 4


class Algorithm(IntEnum):
    """How a key signs. The numbers are those of COSE (RFC 9053; RFC 8812 for RSA), written into the store."""

    ES256 = -7
    EDDSA = -8
    ES512 = -36
    RS256 = -257


class BootState(IntEnum):
    """How a device was found to have started; equal to `riskgate.identity.v1.BootState`. 0 is not attested."""

    UNATTESTED = 0
    VERIFIED = 1
    SELF_SIGNED = 2
    UNVERIFIED = 3


class Fault(IntEnum):
    """
    Why a proof was refused. For the journal and the log, never for the caller: a thief would learn what to mend.

    Written into the journal: numbers never change meaning.
    """

    CREDENTIAL_UNKNOWN = 1
    FORMAT_WRONG = 2
    """Not the form in which keys of this platform answer."""
    SIGNATURE_WRONG = 3
    TYPE_WRONG = 4
    """Made for another ceremony: `type` of the client data, `typ` of a token."""
    CHALLENGE_WRONG = 5
    ORIGIN_UNKNOWN = 6
    CROSS_ORIGIN = 7
    RP_WRONG = 8
    USER_ABSENT = 9
    USER_NOT_VERIFIED = 10
    BACKUP_FLAGS_WRONG = 11
    """Backed up without being eligible, or eligible where it was not at enrolment."""
    PAYMENT_DIFFERS = 12
    AUDIENCE_WRONG = 13
    EXPIRED = 14
    """Expired by the server's clock, or good for longer than a proof may be."""
    TRANSACTION_DIFFERS = 15
    COUNTER_NOT_GROWN = 16
    """As that of a copied key does not; judged by the engine, which knows what it was."""
    ATTESTATION_MISSING = 20
    ATTESTATION_WRONG = 21
    """The chain does not hold, or is not about this key."""
    ATTESTATION_ROOT_UNKNOWN = 22
    ATTESTATION_REVOKED = 23
    ATTESTATION_CHALLENGE_WRONG = 24
    KEY_NOT_IN_HARDWARE = 25
    KEY_NOT_GENERATED_THERE = 26
    BOOT_NOT_VERIFIED = 27
    USE_NOT_GUARDED = 28
    """The key may be used without a fingerprint, a face or the PIN each time."""
    APP_UNKNOWN = 29
    APP_ATTEST_MISSING = 30
    APP_ATTEST_WRONG = 31
    APP_ATTEST_DEVELOPMENT = 32


class ProofRefused(Exception):
    """
    The proof does not hold. Whoever counts wrong proofs turns this into one refusal without a hint.

    Attributes:
        fault: the first thing that was wrong, for the journal.
        credential_id: whose proof it claimed to be; empty where that is unknown.
    """

    def __init__(self, fault: Fault, credential_id: str = "") -> None:
        super().__init__(f"proof refused: {fault.name}")
        self.fault = fault
        self.credential_id = credential_id


class AndroidApp(msgspec.Struct, frozen=True, gc=False):
    """An app that may hold device keys: package name, and SHA-256 of the certificate it is signed with."""

    package: str
    signer_sha256: bytes


class PaymentInstrument(msgspec.Struct, frozen=True, gc=False):
    """What Secure Payment Confirmation shows as the means of payment: a name, and the address of an icon."""

    display_name: str
    icon: str


class ProofPolicy(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """
    What a tenant takes for a proof. Settings, never a caller's.

    Attributes:
        rp_id: domain that the tenant's passkeys are bound to.
        rp_name: what the customer is shown beside it.
        origins: exact origins that may use them: `https://…` for pages and iOS, `android:apk-key-hash:…` for Android.
        audience: `aud` of a compact JWS.
        payment_instrument: what Secure Payment Confirmation names; absent means that it is not taken.
        platforms: kinds of device whose keys are enrolled.
        user_verification: passkeys must have verified the user. False only where UV is judged elsewhere.
        attestation: a key of the Android Keystore is refused without a chain that vouches for it.
        guarded_use: such a key must be proven to need the user for every use.
        android_apps: apps whose Android keys are taken, of phones that started with their maker's Android; empty means
            any, of any.
        app_attest: a key of the iOS Secure Enclave without App Attest is refused.
        apple_app_ids: `TEAMID.bundle.id` of the apps whose App Attest is taken.
        apple_development: take App Attest of development builds too.
    """

    rp_id: str
    rp_name: str
    origins: tuple[str, ...]
    audience: str
    payment_instrument: PaymentInstrument | None = None
    platforms: frozenset[Platform] = frozenset(Platform)
    user_verification: bool = True
    attestation: bool = False
    guarded_use: bool = False
    android_apps: tuple[AndroidApp, ...] = ()
    app_attest: bool = False
    apple_app_ids: tuple[str, ...] = ()
    apple_development: bool = False


class AppAttestKey(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Key of an app instance. It vouches for the app, never for the customer. `sign_count` is the last it showed."""

    key_id: bytes
    public_key: bytes
    app_id: str
    sign_count: int


class DeviceKey(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    A registered key, as stored.

    Attributes:
        public_key: COSE_Key in CBOR (RFC 9052) of a passkey; otherwise X.509 SubjectPublicKeyInfo in DER.
        webauthn_id: the id the authenticator gave a passkey, 1 to 1023 bytes; empty otherwise.
        backup_eligible: the maker may copy it to other devices of the customer. Never changes in a key's life.
        sign_count: last counter shown; 0 for keys without one.
    """

    platform: Platform
    algorithm: Algorithm
    public_key: bytes
    webauthn_id: bytes = b""
    backup_eligible: bool = False
    sign_count: int = 0
    app_attest: AppAttestKey | None = None


class Credential(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A key and the id it has within its customer."""

    credential_id: str
    key: DeviceKey


class Assurance(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is known about a key; equal to `riskgate.identity.v1.Assurance`."""

    device_bound: bool
    hardware_backed: bool = False
    attested: bool = False
    user_verified_per_use: bool = False
    boot_state: BootState = BootState.UNATTESTED

    @property
    def level(self) -> int:
        """Level a proof by the key reaches: 3 if a root vouches that it is in hardware, stays there and is guarded."""
        vouched = self.attested and self.hardware_backed and self.device_bound and self.user_verified_per_use
        return 3 if vouched else 2


class PasskeyRegistration(msgspec.Struct, frozen=True, gc=False):
    """What `navigator.credentials.create()` or Credential Manager returned, as JSON."""

    response_json: str


class AppAttestObject(msgspec.Struct, frozen=True, gc=False):
    """First evidence of an App Attest key: the key's id in Base64, and the attestation object in CBOR."""

    key_id: str
    attestation_object: bytes


class RawKeyRegistration(msgspec.Struct, frozen=True, gc=False):
    """
    A key of a platform's own store, or of a JOSE library.

    Attributes:
        public_key: SubjectPublicKeyInfo in DER; the 65-byte point (X9.63) too where the platform is iOS.
        signature: over the signing input. DER for keys of a phone's store, 64 bytes (RFC 7518, 3.4; RFC 8037) for JOSE.
        android_chain: X.509 certificates in DER, leaf first; empty when there are none.
    """

    public_key: bytes
    signature: bytes
    android_chain: tuple[bytes, ...] = ()
    app_attest: AppAttestObject | None = None


Registration = PasskeyRegistration | RawKeyRegistration


class PasskeyAssertion(msgspec.Struct, frozen=True, gc=False):
    """What `navigator.credentials.get()` or Credential Manager returned, as JSON."""

    response_json: str


class KeySignature(msgspec.Struct, frozen=True, gc=False):
    """
    A signature by a key of a phone's store over the signing input, in DER.

    `app_attest_assertion` is that of iOS over the same bytes, in CBOR; empty when there is none.
    """

    credential_id: str
    signature: bytes
    app_attest_assertion: bytes = b""


class CompactJWS(msgspec.Struct, frozen=True, gc=False):
    """A signed biometric token (RFC 7515, compact serialisation)."""

    token: str


Proof = PasskeyAssertion | KeySignature | CompactJWS


class RegistrationAsked(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a new key was asked: the challenge, and the bytes that raw keys sign (`challenges.signing_input`)."""

    platform: Platform
    challenge: bytes
    signing_input: bytes


class ProofAsked(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """
    What a registered key was asked.

    Attributes:
        challenge: what passkeys and tokens answer (`challenges.challenge`).
        signing_input: the exact bytes that keys of a phone's store sign (`challenges.signing_input`).
        digest: what was asked for (`challenges.transaction_digest`, `challenges.subject_digest`).
        transaction: the purchase that waits; absent when the proof is for something else.
        credentials: the keys that may answer.
    """

    challenge_id: str
    challenge: bytes
    signing_input: bytes
    digest: bytes
    transaction: Transaction | None
    credentials: tuple[Credential, ...]


class RegistrationVerdict(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """
    A registration that holds.

    Attributes:
        fingerprint: SHA-256 of what makes the key itself: one key is enrolled once, whatever form it comes in.
        challenge: the bytes it answered.
        attestation: how it was vouched for: `none`, `android-key`, `packed` …
        aaguid: model of a passkey's authenticator, 16 bytes; empty for other keys.
    """

    key: DeviceKey
    assurance: Assurance
    fingerprint: bytes
    challenge: bytes
    attestation: str
    aaguid: bytes = b""


class ProofVerdict(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """
    A proof that holds, its counter not yet judged.

    Attributes:
        challenge: the bytes it answered.
        digest: digest of what was asked for.
        sign_count: the counter it showed; 0 for keys without one.
        user_verified: the authenticator says it verified the user. True for raw keys: use of them is guarded or the
            platform was not asked to say so (see `Assurance.user_verified_per_use`).
        device_bound: no copy of the key exists elsewhere.
        backed_up: a copy of the key exists now.
        app_sign_count: the counter App Attest showed; 0 when there was no such evidence.
    """

    credential_id: str
    challenge: bytes
    digest: bytes
    sign_count: int = 0
    user_verified: bool
    device_bound: bool
    backed_up: bool = False
    app_sign_count: int = 0
