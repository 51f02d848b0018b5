"""What is known of a map's errors: bounds against binomial tails, estimates against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom, binomtest
from synthetic import ALPHA, DECAY, LR, map_of, margins_at, result_of, signs_at, spec_of

from analysis.gaussian_process import JITTER
from analysis.map import REGIMES, StabilityMap
from analysis.quality import (
    BOX,
    Audit,
    Quality,
    audit_level,
    audit_size,
    box_points,
    misclassified,
    notes,
)
from analysis.surface import Field, Surface, columns
from sweeps.search.designs import SobolDesign
from trainables.domain import AXIS_NAMES, Margins, Point

Array = NDArray[np.float64]
PLANE: Mapping[str, Any] = {"lr": LR, "weight_decay": DECAY}

# --------------------------------------------------------------------------- audits


@given(points=st.integers(1, 400), share=st.floats(0, 1), level=st.floats(0.001, 0.3))
def test_bound_is_the_interval_of_a_binomial_test(points: int, share: float, level: float) -> None:
    errors = round(share * points)
    expected = binomtest(errors, points, alternative="less").proportion_ci(1 - level, "exact")
    assert Audit(points, errors, level).bound == pytest.approx(expected.high, rel=1e-9)


@given(points=st.integers(1, 60), share=st.floats(0, 0.99), level=st.floats(0.001, 0.3))
def test_bound_by_the_tail_itself(points: int, share: float, level: float) -> None:
    """With that share of the box wrong, so few errors would be as improbable as the level."""
    errors = int(share * points)
    wrong = Audit(points, errors, level).bound
    tail = math.fsum(
        math.comb(points, k) * wrong**k * (1 - wrong) ** (points - k) for k in range(errors + 1)
    )
    assert tail == pytest.approx(level, rel=1e-6)


def test_bounds_worth_knowing() -> None:
    for points, bound in ((16, 0.17), (59, 0.05), (149, 0.02)):
        assert bound - 0.01 < Audit(points, 0).bound <= bound + 0.002
    assert Audit(149, 0).bound <= 0.02 < Audit(148, 0).bound
    assert Audit(7, 7).bound == 1.0
    assert Audit(1, 1).bound == 1.0
    assert Audit(7, 6).bound < 1.0


@pytest.mark.parametrize("points", [1, 5, 16, 59])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_bound_holds_as_often_as_it_says(points: int, level: float) -> None:
    """Whatever the true share; and not much more often than that, at its worst."""
    bounds = np.array([Audit(points, errors, level).bound for errors in range(points + 1)])
    true = np.linspace(0.001, 0.999, 999)
    wrong = [binom.pmf(np.flatnonzero(bounds < t), points, t).sum() for t in true]
    assert max(wrong) <= level + 1e-12
    assert max(wrong) > 0.7 * level


@given(tolerance=st.floats(0.004, 0.9), level=st.floats(0.001, 0.3))
def test_audit_size_is_the_least(tolerance: float, level: float) -> None:
    size = audit_size(tolerance, level)
    assert Audit(size, 0, level).bound <= tolerance + 1e-12
    assert size == 1 or Audit(size - 1, 0, level).bound > tolerance


def test_audit_sizes_worth_knowing() -> None:
    assert [audit_size(t) for t in (0.17, 0.05, 0.02)] == [17, 59, 149]


def test_audits_until_one_agrees_are_wrong_seldom_in_all() -> None:
    levels = [audit_level(number, 0.05) for number in range(1, 60)]
    assert levels[:2] == [0.025, 0.0125]
    assert math.fsum(levels) <= 0.05
    assert audit_level(1, None) == audit_level(4, None) == 0.05


# --------------------------------------------------------------------------- the box


def test_box_points_cover_the_box() -> None:
    """Each axis by itself is covered without a gap, and one eighth of an axis with zero is 0."""
    axes = spec_of({"lr": LR, "alpha": ALPHA, "weight_decay": DECAY}).space
    found = box_points(axes, 512)
    assert found.shape == (512, 3)
    for axis, values in zip(axes[:2], found.T, strict=False):
        assert values.min() >= axis.smallest and values.max() <= (axis.high or 0)
        counts = np.bincount((axis.to_unit(values) * 64).astype(int), minlength=64)
        assert (counts == 8).all()
    decay = found[:, 2]
    assert (decay == 0).sum() == 64
    unit = axes[2].to_unit(decay[decay > 0])
    assert decay[decay > 0].min() >= 1e-4 and decay.max() <= 1
    assert (np.bincount((unit * 56).astype(int), minlength=56) == 8).all()
    assert (box_points(axes, 512) == found).all()
    assert (box_points(axes, 512, seed=1) != found).any()


def test_box_points_of_fixed_axes() -> None:
    axes = spec_of({"lr": LR, "alpha": 0.7, "weight_decay": 0.02}).space
    assert (box_points(axes, 32)[:, 1:] == [0.7, 0.02]).all()
    point = spec_of({"lr": 0.3, "alpha": 0.7, "weight_decay": 0}).space
    assert (box_points(point, 8) == [0.3, 0.7, 0.0]).all()


@pytest.mark.parametrize("axes", [PLANE, {"lr": LR}, {**PLANE, "alpha": ALPHA}])
def test_box_points_are_those_of_the_design(axes: Mapping[str, Any]) -> None:
    """The volume that is counted is the one that a Sobol search covers."""
    space = spec_of(axes).space
    design = SobolDesign(space, 5)
    points = [[p.lr, p.alpha, p.weight_decay] for p in (design[i] for i in range(64))]
    np.testing.assert_array_equal(box_points(space, 64, seed=5), points)


# --------------------------------------------------------------------------- the estimate


def fitted(
    count: int, seed: int = 0, margins: Callable[[Point], Margins] = margins_at
) -> StabilityMap:
    space = spec_of(PLANE).space
    points = [Point(*map(float, row)) for row in box_points(space, count, seed=100 + seed)]
    return map_of(PLANE, points, margins)


def box(found: StabilityMap) -> Array:
    return columns(found.axes, box_points(found.axes, BOX))[0]


def other_regime(surface: Surface, x: Array) -> Array:
    """Probability, at each place, that both latent functions together say another regime."""
    positive = [
        ndtr(mean / np.sqrt(variance))
        for mean, variance in (field.predict(x) for field in (surface.stable, surface.bounded))
    ]
    stable, bounded = positive
    each = np.stack([stable * bounded, (1 - stable) * bounded, 1 - bounded], axis=1)
    shown = surface.probabilities(x).argmax(1)
    return np.asarray(1 - each[np.arange(len(x)), shown])


@pytest.mark.parametrize("count", [16, 64])
def test_the_mean_is_that_of_the_single_places(count: int) -> None:
    found = fitted(count)
    x = box(found)
    shares = [misclassified(found.surface, x, seed) for seed in range(12)]
    for share, (low, high) in shares:
        assert 0 <= low < share < high <= 1
    # 3072 draws, whose deviation is about a third of the interval.
    error = (shares[0][1][1] - shares[0][1][0]) / 3 / math.sqrt(12 * 256)
    expected = other_regime(found.surface, x).mean()
    assert np.mean([share for share, _ in shares]) == pytest.approx(expected, abs=5 * error)


def places_of(found: StabilityMap) -> Array:
    places: Array = found.frame[list(AXIS_NAMES)].to_numpy()
    return places


def joint(field: Field, known: Array, x: Array) -> tuple[Array, Array]:
    """Mean and covariance of a latent function, by the plain formulas of the posterior."""
    process, prior = field.process, field.process.hyperparameters
    points = known - 0.5
    root = np.sqrt(np.maximum(process.sites.precision, 0))[:, None]
    between = prior.covariance(points, points) + JITTER * np.diag(prior.prior_variance(points))
    inner = np.eye(len(points)) + root * between * root.T
    across = root * prior.covariance(points, x - 0.5)
    covariance = prior.covariance(x - 0.5, x - 0.5) - across.T @ np.linalg.solve(inner, across)
    return field.predict(x)[0], covariance


def test_the_interval_is_that_of_joint_draws() -> None:
    """Far wider than if each place erred for itself."""
    found = fitted(32, margins=signs_at)
    x = box(found)[:200]
    known = columns(found.axes, places_of(found))[0]
    random = np.random.default_rng(1)
    signs = []
    for field in (found.surface.stable, found.surface.bounded):
        mean, covariance = joint(field, known, x)
        np.testing.assert_allclose(np.diag(covariance), field.predict(x)[1], rtol=1e-3)
        factor = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(x)))
        signs.append(mean + random.normal(size=(8000, len(x))) @ factor.T >= 0)
    regime = np.where(~signs[1], 2, np.where(~signs[0], 1, 0))
    shares = (regime != found.surface.probabilities(x).argmax(1)).mean(1)
    expected = np.quantile(shares, [0.05, 0.95])
    intervals = [misclassified(found.surface, x, seed)[1] for seed in range(8)]
    np.testing.assert_allclose(np.mean(intervals, axis=0), expected, rtol=0.12)
    alone = other_regime(found.surface, x)
    spread = 3.3 * math.sqrt((alone * (1 - alone)).sum()) / len(x)
    assert expected[1] - expected[0] > 1.3 * spread


def test_the_estimate_is_a_function_of_the_map() -> None:
    found = fitted(32)
    assert misclassified(found.surface, box(found)) == misclassified(found.surface, box(found))
    again = map_of(PLANE, [Point(*row) for row in places_of(found).tolist()])
    assert again.quality == found.quality


def test_the_true_error_is_not_far() -> None:
    """Straight boundaries: within the factor that is promised, on average over maps."""
    ratios = []
    for seed in range(4):
        found = fitted(64, seed)
        places = box_points(found.axes, 2048, seed=7)
        shown = found.surface.probabilities(columns(found.axes, places)[0]).argmax(1)
        true = [REGIMES.index(margins_at(Point(*row)).regime.value) for row in places.tolist()]
        wrong = float((shown != true).mean())
        assert wrong < 1.5 * found.quality.interval[1]
        ratios.append(wrong / found.quality.misclassified)
    assert 1 / 3 < np.mean(ratios) < 2


def test_more_points_leave_less_to_expect() -> None:
    few, many = fitted(16).quality, fitted(128).quality
    assert many.misclassified < few.misclassified / 2
    assert many.interval[1] < few.interval[1]


# --------------------------------------------------------------------------- notes


def margins_of(stable: float, divergent: float) -> Callable[[Point], Margins]:
    """Boundaries at two decades of the learning rate."""

    def margins(point: Point) -> Margins:
        here = math.log10(point.lr)
        return Margins(stable - here if here < divergent else -1.0, divergent - here)

    return margins


NO_DIVERGENCE = "no training diverged: "
ALL_DIVERGED = "every training diverged: "
ALL_STABLE = "every training was stable: "
NONE_STABLE = "no training was stable: "
NO_RESTRAINED = "no restrained training was seen: "


@pytest.mark.parametrize(
    ("stable", "divergent", "expected"),
    [
        (-0.5, 0.7, []),
        (9, 9, [ALL_STABLE]),
        (-9, -9, [ALL_DIVERGED, NONE_STABLE]),
        (-9, 9, [NO_DIVERGENCE, NONE_STABLE]),
        (-9, 0, [NONE_STABLE]),
        (0, 9, [NO_DIVERGENCE]),
        (0, 0, [NO_RESTRAINED]),
    ],
)
def test_notes(stable: float, divergent: float, expected: list[str]) -> None:
    """What was not found; with the largest probability that it has in the box, as `classify`."""
    found = map_of({"lr": LR}, 16, margins_of(stable, divergent))
    said = notes(found.surface, found.unit(box_points(found.axes, 512)))
    assert [note[: len(start)] for note, start in zip(said, expected, strict=True)] == expected
    assert found.quality.notes == said
    places = box_points(found.axes, BOX)
    largest = {name: p.max() for name, p in found.classify(lr=places[:, 0]).items()}
    about = {NO_DIVERGENCE: "divergent", NONE_STABLE: "stable", NO_RESTRAINED: "restrained"}
    for note, start in zip(said, expected, strict=True):
        if start in about:
            assert f" at most {largest[about[start]]:.2f} in " in note


def test_quality_in_words() -> None:
    plain = Quality(0.0312, (0.012, 0.0571), None, ())
    assert str(plain).splitlines() == [
        "expected to be misclassified: 3.1% of the box (1.2% to 5.7% by the model itself)",
        "audit: none",
    ]
    audited = replace(plain, audit=Audit(59, 0, 0.025), notes=("no one came", "nor went"))
    assert str(audited).splitlines()[1:] == [
        "audit: 0 of 59 random points misclassified, so at most 6.1% of the box with "
        "0.975 confidence",
        "no one came",
        "nor went",
    ]
    assert "with 0.95 confidence" in str(replace(plain, audit=Audit(8, 1)))


# --------------------------------------------------------------------------- audits of a map


def audited(wrong: set[int], tolerance: float | None = None) -> StabilityMap:
    """48 points; 16 to 23 are audit 1, 40 to 47 are audit 2; some have labels turned round."""
    spec = spec_of(PLANE, search={"tolerance": tolerance})
    design = SobolDesign(spec.space, 3)
    results = []
    for number in range(48):
        margins = margins_at(design[number])
        if number in wrong:
            margins = Margins(1, 1) if margins.stable < 0 else Margins(-1, -1)
        results.append((number, result_of(design[number], margins)))
    audits = {number: 1 + number // 40 for number in (*range(16, 24), *range(40, 48))}
    return StabilityMap.of(spec.about(), results, audits)


def by_hand(found: StabilityMap, first: int, last: int) -> int:
    """Errors of the map of the points before, from the surface itself."""
    x, indicators = columns(found.axes, places_of(found))
    margins = found.frame[["margin_stable", "margin_bounded"]].to_numpy()
    before = Surface.fit(x[:first], margins[:first], indicators)
    shown = before.probabilities(x[first:last]).argmax(1)
    seen = [REGIMES.index(regime) for regime in found.frame["regime"][first:last]]
    return int((shown != seen).sum())


def test_an_audit_is_held_against_the_points_before_it() -> None:
    plain, turned = audited(set()), audited({40, 41, 43})
    for found in (plain, turned):
        assert found.audit(1) == Audit(8, by_hand(found, 16, 24))
        assert found.audit(2) == found.audit() == Audit(8, by_hand(found, 40, 48))
    first, second = plain.audit(), turned.audit()
    assert first is not None and second is not None
    assert second.errors > first.errors
    assert plain.audit(1) == turned.audit(1)
    assert plain.quality.audit == plain.audit()


def test_the_level_of_an_audit() -> None:
    levels = [a.level for n in (1, 2) if (a := audited(set(), 0.05).audit(n)) is not None]
    assert levels == [0.025, 0.0125]


def test_no_such_audit() -> None:
    found = audited(set())
    for number in (0, -1, 3):
        assert found.audit(number) is None
    assert map_of({"lr": LR}, 8).audit() is None
    spec = spec_of({"lr": LR})
    results = [(i, result_of(Point(0.1 * (i + 1)), Margins(1, 1))) for i in range(4)]
    nothing_before = StabilityMap.of(spec.about(), results, dict.fromkeys(range(4), 1))
    assert nothing_before.audit() is None
    assert nothing_before.quality.audit is None


def test_quality_of_a_single_point() -> None:
    quality = map_of({"lr": 0.1}, [Point(0.1)]).quality
    assert quality.audit is None
    assert 0 < quality.misclassified < 0.5
