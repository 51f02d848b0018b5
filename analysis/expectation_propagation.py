"""Labels of both signs under a Gaussian prior: expectation propagation.

A label y = +-1 is seen with probability LAPSE + (1 - 2 LAPSE) Phi(y f) where the latent function
is f. Each label is replaced by a Gaussian factor in f (a site) such that mean and variance at its
point are those that the true factor would give (Minka, UAI 2001; Rasmussen and Williams, Gaussian
Processes for Machine Learning, section 3.6). All sites are updated at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import log_ndtr, ndtr

Array = NDArray[np.float64]

#: Probability that a label is wrong however far its point lies from the boundary.
LAPSE = 1e-3
TOLERANCE = 1e-3
SWEEPS = 100
SMALLEST = 1e-10


@dataclass(frozen=True)
class Sites:
    """The Gaussian factors that stand for the labels.

    Args:
        precision: inverse variance of each, (n,).
        shift: precision times mean of each, (n,).
        factor: Cholesky factor of 1 + S K S, with S the square roots of the precisions.
        log_evidence: logarithm of the probability of all labels.
        leave_one_out: mean and variance of f at each point given all other labels, (2, n).
    """

    precision: Array
    shift: Array
    factor: Array
    log_evidence: float
    leave_one_out: Array

    @property
    def root(self) -> Array:
        """S, the square roots of the precisions."""
        return np.sqrt(self.precision)


def label_moments(label: Array, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """What a label does to a Gaussian.

    Args:
        label: +1 or -1.
        mean: of f before the label is known.
        variance: of f then; shapes that broadcast.

    Returns:
        Logarithm Z of the label's probability, dZ / d mean and d2Z / d mean2. With the label the
        mean moves by variance dZ, the variance by variance^2 d2Z.
    """
    width = np.sqrt(1 + variance)
    z = label * mean / width
    log_probability = np.logaddexp(np.log(LAPSE), np.log1p(-2 * LAPSE) + log_ndtr(z))
    density = -0.5 * z * z - 0.5 * np.log(2 * np.pi) + np.log1p(-2 * LAPSE)
    ratio = np.exp(density - log_probability)
    return (
        log_probability,
        label * ratio / width,
        -(ratio**2 + ratio * z) / (1 + variance),
    )


def label_probability(mean: Array, variance: Array) -> Array:
    """Probability that the label at f ~ N(mean, variance) is +1, apart from lapses."""
    probability: Array = ndtr(mean / np.sqrt(1 + variance))
    return probability


def propagate(covariance: Array, labels: Array, start: tuple[Array, Array] | None = None) -> Sites:
    """Find the sites of labels.

    Args:
        covariance: prior covariance K of f at the points, (n, n).
        labels: +1 or -1 at each, (n,).
        start: precisions and shifts to begin from, near the result: of some of the points, or of
            a similar covariance. They change the effort, and the result within the tolerance. (From
            far away labels may be given up as lapses, which is a solution too, a worse one.)
    """
    n = len(labels)
    if start is not None:
        sites, settled = _sweep(covariance, labels, *start)
        if settled:
            return sites
    return _sweep(covariance, labels, np.zeros(n), np.zeros(n))[0]


def _sweep(covariance: Array, labels: Array, precision: Array, shift: Array) -> tuple[Sites, bool]:
    """Update all sites until they stay, and say whether they do."""
    n = len(labels)
    for sweep in range(SWEEPS):
        root = np.sqrt(precision)
        scaled = root[:, None] * covariance
        inner = scaled * root
        inner[np.diag_indices(n)] += 1
        factor = cholesky(inner, lower=True, overwrite_a=True, check_finite=False)
        half = solve_triangular(factor, scaled, lower=True, check_finite=False)
        variance = np.maximum(np.diag(covariance) - (half**2).sum(0), SMALLEST)
        mean = covariance @ shift - half.T @ (half @ shift)
        others = np.maximum(1 / variance - precision, SMALLEST)
        other_mean = (mean / variance - shift) / others
        log_z, slope, bend = label_moments(labels, other_mean, 1 / others)
        # A lapse can bend the wrong way; a site of next to no precision then leaves it out.
        bend = np.minimum(bend, -SMALLEST)
        left = np.maximum(1 + bend / others, SMALLEST)
        better = np.clip(-bend / left, SMALLEST, 1 / SMALLEST)
        settled = bool((np.abs(better - precision) < TOLERANCE * (0.01 + precision)).all())
        if settled or sweep == SWEEPS - 1:
            break  # before a step, so that sites and factor fit together
        step = _step(sweep)
        shift = shift + step * ((slope - other_mean * bend) / left - shift)
        precision = precision + step * (better - precision)
    evidence = (
        log_z.sum()
        + 0.5 * np.log1p(precision / others).sum()
        - np.log(np.diag(factor)).sum()
        + 0.5 * (shift @ mean - (shift**2 / (others + precision)).sum())
        + 0.5
        * (other_mean * others / (precision + others) * (precision * other_mean - 2 * shift)).sum()
    )
    moments = np.stack([other_mean, 1 / others])
    return Sites(precision, shift, factor, float(evidence), moments), settled


def _step(sweep: int) -> float:
    """Shorter and shorter: updates of all sites at once overshoot where labels contradict."""
    return 1.0 if sweep == 0 else 0.9 if sweep < 8 else 0.5 if sweep < 30 else 0.2
