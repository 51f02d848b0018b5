"""The evidence nearest to a place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainables.domain import AXIS_NAMES, Axis, InputError, Mistake


def nearest_rows(
    axes: Sequence[Axis], frame: pd.DataFrame, place: NDArray[np.float64], n: int
) -> pd.DataFrame:
    """The n rows nearest to a place, (axes,) values, with `distance` in unit coordinates."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise InputError([Mistake("n", n, "a whole number >= 1", "use 5")])
    points = frame[list(AXIS_NAMES)].to_numpy(np.float64)
    apart = [a.to_unit(v) - a.to_unit(p) for a, v, p in zip(axes, points.T, place, strict=True)]
    distance = np.sqrt(np.square(apart).sum(0))
    order = np.argsort(distance, kind="stable")[:n]
    found = frame.iloc[order].reset_index(drop=True)
    found.insert(0, "distance", distance[order])
    return found
