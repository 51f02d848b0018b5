"""Sizes of margins against exact regression, quadrature, and the labels alone."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm, qmc
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from synthetic import forget_fits

from analysis import expectation_propagation, gaussian_process, surface
from analysis.expectation_propagation import (
    LAPSE,
    LOG_LAPSE,
    Sizes,
    label_moments,
    moments,
    propagate,
)
from analysis.gaussian_process import SCALE, Classifier, Hyperparameters, _Objective, _Size, fit
from analysis.graded import FEWEST, LARGEST, LEAST, NEAREST, Graded
from analysis.surface import ALWAYS, STEP, Surface
from stabmap import BoundarySampler

Array = NDArray[np.float64]


def square(n: int, seed: int, d: int = 2) -> Array:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, d))


def smooth(x: Array, variance: float, length: float) -> Array:
    square_distance = ((x[:, None] - x[None]) ** 2).sum(2)
    found: Array = variance * np.exp(-square_distance / 2 / length**2)
    return found + 1e-6 * variance * np.eye(len(x))


def posterior(covariance: Array, precision: Array, shift: Array) -> tuple[Array, Array]:
    full = np.linalg.solve(np.eye(len(covariance)) + covariance * precision, covariance)
    return full @ shift, np.diag(full)


# --------------------------------------------------------------------------- one observation


@given(
    mean=st.floats(-20, 20),
    variance=st.floats(-4, 4).map(lambda e: 10**e),
    label=st.sampled_from([1.0, -1.0]),
    at=st.floats(0, 10),
    exact=st.booleans(),
)
def test_moments_against_quadrature(
    mean: float, variance: float, label: float, at: float, exact: bool
) -> None:
    sizes = Sizes(np.array([at]), np.array([exact]))
    log_z, slope, bend = (
        part[0]
        for part in moments(np.array([label]), sizes, np.array([mean]), np.array([variance]))
    )
    # Where prior and observation meet, which may be far out in the tail of either.
    centre, width = (
        (mean + variance * label * at) / (1 + variance),
        (variance / (1 + variance)) ** 0.5,
    )
    f = np.unique(
        np.concatenate(
            [
                c + w * np.linspace(-12, 12, 20001)
                for c, w in [(mean, variance**0.5), (centre, width)]
            ]
        )
    )
    seen = label * f - at
    weights = (norm.pdf(seen) if exact else LAPSE + (1 - 2 * LAPSE) * norm.cdf(seen)) * norm.pdf(
        f, mean, variance**0.5
    )
    total = np.trapezoid(weights, f)
    if total < 1e-280:
        return
    first = np.trapezoid(weights * f, f) / total
    second = np.trapezoid(weights * (f - first) ** 2, f) / total
    deviation = variance**0.5
    assert log_z == pytest.approx(np.log(total), abs=1e-5)
    assert mean + variance * slope == pytest.approx(first, abs=1e-4 * deviation)
    assert variance + variance**2 * bend == pytest.approx(second, rel=1e-3)


def test_where_signs_alone_are_known_nothing_changes() -> None:
    labels = np.where(square(20, 0)[:, 0] > 0, 1.0, -1.0)
    nothing = Sizes(np.zeros(20), np.zeros(20, dtype=bool))
    mean, variance = square(20, 1)[:, 0] * 8, np.linspace(0.1, 30, 20)
    for one, other in zip(
        moments(labels, nothing, mean, variance), label_moments(labels, mean, variance), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    covariance = smooth(square(20, 0), 30.0, 0.4)
    first, second = propagate(covariance, labels), propagate(covariance, labels, sizes=nothing)
    np.testing.assert_array_equal(first.precision, second.precision)
    np.testing.assert_array_equal(first.shift, second.shift)
    assert first.log_evidence == second.log_evidence


# --------------------------------------------------------------------------- many


def test_exact_observations_alone_are_regression() -> None:
    """No approximation is left: scikit-learn's regression with noise of variance 1."""
    x = square(30, 2)
    values = 9 * x[:, 0] - 4 * x[:, 1] + np.random.default_rng(0).normal(size=30)
    covariance = smooth(x, 30.0, 0.7)
    sites = propagate(
        covariance, np.sign(values), sizes=Sizes(np.abs(values), np.ones(30, dtype=bool))
    )
    kernel = ConstantKernel(30.0) * RBF(0.7)
    oracle = GaussianProcessRegressor(kernel, alpha=1 + 3e-5, optimizer=None).fit(x, values)
    mean, variance = posterior(covariance, sites.precision, sites.shift)
    expected, deviation = oracle.predict(x, return_std=True)
    np.testing.assert_allclose(mean, expected, atol=1e-3)
    np.testing.assert_allclose(variance, deviation**2, rtol=2e-3)
    density = multivariate_normal(np.zeros(30), covariance + np.eye(30)).logpdf(values)
    assert sites.log_evidence == pytest.approx(density, abs=1e-3)


@pytest.mark.parametrize("correlation", [0.0, 0.7, -0.5])
def test_exact_and_censored_against_brute_force(correlation: float) -> None:
    covariance = 4.0 * np.array([[1, correlation], [correlation, 1]])
    labels, sizes = np.array([1.0, -1.0]), Sizes(np.array([1.5, 0.8]), np.array([True, False]))
    with patch.multiple(expectation_propagation, TOLERANCE=1e-9, SWEEPS=5000):
        sites = propagate(covariance, labels, sizes=sizes)
    unit = np.linspace(-8, 8, 801)
    cells = np.stack(np.meshgrid(unit, unit, indexing="ij"), -1).reshape(-1, 2)
    f = cells @ np.linalg.cholesky(covariance).T
    seen = norm.pdf(f[:, 0] - 1.5) * (LAPSE + (1 - 2 * LAPSE) * norm.cdf(-f[:, 1] - 0.8))
    weights = norm.pdf(cells).prod(1) * seen * (unit[1] - unit[0]) ** 2
    mean = weights @ f / weights.sum()
    found = posterior(covariance, sites.precision, sites.shift)
    # One label is not a Gaussian, so that this one factor is matched in its first two moments.
    assert sites.log_evidence == pytest.approx(np.log(weights.sum()), abs=1e-3)
    np.testing.assert_allclose(found[0], mean, atol=1e-2)
    np.testing.assert_allclose(found[1], weights @ (f - mean) ** 2 / weights.sum(), rtol=1e-2)


# --------------------------------------------------------------------------- which sizes count


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1.0, -1.0]),
            st.floats(0, 1e6) | st.sampled_from([1e-250, 1e250, np.inf, np.nan]),
        ),
        max_size=40,
    )
)
def test_laws_of_graded_sizes(points: list[tuple[float, float]]) -> None:
    labels, sizes = (np.array(part) for part in zip(*points, strict=True)) if points else ([], [])
    labels, sizes = np.array(labels), np.array(sizes)
    graded = Graded.of(labels, sizes)
    if graded is None:
        for sign in (1.0, -1.0):
            known = sizes[(labels == sign) & (sizes < LARGEST)]
            limit = np.quantile(known, NEAREST) if len(known) else 0.0
            assert len(known) < FEWEST or (known < limit).sum() < 2 or limit < LEAST
        return
    np.testing.assert_array_equal(graded.size[graded.exact], sizes[graded.exact])
    assert len(graded.limits) == len(graded.signs) == len(set(graded.signs))
    for index, (sign, limit) in enumerate(zip(graded.signs, graded.limits, strict=True)):
        here = labels == sign
        assert (graded.side[here] == index).all()
        assert (graded.size[here] <= limit).all()
        censored = here & ~graded.exact
        assert not (sizes[censored] < limit).any()
        assert graded.exact[here].sum() <= (sizes[here] < LARGEST).sum() * NEAREST + 1
    for sign in {1.0, -1.0} - set(graded.signs):
        assert (graded.size[labels == sign] == 0).all()
        assert not graded.exact[labels == sign].any()


# --------------------------------------------------------------------------- what is fitted


def observed(n: int, seed: int) -> tuple[Array, Array, Graded]:
    x = square(n, seed)
    margin = x[:, 0] + 0.5 * x[:, 1] + 0.01 * np.random.default_rng(seed).normal(size=n)
    labels = np.where(margin >= 0, 1.0, -1.0)
    graded = Graded.of(labels, np.abs(margin))
    assert graded is not None
    return x, labels, graded


def test_gradient_is_that_of_the_value() -> None:
    x, labels, graded = observed(30, 0)
    size = _Size(2, 0, graded.limits)
    objective = _Objective(size, x, labels, graded)
    # The jitter grows with the variances, which the gradient leaves out.
    with (
        patch.multiple(expectation_propagation, TOLERANCE=1e-9, SWEEPS=5000),
        patch.object(gaussian_process, "JITTER", 1e-9),
    ):
        for seed in range(3):
            random = np.random.default_rng(seed)
            raw = size.means + 0.3 * size.deviations * random.normal(size=len(size.means))
            numeric = [
                (objective(raw + step)[0] - objective(raw - step)[0]) / 2e-4
                for step in 1e-4 * np.eye(len(raw))
            ]
            np.testing.assert_allclose(objective(raw)[1], numeric, rtol=1e-4, atol=1e-3)


def test_value_is_a_density_of_margins() -> None:
    """Two margins, exact: the density of margin = (f + e) / scale, and the priors."""
    x = np.array([[-0.2], [0.3]])
    margins, labels = np.array([0.4, -0.1]), np.array([1.0, -1.0])
    graded = Graded(
        np.abs(margins), np.ones(2, dtype=bool), np.array([0, 1]), (0.5, 0.2), (1.0, -1.0)
    )
    size = _Size(1, 0, graded.limits)
    raw = size.means + 0.1
    at = size.unpack(raw)
    assert at.scales == pytest.approx(np.exp(SCALE[0] + 0.1) / np.array([0.5, 0.2]))
    scales = np.array(at.scales)
    covariance = (at.covariance(x, x) + np.eye(2)) / np.outer(scales, scales)
    density = multivariate_normal(np.zeros(2), covariance).logpdf(margins)
    penalty = 0.5 * ((0.1 / size.deviations) ** 2).sum()
    assert _Objective(size, x, labels, graded)(raw)[0] == pytest.approx(penalty - density, abs=1e-3)


def test_units_of_margins_do_not_matter() -> None:
    x, labels, graded = observed(24, 1)
    thousand = Graded(
        1000 * graded.size, graded.exact, graded.side,
        tuple(1000 * limit for limit in graded.limits), graded.signs,
    )  # fmt: skip
    plain = fit(x, labels)
    one, other = (fit(x, labels, near=plain, graded=g) for g in (graded, thousand))
    np.testing.assert_allclose(1000 * np.array(other.scales), one.scales, rtol=0.05)
    at = square(50, 2)
    means = [
        Classifier(x, labels, h, graded=g).predict(at)[0]
        for h, g in ((one, graded), (other, thousand))
    ]
    np.testing.assert_allclose(means[0], means[1], rtol=0.05, atol=0.1)


def test_a_vector_and_its_scales() -> None:
    size = _Size(2, 0, (0.5, 3.0))
    raw = size.means + np.arange(len(size.means)) / 10
    np.testing.assert_allclose(size.pack(size.unpack(raw)), raw)
    without = Hyperparameters(np.eye(2), 1.0, 2.0, 3.0)
    np.testing.assert_allclose(size.pack(without)[-2:], size.means[-2:])


# --------------------------------------------------------------------------- surfaces


def sobol(n: int, seed: int) -> Array:
    found: Array = qmc.Sobol(2, rng=seed).random_base2(max(n - 1, 1).bit_length())
    return found[:n]


def ramp(x: Array) -> Array:
    """Margins that fall to 0 evenly: stable on both sides, bounded on one."""
    stable = 0.6 - x[:, 1] - 0.25 * np.sin(4 * x[:, 0])
    bounded = 0.9 - x[:, 1] - 0.3 * x[:, 0]
    return np.stack([stable, np.where(bounded > 0, 1.0, 50 * bounded)], axis=1)


def misleading(x: Array) -> Array:
    """The same boundaries; sizes grow towards them."""
    margins = ramp(x)
    return np.asarray(np.sign(margins) * (3 - np.minimum(np.abs(margins), 2)))


def wrong(fitted: Surface, margins: Callable[[Array], Array]) -> float:
    at = sobol(4096, 9)
    stable, bounded = (margins(at) >= 0).T
    truth = np.where(~bounded, 2, np.where(stable, 0, 1))
    return float((fitted.probabilities(at).argmax(1) != truth).mean())


def test_sizes_of_an_even_ramp_halve_what_is_wrong() -> None:
    with_sizes, without = [], []
    for seed in range(4):
        x = sobol(32, seed)
        with_sizes.append(wrong(Surface.fit(x, ramp(x)), ramp))
        without.append(wrong(Surface.fit(x, ramp(x), sizes=False), ramp))
    assert np.mean(with_sizes) < 0.5 * np.mean(without)


def test_sizes_that_forecast_worse_do_not_count() -> None:
    """Then the surface is that of the labels alone, to the bit."""
    x, at = sobol(64, 1), sobol(128, 2)
    margins = misleading(x)
    assert surface._chosen(labelled(x, margins, 0)).sizes == b""
    plain = Surface.fit(x, margins, sizes=False)
    found = Surface.fit(x, margins)
    np.testing.assert_array_equal(found.stable.probability(at), plain.stable.probability(at))


def labelled(x: Array, margins: Array, field: int) -> surface._Labelled:
    labels, sizes = surface._observed(margins, field, True)
    return surface._Labelled.of(x, labels, 0, sizes)


def test_the_choice_is_by_forecasts() -> None:
    """What each eight points say of the next eight, written out."""
    x = sobol(40, 3)
    margins = ramp(x)
    labels, sizes = surface._labels(margins)[0], surface._sizes(margins)[0]
    for known in range(STEP, 40, STEP):
        graded = Graded.of(labels[:known], sizes[:known])
        assert graded is not None
        here, there = x[:known] - 0.5, x[known : known + STEP] - 0.5
        plain = fit(here, labels[:known])
        scaled = fit(here, labels[:known], near=plain, graded=graded)
        chances = []
        for at, of in ((scaled, graded), (plain, None)):
            mean, variance = Classifier(here, labels[:known], at, graded=of).predict(there)
            chance = norm.cdf(labels[known : known + STEP] * mean / np.sqrt(1 + variance))
            chances.append(np.log(LAPSE + (1 - 2 * LAPSE) * chance).sum())
        found = surface._gain(labelled(x, margins, 0).first(known + STEP), known)
        assert found == pytest.approx(chances[0] - chances[1], abs=0.02)
    assert np.exp(LOG_LAPSE) == pytest.approx(LAPSE)


def test_which_margins_have_sizes() -> None:
    """Stable ones of bounded trainings, bounded ones of divergent trainings."""
    nan = np.nan
    margins = np.array([[0.5, 1.0], [-0.3, 1.0], [-1.0, -7.0], [0.2, -0.1], [nan, 2.0], [1.0, nan]])
    stable, bounded = surface._sizes(margins)
    np.testing.assert_array_equal(stable, [0.5, 0.3, np.inf, np.inf, nan, np.inf])
    np.testing.assert_array_equal(bounded, [np.inf, np.inf, 7.0, 0.1, np.inf, nan])


def test_a_side_whose_sizes_come_late_has_none_until_the_next_fit() -> None:
    """Of the first eight points two are restrained: too few for sizes of that side."""
    x = sobol(64, 4)
    side = ramp(x)[:, 0] < 0
    x = x[np.r_[np.flatnonzero(~side)[:6], np.flatnonzero(side)[:6]]]
    margins = np.where(np.arange(2) == 1, 1.0, ramp(x))
    given = labelled(x, margins, 0)
    graded, before = given.graded, given.first(STEP).graded
    assert graded is not None and graded.signs == (1.0, -1.0)
    assert before is not None and before.signs == (1.0,)
    found = surface._process(given)
    at = found.hyperparameters
    alone = Classifier(x - 0.5, surface._labels(margins)[0], at)
    mean, expected = found.predict(x - 0.5)[0], alone.predict(x - 0.5)[0]
    np.testing.assert_allclose(mean, expected, rtol=0.05, atol=0.05)


def test_fits_for_another_process_are_enough_for_the_next_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = sobol(32, 3)
    margins = ramp(x)
    forget_fits()
    found = surface.fitted(x[:24], margins[:24], 0, 0)
    forget_fits()
    surface.remember(found)
    monkeypatch.setattr(surface, "fit", None)
    surface._gain(labelled(x, margins, 0), 24)


@pytest.mark.parametrize("worse", [-0.9, -1.1])
def test_patience(worse: float) -> None:
    x = sobol(24, 3)
    given = labelled(x, ramp(x), 0)
    with (
        patch.object(surface, "PATIENCE", 1.0),
        patch.object(surface, "_gain", lambda _given, _known: worse / 2),
    ):
        assert bool(surface._chosen(given).sizes) is (worse > -1)


def test_what_the_first_points_say_is_final() -> None:
    asked = []

    def gain(given: surface._Labelled, known: int) -> float:
        asked.append((len(given), known))
        return 0.0

    x = sobol(256, 0)
    with patch.object(surface, "_gain", gain):
        surface._chosen(labelled(x, ramp(x), 0))
    assert asked == [(known + STEP, known) for known in range(STEP, ALWAYS, STEP)]


@pytest.mark.parametrize("kind", ["nan", "inf", "one", "two", "same", "divergent"])
def test_margins_without_sizes_to_go_by(kind: str) -> None:
    x = sobol(24, 5)
    margins = ramp(x)
    margins = {
        "nan": np.where(margins < 0, np.nan, margins),
        "inf": np.sign(margins) * np.inf,
        "one": margins[:1],
        "two": margins[:2],
        "same": np.sign(margins),
        "divergent": -np.abs(margins),
    }[kind]
    found = Surface.fit(x[: len(margins)], margins).probabilities(sobol(64, 6))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1)
    if kind in ("inf", "same"):
        plain = Surface.fit(x, margins, sizes=False).probabilities(sobol(64, 6))
        np.testing.assert_array_equal(found, plain)


@settings(max_examples=5, deadline=None)
@given(counts=st.lists(st.integers(2, 90), min_size=1, max_size=3))
def test_a_fit_with_sizes_is_a_function_of_its_points_alone(counts: list[int]) -> None:
    """Whatever was fitted before, and in whichever process its parts were."""
    x, at = sobol(128, 7)[:90], sobol(32, 8)
    margins = ramp(x)
    forget_fits()
    alone = Surface.fit(x, margins).probabilities(at)
    forget_fits()
    for count in counts:
        Surface.fit(x[:count], margins[:count])
    parts = [surface.fitted(x, margins, 0, field) for field in (0, 1)]
    forget_fits()
    for part in parts:
        surface.remember(part)
    found = Surface.fit(x, margins).probabilities(at)
    np.testing.assert_array_equal(found, alone)


# --------------------------------------------------------------------------- the sampler


def test_a_search_with_sizes_needs_fewer_points() -> None:
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(0, 1) for name in "ab"
    }
    at = sobol(1024, 9)
    asked = [dict(zip(space, map(float, place), strict=True)) for place in at]
    stable, bounded = (ramp(at) >= 0).T
    truth = np.where(~bounded, 2, np.where(stable, 0, 1))
    found: dict[bool, list[float]] = {True: [], False: []}
    for sizes in found:
        for seed in range(3):
            sampler = BoundarySampler(seed=seed, space=space, sizes=sizes)
            study = optuna.create_study(sampler=sampler)
            for _ in range(32):
                trial = study.ask(space)
                place = np.array([[trial.params["a"], trial.params["b"]]])
                trial.set_user_attr("margins", ramp(place)[0].tolist())
                study.tell(trial, 0.0)
            found[sizes].append(
                float((sampler.predict_proba(study, asked).argmax(1) != truth).mean())
            )
    assert np.mean(found[True]) < 0.5 * np.mean(found[False])
