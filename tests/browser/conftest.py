"""A real headless Chromium, the one that Debian packages; where there is none the tests skip and say how to get it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.access.conftest import guarded, keys
from tests.pages.conftest import jobs, running_api

__all__ = ["guarded", "jobs", "keys", "running_api"]


@pytest.fixture(scope="module")  # Playwright keeps an event loop running, in which no other test could start its own
def browser() -> Iterator[Browser]:
    path = shutil.which(os.environ.get("CHROMIUM", "chromium")) or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium (or set CHROMIUM to its path)")
    with sync_playwright() as playwright:
        # Without its own sandbox, which does not work as root; it opens nothing but our own pages.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A fresh tab without cookies; whatever the page's console has to complain of fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, locale="en-GB")
    context.set_default_timeout(30_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    # A refused upload or form is an answer with an error's status, which Chromium calls an error too.
    assert [text for text in complaints if "Failed to load resource" not in text] == []
