"""One-time codes over the wire: attacks, and what they meet."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from riskgate.identity.v1 import otp_service_pb2 as pb
from tests.rpc.calling import REPEATS, Api, answer, at_once, refused
from tests.rpc.logs import Lines
from tests.rpc.phones import (
    BINDING,
    SIGN_IN,
    TRANSACTION,
    binding_grant,
    code_of,
    confirm_app,
    confirmed_phone,
    enrolled_app,
    messages,
    other_than,
    sent,
    verify,
    verify_app,
    whose,
)
from tests.rpc.requests import buy, new_id, open_line
from tests.rpc.serving import Running, Tenant


@pytest.mark.attack("foreign-challenge")
def test_a_challenge_of_another_tenant_is_as_unknown_as_one_that_never_was(phone: Tenant, running: Running) -> None:
    stranger = running.tenant()
    open_line(stranger.api)
    challenge_id = sent(phone)
    code = code_of(phone, challenge_id)

    foreign = refused(lambda: verify(stranger, challenge_id, code))
    unknown = refused(lambda: verify(stranger, "c-" + "0" * 32, code))
    assert foreign == unknown
    assert foreign.name == "NOT_FOUND CHALLENGE_NOT_FOUND"


@pytest.mark.attack("foreign-factor")
def test_a_factor_of_another_tenant_is_as_unknown_as_one_that_never_was(tenant: Tenant, running: Running) -> None:
    open_line(tenant.api)
    factor_id, app = enrolled_app(tenant)
    stranger = running.tenant()
    open_line(stranger.api)

    def revoke(factor_id: str) -> object:
        request = pb.RevokeFactorRequest(**whose(), factor_id=factor_id, reason_code="LOST", actor_id="olga")
        return stranger.api.otp.RevokeFactor(request)

    calls: list[Callable[..., object]] = [
        partial(confirm_app, stranger, code=app.now()), partial(verify_app, stranger, code=app.now()), revoke,
    ]  # fmt: skip
    for call in calls:
        foreign, unknown = (refused(partial(call, factor_id=each)) for each in (factor_id, "f-99"))
        assert foreign.name == "NOT_FOUND FACTOR_NOT_FOUND"
        assert (foreign.message, foreign.metadata) == (unknown.message.replace("f-99", factor_id), unknown.metadata)
    assert confirm_app(tenant, factor_id, app.now()).state == pb.FACTOR_STATE_ACTIVE


@pytest.mark.attack("wrong-code")
@pytest.mark.attack("sixth-try")
def test_a_wrong_code_and_the_sixth_try(phone: Tenant) -> None:
    challenge_id = sent(phone)
    code = code_of(phone, challenge_id)
    for left in (4, 3, 2, 1, 0):
        refusal = refused(lambda: verify(phone, challenge_id, other_than(code)))
        assert (refusal.name, refusal.metadata) == ("PERMISSION_DENIED PROOF_WRONG", {"checks_left": str(left)})

    assert refused(lambda: verify(phone, challenge_id, code)).name == "FAILED_PRECONDITION CHALLENGE_BURNED"


@pytest.mark.attack("guessing-on")
@pytest.mark.attack("right-while-locked")
def test_wrong_codes_over_several_challenges_and_a_right_one_while_locked(phone: Tenant) -> None:
    first = sent(phone)
    for _ in range(3):
        refused(lambda: verify(phone, first, other_than(code_of(phone, first))))
    second = sent(phone)
    code = code_of(phone, second)
    for _ in range(2):
        refused(lambda: verify(phone, second, other_than(code)))

    right, wrong = (refused(partial(verify, phone, second, each)) for each in (code, other_than(code)))
    assert right.name == wrong.name == "RESOURCE_EXHAUSTED PROOF_LOCKED"
    assert (right.message, right.metadata) == (wrong.message, wrong.metadata)
    assert 25 < wrong.retry_seconds <= right.retry_seconds <= 30


@pytest.mark.attack("right-code-at-once")
def test_of_64_at_once_with_the_right_code_exactly_one_is_let_in(tenant: Tenant) -> None:
    for n in range(REPEATS):
        customer = f"c{n}"
        open_line(tenant.api, customer)
        confirmed_phone(tenant, customer, f"+86 139 {n:04d} 0000")
        challenge_id = sent(tenant, customer)
        code = code_of(tenant, challenge_id, customer)

        found = at_once([partial(verify, tenant, challenge_id, code, customer)] * 64)
        assert found == {"OK": 1, "FAILED_PRECONDITION CHALLENGE_USED": 63}


@pytest.mark.attack("wrong-codes-at-once")
def test_of_200_wrong_codes_at_once_no_more_than_five_are_compared(tenant: Tenant) -> None:
    for n in range(REPEATS):
        customer = f"c{n}"
        open_line(tenant.api, customer)
        confirmed_phone(tenant, customer, f"+86 136 {n:04d} 0000")
        challenge_id = sent(tenant, customer)
        code = other_than(code_of(tenant, challenge_id, customer))
        tries = [partial(verify, tenant, challenge_id, code, customer)] * 200

        assert at_once(tries) == {"PERMISSION_DENIED PROOF_WRONG": 5, "FAILED_PRECONDITION CHALLENGE_BURNED": 195}


@pytest.mark.attack("older-code")
def test_an_older_code_after_a_newer_one(phone: Tenant) -> None:
    older = sent(phone)
    sent(phone)

    assert refused(lambda: verify(phone, older, code_of(phone, older))).name.endswith("CHALLENGE_SUPERSEDED")


@pytest.mark.attack("no-code")
@pytest.mark.parametrize(
    "code",
    ["１２３４５６", "٠١٢٣٤٥", " 12345", "123456\n", "12345", "1234567", "1" * 10_000, "12345a", ""],
    ids=["full width", "arabic", "blank", "newline", "five", "seven", "10 kB", "letter", "empty"],
)
def test_what_is_no_code_is_malformed_and_counts_as_no_try(phone: Tenant, code: str) -> None:
    challenge_id = sent(phone)
    for _ in range(6):
        refusal = refused(lambda: verify(phone, challenge_id, code))
        assert (refusal.name, set(refusal.fields)) == ("INVALID_ARGUMENT FIELD_INVALID", {"code"})

    assert verify(phone, challenge_id, code_of(phone, challenge_id)).level == 1


@pytest.mark.attack("unbound")
def test_a_second_factor_without_a_grant(phone: Tenant) -> None:
    request = pb.EnrollPhoneRequest(**whose(), phone_number="+86 139 0000 0000")
    assert refused(lambda: phone.api.otp.EnrollPhone(request)).name == "PERMISSION_DENIED GRANT_REQUIRED"
    factor_id, app = enrolled_app(phone, binding_grant(phone))
    confirm_app(phone, factor_id, app.now())
    kinds = [f.kind for f in phone.api.otp.ListFactors(pb.ListFactorsRequest(customer_id="ada")).factors]
    assert kinds == [1, 2]


@pytest.mark.attack("message-flood")
@pytest.mark.attack("costly-number")
def test_six_messages_in_ten_minutes_and_a_number_that_costs(phone: Tenant) -> None:
    # The one that confirmed the phone was the first.
    for _ in range(4):
        sent(phone)

    refusal = refused(lambda: sent(phone))
    assert refusal.name == "RESOURCE_EXHAUSTED SEND_BUDGET_SPENT"
    assert 0 < refusal.retry_seconds <= 660
    for number in ("+44 909 879 0000", "+1 900 555 0123", "+86 1234567", "+999 12345678"):
        request = pb.EnrollPhoneRequest(**whose(), phone_number=number)
        refusal = refused(partial(phone.api.otp.EnrollPhone, request))
        assert refusal.name == "INVALID_ARGUMENT PHONE_NUMBER_REFUSED"
    # The last of them: a number that is in use nowhere would not say which part of it is wrong.
    assert refusal.fields == {"phone_number": "begins with a code of no country"}


@pytest.mark.attack("number-range")
def test_eleven_numbers_that_differ_in_their_last_digits(tenant: Tenant) -> None:
    found = []
    for n in range(11):
        open_line(tenant.api, f"c{n}")
        request = pb.EnrollPhoneRequest(**whose(f"c{n}"), phone_number=f"+86 138 1234 5{n * 90:03d}")
        found.append(answer(partial(tenant.api.otp.EnrollPhone, request)))

    assert found == ["OK"] * 10 + ["RESOURCE_EXHAUSTED SEND_BUDGET_SPENT"]
    elsewhere = pb.EnrollPhoneRequest(**whose("c10"), phone_number="+86 139 1234 5000")
    assert answer(lambda: tenant.api.otp.EnrollPhone(elsewhere)) == "OK"


@pytest.mark.attack("respelled-number")
def test_five_spellings_are_one_number_with_one_budget(tenant: Tenant) -> None:
    spellings = ["+8613812345678", "+86 138 1234 5678", "0086-138-1234-5678", "+86 (138) 1234.5678", "+86-13812345678"]
    answers = []
    for n, number in enumerate([*spellings, spellings[0]]):
        open_line(tenant.api, f"c{n}")
        request = pb.EnrollPhoneRequest(**whose(f"c{n}"), phone_number=number)
        answers.append(answer(partial(tenant.api.otp.EnrollPhone, request)))

    assert answers == ["OK"] * 5 + ["RESOURCE_EXHAUSTED SEND_BUDGET_SPENT"]
    assert {m["destination"] for m in messages(tenant)} == {"+8613812345678"}


def test_whoever_has_a_history_cannot_be_told_by_it_from_who_does_not_exist(tenant: Tenant) -> None:
    open_line(tenant.api)
    for _ in range(12):
        buy(tenant.api)
    confirmed_phone(tenant)
    real, decoy = (
        tenant.api.otp.SendCode(pb.SendCodeRequest(**whose(customer), purpose=SIGN_IN)).challenge
        for customer in ("ada", "nobody")
    )

    assert shape(decoy.factor_id) == shape(real.factor_id)


def shape(text: str) -> str:
    """What is left of an id where every digit is any."""
    return re.sub("[0-9a-f]", "0", text)


@pytest.mark.attack("who-exists")
def test_a_customer_who_does_not_exist_is_answered_as_one_who_does(phone: Tenant) -> None:
    """The challenge, its tries, its end, and how often."""
    real = phone.api.otp.SendCode(pb.SendCodeRequest(**whose(), purpose=SIGN_IN)).challenge
    request = pb.SendCodeRequest(**whose("nobody"), purpose=SIGN_IN)
    decoy = phone.api.otp.SendCode(request).challenge

    assert [f.name for f, _ in decoy.ListFields()] == [f.name for f, _ in real.ListFields()]
    assert (len(decoy.challenge_id), len(decoy.masked_destination)) == (
        len(real.challenge_id), len(real.masked_destination),
    )  # fmt: skip
    assert phone.api.otp.SendCode(request).challenge == decoy
    for customer, challenge_id in (("nobody", decoy.challenge_id), ("ada", real.challenge_id)):
        code = "000000" if customer == "nobody" else other_than(code_of(phone, challenge_id))
        refusals = [refused(partial(verify, phone, challenge_id, code, customer)) for _ in range(6)]
        assert [(refusal.name, refusal.metadata) for refusal in refusals] == [
            *(("PERMISSION_DENIED PROOF_WRONG", {"checks_left": str(left)}) for left in (4, 3, 2, 1, 0)),
            ("FAILED_PRECONDITION CHALLENGE_BURNED", {}),
        ]
        resend = pb.ResendCodeRequest(**whose(customer), challenge_id=challenge_id)
        assert answer(partial(phone.api.otp.ResendCode, resend)) == "FAILED_PRECONDITION CHALLENGE_BURNED"
        locked = refused(partial(sent, phone, customer))
        assert (locked.name, 25 < locked.retry_seconds <= 30) == ("RESOURCE_EXHAUSTED PROOF_LOCKED", True)
    for _ in range(5):
        sent(phone, "no-one")
    assert answer(lambda: sent(phone, "no-one")) == "RESOURCE_EXHAUSTED SEND_BUDGET_SPENT"
    assert answer(lambda: verify(phone, "c-unknown", "000000", "nobody")) == "NOT_FOUND CHALLENGE_NOT_FOUND"


def test_an_older_code_and_a_repeated_try_tell_nothing_of_who_exists(phone: Tenant) -> None:
    for customer in ("ada", "nobody"):
        older, newer = sent(phone, customer), sent(phone, customer)
        assert answer(partial(verify, phone, older, "000000", customer)) == "FAILED_PRECONDITION CHALLENGE_SUPERSEDED"
        code = "000000" if customer == "nobody" else other_than(code_of(phone, newer))
        given: dict[str, Any] = {**whose(customer), "challenge_id": newer, "code": code}
        same = pb.VerifyCodeRequest(**given)
        further = pb.VerifyCodeRequest(**{**given, **whose(customer)})
        told = [refused(partial(phone.api.otp.VerifyCode, request)) for request in (same, same, further, same)]
        assert {refusal.name for refusal in told} == {"PERMISSION_DENIED PROOF_WRONG"}
        assert [refusal.metadata for refusal in told] == [{"checks_left": left} for left in "4434"]


def test_while_a_phone_is_locked_no_code_goes_to_it_again_whoever_it_is(phone: Tenant) -> None:
    for customer in ("ada", "nobody"):
        for wrong in (4, 1):
            challenge_id = sent(phone, customer)
            code = "000000" if customer == "nobody" else other_than(code_of(phone, challenge_id))
            for _ in range(wrong):
                answer(partial(verify, phone, challenge_id, code, customer))
        before = len(messages(phone))
        resend = pb.ResendCodeRequest(**whose(customer), challenge_id=challenge_id)

        locked = refused(partial(phone.api.otp.ResendCode, resend))
        assert (locked.name, 25 < locked.retry_seconds <= 30) == ("RESOURCE_EXHAUSTED PROOF_LOCKED", True)
        assert len(messages(phone)) == before


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"purpose": TRANSACTION, "transaction_id": "t-unknown"}, "NOT_FOUND TRANSACTION_NOT_FOUND"),
        ({"purpose": TRANSACTION}, "INVALID_ARGUMENT FIELD_INVALID"),
        ({"purpose": SIGN_IN, "transaction_id": "t-unknown"}, "INVALID_ARGUMENT FIELD_INVALID"),
        ({"purpose": SIGN_IN, "factor_id": "f-unknown"}, "NOT_FOUND FACTOR_NOT_FOUND"),
        (
            {"purpose": TRANSACTION, "factor_id": "f-unknown", "transaction_id": "t-unknown"},
            "NOT_FOUND TRANSACTION_NOT_FOUND",
        ),
    ],
)
def test_what_is_wrong_with_a_request_tells_nothing_of_whose_it_is(
    phone: Tenant, named: dict[str, Any], told: str
) -> None:
    open_line(phone.api, "without")

    for customer in ("ada", "without", "nobody"):
        request = pb.SendCodeRequest(**{**whose(customer), **named})
        assert answer(partial(phone.api.otp.SendCode, request)) == told


def test_a_spare_code_of_who_does_not_exist_is_answered_as_of_who_has_none(phone: Tenant) -> None:
    for customer in ("ada", "nobody"):
        request = pb.VerifyRecoveryCodeRequest(**whose(customer), code="A" * 16, purpose=SIGN_IN)
        assert answer(partial(phone.api.otp.VerifyRecoveryCode, request)) == "FAILED_PRECONDITION FACTOR_NOT_ACTIVE"
        confirm = pb.ConfirmFactorRequest(**whose(customer), factor_id="f-unknown", code="000000")
        assert answer(partial(phone.api.otp.ConfirmFactor, confirm)) == "NOT_FOUND FACTOR_NOT_FOUND"


def test_a_customer_without_a_phone_is_answered_as_one_with(tenant: Tenant) -> None:
    open_line(tenant.api)
    challenge_id = sent(tenant)

    assert answer(lambda: verify(tenant, challenge_id, "000000")) == "PERMISSION_DENIED PROOF_WRONG"


@pytest.mark.attack("retried-proof")
def test_a_repeated_verification_gives_the_same_grant_and_never_a_second(phone: Tenant) -> None:
    challenge_id = sent(phone)
    code = code_of(phone, challenge_id)
    request_id = new_id()
    tokens = {verify(phone, challenge_id, code, request_id=request_id).token for _ in range(5)}

    assert len(tokens) == 1
    assert refused(lambda: verify(phone, challenge_id, code)).name == "FAILED_PRECONDITION CHALLENGE_USED"
    changed = refused(lambda: verify(phone, challenge_id, other_than(code), request_id=request_id))
    assert changed.name == "ALREADY_EXISTS REQUEST_ID_REUSED"


@pytest.mark.attack("codes-from-a-dump")
def test_nothing_that_is_stored_can_be_tried_against_all_codes(phone: Tenant) -> None:
    """Neither a code nor a plain hash of it, or of it with what stands beside it, is anywhere."""
    challenge_id = sent(phone)
    code = code_of(phone, challenge_id)
    directory = phone.running.deployment.directory
    stored = b"".join(path.read_bytes() for path in sorted(directory.root.glob("*.db*")))
    texts = [code, f"{challenge_id}{code}", f"{code}{challenge_id}", f"{phone.name}ada{code}"]
    hashes = [hashlib.new(name, text.encode()).digest() for text in texts for name in ("sha256", "sha1", "blake2b")]

    assert not any(value[:16] in stored for value in hashes)


@pytest.mark.attack("secrets-lying-about")
def test_no_secret_is_in_any_file_log_or_metric(phone: Tenant, log: Lines) -> None:
    challenge_id = sent(phone)
    code = code_of(phone, challenge_id)
    refused(lambda: verify(phone, challenge_id, other_than(code)))
    grant = verify(phone, challenge_id, code)
    challenge_id = sent(phone, purpose=BINDING)
    binding = verify(phone, challenge_id, code_of(phone, challenge_id)).token
    enrolled = phone.api.otp.EnrollTotp(pb.EnrollTotpRequest(**whose(), label="canary label", binding_grant=binding))
    seed = base64.b32decode(enrolled.seed_base32)
    canaries = [
        grant.token.encode(), binding.encode(), enrolled.seed_base32.encode(), seed, b"13812345678", b"canary label",
        phone.running.deployment.admin_key.encode(),
    ]  # fmt: skip
    written = [
        form
        for canary in canaries
        for form in (
            canary,
            canary.hex().encode(),
            base64.b64encode(canary).rstrip(b"="),
            base64.urlsafe_b64encode(canary),
        )
    ]
    directory = phone.running.deployment.directory
    # But in the gateway for development, which stands for the phones.
    files = [path.read_bytes() for path in directory.root.rglob("*") if path.is_file() and path != directory.outbox]
    told = [phone.running.scrape().encode(), str(log).encode(), repr(vars(log)).encode()]

    assert not [form for form, where in itertools.product(written, [*files, *told]) if form in where]


@pytest.mark.attack("scope-missing")
def test_scopes_are_apart(phone: Tenant) -> None:
    verifier: Api = phone.caller("otp:verify")
    request = pb.SendCodeRequest(**whose(), purpose=SIGN_IN)

    assert refused(lambda: verifier.otp.SendCode(request)).name == "PERMISSION_DENIED SCOPE_MISSING"
