"""How many purchases are on their way at one time."""

from __future__ import annotations

import grpc

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate_client import Internal, OutcomeUnknown
from riskgate_client.in_flight import WINDOW, InFlight


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def filled(how_many: int, clock: Clock | None = None) -> InFlight:
    flight = InFlight(clock or Clock())
    for number in range(how_many):
        flight.add(pb.CheckTransactionRequest(request_id=str(number)))
    return flight


def send(flight: InFlight) -> list[str]:
    """Send all that may be sent."""
    sent = []
    while flight.may_send:
        sent.append(flight.next_unsent().check.request_id)
    return sent


def test_purchases_are_sent_in_the_order_they_came() -> None:
    assert send(filled(5)) == ["0", "1", "2", "3", "4"]


def test_there_is_room_for_a_window() -> None:
    flight = filled(WINDOW)
    one_more = pb.CheckTransactionRequest(request_id="more")

    before = flight.has_room(one_more)
    send(flight)
    flight.answered("0")

    assert not before
    assert flight.has_room(one_more)


def test_a_request_id_that_is_in_flight_waits() -> None:
    flight = filled(1)
    same = pb.CheckTransactionRequest(request_id="0")

    before = flight.has_room(same)
    flight.answered("0")

    assert not before
    assert flight.has_room(same)


def test_what_was_not_answered_is_sent_again_in_order() -> None:
    flight = filled(5)
    send(flight)
    flight.answered("1")
    flight.answered("3")

    flight.send_all_again()

    assert send(flight) == ["0", "2", "4"]


def test_an_answer_is_owed_once() -> None:
    flight = filled(1)
    send(flight)

    assert flight.answered("0")
    assert not flight.answered("0")
    assert len(flight) == 0


def test_what_was_put_off_is_sent_before_others_but_not_too_soon() -> None:
    clock = Clock()
    flight = filled(3, clock)
    flight.next_unsent()

    flight.put_off("0", 2.0)
    waits = flight.pause
    clock.now += 2.0

    assert waits == 2.0
    assert flight.pause == 0.0
    assert flight.next_unsent().check.request_id == "0"


def test_after_something_was_put_off_half_as_many_are_in_flight() -> None:
    flight = filled(100)
    for _ in range(40):
        flight.next_unsent()

    flight.put_off("0", 0.0)
    for number in range(1, 40):
        flight.answered(str(number))

    # Half of 40, and one more with each of the 39 answers.
    assert len(send(flight)) == 20 + 39


def test_one_is_always_in_flight() -> None:
    flight = filled(3)
    send(flight)

    for number in ("0", "1", "2"):
        flight.put_off(number, 0.0)

    assert send(flight) == ["2"]


def test_something_put_off_that_is_not_owed_is_forgotten() -> None:
    flight = filled(0)

    flight.put_off("stranger", 1.0)

    assert not flight.may_send


def test_what_was_sent_before_a_break_may_have_been_done_whatever_it_is_answered_then() -> None:
    flight = filled(3)
    flight.next_unsent()
    flight.send_all_again()
    send(flight)
    failed = [Internal("x", status=grpc.StatusCode.INTERNAL, reason="INTERNAL") for _ in range(3)]

    for number in (0, 1):
        flight.judge(str(number), failed[number])
    flight.put_off("2", 0)
    unknown = OutcomeUnknown("x", status=grpc.StatusCode.UNAVAILABLE, reason="OUTCOME_UNKNOWN")
    flight.judge("2", unknown)
    flight.judge("2", failed[2])

    assert [error.effect_possible for error in (*failed, unknown)] == [True, False, True, True]


def test_an_answer_ends_all_doubt_about_its_id() -> None:
    flight = filled(1)
    send(flight)
    flight.send_all_again()
    flight.answered("0")
    failed = Internal("x", status=grpc.StatusCode.INTERNAL, reason="INTERNAL")

    flight.judge("0", failed)

    assert not failed.effect_possible
