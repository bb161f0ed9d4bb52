"""What a stream of purchases owes: sent and not answered, to be sent again when the stream breaks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_client.errors import RiskgateError
from riskgate_client.retry import effect_possible

WINDOW: Final = 256
"""Purchases sent and not answered at one time; more would only wait at the other end."""
LEASE_SECONDS: Final = 60.0
"""How long one stream lives before the next takes over, unless the caller says otherwise."""
SILENT_LEASES_MAX: Final = 2
"""Streams in a row that may end without any of the answers due. One may have been given its first purchase too late."""


class InFlight:
    """
    Purchases in the order they came. For one thread at a time.

    When the engine puts one off, fewer are in flight from then on and more again with every answer: so a
    stream settles at the rate the engine takes, instead of being refused over and over.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._unanswered: dict[str, pb.CheckTransactionRequest] = {}
        self._unsent: deque[pb.CheckTransactionRequest] = deque()
        # Of these an earlier try may have had its effect.
        self._doubtful: set[str] = set()
        self._allowed = WINDOW
        self._monotonic = monotonic
        self._paused_until = 0.0

    def __len__(self) -> int:
        return len(self._unanswered)

    def has_room(self, request: pb.CheckTransactionRequest) -> bool:
        """Whether `request` may be added. One whose id is in flight waits, or its answer could not be told apart."""
        return len(self._unanswered) < WINDOW and request.request_id not in self._unanswered

    def add(self, request: pb.CheckTransactionRequest) -> None:
        """Add a purchase, to be sent."""
        self._unanswered[request.request_id] = request
        self._unsent.append(request)

    @property
    def may_send(self) -> bool:
        """Whether there is something to send and room for it at the other end."""
        return bool(self._unsent) and self._sent < self._allowed

    @property
    def pause(self) -> float:
        """Seconds to wait before sending, because the engine put something off."""
        return max(0.0, self._paused_until - self._monotonic())

    def next_unsent(self) -> pb.StreamCheckTransactionsRequest:
        """Take out what is to be sent next."""
        return pb.StreamCheckTransactionsRequest(check=self._unsent.popleft())

    def judge(self, request_id: str, error: RiskgateError) -> None:
        """Say in `error`, which a purchase was answered with, what all its tries together may have done."""
        error.effect_possible = effect_possible(error, before=request_id in self._doubtful)
        if error.effect_possible:
            self._doubtful.add(request_id)

    def answered(self, request_id: str) -> bool:
        """Note an answer; False when it was not owed."""
        self._allowed = min(WINDOW, self._allowed + 1)
        self._doubtful.discard(request_id)
        return self._unanswered.pop(request_id, None) is not None

    def put_off(self, request_id: str, seconds: float) -> None:
        """Send one purchase again, before others but not before `seconds` from now."""
        self._allowed = max(1, self._sent // 2)
        self._paused_until = self._monotonic() + seconds
        request = self._unanswered.get(request_id)
        if request is not None:
            self._unsent.appendleft(request)

    def send_all_again(self) -> None:
        """Send everything that is not answered on a new stream, in the order it came."""
        unsent = {request.request_id for request in self._unsent}
        self._doubtful.update(self._unanswered.keys() - unsent)
        self._unsent = deque(self._unanswered.values())

    @property
    def _sent(self) -> int:
        return len(self._unanswered) - len(self._unsent)
