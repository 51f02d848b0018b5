"""The classifier and its fit against scikit-learn, dense formulas and finite differences."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern

from analysis import expectation_propagation, gaussian_process
from analysis.expectation_propagation import LAPSE, propagate
from analysis.gaussian_process import (
    BELOW,
    BOUNDS_BELOW,
    BOUNDS_DIAGONAL,
    BOUNDS_PLANE,
    BOUNDS_ROUGHNESS,
    BOUNDS_VARIANCE,
    DIAGONAL,
    JITTER,
    PLANE,
    ROUGH_LENGTH,
    ROUGHNESS,
    VARIANCE,
    Classifier,
    Hyperparameters,
    _Objective,
    _Size,
    fit,
)

Array = NDArray[np.float64]
Label = Callable[[Array], Array]


def square(n: int, seed: int, d: int = 2) -> Array:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, d))


def signs(n: int, seed: int, share: float = 0.5) -> Array:
    return np.where(np.random.default_rng(seed).random(n) < share, 1.0, -1.0)


def slanted(x: Array) -> Array:
    """A boundary with all its points on one side of it or the other."""
    return np.where(x @ np.linspace(1, 0.5, x.shape[1]) > 0.05, 1.0, -1.0)


def some_hyperparameters(d: int, seed: int) -> Hyperparameters:
    random = np.random.default_rng(seed)
    metric = np.tril(random.normal(size=(d, d)) * 2, -1) + np.diag(random.uniform(0.5, 4, d))
    return Hyperparameters(metric, *random.uniform(1, 50, 3))


def rough(roughness: float) -> ConstantKernel:
    return ConstantKernel(roughness) * Matern(ROUGH_LENGTH, nu=0.5)


@contextmanager
def tight() -> Iterator[None]:
    """Sites to many digits."""
    with patch.multiple(expectation_propagation, TOLERANCE=1e-9, SWEEPS=5000):
        yield


# --------------------------------------------------------------------------- covariance


@pytest.mark.parametrize("d", [1, 2, 3])
def test_covariance_is_that_of_scikit_learn(d: int) -> None:
    """With a diagonal metric, which is all that library has."""
    lengths = np.random.default_rng(d).uniform(0.1, 2, d)
    kernel = ConstantKernel(7.0) * Matern(lengths, nu=1.5) + ConstantKernel(40.0) * DotProduct(1.0)
    kernel += rough(3.0)
    given = Hyperparameters(np.diag(1 / lengths), variance=7.0, plane=40.0, roughness=3.0)
    x, at = square(30, d, d), square(9, 10 + d, d)
    np.testing.assert_allclose(given.covariance(x, at), kernel(x, at), rtol=1e-9)
    np.testing.assert_allclose(given.prior_variance(x), kernel.diag(x), rtol=1e-12)


def test_a_full_metric_is_a_linear_map_of_the_points() -> None:
    """The smooth Matern part sees x L, the rough one and the plane x itself."""
    given = some_hyperparameters(3, 0)
    x, at = square(20, 1, 3), square(5, 2, 3)
    matern = ConstantKernel(given.variance) * Matern(1.0, nu=1.5)
    expected = matern(x @ given.metric, at @ given.metric) + given.plane * (1 + x @ at.T)
    expected += rough(given.roughness)(x, at)
    np.testing.assert_allclose(given.covariance(x, at), expected, rtol=1e-9)


@given(n=st.integers(1, 12), d=st.integers(1, 4), seed=st.integers(0, 2**16), repeat=st.booleans())
def test_covariance_is_one(n: int, d: int, seed: int, repeat: bool) -> None:
    """Symmetric, its diagonal the prior variance, no eigenvalue below 0, also for equal points."""
    x, given = square(n, seed, d), some_hyperparameters(d, seed)
    x = np.concatenate([x, x]) if repeat else x
    found, variance = given.covariance(x, x), given.prior_variance(x)
    np.testing.assert_allclose(found, found.T, rtol=1e-12)
    np.testing.assert_allclose(np.diag(found), variance, rtol=JITTER)
    assert np.linalg.eigvalsh(found).min() > -JITTER * variance.max()


# --------------------------------------------------------------------------- classifier


@pytest.mark.parametrize("seed", range(3))
def test_predictions_are_the_dense_formulas(seed: int) -> None:
    """Means and covariances from plain inverses of K + the site variances."""
    x, at, labels = square(25, seed), square(7, seed + 10), signs(25, seed)
    given = some_hyperparameters(2, seed)
    found = Classifier(x, labels, given)
    prior = given.covariance(x, x)
    noise = np.diag(1 / found.sites.precision)
    inverse = np.linalg.inv(prior + JITTER * np.diag(np.diag(prior)) + noise)
    cross = given.covariance(x, at)
    mean = cross.T @ inverse @ (found.sites.shift / found.sites.precision)
    covariance = given.covariance(at, at) - cross.T @ inverse @ cross

    half_mean, half = found.half(at)
    assert half.shape == (25, 7)
    np.testing.assert_allclose(half_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        given.covariance(at, at) - half.T @ half, covariance, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found.predict(at)[0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.predict(at)[1], np.diag(covariance), rtol=1e-5)


def test_predictions_are_those_of_scikit_learn() -> None:
    """Another approximation (Laplace) of a similar model (logistic): the same map, roughly.

    A logistic label is a probit one of 1.7 times the latent function.
    """
    x, at = square(60, 0), square(300, 1)
    given = Hyperparameters(np.diag([3.0, 2.0]), variance=3.0, plane=10.0, roughness=0.5)
    scale = 1.7**2
    kernel = ConstantKernel(3 * scale) * Matern([1 / 3, 1 / 2], nu=1.5)
    kernel += ConstantKernel(10 * scale) * DotProduct(1.0) + rough(0.5 * scale)
    oracle = GaussianProcessClassifier(kernel, optimizer=None).fit(x, slanted(x))
    mean, variance = Classifier(x, slanted(x), given).predict(at)
    found, expected = norm.cdf(mean / (1 + variance) ** 0.5), oracle.predict_proba(at)[:, 1]
    assert np.abs(found - expected).mean() < 0.08
    assert np.mean((found > 0.5) != (expected > 0.5)) < 0.02


def test_start_is_a_matter_of_effort_alone() -> None:
    x, at, labels = square(40, 3), square(9, 4), slanted(square(40, 3))
    given = some_hyperparameters(2, 3)
    first = Classifier(x[:30], labels[:30], given).sites
    start = np.r_[first.precision, np.zeros(10)], np.r_[first.shift, np.zeros(10)]
    cold, warm = Classifier(x, labels, given), Classifier(x, labels, given, start)
    deviation = cold.predict(at)[1] ** 0.5
    np.testing.assert_array_less(
        np.abs(warm.predict(at)[0] - cold.predict(at)[0]), 0.05 * deviation
    )
    np.testing.assert_allclose(warm.predict(at)[1] ** 0.5, deviation, rtol=0.03)


# --------------------------------------------------------------------------- what is fitted


SIZES = [(1, 0), (2, 0), (3, 0), (3, 1), (4, 2)]


def a_vector(size: _Size, seed: int) -> Array:
    """Raw hyperparameters near the middle of their priors."""
    random = np.random.default_rng(seed)
    return size.means + 0.4 * size.deviations * random.normal(size=len(size.means))


def with_indicators(n: int, seed: int, d: int, indicators: int) -> Array:
    x = square(n, seed, d)
    x[:, d - indicators :] = 0.3 * (x[:, d - indicators :] > 0.1)
    return x


@pytest.mark.parametrize(("d", "indicators"), SIZES)
def test_value_is_the_log_posterior(d: int, indicators: int) -> None:
    """Priors by the normal density, evidence of a covariance written out entry by entry."""
    n = 12
    x, labels = with_indicators(n, d, d, indicators), signs(n, d)
    size = _Size(d, indicators)
    free = d - indicators
    for seed in range(3):
        raw = a_vector(size, seed)
        metric, entries = np.diag(np.exp(raw[:d])), iter(raw[d:-3])
        for row in range(free):
            for column in range(row):
                metric[row, column] = next(entries)
        covariance = np.empty((n, n))
        for i, j in itertools.product(range(n), repeat=2):
            distance = 3**0.5 * np.linalg.norm((x[i] - x[j]) @ metric)
            covariance[i, j] = np.exp(raw[-3]) * (1 + distance) * np.exp(-distance)
            covariance[i, j] += np.exp(raw[-2]) * (1 + x[i] @ x[j])
            apart = np.linalg.norm(x[i] - x[j])
            covariance[i, j] += np.exp(raw[-1] - apart / ROUGH_LENGTH)
        covariance += JITTER * np.diag(np.diag(covariance))
        below = free * (free - 1) // 2
        priors = [DIAGONAL] * d + [BELOW] * below + [VARIANCE, PLANE, ROUGHNESS]
        density = sum(
            norm.logpdf(value, *prior) - norm.logpdf(prior[0], *prior)
            for value, prior in zip(raw, priors, strict=True)
        )
        with tight():
            expected = -density - propagate(covariance, labels).log_evidence
            assert _Objective(size, x, labels)(raw)[0] == pytest.approx(expected, abs=1e-5)


def test_value_holds_the_probability_of_the_labels() -> None:
    """Two labels at the hyperparameters' prior means: against sampled functions."""
    size, x, labels = _Size(1), np.array([[-0.2], [0.3]]), np.array([1.0, -1.0])
    covariance = size.unpack(size.means).covariance(x, x)
    random = np.random.default_rng(0)
    f = random.normal(size=(200_000, 2)) @ np.linalg.cholesky(covariance).T
    seen = (LAPSE + (1 - 2 * LAPSE) * norm.cdf(labels * f)).prod(1).mean()
    assert _Objective(size, x, labels)(size.means)[0] == pytest.approx(-np.log(seen), abs=0.1)


@pytest.mark.parametrize(("d", "indicators"), SIZES)
@pytest.mark.parametrize("mixed", [False, True])
def test_gradient_is_that_of_the_value(d: int, indicators: int, mixed: bool) -> None:
    """Against central differences, with sites that are exact.

    A label taken for a lapse has a site that only its mean is right of: a small error stays.
    """
    x = with_indicators(20, d, d, indicators)
    labels = slanted(x)
    if mixed:
        labels[::7] *= -1
    size = _Size(d, indicators)
    objective = _Objective(size, x, labels)
    with tight():
        for seed in range(2):
            raw = a_vector(size, seed + 3)
            numeric = [
                (objective(raw + step)[0] - objective(raw - step)[0]) / 2e-4
                for step in 1e-4 * np.eye(len(raw))
            ]
            tolerance = 1e-2 if mixed else 1e-4
            np.testing.assert_allclose(objective(raw)[1], numeric, rtol=tolerance, atol=tolerance)


def test_gradient_within_the_tolerance() -> None:
    """With sites as good as they are in a fit, the slope is still right to a few per cent."""
    x = square(40, 0)
    size = _Size(2)
    for seed in range(5):
        raw = a_vector(size, seed)
        value, gradient = _Objective(size, x, slanted(x))(raw)
        with tight():
            exact, slope = _Objective(size, x, slanted(x))(raw)
        assert value == pytest.approx(exact, abs=0.01)
        assert np.linalg.norm(gradient - slope) < 0.03 * (1 + np.linalg.norm(slope))


@pytest.mark.parametrize("kind", ["slanted", "random", "few"])
def test_no_corner_of_the_bounds_breaks_it(kind: str) -> None:
    x = np.concatenate([square(30, 0), square(30, 0)[:3]])
    labels = {"slanted": slanted(x), "random": signs(33, 0), "few": signs(33, 0, 0.95)}[kind]
    assert len(set(labels)) == 2
    size = _Size(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for corner in itertools.product(*size.bounds()):
            value, gradient = _Objective(size, x, labels)(np.array(corner))
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()


# --------------------------------------------------------------------------- fit


def band(x: Array) -> Array:
    """A band along the diagonal."""
    return np.where(np.abs(x.sum(1)) < 0.25, 1.0, -1.0)


def test_oblique_band_is_found_with_few_points() -> None:
    """No length an axis describes it, the full metric does."""
    at = square(2000, 1)
    wrong: list[float] = []
    by_axes: list[float] = []
    for seed in (0, 2, 3):
        x = square(60, seed)
        found = fit(x, band(x))
        mean, _ = Classifier(x, band(x), found).predict(at)
        wrong.append(float(np.mean(np.sign(mean) != band(at))))
        kernel = ConstantKernel(30.0, (1e-1, 1e4)) * Matern([0.4, 0.4], (0.02, 10), nu=1.5)
        kernel += ConstantKernel(1e3, "fixed") * DotProduct(1.0, "fixed")
        axes = GaussianProcessClassifier(kernel).fit(x, band(x))
        by_axes.append(float(np.mean(axes.predict(at) != band(at))))
        # Distances grow across the band, not along it.
        across, along = np.array([1, 1]) @ found.metric, np.array([1, -1]) @ found.metric
        assert np.linalg.norm(across) > 2 * np.linalg.norm(along)
    assert np.mean(wrong) < 0.08
    assert np.mean(wrong) < 0.7 * np.mean(by_axes)


def test_labels_the_other_way_round_and_mirrored_points_are_the_same_problem() -> None:
    x, at = square(50, 0), square(200, 1)
    labels, mirror = band(x), np.array([-1.0, 1.0])
    found = Classifier(x, labels, fit(x, labels)).predict(at)[0]
    flipped = Classifier(x, -labels, fit(x, -labels)).predict(at)[0]
    mirrored = Classifier(x * mirror, labels, fit(x * mirror, labels)).predict(at * mirror)[0]
    assert np.mean(np.sign(flipped) != -np.sign(found)) < 0.01
    assert np.mean(np.sign(mirrored) != np.sign(found)) < 0.01


def value(x: Array, labels: Array, found: Hyperparameters) -> float:
    size = _Size(x.shape[1])
    return _Objective(size, x, labels)(size.pack(found))[0]


@pytest.mark.parametrize("label", [band, slanted])
def test_fit_is_the_most_probable(label: Label) -> None:
    """No other vector, drawn from the priors or near the one found, is better by much."""
    x = square(40, 7)
    size, labels = _Size(2), label(x)
    found = fit(x, labels)
    raw, best = size.pack(found), value(x, labels, found)
    random = np.random.default_rng(0)
    shape = 60, len(raw)
    draws = size.means + size.deviations * random.normal(size=shape)
    around = raw + 0.2 * size.deviations * random.normal(size=shape)
    low, high = np.array(size.bounds()).T
    for other in np.clip(np.concatenate([draws, around]), low, high):
        assert _Objective(size, x, labels)(other)[0] > best - 0.3


@pytest.mark.parametrize("label", [band, slanted])
def test_fit_near_other_hyperparameters(label: Label) -> None:
    """From those of fewer points, and from useless ones: as probable as from the fixed starts."""
    x = square(80, 7)
    labels = label(x)
    best = value(x, labels, fit(x, labels))
    useless = Hyperparameters(np.array([[30.0, 0.0], [0.0, 0.1]]), 0.2, 0.2, 0.01)
    for near in (fit(x[:50], labels[:50]), useless):
        assert value(x, labels, fit(x, labels, near=near)) == pytest.approx(best, abs=0.5)


@pytest.mark.parametrize("label", [band, slanted])
def test_fit_near_other_hyperparameters_ends_sooner(
    label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fewer evaluations, a twentieth less probable at most; from fixed starts to the last."""
    x = square(120, 7)
    labels = label(x)
    near, asked = fit(x[:80], labels[:80]), []

    class Counted(_Objective):
        def __call__(self, raw: Array) -> tuple[float, Array]:
            asked.append(raw)
            return super().__call__(raw)

    def found(near: Hyperparameters | None) -> tuple[float, int]:
        asked.clear()
        with patch.object(gaussian_process, "_Objective", Counted):
            best = fit(x, labels, near=near)
        return value(x, labels, best), len(asked)

    (least, sooner), fixed = found(near), found(None)
    monkeypatch.setattr(gaussian_process, "LEAST_GAIN_NEAR", gaussian_process.LEAST_GAIN)
    (whole, later), again = found(near), found(None)
    assert least == pytest.approx(whole, abs=0.05)
    assert sooner < 0.7 * later
    assert fixed == again


def test_the_best_start_wins() -> None:
    """Of the fixed ones, and of those given."""
    x = square(40, 7)
    labels = band(x)
    size, good = _Size(2), fit(x, labels)

    def stay(objective: _Objective, start: Array, least: float) -> tuple[Array, float]:
        return start, objective(start)[0]

    with patch.object(gaussian_process, "_climb", stay):
        least = min(value(x, labels, size.unpack(start)) for start in size.starts())
        assert value(x, labels, fit(x, labels)) == pytest.approx(least, abs=0.01)
        assert value(x, labels, fit(x, labels, near=good)) < least - 0.1


@pytest.mark.parametrize(("d", "indicators"), SIZES)
def test_a_vector_and_its_hyperparameters(d: int, indicators: int) -> None:
    size = _Size(d, indicators)
    raw = a_vector(size, 0)
    assert len(size.bounds()) == len(raw)
    np.testing.assert_allclose(size.pack(size.unpack(raw)), raw, rtol=1e-12)


@pytest.mark.parametrize(("d", "indicators"), [(2, 1), (3, 1), (4, 2), (1, 1)])
def test_metric_of_indicators_is_diagonal(d: int, indicators: int) -> None:
    x = with_indicators(40, 1, d, indicators)
    labels = np.where(x[:, -1] > 0.1, 1.0, slanted(x))
    metric = fit(x, labels, indicators).metric
    free = d - indicators
    assert metric.shape == (d, d)
    assert (np.diag(metric) > 0).all()
    np.testing.assert_array_equal(metric, np.tril(metric))
    np.testing.assert_array_equal(metric[free:] - np.diag(np.diag(metric))[free:], 0)
    assert (metric[np.tril_indices(free, -1)] != 0).all()


HARD = {
    "random": signs(60, 0),
    "one": np.r_[-1.0, np.ones(59)],
    "alternating": np.tile([1.0, -1.0], 30),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("points", ["spread", "line", "one"])
def test_bounds_are_kept(kind: str, points: str) -> None:
    """Whatever the labels and however degenerate the points."""
    x = {"spread": square(60, 0), "line": square(60, 0) * [1, 0], "one": np.zeros((60, 2))}[points]
    found = fit(x, HARD[kind])

    def inside(values: object, bounds: tuple[float, float]) -> bool:
        low, high = bounds
        return bool(
            ((np.asarray(values) >= low - 1e-9) & (np.asarray(values) <= high + 1e-9)).all()
        )

    assert inside(np.log(np.diag(found.metric)), BOUNDS_DIAGONAL)
    assert inside(found.metric[1, 0], BOUNDS_BELOW)
    assert inside(np.log(found.variance), BOUNDS_VARIANCE)
    assert inside(np.log(found.plane), BOUNDS_PLANE)
    assert inside(np.log(found.roughness), BOUNDS_ROUGHNESS)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("d", "indicators"), SIZES)
def test_one_sign_alone_gives_the_prior_means(sign: float, d: int, indicators: int) -> None:
    found = fit(square(9, 0, d), np.full(9, sign), indicators)
    below = np.tril(np.ones((d - indicators, d - indicators)), -1) * BELOW[0]
    expected = np.exp(DIAGONAL[0]) * np.eye(d)
    expected[: d - indicators, : d - indicators] += below
    np.testing.assert_allclose(found.metric, expected)
    assert found.variance == pytest.approx(np.exp(VARIANCE[0]))
    assert found.plane == pytest.approx(np.exp(PLANE[0]))
    assert found.roughness == pytest.approx(np.exp(ROUGHNESS[0]))


@pytest.mark.parametrize(("n", "seed"), [(64, 0), (128, 1), (200, 2)])
def test_a_few_lapses_do_not_turn_the_map_over(n: int, seed: int) -> None:
    """Three odd labels anywhere: the map is that of all the others."""
    x, labels = square(n, seed), np.ones(n)
    labels[np.random.default_rng(seed).choice(n, 3, replace=False)] = -1
    found = Classifier(x, labels, fit(x, labels)).predict(square(500, 9))[0]
    assert np.mean(found > 0) > 0.9


@settings(max_examples=5)
@given(seed=st.integers(0, 2**16))
def test_fit_repeats_itself_to_the_bit(seed: int) -> None:
    x, labels = square(40, seed, 3), signs(40, seed)
    first, second = fit(x, labels), fit(x.copy(), labels.copy())
    np.testing.assert_array_equal(first.metric, second.metric)
    heights = first.variance, first.plane, first.roughness
    assert heights == (second.variance, second.plane, second.roughness)
