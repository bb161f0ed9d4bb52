"""What a script says when the server refuses: what to do about it, not only what happened."""

from __future__ import annotations

from scripts.streaming.command import _explained

from riskgate_client import InvalidRequest


def test_a_server_for_live_purchases_is_not_to_be_restarted_for_a_history() -> None:
    error = InvalidRequest("must be within five minutes of now", reason="EVENT_TIME_OUT_OF_RANGE")

    said = _explained(error, "localhost:7444", None)

    assert "Start another with `--clock data`, on a directory of its own" in said
