"""The fitted model of the two margins, which the map draws on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from analysis.gaussian_process import GaussianProcess
from trainables.domain import Axis, InputError, Mistake

Array = NDArray[np.float64]


#: Value that stands for a positive margin; its negative stands for a negative one.
CALM = 1.5


class Field:
    """A Gaussian process through the signs of one margin.

    A margin jumps at its boundary (a training that amplifies at all soon saturates, one that
    explodes does so by powers of ten), and by different amounts on the two sides. A smooth process
    through the sizes therefore misplaces the zero; through the signs it does not, and the sizes
    were measured to add nothing.

    Args:
        x: unit coordinates, (points, free axes).
        margins: the margin at each, finite; 0 counts as calm.
    """

    def __init__(self, x: Array, margins: Array) -> None:
        # One thread: on matrices of this size more of them cost time, and the number of threads
        # would show in the last bits of a map.
        with threadpool_limits(1):
            self._process = GaussianProcess(x - 0.5, np.where(margins < 0, -CALM, CALM))

    def standardised(self, x: Array) -> Array:
        """Mean over standard deviation at unit coordinates x: how surely the margin is positive."""
        with threadpool_limits(1):
            mean, deviation = self._process.predict(x - 0.5)
        return mean / deviation


@dataclass(frozen=True)
class Surface:
    """Both margins as functions of the axes, with the probabilities of the three regimes.

    Args:
        axes: all axes of the sweep; only the free ones enter.
        stable: field of the stable/restrained margin.
        bounded: field of the bounded/divergent margin.
    """

    axes: tuple[Axis, ...]
    stable: Field
    bounded: Field

    @classmethod
    def fit(cls, axes: Sequence[Axis], points: Array, margins: Array) -> Surface:
        """Fit both fields.

        Args:
            axes: lr, alpha, weight_decay.
            points: (n, 3) values on the axes.
            margins: (n, 2) margins, stable then bounded.

        Raises:
            InputError: there is no point to fit.
        """
        if not len(points):
            raise InputError(
                [
                    Mistake(
                        "points",
                        0,
                        "a map needs at least one finished point",
                        "wait for the first results, or run the sweep",
                    )
                ]
            )
        x = unit_coordinates(axes, points)
        return cls(tuple(axes), Field(x, margins[:, 0]), Field(x, margins[:, 1]))

    def probabilities(self, points: Array) -> Array:
        """(n, 3) probabilities of stable, restrained and divergent at (n, 3) axis values."""
        x = unit_coordinates(self.axes, points)
        divergent = ndtr(-self.bounded.standardised(x))
        stable = ndtr(self.stable.standardised(x)) * (1 - divergent)
        rest = np.clip(1 - divergent - stable, 0.0, 1.0)
        return np.stack([stable, rest, divergent], axis=1)


def unit_coordinates(axes: Sequence[Axis], points: Array) -> Array:
    """(n, free axes) unit coordinates of (n, 3) axis values; one zero column if none is free."""
    columns = [axis.to_unit(points[:, i]) for i, axis in enumerate(axes) if axis.free]
    return np.stack(columns, axis=1) if columns else np.zeros((len(points), 1))
