"""Which ruleset decides: said at the start, by version and by hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.rpc.logs import Lines
from tests.rpc.serving import RULES, Deployment, Loop, serving


def test_version_and_hash_are_logged_and_a_version_with_another_text_is_a_warning(
    loop: Loop, log: Lines, tmp_path: Path
) -> None:
    deployment = Deployment(tmp_path / "data")
    mine = tmp_path / "mine.yaml"
    text = RULES.read_text("utf-8")
    hashes = []
    for version in (text, text, text + "# changed\n", text.replace('version: "1"', 'version: "2"')):
        mine.write_text(version, "utf-8")
        hashes.append(hashlib.sha256(version.encode()).hexdigest())
        with serving(loop, deployment, ruleset=str(mine)):
            pass
    deployment.close()

    started = log.of("serving")
    assert [(each["ruleset"], each["ruleset_hash"]) for each in started] == list(
        zip(("1", "1", "1", "2"), hashes, strict=True)
    )
    (warning,) = log.of("ruleset changed under its version")
    assert warning["level"] == "warning"
    assert (warning["version"], warning["hash"], warning["known_hash"]) == ("1", hashes[2], hashes[0])
