"""Whose questions wait for whom."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from riskgate_server.rpc.service import WATCH_READS_MAX, Readers


def test_however_many_watchers_ask_a_call_does_not_wait_for_them() -> None:
    go = threading.Event()

    async def ask() -> tuple[int, list[bool]]:
        with ThreadPoolExecutor(WATCH_READS_MAX + 1) as threads:
            readers = Readers(threads)
            watchers = [asyncio.create_task(readers.ask_for_watcher(go.wait, 20)) for _ in range(50)]
            try:
                answer = await asyncio.wait_for(readers.ask(int, "7"), 5)
            finally:
                go.set()
            return answer, await asyncio.gather(*watchers)

    assert asyncio.run(ask()) == (7, [True] * 50)
