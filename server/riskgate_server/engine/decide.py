"""From a command to its use case: the whole list of what the engine can be asked to change, and what it will touch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from riskgate_server.engine import commands, devices, erasure, foreseen, holds, lines, otp, payments, purchases
from riskgate_server.engine.ports import RiskRules
from riskgate_server.engine.replies import Reply, Settled
from riskgate_server.engine.rows import ScopeKey
from riskgate_server.engine.work import Batch, Work

UseCase = Callable[[Work, Any, RiskRules], Reply]


def _plain(use_case: Callable[[Work, Any], Reply]) -> UseCase:
    return lambda work, command, _rules: use_case(work, command)


USE_CASES: Final[dict[type[commands.Command], UseCase]] = {
    commands.CheckTransaction: purchases.check_transaction,
    commands.AnnotateDecision: _plain(purchases.annotate_decision),
    commands.ResolveReview: _plain(purchases.resolve_review),
    commands.CaptureHold: _plain(holds.capture_hold),
    commands.IncrementHold: _plain(holds.increment_hold),
    commands.VoidHold: _plain(holds.void_hold),
    commands.RefundCapture: _plain(holds.refund_capture),
    commands.RecordPayment: _plain(payments.record_payment),
    commands.ReversePayment: _plain(payments.reverse_payment),
    commands.OpenCreditLine: _plain(lines.open_credit_line),
    commands.PlaceBlock: _plain(lines.place_block),
    commands.LiftBlock: _plain(lines.lift_block),
    commands.CloseCreditLine: _plain(lines.close_credit_line),
    commands.EnrollPhone: _plain(otp.enroll_phone),
    commands.EnrollTotp: _plain(otp.enroll_totp),
    commands.ConfirmFactor: _plain(otp.confirm_factor),
    commands.SendCode: _plain(otp.send_code),
    commands.ResendCode: _plain(otp.resend_code),
    commands.VerifyCode: _plain(otp.verify_code),
    commands.RevokeFactor: _plain(otp.revoke_factor),
    commands.MakeRecoveryCodes: _plain(otp.make_recovery_codes),
    commands.VerifyRecoveryCode: _plain(otp.verify_recovery_code),
    commands.EraseCustomer: _plain(erasure.erase_customer),
    commands.BeginEnrolment: _plain(devices.begin_enrolment),
    commands.FinishEnrolment: _plain(devices.finish_enrolment),
    commands.BeginChallenge: _plain(devices.begin_challenge),
    commands.VerifyChallenge: _plain(devices.verify_challenge),
    commands.RevokeDevice: _plain(devices.revoke_device),
    commands.RevokeAllDevices: _plain(devices.revoke_all_devices),
    commands.SettleMessage: _plain(otp.settle_message),
    # Every command begins by ending what lapsed; this one does nothing else.
    commands.SettleLapsed: lambda _work, _command, _rules: Settled(0),
}

SCOPES: Final[dict[type[commands.Command], Callable[[Batch, Any], Collection[ScopeKey]]]] = {
    commands.EnrollPhone: foreseen.enrolling_phone,
    commands.ConfirmFactor: foreseen.comparing,
    commands.SendCode: foreseen.sending,
    commands.ResendCode: foreseen.resending,
    commands.VerifyCode: foreseen.proving,
    commands.VerifyRecoveryCode: foreseen.proving,
    commands.SettleMessage: foreseen.settling,
    commands.FinishEnrolment: foreseen.enrolling_key,
}
"""The facts across customers that a command will touch, whatever else it does with a grant."""


def touches(command: commands.Command) -> bool:
    """Whether a command touches facts across customers. Asked of every command: most touch none."""
    return type(command) in SCOPES or bool(getattr(command, "grant", b""))


def scopes_of(batch: Batch, command: commands.Command) -> Collection[ScopeKey]:
    """Return the facts across customers that a command which `touches` any will touch."""
    foresee, grant = SCOPES.get(type(command)), getattr(command, "grant", b"")
    scopes = foresee(batch, command) if foresee else ()
    return (*scopes, *foreseen.offering(command, grant)) if grant else scopes
