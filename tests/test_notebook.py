"""What a notebook shows: pictures that hold what the map says, nothing that could be obeyed."""

from __future__ import annotations

import base64
import re
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from synthetic import ALPHA, DECAY, LR, map_of

import stabmap
from analysis.colours import COLOURS
from analysis.map import REGIMES, StabilityMap
from analysis.notebook import QUICK

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
AXES = [
    {"lr": LR},
    {"lr": LR, "weight_decay": DECAY},
    {"lr": LR, "alpha": ALPHA, "weight_decay": DECAY},
]


class Parsed(HTMLParser):
    """Tags, texts and pictures of a piece of HTML; every tag must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[ElementTree.Element] = []
        self.alternatives: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        assert not [name for name in given if name.startswith("on")]
        if tag == "img":
            lead, _, content = str(given["src"]).partition(",")
            assert lead == "data:image/svg+xml;base64"
            self.pictures.append(ElementTree.fromstring(base64.b64decode(content)))
            self.alternatives.append(str(given["alt"]))
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def shown(found: Any) -> Parsed:
    return Parsed(found._repr_html_())


def marks(picture: ElementTree.Element, name: str) -> int:
    """Number of trained points of a regime, without the one in the legend."""
    groups = [g for g in picture.iter(f"{SVG}g") if g.get("fill") == COLOURS[name]]
    each = 2 if name == "divergent" else 1  # a cross has an outline
    return sum(len(group) for group in groups) // each - 1


@pytest.mark.parametrize("axes", AXES, ids=lambda axes: f"{len(axes)} axes")
def test_every_point_is_in_the_picture_once(axes: dict[str, Any]) -> None:
    found = map_of(axes, 48)
    seen = shown(found)
    [picture] = seen.pictures
    for name, count in found.counts().items():
        assert marks(picture, name) == count
        assert f"{name} {count} " in seen.text
    texts = [element.text for element in picture.iter(f"{SVG}text")]
    for name in axes:
        assert any(name.replace("_", " ") in str(text) or name in str(text) for text in texts)
    assert f"{found.quality.misclassified:.1%} of the box" in seen.text


def test_regions_are_those_of_the_model() -> None:
    """The cell under a random place has the colour of the most likely regime there."""
    found = map_of(AXES[1], 64)
    [picture] = shown(found).pictures
    boxes: list[tuple[float, float, float, float, str]] = []
    for box in next(iter(picture.iter(f"{SVG}g"))).iter(f"{SVG}rect"):
        if str(box.get("fill")).startswith("#") and box.get("fill-opacity"):
            x, y, width, height = (float(str(box.get(k))) for k in ("x", "y", "width", "height"))
            boxes.append((x, y, width, height, str(box.get("fill"))))
    random = np.random.default_rng(0)
    right = 0
    lr, decay = found.axes[0], found.axes[2]
    for u, v in random.uniform(0.01, 0.99, (200, 2)):
        x, y = 300 * u, 220 * (1 - (v + 0.19) / 1.19)
        [colour] = {f for a, b, w, h, f in boxes if a <= x < a + w and b <= y < b + h} or {""}
        place = {"lr": float(lr.from_unit(u)), "weight_decay": float(decay.from_unit(v))}
        chances = found.classify(**place)
        right += colour == COLOURS[max(REGIMES, key=chances.__getitem__)]
    assert right >= 190  # a place and the middle of its cell may lie on two sides of a boundary


def test_largest_stable_rates_are_said() -> None:
    found = map_of(AXES[1], 64)
    sure = found.max_stable("lr", weight_decay=1.0)
    assert f"weight_decay 1: {sure:.3g}" in shown(found).text


def test_comparison_shows_gains_and_both_maps() -> None:
    whole = stabmap.example_map("lr", "alpha", "weight_decay")
    found = stabmap.compare(whole.slice(alpha=0), whole.slice(alpha=2))
    seen = shown(found)
    assert len(seen.pictures) == 2
    for gain in found.gains:
        assert f"{gain.difference:+.1%}" in seen.text
    assert f"{found.table().loc['restrained', 'stable']:.1%}" in seen.text
    assert "alpha: 0.0 and 2.0" in seen.text


def test_texts_are_escaped() -> None:
    made = map_of(AXES[1], 24)
    about = {**made.about, "task": {"name": HOSTILE}}
    hostile = StabilityMap(made.axes, made.frame.assign(reason=HOSTILE), about)
    for seen in (shown(hostile), shown(stabmap.compare(made, hostile))):
        assert not {"script", "svg", "iframe", "style"} & set(seen.tags)
        assert HOSTILE in seen.text + " ".join(seen.alternatives)
        assert len(seen.pictures) == seen.tags.count("img")


def test_no_colour_is_asked_of_the_notebook() -> None:
    """Texts keep the notebook's own colours; the picture brings its white ground along."""
    found = map_of(AXES[1], 24)
    assert not re.search(r"color|style=", re.sub(r'src="[^"]*"', "", found._repr_html_()))
    [picture] = shown(found).pictures
    ground = next(iter(picture.findall(f"{SVG}rect")))
    assert ground.get("fill") == "#fff"
    assert (ground.get("width"), ground.get("height")) == (
        picture.get("width"),
        picture.get("height"),
    )


def test_a_look_is_quick_also_at_many_points() -> None:
    """A model that takes long to fit is not fitted for a look; one that is there is shown."""
    large = map_of(AXES[1], QUICK + 1)
    begun = time.perf_counter()
    seen = shown(large)
    assert time.perf_counter() - begun < 1.0
    assert "surface" not in vars(large)
    assert "takes seconds to fit" in seen.text
    assert sum(marks(seen.pictures[0], name) for name in REGIMES) == QUICK + 1
    fitted = map_of(AXES[2], QUICK)
    assert fitted.surface
    shown(fitted)
    begun = time.process_time()  # other tests may want the processor
    again = StabilityMap(fitted.axes, fitted.frame, fitted.about)
    vars(again)["surface"] = fitted.surface
    shown(again)
    assert time.process_time() - begun < 1.0


def test_small_and_empty_maps() -> None:
    assert "no point yet" in shown(map_of(AXES[1], 0)).text
    single = shown(map_of({"lr": 0.1}, 1, search="grid"))
    assert single.pictures == [] and "stable 1 " in single.text


def test_notebooks_take_it() -> None:
    formatters = pytest.importorskip("IPython.core.formatters", reason="IPython is not installed")
    found = stabmap.example_map()
    content, _ = formatters.DisplayFormatter().format(found)
    assert content["text/html"] == found._repr_html_()
    assert content["text/plain"] == repr(found)


@pytest.mark.slow
def test_a_notebook_shows_it() -> None:
    """A cell that a kernel runs."""
    for name in ("ipykernel", "nbformat", "nbclient"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    import nbclient
    import nbformat

    cell = nbformat.v4.new_code_cell("import stabmap\nstabmap.example_map()")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    [output] = notebook.cells[0].outputs
    assert output.data["text/html"] == stabmap.example_map()._repr_html_()
