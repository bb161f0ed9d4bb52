"""A headless Chromium and its virtual authenticator, as Debian's packages chromium and chromium-driver bring them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.virtual_authenticator import VirtualAuthenticatorOptions
from selenium.webdriver.support.wait import WebDriverWait

FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT_SECONDS: Final = 30.0


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """Start a browser with a new profile; skip where there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    started = Chrome(options, ChromeService(driver))
    try:
        started.set_script_timeout(WAIT_SECONDS)
        yield started
    finally:
        started.quit()


class Visitor:
    """Somebody before the page: looks at it and clicks. Their phone or computer holds its passkeys itself."""

    def __init__(self, browser: Chrome, *, verifies: bool = True) -> None:
        self.browser = browser
        options = VirtualAuthenticatorOptions(
            protocol=VirtualAuthenticatorOptions.Protocol.CTAP2,
            transport=VirtualAuthenticatorOptions.Transport.INTERNAL,
            has_resident_key=True,
            has_user_verification=verifies,
            is_user_verified=verifies,
        )
        browser.add_virtual_authenticator(options)

    def leave(self) -> None:
        """Throw the authenticator away, and the session."""
        self.browser.remove_virtual_authenticator()
        self.browser.delete_all_cookies()

    def open(self, origin: str, customer: str) -> None:
        """Open the page and say who one is."""
        self.browser.get(origin)
        self._until_done(1)
        self.click(f"[data-customer={customer}]")

    def click(self, what: str) -> None:
        """Click, and wait until all that follows from it has happened."""
        done = int(self.run("return document.body.dataset.done"))
        self.browser.find_element("css selector", what).click()
        self._until_done(done + 1)

    def buy(self, article: str) -> None:
        """Click what is beside an article."""
        self.click(f"[data-article={article}]")

    def sees(self, name: str) -> str:
        """Return the text of a part of the page; empty while it is hidden."""
        return self.browser.find_element("id", name).text

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.browser.execute_script(script, *arguments)

    def run_until_told(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page, and return what it gives the function that is its last argument."""
        return self.browser.execute_async_script(script, *arguments)

    def _until_done(self, number: int) -> None:
        done = f"return Number(document.body.dataset.done ?? 0) >= {number}"
        WebDriverWait(self.browser, WAIT_SECONDS, 0.02).until(lambda _: self.run(done))
