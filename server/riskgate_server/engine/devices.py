"""
Use cases of device keys: enrol, ask for a proof, count what was verified, revoke.

Signatures are verified before the queue (`judging.py`). What is decided here is whether what a verdict was held against
still stands, and what it is worth: each challenge is claimed and consumed in the commit that gives the grant.
"""

from __future__ import annotations

from collections.abc import Sequence

from riskgate_server.domain.errors import Conflict, NotFound, PreconditionFailed
from riskgate_server.domain.events import Happening
from riskgate_server.domain.identity.challenges import NONCE_BYTES, Transaction
from riskgate_server.domain.identity.devices import Fault, Platform
from riskgate_server.domain.identity.enrolled import (
    Device,
    DeviceChallenge,
    Enrolment,
    ProofFault,
    challenge_judged,
    enrolment_judged,
    went_back,
)
from riskgate_server.domain.identity.events import (
    ChallengeIssued,
    ChallengeSecrets,
    DeviceEnrolled,
    DeviceSecrets,
    DevicesRevoked,
    EnrolmentBegun,
    EnrolmentSecrets,
    ProofFailed,
)
from riskgate_server.domain.identity.factors import lock_after
from riskgate_server.domain.identity.grants import Method, Source, Use
from riskgate_server.domain.identity.identity import Identity
from riskgate_server.engine import across, grants, proofs
from riskgate_server.engine.commands import (
    BeginChallenge,
    BeginEnrolment,
    FinishEnrolment,
    RevokeAllDevices,
    RevokeDevice,
    VerifyChallenge,
)
from riskgate_server.engine.protection import suspend_on_burst
from riskgate_server.engine.replies import (
    ChallengeReply,
    DeviceReply,
    DeviceView,
    EnrolmentReply,
    GrantReply,
    Refusal,
    RevokedReply,
    refusal_of,
)
from riskgate_server.engine.work import Work


def view(device: Device) -> DeviceView:
    """Return what may be shown of a device."""
    return DeviceView(
        credential_id=device.credential_id,
        platform=device.key.platform,
        display_name=device.display_name,
        assurance=device.assurance,
        enrolled_us=device.enrolled_us,
        full_strength_us=device.full_strength_us,
        last_use_us=device.last_use_us,
    )


def _passkeys(devices: tuple[Device, ...]) -> tuple[bytes, ...]:
    return tuple(device.key.webauthn_id for device in devices if device.key.platform is Platform.WEBAUTHN)


def _require_room(work: Work) -> None:
    if len(work.identity.devices) >= work.bounds.proofs.devices:
        raise PreconditionFailed("BOUND_REACHED", f"a customer has at most {work.bounds.proofs.devices} devices")


def begin_enrolment(work: Work, command: BeginEnrolment) -> EnrolmentReply | Refusal:
    """
    Ask a new device to prove that it has a key.

    Raises:
        PermissionRefused, PreconditionFailed: as `grants.spend_to_bind`; the customer has as many devices as one may.
    """
    _require_room(work)
    spent = grants.spend_to_bind(work, command.grant)
    if isinstance(spent, Refusal):
        return spent
    for event in spent:
        work.record(Happening(event))
    enrolment_id = work.new_id("e")
    begun = EnrolmentBegun(
        enrolment_id=enrolment_id,
        platform=command.platform,
        expires_us=work.now_us + work.bounds.proofs.pending_us,
        granted=bool(spent),
    )
    secrets = EnrolmentSecrets(work.random_bytes(NONCE_BYTES), command.display_name)
    work.record(Happening(begun, sealed=secrets))
    return EnrolmentReply(work.key, work.identity.enrolment(enrolment_id), _passkeys(work.identity.devices))


def finish_enrolment(work: Work, command: FinishEnrolment) -> DeviceReply | Refusal:
    """
    Register a device's key.

    Raises:
        NotFound: the customer has no such enrolment.
        PreconditionFailed: it ended or was not in time; the customer has as many devices as one may.
        PermissionRefused: it was begun as the first of the customer's, and no longer is.
        AlreadyExists: the key is enrolled, for this customer or another.
        Conflict: the registration was held against something else than stands now.
    """
    enrolment = work.identity.enrolment(command.enrolment_id)
    _require_open(work, enrolment)
    found = command.found
    if found is None or command.judged != enrolment_judged(enrolment):
        raise _judged_otherwise()
    if work.identity.bound and not enrolment.granted:
        raise grants.grant_required()
    if isinstance(found, ProofFault):
        return _fail(work, enrolment, None, found.fault)
    _require_room(work)
    if any(set(device.marks) & set(command.marks) for device in work.identity.devices):
        raise across.credential_exists()
    across.take_credential(work, command.marks)
    phones = proofs.phones(work)
    credential_id = work.new_id("k")
    enrolled = DeviceEnrolled(
        credential_id=credential_id,
        enrolment_id=enrolment.challenge_id,
        platform=enrolment.platform,
        marks=command.marks,
        assurance=found.assurance,
        attestation=found.attestation,
        full_strength_us=proofs.full_strength_us(work),
        told=len(phones),
    )
    work.record(Happening(enrolled, sealed=DeviceSecrets(found.key, found.aaguid)))
    proofs.tell(work, phones, "DEVICE_BOUND")
    return DeviceReply(work.key, view(work.identity.device(credential_id)))


def begin_challenge(work: Work, command: BeginChallenge) -> ChallengeReply:
    """
    Ask devices for a proof.

    Raises:
        InvalidRequest: as `grants.use_for`.
        NotFound: the customer has no such device, or none; no such purchase.
        PreconditionFailed: a named device was revoked, or none that is asked may answer for this; as `grants.use_for`.
        ResourceExhausted: every device that is asked is locked.
    """
    asked = devices_of(work.identity, command.credential_ids)
    use = grants.use_for(work, command.purpose, command.transaction_id)
    proofs.require_counts(work, use, Method.DEVICE_KEY)
    purchase = work.purchase(use.transaction_id) if use.transaction_id else None
    if grants.needs_strength(use, purchase):
        full_us = min(device.full_strength_us for device in asked)
        if work.now_us < full_us:
            raise grants.cooling_down(full_us)
        asked = tuple(device for device in asked if device.full_strength_us <= work.now_us)
    proofs.require_unlocked(work, min(device.locked_until_us for device in asked))
    challenge_id = work.new_id("c")
    issued = ChallengeIssued(
        challenge_id=challenge_id,
        use=use,
        credential_ids=tuple(device.credential_id for device in asked),
        expires_us=work.now_us + work.bounds.proofs.challenge_lifetime_us,
    )
    work.record(Happening(issued, sealed=ChallengeSecrets(work.random_bytes(NONCE_BYTES), _transaction(work, use))))
    passkeys = _passkeys(asked)
    challenge = work.identity.challenge(challenge_id)
    return ChallengeReply(work.key, challenge, passkeys, others=len(passkeys) < len(asked))


def devices_of(identity: Identity, credential_ids: Sequence[str]) -> tuple[Device, ...]:
    """
    Return the devices that are named, or all.

    Raises:
        NotFound, PreconditionFailed: there is none, or as `Identity.device`.
    """
    asked = tuple(identity.device(name) for name in credential_ids) or identity.devices
    if not asked:
        raise NotFound("DEVICE_NOT_FOUND", "the customer has no device")
    return asked


def _transaction(work: Work, use: Use) -> Transaction | None:
    purchase = work.purchase(use.transaction_id) if use.transaction_id else None
    if purchase is None:
        return None
    facts = work.facts(purchase)
    # The customer can be read, or nothing of theirs would be decided.
    assert facts is not None
    return Transaction(
        transaction_id=purchase.transaction_id,
        amount_minor=facts.amount_minor,
        currency=facts.currency,
        payee_id=facts.merchant_id,
        account_id=purchase.line_id,
    )


def verify_challenge(work: Work, command: VerifyChallenge) -> GrantReply | Refusal:
    """
    Count a device's proof and give a grant. The order: what ended, what is revoked or locked, then the proof.

    Raises:
        NotFound: the customer has no such challenge.
        PreconditionFailed: it ended or was not in time, the device was revoked, or the purchase needs no proof by it.
        ResourceExhausted: the device is locked: a right proof is not looked at.
        Conflict: the proof was held against something else than stands now.
    """
    challenge = work.identity.challenge(command.challenge_id)
    _require_open(work, challenge)
    use = challenge.use
    if use.transaction_id:
        # The purchase may have been decided, or have waited too long, since the proof was asked for.
        grants.use_for(work, use.purpose, use.transaction_id)
    found = command.found
    if found is None:
        raise _judged_otherwise()
    device = work.identity.device(found.credential_id) if found.credential_id else None
    asked = device is None or device.credential_id in challenge.credential_ids
    if not asked or command.judged != challenge_judged(challenge, device):
        raise _judged_otherwise()
    proofs.require_counts(work, use, Method.DEVICE_KEY)
    if device is not None:
        proofs.require_unlocked(work, device.locked_until_us)
    if isinstance(found, ProofFault):
        return _fail(work, challenge, device, found.fault)
    assert device is not None
    if not found.user_verified:
        return _fail(work, challenge, device, Fault.USER_NOT_VERIFIED)
    app = device.key.app_attest
    regressed = went_back(device.key.sign_count, found.sign_count)
    app_regressed = app is not None and bool(found.app_sign_count) and went_back(app.sign_count, found.app_sign_count)
    # A key that is copied on purpose has several counters, or none.
    if app_regressed or (regressed and device.assurance.device_bound):
        return _fail(work, challenge, device, Fault.COUNTER_NOT_GROWN)
    return grants.pass_proof(
        work,
        Source(Method.DEVICE_KEY, device.credential_id),
        use,
        level=device.assurance.level,
        challenge_id=challenge.challenge_id,
        sign_count=found.sign_count,
        app_sign_count=found.app_sign_count,
        regressed=regressed,
    )


def _require_open(work: Work, asked: DeviceChallenge | Enrolment) -> None:
    if asked.ended:
        raise PreconditionFailed(asked.ended, "the challenge is worthless; begin anew")
    if work.now_us >= asked.expires_us:
        raise PreconditionFailed("CHALLENGE_EXPIRED", "the answer came too late; begin anew")


def _judged_otherwise() -> Conflict:
    return Conflict("WRITE_CONFLICT", "what the proof was held against has changed; nothing was done")


def _fail(work: Work, asked: DeviceChallenge | Enrolment, device: Device | None, fault: Fault) -> Refusal:
    """Count a wrong proof; the answer does not say what was wrong."""
    limits = work.bounds.proofs
    failures = device.failures + 1 if device else 0
    left = max(limits.challenge_checks - asked.wrong - 1, 0)
    failed = ProofFailed(
        source=Source(Method.DEVICE_KEY, device.credential_id if device else ""),
        challenge_id=asked.challenge_id,
        reason=fault.name,
        failures=failures,
        locked_until_us=lock_after(failures, now_us=work.now_us, limits=limits),
        burned=not left,
    )
    work.record(Happening(failed))
    suspend_on_burst(work)
    return refusal_of(proofs.wrong(left))


def revoke_device(work: Work, command: RevokeDevice) -> RevokedReply:
    """
    Make a device worthless, with what only it was asked, the grants that rest on it, and all that is only being bound.

    Raises:
        NotFound: the customer has no such device.
        PreconditionFailed: it was revoked before.
    """
    device = work.identity.device(command.credential_id)
    return _revoke(work, (device.credential_id,), command)


def revoke_all_devices(work: Work, command: RevokeAllDevices) -> RevokedReply:
    """Make all devices of a customer worthless, and enrolments under way: who took the account over began some."""
    names = tuple(device.credential_id for device in work.identity.devices)
    return _revoke(work, names, command)


def _revoke(work: Work, names: tuple[str, ...], command: RevokeDevice | RevokeAllDevices) -> RevokedReply:
    phones = proofs.phones(work) if names else []
    every = isinstance(command, RevokeAllDevices)
    event = DevicesRevoked(names, command.reason_code, command.actor_id, every=every, told=len(phones))
    work.record(Happening(event))
    proofs.tell(work, phones, "DEVICE_REVOKED")
    return RevokedReply(work.key, work.now_us, names)
