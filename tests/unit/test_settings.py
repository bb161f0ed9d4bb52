"""What is told of a setting that cannot be: what it must be, in words for who never saw the program."""

from __future__ import annotations

import pytest
from msgspec import inspect

from riskgate_server.settings import _WORDS, Settings, SettingsInvalid, load


@pytest.mark.parametrize(
    ("given", "environment", "words"),
    [
        ({}, {"RISKGATE_GATEWAY_SECONDS": "ten"}, "RISKGATE_GATEWAY_SECONDS: must be a number"),
        ({}, {"RISKGATE_GATEWAY_SECONDS": "11"}, "RISKGATE_GATEWAY_SECONDS: must be a number <= 10.0"),
        ({}, {"RISKGATE_KEY_PORT": "x"}, "RISKGATE_KEY_PORT: must be a whole number"),
        ({}, {"RISKGATE_KEY_PORT": "-1"}, "RISKGATE_KEY_PORT: must be a whole number >= 0"),
        ({}, {"RISKGATE_GUARDED_USE": "maybe"}, "RISKGATE_GUARDED_USE: must be true or false"),
        ({}, {"RISKGATE_RP_NAME": ""}, "RISKGATE_RP_NAME: must be text of length >= 1"),
        ({}, {"RISKGATE_GATEWAY": "smtp"}, "RISKGATE_GATEWAY: must be one of file, webhook, apprise"),
        (
            {"store": "mysql://x"},
            {},
            "--store: must begin with postgresql://, or be empty for the directory's own files",
        ),
        ({}, {"RISKGATE_KEYPORT": "1"}, "unknown setting RISKGATE_KEYPORT"),
    ],
)
def test_a_setting_that_cannot_be_is_told_what_it_must_be(
    given: dict[str, object], environment: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        load({"data": "data", **given}, environment)

    assert str(refused.value) == words


def test_every_setting_whose_rule_is_a_pattern_has_words() -> None:
    info = inspect.type_info(Settings)
    assert isinstance(info, inspect.StructType)

    patterned = {field.name for field in info.fields if getattr(field.type, "pattern", None)}

    assert patterned == _WORDS.keys()
