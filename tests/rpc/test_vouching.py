"""What makers of phones say of keys and apps, over the wire: forged, borrowed, out of date, or about something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from riskgate.identity.v1 import device_service_pb2 as pb
from riskgate_client.phone import AndroidPhone, IPhone
from tests.rpc.attacks import WRONG
from tests.rpc.calling import refused
from tests.rpc.devices import asked, begin, devices_of, proof, registration
from tests.rpc.requests import open_line
from tests.rpc.serving import Deployment, Loop, Running, Tenant
from tests.rpc.standing import StandingClock, standing
from tests.unit.crypto.proofs.asking import NOW_US
from tests.unit.crypto.proofs.makers import (
    KEY_DESCRIPTION,
    NOW,
    NULL,
    ROOT,
    AppleApp,
    Described,
    Issuer,
    android_chain,
    authority,
    integer,
    issue,
    set_of,
)

APP: Final = AppleApp()
REVOKED: Final = authority("Batch of phones", ROOT, serial=0xBADBA7C4)
STATUS: Final = {"entries": {"badba7c4": {"status": "REVOKED", "reason": "KEY_COMPROMISE"}}}

Chain = Callable[[bytes, bytes], Sequence[bytes]]


@pytest.fixture(scope="module")
def strict(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that takes no key of a phone unless its maker vouches for it, when the makers' certificates are good."""
    folder = tmp_path_factory.mktemp("strict")
    roots, revoked = folder / "roots.pem", folder / "status.json"
    roots.write_bytes(ROOT.key_pem)
    revoked.write_text(json.dumps(STATUS))
    deployment = Deployment(folder / "data")
    settings: dict[str, Any] = {
        "attestation": "android,ios", "guarded_use": True, "android_roots": str(roots), "apple_roots": str(roots),
        "android_revocations": str(revoked), "apple_app_ids": APP.app_id,
    }  # fmt: skip
    with standing(loop, deployment, StandingClock(NOW_US), **settings) as running:
        yield running
    deployment.close()


@pytest.fixture
def ada_at(strict: Running) -> Tenant:
    """A tenant whose customer ada has a line."""
    tenant = strict.tenant()
    open_line(tenant.api)
    return tenant


# --- Android ---


def with_chain(chain: Chain, phone: AndroidPhone | None = None) -> AndroidPhone:
    return AndroidPhone(chain=chain, key=(phone or AndroidPhone()).key)


def meets(tenant: Tenant, phone: AndroidPhone) -> str:
    """Offer a phone's key; return the refusal, after which a good one is taken on the same enrolment."""
    begun = begin(tenant, phone)
    found = refused(lambda: tenant.api.devices.FinishEnrollment(registration(phone, begun))).name
    assert devices_of(tenant) == []
    good = registration(with_chain(android_chain()), begun)
    assert tenant.api.devices.FinishEnrollment(good).credential.assurance.level == 3
    return found


@pytest.mark.attack("drawn-out-chain")
@pytest.mark.parametrize("described", [True, False], ids=["with a description", "without one"])
def test_a_chain_that_the_holder_of_an_attested_key_drew_out(ada_at: Tenant, *, described: bool) -> None:
    attested, mine = AndroidPhone(), AndroidPhone()

    def drawn_out(_: bytes, challenge: bytes) -> list[bytes]:
        genuine = android_chain()(attested.public_key, challenge)
        holder = Issuer(attested.key, x509.load_der_x509_certificate(genuine[0]))
        extensions = [(KEY_DESCRIPTION, Described().encoded(challenge))] if described else []
        forged = issue("Android Keystore Key", mine.key.public_key(), holder, extensions=extensions)
        return [forged.public_bytes(Encoding.DER), *genuine]

    assert meets(ada_at, with_chain(drawn_out, mine)) == WRONG


def described_twice() -> Chain:
    def made(spki: bytes, challenge: bytes) -> list[bytes]:
        extensions = [(KEY_DESCRIPTION, Described().encoded(challenge))]
        return android_chain(batch=authority("Batch of phones", ROOT, extensions=extensions))(spki, challenge)

    return made


def of_own_root() -> Chain:
    root = authority("Root of a maker")
    return android_chain(batch=authority("Batch of phones", root), root=root)


FALSE_CHAINS: Final[dict[str, Callable[[], Chain | None]]] = {
    "none": lambda: None,
    "a second description": described_twice,
    "a root of one's own": of_own_root,
    "made by software": lambda: android_chain(Described(attestation_level=0)),
    "a key in software": lambda: android_chain(Described(keymint_level=0)),
    "an imported key": lambda: android_chain(Described(hardware={702: integer(2)})),
    "a key for something else": lambda: android_chain(Described(hardware={1: set_of(integer(3))})),
    "another challenge": lambda: android_chain(Described(challenge=b"another")),
    "another key": lambda: lambda _, challenge: android_chain()(AndroidPhone().public_key, challenge),
    "an unlocked phone": lambda: android_chain(Described(locked=b"\0")),
    "a phone that failed to verify": lambda: android_chain(Described(boot_state=3)),
    "a phone that says nothing": lambda: android_chain(Described(hardware={704: None})),
    "a revoked batch": lambda: android_chain(batch=REVOKED),
}


@pytest.mark.attack("false-chain")
@pytest.mark.parametrize("name", FALSE_CHAINS)
def test_a_chain_about_another_key_phone_or_challenge(ada_at: Tenant, name: str) -> None:
    chain = FALSE_CHAINS[name]()

    assert meets(ada_at, AndroidPhone() if chain is None else with_chain(chain)) == WRONG


@pytest.mark.attack("unguarded-key")
@pytest.mark.parametrize(
    "described",
    [
        Described(hardware={503: NULL, 504: None}),
        Described(hardware={505: integer(30)}),
        Described(software={503: NULL}),
        Described(hardware={504: None}, software={504: integer(3)}),
    ],
    ids=["no user", "for a while", "no user, says Android", "a user, says Android"],
)
def test_a_key_that_does_not_need_its_user_each_time(ada_at: Tenant, described: Described) -> None:
    assert meets(ada_at, with_chain(android_chain(described))) == WRONG


@pytest.mark.attack("old-root")
def test_a_root_certificate_that_is_out_of_date_and_whose_key_is_trusted(ada_at: Tenant) -> None:
    past = (NOW - timedelta(days=3650), NOW - timedelta(days=1))
    own = issue("Root of a maker", ROOT.key.public_key(), key=ROOT.key, authority=True, valid=past)
    phone = with_chain(android_chain(root=Issuer(ROOT.key, own)))
    request = registration(phone, begin(ada_at, phone))

    assert ada_at.api.devices.FinishEnrollment(request).credential.assurance.level == 3


# --- App Attest ---


class Caller:
    """Ada, with an iPhone and an instance of the bank's app on it."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant, self.phone, self.app = tenant, IPhone(), AppleApp()
        begun = begin(tenant, self.phone)
        request = vouched_for(self.phone, begun, self.app)
        self.credential_id = tenant.api.devices.FinishEnrollment(request).credential.credential_id

    def answer(self, assertion: bytes | None = None, count: int = 1, **changes: Any) -> pb.VerifyChallengeRequest:
        """Her answer to a new challenge, with what vouches for the app."""
        challenge = asked(self.tenant)
        vouched = self.app.vouch(challenge.signing_input, count) if assertion is None else assertion
        changes.setdefault("app_attest_assertion", vouched)
        return proof(self.phone, challenge, self.credential_id, **changes)

    def is_let_in(self, request: pb.VerifyChallengeRequest) -> bool:
        return self.tenant.api.devices.VerifyChallenge(request).grant.level == 2

    def meets(self, request: pb.VerifyChallengeRequest) -> str:
        return refused(lambda: self.tenant.api.devices.VerifyChallenge(request)).name


def vouched_for(
    phone: IPhone, begun: pb.BeginEnrollmentResponse, app: AppleApp, challenge: bytes = b""
) -> pb.FinishEnrollmentRequest:
    request = registration(phone, begun)
    evidence = app.attest(challenge or begun.challenge)
    request.raw_key.app_attest.key_id = evidence.key_id
    request.raw_key.app_attest.attestation_object = evidence.attestation_object
    return request


@pytest.fixture
def ada(ada_at: Tenant) -> Caller:
    return Caller(ada_at)


@pytest.mark.attack("false-app")
@pytest.mark.parametrize(
    ("app", "challenge"),
    [
        (APP.with_(aaguid=b"appattestdevelop"), b""),
        (APP.with_(aaguid=bytes(16)), b""),
        (APP.with_(app_id="TEAM999999.com.bank.app"), b""),
        (APP.with_(app_id="TEAM123456.com.evil.app"), b""),
        (APP.with_(sign_count=1), b""),
        (APP.with_(key_id=bytes(32)), b""),
        (APP.with_(cose_of=AppleApp().key), b""),
        (APP.with_(batch=authority("Apple App Attestation CA 1")), b""),
        (APP, b"of another enrolment"),
    ],
    ids=["development", "no maker", "team", "bundle", "counter", "key id", "key", "authority", "challenge"],
)
def test_evidence_of_an_app_that_is_not_the_banks(ada_at: Tenant, app: AppleApp, challenge: bytes) -> None:
    phone = IPhone()
    begun = begin(ada_at, phone)

    for request in (vouched_for(phone, begun, app, challenge), registration(phone, begun)):
        assert refused(partial(ada_at.api.devices.FinishEnrollment, request)).name == WRONG
    assert ada_at.api.devices.FinishEnrollment(vouched_for(phone, begun, APP)).credential.credential_id


@pytest.mark.attack("false-app")
def test_evidence_of_an_app_that_is_shown_again_or_does_not_count(ada: Caller) -> None:
    first = ada.answer(count=5)
    assert ada.is_let_in(first)

    for again in (
        ada.answer(first.app_attest_assertion),
        ada.answer(count=5),
        ada.answer(count=4),
        ada.answer(AppleApp().vouch(b"", 6)),
    ):
        assert ada.meets(again) == WRONG
    assert ada.is_let_in(ada.answer(count=6))


@pytest.mark.attack("app-for-a-proof")
def test_what_vouches_for_the_app_is_no_proof_of_the_customer(ada: Caller) -> None:
    challenge = asked(ada.tenant)
    vouched = ada.app.vouch(challenge.signing_input)
    for signature in (vouched[:512], cbor2.loads(vouched)["signature"]):
        signed = pb.DeviceSignature(credential_id=ada.credential_id, signature=signature)
        request = proof(ada.phone, challenge, ada.credential_id, device_signature=signed, app_attest_assertion=vouched)
        assert ada.meets(request) == WRONG

    assert ada.is_let_in(proof(ada.phone, challenge, ada.credential_id, app_attest_assertion=vouched))
