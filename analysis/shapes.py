"""The boundaries of a fitted model as curves and surfaces, on a grid of the free axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.special import logit

from analysis.geometry import Geometry, Mesh, area, geometry
from analysis.marching import level_simplices
from trainables.domain import AXIS_NAMES, Axis, InputError, Mistake

Array = NDArray[np.float64]
Indices = NDArray[np.int_]
Probability = Callable[[Array], Array]

#: Probabilities nearer to 0 or 1 than this look alike.
SURE = 1e-12
#: Cells of the grid below which a curve on it is not known: it is straight in each.
CELLS = 2


def mesh_of(axes: Sequence[Axis], probability: Probability, count: int) -> Mesh:
    """Where a probability passes one half, with three free axes.

    Args:
        axes: lr, alpha, weight_decay.
        probability: of the calm side, at (n, 3) values of the axes.
        count: places along each axis.

    Raises:
        InputError: not three free axes, or a count outside 2 to 128.
    """
    _check(axes, 3, count, (2, 128))
    unit, faces = _passes(axes, probability, count)
    values = [axis.from_unit(column) for axis, column in zip(axes, unit.T, strict=True)]
    return Mesh(np.stack(values, -1), faces, area(unit, faces))


def geometry_of(
    axes: Sequence[Axis], probability: Probability, frame: pd.DataFrame, count: int
) -> Geometry:
    """The shape of the line where a probability passes one half, with two free axes.

    Args:
        axes: lr, alpha, weight_decay.
        probability: of the calm side, at (n, 3) values of the axes.
        frame: the evidence behind the probability.
        count: places along each axis.

    Raises:
        InputError: not two free axes, or a count outside 8 to 1024.
    """
    _check(axes, 2, count, (8, 1024))
    unit, segments = _passes(axes, probability, count)
    known = CELLS / (count - 1)
    if len(segments) and len(frame):
        points = [a.to_unit(frame[a.name].to_numpy()) for a in axes if a.free]
        apart = KDTree(np.stack(points, -1)).query(unit)[0]
        known = max(known, float(np.median(apart)))
    return geometry(unit, segments, known)


def _passes(axes: Sequence[Axis], probability: Probability, count: int) -> tuple[Array, Indices]:
    """Vertices in unit coordinates of the free axes, and the pieces between them."""
    along = [np.linspace(0, 1, count) if axis.free else np.zeros(1) for axis in axes]
    values = [axis.from_unit(unit) for axis, unit in zip(axes, along, strict=True)]
    points = np.stack(np.meshgrid(*values, indexing="ij"), -1).reshape(-1, len(AXIS_NAMES))
    # Straighter between two places than the probability itself.
    height = logit(np.clip(probability(points), SURE, 1 - SURE))
    free = sum(axis.free for axis in axes)
    vertices, pieces = level_simplices(height.reshape((count,) * free))
    return vertices / (count - 1), pieces


def _check(axes: Sequence[Axis], free: int, count: int, counts: tuple[int, int]) -> None:
    mistakes = []
    names = [axis.name for axis in axes if axis.free]
    if len(names) != free:
        law = f"a map with {('two', 'three')[free - 2]} free axes is asked for"
        remedy = "slice it first" if len(names) > free else "use boundary"
        mistakes.append(Mistake("axes", names, law, remedy))
    low, high = counts
    whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
    if not whole or not low <= count <= high:
        law = f"a whole number from {low} to {high}"
        mistakes.append(Mistake("count", count, law, "leave it out"))
    if mistakes:
        raise InputError(mistakes)
