"""Boundaries as level sets: against sigmoids whose every level is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit
from synthetic import ALPHA, DECAY, LR, boundaries, map_of, spec_of

from analysis.boundary import level_set
from analysis.map import StabilityMap
from trainables.domain import AXIS_NAMES, Axis, InputError, Margins, Point

Array = NDArray[np.float64]
Axes = tuple[Axis, ...]

RATE, STRENGTH, COST = spec_of({"lr": LR, "alpha": ALPHA, "weight_decay": DECAY}).space
NO_STRENGTH, NO_COST = Axis("alpha", value=0.0), Axis("weight_decay", value=0.0)
LINE = (RATE, NO_STRENGTH, NO_COST)


def along(axis: int, wave: Callable[[Array], Array], axes: Axes = LINE) -> Any:
    """A probability that depends on one axis alone, given in its unit coordinate."""
    return lambda points: wave(axes[axis].to_unit(points[:, axis]))


def sigmoid(centre: float, width: float) -> Callable[[Array], Array]:
    """Falls from 1 to 0 around a centre; passes p at centre - width * logit(p)."""
    return lambda unit: expit((centre - unit) / width)


# --------------------------------------------------------------------------- one axis


@given(
    centre=st.floats(0.05, 0.95),
    width=st.floats(0.01, 0.2),
    confidence=st.floats(0.2, 0.99),
    rising=st.booleans(),
)
def test_levels_of_a_sigmoid(centre: float, width: float, confidence: float, rising: bool) -> None:
    """In either direction; not a number where the interval reaches beyond the range."""
    falls = sigmoid(centre, width)
    wave = (lambda unit: 1 - falls(unit)) if rising else falls
    frame = level_set(LINE, along(0, wave), confidence)
    assert list(frame.columns) == [*AXIS_NAMES, "low", "high"]
    [row] = frame.to_dict("records")
    assert (row["alpha"], row["weight_decay"]) == (0, 0)
    reach = width * logit((1 + confidence) / 2)
    assert row["lr"] == pytest.approx(RATE.from_unit(centre), rel=0.003)
    for name, place in (("low", centre - reach), ("high", centre + reach)):
        if -1e-3 < place < 1e-3 or -1e-3 < place - 1 < 1e-3:
            continue
        inside = 0 < place < 1
        assert math.isfinite(row[name]) == inside
        if inside:
            assert row[name] == pytest.approx(RATE.from_unit(place), rel=0.01)


def test_every_crossing_of_a_wave() -> None:
    """Six crossings, each with the levels right next to it."""
    frame = level_set(LINE, along(0, lambda u: 0.5 + 0.49 * np.cos(6 * math.pi * u)), 0.9)
    centres = (np.arange(6) + 0.5) / 6
    reach = math.asin(0.45 / 0.49) / (6 * math.pi)
    np.testing.assert_allclose(RATE.to_unit(frame["lr"].to_numpy()), centres, atol=1e-4)
    np.testing.assert_allclose(RATE.to_unit(frame["low"].to_numpy()), centres - reach, atol=5e-4)
    np.testing.assert_allclose(RATE.to_unit(frame["high"].to_numpy()), centres + reach, atol=5e-4)


def test_levels_that_are_not_reached() -> None:
    """A boundary that the model doubts all the way has no end of its interval."""
    frame = level_set(LINE, along(0, lambda u: 0.8 - 0.4 * u), 0.9)
    [row] = frame.to_dict("records")
    assert RATE.to_unit(row["lr"]) == pytest.approx(0.75)
    assert math.isnan(row["low"]) and math.isnan(row["high"])
    [row] = level_set(LINE, along(0, lambda u: 0.8 - 0.4 * u), 0.2).to_dict("records")
    assert RATE.to_unit(row["low"]) == pytest.approx(0.5)
    assert RATE.to_unit(row["high"]) == pytest.approx(1.0)


@pytest.mark.parametrize("level", [0.0, 0.3, 0.7, 1.0])
def test_no_boundary(level: float) -> None:
    frame = level_set((RATE, STRENGTH, NO_COST), lambda p: np.full(len(p), level), 0.9)
    assert list(frame.columns) == [*AXIS_NAMES, "low", "high"]
    assert len(frame) == 0
    assert (frame.dtypes == np.float64).all()


# --------------------------------------------------------------------------- more axes


def places(axis: Axis, frame: pd.DataFrame) -> list[float]:
    return sorted(frame[axis.name].unique())


def evenly(axis: Axis, count: int) -> list[float]:
    values = axis.from_unit(np.linspace(0, 1, count)).tolist()
    return [0.0, *values] if axis.zero else values


def test_an_extra_zero_level_has_a_line_of_its_own() -> None:
    axes = (RATE, NO_STRENGTH, COST)

    def probability(points: Array) -> Any:
        decay = points[:, 2]
        centre = np.where(decay == 0, 0.9, 0.2 + 0.5 * COST.to_unit(np.maximum(decay, 1e-4)))
        return expit((centre - RATE.to_unit(points[:, 0])) / 0.02)

    frame = level_set(axes, probability, 0.9)
    assert places(COST, frame) == pytest.approx(evenly(COST, 64))
    assert len(frame) == 65
    found = RATE.to_unit(frame["lr"].to_numpy())
    decay = frame["weight_decay"].to_numpy()
    assert found[decay == 0] == pytest.approx([0.9], abs=1e-3)
    rest = COST.to_unit(decay[decay > 0])
    np.testing.assert_allclose(found[decay > 0], 0.2 + 0.5 * rest, atol=1e-3)


@pytest.mark.parametrize("main", [1, 2])
def test_first_free_axis_is_not_lr(main: int) -> None:
    """Then the level set runs along alpha, or along weight decay if alpha is fixed too."""
    axes = (Axis("lr", value=0.3), STRENGTH if main == 1 else NO_STRENGTH, COST)
    frame = level_set(axes, along(main, sigmoid(0.6, 0.05), axes), 0.9)
    assert len(frame) == (65 if main == 1 else 1)
    assert set(frame["lr"]) == {0.3}
    for name, level in ((AXIS_NAMES[main], 0.5), ("low", 0.95), ("high", 0.05)):
        found = axes[main].to_unit(frame[name].to_numpy())
        np.testing.assert_allclose(found, 0.6 - 0.05 * logit(level), atol=1e-3)


def test_three_free_axes() -> None:
    """A plane in unit coordinates; coarser, as the lines are many."""
    axes = (RATE, STRENGTH, COST)

    def probability(points: Array) -> Any:
        unit = [a.to_unit(np.maximum(v, 1e-4)) for a, v in zip(axes, points.T, strict=True)]
        return expit((0.2 + 0.3 * unit[1] + 0.3 * unit[2] - unit[0]) / 0.02)

    frame = level_set(axes, probability, 0.9)
    assert places(STRENGTH, frame) == pytest.approx(evenly(STRENGTH, 16))
    assert places(COST, frame) == pytest.approx(evenly(COST, 16))
    assert len(frame) == 16 * 17
    assert not frame.duplicated(["alpha", "weight_decay"]).any()
    values = frame[list(AXIS_NAMES)].to_numpy(copy=True)
    values[:, 2] = np.maximum(values[:, 2], 1e-4)
    unit = [axis.to_unit(column) for axis, column in zip(axes, values.T, strict=True)]
    expected = 0.2 + 0.3 * STRENGTH.to_unit(values[:, 1]) + 0.3 * unit[2]
    np.testing.assert_allclose(unit[0], expected, atol=1e-3)


def test_some_lines_cross_and_others_do_not() -> None:
    axes = (RATE, STRENGTH, NO_COST)

    def probability(points: Array) -> Any:
        return expit((1.5 - points[:, 1] - RATE.to_unit(points[:, 0])) / 0.01)

    frame = level_set(axes, probability, 0.9)
    expected = [a for a in evenly(STRENGTH, 64) if 0 < 1.5 - a < 1]
    assert frame["alpha"].tolist() == pytest.approx(expected)


# --------------------------------------------------------------------------- of a map


@pytest.fixture(scope="module")
def plane() -> StabilityMap:
    return map_of({"lr": LR, "weight_decay": DECAY}, 96)


@pytest.fixture(scope="module")
def frames(plane: StabilityMap) -> dict[str, pd.DataFrame]:
    return {kind: plane.boundary(kind, confidence=0.8) for kind in ("stable", "divergent")}


def calm(found: dict[str, Any], kind: str) -> Array:
    """Probability of lying below a boundary."""
    return np.asarray(found["stable"] if kind == "stable" else 1 - found["divergent"])


@pytest.mark.parametrize("kind", ["stable", "divergent"])
def test_classify_agrees(plane: StabilityMap, frames: dict[str, pd.DataFrame], kind: str) -> None:
    """One half on the boundary, and the outer levels at the ends of the interval."""
    frame = frames[kind]
    assert len(frame) >= 60
    decay = frame["weight_decay"].to_numpy()
    for name, level in (("lr", 0.5), ("low", 0.9), ("high", 0.1)):
        there = np.isfinite(frame[name].to_numpy())
        assert there.mean() > 0.9
        found = plane.classify(lr=frame[name][there].to_numpy(), weight_decay=decay[there])
        np.testing.assert_allclose(calm(found, kind), level, atol=0.01)


@pytest.mark.parametrize(("kind", "which"), [("stable", 0), ("divergent", 1)])
def test_the_true_boundary(frames: dict[str, pd.DataFrame], kind: str, which: int) -> None:
    """Near it everywhere, and inside the interval nearly everywhere."""
    frame = frames[kind]
    frame = frame[frame["weight_decay"] > 0]
    true = np.array([boundaries(decay)[which] for decay in frame["weight_decay"]])
    assert np.abs(np.log10(frame["lr"]) - true).max() < 0.4
    inside = (np.log10(frame["low"]) < true) & (true < np.log10(frame["high"]))
    assert inside.mean() > 0.7


def test_max_stable_agrees(plane: StabilityMap, frames: dict[str, pd.DataFrame]) -> None:
    """It ends where the level set has the probability that it asks for."""
    frame = frames["stable"].drop_duplicates("weight_decay", keep=False)
    for row in frame.iloc[1::16].to_dict("records"):
        for name, confidence in (("lr", 0.5), ("low", 0.9)):
            end = plane.max_stable("lr", confidence=confidence, weight_decay=row["weight_decay"])
            assert end is not None
            assert abs(math.log10(end / row[name])) < 4 / 511 + 0.01  # a step along the axis


def test_a_boundary_outside_the_box() -> None:
    found = map_of({"lr": LR}, 16, lambda point: Margins(1.0, 1.0))
    assert len(found.boundary("stable")) == len(found.boundary("divergent")) == 0


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kind", "confidence", "fields"),
    [
        ("restrained", 0.9, ["kind"]),
        ("Stable", 0.9, ["kind"]),
        ("stable", 0.0, ["confidence"]),
        ("stable", 1.0, ["confidence"]),
        ("divergent", math.nan, ["confidence"]),
        ("x", 95, ["confidence", "kind"]),
    ],
)
def test_refused(plane: StabilityMap, kind: str, confidence: float, fields: Sequence[str]) -> None:
    with pytest.raises(InputError) as caught:
        plane.boundary(kind, confidence=confidence)
    assert [m.field for m in caught.value.mistakes] == list(fields)
    text = str(caught.value)
    assert ("use stable or divergent" in text) == ("kind" in fields)
    assert ("0 < confidence < 1" in text) == ("confidence" in fields)
    assert repr(kind if fields == ["kind"] else confidence) in text


def test_a_single_point_has_no_boundary() -> None:
    found = map_of({"lr": 0.1}, [Point(0.1)])
    with pytest.raises(InputError, match="a sweep of a single point has no boundary; sweep an"):
        found.boundary("stable")
