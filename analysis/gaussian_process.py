"""A Gaussian process whose length scales may lie oblique to the axes.

Boundaries of training run oblique in log coordinates (lr x weight decay = 2 is a slanted line), and
a process with a length an axis, as libraries offer, spends its points on re-learning that slope
everywhere. Here the distance between points is ||(x - x') L|| with a full lower-triangular L.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

#: Variances of the constant and of each slope of the plane under the process.
PLANE = 4.0
JITTER = 1e-6
#: Mean and standard deviation of the normal priors on the logarithms of the diagonal of L, of the
#: variance and of the noise variance, and on the entries of L below its diagonal.
DIAGONAL = (np.log(2.5), 0.8)
BELOW = (0.0, 3.0)
VARIANCE = (0.0, 1.0)
NOISE = (np.log(0.2), 0.8)
#: Least noise variance, for values of +-1.5. The values are signs, which jump at a boundary, where
#: the process is smooth: with less noise it places the jump between two points with far too much
#: confidence (benchmarks/map_calibration.py prints expected against true error).
SMALLEST_NOISE = 0.15
ITERATIONS = 60


@dataclass(frozen=True)
class Hyperparameters:
    """What is fitted.

    Args:
        metric: L, lower triangular, (d, d); its diagonal holds inverse lengths.
        variance: of the Matern 3/2 part.
        noise: variance of the observations about the process.
    """

    metric: Array
    variance: float
    noise: float


class GaussianProcess:
    """Matern 3/2 with a full metric, plus a constant and a plane, plus noise.

    The hyperparameters are the most probable ones (L-BFGS from several fixed starts, so that the
    same data give the same process).

    Args:
        x: inputs, (n, d), of order one and centred near 0.
        y: values, (n,).
        hyperparameters: given ones instead of fitted ones.
    """

    def __init__(self, x: Array, y: Array, hyperparameters: Hyperparameters | None = None) -> None:
        self._x = np.asarray(x, dtype=np.float64)
        self.hyperparameters = hyperparameters or fit(self._x, y)
        covariance = _covariance(self._x, self._x, self.hyperparameters)
        covariance[np.diag_indices(len(x))] += self.hyperparameters.noise + JITTER
        self._factor = cho_factor(covariance, lower=True)
        self._weights = cho_solve(self._factor, y)

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, noise included, of a value at (m, d) inputs."""
        cross = _covariance(x, self._x, self.hyperparameters)
        mean = cross @ self._weights
        half = solve_triangular(self._factor[0], cross.T, lower=True)
        prior = self.hyperparameters.variance + PLANE * (1 + (x**2).sum(1))
        variance = np.maximum(prior - (half**2).sum(0), 0.0)
        return mean, np.sqrt(variance + self.hyperparameters.noise)


def _covariance(first: Array, second: Array, at: Hyperparameters) -> Array:
    one, two = first @ at.metric, second @ at.metric
    square = (one**2).sum(1)[:, None] + (two**2).sum(1)[None, :] - 2 * one @ two.T
    scaled = np.sqrt(3 * np.maximum(square, 0))
    matern: Array = at.variance * (1 + scaled) * np.exp(-scaled)
    return matern + PLANE * (1 + first @ second.T)


def fit(x: Array, y: Array) -> Hyperparameters:
    """The most probable hyperparameters of (n, d) inputs and (n,) values."""
    d = x.shape[1]
    lower = np.tril_indices(d, -1)
    best, least = None, np.inf
    for slope, length in product((0.0, 3.0, -3.0) if d > 1 else (0.0,), (2.5, 6.0)):
        start = np.concatenate(
            [np.full(d, np.log(length)), np.full(len(lower[0]), slope), [VARIANCE[0], NOISE[0]]]
        )
        found = minimize(
            _objective, start, args=(x, y), jac=True, method="L-BFGS-B",
            options={"maxiter": ITERATIONS},
        )  # fmt: skip
        if found.fun < least:
            best, least = found.x, found.fun
    assert best is not None
    return _unpack(best, d)


def _unpack(raw: Array, d: int) -> Hyperparameters:
    metric = np.diag(np.exp(np.clip(raw[:d], -4, 4)))
    metric[np.tril_indices(d, -1)] = raw[d:-2]
    variance, noise = np.exp(np.clip(raw[-2:], -8, 6))
    return Hyperparameters(metric, float(variance), SMALLEST_NOISE + float(noise))


def _objective(raw: Array, x: Array, y: Array) -> tuple[float, Array]:
    """Minus the log posterior of the raw hyperparameters, and its gradient."""
    n, d = x.shape
    at = _unpack(raw, d)
    image = x @ at.metric
    norms = (image**2).sum(1)
    square = norms[:, None] + norms[None, :] - 2 * image @ image.T
    scaled = np.sqrt(3 * np.maximum(square, 0))
    decay = np.exp(-scaled)
    matern = at.variance * (1 + scaled) * decay
    covariance = matern + PLANE * (1 + x @ x.T)
    covariance[np.diag_indices(n)] += at.noise + JITTER
    factor = cho_factor(covariance, lower=True)
    weights = cho_solve(factor, y)
    value = 0.5 * y @ weights + np.log(np.diag(factor[0])).sum()
    # d value / d covariance; its trace with d covariance / d parameter is each gradient.
    slope = 0.5 * (cho_solve(factor, np.eye(n)) - np.outer(weights, weights))
    # sum_ab w_ab (x_a - x_b)_i (z_a - z_b)_j for symmetric w, without forming the differences.
    inner = -3 * at.variance * slope * decay
    by_metric = 2 * (x.T @ (inner.sum(1)[:, None] * image) - x.T @ inner @ image)
    gradient = np.concatenate(
        [
            np.diag(by_metric) * np.diag(at.metric),
            by_metric[np.tril_indices(d, -1)],
            [(slope * matern).sum(), (at.noise - SMALLEST_NOISE) * np.trace(slope)],
        ]
    )
    below = d * (d - 1) // 2
    priors = [DIAGONAL] * d + [BELOW] * below + [VARIANCE, NOISE]
    means, deviations = np.array(priors).T
    distance = (raw - means) / deviations
    return float(value + 0.5 * distance @ distance), gradient + distance / deviations
