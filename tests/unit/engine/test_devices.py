"""Device keys through the one write path: what a proof is worth, and everything that makes it worth nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from riskgate_client.phone import AndroidPhone, IPhone, JoseApp, Passkey
from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.events import Outcome
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import Fault, KeySignature, Platform, RawKeyRegistration
from riskgate_server.domain.identity.enrolled import ProofFault, challenge_asked, challenge_judged, enrolment_asked
from riskgate_server.domain.identity.grants import Method, Purpose
from riskgate_server.engine import commands as c
from riskgate_server.engine import sealing
from riskgate_server.engine.messages import NoticeMessage
from riskgate_server.engine.replies import (
    DecisionReply,
    DeviceReply,
    EnrolmentReply,
    FactorReply,
    Failed,
    GrantReply,
    Refusal,
    RevokedReply,
)
from tests import factories as f
from tests.bank import KEY, cooling_until, refused
from tests.devices import POLICY, WEB, AnyDevice, DeviceBank, platform_of
from tests.unit.crypto.proofs.makers import AppleApp, android_chain

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture
def bank() -> DeviceBank:
    return DeviceBank()


@pytest.mark.parametrize(
    "device",
    [AndroidPhone(), IPhone(), JoseApp(), JoseApp("EdDSA"), Passkey(WEB), Passkey(WEB, synced=True, escapes=True)],
    ids=["Android", "iOS", "ES256", "EdDSA", "passkey", "synced passkey"],
)
def test_a_device_of_every_kind_enrols_and_gives_a_grant_once(bank: DeviceBank, device: AnyDevice) -> None:
    credential_id = bank.enrol(device)
    asked = bank.asked()
    proof = bank.answer(device, asked)

    reply = bank.prove(asked.challenge.challenge_id, proof, "first")
    assert isinstance(reply, GrantReply)
    assert (reply.level, reply.methods, reply.use.purpose) == (2, (Method.DEVICE_KEY,), Purpose.SIGN_IN)
    assert refused(bank.prove(asked.challenge.challenge_id, proof)) == "CHALLENGE_USED"
    (shown,) = bank.queries.devices(KEY)
    assert (shown.credential_id, shown.platform, shown.last_use_us) == (
        credential_id, platform_of(device), bank.clock.us,
    )  # fmt: skip
    assert bank.verify() == []


def test_a_repeated_request_gets_the_same_grant_even_when_its_challenge_is_forgotten(bank: DeviceBank) -> None:
    phone = AndroidPhone()
    bank.enrol(phone)
    asked = bank.asked()
    command = c.VerifyChallenge(
        tenant_id=f.TENANT, customer_id=f.CUSTOMER, request_id="once", fingerprint=b"the request",
        **bank.judged(asked.challenge.challenge_id, bank.answer(phone, asked)),
    )  # fmt: skip
    first = bank.do(command)
    assert isinstance(first, GrantReply)
    for _ in range(17):
        bank.asked()

    again = bank.judged(asked.challenge.challenge_id, bank.answer(phone, asked))
    assert again["found"] is None
    assert bank.do(msgspec.structs.replace(command, **again)) == first
    assert refused(bank.prove(asked.challenge.challenge_id, bank.answer(phone, asked))) == "CHALLENGE_NOT_FOUND"


def test_three_wrong_proofs_burn_a_challenge_and_each_counts_once(bank: DeviceBank) -> None:
    phone = AndroidPhone()
    bank.enrol(phone)
    asked = bank.asked()
    challenge_id = asked.challenge.challenge_id
    wrong = bank.answer(AndroidPhone(), asked)

    assert [refused(bank.prove(challenge_id, wrong, "same")) for _ in range(5)] == ["PROOF_WRONG"] * 5
    assert [refused(bank.prove(challenge_id, wrong)) for _ in range(2)] == ["PROOF_WRONG"] * 2
    assert refused(bank.proven(phone, asked)) == "CHALLENGE_BURNED"
    assert bank.verify() == []


def test_wrong_proofs_lock_the_device_they_claim_to_be_by_and_a_right_one_does_not_open_it(bank: DeviceBank) -> None:
    phone, other = AndroidPhone(), AndroidPhone()
    first = bank.enrol(phone)
    second = bank.enrol(other, bank_grant(bank, phone))
    for _ in range(5):
        asked = bank.asked(names=(first, second))
        assert refused(bank.proven(AndroidPhone(), asked)) == "PROOF_WRONG"

    asked = bank.asked(names=(second, first))
    right = bank.prove(asked.challenge.challenge_id, bank.answer(phone, asked, first))
    wrong = bank.prove(asked.challenge.challenge_id, bank.answer(AndroidPhone(), asked, first))
    assert isinstance(right, Failed)
    assert (right.family, right.reason, right.retry_after_seconds) == ("ResourceExhausted", "PROOF_LOCKED", 30)
    assert wrong == right
    assert refused(bank.begin_proof(names=(first,))) == "PROOF_LOCKED"
    assert isinstance(bank.proven(other, asked), GrantReply)
    again = f.make_pipeline(bank.store, vault=bank.vault, clock=bank.clock, secrets=bank.secrets)
    bank.pipeline = again
    assert refused(bank.begin_proof(names=(first,))) == "PROOF_LOCKED"
    bank.clock.wait(30 * f.SECOND_US)
    assert isinstance(bank.proven(phone, bank.asked(names=(first,))), GrantReply)
    assert bank.verify() == []


def bank_grant(bank: DeviceBank, device: AnyDevice, names: tuple[str, ...] = ()) -> bytes:
    """The mark of a grant for BINDING."""
    reply = bank.proven(device, bank.asked(Purpose.BINDING, names=names))
    assert isinstance(reply, GrantReply), reply
    return bank.mark(reply)


def test_a_proof_after_two_minutes_and_an_enrolment_after_ten_are_too_late(bank: DeviceBank) -> None:
    phone = AndroidPhone()
    begun = bank.begin(phone)
    bank.clock.wait(10 * f.MINUTE_US)
    assert refused(bank.finish(begun, bank.registration(phone, begun))) == "CHALLENGE_EXPIRED"
    bank.enrol(phone)
    asked = bank.asked()
    bank.clock.wait(120 * f.SECOND_US)

    assert refused(bank.proven(phone, asked)) == "CHALLENGE_EXPIRED"


def test_a_proof_for_one_purchase_customer_or_challenge_fits_no_other(bank: DeviceBank) -> None:
    phone, theirs = AndroidPhone(), AndroidPhone()
    credential_id = bank.enrol(phone)
    bank.do(f.open_line("open bo", customer_id="bo"))
    bank.enrol(theirs, customer_id="bo")
    for transaction_id, amount in (("t-1", 4_200), ("t-2", 990_00)):
        asked = bank.do(f.check(transaction_id, amount, "step_up"))
        assert isinstance(asked, DecisionReply)
        assert asked.decided.outcome is Outcome.STEP_UP
    small, large = (bank.asked(Purpose.TRANSACTION, t) for t in ("t-1", "t-2"))
    assert small.challenge.transaction is not None
    assert (small.challenge.transaction.amount_minor, small.challenge.transaction.payee_id) == (4_200, "m-1")
    bos = bank.asked(customer_id="bo")

    of_small = bank.answer(phone, small)
    assert refused(bank.prove(large.challenge.challenge_id, of_small)) == "PROOF_WRONG"
    assert refused(bank.prove(large.challenge.challenge_id, bank.answer(theirs, bos, credential_id))) == "PROOF_WRONG"
    assert refused(bank.prove(bos.challenge.challenge_id, bank.answer(theirs, bos))) == "CHALLENGE_NOT_FOUND"
    grant = bank.prove(small.challenge.challenge_id, of_small)
    assert isinstance(grant, GrantReply)
    assert refused(bank.do(f.check("t-2", 1, request_id="resumed", grant=bank.mark(grant)))) == "GRANT_MISMATCH"
    assert bank.verify() == []


def test_a_proof_buys_what_it_was_asked_for(bank: DeviceBank) -> None:
    phone = IPhone()
    bank.enrol(phone)
    bank.do(f.check("t-1", 4_200, "step_up"))
    first, second = (bank.asked(Purpose.TRANSACTION, "t-1") for _ in range(2))
    grant = bank.proven(phone, first)
    assert isinstance(grant, GrantReply)

    reply = bank.do(f.check("t-1", 1, request_id="resumed", grant=bank.mark(grant)))
    assert isinstance(reply, DecisionReply)
    assert (reply.decided.outcome, reply.decided.held_minor) == (Outcome.APPROVE, 4_200)
    assert refused(bank.begin_proof(Purpose.TRANSACTION, "t-1")) == "STEP_UP_NOT_ASKED"
    assert refused(bank.proven(phone, second)) == "STEP_UP_NOT_ASKED"


def test_another_spelling_of_a_signature_that_was_used_is_used_too(bank: DeviceBank) -> None:
    phone = AndroidPhone()
    bank.enrol(phone)
    asked = bank.asked()
    proof = bank.answer(phone, asked)
    assert isinstance(proof, KeySignature)
    r, s = decode_dss_signature(proof.signature)
    mirrored = KeySignature(proof.credential_id, encode_dss_signature(r, P256_ORDER - s))
    assert isinstance(bank.prove(asked.challenge.challenge_id, proof), GrantReply)

    assert refused(bank.prove(asked.challenge.challenge_id, mirrored)) == "CHALLENGE_USED"


@pytest.mark.parametrize("shown", [0, 1, 2], ids=["none", "lower", "equal"])
def test_a_counter_that_does_not_grow_gives_a_device_bound_key_away(bank: DeviceBank, shown: int) -> None:
    passkey = Passkey(WEB, sign_count=1)
    bank.enrol(passkey)
    assert isinstance(bank.proven(passkey, bank.asked()), GrantReply)
    asked = bank.asked()
    passkey.sign_count = shown - 1

    assert refused(bank.proven(passkey, asked)) == "PROOF_WRONG"
    assert regressed_us(bank) == bank.clock.us
    assert bank.verify() == []


def test_a_counter_that_does_not_grow_is_only_noted_of_a_key_with_copies(bank: DeviceBank) -> None:
    passkey = Passkey(WEB, synced=True, sign_count=7)
    bank.enrol(passkey)

    assert isinstance(bank.proven(passkey, bank.asked()), GrantReply)
    assert regressed_us(bank) == bank.clock.us
    assert bank.verify() == []


def test_a_key_without_a_counter_is_as_good_for_ever(bank: DeviceBank) -> None:
    passkey = Passkey(WEB, synced=True)
    bank.enrol(passkey)

    for _ in range(3):
        assert isinstance(bank.proven(passkey, bank.asked()), GrantReply)
    assert regressed_us(bank) == 0


def regressed_us(bank: DeviceBank) -> int:
    """When, as far as the rules know, a counter went back."""
    (data_key,) = bank.vault.keys([KEY]).values()
    assert isinstance(data_key, bytes)
    with bank.store.snapshot() as snapshot:
        row = snapshot.customer(KEY)
    assert row is not None
    profile = sealing.unseal_profile(row, data_key, Sealer())
    safety = sealing.decode_customer(KEY, row.state, profile).profile.safety
    return safety.regressed_us if safety else 0


def test_an_assertion_by_a_revoked_device_says_so_whenever_it_was_asked(bank: DeviceBank) -> None:
    lost, kept = AndroidPhone(), Passkey(WEB)
    first = bank.enrol(lost)
    second = bank.enrol(kept, bank_grant(bank, lost))
    alone, both = bank.asked(names=(first,)), bank.asked()
    proof = bank.judged(both.challenge.challenge_id, bank.answer(lost, both, first))
    assert isinstance(bank.revoke(first), RevokedReply)
    after = bank.asked()

    assert refused(bank.proven(lost, alone)) == "DEVICE_REVOKED"
    # It was judged before it was revoked.
    assert refused(bank.ask(c.VerifyChallenge, **proof)) == "DEVICE_REVOKED"
    assert refused(bank.prove(both.challenge.challenge_id, bank.answer(lost, both, first))) == "DEVICE_REVOKED"
    assert refused(bank.prove(after.challenge.challenge_id, bank.answer(lost, after, first))) == "DEVICE_REVOKED"
    assert refused(bank.begin_proof(names=(first,))) == "DEVICE_REVOKED"
    assert refused(bank.revoke(first)) == "DEVICE_REVOKED"
    assert refused(bank.revoke("k-unknown")) == "DEVICE_NOT_FOUND"
    assert after.challenge.credential_ids == (second,)
    assert isinstance(bank.proven(kept, both), GrantReply)
    assert bank.verify() == []


def test_a_grant_is_worth_as_much_as_the_device_it_rests_on(bank: DeviceBank) -> None:
    phone = AndroidPhone()
    credential_id = bank.enrol(phone)
    bank.do(f.check("t-1", 4_200, "step_up"))
    grant = bank.proven(phone, bank.asked(Purpose.TRANSACTION, "t-1"))
    assert isinstance(grant, GrantReply)
    bank.revoke(credential_id)

    assert refused(bank.do(f.check("t-1", 1, request_id="resumed", grant=bank.mark(grant)))) == "GRANT_INVALID"


def test_after_a_takeover_no_device_and_no_enrolment_is_left(bank: DeviceBank) -> None:
    phone, thief = AndroidPhone(), AndroidPhone()
    credential_id = bank.enrol(phone)
    begun = bank.begin(thief, bank_grant(bank, phone))

    reply = bank.ask(c.RevokeAllDevices, reason_code="ACCOUNT_TAKEOVER", actor_id="olga")
    assert isinstance(reply, RevokedReply)
    assert reply.ids == (credential_id,)
    assert refused(bank.finish(begun, bank.registration(thief, begun))) == "CHALLENGE_SUPERSEDED"
    assert refused(bank.begin_proof()) == "DEVICE_NOT_FOUND"
    none = bank.ask(c.RevokeAllDevices, reason_code="ACCOUNT_TAKEOVER", actor_id="olga")
    assert isinstance(none, RevokedReply)
    assert none.ids == ()
    assert bank.verify() == []


def test_what_a_stolen_phone_began_ends_when_it_alone_is_revoked(bank: DeviceBank) -> None:
    phone, thief = AndroidPhone(), AndroidPhone()
    credential_id = bank.enrol(phone)
    begun = bank.begin(thief, bank_grant(bank, phone))
    bank.revoke(credential_id)

    assert refused(bank.finish(begun, bank.registration(thief, begun))) == "CHALLENGE_SUPERSEDED"
    assert bank.verify() == []


def test_an_enrolment_without_the_private_key_is_wrong_and_burns_after_three(bank: DeviceBank) -> None:
    mine, other = AndroidPhone(), AndroidPhone()
    begun = bank.begin(mine)
    answer = bank.registration(mine, begun)
    assert isinstance(answer, RawKeyRegistration)
    stolen = RawKeyRegistration(other.public_key, answer.signature)

    assert [refused(bank.finish(begun, stolen)) for _ in range(3)] == ["PROOF_WRONG"] * 3
    assert refused(bank.finish(begun, answer)) == "CHALLENGE_BURNED"
    assert bank.verify() == []


@pytest.mark.parametrize("kind", ["raw key", "passkey id"])
def test_a_key_is_one_customers_for_good_and_whose_is_not_said(bank: DeviceBank, kind: str) -> None:
    device: AnyDevice = AndroidPhone() if kind == "raw key" else Passkey(WEB)
    credential_id = bank.enrol(device)
    bank.do(f.open_line("open bo", customer_id="bo"))
    if isinstance(device, Passkey):
        # Another key under the same id.
        device = Passkey(WEB, webauthn_id=device.webauthn_id)

    for _ in range(2):
        begun = bank.begin(device, customer_id="bo")
        reply = bank.finish(begun, bank.registration(device, begun))
        assert isinstance(reply, Refusal)
        assert (reply.family, reply.reason) == ("AlreadyExists", "CREDENTIAL_EXISTS")
        assert "ada" not in f"{reply.message} {reply.details}"
        bank.revoke(credential_id)
    assert bank.verify() == []


def test_a_customers_own_key_is_enrolled_once_at_a_time(bank: DeviceBank) -> None:
    phone = AndroidPhone()
    first = bank.enrol(phone)
    begun = bank.begin(phone, bank_grant(bank, phone))
    assert refused(bank.finish(begun, bank.registration(phone, begun))) == "CREDENTIAL_EXISTS"
    bank.revoke(first)

    second = bank.enrol(phone)
    asked = bank.asked()
    assert second != first
    assert isinstance(bank.proven(phone, asked), GrantReply)
    assert bank.identity().revoked == ()


def test_a_further_device_needs_a_grant_of_the_highest_level_and_cools_down(bank: DeviceBank) -> None:
    bank.phone()
    assert refused(begin_without(bank)) == "GRANT_REQUIRED"
    phone, further = AndroidPhone(chain=android_chain()), AndroidPhone()
    first = bank.enrol(phone, bank.binding_grant())
    told = [m.notice for m in bank.messages() if isinstance(m, NoticeMessage)]
    assert told == ["DEVICE_BOUND"]
    # It counts for nothing that binds until it was there for a day, and the phone's code is enough meanwhile.
    assert cooling_until(bank.begin_proof(Purpose.BINDING)) == bank.clock.us + f.DAY_US
    bank.clock.wait(f.DAY_US)
    assert refused(begin_without(bank, bank.binding_grant())) == "GRANT_TOO_WEAK"

    grant = bank.proven(phone, bank.asked(Purpose.BINDING))
    assert isinstance(grant, GrantReply)
    assert grant.level == 3
    second = bank.enrol(further, bank.mark(grant))
    shown = bank.queries.devices(KEY)
    assert [(d.credential_id, d.full_strength_us) for d in shown] == [
        (first, shown[0].enrolled_us + f.DAY_US),
        (second, bank.clock.us + f.DAY_US),
    ]
    assert bank.verify() == []


def test_a_device_that_a_code_bound_today_answers_no_strong_demand_and_opens_no_lock(bank: DeviceBank) -> None:
    bank.phone()
    thief = AndroidPhone()
    bank.enrol(thief, bank.binding_grant())
    assert isinstance(bank.do(f.check("t-1", 1_000, "strong_step_up")), DecisionReply)
    assert cooling_until(bank.begin_proof(Purpose.TRANSACTION, "t-1")) == bank.clock.us + f.DAY_US
    assert cooling_until(bank.begin_proof(Purpose.UNLOCK)) == bank.clock.us + f.DAY_US

    bank.clock.wait(f.DAY_US)
    assert isinstance(bank.do(f.check("t-2", 1_000, "strong_step_up")), DecisionReply)
    assert isinstance(bank.proven(thief, bank.asked(Purpose.TRANSACTION, "t-2")), GrantReply)


def test_who_revoked_everything_binds_nothing_of_full_strength_at_once(bank: DeviceBank) -> None:
    stays = bank.clock.us
    bank.revoke(bank.enrol(AndroidPhone()))
    bank.enrol(AndroidPhone())
    (shown,) = bank.queries.devices(KEY)

    assert shown.full_strength_us == stays + f.DAY_US


def test_who_gave_up_a_factor_that_was_never_confirmed_has_a_first_one_yet(bank: DeviceBank) -> None:
    typo = bank.enroll_phone("+8613812345679")
    assert isinstance(typo, FactorReply)
    bank.ask(c.RevokeFactor, factor_id=typo.factor.factor_id, reason_code="WRONG_NUMBER", actor_id="ada")
    bank.enrol(AndroidPhone())
    (shown,) = bank.queries.devices(KEY)

    assert shown.full_strength_us == bank.clock.us


def begin_without(bank: DeviceBank, grant: bytes = b"") -> Any:
    return bank.ask(c.BeginEnrolment, platform=Platform.JOSE, display_name="another", grant=grant)


def test_a_grant_by_a_factor_in_its_cool_down_binds_nothing(bank: DeviceBank) -> None:
    bank.phone()
    factor_id, app = bank.app(bank.binding_grant())
    full_us = bank.clock.us + f.DAY_US
    bank.clock.wait(f.HOUR_US)
    early = bank.check_app(factor_id, app.at(bank.clock.us // 1_000_000), Purpose.BINDING)
    assert isinstance(early, GrantReply)
    assert cooling_until(begin_without(bank, bank.mark(early))) == full_us

    assert isinstance(begin_without(bank, bank.binding_grant()), EnrolmentReply)


def test_a_code_after_a_strong_device_weakens_nothing(bank: DeviceBank) -> None:
    bank.phone()
    phone = AndroidPhone(chain=android_chain())
    bank.enrol(phone, bank.binding_grant())
    bank.clock.wait(f.DAY_US)
    strong = bank.proven(phone, bank.asked(Purpose.UNLOCK))
    challenge_id = bank.sent(Purpose.UNLOCK)
    both = bank.check(challenge_id, bank.code(challenge_id))

    assert isinstance(strong, GrantReply)
    assert isinstance(both, GrantReply)
    assert (strong.level, both.level, both.methods) == (3, 3, (Method.DEVICE_KEY, Method.SMS))


def test_an_enrolment_begun_as_the_first_needs_a_grant_once_another_came_first(bank: DeviceBank) -> None:
    thief = AndroidPhone()
    begun = bank.begin(thief)
    bank.enrol(AndroidPhone())

    assert refused(bank.finish(begun, bank.registration(thief, begun))) == "GRANT_REQUIRED"


def test_a_verdict_about_anything_else_than_what_stands_has_no_effect(bank: DeviceBank) -> None:
    phone = AndroidPhone()
    bank.enrol(phone)
    one, two = bank.asked(), bank.asked()
    judged = bank.judged(one.challenge.challenge_id, bank.answer(phone, one))

    moved = bank.ask(c.VerifyChallenge, **judged | {"challenge_id": two.challenge.challenge_id})
    unseen = bank.ask(c.VerifyChallenge, **judged | {"found": None, "judged": b""})
    for reply in (moved, unseen):
        assert isinstance(reply, Failed)
        assert (reply.family, reply.reason) == ("Conflict", "WRITE_CONFLICT")
    wrong = ProofFault(Fault.SIGNATURE_WRONG, two.challenge.credential_ids[0])
    assert refused(bank.ask(c.VerifyChallenge, **judged | {"found": wrong, "judged": b"x"})) == "WRITE_CONFLICT"
    assert isinstance(bank.ask(c.VerifyChallenge, **judged), GrantReply)


def test_a_verdict_for_a_device_that_was_not_asked_has_no_effect(bank: DeviceBank) -> None:
    phone, other = AndroidPhone(), AndroidPhone()
    first = bank.enrol(phone)
    bank.enrol(other, bank_grant(bank, phone))
    asked, elsewhere = bank.asked(names=(first,)), bank.asked()
    found = bank.judged(elsewhere.challenge.challenge_id, bank.answer(phone, elsewhere))["found"]
    second = bank.identity().devices[1]
    command = {
        "challenge_id": asked.challenge.challenge_id,
        "found": msgspec.structs.replace(found, credential_id=second.credential_id),
        "judged": challenge_judged(asked.challenge, second),
    }

    assert refused(bank.ask(c.VerifyChallenge, **command)) == "WRITE_CONFLICT"


def test_an_apps_evidence_may_be_shown_once(bank: DeviceBank) -> None:
    phone, app = IPhone(), AppleApp()
    begun = bank.begin(phone)
    answer = bank.registration(phone, begun)
    assert isinstance(answer, RawKeyRegistration)
    evidence = app.attest(challenges.challenge(enrolment_asked(KEY, begun.enrolment, POLICY.audience)))
    reply = bank.finish(begun, msgspec.structs.replace(answer, app_attest=evidence))
    assert isinstance(reply, DeviceReply)

    def shown(count: int) -> Any:
        asked = bank.asked()
        proof = bank.answer(phone, asked)
        assert isinstance(proof, KeySignature)
        signed = challenges.signing_input(challenge_asked(KEY, asked.challenge, POLICY.audience))
        return bank.prove(
            asked.challenge.challenge_id,
            msgspec.structs.replace(proof, app_attest_assertion=app.vouch(signed, count)),
        )

    assert isinstance(shown(1), GrantReply)
    assert refused(shown(1)) == "PROOF_WRONG"
    assert isinstance(shown(2), GrantReply)


def test_devices_are_bounded(bank: DeviceBank) -> None:
    first = AndroidPhone()
    name = bank.enrol(first)
    for _ in range(15):
        bank.enrol(AndroidPhone(), bank_grant(bank, first, (name,)))
    bank.asked()

    assert refused(begin_without(bank, bank_grant(bank, first, (name,)))) == "BOUND_REACHED"
    assert (len(bank.identity().challenges), len(bank.identity().enrolments)) == (16, 8)


def test_a_burst_of_wrong_device_proofs_suspends_the_line(bank: DeviceBank) -> None:
    bank.enrol(AndroidPhone())
    for _ in range(8):
        asked = bank.asked()
        bank.prove(asked.challenge.challenge_id, KeySignature("k-nobody", b"x" * 70))

    declined = bank.do(f.check("t-1", 100))
    assert isinstance(declined, DecisionReply)
    assert declined.decided.outcome is Outcome.DECLINE


def test_nothing_that_is_the_customers_own_is_stored_in_clear(bank: DeviceBank) -> None:
    passkey, phone = Passkey(WEB), AndroidPhone()
    begun = bank.begin(passkey)
    bank.finish(begun, bank.registration(passkey, begun))
    bank.enrol(phone, bank_grant(bank, passkey))
    bank.do(f.check("t-1", 4_200, "step_up"))
    asked = bank.asked(Purpose.TRANSACTION, "t-1")
    numbers = passkey.key.public_key().public_numbers()
    secrets = [
        b"Ada's phone",
        passkey.webauthn_id,
        numbers.x.to_bytes(32, "big"),
        phone.public_key[-65:],
        begun.enrolment.nonce,
        asked.challenge.nonce,
    ]

    with bank.store.snapshot() as snapshot:
        rows = [
            *snapshot.entries(KEY, after=0, limit=100),
            *snapshot.requests(KEY, after="", limit=100),
            snapshot.identity(KEY),
        ]
    stored = msgspec.msgpack.encode(rows)
    assert len(rows) > 10
    assert [secret for secret in secrets if secret in stored] == []


def test_the_journal_of_a_customer_who_was_erased_still_verifies(bank: DeviceBank) -> None:
    phone, passkey = AndroidPhone(), Passkey(WEB)
    first = bank.enrol(phone)
    bank.enrol(passkey, bank_grant(bank, phone))
    asked = bank.asked()
    assert refused(bank.proven(AndroidPhone(), asked)) == "PROOF_WRONG"
    assert isinstance(bank.prove(asked.challenge.challenge_id, bank.answer(passkey, asked)), GrantReply)
    bank.revoke(first)
    bank.vault.forget(KEY)

    assert bank.verify() == []
