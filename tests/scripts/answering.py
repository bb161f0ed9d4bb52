"""Has a page answered by a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from scripts.passkey_page.web import Page


@contextmanager
def answering(page: Page) -> Iterator[None]:
    thread = threading.Thread(target=page.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        page.shutdown()
        thread.join()
