"""A finished sweep in MLflow's own pages, in a real browser: map, description, filter, charts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from browser import SCREENSHOTS, chromium
from mlflow import MlflowClient
from recorded import spec_in, sweep
from servers import mlflow_on_file

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

POINTS = 16
#: The assistant's panel opens by itself and hides a third of the page.
QUIET = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Review:
    """A sweep on a server."""

    url: str
    experiment: str
    run: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.url)

    def address(self, place: str = "") -> str:
        return f"{self.url}/#/experiments/{self.experiment}/runs/{self.run}{place}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def review(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Review]:
    folder = tmp_path_factory.mktemp("review")
    with mlflow_on_file(folder) as server:
        where = {"tracking": {"address": server.url}, "budget": {"points": POINTS}}
        run = sweep(spec_in(folder / "home", name="shown", **where), POINTS, shown=True)
        parent = MlflowClient(server.url).get_run(run)
        yield Review(server.url, parent.info.experiment_id, run)


@pytest.fixture
def page(browser: Browser, review: Review) -> Iterator[Page]:
    """A page that reaches the server and nothing else."""
    context = browser.new_context(viewport={"width": 1280, "height": 960})
    context.add_init_script(QUIET)
    outside = re.compile(rf"^(?!{re.escape(review.url)}/|blob:|data:)")
    context.route(outside, lambda route: route.abort())
    opened = context.new_page()
    opened.set_default_timeout(60_000)  # ten others may want the processor
    yield opened
    context.close()


def keep(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"mlflow-{name}.png")


def test_the_parent_says_what_was_found_and_shows_the_map(page: Page, review: Review) -> None:
    page.goto(review.address())
    picture = page.locator("img[src*='get-artifact']")
    picture.wait_for()
    page.wait_for_function(
        "[...document.images].some(i => i.src.includes('get-artifact') && i.naturalWidth > 400)"
    )
    page.get_by_text("Show more").first.click()
    counts = review.client.get_run(review.run).data.metrics
    stable = int(counts["points_stable"])
    page.get_by_text(f"{POINTS} points were trained: {stable} stable").wait_for()
    for heading in ("What was swept", "What was found", "What is uncertain"):
        assert page.get_by_role("heading", name=heading).is_visible()
    assert page.get_by_role("columnheader", name="largest stable lr").is_visible()
    page.get_by_text("one-layer-cnn (").first.wait_for()  # the dataset with its digest
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    assert box is not None and box["x"] + box["width"] <= 1280
    keep(page, "parent")


def test_the_interactive_page_works_among_the_artifacts(page: Page, review: Review) -> None:
    page.goto(review.address("/artifacts/map/map.html"))
    inside = page.frame_locator("iframe")
    inside.locator("#drawing .point").first.wait_for()
    assert inside.locator("#drawing .point").count() == POINTS
    inside.locator("#drawing .point").first.focus()
    assert inside.locator("#evidence dt").count() > 5
    keep(page, "page")
    page.get_by_text("report.html", exact=True).click()
    page.frame_locator("iframe").get_by_role("heading", name="How to repeat it").wait_for()


def test_a_filter_returns_only_restrained_runs(page: Page, review: Review) -> None:
    restrained = {
        str(run.info.run_name)
        for run in review.client.search_runs([review.experiment], max_results=100)
        if "restrained" in run.data.tags.get("replicates", "")
    }
    assert 0 < len(restrained) < POINTS
    page.goto(f"{review.url}/#/experiments/{review.experiment}/runs")
    box = page.get_by_test_id("search-box")
    box.fill("tags.regime = 'restrained'")
    box.press("Enter")
    # MLflow shows the parent of what it finds, too.
    page.get_by_text(f"{len(restrained) + 1} matching runs").wait_for()
    page.locator(f"[role=gridcell]:has(a[href$='/runs/{review.run}']) button").click()
    page.get_by_role("link", name=min(restrained), exact=True).wait_for()
    named = page.locator("[role=gridcell] a[href*='/runs/']").all_text_contents()
    assert set(named) == restrained | {"shown"}
    keep(page, "filter")


def test_a_point_has_its_curves(page: Page, review: Review) -> None:
    child = review.client.search_runs(
        [review.experiment], "tags.sweep = 'shown' and tags.regime = 'stable'", max_results=1
    )[0]
    place = f"{review.url}/#/experiments/{review.experiment}/runs/{child.info.run_id}"
    page.goto(f"{place}/model-metrics")
    page.get_by_text("(curve/loss)").wait_for()
    page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    keep(page, "curves")
