"""A process that has to end does, though its orderly end never comes."""

from __future__ import annotations

from queue import SimpleQueue

from riskgate_server.last_resort import LastResort

PATIENCE_SECONDS = 5.0


def test_a_process_that_has_to_end_is_given_its_time_and_then_ended() -> None:
    steps: SimpleQueue[tuple[str, float]] = SimpleQueue()
    resort = LastResort(
        patience_seconds=PATIENCE_SECONDS,
        pause=lambda seconds: steps.put(("pause", seconds)),
        end=lambda code: steps.put(("end", code)),
    )
    assert steps.empty()

    resort.doom()
    resort.doom()

    assert [steps.get(timeout=PATIENCE_SECONDS) for _ in range(2)] == [("pause", PATIENCE_SECONDS), ("end", 1)]
    assert steps.empty()
