"""The studies: the same sweep gives the same page, and no page in the repository is stale."""

from __future__ import annotations

import math
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from analysis.map import StabilityMap
from analysis.plot import plot_map
from analysis.theory import SGDStability
from stabmap import load_spec, load_tasks
from studies import runs as runs_under_test
from studies.__main__ import NAMES, one_ray, run_all, share, study
from studies.last_bit_variance import averages, still
from studies.least_squares import rows
from studies.one_layer_cnn import inwards
from studies.page import Claim, Findings, Picture, Study, judge, write
from studies.runs import ROOT, Bracket, Ran, Runs, first_edge, printed, seeds_by_label
from sweeps.spec import parse_overrides
from trainables.domain import (
    Margins,
    Point,
    PointResult,
    Reason,
    Replicate,
    Verdict,
    metric_names,
)
from trainables.hardware import hardware
from trainables.tasks import from_files

PAGES = ROOT / "docs" / "studies"
#: A sweep in a page's last table: its command and its hash.
SWEEP = re.compile(r"^\| `stabmap run (?P<arguments>[^`]+)` \| `(?P<hash>[0-9a-f]{16})` \|", re.M)


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of studies are known to no other test."""
    monkeypatch.setattr(from_files, "_REGISTERED", {})


def stale(page: str) -> list[str]:
    """Commands on a page whose spec has another hash by now."""
    found = []
    for sweep in SWEEP.finditer(page):
        preset, *options = shlex.split(sweep["arguments"])
        if "--tasks" in options:
            *options, _, tasks = options
            load_tasks(ROOT / tasks)
        spec = load_spec(ROOT / preset, parse_overrides(o for o in options if o != "-o"))
        if spec.hash != sweep["hash"]:
            found.append(sweep["arguments"])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_pages_were_made_with_the_presets_as_they_are(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text("utf-8")
    assert SWEEP.search(page)
    assert not stale(page), f"run make study NAME={name}"
    assert stale(SWEEP.sub(lambda m: m[0].replace(m["hash"], "0" * 16), page))


@pytest.mark.parametrize("name", NAMES)
def test_pages_have_their_figures_and_places(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text("utf-8")
    assert page.startswith(f"# {study(name).title}\n")
    for image in re.findall(r"\]\((images/[^)]+)\)", page):
        assert (PAGES / image).is_file()
    assert f"({name}.md)" in (PAGES / "index.md").read_text("utf-8")
    assert f"studies/{name}.md" in (ROOT / "mkdocs.yml").read_text("utf-8")


def test_presets_of_studies_are_all_used() -> None:
    pages = "".join((PAGES / f"{name}.md").read_text("utf-8") for name in NAMES)
    for preset in (ROOT / "sweeps" / "presets" / "studies").glob("*.yaml"):
        assert f"studies/{preset.name}" in pages


def small(runs: Runs) -> Findings:
    """The heat equation's limit, as in the study of that name."""
    heat = runs.sweep("heat")
    (edge,) = heat.edges("lr", "divergent")
    claim = Claim("limit", "0.501373", str(edge), judge(abs(edge.middle / 0.501373288 - 1) < 0.05))
    return Findings([claim], [Picture("map", "The map.", lambda path: plot_map(heat.map, path))])


SMALL = Study("small", "Small", "nothing", "Where?", small)


class Known(Ran):
    """A sweep over the rates of the heat equation, of which two are trained."""

    def _regime_at(self, axis: str, value: float) -> str:
        return "stable" if value < 0.501373288 else "divergent"

    def brackets(self, axis: str, regime: str) -> list[Bracket]:
        """Those about the limit."""
        return [Bracket(0.4, 0.8)]


@pytest.mark.parametrize("halvings", [1, 3, 5])
def test_halvings_that_are_trained_ahead_change_no_bracket(
    halvings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One training at a time, or those of three halvings: the same places, and around the limit."""
    found, trained = [], []
    for chunk in (1, 16):
        monkeypatch.setattr(runs_under_test, "CHUNK", chunk)
        spec = load_spec(ROOT / "sweeps/presets/studies/heat.yaml", {"steps": 200})
        ran = Known("heat", {}, spec, "no run")
        ran.__dict__["results"] = tuple(ran.train(lr=lr) for lr in (0.4, 0.8))
        ran.single.clear()
        found += ran.edges("lr", "divergent", halvings)
        trained.append(len(ran.single))
    assert found[0] == found[1]
    assert found[0].holds(0.501373288)
    assert found[0].above / found[0].below == pytest.approx(2**0.5**halvings)
    assert trained == [halvings, {1: 1, 3: 7, 5: 10}[halvings]]


def test_gradients_of_bases_that_went_on_alone() -> None:
    """Two k up to the verdict, one from there on."""
    spec = load_spec(ROOT / "sweeps/presets/studies/regulariser-point.yaml")
    verdict = Verdict(Margins(-1.0, 1.0), Reason.AMPLIFIED, 300)
    alone, whole = Replicate(0, verdict, 1000), Replicate(1, verdict, 300)
    ran = Ran("regulariser-point", {}, spec, "no run")
    ran.__dict__["results"] = (PointResult(Point(0.1), (alone, whole)),)
    assert ran.gradients == 2 * 300 + 700 + 2 * 300


@pytest.mark.parametrize(("cores", "studies", "workers"), [(2, 9, 1), (8, 2, 4), (16, 9, 2)])
def test_workers_of_studies_beside_each_other(
    cores: int, studies: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.__main__.os.sched_getaffinity", lambda _: range(cores))
    assert share(studies, "local") == workers
    assert share(studies, "host:6379") is None


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_from_nothing_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("STABMAP_DATABASE", raising=False)
    written: list[tuple[str, bytes]] = []
    # Tests that ran before may have started a Ray for the session.
    with nullcontext() if ray.is_initialized() else one_ray():
        for name, workers in (("first", None), ("second", 1), ("second", None)):
            monkeypatch.setenv("STABMAP_HOME", str(tmp_path / name))
            changes = {"budget.points": 8, "search.audit": 0, "steps": 200}
            runs, folder = Runs(changes, workers), tmp_path / f"pages-{len(written)}"
            page = write(SMALL, runs, folder)
            picture = (folder / "images" / "small-map.png").read_bytes()
            assert (folder / "small.md").read_text("utf-8") == page
            assert runs.gradients == runs.done[0].gradients > 0
            written.append((page, picture))
    assert written[0] == written[1] == written[2]
    assert "**agrees**" in page
    assert f" gradient evaluations in 1 sweeps, on {hardware('cpu')}. " in page
    assert "-o budget.points=8 -o search.audit=0 -o steps=200" in page
    assert not stale(page)


def test_studies_beside_each_other_are_processes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What they print comes whole, what they say on the way behind their name."""
    assert run_all(["equations", "depth"], ["--help"]) == []
    assert capfd.readouterr().out.count("usage: python -m studies") == 2
    assert run_all(["equations", "depth"], ["--nonsense"]) == ["depth", "equations"]
    said = capfd.readouterr().err
    for name in ("equations", "depth"):
        assert f"{name}: python -m studies: error: unrecognized arguments: --nonsense\n" in said


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("names", [["heat-exchange"], ["equations", "depth"]])
def test_a_wrong_call_of_studies_is_one_line(names: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studies", *names, "-o", "stepps=9", "--into", str(tmp_path)]
    environment = {**os.environ, "STABMAP_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    if names == ["heat-exchange"]:
        assert "error: no study heat-exchange; known: trace-criterion, " in last
    else:
        assert last == "error: these studies failed: depth, equations; the others are written"
        assert all(f"{name}: error: stepps = 9: " in done.stderr for name in names)
    assert not list(tmp_path.glob("*.md"))


def test_brackets() -> None:
    assert Bracket(1, 4).holds(4)
    assert not Bracket(1, 4).holds(4.1)
    assert Bracket(1, 4).middle == 2
    assert Bracket(1, 4).overlaps(Bracket(4, 5)) and Bracket(2, 3).overlaps(Bracket(1, 4))
    assert not Bracket(1, 4).overlaps(Bracket(4.1, 5))
    assert not Bracket(4.1, 5).overlaps(Bracket(1, 4))


def test_seeds_are_counted_by_label() -> None:
    margins = [Margins(1, 1), Margins(-1, 1), Margins(1, 1), Margins(-1, -1), Margins(1, 1)]
    verdicts = [Verdict(found, Reason.SETTLED, 0) for found in margins]
    runs = tuple(Replicate(seed, verdict, 1, {}, {}) for seed, verdict in enumerate(verdicts))
    assert seeds_by_label(PointResult(Point(0.1), runs)) == "3 / 1 / 1"


@pytest.mark.parametrize(
    ("number", "low", "high"),
    [("3.8e6", 3.75e6, 3.85e6), ("2e8", 1.5e8, 2.5e8), ("0.03", 0.025, 0.035), ("90", 89.5, 90.5)],
)
def test_what_a_printed_number_stands_for(number: str, low: float, high: float) -> None:
    assert printed(number) == pytest.approx((low, high), rel=1e-12)
    step = (high - low) / 4
    assert Bracket(high - step, high + step).meets(number)
    assert Bracket(low - step, high + step).meets(number)
    assert not Bracket(high + step, high + 2 * step).meets(number)
    assert not Bracket(low - 2 * step, low - step).meets(number)


@pytest.mark.parametrize(
    ("value", "number", "to", "expected"),
    [
        (3717184.0, "3.8e6", math.ceil, "3.8e6"),  # 3.7e6 is outside
        (3800000.0, "3.8e6", math.ceil, "3.8e6"),
        (12960000.0, "1.3e7", math.ceil, "1.3e7"),
        (1.42857e8, "1.42e8", math.floor, "1.42e8"),
        (2e8, "2e8", math.floor, "2e8"),
        (1.9999e8, "2e8", math.floor, "1e8"),
    ],
)
def test_bounds_are_rounded_inwards(
    value: float, number: str, to: Callable[[float], int], expected: str
) -> None:
    assert inwards(value, number, to) == expected


def test_rows_of_one_length_leave_the_trace_criterion_no_room() -> None:
    equal = SGDStability(rows(64, 4, equal=True), replacement=False)
    assert (rows(64, 4, equal=True) ** 2).sum(1) == pytest.approx(np.full(64, 4.0))
    assert equal.critical_lr == pytest.approx(2 / equal.trace, rel=1e-12)
    normal = SGDStability(rows(64, 4, equal=False), replacement=False)
    assert normal.critical_lr < 0.9 * 2 / normal.trace


def test_averages_of_spreads_are_those_of_the_paper() -> None:
    """Table 1's first column, and two made-up ones beside it that scatter nothing over k."""
    first = [93.36, 93.49, 93.64, 93.36, 93.87, 92.99]
    table = np.array([first, [93.0] * 6, [95.0] * 6])  # (data orders, k)
    ks, point = (1, 3, 5, 7, 9, 11), Point(0.1)
    verdict = Verdict(Margins(1, 1), Reason.SETTLED, 0)
    trained = tuple(
        Replicate(4, verdict, 1, metrics(ks, row / 100), {}, order=order)
        for order, row in enumerate(table)
    )
    about = load_spec(
        ROOT / "sweeps/presets/studies/last-bit-variance.yaml", {"ks": list(ks), "orders": 3}
    ).about()
    found = StabilityMap.of(about, [(0, PointResult(point, trained))]).variance()
    over_k = [statistics.pstdev(row) for row in table.tolist()]
    assert over_k[0] == pytest.approx(0.271, abs=5e-4)  # printed as 0.27
    expected = statistics.mean(over_k), statistics.mean(map(statistics.pstdev, table.T.tolist()))
    assert averages(found) == pytest.approx(expected, rel=1e-12)
    assert not still(found)
    flat = [replace(one, evidence=metrics(ks, [0.1 * one.seed] * len(ks))) for one in trained]
    assert still(StabilityMap.of(about, [(0, PointResult(point, tuple(flat)))]).variance())


def metrics(ks: Sequence[int], values: Iterable[float]) -> dict[str, float | None]:
    return dict(zip(metric_names(ks), map(float, values), strict=True))


def test_first_edge() -> None:
    calm, wild = True, False
    assert first_edge([(3.0, wild), (1.0, calm), (4.0, calm), (2.0, calm)]) == Bracket(2.0, 3.0)
    assert first_edge([(1.0, wild), (2.0, calm)]) == Bracket(0.0, 1.0)
    assert first_edge([(1.0, calm), (2.0, calm)]) == Bracket(2.0, np.inf)
