"""A Gaussian process that classifies points, with length scales oblique to the axes.

What is learned is a sign: on which side of a boundary a training falls. A margin may jump at its
boundary (a training that amplifies at all soon saturates, one that explodes does so by powers of
ten), so a process through all margins' sizes would misplace it. A process that only has to have the
right sign may cross 0 as smoothly as the boundary is smooth, and follows it between points. Sizes
near the boundary say more where they do fall to 0 little by little (`analysis.graded`).

Boundaries run oblique in logarithmic coordinates (lr x weight decay = 2 is a slanted line). Hence
the distance between points is ||(x - x') L|| with a full lower-triangular L, and a plane of a
variance of its own under the process: boundaries are planes to a first approximation. A third part
of a short length makes room for boundaries that are rough at every scale, as fractal ones are:
without it the process is too sure between their points.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotrs
from scipy.optimize import minimize

from analysis.expectation_propagation import Sites, Sizes, moments, propagate
from analysis.graded import Graded

Array = NDArray[np.float64]

JITTER = 1e-6
#: Mean and standard deviation of the normal priors on the logarithms of the diagonal of L, on the
#: entries of L below it, and on the logarithms of both variances. Wide: the unit of the latent
#: function is the width of the zone where labels are mixed, which is narrow.
DIAGONAL = (np.log(2.5), 0.8)
BELOW = (0.0, 3.0)
VARIANCE = (np.log(30.0), 1.5)
PLANE = (7.0, 3.0)
ROUGHNESS = (0.0, 2.0)
BOUNDS_DIAGONAL = (-2.5, 4.0)
BOUNDS_BELOW = (-30.0, 30.0)
BOUNDS_VARIANCE = (-2.0, 8.0)
BOUNDS_PLANE = (-2.0, 10.0)
BOUNDS_ROUGHNESS = (-7.0, 8.0)
#: Logarithm of the scale that takes a side's limit to 3, and the deviation of its prior. A limit is
#: at most 22 deviations of the noise: real trainings are fitted with 4 to 30, and a process that is
#: surer of the sizes of ideal ones has boundaries so sharp that no table or grid shows them.
SCALE = (np.log(3.0), 2.0)
BOUNDS_SCALE = (-6.0, 2.0)
#: Length of the rough part, in the units of the inputs.
ROUGH_LENGTH = 0.05
#: A climb ends after so many steps, or with one that gains less than this share of the objective.
ITERATIONS = 25
LEAST_GAIN = 1e7 * float(np.finfo(np.float64).eps)
#: The same where fewer points have shown the way: some thousandths in the logarithm of the
#: posterior tell no hyperparameters apart.
LEAST_GAIN_NEAR = 1e-4
#: Logarithms of variances to which a start is softened: an objective of labels is flat where the
#: process is far too sure of some of them.
SOFT = (3.0, 5.0, 3.0)


@dataclass(frozen=True)
class Hyperparameters:
    """What is fitted.

    Args:
        metric: L, lower triangular, (d, d); its diagonal holds inverse lengths. Columns that
            indicate a category have entries on the diagonal alone.
        variance: of the Matern 3/2 part.
        plane: variance of the constant and of each slope of the plane.
        roughness: variance of a Matern 1/2 part of length ROUGH_LENGTH, equal in all directions.
        scales: how far an observation lies from 0 for each unit of its margin, for each side that
            `Graded` counts.
    """

    metric: Array
    variance: float
    plane: float
    roughness: float
    scales: tuple[float, ...] = ()

    def covariance(self, first: Array, second: Array) -> Array:
        """(n, m) prior covariances between (n, d) and (m, d) inputs."""
        scaled = _scaled_distance(first @ self.metric, second @ self.metric)
        matern: Array = self.variance * (1 + scaled) * np.exp(-scaled)
        smooth = matern + self.plane * (1 + first @ second.T)
        return smooth + self.roughness * _rough(first, second)

    def prior_variance(self, x: Array) -> Array:
        """(n,) prior variances at (n, d) inputs."""
        plane: Array = self.plane * (1 + (x**2).sum(1))
        return self.variance + self.roughness + plane


def _distance(one: Array, two: Array) -> Array:
    square = (one**2).sum(1)[:, None] + (two**2).sum(1)[None, :] - 2 * one @ two.T
    distance: Array = np.sqrt(np.maximum(square, 0))
    return distance


def _scaled_distance(one: Array, two: Array) -> Array:
    scaled: Array = np.sqrt(3) * _distance(one, two)
    return scaled


def _rough(one: Array, two: Array) -> Array:
    decay: Array = np.exp(-_distance(one, two) / ROUGH_LENGTH)
    return decay


class Classifier:
    """The process given labels at points.

    Args:
        x: inputs, (n, d), of order one and centred near 0.
        labels: +1 or -1 at each, (n,).
        hyperparameters: from `fit`, or chosen.
        start: precisions and shifts of the sites of the first points, from an earlier process.
        graded: sizes of margins, if `hyperparameters` has scales for them.
    """

    def __init__(
        self,
        x: Array,
        labels: Array,
        hyperparameters: Hyperparameters,
        start: tuple[Array, Array] | None = None,
        graded: Graded | None = None,
    ) -> None:
        self.hyperparameters = hyperparameters
        self.inputs = np.asarray(x, dtype=np.float64)
        covariance = _jittered(hyperparameters.covariance(self.inputs, self.inputs))
        sizes = None if graded is None else graded.sizes(hyperparameters.scales)
        self.sites = propagate(covariance, labels, start, sizes)
        self._weights = _weights(self.sites, covariance)

    def half(self, x: Array) -> tuple[Array, Array]:
        """Means at (m, d) inputs, and the (n, m) matrix H with covariance = prior - H' H there."""
        cross = self.hyperparameters.covariance(self.inputs, x)
        half = solve_triangular(
            self.sites.factor, self.sites.root[:, None] * cross, lower=True, check_finite=False
        )
        return cross.T @ self._weights, half

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and variance of the latent function at (m, d) inputs."""
        mean, half = self.half(x)
        prior = self.hyperparameters.prior_variance(x)
        return mean, np.maximum(prior - (half**2).sum(0), JITTER)


def _jittered(covariance: Array) -> Array:
    covariance.flat[:: len(covariance) + 1] *= 1 + JITTER
    return covariance


def _weights(sites: Sites, covariance: Array) -> Array:
    """(K + site variances)^-1 times the site means, without dividing by a precision."""
    pulled = sites.root * (covariance @ sites.shift)
    weights: Array = sites.shift - sites.root * _solve(sites.factor, pulled)
    return weights


def _solve(factor: Array, right: Array) -> Array:
    """Solve with a matrix whose lower Cholesky factor is given.

    LAPACK itself: scipy's checks take as long as the work where there are few points.
    """
    solution, _ = dpotrs(factor, right, lower=True)
    return solution  # type: ignore[no-any-return]


def fit(
    x: Array,
    labels: Array,
    indicators: int = 0,
    near: Hyperparameters | None = None,
    graded: Graded | None = None,
) -> Hyperparameters:
    """The most probable hyperparameters: a function of its arguments alone.

    The objective has several optima, so it is climbed from several starts.

    Args:
        x: inputs, (n, d), of order one and centred near 0.
        labels: +1 or -1 at each, (n,).
        indicators: how many of the last columns indicate categories.
        near: those of fewer points, or of the labels alone, to start from; None for fixed starts
            alone.
        graded: sizes of margins; None for labels alone.
    """
    size = _Size(x.shape[1], indicators, () if graded is None else graded.limits)
    if abs(labels.sum()) == len(labels):  # one sign alone says nothing about lengths
        return size.unpack(size.means)
    starts, least = list(size.starts()), LEAST_GAIN
    if near is not None:
        raw = size.pack(near)
        softened = raw.copy()
        softened[size.heights] = SOFT
        starts, least = [raw, softened], LEAST_GAIN_NEAR
    climbed = [_climb(_Objective(size, x, labels, graded), start, least) for start in starts]
    best, _ = min(climbed, key=itemgetter(1))
    return size.unpack(_climb(_Objective(size, x, labels, graded), best, least)[0])


def _climb(objective: _Objective, start: Array, least: float) -> tuple[Array, float]:
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=objective.size.bounds(),
        options={"maxiter": ITERATIONS, "ftol": least},
    )  # fmt: skip
    return found.x, float(found.fun)


@dataclass(frozen=True)
class _Size:
    """How the hyperparameters of d inputs are written as one vector."""

    d: int
    indicators: int = 0
    limits: tuple[float, ...] = ()

    @cached_property
    def below(self) -> tuple[NDArray[np.int_], ...]:
        """Indices of the free entries of L below its diagonal."""
        return np.tril_indices(self.d - self.indicators, -1)

    def _repeat(self, diagonal: Any, below: Any, *variances: Any) -> list[Any]:
        return [diagonal] * self.d + [below] * len(self.below[0]) + list(variances)

    @property
    def heights(self) -> slice:
        """Where the variances stand."""
        first = self.d + len(self.below[0])
        return slice(first, first + len(SOFT))

    def _scales(self) -> Array:
        logs: Array = SCALE[0] - np.log(self.limits)
        return logs

    @cached_property
    def means(self) -> Array:
        return np.array([prior[0] for prior in self._priors()])

    @cached_property
    def deviations(self) -> Array:
        return np.array([prior[1] for prior in self._priors()])

    def _priors(self) -> list[tuple[float, float]]:
        scales = [(mean, SCALE[1]) for mean in self._scales()]
        return self._repeat(DIAGONAL, BELOW, VARIANCE, PLANE, ROUGHNESS, *scales)

    def bounds(self) -> list[tuple[float, float]]:
        scales = [(mean + BOUNDS_SCALE[0], mean + BOUNDS_SCALE[1]) for mean in self._scales()]
        heights = BOUNDS_VARIANCE, BOUNDS_PLANE, BOUNDS_ROUGHNESS
        return self._repeat(BOUNDS_DIAGONAL, BOUNDS_BELOW, *heights, *scales)

    def starts(self) -> Iterable[Array]:
        """Fixed starts: slanted neither way and both ways."""
        for slope in (0.0, 3.0, -3.0) if len(self.below[0]) else (0.0,):
            heights = VARIANCE[0], PLANE[0], ROUGHNESS[0]
            yield np.array(self._repeat(DIAGONAL[0], slope, *heights, *self._scales()))

    def pack(self, at: Hyperparameters) -> Array:
        """As a vector; scales that are not there begin where their priors have them."""
        heights = np.log([at.variance, at.plane, at.roughness])
        fits = len(at.scales) == len(self.limits)
        scales = np.log(at.scales) if fits else self._scales()
        return np.concatenate([np.log(np.diag(at.metric)), at.metric[self.below], heights, scales])

    def unpack(self, raw: Array) -> Hyperparameters:
        heights = self.heights
        metric = np.diag(np.exp(raw[: self.d]))
        metric[self.below] = raw[self.d : heights.start]
        scales = tuple(np.exp(raw[heights.stop :]).tolist())
        variance, plane, roughness = np.exp(raw[heights]).tolist()
        return Hyperparameters(metric, variance, plane, roughness, scales)


class _Objective:
    """Minus the log posterior of the raw hyperparameters, and its gradient."""

    def __init__(self, size: _Size, x: Array, labels: Array, graded: Graded | None = None) -> None:
        self.size, self._x, self._labels, self._graded = size, x, labels, graded
        self._planes, self._rough = 1 + x @ x.T, _rough(x, x)
        self._start: tuple[Array, Array] | None = None

    def __call__(self, raw: Array) -> tuple[float, Array]:
        at, x = self.size.unpack(raw), self._x
        image = x @ at.metric
        scaled = _scaled_distance(image, image)
        decay = np.exp(-scaled)
        matern, plane = at.variance * (1 + scaled) * decay, at.plane * self._planes
        rough = at.roughness * self._rough
        covariance = _jittered(matern + plane + rough)
        sizes = None if self._graded is None else self._graded.sizes(at.scales)
        sites = propagate(covariance, self._labels, self._start, sizes)
        # d value / d covariance: its trace with d covariance / d parameter is each gradient.
        root, weights = sites.root, _weights(sites, covariance)
        slope = root[:, None] * _solve(sites.factor, np.diag(root))
        slope = 0.5 * (slope - weights[:, None] * weights)
        # sum_ab w_ab (x_a - x_b)_i (z_a - z_b)_j for symmetric w, without forming the differences.
        inner = -3 * at.variance * slope * decay
        by_metric = 2 * (x.T @ (inner.sum(1)[:, None] * image) - x.T @ inner @ image)
        gradient = np.concatenate(
            [
                np.diag(by_metric) * np.diag(at.metric),
                by_metric[self.size.below],
                [(slope * matern).sum(), (slope * plane).sum(), (slope * rough).sum()],
                self._by_scale(sites, sizes),
            ]
        )
        distance = (raw - self.size.means) / self.size.deviations
        value = float(0.5 * distance @ distance - sites.log_evidence)
        if self._graded is not None:  # the density of a margin is that of f + e times its scale
            value -= float(np.log(at.scales)[self._graded.side] @ self._graded.exact)
        self._start = sites.precision, sites.shift
        return value, gradient + distance / self.size.deviations

    def _by_scale(self, sites: Sites, sizes: Sizes | None) -> Array:
        """Derivatives in the logarithms of the scales: only what is observed depends on them."""
        if self._graded is None or sizes is None:
            return np.empty(0)
        mean, variance = sites.leave_one_out
        _, slope, _ = moments(self._labels, sizes, mean, variance)
        each = slope * self._labels * sizes.at - sizes.exact
        sides = np.arange(len(self._graded.limits))
        totals: Array = (self._graded.side == sides[:, None]) @ each
        return totals
