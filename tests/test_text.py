"""The map in a terminal: every character where it belongs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from synthetic import ALPHA, DECAY, LR, map_of

from analysis.map import REGIMES, StabilityMap
from analysis.text import LEGEND, as_text
from trainables.domain import Point

SHADE = {"stable": ".", "restrained": "~", "divergent": "#"}
LETTER = {"stable": "S", "restrained": "R", "divergent": "D"}


def shades(found: StabilityMap, **places: Any) -> list[str]:
    p = found.classify(**places)
    return [
        SHADE[max(REGIMES, key=lambda name: float(p[name][i]))] for i in range(len(p["stable"]))
    ]


def body(text: str) -> list[str]:
    """What stands between the bars, from top to bottom."""
    lines = [line for line in text.splitlines() if line.endswith("|")]
    assert len({line.index("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
    return [line.partition("|")[2][:-1] for line in lines]


def letters(rows: list[str]) -> dict[tuple[int, int], str]:
    return {
        (r, c): mark for r, row in enumerate(rows) for c, mark in enumerate(row) if mark in "SRD"
    }


def drawn_by_hand(
    found: StabilityMap, width: int, height: int, axes: Mapping[str, Any]
) -> list[str]:
    """Two log axes, lr to the right and weight decay upwards, with a row for 0 at the bottom."""
    lrs = np.geomspace(axes["lr"]["low"], axes["lr"]["high"], width)
    lrs[-1] = axes["lr"]["high"]
    decay = axes["weight_decay"]
    decays: list[Any] = [
        0.0,
        *np.geomspace(decay["low"], decay["high"], height).clip(None, decay["high"]),
    ]
    rows = [shades(found, lr=lrs, weight_decay=decay) for decay in decays]
    for _, row in found.frame.iterrows():
        across = math.log(row["lr"] / lrs[0]) / math.log(lrs[-1] / lrs[0]) * (width - 1)
        up = 0
        if row["weight_decay"] > 0:
            share = math.log(row["weight_decay"] / decay["low"])
            up = 1 + round(share / math.log(decay["high"] / decay["low"]) * (height - 1))
        rows[up][round(across)] = LETTER[row["regime"]]
    return ["".join(row) for row in reversed(rows)]


@pytest.mark.parametrize(("width", "height"), [(30, 9), (56, 16)])
def test_two_axes_with_a_zero_level(width: int, height: int) -> None:
    axes = {"lr": LR, "weight_decay": DECAY}
    found = map_of(axes, 40)
    text = as_text(found, width, height)
    assert body(text) == drawn_by_hand(found, width, height, axes)
    lines = text.splitlines()
    assert lines[0] == "weight_decay (log)"
    assert lines[1].strip().startswith("1 |")
    assert lines[height].strip().startswith("0.0001 |")
    assert lines[height + 1].strip().startswith("0 |")
    assert lines[height + 2].split() == ["0.01", "lr", "(log)", "100"]
    assert lines[-1] == LEGEND
    for mark in (*SHADE.values(), *LETTER.values()):
        assert mark in LEGEND
        assert mark in "".join(body(text))


def test_corners() -> None:
    """The ends of both axes are the first and last characters."""
    axes = {"lr": LR, "weight_decay": {"scale": "log", "low": 1e-4, "high": 1}}
    corners = [Point(lr, 0.0, decay) for lr in (0.01, 100.0) for decay in (1e-4, 1.0)]
    rows = body(as_text(map_of(axes, corners), 21, 7))
    assert len(rows) == 7
    assert letters(rows) == {(0, 0): "S", (6, 0): "S", (0, 20): "D", (6, 20): "D"}


def test_one_axis() -> None:
    found = map_of({"lr": LR, "weight_decay": 0.01}, 12)
    text = as_text(found, width=41)
    (row,) = body(text)
    expected = shades(found, lr=10 ** (-2 + np.arange(40) / 10))
    for _, point in found.frame.iterrows():
        column = round((math.log10(point["lr"]) + 2) * 10)
        assert row[column] == LETTER[point["regime"]]
    assert [mark for i, mark in enumerate(row[:40]) if mark in ".~#" and mark != expected[i]] == []
    assert "lr (log)" in text
    assert "weight_decay" not in text
    assert text.splitlines()[-1] == LEGEND


def test_a_linear_axis() -> None:
    points = [Point(0.1, alpha) for alpha in (0.0, 0.5, 2.0)]
    rows = body(as_text(map_of({"lr": LR, "alpha": ALPHA}, points), 41, 5))
    assert letters(rows) == {(4, 10): "S", (3, 10): "S", (0, 10): "S"}


def test_three_axes_say_where_the_third_is_held() -> None:
    """Only points on that level are drawn: others would lie beside what is shown."""
    axes = {"lr": LR, "alpha": ALPHA, "weight_decay": DECAY}
    at_zero = [Point(0.1, 0.0, 0.0), Point(100.0, 2.0, 0.0)]
    beside = [Point(1.0, 1.0, 1e-4), Point(10.0, 1.0, 1.0), Point(0.01, 1.0, 0.01)]
    text = as_text(map_of(axes, [*at_zero, *beside]), 41, 5)
    assert letters(body(text)) == {(4, 10): "S", (0, 40): "D"}
    assert "at weight_decay = 0" in text.splitlines()
    assert text.splitlines()[0] == "alpha (linear)"


def test_no_free_axis() -> None:
    assert as_text(map_of({"lr": 0.1}, [Point(0.1)])) == "one point: stable"


def test_a_zero_level_across() -> None:
    axes = {"lr": 0.1, "weight_decay": DECAY}
    zero, low = (as_text(map_of(axes, [Point(0.1, 0.0, decay)])) for decay in (0.0, 1e-4))
    assert letters(body(zero)) != letters(body(low))


def test_width_is_kept() -> None:
    for width in (20, 56, 100):
        text = as_text(map_of({"lr": LR, "weight_decay": DECAY}, 8), width, 6)
        assert {len(row) for row in body(text)} == {width}
        assert len(body(text)) == 7
        assert max(map(len, text.splitlines()[:-1])) <= width + 12
