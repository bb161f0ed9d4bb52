"""Calls of OtpService: enrol factors, have codes sent, and check them."""

from __future__ import annotations

import datetime as dt
from typing import Final, Unpack

from riskgate.identity.v1 import otp_service_pb2 as pb
from riskgate.identity.v1.otp_service_pb2_grpc import OtpServiceStub
from riskgate_client.call import (
    HANDING_OVER_SECONDS,
    Call,
    CommandOptions,
    QuestionOptions,
    Verbs,
    require_one,
    tuple_of,
)
from riskgate_client.proofs import (
    CodeChallenge,
    EnrolledPhone,
    EnrolledTotp,
    Factor,
    Grant,
    ProofPurpose,
    RecoveryCodes,
    RecoveryGrant,
)
from riskgate_client.reading import moment, number_of, only, reader

_otp: Final = Verbs(OtpServiceStub)
_factor: Final = only("factor", Factor)
_challenge: Final = only("challenge", CodeChallenge)
_grant: Final = only("grant", Grant)


def enroll_phone(
    *,
    customer_id: str,
    phone_number: str,
    binding_grant: str = "",
    language_code: str = "",
    **options: Unpack[CommandOptions],
) -> Call[EnrolledPhone]:
    """Register a phone and send it a code; once the customer has a factor it takes a grant for BINDING."""
    request = pb.EnrollPhoneRequest(
        customer_id=customer_id, phone_number=phone_number, binding_grant=binding_grant, language_code=language_code
    )
    return _otp.command("EnrollPhone", request, reader(EnrolledPhone), options, usual_seconds=HANDING_OVER_SECONDS)


def enroll_totp(
    *, customer_id: str, label: str, binding_grant: str = "", **options: Unpack[CommandOptions]
) -> Call[EnrolledTotp]:
    """Make a seed for an authenticator app; once the customer has a factor it takes a grant for BINDING."""
    request = pb.EnrollTotpRequest(customer_id=customer_id, label=label, binding_grant=binding_grant)
    return _otp.command("EnrollTotp", request, reader(EnrolledTotp), options)


def confirm_factor(*, customer_id: str, factor_id: str, code: str, **options: Unpack[CommandOptions]) -> Call[Factor]:
    """Make a pending factor usable by a first right code."""
    request = pb.ConfirmFactorRequest(customer_id=customer_id, factor_id=factor_id, code=code)
    return _otp.command("ConfirmFactor", request, _factor, options)


def send_code(
    *,
    customer_id: str,
    purpose: ProofPurpose,
    transaction_id: str = "",
    factor_id: str = "",
    language_code: str = "",
    **options: Unpack[CommandOptions],
) -> Call[CodeChallenge]:
    """Send a code to a confirmed phone; for a purchase, one that names its amount and payee."""
    request = pb.SendCodeRequest(
        customer_id=customer_id,
        factor_id=factor_id,
        purpose=number_of("purpose", purpose, ProofPurpose),  # type: ignore[arg-type]  # a number of the contract's
        transaction_id=transaction_id,
        language_code=language_code,
    )
    return _otp.command("SendCode", request, _challenge, options, usual_seconds=HANDING_OVER_SECONDS)


def resend_code(
    *, customer_id: str, challenge_id: str, language_code: str = "", **options: Unpack[CommandOptions]
) -> Call[CodeChallenge]:
    """Send the same code again; it lives no longer for it."""
    request = pb.ResendCodeRequest(customer_id=customer_id, challenge_id=challenge_id, language_code=language_code)
    return _otp.command("ResendCode", request, _challenge, options, usual_seconds=HANDING_OVER_SECONDS)


def verify_code(
    *,
    customer_id: str,
    code: str,
    challenge_id: str = "",
    factor_id: str = "",
    purpose: ProofPurpose = ProofPurpose.UNSPECIFIED,
    transaction_id: str = "",
    **options: Unpack[CommandOptions],
) -> Call[Grant]:
    """
    Check a code and, when it is right, return a grant.

    Of a code that was sent, `challenge_id` is named and the rest may be left out; of an authenticator app, `factor_id`
    and `purpose`.
    """
    require_one(challenge_id=challenge_id, factor_id=factor_id)
    request = pb.VerifyCodeRequest(
        customer_id=customer_id,
        code=code,
        purpose=number_of("purpose", purpose, ProofPurpose),  # type: ignore[arg-type]  # a number of the contract's
        transaction_id=transaction_id,
    )
    if challenge_id:
        request.challenge_id = challenge_id
    if factor_id:
        request.factor_id = factor_id
    return _otp.command("VerifyCode", request, _grant, options)


def list_factors(customer_id: str, **options: Unpack[QuestionOptions]) -> Call[tuple[Factor, ...]]:
    """List a customer's factors, oldest first."""
    request = pb.ListFactorsRequest(customer_id=customer_id)
    return _otp.question("ListFactors", request, tuple_of("factors", reader(Factor)), options)


def revoke_factor(
    *, customer_id: str, factor_id: str, reason_code: str, actor_id: str, **options: Unpack[CommandOptions]
) -> Call[dt.datetime]:
    """Make a factor worthless, with its open codes; return when it was."""
    request = pb.RevokeFactorRequest(
        customer_id=customer_id, factor_id=factor_id, reason_code=reason_code, actor_id=actor_id
    )
    return _otp.command("RevokeFactor", request, moment("revoke_time"), options)


def generate_recovery_codes(
    *, customer_id: str, binding_grant: str, **options: Unpack[CommandOptions]
) -> Call[RecoveryCodes]:
    """Make ten codes to be written down; older ones become worthless."""
    request = pb.GenerateRecoveryCodesRequest(customer_id=customer_id, binding_grant=binding_grant)
    return _otp.command("GenerateRecoveryCodes", request, reader(RecoveryCodes), options)


def verify_recovery_code(
    *, customer_id: str, code: str, purpose: ProofPurpose, **options: Unpack[CommandOptions]
) -> Call[RecoveryGrant]:
    """Check a recovery code, spend it and return a grant."""
    request = pb.VerifyRecoveryCodeRequest(
        customer_id=customer_id,
        code=code,
        purpose=number_of("purpose", purpose, ProofPurpose),  # type: ignore[arg-type]  # a number of the contract's
    )
    return _otp.command("VerifyRecoveryCode", request, reader(RecoveryGrant), options)
