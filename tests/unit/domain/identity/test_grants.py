"""How strong a grant is where only some kinds of factor count."""

from __future__ import annotations

import pytest

from riskgate_server.domain.identity.grants import (
    ANY_METHOD,
    Grant,
    Method,
    Purpose,
    Source,
    Use,
    level_by,
    mask_of,
    of_methods,
)

DEVICE, SMS, TOTP = (Source(method, method.name) for method in (Method.DEVICE_KEY, Method.SMS, Method.TOTP))


@pytest.mark.parametrize(
    ("level", "sources", "counted", "worth"),
    [
        (3, (DEVICE, SMS), ANY_METHOD, 3),
        (3, (DEVICE, SMS), mask_of(Method.DEVICE_KEY), 2),
        (3, (DEVICE, SMS), mask_of(Method.SMS), 1),
        (3, (DEVICE,), mask_of(Method.DEVICE_KEY), 3),
        (2, (SMS, TOTP), ANY_METHOD, 2),
        (2, (SMS, TOTP), mask_of(Method.TOTP, Method.DEVICE_KEY), 1),
        (1, (SMS,), mask_of(Method.DEVICE_KEY), 0),
    ],
    ids=["all count", "a device of two", "a code of two", "a device", "two codes", "one of two codes", "none counts"],
)
def test_what_does_not_count_strengthens_nothing(
    level: int, sources: tuple[Source, ...], counted: int, worth: int
) -> None:
    grant = Grant(b"", Use(Purpose.SIGN_IN), level, sources, 0)

    assert level_by(grant, of_methods(counted), now_us=0) == worth
