"""
Everything a caller may be refused for, said without knowing about gRPC.

A family (the class) says what kind of refusal it is; `reason` is the stable code that callers
branch on and is one of `riskgate.common.v1.ErrorReason`. `rpc/status.py` holds the only table
from families to gRPC statuses.
"""

from __future__ import annotations

import msgspec


class FieldViolation(msgspec.Struct, frozen=True, gc=False):
    """
    One field of a request, or of a text, that breaks a rule: its path as written in the proto, and the rule in words.

    `line` is where it stands in a text, from 1; 0 where there is none.
    """

    field: str
    description: str
    line: int = 0


class RiskgateError(Exception):
    """A refusal with a stable reason. `message` is safe to show to the calling service."""

    def __init__(self, reason: str, message: str, **details: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.details = details


class InvalidRequest(RiskgateError):
    """The request is malformed whatever the state of the system is; `violations` name the fields."""

    def __init__(self, reason: str, message: str, *violations: FieldViolation) -> None:
        super().__init__(reason, message)
        self.violations = violations


class Unauthenticated(RiskgateError):
    """The calling service did not prove who it is. Never about the customer."""


class PermissionRefused(RiskgateError):
    """The calling service is known but may not do this, or the customer's proof is wrong."""


class NotFound(RiskgateError):
    """Absent, or another tenant's: both are answered alike."""


class AlreadyExists(RiskgateError):
    """An id is taken by other content."""


class PreconditionFailed(RiskgateError):
    """The state forbids it; repeating the call without changing the state gives the same answer."""


class ResourceExhausted(RiskgateError):
    """Too much or too often. `retry_after_seconds` says when trying again may help."""

    def __init__(self, reason: str, message: str, *, retry_after_seconds: float, **details: str) -> None:
        super().__init__(reason, message, **details)
        self.retry_after_seconds = retry_after_seconds


class DeadlinePassed(RiskgateError):
    """The caller's deadline passed before the command started: nothing was done."""


class Conflict(RiskgateError):
    """The command lost a race and had no effect; a new attempt may succeed."""


class Unavailable(RiskgateError):
    """
    The engine cannot serve now. With reason OUTCOME_UNKNOWN the effect may or may not stand: repeat the same id.

    `retry_after_seconds` says when trying again may help; 0 when nobody can say.
    """

    def __init__(self, reason: str, message: str, *, retry_after_seconds: float = 0, **details: str) -> None:
        super().__init__(reason, message, **details)
        self.retry_after_seconds = retry_after_seconds


class Unimplemented(RiskgateError):
    """The contract has this call; this version of the engine does not serve it yet."""


class InternalError(RiskgateError):
    """Our own bug. The text is constant; the log has the rest."""
