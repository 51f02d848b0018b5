"""The fitted model of the two margins, which the map draws on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from trainables.domain import Axis, InputError, Mistake

Array = NDArray[np.float64]


def squash(margins: Array) -> Array:
    """Margins to (-1, 1), sign kept: m / (|m| + median |m|).

    Margins of divergent runs reach thousands, those near a boundary thousandths; what counts for
    the boundary is the sign and the neighbourhood of 0.
    """
    scale = max(float(np.median(np.abs(margins))), 1e-12)
    return margins / (np.abs(margins) + scale)


class Field:
    """A Gaussian process through one margin: Matern 3/2 with a length a free axis, plus a plane.

    Args:
        x: unit coordinates, (points, free axes).
        margins: the margin at each, finite.
    """

    def __init__(self, x: Array, margins: Array) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import (
            ConstantKernel,
            DotProduct,
            Matern,
            WhiteKernel,
        )

        lengths = np.full(x.shape[1], 0.4)
        kernel = (
            ConstantKernel(1.0, (1e-2, 1e2)) * Matern(lengths, (0.05, 10.0), nu=1.5)
            + ConstantKernel(4.0, "fixed") * DotProduct(1.0, "fixed")
            + WhiteKernel(1e-2, (1e-4, 0.5))
        )
        self._process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
        with warnings.catch_warnings():
            # A length or a noise at its bound is expected where a margin hardly varies.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(x - 0.5, squash(margins))
        self._noise = float(self._process.kernel_.k2.noise_level)

    def standardised(self, x: Array) -> Array:
        """Mean over standard deviation of the noise-free margin at unit coordinates x."""
        mean, deviation = self._process.predict(x - 0.5, return_std=True)
        variance = np.maximum(deviation**2 - self._noise, 1e-8)
        return np.asarray(mean / np.sqrt(variance), dtype=np.float64)


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
