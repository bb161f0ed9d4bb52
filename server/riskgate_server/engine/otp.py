"""Use cases of one-time codes: enrol, send, check, revoke."""

from __future__ import annotations

from hmac import compare_digest

from riskgate_server.domain.calendar import SECOND_US
from riskgate_server.domain.errors import (
    AlreadyExists,
    FieldViolation,
    InvalidRequest,
    PreconditionFailed,
    ResourceExhausted,
)
from riskgate_server.domain.events import Happening
from riskgate_server.domain.identity.events import (
    CodeSent,
    CodeUnsent,
    FactorConfirmed,
    FactorEnrolled,
    FactorRevoked,
    FactorSecrets,
    MessageSettled,
    ProofFailed,
    RecoveryCodesMade,
    RecoverySecrets,
)
from riskgate_server.domain.identity.factors import FOR_GOOD, CodeChallenge, Factor, lock_after
from riskgate_server.domain.identity.grants import CODE_LEVEL, Method, Purpose, Source, Use
from riskgate_server.domain.identity.identity import Identity, source_of
from riskgate_server.engine import across, grants, proofs
from riskgate_server.engine.commands import (
    ConfirmFactor,
    EnrollPhone,
    EnrollTotp,
    MakeRecoveryCodes,
    ResendCode,
    RevokeFactor,
    SendCode,
    SettleMessage,
    VerifyCode,
    VerifyRecoveryCode,
)
from riskgate_server.engine.messages import CodeMessage
from riskgate_server.engine.protection import suspend_on_burst
from riskgate_server.engine.replies import (
    CodeReply,
    CodeView,
    FactorReply,
    FactorView,
    GrantReply,
    Refusal,
    RevokedReply,
    Settled,
    refusal_of,
)
from riskgate_server.engine.work import Work


def view(factor: Factor, now_us: int) -> FactorView:
    """Return what may be shown of a factor."""
    return FactorView(
        factor_id=factor.factor_id,
        method=factor.method,
        state=factor.state(now_us),
        display_name=factor.display_name,
        enrolled_us=factor.enrolled_us,
        full_strength_us=factor.full_strength_us,
        locked_until_us=0 if factor.locked_until_us == FOR_GOOD else factor.locked_until_us,
        codes_left=len(factor.codes),
    )


def _code_view(work: Work, challenge: CodeChallenge, factor: Factor, message_id: str) -> CodeView:
    return CodeView(
        challenge_id=challenge.challenge_id,
        factor_id=factor.factor_id,
        masked=factor.display_name,
        expires_us=challenge.expires_us,
        resend_us=challenge.resend_us,
        checks_left=0 if challenge.ended else work.bounds.proofs.code_checks - challenge.wrong,
        message_id=message_id,
    )


def _require_room(work: Work) -> None:
    standing = [factor for factor in work.identity.factors if factor.stands(work.now_us)]
    if len(standing) >= work.bounds.proofs.factors:
        raise PreconditionFailed("BOUND_REACHED", f"a customer has at most {work.bounds.proofs.factors} factors")


def enroll_phone(work: Work, command: EnrollPhone) -> FactorReply | Refusal:
    """
    Register a phone, and send it the code that confirms it.

    Raises:
        AlreadyExists: the number is confirmed already.
        PermissionRefused, PreconditionFailed: as `grants.spend_to_bind`; the customer has as many factors as one may.
        ResourceExhausted: too many messages went to the customer, the number, its like, or of the tenant.
    """
    if any(f.secret == command.number.encode() for f in work.identity.active(Method.SMS)):
        raise AlreadyExists("FACTOR_EXISTS", "the customer has confirmed this number already")
    _require_room(work)
    spent = grants.spend_to_bind(work, command.grant)
    if isinstance(spent, Refusal):
        return spent
    recipient = across.recipient_as_known(work, command)
    across.charge_send(work, recipient)
    for event in spent:
        work.record(Happening(event))
    factor_id = work.new_id("f")
    expires_us = work.now_us + work.bounds.proofs.pending_us
    enrolled = FactorEnrolled(factor_id, Method.SMS, recipient.mark, recipient.prefix, expires_us)
    secrets = FactorSecrets(command.number.encode(), command.masked, command.region)
    work.record(Happening(enrolled, sealed=secrets))
    factor = work.identity.factor(factor_id, work.now_us)
    code = _send(work, factor, Use(Purpose.BINDING), command.language)
    return FactorReply(work.key, work.request_id, view(factor, work.now_us), expires_us, code=code)


def enroll_totp(work: Work, command: EnrollTotp) -> FactorReply | Refusal:
    """
    Make a seed for an authenticator app (RFC 6238). Its parameters are those every app understands.

    Raises:
        PermissionRefused, PreconditionFailed: as `enroll_phone`.
    """
    _require_room(work)
    spent = grants.spend_to_bind(work, command.grant)
    if isinstance(spent, Refusal):
        return spent
    for event in spent:
        work.record(Happening(event))
    factor_id = work.new_id("f")
    key_id = work.secrets.key_id
    seed = work.secrets.seed(key_id, work.key, work.request_id)
    expires_us = work.now_us + work.bounds.proofs.pending_us
    enrolled = FactorEnrolled(factor_id, Method.TOTP, b"", b"", expires_us)
    work.record(Happening(enrolled, sealed=FactorSecrets(seed, command.label, "")))
    factor = work.identity.factor(factor_id, work.now_us)
    return FactorReply(work.key, work.request_id, view(factor, work.now_us), expires_us, key_id)


def confirm_factor(work: Work, command: ConfirmFactor) -> FactorReply | Refusal:
    """
    Make a pending factor usable by a first right code.

    Raises:
        NotFound: the customer has no such factor.
        PreconditionFailed: it is confirmed already, was not in time, or its code was burned.
        ResourceExhausted: it is locked after too many wrong codes.
    """
    factor = next((f for f in work.identity.factors if f.factor_id == command.factor_id), None)
    if factor is not None and not factor.stands(work.now_us):
        raise PreconditionFailed("FACTOR_EXPIRED", "the factor was not confirmed in time; enrol it anew")
    factor = work.identity.factor(command.factor_id, work.now_us)
    if not factor.expires_us:
        raise PreconditionFailed("FACTOR_CONFIRMED", "the factor is confirmed already")
    challenge, step = _checked(work, factor, command.code)
    if step is None:
        return _fail(work, factor, challenge)
    full_us = proofs.full_strength_us(work)
    others = proofs.phones(work)
    challenge_id = challenge.challenge_id if challenge else ""
    work.record(Happening(FactorConfirmed(factor.factor_id, challenge_id, step, full_us, told=len(others))))
    proofs.tell(work, others, "FACTOR_BOUND")
    return FactorReply(
        work.key, work.request_id, view(work.identity.factor(factor.factor_id, work.now_us), work.now_us)
    )


def _checked(work: Work, factor: Factor, code: str) -> tuple[CodeChallenge | None, int | None]:
    """
    Compare a code with what a pending factor waits for; return the challenge, if any, and the step: None if wrong.

    A code that was sent has no step, which is 0.
    """
    challenge = None
    if factor.method is Method.SMS:
        challenge = next((c for c in reversed(work.identity.codes) if c.factor_id == factor.factor_id), None)
        if challenge is None:
            # So many came after it that it was forgotten.
            raise PreconditionFailed("CHALLENGE_EXPIRED", "the code came too late; enrol the phone anew")
        _require_open(work, challenge)
    proofs.require_unlocked(work, factor.locked_until_us)
    across.require_guesses(work)
    return challenge, _compare(work, factor, challenge, code)


def _compare(work: Work, factor: Factor, challenge: CodeChallenge | None, code: str) -> int | None:
    if challenge is not None:
        sent = work.secrets.code(challenge.key_id, work.key, challenge.challenge_id)
        return 0 if compare_digest(sent, code) else None
    step = work.secrets.totp_step(factor.secret, code, work.now_us)
    # One that was accepted, or is older than one that was, is as wrong as any other.
    return step if step is not None and step > factor.last_step else None


def send_code(work: Work, command: SendCode) -> CodeReply:
    """
    Send a new code to a confirmed phone; a code that was sent to it before is worthless from now on.

    Raises:
        NotFound: the customer has no such factor, or no such purchase.
        InvalidRequest: the customer has several phones and none was named; as `grants.use_for`.
        PreconditionFailed: the factor takes no messages or is not confirmed; the purchase waits for no proof, or for
            a stronger one.
        ResourceExhausted: the phone is locked, or too many messages went out.
    """
    # First the purchase: what is told of one that is not there must not depend on who has a phone.
    use = grants.use_for(work, command.purpose, command.transaction_id)
    factor = _phone_of(work, command.factor_id)
    proofs.require_counts(work, use, factor.method)
    proofs.require_unlocked(work, factor.locked_until_us)
    across.charge_send(work, across.recipient_of(factor))
    return CodeReply(work.key, _send(work, factor, use, command.language))


def _phone_of(work: Work, factor_id: str) -> Factor:
    phones = proofs.phones(work)
    if not factor_id:
        if len(phones) != 1:
            message = "the customer has several phones: name one" if phones else "the customer has no confirmed phone"
            if phones:
                raise InvalidRequest("FACTOR_AMBIGUOUS", message, FieldViolation("factor_id", message))
            raise PreconditionFailed("FACTOR_NOT_ACTIVE", message)
        return phones[0]
    factor = work.identity.factor(factor_id, work.now_us)
    if factor not in phones:
        raise PreconditionFailed("FACTOR_NOT_ACTIVE", "the factor takes no messages, or is not confirmed")
    return factor


def _send(work: Work, factor: Factor, use: Use, language: str) -> CodeView:
    limits = work.bounds.proofs
    challenge_id = work.new_id("c")
    key_id = work.secrets.key_id
    expires_us = work.now_us + limits.code_lifetime_us
    message_id = _message(
        work,
        factor,
        use=use,
        key_id=key_id,
        challenge_id=challenge_id,
        expires_us=expires_us,
        language=language,
    )
    sent = CodeSent(
        challenge_id=challenge_id,
        factor_id=factor.factor_id,
        use=use,
        key_id=key_id,
        expires_us=expires_us,
        resend_us=work.now_us + limits.resend_us,
        message_id=message_id,
    )
    work.record(Happening(sent))
    return _code_view(work, work.identity.code(challenge_id), factor, message_id)


def _message(
    work: Work, factor: Factor, *, use: Use, key_id: int, challenge_id: str, expires_us: int, language: str
) -> str:
    purchase = work.purchase(use.transaction_id) if use.transaction_id else None
    facts = work.facts(purchase) if purchase else None
    return work.send(
        CodeMessage(
            number=factor.secret.decode(),
            language=language,
            purpose=use.purpose,
            key_id=key_id,
            challenge_id=challenge_id,
            expires_us=expires_us,
            amount_minor=facts.amount_minor if facts else 0,
            currency=facts.currency if facts else "",
            payee=facts.merchant_id if facts else "",
        ),
        entry=work.customer.sequence + 1,
    )


def resend_code(work: Work, command: ResendCode) -> CodeReply:
    """
    Send the same code again: messages overtake each other, and a second code would make the first one wrong.

    Raises:
        NotFound: the customer has no such challenge.
        PreconditionFailed: it ended, or its phone was revoked.
        ResourceExhausted: the phone is locked, it is too soon, or too many messages went out.
    """
    challenge = work.identity.code(command.challenge_id)
    _require_open(work, challenge)
    factor = work.identity.factor(challenge.factor_id, work.now_us)
    proofs.require_unlocked(work, factor.locked_until_us)
    if work.now_us < challenge.resend_us:
        wait = (challenge.resend_us - work.now_us) / SECOND_US
        raise ResourceExhausted("RESEND_TOO_EARLY", "the code was just sent", retry_after_seconds=wait)
    across.charge_send(work, across.recipient_of(factor))
    resend_us = work.now_us + work.bounds.proofs.resend_us
    message_id = _message(
        work,
        factor,
        use=challenge.use,
        key_id=challenge.key_id,
        challenge_id=challenge.challenge_id,
        expires_us=challenge.expires_us,
        language=command.language,
    )
    sent = CodeSent(
        challenge_id=challenge.challenge_id,
        factor_id=factor.factor_id,
        use=challenge.use,
        key_id=challenge.key_id,
        expires_us=challenge.expires_us,
        resend_us=resend_us,
        message_id=message_id,
        again=True,
    )
    work.record(Happening(sent))
    return CodeReply(work.key, _code_view(work, work.identity.code(challenge.challenge_id), factor, message_id))


def verify_code(work: Work, command: VerifyCode) -> GrantReply | Refusal:
    """
    Check a code and give a grant. The order: what ended, what is locked, then the code.

    Raises:
        NotFound: the customer has no such challenge, factor or purchase.
        InvalidRequest: as `grants.use_for`.
        PreconditionFailed: the challenge ended or was sent for something else; the factor is not confirmed.
        ResourceExhausted: the factor is locked, or codes of the tenant are guessed at: a right code is not compared.
    """
    challenge = None
    if command.challenge_id:
        challenge = work.identity.code(command.challenge_id)
        _require_open(work, challenge)
        factor = work.identity.factor(challenge.factor_id, work.now_us)
        use = _same_use(challenge, command)
        if use.transaction_id:
            # The purchase may have been decided, or have waited too long, since the code was sent.
            grants.use_for(work, use.purpose, use.transaction_id)
    else:
        factor = work.identity.factor(command.factor_id, work.now_us)
        if factor.method is not Method.TOTP:
            raise PreconditionFailed("FACTOR_NOT_ACTIVE", "the factor's codes are sent: name the challenge")
        if command.purpose is None:
            message = "required with factor_id"
            raise InvalidRequest("FIELD_INVALID", message, FieldViolation("purpose", message))
        use = grants.use_for(work, command.purpose, command.transaction_id)
    if factor.expires_us:
        raise PreconditionFailed("FACTOR_NOT_ACTIVE", "the factor is not confirmed: ConfirmFactor takes its code")
    proofs.require_counts(work, use, factor.method)
    proofs.require_unlocked(work, factor.locked_until_us)
    across.require_guesses(work)
    step = _compare(work, factor, challenge, command.code)
    if step is None:
        return _fail(work, factor, challenge)
    challenge_id = challenge.challenge_id if challenge else ""
    return grants.pass_proof(work, source_of(factor), use, level=CODE_LEVEL, challenge_id=challenge_id, step=step)


def _same_use(challenge: CodeChallenge, command: VerifyCode) -> Use:
    use = challenge.use
    if command.purpose not in (None, use.purpose) or command.transaction_id not in ("", use.transaction_id):
        raise PreconditionFailed("CHALLENGE_MISMATCH", "the code was sent for something else")
    return use


def _require_open(work: Work, challenge: CodeChallenge) -> None:
    if challenge.ended:
        raise PreconditionFailed(challenge.ended, "the code is worthless; have a new one sent")
    if work.now_us >= challenge.expires_us:
        raise PreconditionFailed("CHALLENGE_EXPIRED", "the code came too late; have a new one sent")


def _fail(work: Work, factor: Factor, challenge: CodeChallenge | None) -> Refusal:
    """Count a wrong code; the answer does not say what was wrong."""
    limits = work.bounds.proofs
    across.charge_guess(work)
    failures = factor.failures + 1
    left = max(limits.code_checks - challenge.wrong - 1, 0) if challenge else None
    failed = ProofFailed(
        source=source_of(factor),
        challenge_id=challenge.challenge_id if challenge else "",
        reason="CODE_WRONG",
        failures=failures,
        locked_until_us=lock_after(failures, now_us=work.now_us, limits=limits),
        burned=left == 0,
    )
    work.record(Happening(failed))
    suspend_on_burst(work)
    return refusal_of(proofs.wrong(left))


def revoke_factor(work: Work, command: RevokeFactor) -> RevokedReply:
    """
    Make a factor worthless, with its open codes and the grants that rest on it; so is all that is only being bound.

    Raises:
        NotFound: the customer has no such factor.
        PreconditionFailed: it was revoked before.
    """
    # Told here alone, where who exists is no secret: where codes are asked for, one that is gone never was.
    if command.factor_id in work.identity.revoked_factors:
        raise PreconditionFailed("FACTOR_REVOKED", "the factor was revoked")
    factor = work.identity.factor(command.factor_id, work.now_us)
    phones = proofs.phones(work)
    revoked = FactorRevoked(factor.factor_id, command.reason_code, command.actor_id, told=len(phones))
    work.record(Happening(revoked))
    proofs.tell(work, phones, "FACTOR_REVOKED")
    return RevokedReply(work.key, work.now_us, (factor.factor_id,))


def make_recovery_codes(work: Work, command: MakeRecoveryCodes) -> FactorReply | Refusal:
    """
    Make ten codes to be written down; older ones become worthless.

    Raises:
        PermissionRefused, PreconditionFailed: as `grants.spend_to_bind`; there is nothing they could stand in for.
    """
    if not work.identity.bound:
        raise PreconditionFailed("FACTOR_NOT_ACTIVE", "the customer has no factor that codes could stand in for")
    spent = grants.spend_to_bind(work, command.grant)
    if isinstance(spent, Refusal):
        return spent
    key_id = work.secrets.key_id
    codes = work.secrets.recovery_codes(key_id, work.key, work.request_id)
    marks = tuple(work.secrets.recovery_mark(work.key, code) for code in codes)
    for event in spent:
        work.record(Happening(event))
    factor_id = work.new_id("f")
    phones = proofs.phones(work)
    made = RecoveryCodesMade(factor_id, work.now_us + work.bounds.proofs.cool_down_us, told=len(phones))
    work.record(Happening(made, sealed=RecoverySecrets(marks)))
    proofs.tell(work, phones, "RECOVERY_CODES_MADE")
    factor = work.identity.factor(factor_id, work.now_us)
    return FactorReply(work.key, work.request_id, view(factor, work.now_us), key_id=key_id)


def verify_recovery_code(work: Work, command: VerifyRecoveryCode) -> GrantReply | Refusal:
    """
    Check a recovery code, spend it and give a grant.

    Raises:
        PreconditionFailed: the customer has no recovery codes.
        ResourceExhausted: too many were wrong.
    """
    factor = recovery_codes_of(work.identity)
    proofs.require_unlocked(work, factor.locked_until_us)
    across.require_guesses(work)
    mark = work.secrets.recovery_mark(work.key, command.code)
    # Every one of them, so that the time tells nothing of which.
    if True not in [compare_digest(mark, known) for known in factor.codes]:
        return _fail(work, factor, None)
    reply = grants.pass_proof(
        work, Source(Method.RECOVERY_CODE, factor.factor_id), Use(command.purpose), level=CODE_LEVEL, spent_code=mark
    )
    left = work.identity.factor(factor.factor_id, work.now_us)
    return GrantReply(
        reply.key, reply.request_id, reply.key_id, reply.use, reply.level, reply.methods, reply.expires_us,
        len(left.codes),
    )  # fmt: skip


def recovery_codes_of(identity: Identity) -> Factor:
    """
    Return a customer's recovery codes.

    Raises:
        PreconditionFailed: there are none.
    """
    for factor in identity.active(Method.RECOVERY_CODE):
        return factor
    raise PreconditionFailed("FACTOR_NOT_ACTIVE", "the customer has no recovery codes")


def settle_message(work: Work, command: SettleMessage) -> Settled:
    """Record what became of a message. One that was settled before, by whoever else sent it, is left as it is."""
    if not work.settle_message(command.message_id, command.due_us if command.outcome == "RETRY" else 0):
        return Settled(0)
    if command.outcome == "RETRY":
        return Settled(0)
    work.record(Happening(MessageSettled(command.message_id, command.outcome)))
    if command.unsent_challenge:
        challenge = next((c for c in work.identity.codes if c.challenge_id == command.unsent_challenge), None)
        factor = next((f for f in work.identity.factors if challenge and f.factor_id == challenge.factor_id), None)
        if challenge and factor:
            across.refund_send(work, across.recipient_of(factor), challenge.sent_us)
            work.record(Happening(CodeUnsent(challenge.challenge_id, command.message_id)))
    return Settled(1)
