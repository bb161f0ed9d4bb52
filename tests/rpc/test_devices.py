"""Device keys over the wire: attacks, and what they meet."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from google.protobuf.message import Message

from riskgate.identity.v1 import device_service_pb2 as pb
from riskgate.identity.v1 import grant_pb2
from riskgate.risk.v1 import risk_service_pb2 as risk_pb
from riskgate_client.phone import AndroidPhone, IPhone, JoseApp, Passkey
from riskgate_server import relying_party
from riskgate_server.rpc import service
from tests.rpc.attacks import USED, WRONG
from tests.rpc.calling import REPEATS, answer, at_once, refused
from tests.rpc.devices import (
    P256_ORDER,
    WEB,
    AnyDevice,
    again,
    asked,
    begin,
    devices_of,
    enrol,
    platform_of,
    proof,
    proven,
    registration,
    revoking,
)
from tests.rpc.logs import Lines, logs
from tests.rpc.phones import BINDING, SIGN_IN, TRANSACTION, whose
from tests.rpc.requests import buy, entries_of, open_line, resuming
from tests.rpc.serving import Deployment, Loop, Running, Tenant, serving
from tests.unit.crypto.proofs.makers import android_chain, authority


def check(tenant: Tenant, request: pb.VerifyChallengeRequest) -> grant_pb2.Grant:
    return tenant.api.devices.VerifyChallenge(request).grant


def refusal(tenant: Tenant, request: pb.VerifyChallengeRequest) -> str:
    return refused(lambda: check(tenant, request)).name


@pytest.mark.parametrize(
    "make",
    [
        AndroidPhone, IPhone, JoseApp, partial(JoseApp, "EdDSA"), partial(Passkey, WEB),
        partial(Passkey, WEB, synced=True, escapes=True),
    ],
    ids=["Android", "iOS", "ES256", "EdDSA", "passkey", "synced passkey"],
)  # fmt: skip
def test_a_device_of_every_kind_enrols_and_approves_a_purchase(ada_at: Tenant, make: Any) -> None:
    device: AnyDevice = make()
    credential_id = enrol(ada_at, device)
    demanded = buy(ada_at.api, phone="ask", amount=4_200)
    challenge = asked(ada_at, purpose=TRANSACTION, transaction_id=demanded.transaction_id)
    if not isinstance(device, Passkey):
        shown = json.loads(challenge.signing_input)["transaction"]
        assert (shown["amount_minor"], shown["currency"], shown["payee_id"]) == (4_200, "CNY", "shop")

    grant = check(ada_at, proof(device, challenge, credential_id))
    assert (grant.level, list(grant.methods)) == (2, [grant_pb2.FACTOR_KIND_DEVICE_KEY])
    done = ada_at.api.risk.CheckTransaction(resuming(demanded.transaction_id, grant.token)).decision
    assert (done.outcome, done.held_amount.amount_minor) == (risk_pb.OUTCOME_APPROVE, 4_200)
    (listed,) = devices_of(ada_at)
    assert (listed.credential_id, listed.platform, listed.assurance.level) == (credential_id, platform_of(device), 2)
    assert listed.assurance.device_bound is (not isinstance(device, JoseApp) and not getattr(device, "synced", False))
    assert listed.last_use_time.seconds >= listed.enroll_time.seconds > 0


@pytest.mark.attack("foreign-challenge")
@pytest.mark.attack("foreign-device")
def test_a_challenge_or_device_of_another_tenant_is_as_unknown_as_one_that_never_was(
    ada_at: Tenant, running: Running
) -> None:
    phone = AndroidPhone()
    credential_id = enrol(ada_at, phone)
    stranger = running.tenant()
    open_line(stranger.api)
    challenge = asked(ada_at)
    theirs = proof(phone, challenge, credential_id)
    nobodys = proof(phone, challenge, credential_id, challenge_id="c-" + "0" * 32)

    assert refused(lambda: check(stranger, theirs)) == refused(lambda: check(stranger, nobodys))
    for request, call in (
        (revoking(credential_id), stranger.api.devices.RevokeDevice),
        (revoking("k-" + "0" * 32), stranger.api.devices.RevokeDevice),
    ):
        assert refused(partial(call, request)).name == "NOT_FOUND DEVICE_NOT_FOUND"
    assert check(ada_at, theirs).level == 2


@pytest.mark.attack("other-question")
@pytest.mark.attack("used-proof")
def test_a_proof_of_another_customer_purchase_or_time_opens_nothing(ada_at: Tenant) -> None:
    phone, theirs = AndroidPhone(), AndroidPhone()
    open_line(ada_at.api, "bo")
    credential_id, bos = enrol(ada_at, phone), enrol(ada_at, theirs, "bo")
    small, large = (buy(ada_at.api, phone="ask", amount=amount).transaction_id for amount in (100, 90_000))
    of_small, of_large = (asked(ada_at, purpose=TRANSACTION, transaction_id=t) for t in (small, large))
    signed = proof(phone, of_small, credential_id)

    moved = again(signed)
    moved.challenge_id = of_large.challenge_id
    assert refusal(ada_at, moved) == WRONG
    assert refusal(ada_at, proof(theirs, of_large, bos)) == WRONG
    assert refusal(ada_at, proof(theirs, asked(ada_at, "bo"), credential_id)) == "NOT_FOUND CHALLENGE_NOT_FOUND"
    assert check(ada_at, signed).transaction_id == small
    assert refusal(ada_at, again(signed)) == USED


@pytest.mark.attack("mirrored-signature")
def test_another_spelling_of_a_used_signature_is_used(ada_at: Tenant) -> None:
    phone = AndroidPhone()
    credential_id = enrol(ada_at, phone)
    signed = proof(phone, asked(ada_at), credential_id)
    r, s = decode_dss_signature(signed.device_signature.signature)
    mirrored = again(signed)
    mirrored.device_signature.signature = encode_dss_signature(r, P256_ORDER - s)
    check(ada_at, signed)

    assert refusal(ada_at, mirrored) == USED


@pytest.mark.parametrize(
    "malformed",
    [
        {"webauthn_assertion_json": "[]"},
        {"webauthn_assertion_json": "[" * 10_000},
        {"webauthn_assertion_json": '{"id":"a","id":"a"}'},
        {"compact_jws": "e30.e30.e30"},
    ],
    ids=["no object", "brackets", "a name twice", "an empty token"],
)
def test_what_is_no_proof_is_malformed_and_counts_as_no_try(ada_at: Tenant, malformed: dict[str, Any]) -> None:
    phone = AndroidPhone()
    credential_id = enrol(ada_at, phone)
    challenge = asked(ada_at)
    for _ in range(5):
        fields: dict[str, Any] = {**whose(), "challenge_id": challenge.challenge_id, **malformed}
        request = pb.VerifyChallengeRequest(**fields)
        found = refused(partial(check, ada_at, request))
        assert (found.name, set(found.fields)) == ("INVALID_ARGUMENT PROOF_MALFORMED", set(malformed))

    assert check(ada_at, proof(phone, challenge, credential_id)).level == 2


def test_when_too_many_proofs_wait_to_be_verified_one_more_is_refused_and_counts_as_no_try(
    ada_at: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = AndroidPhone()
    credential_id = enrol(ada_at, phone)
    request = proof(phone, asked(ada_at), credential_id)
    with monkeypatch.context() as patch:
        patch.setattr(service, "READS_MAX", 0)
        found = refused(lambda: check(ada_at, request))

    assert found.name == "RESOURCE_EXHAUSTED OVERLOADED"
    assert found.retry_seconds > 0
    assert check(ada_at, request).level == 2


@pytest.mark.attack("app-alone")
def test_evidence_of_an_app_is_no_proof_of_the_customer(ada_at: Tenant) -> None:
    app = JoseApp()
    credential_id = enrol(ada_at, app)
    beside = proof(app, asked(ada_at), credential_id, app_attest_assertion=b"x")
    alone = pb.VerifyChallengeRequest()
    alone.CopyFrom(beside)
    alone.ClearField("compact_jws")

    assert refusal(ada_at, beside) == "INVALID_ARGUMENT FIELD_INVALID"
    assert refusal(ada_at, alone) == "INVALID_ARGUMENT FIELD_INVALID"


@pytest.mark.attack("unpossessed-key")
def test_a_key_that_its_holder_cannot_use_is_not_enrolled(ada_at: Tenant) -> None:
    phone, stolen = AndroidPhone(), AndroidPhone()
    begun = begin(ada_at, phone)
    request = registration(phone, begun)
    request.raw_key.public_key = stolen.public_key

    assert refused(lambda: ada_at.api.devices.FinishEnrollment(request)).name == WRONG
    assert devices_of(ada_at) == []
    assert ada_at.api.devices.FinishEnrollment(registration(phone, begun)).credential.credential_id


@pytest.mark.attack("taken-key")
@pytest.mark.parametrize("make", [AndroidPhone, partial(Passkey, WEB)], ids=["key", "passkey"])
def test_one_key_for_two_customers_is_refused_without_a_name(tenant: Tenant, make: Any) -> None:
    """Both of them in the same moment."""
    for n in range(REPEATS):
        device: AnyDevice = make()
        requests = []
        for customer in (f"a{n}", f"b{n}"):
            open_line(tenant.api, customer)
            requests.append(registration(device, begin(tenant, device, customer), customer))

        found = at_once([partial(tenant.api.devices.FinishEnrollment, request) for request in requests])
        assert found == {"OK": 1, "ALREADY_EXISTS CREDENTIAL_EXISTS": 1}


@pytest.mark.attack("taken-key")
def test_who_has_the_key_already_is_not_named(ada_at: Tenant) -> None:
    phone = AndroidPhone()
    ada_at.api.devices.RevokeDevice(revoking(enrol(ada_at, phone)))
    open_line(ada_at.api, "bo")
    request = registration(phone, begin(ada_at, phone, "bo"), "bo")

    found = refused(lambda: ada_at.api.devices.FinishEnrollment(request))
    assert (found.name, found.metadata) == ("ALREADY_EXISTS CREDENTIAL_EXISTS", {})
    assert "ada" not in found.message


@pytest.mark.attack("revoked-device")
@pytest.mark.attack("revoked-before-use")
def test_a_device_that_is_revoked_opens_nothing_whatever_was_begun(ada_at: Tenant) -> None:
    phone = AndroidPhone()
    credential_id = enrol(ada_at, phone)
    demanded = buy(ada_at.api, phone="ask")
    grant = proven(ada_at, phone, credential_id, purpose=TRANSACTION, transaction_id=demanded.transaction_id)
    begun = proof(phone, asked(ada_at), credential_id)
    ada_at.api.devices.RevokeDevice(revoking(credential_id))

    assert refusal(ada_at, begun) == "FAILED_PRECONDITION DEVICE_REVOKED"
    spending = resuming(demanded.transaction_id, grant.token)
    assert refused(lambda: ada_at.api.risk.CheckTransaction(spending)).name == "FAILED_PRECONDITION GRANT_INVALID"
    named = pb.BeginChallengeRequest(**whose(), purpose=SIGN_IN, credential_ids=[credential_id])
    assert refused(lambda: ada_at.api.devices.BeginChallenge(named)).name == "FAILED_PRECONDITION DEVICE_REVOKED"
    assert devices_of(ada_at) == []


def test_a_revocation_in_the_moment_of_a_proof_lets_at_most_that_proof_pass(tenant: Tenant) -> None:
    """Whichever is first, no grant outlives the device."""
    for n in range(REPEATS):
        customer, phone = f"c{n}", AndroidPhone()
        open_line(tenant.api, customer)
        credential_id = enrol(tenant, phone, customer)
        begun = [proof(phone, asked(tenant, customer), credential_id, customer) for _ in range(8)]
        calls: list[Any] = [partial(tenant.api.devices.VerifyChallenge, request) for request in begun]
        calls.insert(4, partial(tenant.api.devices.RevokeDevice, revoking(credential_id, customer)))

        found = at_once(calls)
        assert found["OK"] + found["FAILED_PRECONDITION DEVICE_REVOKED"] == 9
        assert refusal(tenant, again(begun[0])) in {USED, "FAILED_PRECONDITION DEVICE_REVOKED"}


@pytest.mark.attack("used-proof")
def test_of_64_at_once_with_the_right_proof_exactly_one_is_let_in(tenant: Tenant) -> None:
    """For each kind of proof."""
    kinds: list[Any] = [AndroidPhone, JoseApp, partial(Passkey, WEB)]
    for n in range(REPEATS):
        customer, device = f"c{n}", kinds[n % len(kinds)]()
        open_line(tenant.api, customer)
        credential_id = enrol(tenant, device, customer)
        request = proof(device, asked(tenant, customer), credential_id, customer)

        found = at_once([partial(check, tenant, again(request)) for _ in range(64)])
        assert found == {"OK": 1, USED: 63}


def test_of_64_wrong_proofs_at_once_three_count(ada_at: Tenant) -> None:
    phone = AndroidPhone()
    credential_id = enrol(ada_at, phone)
    request = proof(AndroidPhone(), asked(ada_at), credential_id)

    found = at_once([partial(check, ada_at, again(request)) for _ in range(64)])
    assert found == {WRONG: 3, "FAILED_PRECONDITION CHALLENGE_BURNED": 61}


def test_of_64_enrolments_at_once_of_one_key_exactly_one_is_made(tenant: Tenant) -> None:
    for n in range(REPEATS):
        customer, phone = f"c{n}", AndroidPhone()
        open_line(tenant.api, customer)
        request = registration(phone, begin(tenant, phone, customer), customer)

        found = at_once([partial(tenant.api.devices.FinishEnrollment, again(request)) for _ in range(64)])
        assert found == {"OK": 1, USED: 63}
        assert len(devices_of(tenant, customer)) == 1


@pytest.mark.attack("retried-proof")
def test_64_repetitions_of_one_request_are_one_proof_and_get_the_same_grant(ada_at: Tenant) -> None:
    phone = AndroidPhone()
    credential_id = enrol(ada_at, phone)
    request = proof(phone, asked(ada_at), credential_id)
    grants: list[Message] = []

    found = at_once([lambda: grants.append(check(ada_at, request))] * 64)
    assert found == {"OK": 64}
    assert {grant.SerializeToString(deterministic=True) for grant in grants} == {grants[0].SerializeToString()}
    assert [entry.kind for entry in entries_of(ada_at.api)].count("PROOF_PASSED") == 1
    assert refusal(ada_at, again(request)) == USED


def test_a_begin_that_is_repeated_asks_the_same(ada_at: Tenant) -> None:
    passkey = Passkey(WEB)
    request = pb.BeginEnrollmentRequest(**whose(), platform=platform_of(passkey), display_name="a key")
    first, second = (ada_at.api.devices.BeginEnrollment(request) for _ in range(2))
    assert first == second
    credential_id = ada_at.api.devices.FinishEnrollment(registration(passkey, first)).credential.credential_id

    begin_proof = pb.BeginChallengeRequest(**whose(), purpose=SIGN_IN)
    one, two = (ada_at.api.devices.BeginChallenge(begin_proof) for _ in range(2))
    assert one == two
    assert (one.signing_input, bool(one.request_options_json)) == (b"", True)
    assert check(ada_at, proof(passkey, one, credential_id)).level == 2


@pytest.mark.attack("unbound")
def test_a_further_device_needs_a_grant(ada_at: Tenant) -> None:
    phone, further = AndroidPhone(), Passkey(WEB)
    credential_id = enrol(ada_at, phone)
    assert refused(lambda: begin(ada_at, further)).name == "PERMISSION_DENIED GRANT_REQUIRED"
    signed_in = proven(ada_at, phone, credential_id)
    mismatch = refused(lambda: begin(ada_at, further, grant=signed_in.token))
    assert mismatch.name == "FAILED_PRECONDITION GRANT_MISMATCH"

    enrol(ada_at, further, grant=proven(ada_at, phone, credential_id, purpose=BINDING).token)
    first, second = devices_of(ada_at)
    assert first.full_strength_time == first.enroll_time
    assert second.full_strength_time.seconds - second.enroll_time.seconds == 24 * 3600


def test_a_passkey_is_listed_under_the_customers_account_and_else_as_the_device(ada_at: Tenant) -> None:
    fields: dict[str, Any] = {"platform": pb.DEVICE_PLATFORM_WEBAUTHN, "display_name": "a phone"}
    named = pb.BeginEnrollmentRequest(**{**whose(), **fields}, account_name="ada@bank.example")
    unnamed = pb.BeginEnrollmentRequest(**{**whose(), **fields})

    begun = [ada_at.api.devices.BeginEnrollment(request) for request in (named, named, unnamed)]
    users = [json.loads(each.creation_options_json)["user"] for each in begun]
    assert [user["name"] for user in users] == ["ada@bank.example", "ada@bank.example", "a phone"]
    assert users[0] == users[1]


def test_the_log_says_why_a_proof_was_refused_and_nothing_of_whose(ada_at: Tenant) -> None:
    """Its caller is told only that it is wrong, and who set RISKGATE_ORIGINS wrongly must learn it somewhere."""
    passkey, elsewhere = Passkey(WEB, sign_count=5), Passkey("https://localhost.example")
    with logs() as lines:
        begun = begin(ada_at, elsewhere)
        refused(lambda: ada_at.api.devices.FinishEnrollment(registration(elsewhere, begun)))
        credential_id = enrol(ada_at, passkey)
        refusal(ada_at, proof(AndroidPhone(), asked(ada_at), credential_id))
        passkey.sign_count -= 1
        refusal(ada_at, proof(passkey, asked(ada_at), credential_id))

    found = lines.of("proof refused")
    assert [(line["method"], line["reason"]) for line in found] == [
        ("FinishEnrollment", "ORIGIN_UNKNOWN"),
        ("VerifyChallenge", "FORMAT_WRONG"),
        ("VerifyChallenge", "COUNTER_NOT_GROWN"),
    ]
    assert {line["level"] for line in found} == {"info"}
    assert {line["tenant"] for line in found} == {ada_at.name}
    assert "ada" not in json.dumps([{**line, "tenant": ""} for line in found])
    assert credential_id not in "".join(lines.lines)


def test_where_makers_must_vouch_a_key_reaches_level_3_or_is_refused(loop: Loop, tmp_path: Path) -> None:
    """Without a chain, and with one of somebody else."""
    always = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    root, others_root = authority("Root", valid=always), authority("Another root", valid=always)
    chains = [
        android_chain(batch=authority("Batch", of, valid=always), root=of, valid=always) for of in (root, others_root)
    ]
    roots = tmp_path / "roots.pem"
    roots.write_bytes(root.key_pem)
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment, attestation="android", guarded_use=True, android_roots=str(roots)) as running:
        tenant = running.tenant()
        open_line(tenant.api)
        for phone in (AndroidPhone(), AndroidPhone(chain=chains[1])):
            request = registration(phone, begin(tenant, phone))
            assert refused(partial(tenant.api.devices.FinishEnrollment, request)).name == WRONG
        vouched_for = AndroidPhone(chain=chains[0])
        credential_id = enrol(tenant, vouched_for)
        assert proven(tenant, vouched_for, credential_id).level == 3
        (listed,) = devices_of(tenant)
    deployment.close()

    known = listed.assurance
    assert (known.attested, known.hardware_backed, known.user_verified_per_use, known.boot_state, known.level) == (
        True, True, True, pb.BOOT_STATE_VERIFIED, 3,
    )  # fmt: skip


def test_roots_and_revocations_are_renewed_while_the_server_serves(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    monkeypatch.setattr(relying_party, "LOOK_SECONDS", 0.0)
    always = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    root, before = authority("Root", valid=always), authority("An older root", valid=always)
    chain = android_chain(batch=authority("Batch", root, valid=always, serial=0xC0FFEE), root=root, valid=always)
    roots, status = tmp_path / "roots.pem", tmp_path / "status.json"
    roots.write_bytes(before.key_pem)
    status.write_text('{"entries": {}}')
    deployment = Deployment(tmp_path / "data")

    with serving(
        loop, deployment, attestation="android", android_roots=str(roots), android_revocations=str(status)
    ) as running:

        def answered(customer: str) -> str:
            tenant = running.tenant()
            open_line(tenant.api, customer)
            phone = AndroidPhone(chain=chain)
            request = registration(phone, begin(tenant, phone, customer), customer)
            return answer(partial(tenant.api.devices.FinishEnrollment, request))

        assert answered("ada") == WRONG
        roots.write_bytes(root.key_pem)
        assert answered("bo") == "OK"
        roots.write_bytes(b"nonsense")
        assert running.scrape_value("riskgate_attestation_trust_refused") == 1
        assert answered("cy") == "OK"
        roots.write_bytes(root.key_pem)
        status.write_text('{"entries": {"c0ffee": {"status": "REVOKED"}}}')
        assert answered("di") == WRONG
        assert running.scrape_value("riskgate_attestation_trust_refused") == 0
    assert len(log.of("attestation trust not renewed")) == 1
    deployment.close()


def test_where_makers_must_vouch_no_other_kind_of_device_is_a_way_around(loop: Loop, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    with serving(loop, deployment, attestation="android", platforms="android,webauthn") as running:
        tenant = running.tenant()
        open_line(tenant.api)
        refusals = [refused(partial(begin, tenant, device)) for device in (JoseApp(), IPhone())]
        passkey = enrol(tenant, Passkey(WEB))
    deployment.close()

    assert {refusal.name for refusal in refusals} == {"INVALID_ARGUMENT FIELD_INVALID"}
    assert {field for refusal in refusals for field in refusal.fields} == {"platform"}
    assert passkey
