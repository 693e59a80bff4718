"""A real browser, Debian's Chromium, driven by Playwright. Without it these tests are skipped, and say so."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.browser.server import Server, serving

CHROMIUM = shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield launched
        launched.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may be wrong when the test is over: no errors in its console."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    errors = watched(opened)
    yield opened
    opened.close()
    assert not errors


def watched(page: Page) -> list[str]:
    """The errors that a page reports from now on; failed requests are for the tests to judge."""
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            errors.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors


def wait_until(page: Page, condition: str) -> None:
    """Wait until an expression is true on the page.

    Playwright's own wait_for_function asks once from outside and then from inside the page, where our pages' policy
    forbids to evaluate text: it works on a fast machine only.
    """
    give_up = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < give_up, f"this did not become true in 30 s: {condition}"
        page.wait_for_timeout(20)
