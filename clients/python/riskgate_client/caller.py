"""What both clients need to make a call: its method, and how often and how long to try."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Final, TypeVar

import grpc

from riskgate_client.call import Call
from riskgate_client.certificates import OwnCertificate
from riskgate_client.errors import RiskgateError, error_of_client
from riskgate_client.retry import Attempts, Retry
from riskgate_client.transport import AuthenticatedChannel

F = TypeVar("F", bound=Callable[..., Any])

_UNCOUNTED: Final = 1_000_000
"""Tries during an outage: its length is the bound."""


class Caller:
    """Finds the methods of one channel, and says how calls are tried."""

    def __init__(
        self,
        channel: AuthenticatedChannel,
        policy: Retry,
        timeout_seconds: float | None,
        own: OwnCertificate | None,
    ) -> None:
        self._channel = channel
        self._policy = policy
        self._timeout_seconds = timeout_seconds
        self._own = own
        self._stubs: dict[Any, Any] = {}

    def method(self, call: Call[Any]) -> Any:
        """Return what makes one try of a call."""
        stub = self._stubs.get(call.stub)
        if stub is None:
            stub = self._stubs[call.stub] = call.stub(self._channel)
        return getattr(stub, call.method)

    def error(self, failure: grpc.RpcError) -> RiskgateError:
        """Return what a failed try means for this client."""
        return error_of_client(failure, self._own)

    def attempts(self, call: Call[Any]) -> Attempts:
        """Return the tries of a call that has just begun."""
        return Attempts(self._policy, seconds=self.seconds(call), command=call.command, request_id=call.request_id)

    def seconds(self, call: Call[Any]) -> float:
        """Return how long an answer may take."""
        if call.timeout is not None:
            return call.timeout
        return call.usual_seconds if self._timeout_seconds is None else self._timeout_seconds

    def outage(self, call: Call[Any]) -> Attempts:
        """Return the tries to bring back a stream that stood until now; what it carried may have had its effect."""
        return Attempts(
            self._policy,
            seconds=self._policy.outage_max_seconds,
            command=call.command,
            attempts_max=_UNCOUNTED,
            effect_possible=call.command,
        )


class Service:
    """Calls of one service of the engine."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller


def presented_as(describe: Callable[..., Any]) -> Callable[[F], F]:
    """Give a method the name, text and arguments of the builder it makes calls of, for `help` and editors."""

    def present(method: F) -> F:
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        arguments = inspect.signature(describe).parameters.values()
        update_wrapper(method, describe)
        vars(method)["__signature__"] = inspect.Signature([own, *arguments])
        return method

    return present
