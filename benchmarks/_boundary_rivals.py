"""The other ways to map regimes, for `boundary.py`.

A rival is an iterator over what it has evaluated so far, as points and labels, that stops at every
moment at which it can be checked:

- `grid`: the centres of n^d equal cells, at every complete n. Each n is a fresh set of runs.
- `sobol`: a scrambled Sobol sequence, every 8 runs.
- `quadtree`: cells with unlike corners are split in 2^d, the largest first; after the split that
  completes 8 runs or more.
- `optuna_search`: an Optuna sampler that minimises the smaller distance to a boundary,
  min(|stable|, |bounded|), told each result before it is asked again; every 8 runs.

All are read as a map by the label of the nearest point.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.stats import qmc

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
#: Unit coordinates (n, d) to margins (n, 2) and labels (n,), as runs report them.
Measure = Callable[[Array], tuple[Array, Labels]]
#: Points (n, d) that were run, and their labels (n,).
Sample = tuple[Array, Labels]
BATCH = 8


def grid(measure: Measure, dimension: int, sides: Sequence[int]) -> Iterator[Sample]:
    """Complete grids of the given sides."""
    for side in sides:
        centres = [(np.arange(side) + 0.5) / side] * dimension
        x = np.stack(np.meshgrid(*centres, indexing="ij"), -1).reshape(-1, dimension)
        yield x, measure(x)[1]


def sobol(measure: Measure, dimension: int, limit: int, seed: int) -> Iterator[Sample]:
    """A scrambled Sobol sequence."""
    points = qmc.Sobol(dimension, scramble=True, rng=seed).random_base2((limit - 1).bit_length())
    found: Labels = np.empty(0, dtype=np.int64)
    for runs in range(BATCH, limit + 1, BATCH):
        found = np.append(found, measure(points[runs - BATCH : runs])[1])
        yield points[:runs], found


# --------------------------------------------------------------------------- quadtree

#: Cells a side that the quadtree begins with, and how often one can be halved.
COARSE = 3
DEPTH = 12

#: A place in whole numbers: unit coordinates times `COARSE` 2^`DEPTH`.
Place = tuple[int, ...]


def quadtree(measure: Measure, dimension: int, limit: int, seed: int) -> Iterator[Sample]:
    """Cells of the smallest kind last; cells of one size in a random order.

    Args:
        measure: runs points.
        dimension: number of axes.
        limit: no cell is split once so many points were run.
        seed: seed of the order.
    """
    random = np.random.default_rng(seed)
    known: dict[Place, int] = {}

    def learn(places: Iterable[Place]) -> None:
        new = [place for place in dict.fromkeys(places) if place not in known]
        if new:
            found = measure(np.array(new) / (COARSE << DEPTH))[1]
            known.update(zip(new, map(int, found), strict=True))

    def sample() -> Sample:
        return np.array(list(known)) / (COARSE << DEPTH), np.array(list(known.values()))

    learn(_lattice((0,) * dimension, 1 << DEPTH, COARSE))
    yield sample()
    checked = len(known)
    level = _lattice((0,) * dimension, 1 << DEPTH, COARSE - 1)
    for size in (1 << power for power in range(DEPTH, 0, -1)):
        children: list[Place] = []
        for index in random.permutation(len(level)):
            corners = _lattice(level[index], size, 1)
            if len({known[corner] for corner in corners}) == 1:
                continue
            learn(_lattice(level[index], size // 2, 2))
            children += _lattice(level[index], size // 2, 1)
            if len(known) >= checked + BATCH:
                checked = len(known)
                yield sample()
            if len(known) >= limit:
                return
        level = children


def _lattice(corner: Place, spacing: int, count: int) -> list[Place]:
    """The (count + 1)^d places from a corner on, `spacing` apart."""
    steps = itertools.product(range(0, count * spacing + 1, spacing), repeat=len(corner))
    return [tuple(c + s for c, s in zip(corner, step, strict=True)) for step in steps]


# --------------------------------------------------------------------------- Optuna


def axes_of(dimension: int) -> dict[str, optuna.distributions.BaseDistribution]:
    """Unit coordinates as Optuna's parameters x0, x1, ..."""
    return {f"x{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(dimension)}


def optuna_search(
    sampler: optuna.samplers.BaseSampler, measure: Measure, dimension: int, limit: int
) -> Iterator[Sample]:
    """A sampler that minimises min(|stable|, |bounded|), one run after the other."""
    study = optuna.create_study(sampler=sampler)
    space = axes_of(dimension)
    points: list[list[float]] = []
    found: list[int] = []
    for runs in range(1, limit + 1):
        trial = study.ask(space)
        points.append([trial.params[name] for name in space])
        margins, label = measure(np.array(points[-1:]))
        found.append(int(label[0]))
        study.tell(trial, float(np.abs(margins).min()))
        if runs % BATCH == 0:
            yield np.array(points), np.array(found)
