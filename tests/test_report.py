"""The report: its numbers are the map's, texts stay texts, the spec in it repeats the sweep."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from browser import SCREENSHOTS, chromium, watched
from PIL import Image
from synthetic import ALPHA, DECAY, LR, map_of, measure, spec_of
from typer.testing import CliRunner

from analysis.document import Block, Code, Heading, Items, Paragraph, Table, as_html, as_markdown
from analysis.map import StabilityMap
from analysis.report import NOT_KNOWN, Source, report, spec_hash, write_report
from analysis.report import spec_of as repeated
from analysis.tracking import Tracking
from stabmap.cli import app
from sweeps.rounds import Rounds
from sweeps.spec import load_spec
from trainables.domain import InputError, Point, Replicate

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = "</title><script>window.hacked=1</script> | [a](http://x) `b` **c** <img src=x>"


def audited(**changes: Any) -> StabilityMap:
    """A map with an audit at its end."""
    rounds = Rounds(spec_of({"lr": LR, "weight_decay": DECAY}, **changes))
    while proposed := rounds.propose():
        for number, point in proposed:
            rounds.record(number, measure(point))
    return rounds.map()


@pytest.fixture(scope="module")
def found() -> StabilityMap:
    return audited(budget={"points": 64}, search="sobol")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def tables(shown: StabilityMap, source: Source = NOT_KNOWN) -> list[Table]:
    return [block for block in report(shown, source, pictures=False) if isinstance(block, Table)]


def facts(shown: StabilityMap, source: Source = NOT_KNOWN) -> dict[str, str]:
    """What the tables without a head say."""
    return {
        row[0]: row[1] for table in tables(shown, source) if not table.head for row in table.rows
    }


def texts(shown: StabilityMap, source: Source = NOT_KNOWN) -> str:
    return as_markdown(report(shown, source, pictures=False)).replace("\\", "")


# --------------------------------------------------------------------------- what it says


def test_what_was_found(found: StabilityMap) -> None:
    regimes, along = (table for table in tables(found) if table.head)
    counts = found.counts()
    assert [(row[0], int(row[1])) for row in regimes.rows] == list(counts.items())
    assert regimes.rows[0][2] == f"settled {counts['stable']}"
    assert along.head == ["weight_decay", "largest stable lr", "stable ends", "divergence"]
    decays = [float(row[0]) for row in along.rows]
    assert decays[0] == 0 and decays[1] == 1e-4 and decays[-1] == 1
    for row, decay in zip(along.rows, (0.0, 1e-4, 1e-4 * 1e4 ** (32 / 63), 1.0), strict=True):
        largest = found.max_stable("lr", weight_decay=decay)
        assert largest is not None
        assert float(row[1]) == pytest.approx(largest, rel=6e-3)
        for cell, kind in zip(row[2:], ("stable", "divergent"), strict=True):
            limits = found.boundary(kind, confidence=0.95)
            here = limits[np.isclose(limits["weight_decay"], decay, rtol=1e-6, atol=0)]
            if here.empty:
                assert cell == "not in the range"
                continue
            ends = re.fullmatch(r"(\S+) \((\S+|below the range) to (\S+|beyond the range)\)", cell)
            assert ends is not None
            for text, column in zip(ends.groups(), ("lr", "low", "high"), strict=True):
                value = here.iloc[0][column]
                if "range" in text:
                    assert np.isnan(value)
                else:
                    assert float(text) == pytest.approx(value, rel=6e-3)


def test_how_sure_it_is(found: StabilityMap) -> None:
    said, quality = texts(found), found.quality
    assert quality.audit is not None and quality.audit.points == 8
    assert f"an audit bounds it by {quality.audit.bound:.1%}" in said
    assert f"so at most {quality.audit.bound:.1%} of the box with 95 confidence" in said.replace(
        "0.95", "95"
    )
    assert f"expected to be misclassified: {quality.misclassified:.1%}" in said
    assert "no audit checked it" in texts(map_of({"lr": LR}, 16))


def test_points_whose_replicates_disagree() -> None:
    shown = map_of({"lr": LR}, 8)
    frame = shown.frame.copy()
    frame["replicates"] = [1, 3, 3, 1, 2, 1, 1, 1]
    frame["replicates_stable"] = [1, 2, 3, 1, 1, 1, 1, 1]
    frame["replicates_restrained"] = [0, 1, 0, 0, 0, 0, 0, 0]
    frame["replicates_divergent"] = [0, 0, 0, 0, 1, 0, 0, 0]
    said = texts(replace(shown, frame=frame))
    assert "2 of 3 points with replicates have replicates in different regimes" in said
    assert "5 points were trained once" in said


def test_where_it_comes_from(found: StabilityMap) -> None:
    tags = {"git_commit": "abc123", "torch": "2.13.0", "device": "cuda:0", "data_hash": "d0"}
    data = "The data are a stand-in for CIFAR-10."
    source = Source("abcd", Tracking(sweep="b" * 32, tags=tags), data)
    said = facts(found, source)
    assert said["spec hash"] == load_spec(repeated(found)).hash
    assert (said["git commit"], said["torch"], said["data hash"]) == ("abc123", "2.13.0", "d0")
    assert said["MLflow run"] == "b" * 32
    assert said["seeds"] == "1 a point, from seed 0"
    assert said["data"] == data
    assert said["optuna"] == "not known"
    assert facts(found)["MLflow run"] == "not known"
    assert "versions are missing" in texts(found)
    assert "versions are missing" not in texts(found, source)


@pytest.mark.parametrize(
    ("axes", "changes"),
    [
        ({"lr": LR, "weight_decay": DECAY}, {}),
        ({"lr": LR, "alpha": ALPHA, "weight_decay": DECAY}, {"search": "grid"}),
        ({"lr": 0.1}, {"optimiser": "adam", "decay": "decoupled", "seeds": 2}),
        ({"lr": LR}, {"search": {"method": "boundary", "tolerance": 0.2}, "ks": [1, 5]}),
        ({"lr": LR, "alpha": 0.5}, {"stabiliser": "clip-norm", "momentum": 0.5, "steps": 90}),
    ],
)
def test_the_spec_in_it_asks_for_the_same_points(axes: Any, changes: Any) -> None:
    spec = spec_of(axes, **changes)
    results = [(0, measure(Point(0.1, 0.5 if "alpha" in axes else 0.0)))]
    shown = StabilityMap.of(spec.about(), results)
    assert spec_hash(shown.about) == spec.hash
    blocks = report(shown, pictures=False)
    text = [block.text for block in blocks if isinstance(block, Code)][-1]
    assert load_spec(yaml.safe_load(text)).hash == spec.hash


def test_the_same_spec_gives_the_same_map(found: StabilityMap) -> None:
    rounds = Rounds(load_spec(repeated(found)))
    while proposed := rounds.propose():
        for number, point in proposed:
            rounds.record(number, measure(point))
    assert rounds.map().to_json() == found.to_json()


def test_trainings_are_counted_once_for_all_seeds() -> None:
    spec = spec_of({"lr": LR}, seeds=2, budget={"points": 3})
    once = measure(Point(0.1))
    (single,) = once.replicates
    pair = replace(once, replicates=(single, Replicate(**{**vars(single), "seed": 8})))
    shown = StabilityMap.of(
        spec.about(), [(0, pair), (1, pair), (2, replace(pair, point=Point(1.0)))]
    )
    assert repeated(shown)["budget"] == {"points": 3}


# --------------------------------------------------------------------------- both forms


class Outline(HTMLParser):
    """Tags and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def test_html_holds_the_picture_and_asks_for_nothing(
    found: StabilityMap, browser: Browser, tmp_path: Path
) -> None:
    path = write_report(found, tmp_path / "report.html", Source("0123456789abcdef"))
    outline = Outline()
    outline.feed(path.read_text("utf-8"))
    (picture,) = (attributes for tag, attributes in outline.tags if tag == "img")
    address = str(picture["src"])
    assert address.startswith("data:image/png;base64,")
    Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).verify()
    assert "trained" in str(picture["alt"])
    with watched(browser) as seen:
        seen.page.goto(path.as_uri())
        assert seen.page.evaluate("document.images[0].naturalWidth") > 500
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        seen.page.screenshot(path=SCREENSHOTS / "report.png", full_page=True)
        assert seen.asked == [] and seen.said == []


def test_markdown_says_the_same(found: StabilityMap, tmp_path: Path) -> None:
    text = write_report(found, tmp_path / "report.md").read_text("utf-8")
    assert text.startswith("# Stability of one-layer-cnn\n\n64 points were trained: ")
    outline = Outline()
    outline.feed(as_html(report(found, pictures=False), "x"))
    words = re.findall(r"[\w.]+", text.replace("\\", "").replace("```", ""))
    html_words = set(re.findall(r"[\w.]+", outline.text))
    assert set(words) <= html_words


def test_markup_in_a_spec_stays_text(found: StabilityMap, browser: Browser, tmp_path: Path) -> None:
    frame = found.frame.copy()
    frame["reason"] = HOSTILE
    about = {**found.about, "task": {"name": HOSTILE, HOSTILE: HOSTILE}}
    hostile = replace(found, frame=frame, about=about)
    source = Source(HOSTILE, Tracking(sweep=HOSTILE, tags={"git_commit": HOSTILE}), HOSTILE)
    path = write_report(hostile, tmp_path / "report.html", source)
    outline = Outline()
    outline.feed(path.read_text("utf-8"))
    assert [tag for tag, _ in outline.tags].count("img") == 1
    assert "script" not in [tag for tag, _ in outline.tags]
    with watched(browser) as seen:
        seen.page.goto(path.as_uri())
        assert seen.page.title() == f"Stability of {HOSTILE}"
        assert seen.asked == [] and seen.said == []
    lines = write_report(hostile, tmp_path / "report.md", source).read_text("utf-8")
    outside = re.sub(r"(?s)```.*?```", "", lines)
    assert not re.search(r"<\w|(?<!\\)[`*\]]|http:", outside)
    for line in outside.splitlines():
        assert not line.startswith("|") or line.count("|") - line.count("\\|") in (3, 4, 5)


def test_signs_of_markdown_stand_for_themselves() -> None:
    blocks: list[Block] = [
        Heading("a\n# b"),
        Paragraph("1. no list"),
        Items(["- x", "a_b_c"]),
        Code("```\nstill code\n```"),
    ]
    assert as_markdown(blocks) == (
        "## a # b\n\n\\1. no list\n\n- \\- x\n- a\\_b\\_c\n\n````\n```\nstill code\n```\n````\n"
    )


# --------------------------------------------------------------------------- ways to it


@pytest.mark.parametrize("ending", ["html", "md"])
def test_the_verb(found: StabilityMap, tmp_path: Path, ending: str) -> None:
    found.export(tmp_path / "map")
    target = tmp_path / f"report.{ending}"
    done = CliRunner().invoke(app, ["report", str(tmp_path / "map"), "-O", str(target)])
    assert done.exit_code == 0, done.output
    text = target.read_text("utf-8")
    assert "The data are the task" in text and "they stand in for no others" in text
    assert f"stabmap plot {tmp_path / 'map'} -O map.html" in text


def test_the_verb_says_what_it_cannot_write(found: StabilityMap, tmp_path: Path) -> None:
    found.export(tmp_path / "map")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "map"), "-O", "report.docx"])
    assert done.exit_code == 2
    with pytest.raises(
        InputError, match=r"is no report that can be written; end it in .html or .md"
    ):
        write_report(found, "report.docx")
    with pytest.raises(InputError, match=r"cannot be written .*choose a folder that exists"):
        write_report(found, tmp_path / "nowhere" / "report.md")


def test_a_task_that_is_not_installed(found: StabilityMap, tmp_path: Path) -> None:
    elsewhere = replace(found, about={**found.about, "task": {"name": "somebody-elses"}})
    elsewhere.export(tmp_path / "map")
    target = tmp_path / "report.md"
    done = CliRunner().invoke(app, ["report", str(tmp_path / "map"), "-O", str(target)])
    assert done.exit_code == 0, done.output
    assert "whether its data stand in for others is not known" in target.read_text("utf-8")


def test_a_single_point_has_a_report_too(tmp_path: Path) -> None:
    shown = map_of({"lr": 0.1}, [Point(0.1)])
    text = write_report(shown, tmp_path / "report.html").read_text("utf-8")
    assert "there is no map to be wrong" in text and "<img" not in text
