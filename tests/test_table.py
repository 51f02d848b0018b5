"""Very many places at once: the table answers as the model does, to what it promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr
from synthetic import ALPHA, DECAY, LR, map_of, margins_at

import analysis.map
from analysis import table
from analysis.map import REGIMES, StabilityMap
from analysis.surface import INDICATOR, regime_probabilities
from analysis.table import Table, Tables
from trainables.domain import Margins, Point

Array = NDArray[np.float64]

#: What the documentation promises.
TOLERANCE = 0.005


def places(found: StabilityMap, count: int) -> dict[str, Array]:
    """Random places, some of them at extra levels."""
    random = np.random.default_rng(3)
    chosen = {}
    for axis in found.axes:
        if axis.free:
            chosen[axis.name] = np.asarray(axis.from_unit(random.random(count)))
            if axis.zero:
                chosen[axis.name][random.random(count) < 0.2] = 0.0
    return chosen


def rough(point: Point) -> Margins:
    """Labels that contradict each other near the boundary, so that the model is rough there."""
    margins = margins_at(point)
    noise = math.sin(1e4 * point.lr) * 0.3
    return Margins(min(max(margins.stable + noise, -1), 1), margins.bounded)


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "one axis": ({"lr": LR}, 48),
    "two": ({"lr": LR, "weight_decay": DECAY}, 96),
    "three": ({"lr": LR, "alpha": {**ALPHA, "low": 0.1, "zero": True}, "weight_decay": DECAY}, 64),
    "none": ({"lr": 0.1}, 1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("margins", [margins_at, rough])
def test_it_answers_as_the_model(name: str, margins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    axes, count = CASES[name]
    found = map_of(axes, [Point(0.1)] if name == "none" else count, margins)
    asked = places(found, 20_000) or {"lr": np.full(20_000, 0.1)}
    plain = found.classify(**asked)
    monkeypatch.setattr(analysis.map, "MANY", 10_000)
    quick = found.classify(**asked)
    made = found._tables.made.values()
    assert made and any(isinstance(one, Table) for one in made)
    worst = max(float(np.abs(quick[r] - plain[r]).max()) for r in REGIMES)
    assert worst <= TOLERANCE
    if name != "none":
        assert worst > 0  # it did come from a table
    np.testing.assert_allclose(sum(quick.values()), 1, atol=1e-12)


def test_few_places_are_answered_by_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    found = map_of({"lr": LR, "weight_decay": DECAY}, 32)
    asked = places(found, 999)
    found.classify(**asked)
    assert "_tables" not in vars(found)
    monkeypatch.setattr(analysis.map, "MANY", 999)
    found.classify(**asked)
    assert "_tables" in vars(found)


def test_a_slice_looks_up_the_table_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = map_of({"lr": LR, "weight_decay": DECAY}, 32)
    monkeypatch.setattr(analysis.map, "MANY", 100)
    lr = np.geomspace(0.01, 100, 200)
    line = found.slice(weight_decay=0.0).classify(lr=lr)
    whole = found.classify(lr=lr, weight_decay=np.zeros(200))
    for regime in REGIMES:
        np.testing.assert_array_equal(line[regime], whole[regime])


def step(width: float, at: float) -> table.Model:
    def model(x: Array) -> Array:
        z = np.clip((x.sum(1) - at) / width, -3, 3)
        return np.stack([z, z + 1], axis=-1)

    return model


@pytest.mark.parametrize("d", [1, 2])
def test_steep_steps_are_followed_or_asked_for(d: int) -> None:
    """A step narrower than the finest cells is left to the model, all others to the lattice."""
    x = np.random.default_rng(0).random((40_000, d))
    for width, narrow in ((0.1, False), (0.02, False), (1e-5, True)):
        model = step(width, 0.6180339)
        found = Table(model, d)
        assert found.unsure.any() == narrow
        assert found.unsure.mean() < 0.02
        error = regimes(found(x)) - regimes(model(x))
        assert np.abs(error).max() <= TOLERANCE


def regimes(quantiles: Array) -> Array:
    return regime_probabilities(*ndtr(quantiles).T)


def test_the_effort_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a table would take too much, it says so of its cells, and is right all the same."""
    monkeypatch.setattr(table, "BUDGET", 3_000)
    model = step(0.005, 0.7)
    found = Table(model, 2)
    assert found.asked <= 3_000
    assert found.unsure.mean() > 0.01
    x = np.random.default_rng(0).random((5_000, 2))
    assert np.abs(regimes(found(x)) - regimes(model(x))).max() <= TOLERANCE


def test_extra_levels_have_tables_of_their_own() -> None:
    """Each lacks the coordinates of the axes that are at zero."""

    def model(x: Array) -> Array:
        assert (x[x[:, 3] > 0.6, 0] == 0).all() and (x[x[:, 4] > 0.6, 2] == 0).all()
        z = x @ np.array([3.0, -2.0, 1.0, 10.0, -20.0])
        return np.stack([z, z + 1], axis=-1)

    tables = Tables(model, 3, [0, 2])
    x = np.random.default_rng(0).random((500, 5))
    x[:, 3:] = 0.5 + INDICATOR * (x[:, 3:] > 0.5)
    x[:, 0] *= x[:, 3] == 0.5
    x[:, 2] *= x[:, 4] == 0.5
    np.testing.assert_allclose(tables(x), model(x), atol=1e-4)
    sizes = {kind: one.unsure.ndim for kind, one in tables.made.items() if isinstance(one, Table)}
    assert sizes == {(False, False): 3, (True, False): 2, (False, True): 2, (True, True): 1}
