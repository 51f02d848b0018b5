"""How many runs does it take to find both boundaries? The sampler against its rivals.

Run: .venv/bin/python benchmarks/boundary.py
     .venv/bin/python benchmarks/boundary.py --quick
     .venv/bin/python benchmarks/boundary.py --runs --problems amplifier --methods grid quadtree
     .venv/bin/python benchmarks/boundary.py --cost --calibration

Three parts; without `--runs`, `--cost` or `--calibration` all of them.

- Runs: for each problem of `_boundary_problems.py`, the median over five seeds of the runs after
  which 2 % and 1 % of the box are misclassified, for `BoundarySampler`, for the same by signs of
  margins alone, and for the rivals of `_boundary_rivals.py`, with the ratio to the sampler. The
  error is measured on 8192 points every 8 runs (grid: at every complete size; quadtree: after the
  split that completes 8 runs). A check counts if the next one is at most 1.25 times the target.
  "> n": not within n runs.
- Cost: processor time of a proposal at 500 runs, and memory and time at 5000, on one thread.
- Calibration: how far the sampler's probabilities are off at 128 and 256 runs, in 20 bins, and
  `docs/images/reliability.png`.

About 35 minutes on two cores, most of it real trainings; `--quick` (one seed, small limits, no
figure) takes two.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import optuna
import torch
from _boundary_calibration import forecasts, print_calibration
from _boundary_cost import print_cost
from _boundary_problems import PROBLEMS, REGIMES, Problem
from _boundary_rivals import grid, optuna_search, quadtree, sobol
from _boundary_scores import Curve, Sample, error_at, middle, nearest_curve, runs_to
from _boundary_search import Search, measured
from threadpoolctl import threadpool_limits

TARGETS = (0.02, 0.01)
METHODS = ("boundary", "signs", "grid", "sobol", "quadtree", "tpe", "gp")
#: Seeds that nothing was chosen on.
FIRST_SEED = 100
SEEDS = 5


@dataclass(frozen=True)
class Limits:
    """Where each method stops, in runs.

    Args:
        boundary: limit of the boundary sampler, and so on for `sobol`, `quadtree`, `tpe`, `gp`.
        sides: cells a side of all grids, by the number of axes.
    """

    boundary: int
    sobol: int
    quadtree: int
    tpe: int
    gp: int
    sides: dict[int, Sequence[int]]


CHEAP = Limits(384, 4096, 2048, 1024, 96, {2: range(4, 97), 3: range(4, 25)})
COSTLY = Limits(256, 1280, 768, 1024, 96, {2: range(8, 33, 4)})
QUICK = Limits(128, 1024, 512, 128, 32, {2: range(4, 41), 3: range(4, 11)})
QUICK_COSTLY = Limits(64, 64, 64, 32, 16, {2: (4, 8)})


@dataclass(frozen=True)
class Job:
    """One search: names of problem and method, the seed, and whether limits are small."""

    problem: str
    method: str
    seed: int
    quick: bool


def curve_of(job: Job) -> Curve:
    """Do a job."""
    problem, seed = PROBLEMS[job.problem], job.seed
    choices = (QUICK, QUICK_COSTLY) if job.quick else (CHEAP, COSTLY)
    most = choices[problem.costly]
    if job.method in ("boundary", "signs"):
        return list(Search(problem, seed, job.method == "boundary").curve(most.boundary))
    measure, d = measured(problem, seed), problem.dimension
    tpe, gp = optuna.samplers.TPESampler, optuna.samplers.GPSampler
    rivals: dict[str, Callable[[], Iterable[Sample]]] = {
        "grid": lambda: grid(measure, d, most.sides[d]),
        "sobol": lambda: sobol(measure, d, most.sobol, seed),
        "quadtree": lambda: quadtree(measure, d, most.quadtree, seed),
        "tpe": lambda: optuna_search(tpe(seed=seed), measure, d, most.tpe),
        "gp": lambda: optuna_search(gp(seed=seed), measure, d, most.gp),
    }
    return nearest_curve(rivals[job.method](), *problem.sample)


# --------------------------------------------------------------------------- the table of runs


def jobs_of(
    problems: Sequence[str], methods: Sequence[str], seeds: Sequence[int], quick: bool
) -> list[Job]:
    """All searches; one seed for grids without noise, which are the same for all."""
    return [
        Job(name, method, seed, quick)
        for name in problems
        for method in methods
        for seed in (seeds[:1] if method == "grid" and not PROBLEMS[name].noise else seeds)
    ]


def print_runs(jobs: list[Job], curves: Iterable[Curve]) -> None:
    """Print a block for each problem as soon as its curves are there."""
    paired = zip(jobs, curves, strict=True)
    for name in dict.fromkeys(job.problem for job in jobs):
        found: dict[str, list[Curve]] = {}
        for _ in range(sum(job.problem == name for job in jobs)):
            job, curve = next(paired)
            found.setdefault(job.method, []).append(curve)
        print_block(PROBLEMS[name], found)


def print_block(problem: Problem, found: dict[str, list[Curve]]) -> None:
    """Print what was found on one problem, by method."""
    shares = np.bincount(problem.truth[1], minlength=3) / len(problem.truth[1])
    parts = ", ".join(f"{s:.0%} {r}" for s, r in zip(shares, REGIMES, strict=True))
    print(f"\n{problem.name} ({', '.join(problem.axes)}): {parts}; noise {problem.noise:g}")
    print("  method         2 %   ratio     1 %   ratio   at 256   at the end       seeds, to 2 %")
    reached = {
        method: [middle(runs_to(curve, target) for curve in curves) for target in TARGETS]
        for method, curves in found.items()
    }
    bases = reached.get("boundary", [None] * len(TARGETS))
    for method, curves in found.items():
        # A quadtree ends with the split that passes its limit: searches differ in length.
        limit = max(curve[-1][0] for curve in curves)
        cells = [cell(*pair, limit) for pair in zip(reached[method], bases, strict=True)]
        early, last = middle(error_at(c, 256) for c in curves), middle(c[-1][1] for c in curves)
        shown = "-" if early is None else f"{early:.2%}"
        each = " ".join(str(runs_to(curve, TARGETS[0]) or "-") for curve in curves)
        line = f"  {method:9s}{''.join(cells)}{shown:>9}{last:>8.2%} at {limit:<5d}  {each}"
        print(line, flush=True)


def cell(runs: float | None, base: float | None, limit: int) -> str:
    """Runs to a target and their ratio to the boundary sampler's."""
    above = "> " if runs is None else ""
    count = limit if runs is None else runs
    ratio = "-" if base is None else f"{above}{count / base:.1f}"
    return f"{above}{count:.0f}".rjust(8) + ratio.rjust(8)


# --------------------------------------------------------------------------- command line


def quiet() -> None:
    """One thread, and no messages of Optuna's."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes of one thread each."""
    context = multiprocessing.get_context("spawn")
    found = ProcessPoolExecutor(workers, mp_context=context, initializer=quiet)
    try:
        yield found
    finally:
        found.shutdown(cancel_futures=True)  # after a mistake or Ctrl-C no search is begun


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Runs to find both boundaries.")
    for part in ("runs", "cost", "calibration"):
        parser.add_argument(f"--{part}", action="store_true", help="only such parts")
    parser.add_argument("--quick", action="store_true", help="one seed, small limits")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="the first")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser.parse_args()


def main() -> None:
    """Print what was asked for."""
    given = options()
    everything = not (given.runs or given.cost or given.calibration)
    count = given.seeds or (1 if given.quick else SEEDS)
    seeds = range(given.seed, given.seed + count)
    begin = time.perf_counter()
    quiet()
    if given.cost or everything:
        with pool(1) as fresh:
            print_cost(given.quick, fresh)
    if given.runs or everything:
        print(f"\nmedian runs to a misclassified share, seeds {seeds[0]} to {seeds[-1]}")
        jobs = jobs_of(given.problems, given.methods, seeds, given.quick)
        with pool(given.workers) as workers:
            print_runs(jobs, workers.map(curve_of, jobs))
    if given.calibration or everything:
        names = [name for name in given.problems if not PROBLEMS[name].costly]
        counts = (128,) if given.quick else (128, 256)
        pairs = [(name, seed) for name in names for seed in seeds]
        with pool(given.workers) as workers:
            found = workers.map(forecasts, *zip(*pairs, strict=True), [counts] * len(pairs))
            print_calibration(dict(zip(pairs, found, strict=True)), draw=not given.quick)
    print(f"\n{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
