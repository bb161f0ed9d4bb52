"""
The only place where a refusal becomes a gRPC status: one table, one function.

The order in which a call is refused, when several refusals apply: no or bad credential, rate, no
scope, overload, malformed bytes, invalid fields, deadline, then what the state says.
"""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from riskgate_server.domain import errors

DOMAIN: Final = "riskgate"
"""`google.rpc.ErrorInfo.domain` of every error this server sends."""

FIELDS_IN_MESSAGE: Final = 5
"""Fields an error's message names; the details name every one."""

STATUS_OF: Final[dict[type[errors.RiskgateError], grpc.StatusCode]] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.PreconditionFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}


def status_of(error: errors.RiskgateError) -> grpc.StatusCode:
    """Return the status of an error's family, looked up along its ancestors."""
    return next(STATUS_OF[family] for family in type(error).__mro__ if family in STATUS_OF)


def proto_of(error: errors.RiskgateError) -> status_pb2.Status:
    """Return the error as `google.rpc.Status`: ErrorInfo always, BadRequest and RetryInfo where they apply."""
    details: list[any_pb2.Any] = []
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details)
    details.append(_packed(info))
    if isinstance(error, errors.InvalidRequest) and error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in error.violations
        ]
        details.append(_packed(error_details_pb2.BadRequest(field_violations=violations)))
    if isinstance(error, errors.ResourceExhausted | errors.Unavailable) and error.retry_after_seconds:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(max(1, round(error.retry_after_seconds * 1000)))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = status_of(error).value[0]
    return status_pb2.Status(code=code, message=_message_of(error), details=details)


def _message_of(error: errors.RiskgateError) -> str:
    """Write what happened; of a malformed request which fields, for not every client shows the details."""
    if not isinstance(error, errors.InvalidRequest) or not error.violations:
        return error.message
    named = "; ".join(f"{v.field}: {v.description}" for v in error.violations[:FIELDS_IN_MESSAGE])
    more = len(error.violations) - FIELDS_IN_MESSAGE
    return f"{named}; and {more} more" if more > 0 else named


def grpc_status_of(error: errors.RiskgateError) -> grpc.Status:
    """Return the error as what `context.abort_with_status` takes."""
    return rpc_status.to_status(proto_of(error))


def name_of(error: errors.RiskgateError) -> str:
    """Return the status as metrics and logs name it."""
    name: str = code_pb2.Code.Name(status_of(error).value[0])
    return name


def _packed(message: error_details_pb2.ErrorInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
