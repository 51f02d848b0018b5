"""What a map costs: a grid of full-length trainings against stabmap's defaults.

Run: .venv/bin/python benchmarks/map_cost.py
     .venv/bin/python benchmarks/map_cost.py --tasks one-layer-cnn
     .venv/bin/python benchmarks/map_cost.py --seeds 32
     .venv/bin/python benchmarks/map_cost.py --signs --seeds 16

For one-layer-cnn and mnist-mlp over (lr, weight decay): gradient evaluations of all trajectories of
all points (Hessian products of the sharpness included, as `trainables.dynamics.curvature` counts
them) until 2 % of the box is misclassified, and no more after any of the next 8 points, for

- a grid, each point trained to its full length, the map being the label of the cell;
- stabmap's defaults: boundary search in batches of 8, early verdicts.

The grid has three prices: every step of every training; the same, but a training that blows up ends
there, as anyone would have it who looks for a NaN; and that with the sharpness measured as the
defaults do, only where it decides and as exactly as the label needs, instead of at eight steps of
every training to a thousandth. The search's batches know all results before them; a sweep's workers
are a batch behind, and its audit comes on top. Its map is looked at after every point, for a budget
may be any number of points. `--signs` prints beside it what the search costs by signs of margins
alone.

Truth is the theory of the one-layer CNN; for the network full-length labels on a fine grid of its
own, between whose points lie those of the others. They are had without what cannot change a label:
the sharpness where something else already makes a training restrained, and its last digits where it
is far from its threshold. That they are the labels of full trainings is checked on the priced
sample and printed.

A grid's price is that of a random sample of its points times their number. Both count two k and the
neighbour, which is not trained. The MLP has 100 images, so that its truth can be had. A grid of the
MLP has the labels of the nearest points of the fine grid, so that it looks a little worse than it
is.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
from _boundary_rivals import axes_of
from numpy.typing import NDArray

from stabmap import BoundarySampler, Point, PointResult, evaluate, get_task
from trainables import record
from trainables.domain import Regime
from trainables.dynamics.curvature import sharpness
from trainables.verdict import judge

TARGET = 0.02
BATCH = 8
SEEDS = 5
#: Trajectories of a replicate: two k and the neighbour.
TRAJECTORIES = 3
#: Prices of a grid.
GRIDS = ("every step", "to the end or a blow-up", "sharpness where it decides")
#: Points of a grid that its price is measured on.
PRICED = 64

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """A task over log10 lr and log10 weight decay.

    Args:
        task: its name.
        options: its options.
        low: of both axes.
        high: of both axes.
        steps: of a full-length training.
        settings: other settings.
    """

    task: str
    options: dict[str, Any]
    low: tuple[float, float]
    high: tuple[float, float]
    steps: int
    settings: dict[str, Any]

    def train(self, unit: Array, early: bool) -> list[PointResult]:
        """Train at unit coordinates, (n, 2)."""
        low, high = np.array(self.low), np.array(self.high)
        places = 10 ** (low + unit * (high - low))
        points = [Point(lr=float(lr), weight_decay=float(wd)) for lr, wd in places]
        task = get_task(self.task, **self.options)
        # The neighbour is counted and not trained: it decides nothing.
        settings = {"steps": self.steps, "early": early, "lyapunov": False, **self.settings}
        return evaluate(points, task, **settings)

    def labels(self, unit: Array) -> Labels:
        """Labels of the full length at unit coordinates, (n, 2), and nothing else."""
        with patch.object(record.Record, "_sharpness_ratio", sharp_enough):
            return labels(self.train(unit, early=False))


PROBLEMS = {
    "one-layer-cnn": Problem(
        "one-layer-cnn", {"image": 63}, (-2.5, 0.6), (-0.3, 2.4), 400, {"dtype": "float64"}
    ),
    "mnist-mlp": Problem("mnist-mlp", {"samples": 100}, (-1.3, -4.0), (1.3, 0.0), 200, {}),
}


def labels(results: Sequence[PointResult]) -> Labels:
    """0, 1, 2 for stable, restrained, divergent."""
    order = list(Regime)
    return np.array([order.index(r.verdict.regime) for r in results], dtype=np.int64)


measured = record.Record._sharpness_ratio


def sharp_enough(kept: record.Record, snapshot: Mapping[str, Any], side: bool) -> float:
    """Sharpness over its threshold, no better than the label of a full training needs it."""
    found: list[float] = kept.__dict__.setdefault("ratios", [])
    if not found:
        last = kept._snapshots[-1]["parameters"]
        otherwise = judge(kept._observations(last, []))[0].regime
        found.append(0.0 if otherwise is Regime.STABLE else math.inf)
    if found[0] > 0:
        return 0.0  # the label is another one already
    if max(found) <= 1:
        found.append(measured(kept, snapshot, side=True))
    return max(found)


class Price:
    """Counts gradient evaluations."""

    def __init__(self) -> None:
        self.products = 0

    @contextmanager
    def counted(self) -> Any:
        """Count those of the sharpness too."""

        def counting(*given: Any, **named: Any) -> Any:
            found = sharpness(*given, **named)
            self.products += found.gradients
            return found

        record.sharpness, kept = counting, record.sharpness
        try:
            yield self
        finally:
            record.sharpness = kept

    def of(self, train: Callable[[], list[PointResult]]) -> tuple[list[PointResult], int]:
        """Results, and what they cost."""
        before = self.products
        results = train()
        steps = sum(r.steps_run for result in results for r in result.replicates)
        return results, TRAJECTORIES * steps + self.products - before


def centres(side: int) -> Array:
    """Centres of side x side cells, (side^2, 2)."""
    line = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


def nearest_cell(unit: Array, side: int) -> NDArray[np.int64]:
    """Index of the cell of side x side that each of (n, 2) places lies in."""
    cell = np.minimum((unit * side).astype(np.int64), side - 1)
    found: NDArray[np.int64] = cell[:, 0] * side + cell[:, 1]
    return found


def truth_of(problem: Problem) -> tuple[Callable[[Array], Labels], Array]:
    """Labels at any place, and the places where maps are judged, (n, 2)."""
    if problem.task == "one-layer-cnn":
        from analysis.theory import one_layer_cnn_phases

        order, low, high = [r.value for r in Regime], np.array(problem.low), np.array(problem.high)

        def exact(unit: Array) -> Labels:
            places = 10 ** (low + unit * (high - low))
            regimes = one_layer_cnn_phases(places[:, 0], places[:, 1]).regime
            return np.array([order.index(name) for name in regimes], dtype=np.int64)

        return exact, centres(97)
    side = 41
    fine = problem.labels(centres(side))
    # Its own centres are the places, so that a cell's corner is never judged by its middle.
    return (lambda unit: fine[nearest_cell(unit, side)]), centres(side)


def grid_runs(truth: Callable[[Array], Labels], at: Array, sides: Sequence[int]) -> int | None:
    """Points of the smallest grid from which on two sizes in a row are right enough."""
    true = truth(at)
    good = [
        float((truth(centres(side))[nearest_cell(at, side)] != true).mean()) <= TARGET
        for side in sides
    ]
    for side, now, following in zip(sides, good, good[1:], strict=False):
        if now and following:
            return side * side
    return None


def search(
    problem: Problem,
    seed: int,
    true: Labels,
    at: Array,
    price: Price,
    sizes: bool = True,
    limit: int = 160,
) -> tuple[tuple[int, int] | None, int]:
    """Runs and price until the map is right enough for a batch, and what was spent."""
    space = axes_of(2)
    sampler = BoundarySampler(seed=seed, space=space, sizes=sizes)
    study = optuna.create_study(sampler=sampler)
    asked = [dict(zip(space, map(float, place), strict=True)) for place in at]
    spent, reached = 0, None
    while len(study.trials) < limit:
        trials = [study.ask(space) for _ in range(BATCH)]
        for trial in trials:
            unit = np.array([[trial.params[name] for name in space]])
            [result], cost = price.of(lambda unit=unit: problem.train(unit, early=True))
            spent += cost
            margins = result.verdict.margins
            trial.set_user_attr("margins", [margins.stable, margins.bounded])
            study.tell(trial, 0.0)
            runs = trial.number + 1
            if runs < 2 * BATCH:
                continue
            wrong = (sampler.predict_proba(study, asked).argmax(1) != true).mean()
            if wrong > TARGET:
                reached = None
            elif reached is None:
                reached = (runs, spent)
            elif runs == reached[0] + BATCH:
                return reached, spent
    return None, spent


def compare(name: str, seeds: int, compared: bool) -> None:
    """Print one task, if `compared` by signs of margins alone too."""
    problem = PROBLEMS[name]
    truth, at = truth_of(problem)
    true, price = truth(at), Price()
    shares = ", ".join(f"{(true == i).mean():.0%} {r.value}" for i, r in enumerate(Regime))
    print(f"\n{name}: {shares}; {problem.steps} steps")
    sides = range(6, 42 if name == "mnist-mlp" else 97)
    runs = grid_runs(truth, at, sides)
    if runs is None:
        print(f"  no grid of up to {sides[-1]} x {sides[-1]} is right enough; taken as that large")
        runs = sides[-1] ** 2
    chosen = np.random.default_rng(0).random((PRICED, 2))
    with price.counted():
        results, cost = price.of(lambda: problem.train(chosen, early=False))
        saved = sum(problem.steps - r.steps_run for result in results for r in result.replicates)
        with patch.object(record, "settled", lambda *_: None):
            _, frugal = price.of(lambda: problem.train(chosen, early=True))
        grids = [each / PRICED * runs for each in (cost + TRAJECTORIES * saved, cost, frugal)]
        if name == "mnist-mlp":
            same = int((problem.labels(chosen) == labels(results)).sum())
            print(f"  truth: {same} of {PRICED} labels are those of full trainings")
        for kind, each in zip(GRIDS, grids, strict=True):
            print(f"  grid, {kind:28s} {runs:6d} runs {each:12,.0f} gradient evaluations")
        for sizes in (True, False)[: 1 + compared]:
            print_searches(problem, true, at, price, grids, seeds, sizes)


def print_searches(
    problem: Problem,
    true: Labels,
    at: Array,
    price: Price,
    grids: Sequence[float],
    seeds: int,
    sizes: bool,
) -> None:
    """Print what stabmap's searches cost, beside all prices of the grid."""
    ratios = []
    for seed in range(100, 100 + seeds):
        found, spent = search(problem, seed, true, at, price, sizes)
        shown = "not reached" if found is None else f"{found[0]:6d} runs"
        spent = spent if found is None else found[1]
        ratios.append([each / spent for each in grids])
        each = ", ".join(f"{ratio:.0f}" for ratio in ratios[-1])
        name = "stabmap" if sizes else "signs"
        print(f"  {name:10s}, seed {seed}          {shown:>11s} {spent:12,.0f}   ratios {each}")
    medians = np.median(ratios, axis=0)
    shown = ", ".join(f"{kind} {ratio:.0f}" for kind, ratio in zip(GRIDS, medians, strict=True))
    print(f"  medians of the ratios: {shown}", flush=True)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description="Gradient evaluations of a map.")
    parser.add_argument("--tasks", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 100 on")
    parser.add_argument("--signs", action="store_true", help="by signs of margins alone too")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    chosen = parser.parse_args()
    for name in chosen.tasks:
        compare(name, chosen.seeds, chosen.signs)


if __name__ == "__main__":
    main()
