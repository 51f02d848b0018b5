"""What a browser sees of the service: signing in, a map, and the page of questions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from browser import SCREENSHOTS, Watched, chromium, watched
from serving import keep, serving

from stabmap import example_map

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TOKEN = "correct-horse"
HASH = "0123456789abcdef"
TITLE = "first map"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    keep(home, HASH, example_map(), title=TITLE, state="complete", points=64)
    with serving(home, TOKEN) as found:
        yield found


@contextmanager
def seen_at(browser: Browser, address: str) -> Iterator[Watched]:
    """A browser that knows nothing yet; at the end it asked for nothing elsewhere."""
    with watched(browser, own=f"{address}/") as seen:
        yield seen
        assert seen.asked == []


def test_the_link_signs_in_and_leads_to_the_map(browser: Browser, address: str) -> None:
    with seen_at(browser, address) as seen:
        requests: list[str] = []
        seen.page.on("request", lambda request: requests.append(request.url))
        seen.page.goto(f"{address}/sign-in#{TOKEN}")
        seen.page.wait_for_url(f"{address}/")
        (cookie,) = seen.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
        assert cookie["value"] != TOKEN
        assert seen.page.evaluate("document.cookie") == ""
        # Nor is it in what the browser asked for, or goes back to.
        assert not any(TOKEN in url.partition("#")[0] for url in requests)
        SCREENSHOTS.mkdir(exist_ok=True)
        seen.page.screenshot(path=SCREENSHOTS / "service-sweeps.png")
        seen.page.get_by_role("link", name=TITLE).click()
        seen.page.wait_for_selector("#drawing .point")
        assert seen.page.locator("#drawing .point").count() == 64
        seen.page.locator("#drawing .point").first.focus()
        assert seen.page.locator("#evidence dd").count() > 3
        seen.page.screenshot(path=SCREENSHOTS / "service-map.png", full_page=True)
        seen.page.go_back()
        assert TOKEN not in seen.page.url
        assert seen.said == []


def test_who_did_not_sign_in_is_asked_for_the_token(browser: Browser, address: str) -> None:
    with seen_at(browser, address) as seen:
        answer = seen.page.goto(f"{address}/sweeps/{HASH}/page")
        assert answer is not None and answer.status == 401
        seen.page.goto(f"{address}/")
        assert seen.page.url == f"{address}/sign-in"
        seen.page.get_by_label("Token").fill("wrong-battery")
        seen.page.get_by_role("button", name="Sign in").click()
        seen.page.get_by_text("This is not the token.").wait_for()
        assert seen.context.cookies() == []
        seen.page.get_by_label("Token").fill(TOKEN)
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_url(f"{address}/")
        seen.page.get_by_role("link", name=TITLE).wait_for()


def test_the_page_of_questions_loads_nothing_from_elsewhere(browser: Browser, address: str) -> None:
    """And a question can be asked on it, by who signed in."""
    with seen_at(browser, address) as seen:
        seen.page.goto(f"{address}/docs")
        seen.page.wait_for_selector(".opblock")
        paths = seen.page.request.get(f"{address}/openapi.json").json()["paths"]
        assert seen.page.locator(".opblock").count() == sum(map(len, paths.values())) > 8
        SCREENSHOTS.mkdir(exist_ok=True)
        seen.page.screenshot(path=SCREENSHOTS / "service-openapi.png", full_page=True)
        sweeps = seen.page.locator(".opblock", has=seen.page.locator('[data-path="/sweeps"]'))
        for signed_in, status in ((False, "401"), (True, "200")):
            if signed_in:
                seen.page.goto(f"{address}/sign-in#{TOKEN}")
                seen.page.wait_for_url(f"{address}/")
                seen.page.get_by_role("link", name="Questions").click()
            sweeps.locator(".opblock-summary").click()
            sweeps.get_by_role("button", name="Try it out").click()
            sweeps.get_by_role("button", name="Execute").click()
            found = sweeps.locator(".live-responses-table .response-col_status").last
            found.wait_for()
            assert found.inner_text().startswith(status)
        assert TITLE in sweeps.locator(".live-responses-table").inner_text()
        assert [line for line in seen.said if "401" not in line] == []
