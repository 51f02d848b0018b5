"""Expectation propagation against quadrature, brute force and its own definition."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from analysis import expectation_propagation
from analysis.expectation_propagation import (
    LAPSE,
    Sites,
    label_moments,
    label_probability,
    propagate,
)

Array = NDArray[np.float64]


def likelihood(label: Array, f: Array) -> Array:
    values: Array = LAPSE + (1 - 2 * LAPSE) * norm.cdf(label * f)
    return values


def tilted(label: Array, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """Log normaliser, mean and variance of Gaussians times labels, by quadrature; each (n,)."""
    unit = np.linspace(-12, 12, 20001)
    f = mean[:, None] + np.sqrt(variance)[:, None] * unit
    weights = norm.pdf(unit) * likelihood(label[:, None], f)
    total = weights.sum(1)
    first = (weights * f).sum(1) / total
    second = (weights * (f - first[:, None]) ** 2).sum(1) / total
    return np.log(total * (unit[1] - unit[0])), first, second


def brute_force(covariance: Array, labels: Array) -> tuple[float, Array, Array]:
    """Log evidence, posterior means and variances of 2 or 3 values, on a grid."""
    n = len(labels)
    unit = np.linspace(-7.5, 7.5, {2: 401, 3: 91}[n])
    step = unit[1] - unit[0]
    cells = np.stack(np.meshgrid(*[unit] * n, indexing="ij"), axis=-1).reshape(-1, n)
    f = cells @ np.linalg.cholesky(covariance).T
    weights = (norm.pdf(cells) * step * likelihood(labels, f)).prod(1)
    mean = weights @ f / weights.sum()
    return float(np.log(weights.sum())), mean, weights @ (f - mean) ** 2 / weights.sum()


def posterior(covariance: Array, sites: Sites) -> tuple[Array, Array]:
    """Means and variances of f given the sites, by a plain solve."""
    n = len(covariance)
    full = np.linalg.solve(np.eye(n) + covariance * sites.precision, covariance)
    return full @ sites.shift, np.diag(full)


@contextmanager
def tight() -> Iterator[None]:
    """Sites to many digits: what is left is the method's own error."""
    with patch.multiple(expectation_propagation, TOLERANCE=1e-10, SWEEPS=5000):
        yield


@contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def smooth(n: int, seed: int, variance: float, length: float = 0.5, plane: float = 0.0) -> Array:
    """Covariance of a smooth function, with a plane under it, at n random points of a square."""
    x = np.random.default_rng(seed).uniform(-0.5, 0.5, (n, 2))
    square = ((x[:, None] - x[None]) ** 2).sum(2)
    covariance = variance * np.exp(-square / 2 / length**2) + plane * (1 + x @ x.T)
    found: Array = covariance * (1 + 1e-6 * np.eye(n))
    return found


def signs(n: int, seed: int, share: float = 0.5) -> Array:
    return np.where(np.random.default_rng(seed).random(n) < share, 1.0, -1.0)


# --------------------------------------------------------------------------- one label


@pytest.mark.parametrize("label", [1.0, -1.0])
@pytest.mark.parametrize("variance", [1e-6, 0.3, 4.0, 1e3, 1e5])
def test_moments_of_a_label(label: float, variance: float) -> None:
    mean = np.array([-400.0, -30.0, -3.0, -0.4, 0.0, 0.4, 3.0, 30.0, 400.0])
    labels, variances = np.full(9, label), np.full(9, variance)
    log_z, slope, bend = label_moments(labels, mean, variances)
    exact_log_z, exact_mean, exact_variance = tilted(labels, mean, variances)
    np.testing.assert_allclose(log_z, exact_log_z, rtol=1e-6, atol=1e-8)
    deviation = variance**0.5
    np.testing.assert_allclose(mean + variance * slope, exact_mean, atol=1e-4 * deviation)
    np.testing.assert_allclose(variance + variance**2 * bend, exact_variance, rtol=1e-4)


@given(
    z=st.floats(-8, 8),
    variance=st.floats(-9, 9).map(lambda e: 10**e),
    label=st.sampled_from([1, -1]),
)
def test_derivatives_of_a_label(z: float, variance: float, label: int) -> None:
    """First and second derivative in the mean, against central differences."""
    width = (1 + variance) ** 0.5
    step = 1e-4 * width
    means = z * width + step * np.array([-1.0, 0.0, 1.0])
    log_z, slope, bend = label_moments(np.full(3, float(label)), means, np.full(3, variance))
    assert slope[1] * width == pytest.approx((log_z[2] - log_z[0]) / 2e-4, rel=1e-5, abs=1e-7)
    change = (slope[2] - slope[0]) * width / 2e-4
    assert bend[1] * width**2 == pytest.approx(change, rel=1e-5, abs=1e-7)


MEANS = st.one_of(st.floats(-10, 10), st.floats(-1e9, 1e9), st.sampled_from([0.0, -0.0]))


@given(mean=MEANS, variance=st.floats(-15, 15).map(lambda e: 10**e))
def test_laws_of_a_label(mean: float, variance: float) -> None:
    """For any Gaussian: finite, no warnings, both labels together certain, never against itself."""
    with no_warnings():
        both = label_moments(np.array([1.0, -1.0]), np.full(2, mean), np.full(2, variance))
        mirror = label_moments(np.array([-1.0, 1.0]), np.full(2, -mean), np.full(2, variance))
    log_z, slope, bend = both
    assert np.isfinite(both).all()
    assert np.exp(log_z).sum() == pytest.approx(1)
    assert (log_z >= np.log(LAPSE) - 1e-9).all()
    assert slope[0] >= 0 >= slope[1]
    assert (1 + variance * bend > -1e-9).all()
    np.testing.assert_array_equal(log_z, mirror[0])
    np.testing.assert_array_equal(slope, -mirror[1])
    np.testing.assert_array_equal(bend, mirror[2])


def test_probability_of_a_label() -> None:
    """Against quadrature; lapses are no part of it."""
    unit = np.linspace(-10, 10, 20001)
    for mean, variance in [(0.0, 1.0), (1.3, 0.2), (-2.0, 5.0), (30.0, 400.0), (2.0, 1e-9)]:
        weights = norm.pdf(unit) * (unit[1] - unit[0])
        exact = weights @ norm.cdf(mean + variance**0.5 * unit)
        found = label_probability(np.array(mean), np.array(variance))
        assert found == pytest.approx(exact, abs=1e-7)
    assert label_probability(np.array(60.0), np.array(0.1)) > 1 - LAPSE / 10


# --------------------------------------------------------------------------- few labels, exactly


@pytest.mark.parametrize("variance", [1e-3, 0.3, 3.0, 300.0, 3e4])
@pytest.mark.parametrize("label", [1.0, -1.0])
def test_one_label_is_exact(variance: float, label: float) -> None:
    covariance, labels = np.array([[variance]]), np.array([label])
    with tight():
        sites = propagate(covariance, labels)
    exact = tilted(labels, np.zeros(1), np.array([variance]))
    mean, spread = posterior(covariance, sites)
    assert sites.log_evidence == pytest.approx(exact[0][0], rel=1e-7)
    assert mean[0] == pytest.approx(exact[1][0], rel=1e-6)
    assert spread[0] == pytest.approx(exact[2][0], rel=1e-6)
    np.testing.assert_allclose(sites.leave_one_out[:, 0], [0, variance], rtol=1e-6, atol=1e-9)


def test_independent_points_know_nothing_of_each_other() -> None:
    variances, labels = np.array([0.2, 3.0, 40.0]), np.array([1.0, -1.0, 1.0])
    with tight():
        sites = propagate(np.diag(variances), labels)
    log_z, mean, variance = tilted(labels, np.zeros(3), variances)
    found = posterior(np.diag(variances), sites)
    assert sites.log_evidence == pytest.approx(log_z.sum(), rel=1e-6)
    np.testing.assert_allclose(found[0], mean, rtol=1e-6)
    np.testing.assert_allclose(found[1], variance, rtol=1e-6)
    np.testing.assert_allclose(sites.leave_one_out, [np.zeros(3), variances], atol=1e-6)


#: Variance, correlation, labels, and how near the method comes: log evidence, means in standard
#: deviations, variances in shares. It is exact for no two labels, and worst where they are steep.
CLOSE = [
    (0.5, 0.95, (1, 1), 0.002, 0.002, 0.005),
    (0.5, 0.95, (1, -1, 1), 0.002, 0.002, 0.005),
    (3.0, 0.9, (1, 1), 0.015, 0.01, 0.06),
    (3.0, 0.9, (1, -1), 0.015, 0.01, 0.06),
    (3.0, 0.9, (-1, -1, -1), 0.02, 0.015, 0.1),
    (3.0, 0.99, (1, -1, 1), 0.02, 0.015, 0.1),
    (3.0, -0.4, (1, 1, -1), 0.02, 0.015, 0.1),
    (30.0, 0.9, (1, -1, -1), 0.06, 0.05, 0.2),
    (30.0, 0.9, (1, 1, 1), 0.06, 0.05, 0.2),
    (300.0, 0.7, (1, -1), 0.06, 0.05, 0.2),
]


@pytest.mark.parametrize(("variance", "correlation", "given", "evidence", "mean", "spread"), CLOSE)
def test_two_and_three_labels_against_brute_force(
    variance: float,
    correlation: float,
    given: tuple[int, ...],
    evidence: float,
    mean: float,
    spread: float,
) -> None:
    labels = np.array(given, dtype=np.float64)
    n = len(labels)
    covariance = variance * ((1 - correlation) * np.eye(n) + correlation)
    sites = propagate(covariance, labels)
    exact_log, exact_mean, exact_variance = brute_force(covariance, labels)
    found_mean, found_variance = posterior(covariance, sites)
    assert sites.log_evidence == pytest.approx(exact_log, abs=evidence)
    np.testing.assert_array_less(np.abs(found_mean - exact_mean), mean * exact_variance**0.5)
    np.testing.assert_allclose(found_variance, exact_variance, rtol=spread)


REPEATED = [(1.0, 5, 0), (1.0, 3, 2), (4.0, 4, 4), (0.2, 30, 1), (9.0, 2, 1)]


@pytest.mark.parametrize(("variance", "plus", "minus"), REPEATED)
def test_repeated_and_contradictory_labels_at_one_point(
    variance: float, plus: int, minus: int
) -> None:
    """All labels are of one f, whose posterior a line of quadrature gives."""
    labels = np.r_[np.ones(plus), -np.ones(minus)]
    n = len(labels)
    covariance = variance * (np.ones((n, n)) + 1e-9 * np.eye(n))
    sites = propagate(covariance, labels)
    f = np.linspace(-12, 12, 20001) * variance**0.5
    weights = norm.pdf(f, scale=variance**0.5) * (f[1] - f[0])
    weights = weights * likelihood(labels[:, None], f).prod(0)
    exact = weights @ f / weights.sum()
    variance = weights @ (f - exact) ** 2 / weights.sum()
    found = posterior(covariance, sites)
    assert sites.log_evidence == pytest.approx(np.log(weights.sum()), abs=0.05)
    np.testing.assert_allclose(found[0], exact, atol=0.05 * variance**0.5)
    np.testing.assert_allclose(found[1], variance, rtol=0.12)


# --------------------------------------------------------------------------- many labels


def residual(covariance: Array, labels: Array, sites: Sites) -> tuple[float, float]:
    """How far the sites are from what defines them.

    Each label in place of its own site gives mean and variance of f at its point (by quadrature);
    sites that are right give the same. A label that would widen the variance, a lapse, leaves it.
    """
    mean, variance = posterior(covariance, sites)
    precision = np.maximum(1 / variance - sites.precision, 1e-12)
    others = (mean / variance - sites.shift) / precision
    parts = [
        tilted(labels[i : i + 50], others[i : i + 50], 1 / precision[i : i + 50])
        for i in range(0, len(labels), 50)
    ]
    _, exact_mean, exact_variance = (np.concatenate(part) for part in zip(*parts, strict=True))
    exact_variance = np.minimum(exact_variance, 1 / precision)
    return (
        float((np.abs(mean - exact_mean) / variance**0.5).max()),
        float(np.abs(exact_variance / variance - 1).max()),
    )


@pytest.mark.parametrize("variance", [0.5, 20.0, 1000.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_sites_are_what_defines_them(variance: float, seed: int) -> None:
    """Moments match at every point, and the evidence is the integral of prior and sites."""
    n = 15
    covariance, labels = smooth(n, seed, variance), signs(n, seed + 10)
    with tight():
        sites = propagate(covariance, labels)
    apart, wider = residual(covariance, labels, sites)
    assert apart < 1e-4
    assert wider < 1e-3

    # Each site is c exp(-precision f^2 / 2 + shift f): c from the one label that it replaces.
    t, s = sites.precision, sites.shift
    mean, width = sites.leave_one_out
    log_z, _, _ = tilted(labels, mean, width)
    here = -0.5 * np.log1p(t * width) + (
        0.5 * (mean / width + s) ** 2 / (t + 1 / width) - 0.5 * mean**2 / width
    )
    scaled = np.eye(n) + covariance * t
    together = 0.5 * s @ np.linalg.solve(scaled, covariance) @ s
    together -= 0.5 * np.linalg.slogdet(scaled)[1]
    assert sites.log_evidence == pytest.approx((log_z - here).sum() + together, abs=1e-5)


#: Labels that contradict a long-range prior: at random, a few of 300 against all others, and a few
#: against a plane. The covariances lie within the bounds of the hyperparameters.
HARD = {
    "random": (signs(300, 1), (30.0, 0.3, 1000.0)),
    "random, far": (signs(300, 1), (0.2, 10.0, 2e4)),
    "random, flat": (signs(300, 1), (3000.0, 10.0, 0.1)),
    "few": (signs(300, 2, 0.99), (30.0, 0.5, 1000.0)),
    "few, far": (signs(300, 2, 0.98), (3000.0, 10.0, 2e4)),
    "few, flat": (signs(300, 2, 0.99), (3000.0, 10.0, 0.1)),
    "few, short": (signs(300, 2, 0.98), (3000.0, 0.02, 2e4)),
    "one sign": (np.ones(300), (3000.0, 10.0, 2e4)),
}


@pytest.mark.parametrize("kind", HARD)
def test_sites_of_many_contradictory_labels(kind: str) -> None:
    labels, (variance, length, plane) = HARD[kind]
    covariance = smooth(300, 0, variance, length, plane)
    with no_warnings():
        sites = propagate(covariance, labels)
    assert np.isfinite(sites.log_evidence)
    apart, wider = residual(covariance, labels, sites)
    # Against a stiff plane a few lapses are never quite settled.
    tolerance = 2.0 if kind in ("few, far", "few, short") else 0.02
    assert apart < tolerance
    assert wider < tolerance


def test_a_few_lapses_do_not_turn_the_others_over() -> None:
    """Three labels against 125: the others keep their sign, and the three are the lapses."""
    covariance, labels = smooth(128, 3, 30.0, 0.5, 1100.0), np.ones(128)
    labels[[20, 60, 110]] = -1
    mean, _ = posterior(covariance, propagate(covariance, labels))
    assert (mean[labels > 0] > 0).mean() > 0.9


@settings(max_examples=25)
@given(
    n=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    exponent=st.floats(-1, 2),
    share=st.floats(0, 1),
)
def test_order_and_names_of_the_labels_do_not_matter(
    n: int, seed: int, exponent: float, share: float
) -> None:
    covariance, labels = smooth(n, seed, 10**exponent), signs(n, seed, share)
    order = np.random.default_rng(seed).permutation(n)
    sites = propagate(covariance, labels)
    moved = propagate(covariance[np.ix_(order, order)], labels[order])
    flipped = propagate(covariance, -labels)
    assert moved.log_evidence == pytest.approx(sites.log_evidence, abs=1e-6)
    assert flipped.log_evidence == pytest.approx(sites.log_evidence, abs=1e-6)
    np.testing.assert_allclose(moved.precision, sites.precision[order], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(moved.shift, sites.shift[order], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(flipped.precision, sites.precision, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(flipped.shift, -sites.shift, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        flipped.leave_one_out, sites.leave_one_out * [[-1], [1]], rtol=1e-6, atol=1e-6
    )


@settings(max_examples=40)
@given(seed=st.integers(0, 2**16), exponent=st.floats(-1, 3), plane=st.floats(-1, 4))
def test_start_changes_nothing(seed: int, exponent: float, plane: float) -> None:
    """Not even one from which all labels look like lapses, or one from labels turned around."""
    random = np.random.default_rng(seed)
    n = 40
    covariance = smooth(n, seed, 10**exponent, plane=10**plane)
    labels = np.where(np.linalg.cholesky(covariance) @ random.normal(size=n) > 0, 1.0, -1.0)
    cold = propagate(covariance, labels)
    mean, variance = posterior(covariance, cold)
    some, turned = propagate(covariance[:12, :12], labels[:12]), propagate(covariance, -labels)
    rest = np.zeros(n - 12)
    for start in [
        (np.concatenate([some.precision, rest]), np.concatenate([some.shift, rest])),
        (cold.precision, cold.shift),
        (turned.precision, turned.shift),
        (np.full(n, 1e-10), -0.02 * labels),
        (np.full(n, 1e-6), -np.ones(n)),  # means of -1e6: they overflow
    ]:
        other = propagate(covariance, labels, start)
        assert other.log_evidence == pytest.approx(cold.log_evidence, abs=0.01)
        warm, spread = posterior(covariance, other)
        # The sites are settled to 1e-3 of what a sweep changes; slow ones may be farther apart.
        np.testing.assert_array_less(np.abs(warm - mean), 0.2 * variance**0.5)
        np.testing.assert_allclose(spread, variance, rtol=0.1)


@pytest.mark.parametrize(("variance", "tolerance"), [(3.0, 0.03), (20.0, 0.1)])
def test_leave_one_out_is_a_fit_without_the_point(variance: float, tolerance: float) -> None:
    """To the method's accuracy: the probability of the label that is left out."""
    n = 25
    covariance = smooth(n, 4, variance, 0.4)
    latent = np.linalg.cholesky(covariance) @ np.random.default_rng(4).normal(size=n)
    labels = np.where(latent > np.median(latent), 1.0, -1.0)
    found = label_probability(*propagate(covariance, labels).leave_one_out)
    for i in range(n):
        rest = np.arange(n) != i
        among, across = covariance[np.ix_(rest, rest)], covariance[rest, i]
        sites = propagate(among, labels[rest])
        weights = np.linalg.solve(np.eye(n - 1) + among * sites.precision, across)
        left = covariance[i, i] - (across * sites.precision) @ weights
        exact = label_probability(weights @ sites.shift, left)
        assert found[i] == pytest.approx(exact, abs=tolerance)


@settings(max_examples=30)
@given(
    n=st.integers(2, 30),
    rank=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    exponent=st.floats(-6, 4.6),
)
def test_nearly_singular_covariances(n: int, rank: int, seed: int, exponent: float) -> None:
    """Points on top of each other, no matter which labels: finite, and no more than certain."""
    root = np.random.default_rng(seed).normal(size=(n, rank))
    covariance, labels = 10**exponent * root @ root.T, signs(n, seed)
    with no_warnings():
        sites = propagate(covariance, labels)
    assert np.isfinite(sites.precision).all() and (sites.precision >= 0).all()
    assert np.isfinite(sites.shift).all()
    assert np.isfinite(sites.leave_one_out).all() and (sites.leave_one_out[1] > 0).all()
    assert np.isfinite(sites.log_evidence)
    assert sites.log_evidence < 0.05


@pytest.mark.parametrize("sweeps", [1, 2, 3, 7])
def test_sites_fit_together_wherever_the_sweeps_end(sweeps: int) -> None:
    """Predictions use precision, shift and factor: they have to be of the same sweep."""
    covariance, labels = smooth(30, 0, 30.0, plane=1000.0), signs(30, 0)
    with patch.object(expectation_propagation, "SWEEPS", sweeps):
        sites = propagate(covariance, labels)
    inner = np.eye(30) + sites.root[:, None] * covariance * sites.root
    np.testing.assert_allclose(np.tril(sites.factor) @ np.tril(sites.factor).T, inner, rtol=1e-8)
    mean, variance = posterior(covariance, sites)
    others = 1 / variance - sites.precision
    np.testing.assert_allclose(sites.leave_one_out[1], 1 / others, rtol=1e-5)
    np.testing.assert_allclose(
        sites.leave_one_out[0], (mean / variance - sites.shift) / others, rtol=1e-5, atol=1e-6
    )
