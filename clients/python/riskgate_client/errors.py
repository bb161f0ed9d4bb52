"""
What a call may raise: one class per kind of refusal, with the engine's stable reason.

Branch on the class for what to do, on `reason` for why. Texts may change; reasons do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from riskgate_client.certificates import OwnCertificate
from riskgate_client.unreached import explained

DOMAIN: Final = "riskgate"
_DETAILS_KEY: Final = "grpc-status-details-bin"
_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that breaks a rule: its path as the contract writes it, and the rule in words."""

    field: str
    description: str


class RiskgateError(Exception):
    """
    A call that did not succeed.

    Attributes:
        message: what happened, in words for people who read logs.
        status: the gRPC status.
        reason: the stable cause, one of `riskgate.common.v1.ErrorReason` without prefix; empty when the failure
            did not come from the engine (a proxy, the network).
        metadata: facts that go with the reason, such as {"scope": "risk:check"}.
        request_id: the id the command was sent with; None for a question, and for many purchases at once.
        effect_possible: the command may have had its effect all the same. Repeat it with the same `request_id`
            to learn its outcome; it cannot take effect twice. With reason REPLY_FORGOTTEN it did have it, under
            this very id and long ago: `metadata` names the effect.
    """

    def __init__(
        self,
        message: str,
        *,
        status: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
        effect_possible: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.request_id = request_id
        self.effect_possible = effect_possible

    def __str__(self) -> str:
        text = f"{self.reason or self.status.name}: {self.message}"
        facts = ", ".join(self._facts())
        return f"{text} ({facts})" if facts else text

    def _facts(self) -> list[str]:
        return [f"{name}={value}" for name, value in sorted(self.metadata.items())]


class InvalidRequest(RiskgateError):
    """The request is malformed whatever the state is; `fields` name what breaks which rule."""

    fields: tuple[FieldViolation, ...] = ()

    def _facts(self) -> list[str]:
        # The engine's message begins with the field where there is one.
        named = (f"{violation.field}: {violation.description}" for violation in self.fields)
        return [*super()._facts(), *(text for text in named if text not in self.message)]


class Unauthenticated(RiskgateError):
    """The calling service did not prove who it is: its credential is missing, unknown, expired or revoked."""


class PermissionDenied(RiskgateError):
    """The credential may not do this (`metadata["scope"]` names what it lacks), or the customer's proof is wrong."""


class NotFound(RiskgateError):
    """There is no such thing in this tenant."""


class AlreadyExists(RiskgateError):
    """An id is taken by other content."""


class FailedPrecondition(RiskgateError):
    """The state forbids it, or REPLY_FORGOTTEN: done before. The same `request_id` will always give this answer."""


class Conflict(RiskgateError):
    """The command lost a race and had no effect; a new attempt may succeed."""


class ResourceExhausted(RiskgateError):
    """Too much or too often. `retry_after` seconds from now, trying again may help; None when nobody said."""

    retry_after: float | None = None


class DeadlineExceeded(RiskgateError):
    """No answer in time. With reason DEADLINE_PASSED nothing was done; else see `effect_possible`."""


class Unavailable(RiskgateError):
    """The engine cannot be reached or cannot serve now, and nothing was done."""


class OutcomeUnknown(Unavailable):
    """The command may or may not have had its effect: repeat it with the same `request_id` to learn which."""


class Unimplemented(RiskgateError):
    """The engine, in its version, does not serve the call."""


class Cancelled(RiskgateError):
    """The call was given up on this side, for instance by closing the client."""


class Internal(RiskgateError):
    """The engine's own fault; `error_id` finds it in its log."""

    @property
    def error_id(self) -> str:
        """What to tell the operator; empty when the engine gave none."""
        return self.metadata.get("error_id", "")


_FAMILIES: Final[dict[grpc.StatusCode, type[RiskgateError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: Internal,
}


def error_from_rpc(failure: grpc.RpcError) -> RiskgateError:
    """Return what a failed gRPC call means, for instance one made with a generated stub."""
    return error_of_client(failure, None)


def error_of_client(failure: grpc.RpcError, own: OwnCertificate | None) -> RiskgateError:
    """Return what a failed gRPC call means for a client that presents its `own` certificate, or none."""
    call: Any = failure
    code: grpc.StatusCode = call.code() or grpc.StatusCode.UNKNOWN
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            status = _parsed(value)
            # A status that contradicts the call's own code was not written for this call.
            if status is not None and status.code == code.value[0]:
                return _caused(error_from_status(status), failure)
    message = explained(call.details() or "no details", own)
    return _caused(_family(code, "")(message, status=code), failure)


def error_from_status(status: Any) -> RiskgateError:
    """Return what a `google.rpc.Status` means."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = _detail(status.details, error_details_pb2.ErrorInfo)
    ours = info is not None and info.domain == DOMAIN
    reason = info.reason if ours else ""
    error = _family(code, reason)(
        status.message or "no details", status=code, reason=reason, metadata=info.metadata if ours else None
    )
    if isinstance(error, InvalidRequest):
        bad = _detail(status.details, error_details_pb2.BadRequest)
        if bad is not None:
            error.fields = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
    if isinstance(error, ResourceExhausted):
        retry = _detail(status.details, error_details_pb2.RetryInfo)
        if retry is not None:
            error.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return error


def _caused(error: RiskgateError, failure: grpc.RpcError) -> RiskgateError:
    error.__cause__ = failure
    return error


def _family(code: grpc.StatusCode, reason: str) -> type[RiskgateError]:
    return OutcomeUnknown if reason == "OUTCOME_UNKNOWN" else _FAMILIES.get(code, RiskgateError)


def _parsed(value: bytes) -> Any:
    try:
        return status_pb2.Status.FromString(value)
    except DecodeError:
        return None


def _detail(details: Iterable[Any], kind: type[Any]) -> Any:
    for packed in details:
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            try:
                packed.Unpack(detail)
            except DecodeError:
                return None
            return detail
    return None
