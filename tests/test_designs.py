"""Designs: where their points lie, and that Optuna hands them out unchanged."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from sweeps.search.designs import DesignSampler, GridDesign, SobolDesign
from sweeps.search.space import distributions, to_params, to_point
from trainables.domain import AXIS_NAMES, Axis, Point

LR = Axis("lr", "log", 1e-3, 10.0)
ALPHA = Axis("alpha", "linear", 0.5, 4.5)
DECAY = Axis("weight_decay", "log", 1e-4, 1.0, zero=True)
NO_ALPHA = Axis("alpha", value=0.25)
NO_DECAY = Axis("weight_decay", value=0.0)
CUBE = (LR, ALPHA, Axis("weight_decay", "log", 1e-4, 1.0))


def prefix(design: SobolDesign | GridDesign, count: int) -> list[Point]:
    return [design[i] for i in range(count)]


def share(axis: Axis, value: float) -> float:
    """Where on its scale a value lies, from 0 to 1."""
    assert axis.low is not None and axis.high is not None
    if axis.scale == "linear":
        return (value - axis.low) / (axis.high - axis.low)
    return math.log(value / axis.low) / math.log(axis.high / axis.low)


def cells(points: list[Point], axes: tuple[Axis, ...], each: int) -> Counter[tuple[int, ...]]:
    """How many points lie in each cell of a grid with so many cells along each axis."""
    return Counter(
        tuple(int(share(axis, getattr(p, axis.name)) * each) for axis in axes) for p in points
    )


# --------------------------------------------------------------------------- Sobol


@given(seed=st.integers(0, 2**63), far=st.integers(0, 600), near=st.integers(0, 80))
def test_sobol_prefix(seed: int, far: int, near: int) -> None:
    """A longer sequence begins with the shorter one, in whatever order the points are asked for."""
    design = SobolDesign(CUBE, seed)
    late = design[far]
    assert prefix(design, near) == prefix(SobolDesign(CUBE, seed), near)
    assert SobolDesign(CUBE, seed)[far] == late


def test_sobol_seeds_differ() -> None:
    first, second = (set(prefix(SobolDesign(CUBE, seed), 64)) for seed in (0, 1))
    assert len(first) == len(second) == 64
    assert not first & second


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("second", [NO_ALPHA, ALPHA])
def test_sobol_covers_two_axes_evenly(seed: int, second: Axis) -> None:
    """2^2m points, one in each of 2^m x 2^m cells: what no pseudo-random choice would do."""
    space = (LR, second, NO_DECAY if second.free else CUBE[2])
    free = tuple(axis for axis in space if axis.free)
    for each in (2, 4, 8):
        found = cells(prefix(SobolDesign(space, seed), each * each), free, each)
        assert set(found.values()) == {1}
        assert len(found) == each * each


@pytest.mark.parametrize("seed", range(5))
def test_sobol_covers_octants_evenly(seed: int) -> None:
    found = cells(prefix(SobolDesign(CUBE, seed), 64), CUBE, 2)
    assert list(found.values()) == [8] * 8


@pytest.mark.parametrize("seed", range(5))
def test_zero_level_gets_its_share(seed: int) -> None:
    """An eighth of the points has weight decay 0; the others cover the axis evenly as before."""
    points = prefix(SobolDesign((LR, NO_ALPHA, DECAY), seed), 64)
    positive = [p for p in points if p.weight_decay > 0]
    assert len(positive) == 56
    assert Counter(cells(positive, (DECAY,), 7).values()) == {8: 7}
    assert len({p.lr for p in points if p.weight_decay == 0}) == 8


@given(
    seed=st.integers(0, 2**32),
    index=st.integers(0, 300),
    low=st.floats(1e-12, 1e6),
    ratio=st.floats(1.001, 1e9),
)
def test_points_lie_inside_the_axes(seed: int, index: int, low: float, ratio: float) -> None:
    space = (
        Axis("lr", "log", low, low * ratio),
        Axis("alpha", "linear", low, low * ratio),
        Axis("weight_decay", "linear", low, low * ratio, zero=True),
    )
    for design in (SobolDesign(space, seed), GridDesign(space, 7, seed)):
        point = design[index]
        assert low <= point.lr <= low * ratio
        assert low <= point.alpha <= low * ratio
        assert point.weight_decay == 0 or low <= point.weight_decay <= low * ratio


def test_fixed_axes_stay_where_they_are() -> None:
    for point in prefix(SobolDesign((LR, NO_ALPHA, NO_DECAY), 3), 32):
        assert (point.alpha, point.weight_decay) == (0.25, 0.0)
    fixed = (Axis("lr", value=0.1), NO_ALPHA, NO_DECAY)
    assert set(prefix(SobolDesign(fixed, 0), 10)) == {Point(0.1, 0.25, 0.0)}
    grid = GridDesign(fixed, 8, 0)
    assert grid.size == 1
    assert grid[0] == Point(0.1, 0.25, 0.0)


# --------------------------------------------------------------------------- grid


def levels(axis: Axis, count: int) -> list[float]:
    """Evenly spaced values with exact ends, from the textbook formulas."""
    if not axis.free:
        assert axis.value is not None
        return [axis.value]
    assert axis.low is not None and axis.high is not None
    if axis.scale == "log":
        ratio = axis.high / axis.low
        inner = [axis.low * ratio ** (i / (count - 1)) for i in range(1, count - 1)]
    else:
        step = (axis.high - axis.low) / (count - 1)
        inner = [axis.low + step * i for i in range(1, count - 1)]
    return [*([0.0] if axis.zero else []), axis.low, *inner, axis.high]


def rounded(point: Point) -> tuple[str, ...]:
    return tuple(f"{getattr(point, name):.11e}" for name in AXIS_NAMES)


@pytest.mark.parametrize(
    ("space", "given_levels", "counts"),
    [
        ((LR, ALPHA, DECAY), 4, (4, 4, 4)),
        ((LR, NO_ALPHA, DECAY), {"lr": 3, "weight_decay": 5}, (3, 1, 5)),
        ((LR, ALPHA, NO_DECAY), {"lr": 2}, (2, 8, 1)),  # what is not named has eight
        ((LR, NO_ALPHA, NO_DECAY), 2, (2, 1, 1)),
    ],
)
def test_grid_is_the_product(space: Any, given_levels: Any, counts: tuple[int, ...]) -> None:
    """Every combination once and nothing else; the ends are those of the axes to the bit."""
    columns = [levels(axis, count) for axis, count in zip(space, counts, strict=True)]
    expected = {rounded(Point(*row)) for row in itertools.product(*columns)}
    for seed in (0, 1, -7):
        design = GridDesign(space, given_levels, seed)
        assert design.size is not None
        points = prefix(design, design.size)
        assert len(points) == len(expected) == math.prod(map(len, columns))
        assert {rounded(p) for p in points} == expected
        for axis, column in zip(space, columns, strict=True):
            values = {getattr(p, axis.name) for p in points}
            assert (min(values), max(values)) == (column[0], column[-1])
        with pytest.raises(IndexError):
            design[design.size]


def test_a_grid_cut_short_covers_the_space() -> None:
    """The order is shuffled: the first eighth already has points in every quadrant."""
    space = (LR, NO_ALPHA, CUBE[2])
    for seed in range(5):
        early = prefix(GridDesign(space, 16, seed), 32)
        found = cells([p for p in early if p.lr < 9 and p.weight_decay < 0.9], (LR, CUBE[2]), 2)
        assert len(found) == 4
        assert min(found.values()) >= 2
    assert prefix(GridDesign(space, 16, 0), 32) != prefix(GridDesign(space, 16, 1), 32)
    assert prefix(GridDesign(space, 16, 1), 32) == prefix(GridDesign(space, 16, 1), 32)


# --------------------------------------------------------------------------- Optuna


def test_distributions_in_order() -> None:
    found = distributions((LR, ALPHA, DECAY))
    assert list(found) == ["lr", "alpha", "weight_decay", "weight_decay_is_zero"]
    assert found["lr"] == FloatDistribution(1e-3, 10.0, log=True)
    assert found["alpha"] == FloatDistribution(0.5, 4.5)
    assert found["weight_decay_is_zero"] == CategoricalDistribution([False, True])
    assert distributions((Axis("lr", value=0.1), NO_ALPHA, NO_DECAY)) == {}


@given(lr=st.floats(1e-3, 10), alpha=st.floats(0.5, 4.5), decay=st.floats(1e-4, 1.0) | st.just(0.0))
def test_params_and_points_are_each_others_inverse(lr: float, alpha: float, decay: float) -> None:
    space = (LR, ALPHA, DECAY)
    point = Point(lr, alpha, decay)
    params = to_params(space, point)
    assert to_point(space, params) == point
    for name, distribution in distributions(space).items():
        assert distribution._contains(distribution.to_internal_repr(params[name]))
    held = Point(lr, 0.25, 0.0)
    assert to_params((LR, NO_ALPHA, NO_DECAY), held) == {"lr": lr}
    assert to_point((LR, NO_ALPHA, NO_DECAY), {"lr": lr}) == held


SPACES = [(LR, ALPHA, DECAY), (LR, NO_ALPHA, DECAY), (LR, NO_ALPHA, NO_DECAY)]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", [SobolDesign, GridDesign])
def test_sampler_in_a_plain_study(space: tuple[Axis, ...], kind: Any) -> None:
    """ask() gives the design to the bit, whatever is told in between."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    design = kind(space, 0) if kind is SobolDesign else GridDesign(space, 3, 0)
    study = optuna.create_study(sampler=DesignSampler(space, design))
    count = min(design.size or 24, 24)
    found = []
    for number in range(count):
        trial = study.ask(distributions(space))
        found.append(to_point(space, trial.params))
        if number % 3 == 0:
            study.tell(trial, 0.0)
    assert found == prefix(kind(space, 0) if kind is SobolDesign else design, count)


def test_sampler_in_optimize() -> None:
    """With the usual suggest calls in an objective."""
    design = SobolDesign((LR, NO_ALPHA, NO_DECAY), 5)
    study = optuna.create_study(sampler=DesignSampler((LR, NO_ALPHA, NO_DECAY), design))
    study.optimize(lambda trial: trial.suggest_float("lr", 1e-3, 10.0, log=True), n_trials=9)
    assert [t.value for t in study.trials] == [p.lr for p in prefix(design, 9)]


def test_sampler_leaves_enqueued_trials_alone() -> None:
    """The design begins after them, with its first point."""
    space = (LR, NO_ALPHA, DECAY)
    design = SobolDesign(space, 0)
    study = optuna.create_study(sampler=DesignSampler(space, design, offset=2))
    mine = [Point(0.5, 0.25, 0.0), Point(1.5, 0.25, 0.25)]
    for point in mine:
        study.enqueue_trial(to_params(space, point))
    found = [to_point(space, study.ask(distributions(space)).params) for _ in range(7)]
    assert found == [*mine, *prefix(design, 5)]


def test_sampler_names_an_axis_it_does_not_have() -> None:
    study = optuna.create_study(sampler=DesignSampler(CUBE, SobolDesign(CUBE, 0)))
    with pytest.raises(NotImplementedError, match="momentum"):
        study.ask().suggest_float("momentum", 0, 1)
