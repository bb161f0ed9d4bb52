"""The load test: only here, only bounded, and the same schedule for the same seed."""

from __future__ import annotations

import pytest
from scripts.load.schedule import Load, LoadInvalid, check_load, is_loopback, planned, read_mix


def load(**changes: object) -> Load:
    given: dict[str, object] = {
        "rate": 100.0,
        "seconds": 2.0,
        "warm_up_seconds": 1.0,
        "mix": {"check": 0.5, "limit": 0.5},
        "customers": 10,
        "batch_size": 10,
        "in_flight_max": 100,
        "timeout_seconds": 1.0,
        "seed": 1,
        "currency": "CNY",
    }
    return Load(**{**given, **changes})  # type: ignore[arg-type]  # a table of examples


@pytest.mark.parametrize("address", ["localhost:7444", "127.0.0.1:1", "127.8.9.1:7444", "[::1]:7444"])
def test_this_machine_may_be_loaded(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["192.168.1.4:7444", "10.0.0.1:80", "[2001:db8::1]:7444", "example.com:443", "0.0.0.0:7444"]
)
def test_other_machines_may_not(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize(
    "address", ["localhost", "", "dns:///localhost:7444", "localhost:0", "localhost:99999", "::1:7"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(LoadInvalid):
        is_loopback(address)


@pytest.mark.parametrize(
    "changes", [{"rate": 0.0}, {"rate": 1e9}, {"seconds": 4000.0}, {"seconds": 0.0, "warm_up_seconds": 0.0}]
)
def test_a_load_has_bounds(changes: dict[str, object]) -> None:
    with pytest.raises(LoadInvalid):
        check_load(load(**changes))


def test_calls_are_planned_at_a_fixed_pace_and_measured_after_the_warm_up() -> None:
    calls = list(planned(load()))

    assert len(calls) == 300
    assert [call.after_seconds for call in calls[:3]] == [0.0, 0.01, 0.02]
    assert [call.warm for call in calls].index(True) == 100


def test_processes_share_one_schedule() -> None:
    together = sorted(
        (call for process in range(3) for call in planned(load(), process=process, processes=3)),
        key=lambda call: call.after_seconds,
    )

    assert together == list(planned(load()))


def test_a_mix_is_read_as_shares() -> None:
    assert read_mix("check=3, limit=1") == {"check": 0.75, "limit": 0.25}


@pytest.mark.parametrize("text", ["", "check", "check=x", "teleport=1", "check=1,check=2", "check=0"])
def test_a_bad_mix_is_refused(text: str) -> None:
    with pytest.raises(LoadInvalid):
        read_mix(text)
