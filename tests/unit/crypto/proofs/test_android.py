"""What the hardware of an Android phone vouches for, and every way in which it does not."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import cbor2
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from riskgate_client.phone import AndroidPhone, Chain, Passkey
from riskgate_server.crypto.proofs import AttestationTrust, ProofVerifier, android, chains
from riskgate_server.crypto.proofs.reading import Unreadable
from riskgate_server.crypto.proofs.trust import TrustFileBroken
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    AndroidApp,
    BootState,
    Fault,
    KeySignature,
    PasskeyRegistration,
    Platform,
    RawKeyRegistration,
    RegistrationVerdict,
)
from tests.unit.crypto.proofs.asking import (
    ASKED,
    ENROLMENT,
    NOW_US,
    POLICY,
    malformed,
    prove,
    refused,
    register,
    registration_of,
)
from tests.unit.crypto.proofs.makers import (
    EVERY_YEAR,
    KEY_DESCRIPTION,
    NOW,
    NULL,
    ROOT,
    TEE,
    TRUST,
    Described,
    Issuer,
    android_chain,
    authority,
    integer,
    issue,
    set_of,
    tlv,
)
from tests.vectors import files, load, published

TO_ENROL: Final = challenges.signing_input(ENROLMENT)
CHALLENGE: Final = challenges.challenge(ENROLMENT)
GUARDED: Final = msgspec.structs.replace(POLICY, attestation=True, guarded_use=True)
DAY_US: Final = 24 * 3600 * 1_000_000
CHAIN: Final = "raw_key.android_chain"


def enrolled(chain: Chain, *, phone: AndroidPhone | None = None, **options: Any) -> RegistrationVerdict:
    used = phone or AndroidPhone()
    key = AndroidPhone(chain=chain, key=used.key).enrol(TO_ENROL, CHALLENGE)
    options.setdefault("verifier", ProofVerifier(TRUST))
    return register(registration_of(key), Platform.ANDROID_KEYSTORE, **options)


# --- what holds ---


@pytest.mark.parametrize("level", [1, 2], ids=["TEE", "StrongBox"])
def test_a_key_in_hardware_that_needs_the_user_each_time_reaches_level_3(level: int) -> None:
    phone = AndroidPhone()

    verdict = enrolled(
        android_chain(Described(attestation_level=level, keymint_level=level)), phone=phone, policy=GUARDED
    )

    assert verdict.attestation == "android-key"
    assert verdict.assurance.level == 3
    assert (verdict.assurance.hardware_backed, verdict.assurance.attested) == (True, True)
    assert (verdict.assurance.user_verified_per_use, verdict.assurance.boot_state) == (True, BootState.VERIFIED)
    assert prove(KeySignature("k1", phone.sign(challenges.signing_input(ASKED))), verdict.key).credential_id == "k1"


def test_a_phone_with_a_key_of_its_owners_tells_so() -> None:
    verdict = enrolled(android_chain(Described(boot_state=1)))

    assert verdict.assurance.boot_state == BootState.SELF_SIGNED


def test_a_description_of_old_phones_has_no_boot_hash() -> None:
    old = tlv(0x30, tlv(4, bytes(32)), tlv(1, b"\xff"), tlv(10, b"\0"))

    assert enrolled(android_chain(Described(version=2, hardware={704: old}))).assurance.attested


def test_a_root_certificate_may_be_out_of_date_for_its_key_is_what_is_trusted() -> None:
    past = (NOW - timedelta(days=3650), NOW - timedelta(days=1))
    expired = Issuer(
        ROOT.key,
        issue("Root of a maker", ROOT.key.public_key(), key=ROOT.key, authority=True, valid=past),
    )

    assert enrolled(android_chain(root=expired)).assurance.attested


def test_a_chain_may_leave_out_its_root() -> None:
    def made(spki: bytes, challenge: bytes) -> list[bytes]:
        return list(android_chain()(spki, challenge))[:-1]

    assert enrolled(made).assurance.attested


@pytest.mark.parametrize(
    "open_door",
    [{"hardware": {503: NULL, 504: None}}, {"hardware": {505: integer(30)}}, {"software": {503: NULL}}],
    ids=["no auth required", "time-out", "no auth required by Android"],
)
def test_a_key_that_may_be_used_without_the_user_is_refused_where_that_is_asked(open_door: dict[str, Any]) -> None:
    chain = android_chain(Described(**open_door))

    with refused(Fault.USE_NOT_GUARDED):
        enrolled(chain, policy=GUARDED)
    verdict = enrolled(chain)
    assert (verdict.assurance.user_verified_per_use, verdict.assurance.level) == (False, 2)


def test_only_the_hardware_can_say_that_use_is_guarded() -> None:
    chain = android_chain(Described(hardware={504: None}, software={504: integer(3)}))

    with refused(Fault.USE_NOT_GUARDED):
        enrolled(chain, policy=GUARDED)


def test_the_app_must_be_one_of_the_tenants() -> None:
    signer = hashlib.sha256(b"signer").digest()
    ours = msgspec.structs.replace(POLICY, android_apps=(AndroidApp("com.bank.app", signer),))
    other_signer = msgspec.structs.replace(POLICY, android_apps=(AndroidApp("com.bank.app", bytes(32)),))
    other_app = msgspec.structs.replace(POLICY, android_apps=(AndroidApp("com.evil.app", signer),))

    assert enrolled(android_chain(), policy=ours).assurance.attested
    for policy in (other_signer, other_app):
        with refused(Fault.APP_UNKNOWN):
            enrolled(android_chain(), policy=policy)
    for described in (Described(software={709: None}), Described(boot_state=1)):
        with refused(Fault.APP_UNKNOWN):
            enrolled(android_chain(described), policy=ours)


# --- what does not ---


@pytest.mark.parametrize(
    ("described", "fault"),
    [
        (Described(challenge=b"another"), Fault.ATTESTATION_CHALLENGE_WRONG),
        (Described(challenge=b""), Fault.ATTESTATION_CHALLENGE_WRONG),
        (Described(attestation_level=0), Fault.KEY_NOT_IN_HARDWARE),
        (Described(keymint_level=0), Fault.KEY_NOT_IN_HARDWARE),
        (Described(hardware={702: integer(2)}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(hardware={702: integer(1)}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(hardware={702: None}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(hardware={702: None}, software={702: integer(0)}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(hardware={1: set_of(integer(3))}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(hardware={1: None}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(hardware={2: integer(1)}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(hardware={3: integer(384)}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(hardware={10: integer(2)}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(hardware={600: NULL}), Fault.KEY_NOT_GENERATED_THERE),
        (Described(locked=b"\0"), Fault.BOOT_NOT_VERIFIED),
        (Described(boot_state=2), Fault.BOOT_NOT_VERIFIED),
        (Described(boot_state=3), Fault.BOOT_NOT_VERIFIED),
        (Described(hardware={704: None}), Fault.BOOT_NOT_VERIFIED),
    ],
    ids=repr,
)
def test_a_key_or_a_phone_that_is_not_what_it_should_be_is_refused(described: Described, fault: Fault) -> None:
    with refused(fault):
        enrolled(android_chain(described))


@pytest.mark.parametrize(
    "described",
    [
        Described(attestation_level=3),
        Described(boot_state=4),
        Described(locked=b"\x01"),
        Described(locked=b"\xff\xff"),
        Described(hardware={702: tlv(2, b"\0\0")}),
        Described(hardware={702: integer(0) + NULL}),
        Described(hardware={1: tlv(0x31, integer(3), integer(2))}),
        Described(hardware={1: tlv(0x31, *(integer(n) for n in range(60)))}),
        Described(hardware={704: NULL}),
        Described(software={709: tlv(4, b"\x30\x01")}),
    ],
    ids=repr,
)
def test_a_description_that_is_not_strict_der_is_malformed(described: Described) -> None:
    with malformed(CHAIN):
        enrolled(android_chain(described))


def test_a_description_with_its_tags_out_of_order_or_twice_is_malformed() -> None:
    def with_hardware(entries: bytes) -> Chain:
        whole = Described().encoded(CHALLENGE)
        level = tlv(0x30, integer(300), tlv(10, b"\1"), integer(300), tlv(10, b"\1"), tlv(4, CHALLENGE), tlv(4))
        assert whole[0] == level[0]
        said = tlv(
            0x30,
            integer(300),
            tlv(10, b"\1"),
            integer(300),
            tlv(10, b"\1"),
            tlv(4, CHALLENGE),
            tlv(4),
            tlv(0x30),
            tlv(0x30, entries),
        )
        return described_as(said)

    ascending = tlv(0xA2, integer(3)) + tlv(0xA3, integer(256))
    with refused(Fault.KEY_NOT_GENERATED_THERE):
        enrolled(with_hardware(ascending))
    for entries in (tlv(0xA3, integer(256)) + tlv(0xA2, integer(3)), tlv(0xA2, integer(3)) * 2, integer(3)):
        with malformed(CHAIN):
            enrolled(with_hardware(entries))


def described_as(extension: bytes) -> Chain:
    """A chain whose leaf has these bytes for a description."""

    def made(spki: bytes, challenge: bytes) -> list[bytes]:
        leaf = x509.load_der_x509_certificate(android_chain()(spki, challenge)[0])
        key = leaf.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        changed = issue("Android Keystore Key", key, TEE, extensions=[(KEY_DESCRIPTION, extension)])
        return [changed.public_bytes(Encoding.DER), TEE.der, ROOT.der]

    return made


@pytest.mark.parametrize("extension", [b"", b"\x30\0", b"\x30\x84\xff\xff\xff\xff", b"\x30" * 5000, bytes(100)])
def test_a_description_of_other_bytes_is_malformed(extension: bytes) -> None:
    with malformed(CHAIN):
        enrolled(described_as(extension))


def test_a_chain_drawn_out_by_an_attested_key_is_refused() -> None:
    """The holder of an attested key signs one certificate more, with a description of their own."""
    attested, mine = AndroidPhone(), AndroidPhone()
    genuine = android_chain()(attested.public_key, CHALLENGE)
    holder = Issuer(attested.key, x509.load_der_x509_certificate(genuine[0]))

    for extensions in ([(KEY_DESCRIPTION, Described().encoded(CHALLENGE))], []):
        forged = issue("Android Keystore Key", mine.key.public_key(), holder, extensions=extensions)
        with refused(Fault.ATTESTATION_WRONG):
            enrolled(lambda *_, leaf=forged: [leaf.public_bytes(Encoding.DER), *genuine], phone=mine)


def test_only_an_authority_issues() -> None:
    """Both marks are needed: the basic constraints, and the use of its key for certificates."""
    key = ec.generate_private_key(ec.SECP256R1())

    def batch(**marks: Any) -> Issuer:
        return Issuer(key, issue("Batch of phones", key.public_key(), ROOT, **marks))

    assert enrolled(android_chain(batch=batch(authority=True))).assurance.attested
    for marks in ({}, {"authority": True, "signs_certificates": False}, {"signs_certificates": True}):
        with refused(Fault.ATTESTATION_WRONG):
            enrolled(android_chain(batch=batch(**marks)))


def test_a_second_description_above_the_leaf_is_refused() -> None:
    batch = authority("Batch", ROOT, extensions=[(KEY_DESCRIPTION, Described().encoded(CHALLENGE))])

    with refused(Fault.ATTESTATION_WRONG):
        enrolled(android_chain(batch=batch))


def test_a_chain_about_another_key_is_refused() -> None:
    other = AndroidPhone()

    with refused(Fault.ATTESTATION_WRONG):
        enrolled(lambda _, challenge: android_chain()(other.public_key, challenge))


def test_a_chain_up_to_a_root_of_ones_own_is_refused() -> None:
    root = authority("Root of a maker")

    with refused(Fault.ATTESTATION_ROOT_UNKNOWN):
        enrolled(android_chain(batch=authority("Batch of phones", root), root=root))
    with refused(Fault.ATTESTATION_WRONG):
        enrolled(android_chain(batch=authority("Batch of phones", root)))
    with refused(Fault.ATTESTATION_ROOT_UNKNOWN):
        enrolled(android_chain(), verifier=ProofVerifier(AttestationTrust()))


def test_a_certificate_whose_signatures_would_cost_too_much_is_malformed() -> None:
    """With an exponent as long as the key each takes 17 ms, and who made the chain has it checked link by link."""
    dear = rsa.RSAPublicNumbers(2**3070 + 1, 2**3071 + 1).public_key()
    batch = issue("Batch of phones", dear, ROOT, authority=True)

    with malformed(CHAIN):
        enrolled(lambda *given: [android_chain()(*given)[0], batch.public_bytes(Encoding.DER), ROOT.der])


def test_a_leaf_that_signs_itself_is_refused() -> None:
    phone = AndroidPhone()
    alone = issue(
        "Android Keystore Key",
        phone.key.public_key(),
        key=phone.key,
        extensions=[(KEY_DESCRIPTION, Described().encoded(CHALLENGE))],
    )

    with refused(Fault.ATTESTATION_ROOT_UNKNOWN):
        enrolled(lambda *_: [alone.public_bytes(Encoding.DER)], phone=phone)


@pytest.mark.parametrize("status", ["REVOKED", "SUSPENDED"])
def test_a_revoked_batch_is_refused(status: str) -> None:
    listed = msgspec.json.encode({"entries": {"c0ffee": {"status": status, "reason": "KEY_COMPROMISE"}}})
    trust = AttestationTrust(android_roots=ROOT.key_pem, android_status=listed)

    with refused(Fault.ATTESTATION_REVOKED):
        enrolled(android_chain(), verifier=ProofVerifier(trust))


def test_certificates_count_only_in_their_time() -> None:
    past = (EVERY_YEAR[0], NOW - timedelta(seconds=1))
    future = (NOW + timedelta(seconds=1), EVERY_YEAR[1])

    for valid in (past, future):
        with refused(Fault.ATTESTATION_WRONG):
            enrolled(android_chain(batch=authority("Batch of phones", ROOT, valid=valid)))
    with refused(Fault.ATTESTATION_WRONG):
        enrolled(android_chain(), now_us=NOW_US + 400 * DAY_US)


def test_a_chain_in_another_order_or_with_a_link_missing_is_refused() -> None:
    middle = authority("Middle", ROOT)
    batch = authority("Batch of phones", middle)

    def chain_of(*order: int) -> Chain:
        def made(spki: bytes, challenge: bytes) -> list[bytes]:
            whole = [*android_chain(batch=batch)(spki, challenge)[:2], middle.der, ROOT.der]
            return [whole[place] for place in order]

        return made

    assert enrolled(chain_of(0, 1, 2, 3)).assurance.attested
    for order in ((0, 1, 3), (0, 2, 1, 3), (0, 1, 3, 2), (1, 2, 3), (0, 1)):
        with pytest.raises(Exception, match=r"ATTESTATION_WRONG|ATTESTATION_ROOT_UNKNOWN"):
            enrolled(chain_of(*order))


@pytest.mark.parametrize(
    "chain",
    [
        (b"",),
        (b"\x30\0",),
        (ROOT.der[:-1],),
        (ROOT.der + b"\0",),
        (ROOT.der,) * 11,
        (bytes(8193),),
        # Of a version that X.509 has not.
        (ROOT.der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03"),),
    ],
    ids=lambda _: "chain",
)
def test_a_chain_that_cannot_be_read_is_malformed(chain: tuple[bytes, ...]) -> None:
    with malformed(CHAIN):
        enrolled(lambda *_: chain)


def test_a_signature_must_hold_whatever_the_chain_says() -> None:
    phone = AndroidPhone(chain=android_chain())
    key = phone.enrol(b"other bytes", CHALLENGE)

    with refused(Fault.SIGNATURE_WRONG):
        register(
            RawKeyRegistration(key.public_key, key.signature, key.android_chain),
            Platform.ANDROID_KEYSTORE,
            verifier=ProofVerifier(TRUST),
        )


# --- the same under a passkey ---

EVER: Final = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
"""The library judges dates by the clock of the process, and has no other."""
LASTING_ROOT: Final = authority("Root of a maker", valid=EVER)
LASTING: Final = authority("Batch of phones", LASTING_ROOT, valid=EVER, serial=0xC0FFEE)


def passkey_of_a_phone(described: Described, *, status: bytes = b'{"entries":{}}') -> RegistrationVerdict:
    """Register a passkey whose key lies in the Android Keystore, and whose phone vouches for it."""
    made = Passkey(origin=POLICY.origins[0])
    client_data = made.client_data("webauthn.create", challenges.base64url(CHALLENGE))
    hashed = hashlib.sha256(client_data).digest()
    data = made.authenticator_data(POLICY.rp_id, attested=True)
    chain = android_chain(described, batch=LASTING, root=LASTING_ROOT, valid=EVER)
    statement = {
        "alg": -7,
        "sig": made.key.sign(data + hashed, ec.ECDSA(SHA256())),
        "x5c": list(chain(AndroidPhone(key=made.key).public_key, hashed)),
    }
    attestation = cbor2.dumps({"fmt": "android-key", "attStmt": statement, "authData": data})
    certificate = LASTING_ROOT.certificate.public_bytes(Encoding.PEM)
    trust = AttestationTrust(
        android_roots=certificate, android_status=status, passkey_roots={"android-key": certificate}
    )
    return register(
        PasskeyRegistration(made.credential(clientDataJSON=client_data, attestationObject=attestation)),
        Platform.WEBAUTHN,
        verifier=ProofVerifier(trust),
    )


def test_a_passkey_that_an_android_phone_vouches_for_reaches_level_3() -> None:
    verdict = passkey_of_a_phone(Described())

    assert (verdict.attestation, verdict.assurance.level) == ("android-key", 3)
    assert verdict.assurance.boot_state == BootState.VERIFIED


def test_a_passkey_whose_key_any_app_could_use_without_the_user_is_worth_a_plain_one() -> None:
    """An app of anybody's makes the key, and signs that it verified the user: only the hardware knows better."""
    verdict = passkey_of_a_phone(Described(hardware={503: NULL, 504: None}))

    assert (verdict.assurance.user_verified_per_use, verdict.assurance.level) == (False, 2)


@pytest.mark.parametrize(
    ("described", "status", "fault"),
    [
        (Described(locked=b"\0"), b'{"entries":{}}', Fault.BOOT_NOT_VERIFIED),
        (Described(attestation_level=0), b'{"entries":{}}', Fault.KEY_NOT_IN_HARDWARE),
        (Described(), b'{"entries":{"c0ffee":{"status":"REVOKED"}}}', Fault.ATTESTATION_REVOKED),
        (Described(challenge=bytes(32)), b'{"entries":{}}', Fault.ATTESTATION_WRONG),
    ],
    ids=["unlocked", "software", "revoked", "challenge"],
)
def test_a_passkey_is_held_to_what_raw_keys_are_held_to(described: Described, status: bytes, fault: Fault) -> None:
    with refused(fault):
        passkey_of_a_phone(described, status=status)


# --- files of roots and revocations ---


def test_roots_may_be_certificates_or_keys() -> None:
    certificate = ROOT.certificate.public_bytes(Encoding.PEM)

    assert AttestationTrust(android_roots=certificate).android_roots == TRUST.android_roots
    assert len(AttestationTrust(android_roots=certificate + TEE.key_pem).android_roots) == 2
    assert len(AttestationTrust().android_roots) == 2


@pytest.mark.parametrize(
    "broken",
    [
        {"android_roots": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        {"apple_roots": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"},
        {"android_status": b"{}"},
        {"android_status": b'{"entries":{"xyz":{"status":"REVOKED"}}}'},
        {"passkey_roots": {"packed": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}},
        {"passkey_roots": {"packed": b"no roots at all"}},
        {"android_roots": b""},
    ],
    ids=repr,
)
def test_a_broken_file_stops_the_start(broken: dict[str, Any]) -> None:
    with pytest.raises(TrustFileBroken):
        AttestationTrust(**broken)


# --- recordings of real phones ---

RECORDED: Final = files("android_key_attestation/*/*/*.pem")
LEVELS: Final = {"SOFTWARE": False, "TRUSTED_ENVIRONMENT": True, "STRONG_BOX": True}
STATES: Final = {
    "VERIFIED": BootState.VERIFIED,
    "SELF_SIGNED": BootState.SELF_SIGNED,
    "UNVERIFIED": BootState.UNVERIFIED,
    "FAILED": BootState.UNVERIFIED,
}


def read_pem(path: Path) -> list[bytes]:
    return [found.public_bytes(Encoding.DER) for found in x509.load_pem_x509_certificates(path.read_bytes())]


def last_day_us(certificates: tuple[x509.Certificate, ...]) -> int:
    """A day on which all of them were valid."""
    return int(min(found.not_valid_after_utc for found in certificates).timestamp() - 86_400) * 1_000_000


@published
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: "/".join(path.parts[-3:]))
def test_a_recorded_chain_is_read_as_it_was_published(path: Path) -> None:
    expected = load(str(path.with_suffix(".json")))
    certificates = chains.read(read_pem(path))

    found = android.describe(certificates[0])

    assert found.in_hardware == (
        LEVELS[expected["attestationSecurityLevel"]] and LEVELS[expected["keyMintSecurityLevel"]]
    )
    assert found.challenge == base64.b64decode(expected["attestationChallenge"])
    hardware = expected["hardwareEnforced"]
    assert found.generated == (hardware["origin"] == "GENERATED")
    assert found.signs_p256 == (hardware["algorithms"] == "3")
    assert not found.guarded
    root_of_trust = hardware.get("rootOfTrust")
    assert found.locked == bool(root_of_trust and root_of_trust["deviceLocked"])
    assert found.boot_state == (STATES[root_of_trust["verifiedBootState"]] if root_of_trust else 0)
    application = expected["softwareEnforced"]["attestationApplicationId"]
    packages = {package["name"] for package in application["packages"]}
    # What Android itself asks for is signed by nobody: it is no tenant's app.
    assert {app.package for app in found.apps} == (packages if application.get("signatures") else set())


@published
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: "/".join(path.parts[-3:]))
def test_a_recorded_chain_ends_in_a_key_of_google_if_hardware_made_it(path: Path) -> None:
    certificates = chains.read(read_pem(path))
    trust = AttestationTrust()

    def check() -> None:
        chains.check(
            certificates,
            root_keys=trust.android_roots,
            revoked=trust.android_revoked,
            now_us=last_day_us(certificates),
        )

    if load(str(path.with_suffix(".json")))["attestationSecurityLevel"] == "SOFTWARE":
        with refused(Fault.ATTESTATION_ROOT_UNKNOWN):
            check()
    else:
        check()
    with pytest.raises(Exception, match="ATTESTATION"):
        chains.check(certificates, root_keys=trust.android_roots, now_us=0)


@published
@pytest.mark.parametrize("name", ["malformed_rot_device_locked.pem", "tags_not_in_ascending_order.pem"])
def test_a_recorded_description_of_wrong_form_is_malformed(name: str) -> None:
    (path,) = files(f"android_key_attestation/invalid/{name}")
    certificates = chains.read(read_pem(path))

    with pytest.raises(Unreadable):
        android.describe(certificates[0])
