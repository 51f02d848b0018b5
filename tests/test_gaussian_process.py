"""The Gaussian process against scikit-learn's, finite differences and a known rotated metric."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from analysis.gaussian_process import (
    JITTER,
    PLANE,
    GaussianProcess,
    Hyperparameters,
    _objective,
    fit,
)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_predictions_are_those_of_scikit_learn(d: int) -> None:
    """With a diagonal metric, which is all that library has, mean and deviation agree."""
    random = np.random.default_rng(d)
    x, y, at = random.normal(size=(30, d)), random.normal(size=30), random.normal(size=(9, d))
    lengths = random.uniform(0.3, 2, d)
    given = Hyperparameters(np.diag(1 / lengths), variance=0.7, noise=0.2)
    kernel = (
        ConstantKernel(0.7) * Matern(lengths, nu=1.5)
        + ConstantKernel(PLANE) * DotProduct(1.0)
        + WhiteKernel(0.2 + JITTER)
    )
    oracle = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(x, y)
    mean, deviation = oracle.predict(at, return_std=True)
    ours, ours_deviation = GaussianProcess(x, y, given).predict(at)
    np.testing.assert_allclose(ours, mean, rtol=1e-8)
    np.testing.assert_allclose(ours_deviation, deviation, rtol=1e-5)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_gradient_is_that_of_the_objective(d: int) -> None:
    random = np.random.default_rng(10 + d)
    x, y = random.normal(size=(25, d)) * 0.4, np.sign(random.normal(size=25)) * 1.5
    for _ in range(5):
        raw = random.normal(size=d + d * (d - 1) // 2 + 2) * 0.7
        numeric = approx_fprime(raw, lambda r: _objective(r, x, y)[0], 1e-6)
        np.testing.assert_allclose(_objective(raw, x, y)[1], numeric, rtol=2e-4, atol=2e-4)


def test_objective_is_the_log_posterior() -> None:
    """Value against the textbook formula with an explicit inverse and determinant."""
    random = np.random.default_rng(3)
    x, y = random.normal(size=(12, 2)), random.normal(size=12)
    raw = np.array([0.3, -0.2, 0.8, 0.1, -1.0])
    metric = np.array([[np.exp(0.3), 0], [0.8, np.exp(-0.2)]])
    distance = np.array([[np.linalg.norm((a - b) @ metric) for b in x] for a in x]) * 3**0.5
    matern = np.exp(0.1) * (1 + distance) * np.exp(-distance)
    noise = 0.15 + np.exp(-1.0) + 1e-6
    covariance = matern + 4.0 * (1 + x @ x.T) + noise * np.eye(12)
    likelihood = 0.5 * y @ np.linalg.inv(covariance) @ y + 0.5 * np.linalg.slogdet(covariance)[1]
    means = np.array([np.log(2.5), np.log(2.5), 0.0, 0.0, np.log(0.2)])
    priors = (((raw - means) / np.array([0.8, 0.8, 3.0, 1.0, 0.8])) ** 2).sum() / 2
    assert _objective(raw, x, y)[0] == pytest.approx(likelihood + priors, rel=1e-10)


def test_oblique_boundary_is_found_with_few_points() -> None:
    """A band along the diagonal: no length an axis describes it, the full metric does."""
    random = np.random.default_rng(0)
    x = random.uniform(-0.5, 0.5, (60, 2))
    at = random.uniform(-0.5, 0.5, (2000, 2))

    def label(z: np.ndarray) -> np.ndarray:
        return np.where(np.abs(z.sum(1)) < 0.25, 1.5, -1.5)

    full = GaussianProcess(x, label(x))
    wrong = np.mean(np.sign(full.predict(at)[0]) != np.sign(label(at)))
    lengths = Matern([0.4, 0.4], (0.05, 10), nu=1.5)
    kernel = (
        ConstantKernel(1.0) * lengths
        + ConstantKernel(4.0, "fixed") * DotProduct(1.0, "fixed")
        + WhiteKernel(0.2, (0.15, 2))
    )
    axes = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0).fit(x, label(x))
    by_axes = np.mean(np.sign(axes.predict(at)) != np.sign(label(at)))
    assert wrong < 0.08
    assert wrong < 0.7 * by_axes
    # Distances grow across the band, not along it.
    metric = full.hyperparameters.metric
    across, along = np.array([1, 1]) @ metric, np.array([1, -1]) @ metric
    assert np.linalg.norm(across) > 2 * np.linalg.norm(along)


def test_fit_repeats_itself_to_the_bit() -> None:
    random = np.random.default_rng(5)
    x, y = random.uniform(-0.5, 0.5, (40, 3)), np.sign(random.normal(size=40))
    first, second = fit(x, y), fit(x.copy(), y.copy())
    assert np.array_equal(first.metric, second.metric)
    assert (first.variance, first.noise) == (second.variance, second.noise)
