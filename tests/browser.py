"""A real headless Chromium for tests of pages; nothing that it loads may come from a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
#: Pictures for those who want to see what was tested; git ignores the folder.
SCREENSHOTS = Path(__file__).parent / "screenshots"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with an empty profile; the test is skipped where there is none."""
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with library.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page with what it asked for and complained of."""

    page: Page
    context: BrowserContext
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


@contextmanager
def watched(browser: Browser, *, own: str = "file:", **options: Any) -> Iterator[Watched]:
    """A page whose requests are all counted and stopped, but for those to its own place."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
    seen = Watched(context.new_page(), context)

    def stop(route: Route) -> None:
        if route.request.url.startswith(own):
            route.continue_()
            return
        seen.asked.append(route.request.url)
        route.abort()

    context.route("**/*", stop)
    seen.page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
    try:
        yield seen
    finally:
        context.close()
