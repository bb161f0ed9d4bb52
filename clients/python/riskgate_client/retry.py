"""
When a call is made again.

Every call may be: a command carries a request id, so that repeating it cannot take effect twice, and a
question changes nothing. Only UNAVAILABLE is repeated, and RESOURCE_EXHAUSTED if the policy says so; all
other refusals would be the same again, and so would be the one that tells of a message's gateway. Tries, pauses
and the time of the whole call are bounded. It is done here rather than by gRPC's service config because only here
are the engine's reasons known.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc

from riskgate_client.errors import OutcomeUnknown, ResourceExhausted, RiskgateError, Unavailable
from riskgate_client.unreached import never_sent, nobody_there, untrusted
from riskgate_client.values import CheckResult

T = TypeVar("T")

_TRY_SECONDS_MIN: Final = 0.01

# Only what the state says, which the engine asks after it has looked the request id up, tells that an earlier try of
# the same id did nothing either. Every other refusal may have come before the engine looked.
_RESOLVING: Final = frozenset(
    {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION}
)
# The first says that nobody knows, the second that it was done before.
_POSSIBLE: Final = frozenset({"OUTCOME_UNKNOWN", "REPLY_FORGOTTEN"})


@dataclass(frozen=True, slots=True)
class Retry:
    """
    How a call is repeated.

    Attributes:
        attempts_max: tries of one call, the first included. 1 means never again. Else those that found nobody
            listening do not count: they go on for as long as the call may take.
        pause_first_seconds: pause after the first try; doubles with each, and is shortened by chance by up to half.
        pause_max_seconds: longest pause.
        when_exhausted: also repeat after RESOURCE_EXHAUSTED, when the engine says when to come back.
        outage_max_seconds: how long a stream or watch that once stood goes on trying without progress.
    """

    attempts_max: int = 5
    pause_first_seconds: float = 0.05
    pause_max_seconds: float = 1.0
    when_exhausted: bool = False
    outage_max_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts_max < 1:
            raise ValueError("attempts_max must be at least 1")
        if not 0 < self.pause_first_seconds <= self.pause_max_seconds:
            raise ValueError("pause_first_seconds must be above 0 and at most pause_max_seconds")


class Attempts:
    """
    What is left of one call: its time, its tries, and whether an earlier try may have had its effect.

    Time begins when it is first asked for: with the first try of a call, with the first failure of a stream.
    """

    def __init__(
        self,
        policy: Retry,
        *,
        seconds: float,
        command: bool,
        request_id: str | None = None,
        attempts_max: int | None = None,
        effect_possible: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if seconds <= 0:
            raise ValueError("timeout must be above zero seconds")
        self._policy = policy
        self._command = command
        self._request_id = request_id
        self._left = policy.attempts_max if attempts_max is None else attempts_max
        self._pause = policy.pause_first_seconds
        self._monotonic = monotonic
        self._chance = chance
        self._seconds = seconds
        self._ends: float | None = None
        self._effect_possible = effect_possible

    @property
    def remaining(self) -> float:
        """Seconds left for the next try; never so few that gRPC would not send it at all."""
        return max(self._time_left(), 0.001)

    def pause_after(self, error: RiskgateError) -> float | None:
        """Return how many seconds to wait before trying again; None when `error` is the answer."""
        waits = not error.reason and nobody_there(error.message) and self._policy.attempts_max > 1
        # An engine that starts costs no tries: the time of the call is the bound.
        self._left -= not waits
        pause = self._pause_for(error)
        # A try that has hardly any time would only turn a known cause into "too late".
        if self._left <= 0 or pause is None or pause + _TRY_SECONDS_MIN > self._time_left():
            return None
        return pause

    def concluded(self, error: RiskgateError) -> RiskgateError:
        """Return `error` with what all tries together say about the command's effect."""
        if not self._command:
            return error
        self._effect_possible = effect_possible(error, before=self._effect_possible)
        error.request_id = self._request_id
        error.effect_possible = self._effect_possible
        if error.effect_possible and type(error) is Unavailable:
            unknown = OutcomeUnknown(
                error.message,
                status=error.status,
                reason="OUTCOME_UNKNOWN",
                metadata=error.metadata,
                request_id=self._request_id,
                effect_possible=True,
            )
            unknown.__cause__ = error.__cause__
            return unknown
        return error

    def answered(self, answer: T) -> T:
        """Return `answer`; what failed of a batch learns what earlier tries of the whole may have done."""
        if self._effect_possible and isinstance(answer, tuple):
            for result in answer:
                if isinstance(result, CheckResult) and result.error is not None:
                    result.error.effect_possible = effect_possible(result.error, before=True)
        return answer

    def _time_left(self) -> float:
        now = self._monotonic()
        if self._ends is None:
            self._ends = now + self._seconds
        return self._ends - now

    def _pause_for(self, error: RiskgateError) -> float | None:
        if error.reason == "GATEWAY_DOWN" or (not error.reason and untrusted(error.message)):
            return None
        # A stream that was dropped because its reader was slow resumes when the reader asks for more.
        if isinstance(error, Unavailable) or error.reason == "READER_TOO_SLOW":
            # Chance spreads clients that were cut off together; at least half remains, so that a try is worth it.
            pause = self._pause * (1 - self._chance() / 2)
            self._pause = min(2 * self._pause, self._policy.pause_max_seconds)
            return pause
        if isinstance(error, ResourceExhausted) and self._policy.when_exhausted:
            return error.retry_after
        return None


def effect_possible(error: RiskgateError, *, before: bool) -> bool:
    """Return whether a command may have had its effect, after a try that ended in `error`; `before`: an earlier may."""
    if error.reason in _POSSIBLE:
        return True
    if error.reason:
        return before and error.status not in _RESOLVING
    return before or not never_sent(error.message)
