"""DeviceService: enrols keys in phones and browsers, asks them for proofs, and has what they sign verified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from riskgate.identity.v1 import device_service_pb2 as pb
from riskgate_server.domain.calendar import SECOND_US
from riskgate_server.domain.errors import PermissionRefused
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    AppAttestObject,
    CompactJWS,
    Fault,
    KeySignature,
    PasskeyAssertion,
    PasskeyRegistration,
    Platform,
    Proof,
    ProofVerdict,
    RawKeyRegistration,
    Registration,
    RegistrationVerdict,
)
from riskgate_server.domain.identity.enrolled import ProofFault, challenge_asked, enrolment_asked
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.domain.identity.limits import PROOF_LIMITS
from riskgate_server.domain.identity.passkey_options import creation_options, request_options
from riskgate_server.engine import commands as c
from riskgate_server.engine.devices import devices_of
from riskgate_server.engine.proofs import PROOF_WRONG
from riskgate_server.engine.replies import (
    ChallengeReply,
    DeviceReply,
    DeviceView,
    EnrolmentReply,
    GrantReply,
    RevokedReply,
)
from riskgate_server.rpc.convert import invalid, mark_from, stamp
from riskgate_server.rpc.door import Call
from riskgate_server.rpc.otp import grant_to_proto
from riskgate_server.rpc.refusals import RefusalLog
from riskgate_server.rpc.service import Rooms, key_of

_ENROLMENT_SECONDS: Final = PROOF_LIMITS.pending_us // SECOND_US
_CHALLENGE_SECONDS: Final = PROOF_LIMITS.challenge_lifetime_us // SECOND_US


class DeviceServicer:
    """Serves `riskgate.identity.v1.DeviceService`."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._proofs = rooms.proofs
        self._refusals = RefusalLog("proof", "info")

    @contextmanager
    def _faults_logged(
        self, call: Call, method: str, found: RegistrationVerdict | ProofVerdict | ProofFault | None
    ) -> Iterator[None]:
        """Tell the log why a proof was refused, and of whose only the tenant: no answer says it."""
        try:
            yield
        except PermissionRefused as error:
            # Nothing is found of a request that is repeated when its challenge is long forgotten.
            if error.reason == PROOF_WRONG and found is not None:
                self._refusals.note(reason=_fault_of(found).name, method=method, tenant=call.caller.tenant_id)
            raise

    async def BeginEnrollment(self, request: pb.BeginEnrollmentRequest, call: Call) -> pb.BeginEnrollmentResponse:
        """Make the challenge that a new key must answer."""
        platform = Platform(request.platform)
        if platform not in self._proofs.policy.platforms:
            raise invalid("FIELD_INVALID", "platform", "keys of this kind of device are not taken here")
        command = c.BeginEnrolment(
            **self._rooms.head(request, call),
            platform=platform,
            display_name=request.display_name,
            grant=mark_from(request.binding_grant),
        )
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, EnrolmentReply)
        return self._enrolment_to_proto(reply, request.account_name)

    def _enrolment_to_proto(self, reply: EnrolmentReply, account_name: str) -> pb.BeginEnrollmentResponse:
        enrolment, policy = reply.enrolment, self._proofs.policy
        asked = enrolment_asked(reply.key, enrolment, policy.audience)
        response = pb.BeginEnrollmentResponse(
            enrollment_id=enrolment.challenge_id,
            challenge=challenges.challenge(asked),
            expire_time=stamp(enrolment.expires_us),
        )
        if enrolment.platform is not Platform.WEBAUTHN:
            response.signing_input = challenges.signing_input(asked)
            return response
        tenant_id, customer_id = reply.key
        response.creation_options_json = creation_options(
            policy,
            challenge=response.challenge,
            # The same for all passkeys of a customer, and it says nothing about them.
            user_handle=self._proofs.fingerprint(tenant_id, "user handle", customer_id),
            # Of the request, not of what is kept: who repeats it says the same again.
            user_name=account_name or enrolment.display_name,
            exclude=reply.known,
            timeout_seconds=_ENROLMENT_SECONDS,
        )
        return response

    async def FinishEnrollment(self, request: pb.FinishEnrollmentRequest, call: Call) -> pb.FinishEnrollmentResponse:
        """Check the answer and register the key."""
        judged = await self._proofs.threads.ask(
            self._proofs.judge.registration, key_of(request, call), request.enrollment_id, _registration_from(request)
        )
        command = c.FinishEnrolment(
            **self._rooms.head(request, call),
            enrolment_id=request.enrollment_id,
            found=judged.found,
            judged=judged.judged,
            marks=judged.marks,
        )
        with self._faults_logged(call, "FinishEnrollment", judged.found):
            reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, DeviceReply)
        return pb.FinishEnrollmentResponse(credential=_device_to_proto(reply.device))

    async def BeginChallenge(self, request: pb.BeginChallengeRequest, call: Call) -> pb.BeginChallengeResponse:
        """Make the challenge that a registered key must answer."""
        command = c.BeginChallenge(
            **self._rooms.head(request, call),
            purpose=Purpose(request.purpose),
            transaction_id=request.transaction_id,
            credential_ids=tuple(request.credential_ids),
        )
        with self._rooms.nobody.answered(command, lambda identity: devices_of(identity, command.credential_ids)):
            reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, ChallengeReply)
        challenge, policy = reply.challenge, self._proofs.policy
        asked = challenge_asked(reply.key, challenge, policy.audience)
        response = pb.BeginChallengeResponse(
            challenge_id=challenge.challenge_id, expire_time=stamp(challenge.expires_us)
        )
        if reply.passkeys:
            response.request_options_json = request_options(
                policy,
                challenge=challenges.challenge(asked),
                allow=reply.passkeys,
                timeout_seconds=_CHALLENGE_SECONDS,
            )
        if reply.others:
            response.signing_input = challenges.signing_input(asked)
        return response

    async def VerifyChallenge(self, request: pb.VerifyChallengeRequest, call: Call) -> pb.VerifyChallengeResponse:
        """Check the answer and give a grant."""
        judged = await self._proofs.threads.ask(
            self._proofs.judge.proof, key_of(request, call), request.challenge_id, _proof_from(request)
        )
        command = c.VerifyChallenge(
            **self._rooms.head(request, call),
            challenge_id=request.challenge_id,
            found=judged.found,
            judged=judged.judged,
        )
        with (
            self._faults_logged(call, "VerifyChallenge", judged.found),
            self._rooms.nobody.answered(command, lambda identity: identity.challenge(command.challenge_id)),
        ):
            reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, GrantReply)
        return pb.VerifyChallengeResponse(grant=grant_to_proto(self._rooms, reply))

    async def ListDevices(self, request: pb.ListDevicesRequest, call: Call) -> pb.ListDevicesResponse:
        """List a customer's devices."""
        rooms = self._rooms
        views = await rooms.readers.ask(rooms.queries.devices, key_of(request, call))
        return pb.ListDevicesResponse(credentials=map(_device_to_proto, views))

    async def RevokeDevice(self, request: pb.RevokeDeviceRequest, call: Call) -> pb.RevokeDeviceResponse:
        """Make a key worthless."""
        command = c.RevokeDevice(
            **self._rooms.head(request, call),
            credential_id=request.credential_id,
            reason_code=request.reason_code,
            actor_id=request.actor_id,
        )
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, RevokedReply)
        return pb.RevokeDeviceResponse(revoke_time=stamp(reply.at_us))

    async def RevokeAllDevices(self, request: pb.RevokeAllDevicesRequest, call: Call) -> pb.RevokeAllDevicesResponse:
        """Make all keys of a customer worthless."""
        command = c.RevokeAllDevices(
            **self._rooms.head(request, call), reason_code=request.reason_code, actor_id=request.actor_id
        )
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, RevokedReply)
        return pb.RevokeAllDevicesResponse(credential_ids=reply.ids, revoke_time=stamp(reply.at_us))


def _fault_of(found: RegistrationVerdict | ProofVerdict | ProofFault) -> Fault:
    """Return what was wrong with a refused proof; of one that was verified, what only the engine judges."""
    if isinstance(found, ProofFault):
        return found.fault
    seen = isinstance(found, RegistrationVerdict) or found.user_verified
    return Fault.COUNTER_NOT_GROWN if seen else Fault.USER_NOT_VERIFIED


def _registration_from(request: pb.FinishEnrollmentRequest) -> Registration:
    if request.WhichOneof("registration") == "webauthn_registration_json":
        return PasskeyRegistration(request.webauthn_registration_json)
    raw = request.raw_key
    evidence = raw.app_attest
    return RawKeyRegistration(
        public_key=raw.public_key,
        signature=raw.signature,
        android_chain=tuple(raw.android_chain),
        app_attest=AppAttestObject(evidence.key_id, evidence.attestation_object)
        if raw.HasField("app_attest")
        else None,
    )


def _proof_from(request: pb.VerifyChallengeRequest) -> Proof:
    """
    Return what a device answered.

    Raises:
        InvalidRequest: there is evidence of an app beside something it cannot vouch for.
    """
    given = request.WhichOneof("proof")
    if given == "device_signature":
        signed = request.device_signature
        return KeySignature(signed.credential_id, signed.signature, request.app_attest_assertion)
    if request.app_attest_assertion:
        raise invalid("FIELD_INVALID", "app_attest_assertion", "goes beside a device_signature")
    if given == "compact_jws":
        return CompactJWS(request.compact_jws)
    return PasskeyAssertion(request.webauthn_assertion_json)


def _device_to_proto(view: DeviceView) -> pb.DeviceCredential:
    known = view.assurance
    credential = pb.DeviceCredential(
        credential_id=view.credential_id,
        platform=int(view.platform),  # type: ignore[arg-type]
        display_name=view.display_name,
        assurance=pb.Assurance(
            hardware_backed=known.hardware_backed,
            device_bound=known.device_bound,
            attested=known.attested,
            user_verified_per_use=known.user_verified_per_use,
            boot_state=int(known.boot_state),  # type: ignore[arg-type]
            level=known.level,
        ),
        enroll_time=stamp(view.enrolled_us),
        full_strength_time=stamp(view.full_strength_us),
    )
    if view.last_use_us:
        credential.last_use_time.CopyFrom(stamp(view.last_use_us))
    return credential
