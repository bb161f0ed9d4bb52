"""How much refused calls may put into the log."""

from __future__ import annotations

from collections.abc import Callable

from riskgate_server.rpc.refusals import LINES_MAX, WINDOW_SECONDS, RefusalLog
from tests.rpc.logs import logs


class Later:
    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def __call__(self, seconds: float, then: Callable[[], None]) -> None:
        assert seconds == WINDOW_SECONDS
        self.due.append(then)

    def pass_time(self) -> None:
        due, self.due = self.due, []
        for then in due:
            then()


def note(log: RefusalLog, times: int, reason: str = "CREDENTIAL_MISSING") -> None:
    for _ in range(times):
        log.note(method="m", reason=reason, peer="p")


def test_a_flood_of_refusals_leaves_so_many_lines_and_a_count_of_the_rest() -> None:
    later = Later()
    refusals = RefusalLog("call", "warning", later)

    with logs() as lines:
        note(refusals, LINES_MAX + 90)
        note(refusals, 1, "SCOPE_MISSING")
        later.pass_time()

    assert [line["reason"] for line in lines.of("call refused")] == ["CREDENTIAL_MISSING"] * LINES_MAX + [
        "SCOPE_MISSING"
    ]
    assert [(line["reason"], line["left_out"]) for line in lines.of("calls refused")] == [("CREDENTIAL_MISSING", 90)]


def test_after_a_while_refusals_are_logged_one_by_one_again() -> None:
    later = Later()
    refusals = RefusalLog("call", "warning", later)
    with logs():
        note(refusals, LINES_MAX + 1)
        later.pass_time()

    with logs() as lines:
        note(refusals, LINES_MAX)
        later.pass_time()

    assert len(lines.of("call refused")) == LINES_MAX
    assert lines.of("calls refused") == []
    assert later.due == []
