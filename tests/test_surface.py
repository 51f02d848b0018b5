"""The fitted model: right where the boundary is known, sane where there is little to know."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.surface import Surface, unit_coordinates
from sweeps.search.designs import SobolDesign
from trainables.domain import Axis, InputError, Margins, Regime

Array = NDArray[np.float64]

LR = Axis("lr", "log", 0.01, 100.0)
ALPHA = Axis("alpha", "linear", 0.0, 2.0)
DECAY = Axis("weight_decay", "log", 1e-4, 1.0)
NO_ALPHA = Axis("alpha", value=0.0)
NO_DECAY = Axis("weight_decay", value=0.0)
PLANE = (LR, NO_ALPHA, DECAY)
STABLE, RESTRAINED, DIVERGENT = range(3)


def places(space: tuple[Axis, ...], count: int, seed: int = 0) -> Array:
    """(count, 3) points of a Sobol design."""
    design = SobolDesign(space, seed)
    points = [design[i] for i in range(count)]
    return np.array([[p.lr, p.alpha, p.weight_decay] for p in points])


def distances(points: Array) -> tuple[Array, Array]:
    """Unit distances to two slanted straight boundaries in (log lr, log weight decay)."""
    x = (np.log10(points[:, 0]) + 2) / 4
    y = (np.log10(points[:, 2]) + 4) / 4
    return 0.4 - (x + 0.3 * y), 0.75 - (x + 0.3 * y)


def regimes(stable: Array, bounded: Array) -> NDArray[np.int64]:
    return np.where(bounded < 0, DIVERGENT, np.where(stable < 0, RESTRAINED, STABLE))


Shape = Callable[[Array], Array]
#: What a margin may look like: only its sign and its order are known beforehand.
SHAPES: dict[str, Shape] = {
    "straight": lambda d: d,
    "tiny": lambda d: 1e-9 * d,
    "exploding": lambda d: np.where(d < 0, -1e6 * d**2, d),
    "saturating": lambda d: np.clip(4 * d, -1, 1),
    "steep": lambda d: np.sinh(9 * d),
}


# --------------------------------------------------------------------------- known boundaries


@pytest.mark.parametrize("shape", SHAPES)
def test_regions_of_a_known_map(shape: str) -> None:
    """64 points; right with probability .9 from 0.08 of the axes on, wrong nowhere but nearby."""
    points = places(PLANE, 64)
    stable, bounded = (SHAPES[shape](d) for d in distances(points))
    surface = Surface.fit(PLANE, points, np.stack([stable, bounded], axis=1))

    asked = places(PLANE, 512, seed=1)
    stable, bounded = distances(asked)
    truth = regimes(stable, bounded)
    probabilities = surface.probabilities(asked)
    far = np.minimum(np.abs(stable), np.abs(bounded)) > 0.08
    assert far.sum() > 300
    assert probabilities[far, truth[far]].min() > 0.9
    wrong = np.argmax(probabilities, axis=1) != truth
    assert np.minimum(np.abs(stable), np.abs(bounded))[wrong].max(initial=0) < 0.05


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16))
def test_only_the_signs_count(seed: int) -> None:
    """Any sizes, even a different one for each point, give the same map to the bit."""
    points = places(PLANE, 20)
    margins = np.stack(distances(points), axis=1)
    sizes = 10 ** np.random.default_rng(seed).uniform(-9, 9, margins.shape)
    first, second = (
        Surface.fit(PLANE, points, values).probabilities(points)
        for values in (margins, margins * sizes)
    )
    np.testing.assert_array_equal(first, second)


def test_doubt_is_where_the_boundary_is() -> None:
    """Across a boundary the probabilities pass through every stage, in the right order."""
    points = places(PLANE, 64)
    surface = Surface.fit(PLANE, points, np.stack(distances(points), axis=1))
    lr = 10 ** np.linspace(-2, 2, 401)
    row = np.stack([lr, np.zeros(401), np.full(401, 0.01)], axis=1)
    found = surface.probabilities(row)
    best = np.argmax(found, axis=1)
    assert [int(k) for k, _ in itertools.groupby(best)] == [STABLE, RESTRAINED, DIVERGENT]
    changes = lr[1:][np.diff(best) != 0]
    # 0.4 and 0.75 less 0.3 * 0.5, of four decades from -2 on
    np.testing.assert_allclose(np.log10(changes), [4 * 0.25 - 2, 4 * 0.6 - 2], atol=0.1)
    assert ((found > 0.2) & (found < 0.8)).any()


def test_three_axes() -> None:
    """The regulariser shifts both boundaries; the model sees it in all three directions."""
    space = (LR, ALPHA, DECAY)

    def truth(points: Array) -> tuple[Array, Array]:
        stable, bounded = distances(points)
        return stable + 0.1 * points[:, 1], bounded + 0.1 * points[:, 1]

    points = places(space, 128)
    surface = Surface.fit(space, points, np.stack(truth(points), axis=1))
    asked = places(space, 512, seed=3)
    stable, bounded = truth(asked)
    far = np.minimum(np.abs(stable), np.abs(bounded)) > 0.1
    best = np.argmax(surface.probabilities(asked), axis=1)
    assert (best == regimes(stable, bounded))[far].all()


def test_the_zero_level_is_a_place_of_its_own() -> None:
    """Stable at weight decay 0, divergent right above: the model keeps them apart."""
    space = (LR, NO_ALPHA, Axis("weight_decay", "log", 1e-4, 1.0, zero=True))
    points = places(space, 64)
    calm = np.where(points[:, 2] == 0, 1.0, -1.0)
    surface = Surface.fit(space, points, np.stack([calm, calm], axis=1))
    at_zero = surface.probabilities(np.array([[0.1, 0, 0.0], [10.0, 0, 0.0]]))
    above = surface.probabilities(np.array([[0.1, 0, 0.01], [10.0, 0, 0.01]]))
    assert at_zero[:, STABLE].min() > 0.6
    assert above[:, DIVERGENT].min() > 0.9


# --------------------------------------------------------------------------- laws


@settings(max_examples=8)
@given(count=st.integers(1, 12), seed=st.integers(0, 2**16), scale=st.floats(-6, 6))
def test_probabilities_of_any_margins(count: int, seed: int, scale: float) -> None:
    """They lie in [0, 1] and sum to 1 for noise of any size, at the points and between them."""
    random = np.random.default_rng(seed)
    points = places((LR, ALPHA, DECAY), count, seed)
    noise = random.normal(size=(count, 2)) * 10 ** random.uniform(-6, scale, (count, 2))
    surface = Surface.fit((LR, ALPHA, DECAY), points, noise)
    asked = np.concatenate([points, places((LR, ALPHA, DECAY), 64, seed + 1)])
    found = surface.probabilities(asked)
    assert found.shape == (count + 64, 3)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


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
    surface = Surface.fit(PLANE, points, size * np.array(margin))
    found = surface.probabilities(np.concatenate([points, places(PLANE, 64, seed=1)]))
    assert found[:, regime].min() > 0.95


@pytest.mark.parametrize(("margin", "regime"), SIGNS)
def test_one_point(margin: tuple[float, float], regime: int) -> None:
    """Likely there, and less sure further away."""
    here = np.array([[1.0, 0.0, 0.01]])
    surface = Surface.fit(PLANE, here, np.array([margin]))
    found = surface.probabilities(np.concatenate([here, [[100.0, 0.0, 1.0]]]))
    assert found[0, regime] > 0.9
    assert found[1, regime] < found[0, regime]


@pytest.mark.parametrize(("margin", "regime"), SIGNS)
def test_no_free_axis(margin: tuple[float, float], regime: int) -> None:
    space = (Axis("lr", value=0.1), NO_ALPHA, NO_DECAY)
    here = np.array([[0.1, 0.0, 0.0]])
    for copies in (1, 4):
        surface = Surface.fit(space, np.tile(here, (copies, 1)), np.tile(margin, (copies, 1)))
        assert surface.probabilities(here)[0, regime] > 0.9


def test_margins_of_zero() -> None:
    """Exactly on both boundaries counts as calm, as it does in a verdict."""
    points = places(PLANE, 8)
    for zero in (0.0, -0.0):
        margins = np.full((8, 2), zero)
        found = Surface.fit(PLANE, points, margins).probabilities(points)
        assert (np.argmax(found, axis=1) == STABLE).all()
    assert Margins(0.0, -0.0).regime is Regime.STABLE


def test_no_point() -> None:
    with pytest.raises(InputError, match="points = 0: a map needs at least one finished point"):
        Surface.fit(PLANE, np.empty((0, 3)), np.empty((0, 2)))


def test_fit_is_the_same_every_time() -> None:
    points = places(PLANE, 24)
    values = np.stack(distances(points), axis=1)
    first, second = (Surface.fit(PLANE, points, values).probabilities(points) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_fit_warns_of_nothing(recwarn: Any) -> None:
    points = places(PLANE, 16)
    Surface.fit(PLANE, points, np.ones((16, 2)))
    Surface.fit(PLANE, points[:1], np.ones((1, 2)))
    assert not recwarn.list


def test_unit_coordinates() -> None:
    """A column a free axis, in the order of the axes; the zero level just below."""
    points = np.array([[1.0, 1.5, 0.01], [100.0, 0.0, 0.0]])
    zero = Axis("weight_decay", "log", 1e-4, 1.0, zero=True)
    found = unit_coordinates((LR, ALPHA, zero), points)
    np.testing.assert_allclose(found[:, :2], np.array([[0.5, 0.75], [1, 0]]), atol=1e-12)
    assert found[0, 2] == pytest.approx(0.5)
    assert -0.5 < found[1, 2] < 0
    assert unit_coordinates((LR, NO_ALPHA, NO_DECAY), points).shape == (2, 1)
    nothing = unit_coordinates((Axis("lr", value=1.0), NO_ALPHA, NO_DECAY), points)
    np.testing.assert_array_equal(nothing, np.zeros((2, 1)))
