"""Labels of both signs under a Gaussian prior: expectation propagation.

A label y = +-1 is seen with probability LAPSE + (1 - 2 LAPSE) Phi(y f) where the latent function
is f. Each label is replaced by a Gaussian factor in f (a site) such that mean and variance at its
point are those that the true factor would give (Minka, UAI 2001; Rasmussen and Williams, Gaussian
Processes for Machine Learning, section 3.6). All sites are updated at once.

With lapses there are several solutions: one of them gives up every label as a lapse. Without them
the problem is log-concave and has one. So the sites are first found without lapses, and from there
with them: what is found does not depend on where it began.

A label is the sign of f + e, e normal of variance 1. Where more is known of f + e than its sign
(`Sizes`), it is either that number itself, whose factor is a Gaussian, or that it lies beyond one.
This is Tobin's model of censored observations (Econometrica 26, 1958).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dtrtrs
from scipy.special import log_ndtr, ndtr

Array = NDArray[np.float64]

#: Probability that a label is wrong however far its point lies from the boundary.
LAPSE = 1e-3
LOG_LAPSE = float(np.log(LAPSE))
LOG_ROOT = 0.5 * float(np.log(2 * np.pi))
#: How much sites may still change when they count as settled: their precisions in units of those of
#: f at their points, their shifts in units of the square roots. The first is that without lapses.
ROUGHLY = 0.1
TOLERANCE = 1e-3
SWEEPS = 100
SMALLEST = 1e-10


@dataclass(frozen=True)
class Sizes:
    """What is known of observations f + e beyond their signs.

    Args:
        at: how far each lies from 0, (n,), not negative; 0 where its sign is all that is known.
        exact: whether it lies there, (n,); if not, there or farther away.
    """

    at: Array
    exact: NDArray[np.bool_]


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


def label_moments(
    label: Array, mean: Array, variance: Array, log_lapse: float = LOG_LAPSE
) -> tuple[Array, Array, Array]:
    """What a label does to a Gaussian.

    Args:
        label: +1 or -1.
        mean: of f before the label is known.
        variance: of f then; shapes that broadcast.
        log_lapse: logarithm of the probability that a label is wrong anywhere.

    Returns:
        Logarithm Z of the label's probability, dZ / d mean and d2Z / d mean2. With the label the
        mean moves by variance dZ, the variance by variance^2 d2Z.
    """
    width = np.sqrt(1 + variance)
    z = label * mean / width
    log_valid = np.log1p(-2 * np.exp(log_lapse))
    log_probability = log_valid + log_ndtr(z)
    if log_lapse > -np.inf:
        log_probability = np.logaddexp(log_lapse, log_probability)
    density = log_valid - 0.5 * z * z - LOG_ROOT
    ratio = np.exp(density - log_probability)
    return (
        log_probability,
        label * ratio / width,
        -(ratio**2 + ratio * z) / (1 + variance),
    )


def moments(
    labels: Array, sizes: Sizes | None, mean: Array, variance: Array, log_lapse: float = LOG_LAPSE
) -> tuple[Array, Array, Array]:
    """`label_moments` of observations of which more than the sign may be known.

    Of an exact one Z is its density. Lapses are of signs alone.
    """
    if sizes is None:
        return label_moments(labels, mean, variance, log_lapse)
    signed = labels * sizes.at
    beyond = label_moments(labels, mean - signed, variance, log_lapse)
    total = 1 + variance
    slope = (signed - mean) / total
    exact = (
        -0.5 * (slope**2 * total + np.log(total)) - LOG_ROOT,
        slope,
        np.broadcast_to(-1 / total, slope.shape),
    )
    log_z, first, second = (
        np.where(sizes.exact, one, other) for one, other in zip(exact, beyond, strict=True)
    )
    return log_z, first, second


def label_probability(mean: Array, variance: Array) -> Array:
    """Probability that the label at f ~ N(mean, variance) is +1, apart from lapses."""
    probability: Array = ndtr(mean / np.sqrt(1 + variance))
    return probability


def propagate(
    covariance: Array,
    labels: Array,
    start: tuple[Array, Array] | None = None,
    sizes: Sizes | None = None,
) -> Sites:
    """Find the sites of labels.

    Args:
        covariance: prior covariance K of f at the points, (n, n).
        labels: +1 or -1 at each, (n,).
        start: precisions and shifts to begin from. They change the effort, and the result within
            the tolerance.
        sizes: what is known beyond the labels; None for nothing.
    """
    seen = _Seen(labels, sizes)
    if start is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            sites, settled = _settle(covariance, seen, *start)
        if settled:
            return sites  # else the start was so far off that it did not get there, or overflowed
    return _settle(covariance, seen, np.zeros(len(labels)), np.zeros(len(labels)))[0]


@dataclass(frozen=True)
class _Seen:
    """All observations."""

    labels: Array
    sizes: Sizes | None

    def moments(self, mean: Array, variance: Array, log_lapse: float) -> tuple[Array, Array, Array]:
        return moments(self.labels, self.sizes, mean, variance, log_lapse)


def _settle(covariance: Array, seen: _Seen, precision: Array, shift: Array) -> tuple[Sites, bool]:
    """Sites, first without lapses and then with them; and whether both stay."""
    state = _State.of(covariance, precision, shift)
    state, _, roughly = _sweep(covariance, seen, state, -np.inf, ROUGHLY)
    state, log_z, settled = _sweep(covariance, seen, state, LOG_LAPSE, TOLERANCE)
    return _sites(state, log_z), roughly and settled


@dataclass(frozen=True)
class _State:
    """Sites, and what holds at each point with all of them and without its own."""

    precision: Array
    shift: Array
    factor: Array
    mean: Array
    others: Array
    other_mean: Array

    @classmethod
    def of(cls, covariance: Array, precision: Array, shift: Array) -> _State:
        root = np.sqrt(precision)
        # By columns, as LAPACK has them: a covariance is symmetric, so this is S K, and no copy.
        scaled = (covariance * root).T
        inner = scaled * root
        inner.flat[:: len(inner) + 1] += 1
        factor = _cholesky(inner)
        half = _solve_lower(factor, scaled)
        variance = np.maximum(covariance.diagonal() - (half**2).sum(0), SMALLEST)
        mean = covariance @ shift - half.T @ (half @ shift)
        others = np.maximum(1 / variance - precision, SMALLEST)
        other_mean = (mean / variance - shift) / others
        return cls(precision, shift, factor, mean, others, other_mean)


def _sweep(
    covariance: Array, seen: _Seen, state: _State, log_lapse: float, tolerance: float
) -> tuple[_State, Array, bool]:
    """Update all sites until they stay.

    Also the logarithms of the labels' probabilities, and whether the sites stay.
    """
    for sweep in range(SWEEPS):
        precision, shift, others = state.precision, state.shift, state.others
        log_z, slope, bend = seen.moments(state.other_mean, 1 / others, log_lapse)
        # A lapse can bend the wrong way; a site of next to no precision then leaves it out.
        bend = np.minimum(bend, -SMALLEST)
        left = np.maximum(1 + bend / others, SMALLEST)
        better = np.minimum(np.maximum(-bend / left, SMALLEST), 1 / SMALLEST)
        better_shift = (slope - state.other_mean * bend) / left
        change = np.maximum(
            np.abs(better - precision) / (others + better),
            np.abs(better_shift - shift) / np.sqrt(others + better),
        )
        if change.max() < tolerance or sweep == SWEEPS - 1:
            break  # before a step, so that sites and factor fit together
        step = _step(sweep)
        state = _State.of(
            covariance,
            precision + step * (better - precision),
            shift + step * (better_shift - shift),
        )
    return state, log_z, bool(change.max() < tolerance)


def _sites(state: _State, log_z: Array) -> Sites:
    """What has settled, with the evidence."""
    precision, shift, others = state.precision, state.shift, state.others
    other_mean = state.other_mean
    evidence = (
        log_z.sum()
        + 0.5 * np.log1p(precision / others).sum()
        - np.log(state.factor.diagonal()).sum()
        + 0.5 * (shift @ state.mean - (shift**2 / (others + precision)).sum())
        + 0.5
        * (other_mean * others / (precision + others) * (precision * other_mean - 2 * shift)).sum()
    )
    moments = np.stack([other_mean, 1 / others])
    return Sites(precision, shift, state.factor, float(evidence), moments)


def _cholesky(matrix: Array) -> Array:
    """Lower factor of a symmetric matrix, which is overwritten.

    LAPACK itself: scipy's checks take as long as the work where there are few points.
    """
    factor, failed = dpotrf(matrix, lower=True, clean=True, overwrite_a=True)
    if failed:
        raise np.linalg.LinAlgError(f"the leading minor of order {failed} is not positive")
    return factor  # type: ignore[no-any-return]


def _solve_lower(factor: Array, right: Array) -> Array:
    """Solve with a lower factor; the right side is overwritten."""
    solution, _ = dtrtrs(factor, right, lower=True, overwrite_b=True)
    return solution  # type: ignore[no-any-return]


def _step(sweep: int) -> float:
    """Shorter and shorter: updates of all sites at once overshoot where labels contradict."""
    return 0.9 if sweep < 6 else 0.5 if sweep < 20 else 0.2 if sweep < 60 else 0.1
