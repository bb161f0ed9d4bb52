"""One door for everything a device signs: what it is decides by the platform, never by a look at the bytes."""

from __future__ import annotations

from riskgate_server.crypto.proofs import android, app_attest, keys, passkeys, tokens
from riskgate_server.crypto.proofs.reading import Unreadable, malformed
from riskgate_server.crypto.proofs.trust import Trusting
from riskgate_server.domain.identity.devices import (
    AppAttestKey,
    Assurance,
    BootState,
    CompactJWS,
    Credential,
    DeviceKey,
    Fault,
    KeySignature,
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

_PHONES = frozenset({Platform.ANDROID_KEYSTORE, Platform.IOS_SECURE_ENCLAVE})


class ProofVerifier:
    """Judges registrations and proofs. Without state of its own, safe from any thread."""

    def __init__(self, trust: Trusting) -> None:
        self._trust = trust

    def verify_registration(
        self, answer: Registration, asked: RegistrationAsked, policy: ProofPolicy, *, now_us: int
    ) -> RegistrationVerdict:
        """
        Check that a new key is one, that its holder has it, and what vouches for it.

        Args:
            answer: what the device sent.
            asked: what the engine asked, as it stored it.
            policy: what the tenant takes.
            now_us: UTC µs.

        Raises:
            InvalidRequest: the answer cannot be read, or its key is of a kind that is not verified here.
            ProofRefused: it can, and does not hold.
        """
        if isinstance(answer, PasskeyRegistration):
            if asked.platform != Platform.WEBAUTHN:
                raise ProofRefused(Fault.FORMAT_WRONG)
            return passkeys.verify_registration(answer, asked, policy, self._trust.now(), now_us=now_us)
        if asked.platform == Platform.WEBAUTHN:
            raise ProofRefused(Fault.FORMAT_WRONG)
        return self._verify_raw_key(answer, asked, policy, now_us=now_us)

    def verify_proof(self, answer: Proof, asked: ProofAsked, policy: ProofPolicy, *, now_us: int) -> ProofVerdict:
        """
        Check that one of the keys asked for answered what was asked.

        The counter is returned, not judged; whether the challenge still stands is the engine's to know.

        Raises:
            InvalidRequest: the answer cannot be read.
            ProofRefused: it can, and does not hold.
        """
        if isinstance(answer, PasskeyAssertion):
            return passkeys.verify_assertion(answer, asked, policy)
        if isinstance(answer, CompactJWS):
            return tokens.verify_token(answer, asked, policy, now_us=now_us)
        return self._verify_signature(answer, asked, policy)

    def _verify_raw_key(
        self, answer: RawKeyRegistration, asked: RegistrationAsked, policy: ProofPolicy, *, now_us: int
    ) -> RegistrationVerdict:
        try:
            algorithm, spki = keys.raw_key(asked.platform, answer.public_key)
        except Unreadable as error:
            raise malformed("raw_key.public_key", error.what) from None
        _require_signature(answer.signature, "raw_key.signature")
        if answer.android_chain and asked.platform != Platform.ANDROID_KEYSTORE:
            raise malformed("raw_key.android_chain", "only a key of the Android Keystore has one")
        if answer.app_attest and asked.platform != Platform.IOS_SECURE_ENCLAVE:
            raise malformed("raw_key.app_attest", "only an app on iOS has it")
        if asked.platform in _PHONES:
            holds = keys.verify_der(spki, answer.signature, asked.signing_input)
        else:
            holds = keys.verify_pair(algorithm, spki, answer.signature, asked.signing_input)
        if not holds:
            raise ProofRefused(Fault.SIGNATURE_WRONG)
        assurance, attestation = self._android(answer, asked, spki, policy, now_us=now_us)
        return RegistrationVerdict(
            key=DeviceKey(
                asked.platform, algorithm, spki, app_attest=self._app_attest(answer, asked, policy, now_us=now_us)
            ),
            assurance=assurance,
            fingerprint=keys.fingerprint(spki),
            challenge=asked.challenge,
            attestation=attestation,
        )

    def _android(
        self,
        answer: RawKeyRegistration,
        asked: RegistrationAsked,
        spki: bytes,
        policy: ProofPolicy,
        *,
        now_us: int,
    ) -> tuple[Assurance, str]:
        # Keys of both phones' stores cannot leave them; a JOSE library's may lie in a file.
        unattested = Assurance(device_bound=asked.platform in _PHONES)
        if asked.platform != Platform.ANDROID_KEYSTORE:
            return unattested, "none"
        if not answer.android_chain:
            if policy.attestation or policy.guarded_use or policy.android_apps:
                raise ProofRefused(Fault.ATTESTATION_MISSING)
            return unattested, "none"
        trust = self._trust.now()
        try:
            found = android.check(
                answer.android_chain,
                spki=spki,
                challenge=asked.challenge,
                root_keys=trust.android_roots,
                revoked=trust.android_revoked,
                now_us=now_us,
            )
        except Unreadable as error:
            raise malformed("raw_key.android_chain", error.what) from None
        if policy.guarded_use and not found.guarded:
            raise ProofRefused(Fault.USE_NOT_GUARDED)
        # Which app it is Android says, and whoever signed the Android themselves has it say what they like.
        named = found.apps if found.boot_state is BootState.VERIFIED else ()
        if policy.android_apps and not set(named) & set(policy.android_apps):
            raise ProofRefused(Fault.APP_UNKNOWN)
        return Assurance(
            device_bound=True,
            hardware_backed=True,
            attested=True,
            user_verified_per_use=found.guarded,
            boot_state=found.boot_state,
        ), "android-key"

    def _app_attest(
        self, answer: RawKeyRegistration, asked: RegistrationAsked, policy: ProofPolicy, *, now_us: int
    ) -> AppAttestKey | None:
        if answer.app_attest is None:
            if policy.app_attest and asked.platform == Platform.IOS_SECURE_ENCLAVE:
                raise ProofRefused(Fault.APP_ATTEST_MISSING)
            return None
        try:
            return app_attest.check_attestation(
                answer.app_attest,
                challenge=asked.challenge,
                policy=policy,
                root_keys=self._trust.now().apple_roots,
                now_us=now_us,
            )
        except Unreadable as error:
            raise malformed("raw_key.app_attest", error.what) from None

    def _verify_signature(self, answer: KeySignature, asked: ProofAsked, policy: ProofPolicy) -> ProofVerdict:
        _require_signature(answer.signature, "device_signature.signature")
        credential = _named(answer.credential_id, asked.credentials)
        name, key = credential.credential_id, credential.key
        if key.platform not in _PHONES:
            raise ProofRefused(Fault.FORMAT_WRONG, name)
        if not keys.verify_der(key.public_key, answer.signature, asked.signing_input):
            raise ProofRefused(Fault.SIGNATURE_WRONG, name)
        return ProofVerdict(
            credential_id=name,
            challenge=asked.challenge,
            digest=asked.digest,
            user_verified=True,
            device_bound=True,
            app_sign_count=_app_sign_count(answer, credential, asked, policy),
        )


def _app_sign_count(answer: KeySignature, credential: Credential, asked: ProofAsked, policy: ProofPolicy) -> int:
    app, name = credential.key.app_attest, credential.credential_id
    if not answer.app_attest_assertion:
        if app is not None and policy.app_attest:
            raise ProofRefused(Fault.APP_ATTEST_MISSING, name)
        return 0
    if app is None:
        raise ProofRefused(Fault.APP_ATTEST_WRONG, name)
    try:
        return app_attest.check_assertion(answer.app_attest_assertion, app, signed=asked.signing_input, policy=policy)
    except Unreadable as error:
        raise malformed("app_attest_assertion", error.what) from None
    except ProofRefused as refused:
        raise ProofRefused(refused.fault, name) from None


def _named(credential_id: str, credentials: tuple[Credential, ...]) -> Credential:
    for credential in credentials:
        if credential.credential_id == credential_id:
            return credential
    raise ProofRefused(Fault.CREDENTIAL_UNKNOWN)


def _require_signature(signature: bytes, field: str) -> None:
    if not 1 <= len(signature) <= keys.SIGNATURE_BYTES_MAX:
        raise malformed(field, f"1 to {keys.SIGNATURE_BYTES_MAX} bytes are needed")
