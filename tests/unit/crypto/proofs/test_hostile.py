"""Whatever bytes come: a verdict, a refusal without a hint, or a field that cannot be read. Never anything else."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any, Final

import cbor2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from riskgate_client.phone import AndroidPhone, IPhone, JoseApp, Passkey
from riskgate_server.crypto.proofs import ProofVerifier, cbor
from riskgate_server.crypto.proofs.reading import Unreadable, base64url, json_object
from riskgate_server.domain.errors import InvalidRequest
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    AppAttestObject,
    CompactJWS,
    DeviceKey,
    KeySignature,
    PasskeyAssertion,
    PasskeyRegistration,
    Platform,
    ProofRefused,
    RawKeyRegistration,
)
from tests.unit.crypto.proofs.asking import (
    ASKED,
    ENROLMENT,
    POLICY,
    WEB,
    creation,
    key_of,
    prove,
    register,
    request,
)
from tests.unit.crypto.proofs.makers import TRUST, AppleApp, android_chain

VERIFIER: Final = ProofVerifier(TRUST)
APPLE: Final = AppleApp()
ANY_POLICY: Final = msgspec.structs.replace(POLICY, apple_app_ids=(APPLE.app_id,))
TO_ENROL: Final = challenges.signing_input(ENROLMENT)
TO_SIGN: Final = challenges.signing_input(ASKED)
CHALLENGE: Final = challenges.challenge(ENROLMENT)

ANDROID: Final = AndroidPhone(chain=android_chain())
IOS: Final = IPhone()
JOSE: Final = JoseApp()
PASSKEY: Final = Passkey(origin=WEB)
KEYS: Final[tuple[DeviceKey, ...]] = (
    key_of(AndroidPhone(key=ANDROID.key)),
    msgspec.structs.replace(
        key_of(IOS),
        app_attest=register(
            RawKeyRegistration(IOS.public_key, IOS.sign(TO_ENROL), app_attest=APPLE.attest(CHALLENGE)),
            Platform.IOS_SECURE_ENCLAVE,
            policy=ANY_POLICY,
            verifier=VERIFIER,
        ).key.app_attest,
    ),
    key_of(JOSE),
    key_of(PASSKEY),
)
CREATED: Final = PASSKEY.create(creation())
ASSERTED: Final = PASSKEY.get(request())
TOKEN: Final = JOSE.sign(TO_SIGN, "k3")
SIGNED: Final = IOS.sign(TO_SIGN)
VOUCHED: Final = APPLE.vouch(TO_SIGN)
EVIDENCE: Final = APPLE.attest(CHALLENGE)
ENROLLED: Final = ANDROID.enrol(TO_ENROL, CHALLENGE)

FIELDS: Final = {
    "webauthn_registration_json",
    "webauthn_assertion_json",
    "compact_jws",
    "device_signature.signature",
    "app_attest_assertion",
    "raw_key.public_key",
    "raw_key.signature",
    "raw_key.android_chain",
    "raw_key.app_attest",
}

many = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def answered(judge: Callable[[], object]) -> None:
    """It holds, or is refused in one of the two ways there are."""
    with contextlib.suppress(ProofRefused):
        try:
            judge()
        except InvalidRequest as unreadable:
            field, said = unreadable.violations[0].field, unreadable.message
        else:
            return
        # What the caller reads is ours, not the bytes they sent.
        assert field in FIELDS
        assert len(said) < 200


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """Bytes that were good, with some changed, cut, doubled or put in between."""
    changed = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        match draw(st.sampled_from(["flip", "set", "cut", "drop", "insert", "double"])):
            case "flip" if changed:
                changed[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if changed:
                changed[at] = draw(st.sampled_from([0, 1, 0x1F, 0x30, 0x7F, 0x80, 0x9F, 0xBF, 0xFF]))
            case "cut":
                del changed[at:]
            case "drop":
                del changed[at : at + draw(st.integers(1, 8))]
            case "insert":
                changed[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                changed[at:at] = changed[at : at + draw(st.integers(1, 64))]
    return bytes(changed)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")


def with_part(credential: str, part: str, value: bytes) -> str:
    fields = json.loads(credential)
    fields["response"][part] = b64(value)
    return json.dumps(fields)


def part_of(credential: str, part: str) -> bytes:
    return unb64(json.loads(credential)["response"][part])


@many
@given(st.one_of(st.binary(max_size=200), mutated(ASSERTED.encode())))
def test_an_assertion_of_any_text(data: bytes) -> None:
    answered(lambda: prove(PasskeyAssertion(text_of(data)), *KEYS))


@many
@given(st.data())
@pytest.mark.parametrize("part", ["clientDataJSON", "authenticatorData", "signature"])
def test_an_assertion_with_any_part(part: str, data: st.DataObject) -> None:
    value = data.draw(st.one_of(st.binary(max_size=100), mutated(part_of(ASSERTED, part))))

    answered(lambda: prove(PasskeyAssertion(with_part(ASSERTED, part, value)), *KEYS))


@many
@given(st.data())
@pytest.mark.parametrize("part", ["clientDataJSON", "attestationObject"])
def test_a_registration_with_any_part(part: str, data: st.DataObject) -> None:
    value = data.draw(st.one_of(st.binary(max_size=100), mutated(part_of(CREATED, part))))

    answered(lambda: register(PasskeyRegistration(with_part(CREATED, part, value)), Platform.WEBAUTHN))


cbor_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**64), 2**64 - 1), st.binary(max_size=40), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers(-300, 300)), inner, max_size=4),
    ),
    max_leaves=12,
)


@many
@given(
    st.sampled_from(["none", "packed", "tpm", "apple", "android-key", "fido-u2f", "android-safetynet", ""]),
    st.dictionaries(
        st.sampled_from(["alg", "sig", "x5c", "ver", "certInfo", "pubArea", "response", "ecdaaKeyId"]),
        st.one_of(cbor_values, st.just([ENROLLED.android_chain[0]]), st.just(list(ENROLLED.android_chain))),
    ),
)
def test_a_registration_with_any_statement(name: str, statement: dict[str, Any]) -> None:
    data = PASSKEY.authenticator_data(POLICY.rp_id, attested=True)
    attestation = cbor2.dumps({"fmt": name, "attStmt": statement, "authData": data})

    answered(
        lambda: register(PasskeyRegistration(with_part(CREATED, "attestationObject", attestation)), Platform.WEBAUTHN)
    )


@many
@given(cbor_values)
def test_a_registration_with_any_key(key: Any) -> None:
    data = PASSKEY.authenticator_data(POLICY.rp_id, attested=True).removesuffix(PASSKEY.cose_key) + cbor2.dumps(key)
    attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})

    answered(
        lambda: register(PasskeyRegistration(with_part(CREATED, "attestationObject", attestation)), Platform.WEBAUTHN)
    )


@many
@given(st.one_of(st.text(max_size=200), mutated(TOKEN.encode()).map(text_of)))
def test_a_token_of_any_text(token: str) -> None:
    answered(lambda: prove(CompactJWS(token), *KEYS))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@many
@given(
    st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "x5c", "zip"]), json_values),
    st.dictionaries(st.sampled_from(["aud", "jti", "nonce", "digest", "exp", "nbf", "iat"]), json_values),
    st.booleans(),
)
def test_a_token_that_says_anything(header: dict[str, Any], claims: dict[str, Any], sound: bool) -> None:  # noqa: FBT001
    said = {"alg": "ES256", "typ": "riskgate-proof+jwt", "kid": "k3"} | ({} if sound else header)

    answered(lambda: prove(CompactJWS(JOSE.token(said, claims)), *KEYS))


@many
@given(
    st.sampled_from(["k1", "k2", "k3", "k4", "k5", ""]),
    st.one_of(st.binary(max_size=100), mutated(SIGNED)),
    st.one_of(st.binary(max_size=100), mutated(VOUCHED)),
)
def test_a_signature_and_an_assertion_of_any_bytes(name: str, signature: bytes, assertion: bytes) -> None:
    answered(lambda: prove(KeySignature(name, signature), *KEYS))
    answered(lambda: prove(KeySignature("k2", SIGNED, assertion), *KEYS, policy=ANY_POLICY))


@many
@given(
    st.sampled_from([Platform.ANDROID_KEYSTORE, Platform.IOS_SECURE_ENCLAVE, Platform.JOSE, Platform.WEBAUTHN]),
    st.one_of(st.binary(max_size=100), mutated(ENROLLED.public_key), mutated(IOS.public_key)),
    st.binary(min_size=1, max_size=80),
)
def test_a_key_of_any_bytes(platform: Platform, key: bytes, signature: bytes) -> None:
    answered(lambda: register(RawKeyRegistration(key, signature), platform))


@many
@given(st.integers(0, 2), st.data())
def test_a_chain_with_any_certificate(which: int, data: st.DataObject) -> None:
    chain = list(ENROLLED.android_chain)
    chain[which] = data.draw(st.one_of(st.binary(max_size=60), mutated(chain[which])))

    answered(
        lambda: register(
            RawKeyRegistration(ENROLLED.public_key, ENROLLED.signature, tuple(chain)),
            Platform.ANDROID_KEYSTORE,
            verifier=VERIFIER,
        )
    )


@many
@given(st.one_of(st.binary(max_size=100), mutated(EVIDENCE.attestation_object)), st.text(max_size=60))
def test_app_attest_of_any_bytes(evidence: bytes, key_id: str) -> None:
    def judge(name: str) -> object:
        return register(
            RawKeyRegistration(IOS.public_key, IOS.sign(TO_ENROL), app_attest=AppAttestObject(name, evidence)),
            Platform.IOS_SECURE_ENCLAVE,
            policy=ANY_POLICY,
            verifier=VERIFIER,
        )

    answered(lambda: judge(EVIDENCE.key_id))
    answered(lambda: judge(key_id))


# --- the readers themselves ---


@many
@given(st.binary(max_size=200))
def test_cbor_of_any_bytes_is_read_or_refused(data: bytes) -> None:
    try:
        cbor.decode(data)
    except Unreadable:
        return


@many
@given(cbor_values)
def test_cbor_that_authenticators_write_is_read_back(value: Any) -> None:
    assert cbor.decode(cbor2.dumps(value)) == value


@many
@given(st.dictionaries(st.text(), st.one_of(st.text(), st.booleans(), st.none(), st.integers(-(10**9), 10**9))))
def test_json_is_read_as_every_reader_reads_it(value: dict[str, Any]) -> None:
    text = json.dumps(value).encode()

    assert json_object(text, bytes_max=len(text)) == json.loads(text)


@many
@given(st.binary(max_size=100))
def test_base64url_has_one_spelling(value: bytes) -> None:
    text = b64(value)

    assert base64url(text, bytes_max=100) == value
    for other in (text + "=", text + "\n", " " + text, text + "A===="):
        with pytest.raises(Unreadable):
            base64url(other, bytes_max=1000)


@pytest.mark.parametrize("levels", [8, 9])
def test_eight_levels_of_cbor_are_the_most(levels: int) -> None:
    data = b"\x81" * (levels - 1) + b"\0"

    if levels == 8:
        assert cbor.decode(data)
    else:
        with pytest.raises(Unreadable, match="too deep"):
            cbor.decode(data)


@pytest.mark.parametrize("levels", [8, 9])
def test_eight_levels_of_json_are_the_most(levels: int) -> None:
    text = b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)

    if levels == 8:
        assert json_object(text, bytes_max=1000)
    else:
        with pytest.raises(Unreadable, match="8 levels"):
            json_object(text, bytes_max=1000)


def test_brackets_in_strings_are_no_levels() -> None:
    text = json.dumps({"a": '[[[[[[[[[[\\"{{{{{{{{{{', "b": "\\"}).encode()

    assert json_object(text, bytes_max=1000) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [b'"' + b'\\"' * 16_000, b"\\" * 32_000, b'"' * 32_000, b"[" * 32_000],
    ids=["escapes", "backslashes", "quotes", "brackets"],
)
def test_text_made_to_take_long_does_not(text: bytes) -> None:
    """Reading is linear: what takes quadratic time would not come back here within the test's life."""
    with pytest.raises(Unreadable):
        json_object(text, bytes_max=32_768)
