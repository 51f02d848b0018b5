"""The fitted model: right where the boundary is known, sane where there is little to know."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic import forget_fits

from analysis import surface as model
from analysis.gaussian_process import fit as fit_hyperparameters
from analysis.surface import (
    ALWAYS,
    ANCHORS,
    CHUNK,
    GROWTH,
    INDICATOR,
    MOST,
    STEP,
    Field,
    Surface,
    anchor,
    columns,
    fitted_at,
    regime_probabilities,
    representatives,
)
from sweeps.search.designs import SobolDesign
from trainables.domain import Axis, InputError, Margins, Regime

Array = NDArray[np.float64]

LR = Axis("lr", "log", 0.01, 100.0)
ALPHA = Axis("alpha", "linear", 0.0, 2.0)
DECAY = Axis("weight_decay", "log", 1e-4, 1.0)
NO_ALPHA = Axis("alpha", value=0.0)
NO_DECAY = Axis("weight_decay", value=0.0)
ZERO_DECAY = Axis("weight_decay", "log", 1e-4, 1.0, zero=True)
PLANE = (LR, NO_ALPHA, DECAY)
STABLE, RESTRAINED, DIVERGENT = range(3)


def places(space: tuple[Axis, ...], count: int, seed: int = 0) -> Array:
    """(count, 3) points of a Sobol design."""
    design = SobolDesign(space, seed)
    points = [design[i] for i in range(count)]
    return np.array([[p.lr, p.alpha, p.weight_decay] for p in points])


def fit(space: tuple[Axis, ...], points: Array, margins: Array) -> Surface:
    """The model of points in the axes' own units."""
    x, indicators = columns(space, points)
    return Surface.fit(x, margins, indicators)


def ask(surface: Surface, space: tuple[Axis, ...], points: Array) -> Array:
    return surface.probabilities(columns(space, points)[0])


def distances(points: Array) -> tuple[Array, Array]:
    """Unit distances to two slanted straight boundaries in (log lr, log weight decay)."""
    x = (np.log10(points[:, 0]) + 2) / 4
    y = (np.log10(points[:, 2]) + 4) / 4
    return 0.4 - (x + 0.3 * y), 0.75 - (x + 0.3 * y)


def margins_of(points: Array) -> Array:
    return np.stack(distances(points), axis=1)


def regimes(stable: Array, bounded: Array) -> NDArray[np.int64]:
    return np.where(bounded < 0, DIVERGENT, np.where(stable < 0, RESTRAINED, STABLE))


Shape = Callable[[Array], Array]
#: What a margin may look like: only its sign is known beforehand.
SHAPES: dict[str, Shape] = {
    "straight": lambda d: d,
    "tiny": lambda d: 1e-9 * d,
    "exploding": lambda d: np.where(d < 0, -1e6 * d**2, d),
    "saturating": lambda d: np.clip(4 * d, -1, 1),
    "infinite": lambda d: np.where(d < 0, -np.inf, np.inf),
    "not a number": lambda d: np.where(d < 0, np.nan, d),
}


# --------------------------------------------------------------------------- known boundaries


@pytest.mark.parametrize("shape", SHAPES)
def test_regions_of_a_known_map(shape: str) -> None:
    """64 points; right with probability .9 from 0.08 of the axes on, wrong nowhere but nearby."""
    points = places(PLANE, 64)
    margins = np.stack([SHAPES[shape](d) for d in distances(points)], axis=1)
    surface = fit(PLANE, points, margins)

    asked = places(PLANE, 512, seed=1)
    stable, bounded = distances(asked)
    truth = regimes(stable, bounded)
    found = ask(surface, PLANE, asked)
    far = np.minimum(np.abs(stable), np.abs(bounded)) > 0.08
    assert far.sum() > 300
    assert found[far, truth[far]].min() > 0.9
    wrong = np.argmax(found, axis=1) != truth
    assert np.minimum(np.abs(stable), np.abs(bounded))[wrong].max(initial=0) < 0.05


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16))
def test_only_the_signs_count_where_sizes_do_not(seed: int) -> None:
    """Any sizes, even a different one for each point, give the same map to the bit."""
    points = places(PLANE, 20)
    margins, x = margins_of(points), columns(PLANE, points)[0]
    sizes = 10 ** np.random.default_rng(seed).uniform(-9, 9, margins.shape)
    first, second = (
        Surface.fit(x, values, sizes=False).probabilities(x)
        for values in (margins, margins * sizes)
    )
    np.testing.assert_array_equal(first, second)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([1.0, 9.0, 300.0]),
    order=st.sampled_from(["any", "rising", "falling"]),
)
def test_sizes_of_any_order_make_a_map(seed: int, spread: float, order: str) -> None:
    """Also where those of later points have nothing to do with those of the first ones."""
    points = places(PLANE, 20)
    margins, x = margins_of(points), columns(PLANE, points)[0]
    sizes = 10 ** np.random.default_rng(seed).uniform(-spread, spread, margins.shape)
    if order != "any":
        sizes = np.sort(sizes, axis=0)[:: 1 if order == "rising" else -1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Surface.fit(x, np.sign(margins) * sizes).probabilities(x)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1)


def test_doubt_is_where_the_boundary_is() -> None:
    """Across a boundary the probabilities pass through every stage, in the right order."""
    points = places(PLANE, 64)
    surface = fit(PLANE, points, margins_of(points))
    lr = 10 ** np.linspace(-2, 2, 401)
    row = np.stack([lr, np.zeros(401), np.full(401, 0.01)], axis=1)
    found = ask(surface, PLANE, row)
    best = np.argmax(found, axis=1)
    assert [int(k) for k, _ in itertools.groupby(best)] == [STABLE, RESTRAINED, DIVERGENT]
    changes = lr[1:][np.diff(best) != 0]
    # 0.4 and 0.75 less 0.3 * 0.5, of four decades from -2 on
    np.testing.assert_allclose(np.log10(changes), [4 * 0.25 - 2, 4 * 0.6 - 2], atol=0.1)
    assert ((found > 0.2) & (found < 0.8)).any()


def test_three_axes() -> None:
    """The regulariser shifts both boundaries; the model sees it in all three directions."""
    space = (LR, ALPHA, DECAY)

    def truth(points: Array) -> Array:
        return margins_of(points) + 0.1 * points[:, [1]]

    points = places(space, 128)
    surface = fit(space, points, truth(points))
    asked = places(space, 512, seed=3)
    far = np.abs(truth(asked)).min(1) > 0.1
    best = np.argmax(ask(surface, space, asked), axis=1)
    assert (best == regimes(*truth(asked).T))[far].all()


def test_the_zero_level_is_a_place_of_its_own() -> None:
    """Stable at weight decay 0, divergent right above: the model keeps them apart."""
    space = (LR, NO_ALPHA, ZERO_DECAY)
    points = places(space, 64)
    calm = np.where(points[:, 2] == 0, 1.0, -1.0)
    surface = fit(space, points, np.stack([calm, calm], axis=1))
    at_zero = ask(surface, space, np.array([[0.1, 0, 0.0], [10.0, 0, 0.0]]))
    above = ask(surface, space, np.array([[0.1, 0, 0.01], [10.0, 0, 0.01]]))
    assert at_zero[:, STABLE].min() > 0.6
    assert above[:, DIVERGENT].min() > 0.9


def test_the_zero_level_continues_what_lies_above_it() -> None:
    """One boundary in lr alone: points above 0 also say where it lies at 0."""
    space = (LR, NO_ALPHA, ZERO_DECAY)
    points = places(space, 64)
    points = points[points[:, 2] > 0]
    stable = 0.4 - (np.log10(points[:, 0]) + 2) / 4
    surface = fit(space, points, np.stack([stable, np.ones_like(stable)], axis=1))
    found = ask(surface, space, np.array([[0.02, 0, 0.0], [50.0, 0, 0.0]]))
    assert found[0, STABLE] > 0.8
    assert found[1, RESTRAINED] > 0.8


# --------------------------------------------------------------------------- laws


@settings(max_examples=8)
@given(count=st.integers(1, 12), seed=st.integers(0, 2**16), scale=st.floats(-6, 6))
def test_probabilities_of_any_margins(count: int, seed: int, scale: float) -> None:
    """They lie in [0, 1] and sum to 1 for noise of any size, at the points and between them."""
    random = np.random.default_rng(seed)
    space = (LR, ALPHA, DECAY)
    points = places(space, count, seed)
    noise = random.normal(size=(count, 2)) * 10 ** random.uniform(-6, scale, (count, 2))
    surface = fit(space, points, noise)
    asked = np.concatenate([points, places(space, 64, seed + 1)])
    found = ask(surface, space, asked)
    assert found.shape == (count + 64, 3)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


@given(st.floats(0, 1), st.floats(0, 1))
def test_regimes_of_two_probabilities(stable: float, bounded: float) -> None:
    """They share the whole, divergent is what is not bounded, and certainty stays certain."""
    first, second, third = regime_probabilities(np.array([stable]), np.array([bounded]))[0]
    assert first + second + third == pytest.approx(1)
    assert min(first, second, third) >= 0
    assert third == pytest.approx(1 - bounded)
    assert first <= min(stable, bounded)
    corners = regime_probabilities(np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(corners, np.eye(3))


SIGNS = [
    ((1.0, 1.0), STABLE),
    ((-1.0, 1.0), RESTRAINED),
    ((-1.0, -1.0), DIVERGENT),
    ((-1.0, -1e5), DIVERGENT),
]


@pytest.mark.parametrize(("margin", "regime"), SIGNS)
@pytest.mark.parametrize("varied", [False, True])
def test_one_regime_everywhere(margin: tuple[float, float], regime: int, varied: bool) -> None:
    """No boundary in sight, equal margins or not: it says so, and does not trip over it."""
    points = places(PLANE, 32)
    size = np.linspace(0.5, 2, 32)[:, None] if varied else np.ones((32, 1))
    surface = fit(PLANE, points, size * np.array(margin))
    found = ask(surface, PLANE, np.concatenate([points, places(PLANE, 64, seed=1)]))
    assert np.argmax(found, axis=1).tolist() == [regime] * 96
    assert found[:, regime].min() > 0.9
    assert np.median(found[:, regime]) > 0.95


@pytest.mark.parametrize(("margin", "regime"), SIGNS)
def test_one_point(margin: tuple[float, float], regime: int) -> None:
    """Likely there, and less sure further away."""
    here = np.array([[1.0, 0.0, 0.01]])
    surface = fit(PLANE, here, np.array([margin]))
    found = ask(surface, PLANE, np.concatenate([here, [[100.0, 0.0, 1.0]]]))
    assert found[0, regime] > 0.75
    assert found[1, regime] < found[0, regime]


@pytest.mark.parametrize(("margin", "regime"), SIGNS)
def test_no_free_axis(margin: tuple[float, float], regime: int) -> None:
    space = (Axis("lr", value=0.1), NO_ALPHA, NO_DECAY)
    here = np.array([[0.1, 0.0, 0.0]])
    for copies, sure in ((1, 0.75), (4, 0.9)):
        surface = fit(space, np.tile(here, (copies, 1)), np.tile(margin, (copies, 1)))
        assert ask(surface, space, here)[0, regime] > sure


def test_margins_of_zero() -> None:
    """Exactly on both boundaries counts as calm, as it does in a verdict."""
    points = places(PLANE, 8)
    for zero in (0.0, -0.0):
        margins = np.full((8, 2), zero)
        found = ask(fit(PLANE, points, margins), PLANE, points)
        assert (np.argmax(found, axis=1) == STABLE).all()
    assert Margins(0.0, -0.0).regime is Regime.STABLE


ODD = [
    (np.inf, np.inf, 1, 1),
    (-np.inf, np.inf, -1, 1),
    (-np.inf, -np.inf, -1, -1),
    (np.nan, 1.0, -1, 1),
    (np.nan, np.nan, -1, -1),
    (1.0, np.nan, -1, -1),
    (1.0, -1.0, -1, -1),
    (0.0, 1e-300, 1, 1),
]


def test_labels_of_odd_margins() -> None:
    """Not a number counts as negative, and nothing is stable that is not bounded."""
    margins = np.array([row[:2] for row in ODD])
    points = columns(PLANE, places(PLANE, len(ODD)))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surface = Surface.fit(points, margins)
        assert np.isfinite(surface.probabilities(points)).all()
    np.testing.assert_array_equal(surface.stable.labels, [row[2] for row in ODD])
    np.testing.assert_array_equal(surface.bounded.labels, [row[3] for row in ODD])


def test_the_only_sign() -> None:
    x = columns(PLANE, places(PLANE, 4))[0]
    surface = Surface.fit(x, np.array([[-1.0, 1.0], [-2.0, 1.0], [-1.0, 3.0], [-1.0, 1.0]]))
    assert (surface.stable.only, surface.bounded.only) == (-1, 1)
    assert Field(x, np.array([1.0, -1, 1, 1])).only == 0


def test_no_point() -> None:
    with pytest.raises(InputError, match="points = 0: a map needs at least one finished point"):
        Surface.fit(np.empty((0, 2)), np.empty((0, 2)))


@pytest.mark.parametrize("count", [1, 2, 7, 16, 40])
def test_fit_warns_of_nothing(count: int) -> None:
    x = columns(PLANE, places(PLANE, count))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for margins in (np.ones((count, 2)), margins_of(places(PLANE, count))):
            Surface.fit(x, margins).probabilities(x)


def test_equal_points_with_labels_of_both_signs() -> None:
    """A point repeated with other seeds: doubt there, in the share in which they came."""
    points = np.tile([[1.0, 0.0, 0.01]], (8, 1))
    margins = np.array([[1.0, 1.0]] * 6 + [[-1.0, 1.0]] * 2)
    found = ask(fit(PLANE, points, margins), PLANE, points[:1])[0]
    assert 0.55 < found[STABLE] < 0.9
    assert found[DIVERGENT] < 0.1


def test_many_points_are_predicted_in_parts() -> None:
    """As many at once as one by one, and none."""
    points = places(PLANE, 16)
    field = fit(PLANE, points, margins_of(points)).stable
    x = np.random.default_rng(0).uniform(0, 1, (CHUNK + 3, 2))
    mean, variance = field.predict(x)
    assert mean.shape == variance.shape == (CHUNK + 3,)
    some = [0, 1, CHUNK - 1, CHUNK, CHUNK + 2]
    for i in some:
        alone, spread = field.predict(x[[i]])
        assert alone[0] == pytest.approx(mean[i], rel=1e-6)
        assert spread[0] == pytest.approx(variance[i], rel=1e-6)
    assert field.predict(x[:0])[0].shape == (0,)


# --------------------------------------------------------------------------- columns


def test_columns() -> None:
    """A column a free axis, in the order of the axes, then one for each extra level at 0."""
    points = np.array([[1.0, 1.5, 0.01], [100.0, 0.0, 0.0], [0.01, 2.0, 1e-4]])
    found, indicators = columns((LR, ALPHA, ZERO_DECAY), points)
    switch = [0.5, 0.5 + INDICATOR, 0.5]
    expected = np.array([[0.5, 1.0, 0.0], [0.75, 0.0, 1.0], [0.5, 0.0, 0.0], switch]).T
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert indicators == 1

    alpha = Axis("alpha", "log", 0.01, 1.0, zero=True)
    points = np.array([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.0, 1.0]])
    found, indicators = columns((LR, alpha, ZERO_DECAY), points)
    on, off = 0.5 + INDICATOR, 0.5
    np.testing.assert_array_equal(found[:, 3:], np.array([[on, on], [off, on], [on, off]]))
    np.testing.assert_allclose(found[:, 1:3], np.array([[0, 0], [0.5, 0], [0, 1]]), atol=1e-12)
    assert indicators == 2


def test_columns_of_held_axes() -> None:
    points = np.array([[1.0, 1.5, 0.01], [100.0, 0.0, 0.0]])
    found, indicators = columns((LR, NO_ALPHA, NO_DECAY), points)
    np.testing.assert_allclose(found, [[0.5], [1.0]])
    assert indicators == 0
    found, indicators = columns((Axis("lr", value=1.0), NO_ALPHA, NO_DECAY), points)
    np.testing.assert_array_equal(found, np.zeros((2, 1)))
    assert indicators == 0


# --------------------------------------------------------------------------- function of data alone


def cold(x: Array, margins: Array, asked: Array) -> Array:
    """Probabilities of a fit for which nothing was fitted before."""
    forget_fits()
    return Surface.fit(x, margins).probabilities(asked)


@pytest.mark.parametrize("count", [5, STEP + 1, 3 * STEP + 5, ALWAYS + 7])
def test_fit_does_not_depend_on_earlier_fits(count: int) -> None:
    """Cold, after a search that fitted every number of points before, and after other points."""
    points = places(PLANE, count)
    x, margins = columns(PLANE, points)[0], margins_of(points)
    asked = columns(PLANE, places(PLANE, 32, seed=1))[0]
    alone = cold(x, margins, asked)
    np.testing.assert_array_equal(Surface.fit(x, margins).probabilities(asked), alone)
    for first in range(max(count - 20, 1), count):
        Surface.fit(x[:first], margins[:first])
    np.testing.assert_array_equal(Surface.fit(x, margins).probabilities(asked), alone)
    model._process.cache_clear()
    model._sites.cache_clear()
    for first in range(count - 3, count):
        Surface.fit(x[:first], margins[:first])
    Surface.fit(x[::-1], -margins)
    np.testing.assert_array_equal(Surface.fit(x, margins).probabilities(asked), alone)


PROCESS = """
import sys
import numpy as np
from analysis.surface import Surface
given = np.load(sys.argv[1])
found = Surface.fit(given["x"], given["margins"]).probabilities(given["asked"])
np.save(sys.argv[2], found)
"""


def test_fit_is_the_same_in_another_process(tmp_path: Path) -> None:
    """To the bit, also where the linear algebra may use more threads."""
    points = places(PLANE, 43)
    x, margins = columns(PLANE, points)[0], margins_of(points)
    asked = columns(PLANE, places(PLANE, 32, seed=1))[0]
    Surface.fit(x[:20], margins[:20])
    here = Surface.fit(x, margins).probabilities(asked)
    np.savez(tmp_path / "given.npz", x=x, margins=margins, asked=asked)
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    root = str(Path(model.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", PROCESS, str(tmp_path / "given.npz"), str(tmp_path / "found.npy")],
        check=True,
        cwd=root,
        env={**os.environ, **threads},
    )
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), here)


def test_fit_does_not_depend_on_the_layout_of_its_arguments() -> None:
    points = places(PLANE, 20)
    x, margins = columns(PLANE, points)[0], margins_of(points)
    first = cold(x, margins, x)
    wide = np.zeros((40, 4))
    wide[::2, ::2] = x
    np.testing.assert_array_equal(cold(wide[::2, ::2], np.asfortranarray(margins), x), first)


def test_a_field_keeps_its_points() -> None:
    """Arrays that a caller changes afterwards do not change the model."""
    points = places(PLANE, 20)
    x, margins = columns(PLANE, points)[0], margins_of(points)
    asked = x.copy()
    surface = Surface.fit(x, margins)
    before = surface.probabilities(asked)
    x[:], margins[:] = 0, 0
    np.testing.assert_array_equal(surface.probabilities(asked), before)


def test_each_sign_tells_something_at_once() -> None:
    """Also between two fits of the hyperparameters, labels enter with their point.

    Of signs alone: beside sizes that leave no doubt, one wrong label counts as a lapse.
    """
    points = places(PLANE, 3 * STEP)
    x, margins = columns(PLANE, points)[0], margins_of(points)
    odd = 2 * STEP + 3
    margins[odd] = -margins[odd]
    kept, told = (
        Surface.fit(x[:known], margins[:known], sizes=False).stable.probability(x[[odd]])[0]
        for known in (odd, odd + 1)
    )
    assert (told - kept) * np.sign(margins[odd, 0]) > 0.05


# --------------------------------------------------------------------------- when to fit anew


def test_levels_at_which_hyperparameters_are_fitted() -> None:
    """Every one of the first points, then each STEP more, then as their number grows."""
    levels = [fitted_at(n) for n in range(3000)]
    assert levels[: STEP + 1] == list(range(STEP + 1))
    for n, level in enumerate(levels):
        assert level <= n
        assert fitted_at(level) == level
        if n <= ALWAYS:
            assert n <= STEP or level == n // STEP * STEP
        elif n >= STEP:
            assert n < max(level + STEP, level * GROWTH)
    assert levels == sorted(levels)
    beyond = [a for a in sorted(set(levels)) if a >= ALWAYS]
    steps = np.diff(beyond)
    assert (steps >= STEP).all()
    grown = np.maximum(STEP, (GROWTH - 1) * np.array(beyond[:-1]))
    assert (steps <= np.minimum(grown, MOST)).all()
    assert steps[-1] == MOST


def test_anchors() -> None:
    """Two thirds of the points or a little less, where a search fits in any case."""
    few = int(ALWAYS * ANCHORS)
    assert [anchor(n) for n in range(few)] == [None] * few
    for n in range(few, 3000):
        level = anchor(n)
        assert level is not None
        assert level == fitted_at(level) >= ALWAYS
        assert n / ANCHORS / GROWTH - 1 < level <= n / ANCHORS
    assert [anchor(n) for n in (96, 100, 150, 156, 243)] == [64, 64, 100, 100, 156]


# --------------------------------------------------------------------------- many points


@given(
    n=st.integers(1, 80),
    count=st.integers(4, 80),
    d=st.integers(1, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    coarse=st.booleans(),
)
def test_representatives(n: int, count: int, d: int, share: float, seed: int, coarse: bool) -> None:
    """As many as asked for, in order, with the nearest pair of opposite labels among them."""
    random = np.random.default_rng(seed)
    x = random.uniform(size=(n, d))
    x = np.round(4 * x) if coarse else x
    labels = np.where(random.random(n) < share, 1.0, -1.0)
    kept = representatives(x, labels, count)
    assert len(kept) == min(n, count)
    assert (np.diff(kept) > 0).all()
    assert kept[0] >= 0 and kept[-1] < n
    plus, minus = np.flatnonzero(labels > 0), np.flatnonzero(labels < 0)
    if len(plus) and len(minus) and not coarse:
        apart = np.linalg.norm(x[plus][:, None] - x[minus], axis=2)
        i, j = np.unravel_index(np.argmin(apart), apart.shape)
        assert {plus[i], minus[j]} <= set(kept)


def test_representatives_are_near_the_boundary_and_everywhere() -> None:
    """Half of them the nearest to the other label by brute force, the others spread."""
    random = np.random.default_rng(0)
    x = random.uniform(size=(600, 2))
    labels = np.where(x[:, 0] < 0.5, 1.0, -1.0)
    kept = representatives(x, labels, 100)
    apart = np.linalg.norm(x[:, None] - x, axis=2)
    nearest = np.where(labels[:, None] != labels, apart, np.inf).min(1)
    assert set(np.argsort(nearest)[:50]) <= set(kept)
    rest = np.setdiff1d(kept, np.argsort(nearest)[:50])
    assert len(rest) == 50
    assert np.diff(np.r_[0, rest, 599]).max() < 40
    corners = [
        np.hypot(*(x[rest] - corner).T).min() for corner in itertools.product((0, 1), (0, 1))
    ]
    assert max(corners) < 0.35


@pytest.mark.parametrize("zero", [False, True])
def test_more_points_than_the_limit(monkeypatch: pytest.MonkeyPatch, zero: bool) -> None:
    """With few of them kept the map stays right, at every number of points."""
    monkeypatch.setattr(model, "LIMIT", 48)
    monkeypatch.setattr(model, "ENOUGH", 24)
    forget_fits()
    space = (LR, NO_ALPHA, ZERO_DECAY) if zero else PLANE
    points = places(space, 260)
    margins = margins_of(np.where(points == 0, 1e-4, points))
    asked = places(PLANE, 256, seed=1)
    stable, bounded = distances(asked)
    far = np.minimum(np.abs(stable), np.abs(bounded)) > 0.08
    truth = regimes(stable, bounded)
    level = fitted_at(260)
    before = fitted_at(level - 1)
    for count in (before, before + STEP + 1, level - 1, level, 260):
        surface = fit(space, points[:count], margins[:count])
        kept = len(surface.stable.process.sites.precision)
        assert kept == 48 + count - fitted_at(count)
        best = np.argmax(ask(surface, space, asked), axis=1)
        assert (best == truth)[far].all()
    forget_fits()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_more_point_never_overturns_a_map(seed: int) -> None:
    """As a search adds them: crowded about the boundaries, some with the wrong label."""
    random = np.random.default_rng(seed)
    points = places(PLANE, 512, seed)
    margins = margins_of(points)
    near = np.abs(margins).min(1) < random.choice([0.02, 0.1, 1.0], 512)
    points, margins = points[near], margins[near] + 0.01 * random.normal(size=(near.sum(), 2))
    margins[random.random(margins.shape) < 0.01] *= -1
    assert len(points) > 150
    for count in range(48, 150, 6):
        found = ask(fit(PLANE, points[:count], margins[:count]), PLANE, points[:count]).argmax(1)
        truth = regimes(*margins_of(points[:count]).T)
        assert (found != truth).mean() < 0.12, count


def test_hyperparameters_of_many_points_are_those_of_representatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "ENOUGH", 24)
    points = places(PLANE, 40)
    x = columns(PLANE, points)[0]
    labels = np.where(distances(points)[0] > 0, 1.0, -1.0)
    kept = representatives(x, labels, 24)
    model._FITTED.clear()
    found = model._hyperparameters(model._Labelled.of(x, labels, 0))
    np.testing.assert_array_equal(
        found.metric, fit_hyperparameters(x[kept] - 0.5, labels[kept]).metric
    )
    model._FITTED.clear()


def test_hyperparameters_are_those_of_the_points_up_to_a_level() -> None:
    """Between two levels they stay, whatever the labels of the points since."""
    points = places(PLANE, 3 * STEP)
    x, margins = columns(PLANE, points)[0], margins_of(points)
    level = fitted_at(3 * STEP - 1)
    at, later = (Surface.fit(x[:n], margins[:n]).stable for n in (level, 3 * STEP - 1))
    anew = Surface.fit(x, margins).stable
    assert later.process.hyperparameters is at.process.hyperparameters
    assert not np.array_equal(
        anew.process.hyperparameters.metric, later.process.hyperparameters.metric
    )
