"""What proposals cost: the part `--cost` of `boundary.py`."""

from __future__ import annotations

import resource
import sys
import time
from concurrent.futures import Executor

import numpy as np
import optuna
from _boundary_problems import PROBLEMS
from _boundary_rivals import BATCH, axes_of
from _boundary_search import Search
from scipy.stats import qmc

from stabmap import BoundarySampler


def print_cost(quick: bool, fresh: Executor) -> None:
    """Print what a proposal costs at 500 runs and, in a process of its own, at 5000."""
    search = Search(PROBLEMS["amplifier"], seed=0)
    start, count = 104 if quick else 504, 64
    while search.runs < start:
        search.advance()
    spent = [second for _ in range(count // BATCH) for second in search.advance()]
    print(
        f"\nprocessor time of a proposal, {start} to {start + count} runs, fits included: "
        f"mean {1e3 * np.mean(spent):.1f} ms, largest {1e3 * max(spent):.0f} ms"
    )
    runs = 500 if quick else 5000
    growth, peak, seconds = fresh.submit(peak_memory, runs).result()
    print(
        f"first 8 proposals of a process, {runs} runs: peak memory {peak:.0f} MiB, "
        f"{growth:.0f} MiB of it for them; {seconds:.1f} s of processor time"
    )


def peak_memory(runs: int) -> tuple[float, float, float]:
    """Ask 8 times in a study of so many runs of the amplifier.

    Returns:
        Growth of the peak memory in MiB, the peak itself, and processor time in seconds. Right in a
        fresh process only.
    """
    problem = PROBLEMS["amplifier"]
    space = axes_of(problem.dimension)
    study = optuna.create_study(sampler=BoundarySampler(seed=0, space=space))
    unit = qmc.Sobol(problem.dimension, rng=0).random_base2((runs - 1).bit_length())[:runs]
    margins = problem.observe(unit, np.random.default_rng(0))
    for place, pair in zip(unit, margins, strict=True):
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(zip(space, map(float, place), strict=True)),
                distributions=space,
                value=0.0,
                user_attrs={"margins": [float(value) for value in pair]},
            )
        )
    before, begin = _peak(), time.process_time()
    for _ in range(BATCH):
        study.ask(space)
    return _peak() - before, _peak(), time.process_time() - begin


def _peak() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
