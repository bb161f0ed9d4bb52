"""The file that stands for phones in development."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from riskgate_server.engine.ports import GatewayDown
from riskgate_server.notify import outbox as outbox_module
from riskgate_server.notify.outbox import FileOutbox
from tests.unit.notify.test_webhook import MESSAGE


def send(path: Path, *ids: str) -> None:
    async def go() -> None:
        outbox = FileOutbox(path)
        await asyncio.gather(*(outbox.send(msgspec.structs.replace(MESSAGE, id=each)) for each in ids))
        await outbox.close()

    asyncio.run(go())


def lines(path: Path) -> list[Any]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append(None)
    return found


def test_a_message_is_one_line_that_a_reader_needs_nothing_else_for(tmp_path: Path) -> None:
    send(tmp_path / "outbox", "msg_1")

    (line,) = lines(tmp_path / "outbox")
    assert line["id"] == "msg_1"
    assert (line["channel"], line["destination"], line["text"]) == ("SMS", MESSAGE.destination, MESSAGE.text)
    assert line["parameters"] == {"code": "012345"}


def test_messages_follow_one_another_whoever_sends_them(tmp_path: Path) -> None:
    send(tmp_path / "outbox", "msg_1", "msg_2")
    send(tmp_path / "outbox", "msg_3")

    assert {line["id"] for line in lines(tmp_path / "outbox")} == {"msg_1", "msg_2", "msg_3"}


def test_it_is_its_owners_only(tmp_path: Path) -> None:
    send(tmp_path / "outbox", "msg_1")

    assert stat.S_IMODE((tmp_path / "outbox").stat().st_mode) == 0o600


def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path: Path) -> None:
    send(tmp_path / "outbox", "msg_1")
    with (tmp_path / "outbox").open("ab") as file:
        file.write(b'{"id": "msg')
    send(tmp_path / "outbox", "msg_2")

    first, cut, second = lines(tmp_path / "outbox")
    assert (first["id"], cut, second["id"]) == ("msg_1", None, "msg_2")


def test_it_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "OUTBOX_BYTES_MAX", 2_000)
    send(tmp_path / "outbox", *(f"msg_{n}" for n in range(50)))

    assert (tmp_path / "outbox").stat().st_size <= 2_000
    assert lines(tmp_path / "outbox")[-1]["id"] == "msg_49"


def test_it_follows_no_link_and_a_file_that_cannot_be_written_is_a_gateway_that_is_down(tmp_path: Path) -> None:
    (tmp_path / "outbox").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GatewayDown) as caught:
        send(tmp_path / "outbox", "msg_1")

    assert not (tmp_path / "elsewhere").exists()
    assert MESSAGE.destination not in str(caught.value)
