"""Are the probabilities right? The part `--calibration` of `boundary.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from _boundary_problems import PROBLEMS, Array, Labels
from _boundary_scores import calibration_error, reliability
from _boundary_search import Search
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "images" / "reliability.png"
#: Marker, line and grey of each problem: the figure is read without colours.
STYLES = (("o", "-", "0"), ("s", "--", "0.25"), ("^", "-.", "0.4"), ("D", ":", "0.55"))
#: Bins with a smaller share of the points are not drawn: their accuracy is chance.
SMALL = 0.0025

#: Probabilities (m, 3) at the points that are scored, by number of runs.
Forecasts = dict[int, Array]


def forecasts(problem: str, seed: int, counts: Sequence[int]) -> Forecasts:
    """What one search forecasts after so many runs, in ascending order."""
    search = Search(PROBLEMS[problem], seed)
    found = {}
    for runs in counts:
        while search.runs < runs:
            search.advance()
        found[runs] = search.probabilities()
    return found


def print_calibration(found: Mapping[tuple[str, int], Forecasts], *, draw: bool) -> None:
    """Print the calibration errors of forecasts by (problem, seed), and draw the figure."""
    grouped: dict[str, list[Forecasts]] = {}
    for (name, _), one in found.items():
        grouped.setdefault(name, []).append(one)
    print("\nproblem       runs  calibration error: median  largest   wrong  expected wrong")
    for name, group in grouped.items():
        truth = PROBLEMS[name].sample[1]
        for runs in group[0]:
            seen = [one[runs] for one in group]
            errors = [calibration_error(p, truth) for p in seen]
            wrong = np.median([(p.argmax(axis=1) != truth).mean() for p in seen])
            expected = np.median([(1 - p.max(axis=1)).mean() for p in seen])
            print(
                f"{name:13s} {runs:4d}  {np.median(errors):25.4f}  {max(errors):7.4f}"
                f"  {wrong:6.2%}  {expected:14.2%}"
            )
    if draw:
        draw_reliability(grouped)
        print(f"drawn: {FIGURE.relative_to(ROOT)}")


def draw_reliability(grouped: Mapping[str, list[Forecasts]]) -> None:
    """Share of right labels against confidence, the seeds of a problem together."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    counts = list(next(iter(grouped.values()))[0])
    panels = figure.subplots(1, len(counts), sharey=True)
    for panel, runs in zip(panels, counts, strict=True):
        panel.plot([1 / 3, 1], [1 / 3, 1], color="0.8", linewidth=5, label="perfect", zorder=0)
        for (name, group), style in zip(grouped.items(), STYLES, strict=False):
            truth = np.tile(PROBLEMS[name].sample[1], len(group))
            _draw_line(panel, name, np.concatenate([one[runs] for one in group]), truth, style)
        panel.set(title=f"{runs} runs", xlabel="probability of the likeliest regime")
        panel.set(xlim=(0.33, 1.01), ylim=(0.2, 1.02))
    panels[0].set_ylabel("share of points where it is the true one")
    panels[-1].legend(frameon=False, loc="lower right")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120, metadata={"Software": None})


def _draw_line(
    panel: Axes, name: str, probabilities: Array, truth: Labels, style: tuple[str, str, str]
) -> None:
    marker, line, grey = style
    share, confidence, accuracy = reliability(probabilities, truth)
    kept = share > SMALL
    panel.plot(
        confidence[kept],
        accuracy[kept],
        marker=marker,
        linestyle=line,
        color=grey,
        markerfacecolor="white",
        markersize=5,
        label=name,
    )
