"""The page about messages shows what gateways get, and names every text there is."""

from __future__ import annotations

import json
import re
from typing import Final

from riskgate_server.engine.messages import Channel, Message
from riskgate_server.notify.outbox import line_of
from riskgate_server.notify.texts import own_texts
from riskgate_server.notify.webhook import body_of
from tests.style.paths import ROOT

PAGE: Final = (ROOT / "docs" / "messages.md").read_text("utf-8")
LINE, BODY = (json.loads(shown) for shown in re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL))


def test_the_line_of_the_file_is_shown_as_it_is() -> None:
    text = own_texts()(LINE["template"], LINE["language"], LINE["parameters"])

    message = Message(**LINE | {"channel": Channel[LINE["channel"]]})

    assert LINE["text"] == text
    assert json.loads(line_of(message)) == LINE


def test_the_body_of_the_webhook_is_shown_as_it_is() -> None:
    data = BODY["data"]
    given = {name: value for name, value in data.items() if name != "not_after"}
    text = own_texts()(data["template"], data["language"], data["parameters"])

    message = Message(**given | {"channel": Channel[data["channel"]]}, not_after_us=1_780_000_300_000_000)

    assert data["text"] == text
    assert json.loads(body_of(message)) == BODY


def test_every_text_is_in_the_table_with_its_parameters() -> None:
    (table,) = re.findall(r"\| template \| parameters \|.*?\n\|[-|]+\n(.*?)\n\n", PAGE, re.DOTALL)
    texts = own_texts()
    told = {}
    for row in table.splitlines():
        _, names, parameters, *_ = row.split("|")
        for name in re.findall(r"`(\w+)`", names):
            told[name] = dict.fromkeys(re.findall(r"`(\w+)`", parameters), "7")

    assert set(told) == texts.templates
    assert [name for name, parameters in told.items() if "{" in texts(name, "en", parameters)] == []
    assert [name for name, given in told.items() if texts(name, "en", given).count("7") != len(given)] == []
