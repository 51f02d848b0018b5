"""Search spaces as unit coordinates: there and back, evenly, and as the map sees them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy.stats import qmc

from analysis.surface import INDICATOR, ZERO_SHARE, columns
from sweeps.search.encoding import Encoding, Params
from sweeps.search.space import distributions, switches, to_params
from trainables.domain import Axis, InputError, Mistake, Point

Space = dict[str, BaseDistribution]

SWITCH = CategoricalDistribution([False, True])
RATE = FloatDistribution(1e-4, 1.0, log=True)


# --------------------------------------------------------------------------- any space

numbers = st.floats(-1e6, 1e6)
sizes = st.floats(1e-3, 1e6)
FLOATS = st.one_of(
    st.builds(lambda low, size: FloatDistribution(low, low + size), numbers, sizes),
    st.builds(
        lambda low, ratio: FloatDistribution(low, low * ratio, log=True),
        st.floats(1e-9, 1e6),
        st.floats(1.01, 1e9),
    ),
    st.builds(  # tenths, most of which have several roundings
        lambda low, step, n: FloatDistribution(low / 10, (low + n * step) / 10, step=step / 10),
        st.integers(-1000, 1000),
        st.integers(1, 99),
        st.integers(1, 40),
    ),
    st.builds(lambda low: FloatDistribution(low, low), numbers),
)
INTS = st.one_of(
    st.builds(
        lambda low, step, n: IntDistribution(low, low + n * step, step=step),
        st.integers(-1000, 1000),
        st.integers(1, 9),
        st.integers(0, 60),
    ),
    st.builds(
        lambda low, n: IntDistribution(low, low + n, log=True),
        st.integers(1, 1000),
        st.integers(0, 300),
    ),
)
CHOICES = st.lists(
    st.one_of(st.none(), st.text(max_size=3), st.integers(), st.just(math.nan)),
    min_size=1,
    max_size=5,
    unique_by=repr,
)


@st.composite
def encodings(draw: st.DrawFn) -> Encoding:
    """One to four axes of any kind, some of them with an extra zero."""
    space: Space = {}
    zero = {}
    for i in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["range", "zero", "facet"]))
        if kind == "facet":
            space[f"a{i}"] = CategoricalDistribution(draw(CHOICES))
            continue
        space[f"a{i}"] = draw(st.one_of(FLOATS, INTS))
        if kind == "zero":
            space[f"s{i}"], zero[f"a{i}"] = SWITCH, f"s{i}"
    return Encoding(space, zero)


def draws_of(encoding: Encoding, seed: int, count: int = 8) -> Any:
    return np.random.default_rng(seed).random((count, encoding.draws))


SEEDS = st.integers(0, 2**16)


@given(encodings(), SEEDS)
def test_any_draw_is_a_point_of_the_space(encoding: Encoding, seed: int) -> None:
    for params in encoding.decode(draws_of(encoding, seed)):
        assert list(params) == list(encoding.space)
        for name, distribution in encoding.space.items():
            assert distribution._contains(distribution.to_internal_repr(params[name]))
            if isinstance(distribution, IntDistribution):
                assert type(params[name]) is int
            elif isinstance(distribution, FloatDistribution):
                assert type(params[name]) is float
            elif name in encoding.zero.values():
                assert type(params[name]) is bool
        assert encoding.holds(params)


@given(encodings(), SEEDS)
def test_coordinates_fill_the_unit_cube(encoding: Encoding, seed: int) -> None:
    x = encoding.encode(encoding.decode(draws_of(encoding, seed)))
    ranges = len(encoding.ranges)
    assert x.shape == (8, ranges + encoding.indicators)
    assert ((x[:, :ranges] >= 0) & (x[:, :ranges] <= 1)).all()
    assert np.isin(x[:, ranges:], [0.5, 0.5 + INDICATOR]).all()


@given(encodings(), SEEDS)
def test_there_and_back(encoding: Encoding, seed: int) -> None:
    """A draw near a point by nothing is the point: exactly on steps, else up to rounding."""
    points = encoding.decode(draws_of(encoding, seed))
    for params in points:
        still = np.zeros((1, len(encoding.ranges)))
        [again] = encoding.decode(encoding.draws_near(params, still))
        for name, distribution in encoding.space.items():
            if getattr(distribution, "step", 1) is None:
                tolerance = 1e-9 * max(abs(distribution.low), abs(distribution.high))  # type: ignore[attr-defined]
                assert again[name] == pytest.approx(params[name], abs=tolerance, rel=1e-9)
            else:
                assert again[name] is params[name] or again[name] == params[name]


@given(encodings(), SEEDS, st.floats(0, 2))
def test_draws_near_a_point_stay_in_the_space(encoding: Encoding, seed: int, size: float) -> None:
    [params] = encoding.decode(draws_of(encoding, seed, 1))
    random = np.random.default_rng(seed)
    shifts = size * random.normal(size=(16, len(encoding.ranges)))
    draws = encoding.draws_near(params, shifts)
    assert draws.shape == (16, encoding.draws)
    assert ((draws >= 0) & (draws <= 1)).all()
    for near in encoding.decode(draws):
        assert encoding.holds(near)
        for name in encoding.facets:
            assert near[name] is params[name]
        for axis, switch in encoding.zero.items():
            if params[switch]:  # a point at 0 has no place on its axis to go away from
                assert encoding.key(near) == encoding.key({**near, axis: params[axis]})
                assert near[switch]


@given(encodings(), SEEDS)
def test_holds_asks_for_every_parameter_inside_its_range(encoding: Encoding, seed: int) -> None:
    [params] = encoding.decode(draws_of(encoding, seed, 1))
    assert encoding.holds({**params, "other": 1})
    for name, distribution in encoding.space.items():
        without = {key: value for key, value in params.items() if key != name}
        assert not encoding.holds(without)
        assert not encoding.holds({**params, name: "nowhere"})
        if name in encoding.ranges:
            assert not encoding.holds({**params, name: distribution.high + 1})  # type: ignore[attr-defined]
            assert not encoding.holds({**params, name: math.nan})


@given(encodings(), SEEDS)
def test_equal_keys_are_equal_points(encoding: Encoding, seed: int) -> None:
    """Points share a key where they agree in all but the axes that are switched to 0."""
    points = encoding.decode(draws_of(encoding, seed, 12))

    def meaning(params: Params) -> str:
        off = {axis for axis, switch in encoding.zero.items() if params[switch]}
        return repr({name: None if name in off else value for name, value in params.items()})

    for one, two in itertools.combinations(points, 2):
        assert (encoding.key(one) == encoding.key(two)) == (meaning(one) == meaning(two))


@given(encodings(), SEEDS)
def test_everything_is_all_there_is(encoding: Encoding, seed: int) -> None:
    """As many points as `size` says, all different; no draw gives another."""
    endless = any(getattr(d, "step", 1) is None for d in encoding.space.values())
    assert (encoding.size is None) == endless
    if encoding.size is None or encoding.size > 5000:
        return
    points = list(encoding.everything())
    keys = {encoding.key(p) for p in points}
    assert len(points) == len(keys) == encoding.size
    assert all(map(encoding.holds, points))
    assert {encoding.key(p) for p in encoding.decode(draws_of(encoding, seed))} <= keys


def test_everything_of_a_small_space() -> None:
    """By hand: three steps and a 0, twice a category."""
    space: Space = {
        "x": FloatDistribution(0.1, 0.3, step=0.1),
        "off": SWITCH,
        "act": CategoricalDistribution(["relu", "tanh"]),
    }
    found = [tuple(p.values()) for p in Encoding(space, {"x": "off"}).everything()]
    values = [(0.1, False), (0.2, False), (pytest.approx(0.3), False), (0.1, True)]
    assert len(found) == 8
    for (x, off), act in itertools.product(values, ["relu", "tanh"]):
        assert (x, off, act) in found


def test_everything_is_not_made_at_once() -> None:
    space: Space = {"n": IntDistribution(0, 10**5), "m": IntDistribution(0, 10**5)}
    assert next(Encoding(space, {}).everything()) == {"n": 0, "m": 0}


def test_roundings_of_a_step_are_one_point() -> None:
    encoding = Encoding({"x": FloatDistribution(0, 1, step=0.1)}, {})
    assert encoding.key({"x": 0.1 + 0.2}) == encoding.key({"x": 0.3})
    assert encoding.key({"x": 0.2}) != encoding.key({"x": 0.3})


def test_not_a_number_is_a_choice_like_others() -> None:
    """A storage gives back another NaN than it was given."""
    encoding = Encoding({"c": CategoricalDistribution([math.nan, 1.0])}, {})
    one, two = {"c": math.nan}, {"c": float("nan")}
    assert encoding.holds(two)
    assert encoding.key(one) == encoding.key(two)
    np.testing.assert_array_equal(encoding.encode([one]), encoding.encode([two]))


# --------------------------------------------------------------------------- where points lie


def test_coordinates_by_hand() -> None:
    """Ranges in their order, then switches, then categories; at 0 an axis reads as its low end."""
    space: Space = {
        "act": CategoricalDistribution(["relu", "tanh", "gelu"]),
        "rate": RATE,
        "off": SWITCH,
        "depth": IntDistribution(2, 6),
        "bias": CategoricalDistribution(["no", "yes"]),
    }
    points = [
        {"act": "tanh", "rate": 1e-2, "off": False, "depth": 3, "bias": "yes"},
        {"act": "gelu", "rate": 1e-2, "off": True, "depth": 6, "bias": "no"},
    ]
    yes, no = 0.5 + INDICATOR, 0.5
    expected = [
        [0.5, 0.25, no, no, yes, no, yes],
        [0.0, 1.0, yes, no, no, yes, no],
    ]
    encoding = Encoding(space, {"rate": "off"})
    np.testing.assert_allclose(encoding.encode(points), expected, atol=1e-15)
    assert (encoding.draws, encoding.indicators, encoding.free) == (4, 5, 4)


def test_single_values_are_no_free_axes() -> None:
    space: Space = {
        "x": FloatDistribution(2.0, 2.0),
        "n": IntDistribution(1, 1, log=True),
        "c": CategoricalDistribution(["only"]),
        "rate": RATE,
    }
    encoding = Encoding(space, {})
    assert (encoding.free, encoding.draws, encoding.indicators) == (1, 4, 0)
    [params] = encoding.decode(np.full((1, 4), 0.5))
    assert params == {"x": 2.0, "n": 1, "c": "only", "rate": pytest.approx(1e-2)}
    np.testing.assert_allclose(encoding.encode([params]), [[0, 0, 0.5]], atol=1e-15)


@pytest.mark.parametrize(
    ("distribution", "levels"),
    [
        (IntDistribution(-3, 4), range(-3, 5)),
        (IntDistribution(0, 21, step=3), range(0, 22, 3)),
        (FloatDistribution(0, 1.75, step=0.25), np.arange(8) / 4),
        (CategoricalDistribution(list("abcdefgh")), "abcdefgh"),
    ],
)
def test_levels_get_equal_shares(distribution: BaseDistribution, levels: Any) -> None:
    """Of an even spread of draws each of eight levels gets an eighth."""
    draws = qmc.Sobol(1, scramble=True, rng=1).random(256)
    found = Counter(p["x"] for p in Encoding({"x": distribution}, {}).decode(draws))
    assert found == dict.fromkeys(levels, 32)


def test_ranges_keep_an_even_spread() -> None:
    """The quarters of a range, or of its logarithm, get a quarter of the draws each."""
    draws = qmc.Sobol(2, scramble=True, rng=1).random(256)
    space: Space = {"x": FloatDistribution(-1, 3), "rate": RATE}
    points = Encoding(space, {}).decode(draws)
    assert Counter(math.floor(p["x"]) for p in points) == dict.fromkeys([-1, 0, 1, 2], 64)
    decades = Counter(math.floor(math.log10(p["rate"])) for p in points)
    assert decades == dict.fromkeys([-4, -3, -2, -1], 64)


def test_zero_gets_its_share() -> None:
    """An eighth of the draws; the others fill the axis evenly, and all other axes stay full."""
    space: Space = {"rate": FloatDistribution(1e-7, 1.0, log=True), "off": SWITCH}
    space |= {"x": FloatDistribution(0, 1)}
    draws = qmc.Sobol(2, scramble=True, rng=0).random(512)
    points = Encoding(space, {"rate": "off"}).decode(draws)
    at_zero = [p for p in points if p["off"]]
    assert len(at_zero) == ZERO_SHARE * 512 == 64
    assert {p["rate"] for p in at_zero} == {1e-7}
    decades = Counter(math.floor(math.log10(p["rate"])) for p in points if not p["off"])
    assert decades == dict.fromkeys(range(-7, 0), 64)
    assert Counter(int(4 * p["x"]) for p in at_zero) == dict.fromkeys(range(4), 16)


def test_steps_from_a_point() -> None:
    """Shifts are in unit coordinates; below its low end an axis with an extra zero reaches it."""
    space: Space = {"rate": RATE, "off": SWITCH, "x": FloatDistribution(0, 10)}
    encoding = Encoding(space, {"rate": "off"})
    start = {"rate": 1e-2, "off": False, "x": 4.0}
    shifts = np.array([[0.0, 0.3], [0.25 * (1 - ZERO_SHARE), -0.9], [-0.6, 0.9]])
    near = encoding.decode(encoding.draws_near(start, shifts))
    assert [p["x"] for p in near] == pytest.approx([7.0, 0.0, 10.0])
    assert [p["off"] for p in near] == [False, False, True]
    assert near[0]["rate"] == pytest.approx(1e-2)
    assert near[1]["rate"] == pytest.approx(1e-1)


# --------------------------------------------------------------------------- as the map sees it


@given(
    low=st.floats(1e-9, 1e3),
    ratio=st.floats(1.001, 1e9),
    seed=SEEDS,
    scale=st.sampled_from(["log", "linear"]),
)
def test_coordinates_are_those_of_the_map(low: float, ratio: float, seed: int, scale: Any) -> None:
    """To the bit, on log and linear axes, with and without extra zeros."""
    axes = (
        Axis("lr", "log", low, low * ratio),
        Axis("alpha", scale, low, low * ratio, zero=True),
        Axis("weight_decay", scale, low, low * ratio, zero=True),
    )
    random = np.random.default_rng(seed)
    values = np.clip(low * ratio ** random.random((64, 3)), low, low * ratio)
    values[:16, 1] = values[8:24, 2] = 0.0
    encoding = Encoding(distributions(axes), switches(axes))
    points = [to_params(axes, Point(*map(float, row))) for row in values]
    x, indicators = columns(axes, values)
    np.testing.assert_array_equal(encoding.encode(points), x)
    assert encoding.indicators == indicators == 2


# --------------------------------------------------------------------------- bad input


def error_of(space: Any, zero: Any) -> str:
    with pytest.raises(InputError) as error:
        Encoding(space, zero)
    return str(error.value)


def test_a_range_must_be_a_distribution() -> None:
    assert error_of({"lr": (0.1, 1.0)}, {}) == (
        "space.lr = (0.1, 1.0): an axis is a numeric range (FloatDistribution, IntDistribution) "
        "or a facet (CategoricalDistribution) of Optuna; "
        "write FloatDistribution(low, high, log=True)"
    )


@pytest.mark.parametrize("axis", ["act", "off", "wd"])
def test_only_a_numeric_range_has_an_extra_zero(axis: str) -> None:
    space: Space = {"act": CategoricalDistribution(["a", "b"]), "off": SWITCH, "lr": RATE}
    law = f"zero = '{axis}': an axis with an extra zero is a numeric range; name one"
    assert error_of(space, {axis: "off"}) == law


@pytest.mark.parametrize(
    "switch",
    [
        None,
        FloatDistribution(0, 1),
        CategoricalDistribution(["no", "yes"]),
        CategoricalDistribution([0, 1]),
        CategoricalDistribution([True]),
        CategoricalDistribution([False, True, None]),
    ],
)
def test_a_switch_is_boolean(switch: BaseDistribution | None) -> None:
    space: Space = {"lr": RATE} | ({"off": switch} if switch else {})
    assert error_of(space, {"lr": "off"}) == (
        "zero.lr = 'off': the switch of an extra zero is categorical; "
        "use CategoricalDistribution([False, True])"
    )


def test_a_switch_serves_one_axis() -> None:
    space: Space = {"lr": RATE, "wd": RATE, "off": SWITCH}
    law = "'off': an axis with an extra zero has a switch of its own; add one"
    expected = f"zero.lr = {law}\nzero.wd = {law}"
    assert error_of(space, {"lr": "off", "wd": "off"}) == expected


def test_points_without_coordinates() -> None:
    space: Space = {
        "rate": RATE,
        "x": FloatDistribution(0, 1),
        "act": CategoricalDistribution(["a", "b"]),
    }
    encoding = Encoding(space, {})

    def found(params: Params) -> list[Mistake]:
        return list(encoding.mistakes(params, "points[3]"))

    good = {"rate": 0.1, "x": 0.5, "act": "a"}
    assert found(good) == found({**good, "x": -7}) == found({**good, "rate": 100, "z": 1}) == []
    assert [str(m) for m in found({"rate": 0.0, "x": math.nan, "act": "c"})] == [
        "points[3].rate = 0.0: > 0 must hold on a log scale; raise it",
        "points[3].x = nan: a finite number; give its value",
        "points[3].act = 'c': one of ['a', 'b']; choose one",
    ]
    assert [str(m) for m in found({"rate": "fast", "x": 0})] == [
        "points[3].rate = 'fast': a finite number; give its value",
        "points[3].act = None: the search varied this axis; give its value",
    ]
