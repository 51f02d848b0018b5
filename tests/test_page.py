"""The interactive page, in a real browser: what it shows, how it is moved, what it never does."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import SCREENSHOTS, Watched, chromium, watched
from PIL import Image
from synthetic import ALPHA, DECAY, LR, map_of, signs_at
from typer.testing import CliRunner

from analysis.map import REGIMES, StabilityMap
from analysis.page import page_html, write_page
from analysis.page.content import content
from analysis.plot import COLOURS
from analysis.tracking import Tracking
from stabmap.cli import app
from trainables.domain import InputError, Point

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Where the drawing of the regions begins, in pixels.
LEFT, TOP = 74, 12
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'> {{data}}"
#: What most tests look at: two axes, one of them with a level at zero.
TWO: dict[str, Any] = {"lr": LR, "weight_decay": DECAY}
THREE: dict[str, Any] = {"lr": LR, "alpha": ALPHA, "weight_decay": DECAY}
#: Where the theory's bounds cross the box.
CNN: dict[str, Any] = {
    "lr": {"scale": "log", "low": 0.003, "high": 0.5},
    "weight_decay": {"scale": "log", "low": 4, "high": 256},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def two() -> StabilityMap:
    return map_of(TWO, 96, signs_at)  # sizes would leave no doubtful places


@pytest.fixture(scope="module")
def three() -> StabilityMap:
    return map_of(THREE, 160)


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Opened:
    """Opens the page of a map; at the end it must have asked for nothing and be content."""

    @contextmanager
    def open_page(
        shown: StabilityMap, tracking: Tracking | None = None, **options: Any
    ) -> Iterator[Watched]:
        path = write_page(shown, tmp_path / "map.html", tracking)
        with watched(browser, **options) as seen:
            seen.page.goto(path.as_uri())
            yield seen
            assert seen.asked == []
            assert seen.said == []

    return open_page


def evidence(seen: Watched) -> dict[str, str]:
    names = seen.page.locator("#evidence dt").all_text_contents()
    values = seen.page.locator("#evidence dd").all_text_contents()
    return dict(zip(names, values, strict=True))


def marks(seen: Watched) -> dict[int, tuple[float, float]]:
    """Pixels of the points that are drawn, by number."""
    found = seen.page.evaluate(
        """() => [...document.querySelectorAll("#drawing .point")].map((mark) => {
             const {e, f} = mark.transform.baseVal.consolidate().matrix;
             return [Number(mark.dataset.number), e, f];
           })"""
    )
    return {number: (x, y) for number, x, y in found}


def on_screen(seen: Watched, place: tuple[float, float]) -> tuple[float, float]:
    box = seen.page.locator("#drawing").bounding_box()
    assert box is not None
    return box["x"] + place[0], box["y"] + place[1]


def focused(seen: Watched) -> int:
    number = seen.page.evaluate("document.activeElement.dataset.number ?? -1")
    return int(number)


def pixels_of(seen: Watched, found: StabilityMap) -> Callable[[float, float], tuple[float, float]]:
    """From (lr, weight decay) to pixels, as a straight line through the points tells it."""
    places, frame = marks(seen), found.frame.set_index("number")
    rows = frame.loc[list(places)]
    kept = rows["weight_decay"] > 0
    x, y = np.array(list(places.values())).T
    across = np.polyfit(np.log10(rows["lr"]), x, 1)
    up = np.polyfit(np.log10(rows["weight_decay"][kept]), y[kept.to_numpy()], 1)
    return lambda lr, decay: (
        float(np.polyval(across, math.log10(lr))),
        float(np.polyval(up, math.log10(decay))),
    )


# --------------------------------------------------------------------------- what is in the file


def test_the_page_holds_every_point_and_the_model(two: StabilityMap) -> None:
    shown = content(two)
    frame = two.frame
    assert shown["points"]["lr"] == frame["lr"].tolist()
    assert shown["points"]["regime"] == frame["regime"].tolist()
    np.testing.assert_allclose(shown["points"]["margin_stable"], frame["margin_stable"], rtol=1e-4)
    lattice = shown["lattice"]
    shape = tuple(lattice["shape"])
    assert shape == (129, 130)  # the level at zero comes first
    lr, _, decay = two.axes
    units = np.linspace(0, 1, 129)
    asked = {
        "lr": np.asarray(lr.from_unit(units))[:, None],
        "weight_decay": np.r_[0.0, decay.from_unit(units)][None, :],
    }
    for regime in ("stable", "divergent"):
        steps = np.frombuffer(base64.b64decode(lattice[regime]), "<u2").reshape(shape)
        np.testing.assert_allclose(
            steps / lattice["steps"], two.classify(**asked)[regime], atol=1e-4
        )


@pytest.mark.parametrize("axes", [TWO, THREE])
def test_a_thousand_points_stay_small(axes: dict[str, Any], tmp_path: Path) -> None:
    found = map_of(axes, 1000)
    vars(found)["surface"] = map_of(axes, 32).surface  # fitting takes long and adds no byte
    runs = {n: f"{n:032x}" for n in range(1000)}
    tracking = Tracking("https://mlflow.example.org", "0123456789abcdef" * 2, "123456", runs)
    assert write_page(found, tmp_path / "map.html", tracking).stat().st_size < 3_000_000


def test_markup_in_a_spec_stays_text(two: StabilityMap, opened: Opened) -> None:
    frame = two.frame.copy()
    frame["reason"] = HOSTILE
    about = {**two.about, "task": {"name": HOSTILE}}
    tracking = Tracking('http://x"><script>window.hacked=1</script>', HOSTILE, "1", {0: HOSTILE})
    text = page_html(replace(two, frame=frame, about=about), tracking)
    assert text.count("<script") == 2 and "<img" not in text
    with opened(replace(two, frame=frame, about=about), tracking) as seen:
        assert seen.page.locator("h1").text_content() == HOSTILE
        assert seen.page.title() == f"{HOSTILE}: stability map"
        seen.page.locator(".point").first.focus()
        assert evidence(seen)["reason"] == HOSTILE
        assert seen.page.evaluate("window.hacked") is None


def test_nothing_can_be_asked_for(two: StabilityMap, browser: Browser, tmp_path: Path) -> None:
    """The policy stops it; without the policy the same attempts are seen by the test."""
    attempts = """async () => {
        const image = new Image(); image.src = "https://example.org/x.png";
        const script = document.createElement("script");
        script.src = "https://example.org/x.js"; document.head.append(script);
        await fetch("https://example.org/x").catch(() => null);
        await new Promise((done) => setTimeout(done, 200)); }"""
    page = write_page(two, tmp_path / "map.html")
    text = page.read_text("utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text("\n".join(t for t in text.split("\n") if "Content-Security-Policy" not in t))
    for path, count in ((page, 0), (bare, 3)):
        with watched(browser) as seen:
            seen.page.goto(path.as_uri())
            assert seen.asked == []
            seen.page.evaluate(attempts)
            assert len(seen.asked) == count


# --------------------------------------------------------------------------- what is drawn


def test_points_and_boundaries_lie_where_they_belong(two: StabilityMap, opened: Opened) -> None:
    with opened(two) as seen:
        places = marks(seen)
        assert set(places) == set(two.frame["number"])
        to_pixels = pixels_of(seen, two)
        for row in two.frame.itertuples():
            x, y = places[row.number]
            expected = to_pixels(row.lr, row.weight_decay or 1.0)
            assert x == pytest.approx(expected[0], abs=0.2)
            if row.weight_decay:
                assert y == pytest.approx(expected[1], abs=0.2)
        assert len({places[n][1] for n in two.frame["number"][two.frame["weight_decay"] == 0]}) == 1
        for kind in ("stable", "divergent"):
            line = seen.page.evaluate(
                f"""() => {{ const path = document.querySelector('[data-line="{kind}"] path');
                     const length = path.getTotalLength();
                     return Array.from({{length: 400}}, (_, i) => {{
                       const at = path.getPointAtLength(i * length / 399);
                       return [at.x, at.y]; }}); }}"""
            )
            for row in two.boundary(kind).itertuples():
                if row.weight_decay:
                    distance = np.hypot(*(np.array(line) - to_pixels(row.lr, row.weight_decay)).T)
                    assert distance.min() < 1.5


def grey(seen: Watched) -> Any:
    """The map alone as a photocopy would have it: regions, without lines and points."""
    seen.page.evaluate("document.getElementById('drawing').style.visibility = 'hidden'")
    picture = seen.page.locator("#regions").screenshot()
    seen.page.evaluate("document.getElementById('drawing').style.visibility = ''")
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"), dtype=float)


def test_regimes_are_told_apart_in_grey(two: StabilityMap, opened: Opened) -> None:
    """No hatch, one, crossed ones: the share of dark pixels in each regime tells them."""
    with opened(two) as seen:
        seen.page.uncheck("#uncertainty")
        image = grey(seen)
        to_pixels = pixels_of(seen, two)
        shares = {}
        for regime, (lr, decay) in {
            "stable": (0.03, 1e-2),
            "restrained": (1.5, 1e-2),
            "divergent": (30, 1e-1),
        }.items():
            chances = two.classify(lr=lr, weight_decay=decay)
            assert max(chances, key=lambda name: chances[name]) == regime
            x, y = to_pixels(lr, decay)
            column, row = int(x - LEFT), int(y - TOP)
            window = image[row - 28 : row + 28, column - 28 : column + 28]
            shares[regime] = float((window < 0.7 * np.median(window)).mean())
        assert shares["stable"] == 0
        assert 0.05 < shares["restrained"] < 0.2
        assert shares["restrained"] + 0.05 < shares["divergent"] < 0.4


def test_regions_have_the_colour_of_the_likeliest_regime(two: StabilityMap, opened: Opened) -> None:
    """Hatched or not, pale where the model is unsure."""
    # Places whose surroundings of about two pixels look the same: five to each.
    corners = np.array([(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)])
    units = np.random.default_rng(0).uniform(0.02, 0.98, (3000, 1, 2)) + 0.004 * corners
    lr, decay = (np.asarray(two.axes[i].from_unit(units[..., j])) for j, i in enumerate((0, 2)))
    chances = two.classify(lr=lr, weight_decay=decay)
    stack = np.stack([chances[name] for name in REGIMES])
    best, sure = stack.argmax(0), stack.max(0) >= 0.8
    clear = (best == best[:, :1]).all(1) & (sure == sure[:, :1]).all(1)
    with opened(two) as seen:
        address = seen.page.evaluate("document.getElementById('regions').toDataURL()")
        to_pixels = pixels_of(seen, two)
    picture = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")
    image = np.asarray(picture, dtype=float)
    for index in np.flatnonzero(clear):
        x, y = to_pixels(lr[index, 0], decay[index, 0])
        pixel = image[int(y - TOP), int(x - LEFT)]
        colour = [int(COLOURS[REGIMES[best[index, 0]]][i : i + 2], 16) for i in (1, 3, 5)]
        strength = 0.65 if sure[index, 0] else 0.3
        plain = strength * np.array(colour) + (1 - strength) * 255
        assert any(np.abs(pixel - shade * plain).max() < 2 for shade in (1, 0.42))
    for regime in range(3):
        assert (clear & (best[:, 0] == regime)).sum() > 100
    assert (clear & ~sure[:, 0]).sum() > 3


def test_one_axis_gives_curves(opened: Opened) -> None:
    found = map_of({"lr": LR}, 30)
    with opened(found) as seen:
        assert seen.page.locator("[data-line]").count() == 3
        assert len(marks(seen)) == 30
        assert not seen.page.is_visible("#slice-row")
        seen.page.screenshot(path=SCREENSHOTS / "page-one-axis.png", full_page=True)
        dashes = {
            seen.page.locator(f'[data-line="{name}"]').get_attribute("stroke-dasharray")
            for name in REGIMES
        }
        assert len(dashes) == 3
        heights = {regime: set[float]() for regime in REGIMES}
        for number, (_, y) in marks(seen).items():
            heights[found.frame.set_index("number").loc[number, "regime"]].add(y)
        assert [len(h) for h in heights.values()] == [1, 1, 1]


def test_theory_and_uncertainty_can_be_hidden(opened: Opened) -> None:
    with opened(map_of(CNN, 32)) as seen:
        for switch, kind, count in (("#theory", "theory", 2), ("#uncertainty", "interval", 4)):
            drawn = seen.page.locator(f'#drawing [data-line="{kind}"]')
            assert drawn.count() == count
            before = grey(seen)
            seen.page.focus(switch)
            seen.page.keyboard.press("Space")
            assert drawn.count() == 0
            changed = bool((grey(seen) != before).any())
            assert changed == (switch == "#uncertainty")
        assert "theory: 2 / sharpness" not in str(seen.page.locator("#legend").text_content())
        seen.page.check("#theory")
        assert "theory: 2 / sharpness" in str(seen.page.locator("#legend").text_content())


def test_theory_that_does_not_exist_is_not_offered(opened: Opened) -> None:
    with opened(map_of({"lr": LR, "alpha": ALPHA}, 16)) as seen:
        assert seen.page.is_disabled("#theory")
        assert seen.page.locator("#theory-note").text_content() == "(no closed form is known here)"


# --------------------------------------------------------------------------- mouse and keyboard


def test_hover_shows_the_evidence(two: StabilityMap, opened: Opened) -> None:
    with opened(two) as seen:
        assert evidence(seen) == {}
        places = marks(seen)
        for number in (0, 7, 33):
            row = two.frame.set_index("number").loc[number]
            seen.page.mouse.move(*on_screen(seen, places[number]))
            assert seen.page.locator("#panel-title").text_content() == f"Point {number}"
            found = evidence(seen)
            assert found["regime"] == row["regime"] and found["reason"] == row["reason"]
            for name in ("lr", "weight_decay", "margin_stable", "growth"):
                label = {"margin_stable": "margin to stable"}.get(name, name.replace("_", " "))
                assert float(found[label]) == pytest.approx(row[name], rel=1e-3)
            assert found["decided at step"] == "37"
            assert found["replicates"] == f"1 (1 {row['regime']})"
            assert found["metric"] == "not measured"
        said = str(seen.page.locator("#readout").text_content())
        assert said.startswith("Model at lr ") and said.count("%") == 3
        seen.page.screenshot(path=SCREENSHOTS / "page-hover.png", full_page=True)


def test_the_keyboard_moves_between_points(two: StabilityMap, opened: Opened) -> None:
    with opened(two) as seen:
        order = []
        for _ in range(12):
            seen.page.keyboard.press("Tab")
            order.append(seen.page.evaluate("document.activeElement.id || 'point'"))
        wanted = [name for name in order if name in ("uncertainty", "theory", "point")]
        assert wanted[:3] == ["uncertainty", "theory", "point"]
        assert seen.page.locator('.point[tabindex="0"]').count() == 1  # one stop for all points
        seen.page.locator('.point[tabindex="0"]').focus()
        places = marks(seen)
        for key, axis, sign in (
            ("ArrowRight", 0, 1),
            ("ArrowUp", 1, -1),
            ("ArrowLeft", 0, -1),
            ("ArrowDown", 1, 1),
        ):
            before = focused(seen)
            seen.page.keyboard.press(key)
            after = focused(seen)
            assert sign * (places[after][axis] - places[before][axis]) > 0
            assert seen.page.locator("#panel-title").text_content() == f"Point {after}"
            label = str(seen.page.locator(f'[data-number="{after}"]').get_attribute("aria-label"))
            assert label.startswith(f"Point {after}: lr ")
        numbers = two.frame["number"].tolist()
        seen.page.keyboard.press("Home")
        assert focused(seen) == numbers[0]
        visited = [focused(seen)]
        for _ in numbers[1:]:
            seen.page.keyboard.press("PageDown")
            visited.append(focused(seen))
        assert visited == numbers
        seen.page.keyboard.press("PageUp")
        assert focused(seen) == numbers[-2]
        seen.page.keyboard.press("End")
        assert focused(seen) == numbers[-1]


def test_the_slider_moves_the_slice(three: StabilityMap, opened: Opened) -> None:
    frame, decay = three.frame, three.axes[2]
    with opened(three) as seen:
        slider = seen.page.locator("#slice")
        assert set(marks(seen)) == set(frame["number"][frame["weight_decay"] == 0])
        assert str(slider.get_attribute("aria-valuetext")).startswith("weight decay = 0, ")
        before = grey(seen)
        slider.focus()
        seen.page.keyboard.press("End")
        assert (grey(seen) != before).mean() > 0.05
        place = np.asarray(decay.to_unit(frame["weight_decay"]))
        assert set(marks(seen)) == set(frame["number"][place >= 0.9])
        assert str(slider.get_attribute("aria-valuetext")).startswith("weight decay = 1, ")
        for _ in range(16):
            seen.page.keyboard.press("ArrowLeft")
        assert set(marks(seen)) == set(frame["number"][np.abs(place - 0.5) <= 0.1])
        seen.page.select_option("#view", label="lr and weight decay")
        assert seen.page.locator("#slice-name").text_content() == "alpha"
        assert set(marks(seen)) == set(frame["number"][frame["alpha"] <= 0.2])
        seen.page.screenshot(path=SCREENSHOTS / "page-three-axes.png", full_page=True)


def test_every_slice_shows_the_model(three: StabilityMap, opened: Opened) -> None:
    """Three views of one lattice: what the page says of a place is what the map says of it."""
    with opened(three) as seen:
        for view in ("lr and alpha", "lr and weight decay", "alpha and weight decay"):
            seen.page.select_option("#view", label=view)
            seen.page.focus("#slice")
            seen.page.keyboard.press("End")
            box = seen.page.locator("#regions").bounding_box()
            assert box is not None
            held = {"lr": 100.0, "alpha": 2.0, "weight_decay": 1.0}
            for share in (0.15, 0.45, 0.7):
                seen.page.mouse.move(
                    box["x"] + share * box["width"], box["y"] + 0.3 * box["height"]
                )
                said = str(seen.page.locator("#readout").text_content())
                place, parts = said.removeprefix("Model at ").split(": ")
                at = dict(held)
                for part in place.split(", "):
                    name, value = part.rsplit(" ", 1)
                    at[name.replace(" ", "_")] = float(value)
                chances = three.classify(**at)
                for part in parts.split(", "):
                    name, percent, _ = part.split(" ")
                    assert float(percent) == pytest.approx(100 * chances[name], abs=3)


def test_all_points_as_a_table(two: StabilityMap, opened: Opened) -> None:
    with opened(two) as seen:
        seen.page.focus("#table-view summary")
        seen.page.keyboard.press("Enter")
        rows = seen.page.locator("#table tbody tr")
        rows.first.wait_for()
        assert rows.count() == len(two.frame)
        cells = rows.nth(5).locator("td").all_text_contents()
        row = two.frame.iloc[5]
        assert float(cells[1]) == pytest.approx(row["lr"], rel=1e-3)
        assert cells[4] == row["regime"]


RUN = "a" * 32


def test_a_point_opens_its_run(two: StabilityMap, browser: Browser, tmp_path: Path) -> None:
    tracking = Tracking(
        "https://me:secret@mlflow.example.org/base/", "b" * 32, "7", {0: RUN, 1: RUN}
    )
    path = write_page(two, tmp_path / "map.html", tracking)
    assert "secret" not in path.read_text("utf-8")
    address = f"https://mlflow.example.org/base/#/experiments/7/runs/{RUN}"
    with watched(browser) as seen:
        seen.page.goto(path.as_uri())
        seen.page.locator('[data-number="0"]').focus()
        assert seen.page.get_attribute("#run-address", "href") == address
        with seen.context.expect_page() as opened:
            seen.page.keyboard.press("Enter")
        assert opened.value.evaluate("window.opener") is None
        with seen.context.expect_page():
            seen.page.mouse.click(*on_screen(seen, marks(seen)[1]))
        assert len(seen.asked) == 2
        assert all(url.startswith("https://mlflow.example.org/base/") for url in seen.asked)


def test_a_point_without_an_address_shows_its_filter(two: StabilityMap, opened: Opened) -> None:
    with opened(two, Tracking(sweep="b" * 32)) as seen:
        seen.page.locator('[data-number="3"]').focus()
        seen.page.keyboard.press("Enter")
        assert seen.page.evaluate("document.activeElement.id") in ("filter", "")
        row = two.frame.set_index("number").loc[3]
        assert seen.page.input_value("#filter") == (
            f"tags.`mlflow.parentRunId` = '{'b' * 32}' and params.lr = '{row['lr']!r}'"
            f" and params.alpha = '0.0' and params.weight_decay = '{row['weight_decay']!r}'"
        ).replace("np.float64(", "").replace(")'", "'")
        assert not seen.page.is_visible("#run-link")


def test_dark_and_still_where_the_reader_asks(two: StabilityMap, opened: Opened) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    speed = "getComputedStyle(document.querySelector('.ring')).transitionDuration"
    with opened(two, color_scheme="light", reduced_motion="no-preference") as seen:
        assert seen.page.evaluate(back) == "rgb(255, 255, 255)"
        assert seen.page.evaluate(speed) == "0.12s"
    with opened(two, color_scheme="dark", reduced_motion="reduce") as seen:
        assert seen.page.evaluate(back) == "rgb(22, 24, 27)"
        assert seen.page.evaluate(speed) == "0s"
        seen.page.screenshot(path=SCREENSHOTS / "page-dark.png", full_page=True)


def test_narrow_and_sharp_screens(two: StabilityMap, opened: Opened) -> None:
    """The map takes the room that there is, also when that changes, and all pixels of a screen."""
    screen: dict[str, Any] = {"viewport": {"width": 880, "height": 800}, "device_scale_factor": 2}
    with opened(two, **screen) as seen:
        for width in (880, 420):
            seen.page.set_viewport_size({"width": width, "height": 800})
            for _ in range(100):
                box = seen.page.locator("#regions").bounding_box()
                if box is not None and box["x"] + box["width"] < width:
                    break
                seen.page.wait_for_timeout(20)
            assert box is not None
            assert width - 150 < box["width"] < width - 80
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
            assert max(x for x, _ in marks(seen).values()) < width
            canvas = "document.getElementById('regions').width"
            assert seen.page.evaluate(canvas) == pytest.approx(2 * box["width"], abs=2)


# --------------------------------------------------------------------------- ways to it


def test_plot_writes_the_page(two: StabilityMap, tmp_path: Path) -> None:
    two.export(tmp_path / "map")
    target = tmp_path / "map.html"
    done = CliRunner().invoke(app, ["plot", str(tmp_path / "map"), "-O", str(target)])
    assert done.exit_code == 0, done.output
    assert target.read_text("utf-8") == page_html(two)
    plain = tmp_path / "plain.html"
    words = ["plot", str(tmp_path / "map"), "-O", str(plain), "--no-theory"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert '"theory":[]' in plain.read_text("utf-8")
    assert '"theory":[]' not in target.read_text("utf-8")


def test_what_cannot_be_written(two: StabilityMap, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"path = .*cannot be written.*choose a folder"):
        write_page(two, tmp_path / "nowhere" / "map.html")
    with pytest.raises(InputError, match="a page needs a free axis; give an axis a range"):
        write_page(map_of({"lr": 0.1}, [Point(0.1)]), tmp_path / "map.html")
