"""Designs: sequences of points that do not depend on results, and the Optuna sampler for them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from analysis.surface import ZERO_SHARE
from sweeps.search.space import distributions, to_params
from trainables.domain import Axis, Point


class SobolDesign:
    """A scrambled Sobol sequence over the free axes; any prefix covers the space evenly.

    Args:
        space: the axes.
        seed: seed of the scrambling.
    """

    size: int | None = None

    def __init__(self, space: Sequence[Axis], seed: int) -> None:
        self._space = tuple(space)
        self._seed = seed
        self._coordinates: NDArray[np.float64] = np.empty((0, 0))

    def __getitem__(self, index: int) -> Point:
        """Point number `index` of the sequence."""
        if index >= len(self._coordinates):
            free = sum(axis.free for axis in self._space)
            power = max(6, index.bit_length())
            generator = qmc.Sobol(max(free, 1), scramble=True, rng=self._seed % 2**63)
            self._coordinates = generator.random_base2(power)
        row = iter(self._coordinates[index])
        values = {}
        for axis in self._space:
            coordinate = next(row) if axis.free else 0.0
            if axis.zero:
                span = (coordinate - ZERO_SHARE) / (1 - ZERO_SHARE)
                coordinate = -1.0 if coordinate < ZERO_SHARE else span
            values[axis.name] = float(axis.from_unit(coordinate))
        return Point(**values)


class GridDesign:
    """All combinations of evenly spaced levels, in an order that refines: far points first.

    Args:
        space: the axes.
        levels: number of levels of each free axis (an extra zero level comes on top), or one
            number for all.
        seed: seed of the order.
    """

    def __init__(self, space: Sequence[Axis], levels: int | Mapping[str, int], seed: int) -> None:
        columns = []
        for axis in space:
            count = levels if isinstance(levels, int) else levels.get(axis.name, 8)
            values = list(axis.from_unit(np.linspace(0, 1, count if axis.free else 1)))
            columns.append([0.0, *values] if axis.zero else values)
        grid = [Point(*map(float, row)) for row in itertools.product(*columns)]
        # A shuffled grid ended early by its budget still covers the whole space.
        order = np.random.default_rng(abs(seed)).permutation(len(grid))
        self._points: list[Point] = [grid[i] for i in order]
        self.size: int | None = len(grid)

    def __getitem__(self, index: int) -> Point:
        """Point number `index` of the grid."""
        return self._points[index]


Design = SobolDesign | GridDesign


class DesignSampler(BaseSampler):
    """An Optuna sampler that hands out a design: trial n gets point n - offset.

    Args:
        space: the axes.
        design: the sequence of points.
        offset: number of trials that were enqueued before the design begins.
    """

    def __init__(self, space: Sequence[Axis], design: Design, offset: int = 0) -> None:
        self._space = tuple(space)
        self._design = design
        self._offset = offset

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All axes, always."""
        return distributions(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the design's point; nothing for a trial that was enqueued."""
        index = trial.number - self._offset
        return to_params(self._space, self._design[index]) if index >= 0 else {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Never needed by a sweep: a design covers all its axes."""
        raise NotImplementedError(f"the design has no axis {param_name}")
