"""The two boundaries of a map as level sets, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainables.domain import Axis

Array = NDArray[np.float64]

#: Places on each other free axis, by how many of them there are; an extra zero comes on top.
LINES = {0: 1, 1: 64, 2: 16}
#: Values along the axis that is searched.
ALONG = 256


def level_set(
    axes: Sequence[Axis], probability: Callable[[Array], Array], confidence: float
) -> pd.DataFrame:
    """Where a probability crosses one half along the first free axis.

    Args:
        axes: lr, alpha, weight_decay; at least one is free.
        probability: of being on the low side of the boundary, at (n, 3) values of the axes.
        confidence: of the interval, in (0, 1).

    Returns:
        One row a crossing: the three axes, and `low` and `high`, the values of the first free axis
        where the probability next passes (1 + confidence) / 2 and (1 - confidence) / 2; not a
        number where it does not within the range. A line that crosses the boundary several times
        gives as many rows.
    """
    main = next(i for i, axis in enumerate(axes) if axis.free)
    along = axes[main].from_unit(np.linspace(0, 1, ALONG))
    count = LINES[sum(axis.free for axis in axes) - 1]
    others = [_places(axis, count) if i != main else [0.0] for i, axis in enumerate(axes)]
    lines = np.stack(np.meshgrid(*others, indexing="ij"), -1).reshape(-1, len(axes))
    rows = []
    for line in lines:
        points = np.tile(line, (ALONG, 1))
        points[:, main] = along
        found = probability(points)
        for value, low, high in _crossings(axes[main].to_unit(along), found, confidence):
            place = line.copy()
            place[main], low, high = axes[main].from_unit([value, low, high])
            rows.append([*place, low, high])
    names = [axis.name for axis in axes]
    return pd.DataFrame(rows, columns=[*names, "low", "high"], dtype=np.float64)


def _places(axis: Axis, count: int) -> list[float]:
    if not axis.free:
        return [axis.smallest]
    values: list[float] = axis.from_unit(np.linspace(0, 1, count)).tolist()
    return [0.0, *values] if axis.zero else values


def _crossings(
    unit: Array, probability: Array, confidence: float
) -> Iterator[tuple[float, float, float]]:
    """Crossings of one half, each with the nearest crossings of the two outer levels around it."""
    for index in np.flatnonzero(np.diff(probability >= 0.5)):
        falls = probability[index] >= 0.5
        shown = probability if falls else 1 - probability
        sure, unsure = (1 + confidence) / 2, (1 - confidence) / 2
        before = np.flatnonzero(shown[: index + 1] >= sure)
        after = np.flatnonzero(shown[index + 1 :] <= unsure)
        low = _between(unit, shown, int(before[-1]), sure) if len(before) else np.nan
        high = _between(unit, shown, int(index + after[0]), unsure) if len(after) else np.nan
        yield _between(unit, shown, int(index), 0.5), low, high


def _between(unit: Array, values: Array, index: int, level: float) -> float:
    """Where falling values pass a level, linearly between two places."""
    first, second = values[index], values[index + 1]
    share = (first - level) / (first - second) if first != second else 0.0
    return float(unit[index] + share * (unit[index + 1] - unit[index]))
