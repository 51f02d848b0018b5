"""The documentation: its examples run, its site builds, and nothing on it comes from elsewhere."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import SCREENSHOTS, chromium, watched

import stabmap
from trainables.tasks import from_files

ROOT = Path(__file__).parent.parent
#: The preset of the study whose map the README begins with.
PHASES = ROOT / "sweeps" / "presets" / "studies" / "one-layer-cnn-phases.yaml"
#: Pages whose Python and shell examples are run from top to bottom.
QUICK, LONG = ("index.md", "maps.md"), ("first-map.md", "your-task.md")

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n)?"
    r"^```(?P<language>\w+)(?: title=\"(?P<file>[\w.]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
UNRUN = re.compile(r"<!-- not run on this page: (.+) -->")


@dataclass(frozen=True)
class Block:
    """One example: its language, its text, the file it is to be written to, why it is not run."""

    language: str
    text: str
    file: str | None
    why: str | None


def first_screen() -> list[Block]:
    """Spec and commands of the map that the README begins with."""
    return blocks("../README.md")[:2]


def blocks(page: str) -> list[Block]:
    found = BLOCK.finditer((ROOT / "docs" / page).read_text("utf-8"))
    parts = [Block(m["language"], m["text"], m["file"], m["why"]) for m in found]
    return [
        Block(b.language, b.text, name[1], b.why)
        if b.language == "yaml" and (name := re.match(r"# ([\w-]+\.yaml)\n", b.text))
        else b
        for b in parts
    ]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, with `stabmap` on the path and nothing kept elsewhere."""
    program = tmp_path / "bin" / "stabmap"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stabmap "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "STABMAP_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    known = dict(from_files._REGISTERED)
    yield work
    from_files._REGISTERED.clear()
    from_files._REGISTERED.update(known)


def run_page(page: str) -> list[str]:
    """Run a page's examples; the languages of what was run, in order."""
    space: dict[str, Any] = {"__name__": "page"}
    ran: list[str] = []
    said = ""
    for block in blocks(page):
        if block.language == "text":
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(block.text, said, flags), said
        elif block.file is not None:
            Path(block.file).write_text(block.text)
        elif block.why is None and block.language in ("python", "sh"):
            said = in_python(block.text, space) if block.language == "python" else in_shell(block)
            ran.append(block.language)
    return ran


def in_python(text: str, space: dict[str, Any]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(text, "example", "exec"), space)
    return said.getvalue()


def in_shell(block: Block) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", QUICK)
def test_examples_of_a_page_run(page: str, desk: Path) -> None:
    assert "python" in run_page(page)


def test_the_map_of_the_readme_is_that_of_the_study(desk: Path) -> None:
    spec, _ = first_screen()
    assert spec.file is not None
    Path(spec.file).write_text(spec.text)
    written = stabmap.load_spec(spec.file)
    study = stabmap.load_spec(PHASES)
    assert written.hash == study.hash
    assert written.budget.points == study.budget.points


@pytest.mark.ray
@pytest.mark.slow
def test_the_first_screen_of_the_readme_runs(desk: Path) -> None:
    spec, commands = first_screen()
    assert spec.file is not None
    Path(spec.file).write_text(spec.text)
    small = " -o budget.points=8 -o search.audit=0 -o steps=40"
    shorter = commands.text.replace(spec.file, spec.file + small)
    assert shorter != commands.text
    in_shell(Block("sh", shorter, None, None))
    assert Path("phases.png").stat().st_size > 10_000


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("page", LONG)
def test_examples_of_a_page_with_sweeps_run(page: str, desk: Path) -> None:
    assert {"python", "sh"} <= set(run_page(page))


def test_what_is_not_run_says_why() -> None:
    [why] = UNRUN.findall((ROOT / "docs" / "cluster.md").read_text("utf-8"))
    assert "needs machines" in why
    for page in (*QUICK, *LONG):
        text = (ROOT / "docs" / page).read_text("utf-8")
        assert text.count("<!-- not run") == len([b for b in blocks(page) if b.why])
        assert text.count("\n```") == 2 * len(blocks(page))


def test_an_example_that_fails_is_noticed(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def page(text: str) -> None:
        (desk / "docs").mkdir(exist_ok=True)
        (desk / "docs" / "page.md").write_text(text)
        run_page("page.md")

    monkeypatch.setattr(sys.modules[__name__], "ROOT", desk)
    page("```python\nprint(1)\n```\n\n```text\n1\n```\n")
    with pytest.raises(AssertionError):
        page("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(ZeroDivisionError):
        page("```python\n1 / 0\n```\n")
    with pytest.raises(AssertionError):
        page("```sh\nfalse\n```\n")


# --------------------------------------------------------------------------- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a broken link, a page outside the navigation or a bad docstring ends it."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: make setup")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return folder


#: What a browser loads by itself, by tag. Other links are followed only by people.
LOADED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "link": ("href",),
    "use": ("href",),
}


class Loads(HTMLParser):
    """Addresses that a page loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev", "edit"):
            return
        self.found += [given[name] or "" for name in LOADED.get(tag, ()) if name in given]


def outside(addresses: list[str]) -> list[str]:
    return [a for a in addresses if re.match(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", a, re.IGNORECASE)]


def test_no_page_loads_from_another_address(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 12
    for page in pages:
        text = page.read_text("utf-8")
        assert outside(Loads(text).found) == [], page
        assert outside(re.findall(r"url\(['\"]?([^)'\"]+)", text)) == [], page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text("utf-8")
        found = re.findall(r"(?:url\(|@import)\s*['\"]?([^)'\";]+)", text)
        assert outside(found) == [], sheet


def test_an_address_elsewhere_is_noticed() -> None:
    text = '<script src="https://a.example/x.js"></script><img src=//b.example/y><a href="//c">'
    assert outside(Loads(text).found) == ["https://a.example/x.js", "//b.example/y"]
    assert outside(["assets/x.js", "../x", "data:image/png;base64,//8"]) == []


def test_the_reference_has_every_public_name(site: Path) -> None:
    text = (site / "api.html").read_text("utf-8")
    modules = {"__version__", "theory"}
    for name in set(stabmap.__all__) - modules:
        assert re.search(rf'id="[\w.]+\.{name}"', text), name
    for name in ("suggest_next", "variance", "classify", "max_stable"):
        assert f'id="analysis.map.StabilityMap.{name}"' in text


def test_a_browser_opens_it_without_a_request(site: Path) -> None:
    with chromium() as browser, watched(browser) as seen:
        for name in ("index.html", "maps.html", "api.html"):
            seen.page.goto((site / name).as_uri())
            assert seen.page.locator("h1").first.is_visible()
        assert seen.page.locator("[id='analysis.map.StabilityMap.suggest_next']").is_visible()
        SCREENSHOTS.mkdir(exist_ok=True)
        seen.page.goto((site / "first-map.html").as_uri())
        seen.page.screenshot(path=str(SCREENSHOTS / "docs.png"))
        assert seen.asked == []
