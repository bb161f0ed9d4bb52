"""OtpService: enrols the factors that codes are made for, has codes sent, and checks them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final, TypeVar

from riskgate.identity.v1 import grant_pb2
from riskgate.identity.v1 import otp_service_pb2 as pb
from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.errors import NotFound, PreconditionFailed
from riskgate_server.domain.identity.factors import FactorState
from riskgate_server.domain.identity.grants import Method, Purpose
from riskgate_server.domain.identity.identity import EMPTY_IDENTITY, Identity
from riskgate_server.engine import commands as c
from riskgate_server.engine.delivery import Answer
from riskgate_server.engine.grants import purchase_not_found, require_named
from riskgate_server.engine.otp import recovery_codes_of
from riskgate_server.engine.ports import KeyRetired
from riskgate_server.engine.replies import CodeReply, CodeView, FactorReply, FactorView, GrantReply, RevokedReply
from riskgate_server.rpc.convert import invalid, mark_from, stamp
from riskgate_server.rpc.decoys import CUSTOMER_NOT_FOUND, Decoys, gateway_down
from riskgate_server.rpc.door import Call
from riskgate_server.rpc.service import Rooms, key_of

_T = TypeVar("_T")

LANGUAGES: Final = ("en", "zh-Hans")
_RECOVERY_DIGITS: Final = 16
_GROUP: Final = 4


def grant_to_proto(rooms: Rooms, reply: GrantReply) -> grant_pb2.Grant:
    """Write a grant, with the token that the request was given the first time."""
    return grant_pb2.Grant(
        token=_secret(rooms.secrets.token, reply.key_id, reply.key, reply.request_id),
        purpose=int(reply.use.purpose),  # type: ignore[arg-type]
        transaction_id=reply.use.transaction_id,
        level=reply.level,
        methods=[int(method) for method in reply.methods],  # type: ignore[misc]
        expire_time=stamp(reply.expires_us),
    )


class OtpServicer:
    """Serves `riskgate.identity.v1.OtpService`."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._decoys = Decoys(rooms.secrets, rooms.clock)

    async def _factor(self, command: c.Command) -> FactorReply:
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, FactorReply)
        return reply

    async def _grant(self, command: c.Command) -> GrantReply:
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, GrantReply)
        return reply

    async def _code(self, command: c.Command) -> CodeReply:
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, CodeReply)
        await self._sent(reply.key, reply.code)
        return reply

    async def _sent(self, key: CustomerKey, code: CodeView) -> None:
        """
        Wait for the gateway's answer to a code, as long as it is tried.

        Raises:
            Unavailable: the gateway is down; the challenge stands and the message counts for nothing.
            PreconditionFailed: the gateway will never take a message to this number.
        """
        match await self._rooms.delivery.answer(key, code.message_id):
            case Answer.UNSENT:
                raise gateway_down(code.challenge_id)
            case Answer.REFUSED:
                raise PreconditionFailed("PHONE_NUMBER_REFUSED", "the number takes no messages")

    async def EnrollPhone(self, request: pb.EnrollPhoneRequest, call: Call) -> pb.EnrollPhoneResponse:
        """Register a phone and send it a code."""
        phone = self._rooms.phones.read(call.caller.tenant_id, request.phone_number)
        command = c.EnrollPhone(
            **self._rooms.head(request, call),
            number=phone.number,
            masked=phone.masked,
            mark=phone.mark,
            prefix=phone.prefix,
            other_marks=phone.other_marks,
            region=phone.region,
            grant=mark_from(request.binding_grant),
            language=_language(request.language_code),
        )
        reply = await self._factor(command)
        assert reply.code is not None
        await self._sent(reply.key, reply.code)
        return pb.EnrollPhoneResponse(factor=_factor_to_proto(reply.factor), challenge=_code_to_proto(reply.code))

    async def EnrollTotp(self, request: pb.EnrollTotpRequest, call: Call) -> pb.EnrollTotpResponse:
        """Make a seed for an authenticator app."""
        command = c.EnrollTotp(
            **self._rooms.head(request, call), label=request.label, grant=mark_from(request.binding_grant)
        )
        reply = await self._factor(command)
        seed = _secret(self._rooms.secrets.seed, reply.key_id, reply.key, reply.request_id)
        written = base64.b32encode(seed).decode()
        # The bank as customers know it from their passkeys: a tenant's name is between its services and us.
        issuer = self._rooms.proofs.policy.rp_name
        return pb.EnrollTotpResponse(
            factor=_factor_to_proto(reply.factor),
            otpauth_uri=self._rooms.secrets.otpauth_uri(seed, issuer=issuer, label=request.label),
            seed_base32=written,
            expire_time=stamp(reply.expires_us),
        )

    async def ConfirmFactor(self, request: pb.ConfirmFactorRequest, call: Call) -> pb.ConfirmFactorResponse:
        """Make a factor usable."""
        command = c.ConfirmFactor(**self._rooms.head(request, call), factor_id=request.factor_id, code=request.code)
        with self._rooms.nobody.answered(command, lambda identity: identity.factor(command.factor_id, 0)):
            reply = await self._factor(command)
        return pb.ConfirmFactorResponse(factor=_factor_to_proto(reply.factor))

    async def SendCode(self, request: pb.SendCodeRequest, call: Call) -> pb.SendCodeResponse:
        """Send a code to a confirmed phone."""
        purpose = Purpose(request.purpose)
        # Whoever it is asked for: a customer who does not exist would not be told.
        require_named(purpose, request.transaction_id)
        command = c.SendCode(
            **self._rooms.head(request, call),
            factor_id=request.factor_id,
            purpose=purpose,
            transaction_id=request.transaction_id,
            language=_language(request.language_code),
        )
        try:
            code = (await self._decoys.timed(self._code(command))).code
        except (NotFound, PreconditionFailed) as error:
            absent = error.reason == CUSTOMER_NOT_FOUND
            if absent:
                self._rooms.nobody.require_new(command)
            if absent and request.transaction_id:
                raise purchase_not_found() from None
            if request.transaction_id or not await self._is_decoys(command.key, request.factor_id, error.reason):
                if absent:
                    EMPTY_IDENTITY.factor(request.factor_id, 0)
                raise
            code = await self._decoys.send(command.key, request.request_id)
        return pb.SendCodeResponse(challenge=_code_to_proto(code))

    async def _is_decoys(self, key: CustomerKey, factor_id: str, reason: str) -> bool:
        """Whether a code that was refused is answered by a decoy, and so is another for the phone of that decoy."""
        if not factor_id:
            return reason in _TELLS_WHO_EXISTS
        if reason not in _TELLS_OF_FACTOR or factor_id != self._decoys.factor_id(key):
            return False
        views = await self._rooms.readers.ask(self._rooms.queries.factors, key)
        return not any(view.method is Method.SMS and view.state is not FactorState.PENDING for view in views)

    async def ResendCode(self, request: pb.ResendCodeRequest, call: Call) -> pb.ResendCodeResponse:
        """Send the same code again."""
        command = c.ResendCode(
            **self._rooms.head(request, call),
            challenge_id=request.challenge_id,
            language=_language(request.language_code),
        )
        try:
            with self._rooms.nobody.answered(command, lambda identity: identity.code(command.challenge_id)):
                code = (await self._decoys.timed(self._code(command))).code
        except NotFound as error:
            if error.reason != _MAY_BE_DECOY:
                raise
            code = await self._decoys.resend(command.key, request.challenge_id, request.request_id)
        return pb.ResendCodeResponse(challenge=_code_to_proto(code))

    async def VerifyCode(self, request: pb.VerifyCodeRequest, call: Call) -> pb.VerifyCodeResponse:
        """Check a code and give a grant."""
        command = c.VerifyCode(
            **self._rooms.head(request, call),
            challenge_id=request.challenge_id,
            factor_id=request.factor_id,
            code=request.code,
            purpose=Purpose(request.purpose) if request.purpose else None,
            transaction_id=request.transaction_id,
        )

        def look(identity: Identity) -> object:
            named = command.challenge_id
            return identity.code(named) if named else identity.factor(command.factor_id, 0)

        try:
            with self._rooms.nobody.answered(command, look):
                reply = await self._grant(command)
        except NotFound as error:
            if error.reason != _MAY_BE_DECOY:
                raise
            raise self._decoys.refusal(command.key, request.challenge_id, request.request_id) from None
        return pb.VerifyCodeResponse(grant=grant_to_proto(self._rooms, reply))

    async def ListFactors(self, request: pb.ListFactorsRequest, call: Call) -> pb.ListFactorsResponse:
        """List a customer's factors."""
        rooms = self._rooms
        views = await rooms.readers.ask(rooms.queries.factors, key_of(request, call))
        return pb.ListFactorsResponse(factors=map(_factor_to_proto, views))

    async def RevokeFactor(self, request: pb.RevokeFactorRequest, call: Call) -> pb.RevokeFactorResponse:
        """Make a factor worthless."""
        command = c.RevokeFactor(
            **self._rooms.head(request, call),
            factor_id=request.factor_id,
            reason_code=request.reason_code,
            actor_id=request.actor_id,
        )
        reply = await self._rooms.gateway.submit(command)
        assert isinstance(reply, RevokedReply)
        return pb.RevokeFactorResponse(revoke_time=stamp(reply.at_us))

    async def GenerateRecoveryCodes(
        self, request: pb.GenerateRecoveryCodesRequest, call: Call
    ) -> pb.GenerateRecoveryCodesResponse:
        """Make ten codes to be written down."""
        command = c.MakeRecoveryCodes(**self._rooms.head(request, call), grant=mark_from(request.binding_grant))
        reply = await self._factor(command)
        codes = _secret(self._rooms.secrets.recovery_codes, reply.key_id, reply.key, reply.request_id)
        grouped = ["-".join(code[at : at + _GROUP] for at in range(0, len(code), _GROUP)) for code in codes]
        return pb.GenerateRecoveryCodesResponse(codes=grouped, factor=_factor_to_proto(reply.factor))

    async def VerifyRecoveryCode(
        self, request: pb.VerifyRecoveryCodeRequest, call: Call
    ) -> pb.VerifyRecoveryCodeResponse:
        """Check a recovery code, spend it and give a grant."""
        code = request.code.upper().replace("-", "").replace(" ", "")
        if len(code) != _RECOVERY_DIGITS:
            raise invalid("FIELD_INVALID", "code", f"must have {_RECOVERY_DIGITS} letters and digits")
        command = c.VerifyRecoveryCode(**self._rooms.head(request, call), code=code, purpose=Purpose(request.purpose))
        with self._rooms.nobody.answered(command, recovery_codes_of):
            reply = await self._grant(command)
        return pb.VerifyRecoveryCodeResponse(grant=grant_to_proto(self._rooms, reply), codes_left=reply.codes_left)


_TELLS_WHO_EXISTS: Final = frozenset({CUSTOMER_NOT_FOUND, "FACTOR_NOT_ACTIVE"})
"""Reasons from which whoever tries out ids could learn which customers there are, or have a phone."""

_TELLS_OF_FACTOR: Final = _TELLS_WHO_EXISTS | {"FACTOR_NOT_FOUND"}
"""The same where a factor is named: what a decoy was said to be sent to must not be unknown afterwards."""

_MAY_BE_DECOY: Final = "CHALLENGE_NOT_FOUND"


def _secret(derive: Callable[[int, CustomerKey, str], _T], key_id: int, key: CustomerKey, request_id: str) -> _T:
    try:
        return derive(key_id, key, request_id)
    except KeyRetired:
        reason, message = "REPLY_FORGOTTEN", "done before under this request id; its secrets are no longer known"
        raise PreconditionFailed(reason, message) from None


def _language(code: str) -> str:
    """
    Return the language of a message; empty for the default.

    Raises:
        InvalidRequest: there are no texts in it.
    """
    if code and code not in LANGUAGES:
        raise invalid("FIELD_INVALID", "language_code", f"must be one of {', '.join(LANGUAGES)}")
    return code


def _factor_to_proto(view: FactorView) -> pb.Factor:
    factor = pb.Factor(
        factor_id=view.factor_id,
        kind=int(view.method),  # type: ignore[arg-type]
        state=int(view.state),  # type: ignore[arg-type]
        display_name=view.display_name,
        enroll_time=stamp(view.enrolled_us),
        codes_left=view.codes_left if view.method is Method.RECOVERY_CODE else 0,
    )
    if view.full_strength_us:
        factor.full_strength_time.CopyFrom(stamp(view.full_strength_us))
    if view.locked_until_us:
        factor.lock_end_time.CopyFrom(stamp(view.locked_until_us))
    return factor


def _code_to_proto(view: CodeView) -> pb.CodeChallenge:
    return pb.CodeChallenge(
        challenge_id=view.challenge_id,
        factor_id=view.factor_id,
        masked_destination=view.masked,
        expire_time=stamp(view.expires_us),
        resend_time=stamp(view.resend_us),
        checks_left=view.checks_left,
    )
